//! The loads: each drives one server process through one swarm and returns figures.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::ledger::Ledger;
use crate::fanout::measure::{self, Histogram};
use crate::fanout::swarm::{self, Swarm};
use crate::fanout::target::{self, Purpose, Redis, Side, Target};
use crate::fanout::tokens::Tokens;
use crate::fanout::wire::{self, Template, Unit};

pub(crate) const DELIVERIES: &str = "deliveries/s";
pub(crate) const DELIVERY_CPU: &str = "server CPU per delivery, µs";
pub(crate) const NOTIFICATIONS: &str = "notifications/s";
pub(crate) const REQUESTS: &str = "requests/s";
pub(crate) const NOTIFICATION_CPU: &str = "server CPU per notification, µs";
pub(crate) const P50: &str = "latency p50, µs";
pub(crate) const P99: &str = "latency p99, µs";
pub(crate) const MAX: &str = "latency max, µs";
pub(crate) const MEMORY: &str = "all memory per connection, KiB";
pub(crate) const RESIDENT: &str = "server RSS per connection, KiB";
pub(crate) const THREADS: &str = "server threads per connection";
pub(crate) const IDLE_CPU: &str = "server CPU while idle, ms per s";
pub(crate) const OPENED: &str = "connections opened/s";
pub(crate) const CAME_AND_WENT: &str = "connections come and gone/s";
pub(crate) const CONNECTION_CPU: &str = "server CPU per connection, µs";
pub(crate) const LEFT_BEHIND: &str = "threads and descriptors left behind";
pub(crate) const ALONE: &str = "other room alone, ms";
pub(crate) const BEHIND: &str = "other room behind the broadcast, ms";
pub(crate) const DELAY: &str = "delay, ms";
pub(crate) const DELAY_IN_FLUSHES: &str = "delay, in flushes of 16,384 frames";
pub(crate) const NEAR_P99: &str = "p99 at the publisher's instance, ms";
pub(crate) const FAR_P99: &str = "p99 at the other instance, ms";
pub(crate) const ADDED_P99: &str = "p99 added by the way over Redis, ms";

/// Frames that the hub appends before it flushes, at most.
const FLUSH_FRAMES: f64 = 16_384.0;

/// A name, with its unit, and a value.
pub(crate) type Figure = (&'static str, f64);

/// How a scenario loads a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// In each room one member publishes, and all get it; so many messages of a room are on their way at a time.
    FanOut { rooms: usize, members: usize, in_flight: usize },
    /// Each caller notifies a room of its own, of one member, over one keep-alive connection.
    Notify { callers: usize, batch: usize },
    /// Connections that say nothing.
    Idle { connections: usize },
    /// Connections that come, join a room and go, at a fixed rate.
    Churn { per_second: u32 },
    /// One message to one client after a pause.
    WakeUp,
    /// A message to a room of one right behind a broadcast to so many.
    Behind { members: usize },
    /// A room over two instances, so many clients on each, published to at both in turn.
    TwoInstances { clients: usize, per_second: u32 },
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// A closed loop's measured time.
    pub(crate) span: Duration,
    /// Rounds of a scenario that measures one message at a time.
    pub(crate) rounds: usize,
    /// Seconds of a scenario with a fixed rate.
    pub(crate) seconds: u32,
}

impl Effort {
    pub(crate) const FULL: Self = Self {
        span: Duration::from_secs(3),
        rounds: 50,
        seconds: 5,
    };
    pub(crate) const QUICK: Self = Self {
        span: Duration::from_millis(500),
        rounds: 10,
        seconds: 1,
    };

    /// Enough for caches, allocators and TCP windows to settle.
    fn warm_up(&self) -> Duration {
        self.span / 5
    }
}

impl Load {
    /// Whether there is a floor to compare with.
    pub(crate) fn has_floor(self) -> bool {
        !matches!(self, Self::TwoInstances { .. })
    }
}

/// Starts a server, puts `load` on it, and ends it.
pub(crate) fn run(load: Load, side: Side, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let start = |purpose| Target::start(side, purpose, tokens);
    match load {
        Load::FanOut {
            rooms,
            members,
            in_flight,
        } => fan_out(rooms, members, in_flight, &start(Purpose::Rooms)?, tokens, effort),
        Load::Notify { callers, batch } => notify(callers, batch, &start(Purpose::Rest)?, tokens, effort),
        Load::Idle { connections } => idle(connections, &start(Purpose::Rooms)?, tokens, effort),
        Load::Churn { per_second } => churn(per_second, &start(Purpose::Rooms)?, tokens, effort),
        Load::WakeUp => wake_up(&start(Purpose::Rooms)?, tokens, effort),
        Load::Behind { members } => behind(members, &start(Purpose::Rooms)?, tokens, effort),
        Load::TwoInstances { clients, per_second } => two_instances(clients, per_second, tokens, effort),
    }
}

/// Runs a measured piece of work: its elapsed time and the CPU time that the server spent on it.
fn measured(target: &Target, work: impl FnOnce() -> Fallible<()>) -> Fallible<(Duration, Duration)> {
    let cpu_before = target.cpu_time()?;
    let start = Instant::now();
    work()?;
    let elapsed = start.elapsed();
    Ok((elapsed, target.cpu_time()?.saturating_sub(cpu_before)))
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

fn micros_each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

fn latencies(histogram: &Histogram) -> [Figure; 3] {
    [
        (P50, histogram.quantile_us(0.5)),
        (P99, histogram.quantile_us(0.99)),
        (MAX, histogram.max_us()),
    ]
}

/// One who publishes broadcasts to a room from a connection in it.
struct Publisher {
    link: usize,
    stream: usize,
    template: Template,
}

/// Members in rooms, their publishers, and the account of what they say and hear.
struct Rooms {
    swarm: Swarm,
    ledger: Ledger,
    publishers: Vec<Publisher>,
    outgoing: Vec<u8>,
}

impl Rooms {
    /// Opens the connections and joins each to its room, as `room-0`, `room-1`, …
    fn open(
        address: SocketAddr,
        rooms: usize,
        members: usize,
        in_flight: usize,
        tokens: &Tokens,
    ) -> Fallible<Self> {
        let mut swarm = Swarm::new()?;
        let names: Vec<String> = (0..rooms).map(|room| format!("room-{room}")).collect();
        let seats: Vec<String> = names.iter().flat_map(|name| vec![name.clone(); members]).collect();
        swarm.admit(address, &seats, tokens)?;
        let mut ledger = Ledger::new();
        let mut publishers = Vec::new();
        for (room, name) in names.iter().enumerate() {
            let stream = ledger.add_stream(members as u32, in_flight);
            for _ in 0..members {
                ledger.add_member([stream; 2], 0, wire::BROADCAST_TAIL_BYTES);
            }
            publishers.push(Publisher {
                link: room * members,
                stream,
                template: Template::broadcast(name, 0),
            });
        }
        Ok(Self {
            swarm,
            ledger,
            publishers,
            outgoing: Vec::new(),
        })
    }

    /// Publishes as much as may be in flight, in one send.
    fn fill(&mut self, publisher: usize) -> Fallible<()> {
        let publisher = &mut self.publishers[publisher];
        self.outgoing.clear();
        for _ in 0..self.ledger.room_for(publisher.stream) {
            let sequence = self.ledger.publish(publisher.stream);
            publisher.template.append(sequence, &mut self.outgoing);
        }
        self.swarm.send(publisher.link, &self.outgoing)
    }

    /// Takes one round of arrivals, of which there must be some.
    fn take(&mut self) -> Fallible<()> {
        let ledger = &mut self.ledger;
        self.swarm.pump_due(|arrival| match arrival.unit {
            Unit::Text(text) => ledger.deliver(arrival.link, text, arrival.at),
            other => Err(swarm::unexpected(arrival.link, &other)),
        })
    }

    /// Publishes whenever a fan-out completes, for `span`, then waits for what is on its way.
    fn run(&mut self, span: Duration) -> Fallible<()> {
        let deadline = Instant::now() + span;
        for publisher in 0..self.publishers.len() {
            self.fill(publisher)?;
        }
        while !self.ledger.is_settled() {
            self.take()?;
            // Streams and publishers have the same numbers.
            let completed = self.ledger.take_completed();
            if Instant::now() < deadline {
                for publisher in completed {
                    if self.ledger.room_for(publisher) > 0 {
                        self.fill(publisher)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn fan_out(
    rooms: usize,
    members: usize,
    in_flight: usize,
    target: &Target,
    tokens: &Tokens,
    effort: Effort,
) -> Fallible<Vec<Figure>> {
    let mut all = Rooms::open(target.address, rooms, members, in_flight, tokens)?;
    all.run(effort.warm_up())?;
    all.ledger.reset_counts();
    let (elapsed, cpu) = measured(target, || all.run(effort.span))?;
    let deliveries = all.ledger.deliveries();
    let mut figures = vec![
        (DELIVERIES, per_second(deliveries, elapsed)),
        (DELIVERY_CPU, micros_each(cpu, deliveries)),
    ];
    figures.extend(latencies(all.ledger.near()));
    Ok(figures)
}

/// One who notifies over REST.
struct Caller {
    link: usize,
    stream: usize,
    template: Template,
    /// When the request on its way was sent.
    asked: Option<Instant>,
}

/// The callers, the members that they notify, and the account.
struct Callers {
    swarm: Swarm,
    ledger: Ledger,
    callers: Vec<Caller>,
    batch: usize,
    answered: u64,
    answers: Histogram,
    outgoing: Vec<u8>,
}

/// Requests whose notifications may still be on their way when the caller, which has its answer, sends the next.
const BATCHES_IN_FLIGHT: usize = 8;

impl Callers {
    fn open(address: SocketAddr, callers: usize, batch: usize, tokens: &Tokens) -> Fallible<Self> {
        let mut swarm = Swarm::new()?;
        let rooms: Vec<String> = (0..callers).map(|room| format!("room-{room}")).collect();
        swarm.admit(address, &rooms, tokens)?;
        let mut ledger = Ledger::new();
        let mut open = Vec::new();
        for room in &rooms {
            let stream = ledger.add_stream(1, batch * BATCHES_IN_FLIGHT);
            ledger.add_member([stream; 2], 0, wire::notification_tail_bytes(room));
            open.push(Caller {
                link: swarm.connect(address)?,
                stream,
                template: Template::notify(room, batch, tokens.backend()),
                asked: None,
            });
        }
        Ok(Self {
            swarm,
            ledger,
            callers: open,
            batch,
            answered: 0,
            answers: Histogram::new(),
            outgoing: Vec::new(),
        })
    }

    /// Lets every caller that waits for nothing ask again.
    fn ask(&mut self) -> Fallible<()> {
        for caller in &mut self.callers {
            if caller.asked.is_some() || self.ledger.room_for(caller.stream) < self.batch {
                continue;
            }
            let first = self.ledger.publish(caller.stream);
            for _ in 1..self.batch {
                self.ledger.publish(caller.stream);
            }
            self.outgoing.clear();
            caller.template.append(first, &mut self.outgoing);
            caller.asked = Some(Instant::now());
            self.swarm.send(caller.link, &self.outgoing)?;
        }
        Ok(())
    }

    fn take(&mut self) -> Fallible<()> {
        let Self {
            swarm,
            ledger,
            callers,
            batch,
            answered,
            answers,
            ..
        } = self;
        // The callers' connections were opened after the members'.
        let first_caller = callers.len();
        swarm.pump_due(|arrival| match arrival.unit {
            Unit::Text(text) => ledger.deliver(arrival.link, text, arrival.at),
            Unit::Response { status: 200, body } if counts_all(body, *batch) => {
                let caller = &mut callers[arrival.link - first_caller];
                let asked = caller.asked.take().ok_or("an answer without a question")?;
                answers.record(arrival.at.duration_since(asked).as_nanos() as u64);
                *answered += 1;
                Ok(())
            }
            other => Err(swarm::unexpected(arrival.link, &other)),
        })
    }

    fn run(&mut self, span: Duration) -> Fallible<()> {
        let deadline = Instant::now() + span;
        self.ask()?;
        while !self.ledger.is_settled() || self.callers.iter().any(|caller| caller.asked.is_some()) {
            self.take()?;
            if Instant::now() < deadline {
                self.ask()?;
            }
        }
        Ok(())
    }
}

/// Whether the answer says that one connection took each notification.
fn counts_all(body: &[u8], batch: usize) -> bool {
    let Some((_, counts)) = std::str::from_utf8(body).ok().and_then(|body| body.split_once("\"delivered\":")) else {
        return false;
    };
    match counts.strip_prefix('[') {
        None => batch == 1 && counts.starts_with('1'),
        Some(list) => list.split(']').next().is_some_and(|list| {
            list.split(',').count() == batch && list.split(',').all(|count| count.trim() == "1")
        }),
    }
}

fn notify(
    callers: usize,
    batch: usize,
    target: &Target,
    tokens: &Tokens,
    effort: Effort,
) -> Fallible<Vec<Figure>> {
    let mut all = Callers::open(target.address, callers, batch, tokens)?;
    all.run(effort.warm_up())?;
    all.ledger.reset_counts();
    all.answers = Histogram::new();
    all.answered = 0;
    let (elapsed, cpu) = measured(target, || all.run(effort.span))?;
    let notifications = all.ledger.deliveries();
    let mut figures = vec![
        (REQUESTS, per_second(all.answered, elapsed)),
        (NOTIFICATIONS, per_second(notifications, elapsed)),
        (NOTIFICATION_CPU, micros_each(cpu, notifications)),
    ];
    figures.extend(latencies(&all.answers));
    Ok(figures)
}

fn idle(connections: usize, target: &Target, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let each = |kib: f64| kib / connections as f64;
    let (available, resident, threads) = (measure::available_kib()?, target.resident_kib()?, target.threads()?);
    let start = Instant::now();
    let _rooms = Rooms::open(target.address, connections, 1, 1, tokens)?;
    let opening = start.elapsed();
    let (elapsed, cpu) = measured(target, || {
        thread::sleep(effort.span);
        Ok(())
    })?;
    Ok(vec![
        (MEMORY, each(available - measure::available_kib()?)),
        (RESIDENT, each(target.resident_kib()? - resident)),
        (THREADS, each(target.threads()?.saturating_sub(threads) as f64)),
        (IDLE_CPU, cpu.as_secs_f64() * 1e3 / elapsed.as_secs_f64()),
        (OPENED, per_second(connections as u64, opening)),
    ])
}

/// Rooms that the passing connections spread over.
const CHURN_ROOMS: usize = 100;

fn churn(rate: u32, target: &Target, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let rooms: Vec<String> = (0..CHURN_ROOMS).map(|room| format!("room-{room}")).collect();
    let count = (rate * effort.seconds) as usize;
    let gap = Duration::from_secs(1) / rate;
    let open = || -> Fallible<u64> { Ok(target.threads()? + target.descriptors()?) };
    let open_before = open()?;
    let mut swarm = Swarm::new()?;
    let mut came = Vec::with_capacity(count);
    let mut until_joined = Histogram::new();
    let mut gone = 0;
    let (elapsed, cpu) = measured(target, || {
        let start = Instant::now();
        let (mut upgraded, mut joined) = (Vec::new(), Vec::new());
        while gone < count {
            while came.len() < count && start.elapsed() >= gap * came.len() as u32 {
                came.push(Instant::now());
                let link = swarm.connect(target.address)?;
                swarm.send(link, &wire::upgrade(&tokens.client(link)?))?;
            }
            swarm.pump(Duration::from_millis(1), |arrival| {
                let link = arrival.link;
                match arrival.unit {
                    Unit::Upgraded => upgraded.push(link),
                    Unit::Text(text) if swarm::is_joined(text, &rooms[link % CHURN_ROOMS]) => {
                        until_joined.record(arrival.at.duration_since(came[link]).as_nanos() as u64);
                        joined.push(link);
                    }
                    Unit::Close => {}
                    Unit::End => gone += 1,
                    other => return Err(swarm::unexpected(link, &other)),
                }
                Ok(())
            })?;
            for link in upgraded.drain(..) {
                swarm.send(link, &wire::join(&rooms[link % CHURN_ROOMS]))?;
            }
            for link in joined.drain(..) {
                swarm.send(link, &wire::close())?;
            }
            if start.elapsed() > gap * count as u32 + CHURN_PATIENCE {
                return Err(format!("{} of {count} connections came and {gone} went", came.len()).into());
            }
        }
        Ok(())
    })?;
    // The last threads may still be ending.
    let settled = target::wait_until("threads and descriptors to be as before", || {
        open().is_ok_and(|now| now <= open_before)
    });
    let left_behind = if settled.is_ok() { 0 } else { open()? - open_before };
    let mut figures = vec![
        (CAME_AND_WENT, per_second(count as u64, elapsed)),
        (CONNECTION_CPU, micros_each(cpu, count as u64)),
        (LEFT_BEHIND, left_behind as f64),
    ];
    figures.extend(latencies(&until_joined));
    Ok(figures)
}

/// How long after the last arrival the last may leave.
const CHURN_PATIENCE: Duration = Duration::from_secs(10);

/// Long enough for every thread involved to sleep.
const IDLE_PAUSE: Duration = Duration::from_millis(100);

fn wake_up(target: &Target, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let mut one = Rooms::open(target.address, 1, 1, 1, tokens)?;
    for _ in 0..effort.rounds {
        thread::sleep(IDLE_PAUSE);
        one.run(Duration::ZERO)?;
    }
    Ok(latencies(one.ledger.near()).to_vec())
}

/// Between the broadcast and the message that must be behind it, so that the hub meets them in this order.
const HEAD_START: Duration = Duration::from_micros(300);

fn behind(members: usize, target: &Target, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let mut crowd = Rooms::open(target.address, 1, members, 1, tokens)?;
    let mut other = Rooms::open_beside(target.address, tokens)?;
    let (elapsed, _) = measured(target, || crowd.run(effort.span))?;
    let flush_ms = FLUSH_FRAMES / per_second(crowd.ledger.deliveries(), elapsed) * 1e3;
    let (mut alone, mut behind) = (Histogram::new(), Histogram::new());
    for _ in 0..effort.rounds {
        other.ledger.reset_counts();
        other.run(Duration::ZERO)?;
        alone.record((other.ledger.near().max_us() * 1e3) as u64);

        other.ledger.reset_counts();
        crowd.fill(0)?;
        thread::sleep(HEAD_START);
        // The crowd's sockets hold what comes meanwhile, so the generator takes no CPU from the server.
        other.run(Duration::ZERO)?;
        behind.record((other.ledger.near().max_us() * 1e3) as u64);
        while !crowd.ledger.is_settled() {
            crowd.take()?;
        }
        crowd.ledger.reset_counts();
    }
    let (alone_ms, behind_ms) = (alone.quantile_us(0.5) / 1e3, behind.quantile_us(0.5) / 1e3);
    Ok(vec![
        (ALONE, alone_ms),
        (BEHIND, behind_ms),
        (DELAY, behind_ms - alone_ms),
        (DELAY_IN_FLUSHES, (behind_ms - alone_ms) / flush_ms),
    ])
}

impl Rooms {
    /// A room of one that is not among those of [`Self::open`].
    fn open_beside(address: SocketAddr, tokens: &Tokens) -> Fallible<Self> {
        let name = "beside".to_owned();
        let mut swarm = Swarm::new()?;
        swarm.admit(address, std::slice::from_ref(&name), tokens)?;
        let mut ledger = Ledger::new();
        let stream = ledger.add_stream(1, 1);
        ledger.add_member([stream; 2], 0, wire::BROADCAST_TAIL_BYTES);
        let publisher = Publisher {
            link: 0,
            stream,
            template: Template::broadcast(&name, 0),
        };
        Ok(Self {
            swarm,
            ledger,
            publishers: vec![publisher],
            outgoing: Vec::new(),
        })
    }
}

/// At a fixed rate no more than a few are on their way, unless an instance stalls.
const TWO_INSTANCES_IN_FLIGHT: usize = 256;
/// The fixed rate runs longer than other loads do: a p99 needs messages.
const TWO_INSTANCES_STRETCH: u32 = 4;

fn two_instances(clients: usize, rate: u32, tokens: &Tokens, effort: Effort) -> Fallible<Vec<Figure>> {
    let redis = Redis::start()?;
    let instances = [
        Target::start_service(tokens, Some(redis.address))?,
        Target::start_service(tokens, Some(redis.address))?,
    ];
    let mut swarm = Swarm::new()?;
    let mut ledger = Ledger::new();
    let room = "room-0".to_owned();
    let streams = [0, 1].map(|_| ledger.add_stream(2 * clients as u32, TWO_INSTANCES_IN_FLIGHT));
    let mut publishers = Vec::new();
    for (number, instance) in (0..).zip(&instances) {
        let first = swarm.admit(instance.address, &vec![room.clone(); clients], tokens)?;
        for _ in 0..clients {
            ledger.add_member(streams, number, wire::BROADCAST_TAIL_BYTES);
        }
        publishers.push(Publisher {
            link: first,
            stream: streams[usize::from(number)],
            template: Template::broadcast(&room, number),
        });
    }
    let mut both = Rooms {
        swarm,
        ledger,
        publishers,
        outgoing: Vec::new(),
    };
    let count = rate * effort.seconds * TWO_INSTANCES_STRETCH;
    both.run_at_rate(rate, count)?;
    let p99_ms = |histogram: &Histogram| histogram.quantile_us(0.99) / 1e3;
    let (near, far) = (p99_ms(both.ledger.near()), p99_ms(both.ledger.far()));
    Ok(vec![(NEAR_P99, near), (FAR_P99, far), (ADDED_P99, far - near)])
}

impl Rooms {
    /// Publishes `count` messages at a fixed rate, from the publishers in turn, then waits for what is on its way.
    fn run_at_rate(&mut self, rate: u32, count: u32) -> Fallible<()> {
        let gap = Duration::from_secs(1) / rate;
        let start = Instant::now();
        let mut published = 0;
        while published < count || !self.ledger.is_settled() {
            let due = start + gap * published;
            if published < count && Instant::now() >= due {
                let publisher = published as usize % self.publishers.len();
                self.publish_one(publisher)?;
                published += 1;
            } else if published < count {
                self.take_until(due)?;
            } else {
                self.take()?;
            }
        }
        Ok(())
    }

    fn publish_one(&mut self, publisher: usize) -> Fallible<()> {
        let publisher = &mut self.publishers[publisher];
        if self.ledger.room_for(publisher.stream) == 0 {
            return Err(format!("{TWO_INSTANCES_IN_FLIGHT} messages have not reached everybody").into());
        }
        self.outgoing.clear();
        let sequence = self.ledger.publish(publisher.stream);
        publisher.template.append(sequence, &mut self.outgoing);
        self.swarm.send(publisher.link, &self.outgoing)
    }

    /// Takes one round of arrivals, or none when none comes before `due`.
    fn take_until(&mut self, due: Instant) -> Fallible<()> {
        let ledger = &mut self.ledger;
        self.swarm.pump(due.saturating_duration_since(Instant::now()), |arrival| match arrival.unit {
            Unit::Text(text) => ledger.deliver(arrival.link, text, arrival.at),
            other => Err(swarm::unexpected(arrival.link, &other)),
        })?;
        Ok(())
    }
}
