//! Many clients that hop between instances at random, and publishers that do so too, while something
//! fails: nobody may have a hole or a repetition that it was not told of.
//!
//! `SEED` repeats a run, `FULL_SIZE=1` is the size of a release.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "each test file uses a part of it; a test fails by panicking"
)]

mod follower;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use crate::crowd;
use crate::support::{
    Client, Frame, PATIENCE, Random, Response, Service, bearer, full_size, handshake, token, until,
};
pub use follower::{Event, Follower, MARKER, Position, Published, Said, faults, numbered_again};

/// Rooms of each client.
const ROOMS_EACH: usize = 2;
/// Over HTTP, and as many by broadcasts.
const PUBLISHERS: u64 = 2;
/// Messages of a publisher between two pauses.
const BURST: usize = 10;
/// Notifications of one request.
const BATCH: usize = 100;
/// Runs at once: more would only wait for each other.
const RUNS_AT_ONCE: usize = 4;
/// What hangs shows by its deadline; all that is kept fits, and nobody is pinged, however slow the machine.
pub const SETTINGS: [(&str, &str); 5] = [
    ("RATE_LIMIT", "0"),
    ("PING_INTERVAL", "1h"),
    ("MAX_CONNECTIONS_PER_USER", "0"),
    ("HISTORY_MESSAGES", "5000"),
    ("HISTORY_BYTES", "256MiB"),
];

/// How much there is of everything.
#[derive(Clone)]
pub struct Size {
    pub clients: usize,
    pub rooms: usize,
    pub per_second: u32,
    /// With everything whole, before the fault and after it.
    pub time: Duration,
    /// A client stays, and stays away, for up to so long.
    pub stay: Duration,
    /// Nobody waits longer for an answer, whatever Redis does.
    pub longest_answer: Duration,
}

impl Size {
    /// The usual one.
    pub fn usual() -> Self {
        if full_size() {
            Self {
                clients: 100,
                rooms: 20,
                per_second: 1000,
                time: Duration::from_secs(10),
                stay: Duration::from_secs(2),
                longest_answer: Duration::from_secs(5),
            }
        } else {
            Self {
                clients: 24,
                rooms: 6,
                per_second: 240,
                time: Duration::from_millis(1500),
                stay: Duration::from_millis(1200),
                longest_answer: Duration::from_secs(5),
            }
        }
    }
}

/// Several instances, which come and go.
pub struct Instances {
    settings: Vec<(String, String)>,
    /// Of each instance, where its Redis is.
    redis: Vec<String>,
    services: Mutex<Vec<Option<Service>>>,
    addrs: RwLock<Vec<Option<SocketAddr>>>,
}

impl Instances {
    /// One for each address of Redis, with the usual settings and these.
    pub fn start(redis: &[&str], settings: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let instances = Self {
            settings: SETTINGS.iter().chain(settings).map(owned).collect(),
            redis: redis.iter().map(|addr| (*addr).to_owned()).collect(),
            services: Mutex::new(redis.iter().map(|_| None).collect()),
            addrs: RwLock::new(vec![None; redis.len()]),
        };
        (0..redis.len()).for_each(|n| instances.start_again(n));
        instances
    }

    /// Starts the one that was killed.
    pub fn start_again(&self, n: usize) {
        let mut settings: Vec<_> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        settings.push(("REDIS_ADDR", &self.redis[n]));
        let service = crowd::start(&settings);
        service.wait_for_redis("connected");
        self.addrs.write().unwrap()[n] = Some(service.addr());
        self.services.lock().unwrap()[n] = Some(service);
    }

    /// `kill -9`.
    pub fn kill(&self, n: usize) {
        // Its port may be another program's soon.
        self.addrs.write().unwrap()[n] = None;
        let service = self.services.lock().unwrap()[n].take().expect("it runs");
        service.signal("KILL");
        let (status, _) = service.wait();
        assert!(!status.success(), "{status}");
    }

    /// Asks each that runs.
    pub fn each(&self, mut ask: impl FnMut(&Service)) {
        self.services.lock().unwrap().iter().flatten().for_each(&mut ask);
    }

    /// Nobody was told that anything may be missing, unless an instance found Redis away: where the machine stands
    /// still for a second, that is right.
    pub fn assert_undisturbed(&self, totals: &Totals) {
        let mut was_away = false;
        self.each(|service| {
            let log = service.log();
            was_away |= log.iter().any(|line| line.contains("redis is disconnected"));
        });
        if was_away {
            println!("Redis did not answer for a second: {totals:?}");
        } else {
            assert_eq!((totals.told(), totals.unnumbered), (0, 0), "{totals:?}");
        }
    }

    /// Waits until all are connected to Redis.
    pub fn wait_for_redis(&self) {
        self.each(|service| service.wait_for_redis("connected"));
    }

    /// Where this one listens.
    pub fn addr(&self, n: usize) -> SocketAddr {
        self.addrs.read().unwrap()[n].expect("it runs")
    }

    fn any(&self, random: &mut Random) -> SocketAddr {
        let running: Vec<_> = self.addrs.read().unwrap().iter().flatten().copied().collect();
        running[random.below(running.len())]
    }
}

/// What has happened so far.
#[derive(Default)]
struct Counts {
    connects: AtomicU64,
    answered: AtomicU64,
    messages: AtomicU64,
    recovered: AtomicU64,
    unnumbered: AtomicU64,
    resets: AtomicU64,
    longest_micros: AtomicU64,
}

/// What was said in the whole run.
#[derive(Debug)]
pub struct Totals {
    /// Published and acknowledged.
    pub messages: u64,
    pub connects: u64,
    pub recovered: u64,
    pub not_recovered: u64,
    pub resets: u64,
    /// Seen without a number.
    pub unnumbered: u64,
    /// Seen without a number behind the reset that told of it.
    pub late: usize,
    /// That have numbers in two epochs of their log.
    pub numbered_again: usize,
    /// The longest wait of a publisher or a joiner.
    pub longest_answer: Duration,
}

impl Totals {
    /// How often someone was told that something may be missing.
    pub fn told(&self) -> u64 {
        self.not_recovered + self.resets
    }
}

/// A run, while it goes on.
pub struct World<'a> {
    pub instances: &'a Instances,
    size: Size,
    seed: u64,
    counts: Counts,
    /// What was published to each log: the rooms', then the clients' own.
    ledger: Vec<Mutex<Vec<Published>>>,
    publishers: AtomicU64,
    /// Publishers end.
    is_quiet: AtomicBool,
    /// Clients come a last time.
    is_ending: AtomicBool,
    /// All end at once.
    is_aborted: AtomicBool,
    faults: Mutex<Vec<String>>,
}

/// Ends all threads when the test panics among them.
struct Abort<'a>(&'a AtomicBool);

impl Drop for Abort<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

fn millis(random: &mut Random, end: Duration) -> Duration {
    Duration::from_millis(random.below(end.as_millis() as usize + 1) as u64)
}

fn room(n: usize) -> String {
    format!("room-{n}")
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

/// A run at the usual size.
pub fn run(instances: &Instances, fault: impl FnOnce(&World)) -> Totals {
    run_at(Size::usual(), instances, fault)
}

/// Lets clients and publishers hop, injects the fault in the middle of it, and checks what all saw.
pub fn run_at(size: Size, instances: &Instances, fault: impl FnOnce(&World)) -> Totals {
    let _turn = Turn::take();
    let seed = std::env::var("SEED").map_or(17, |seed| seed.parse().unwrap());
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    println!("{name}: SEED={seed}");
    let world = World::new(size, seed, instances);
    let followers = world.play(fault);
    let mut faults = std::mem::take(&mut *world.faults.lock().unwrap());
    // Those that were found on the way say more than what follows from them.
    if faults.is_empty() {
        let published: Vec<_> =
            world.ledger.iter().map(|log| log.lock().unwrap().clone()).collect();
        faults = follower::faults(&followers, &published);
    }
    let totals = world.totals(&followers);
    println!("{name}: {totals:?}");
    let shown = &faults[..faults.len().min(10)];
    assert!(faults.is_empty(), "{name}: {} faults: {shown:#?}", faults.len());
    assert!(totals.longest_answer < world.size.longest_answer, "{totals:?}");
    totals
}

/// The right to be one of the runs at once.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Self {
        let most = if full_size() { 1 } else { RUNS_AT_ONCE };
        let running = TURNS.0.lock().unwrap();
        *TURNS.1.wait_while(running, |running| *running >= most).unwrap() += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap() -= 1;
        TURNS.1.notify_one();
    }
}

impl<'a> World<'a> {
    fn new(size: Size, seed: u64, instances: &'a Instances) -> Self {
        let logs = size.rooms + size.clients;
        Self {
            instances,
            size,
            seed,
            counts: Counts::default(),
            ledger: (0..logs).map(|_| Mutex::default()).collect(),
            publishers: AtomicU64::new(MARKER + 1),
            is_quiet: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            is_aborted: AtomicBool::new(false),
            faults: Mutex::default(),
        }
    }

    /// Messages that were acknowledged so far.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(SeqCst)
    }

    /// Messages that clients saw so far.
    pub fn messages(&self) -> u64 {
        self.counts.messages.load(SeqCst)
    }

    /// Messages without a number that clients saw so far.
    pub fn unnumbered(&self) -> u64 {
        self.counts.unnumbered.load(SeqCst)
    }

    /// Resets so far.
    pub fn resets(&self) -> u64 {
        self.counts.resets.load(SeqCst)
    }

    /// Lets the traffic go on for so long, and proves that it does.
    pub fn goes_on(&self, what: &str, time: Duration) {
        self.during(what, || self.pause(time));
    }

    /// Does something, and proves that traffic goes on meanwhile.
    pub fn during<R>(&self, what: &str, act: impl FnOnce() -> R) -> R {
        let (answered, messages, start) = (self.answered(), self.messages(), Instant::now());
        let result = act();
        let (answered, messages) = (self.answered() - answered, self.messages() - messages);
        println!("{what}: {answered} acknowledged, {messages} seen in {:?}", start.elapsed());
        if !self.is_aborted.load(SeqCst) {
            assert!(answered >= 10 && messages >= 10, "{what}: the traffic stood still");
        }
        result
    }

    /// Waits, unless something is wrong already.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_aborted.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(10).min(time));
        }
    }

    fn fail(&self, fault: String) {
        self.faults.lock().unwrap().push(fault);
        self.is_aborted.store(true, SeqCst);
    }

    fn is_aborted(&self) -> bool {
        self.is_aborted.load(SeqCst)
    }

    fn note_answer(&self, asked_at: Instant) {
        let micros = asked_at.elapsed().as_micros() as u64;
        self.counts.longest_micros.fetch_max(micros, SeqCst);
    }

    fn play(&self, fault: impl FnOnce(&World)) -> Vec<Follower> {
        std::thread::scope(|scope| {
            let _abort = Abort(&self.is_aborted);
            let publishers: Vec<_> = (0..2 * PUBLISHERS)
                .map(|me| {
                    let name = format!("publisher-{me}");
                    let thread =
                        std::thread::Builder::new().name(name).spawn_scoped(scope, move || {
                            let _abort = Abort(&self.is_aborted);
                            self.publish(me < PUBLISHERS, Random(self.seed * 1000 + me));
                        });
                    thread.unwrap()
                })
                .collect();
            let followers: Vec<_> = (0..self.size.clients)
                .map(|me| {
                    let thread = std::thread::Builder::new()
                        .name(format!("client-{me}"))
                        .stack_size(512 * 1024)
                        .spawn_scoped(scope, move || {
                            let _abort = Abort(&self.is_aborted);
                            self.follow(me, Random(self.seed * 1_000_000 + me as u64))
                        });
                    thread.unwrap()
                })
                .collect();
            until("all clients have come, and some came back", || {
                let clients = self.size.clients as u64;
                self.is_aborted() || self.counts.connects.load(SeqCst) > clients * 5 / 4
            });
            self.goes_on("before", self.size.time);
            fault(self);
            self.goes_on("after", self.size.time);
            self.is_quiet.store(true, SeqCst);
            publishers.into_iter().for_each(|thread| thread.join().unwrap());
            if !self.is_aborted() {
                self.instances.wait_for_redis();
            }
            self.is_ending.store(true, SeqCst);
            self.mark_until(|| followers.iter().all(|thread| thread.is_finished()));
            followers.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Publishes to every log, over and over.
    fn mark_until(&self, is_done: impl Fn() -> bool) {
        let mut random = Random(self.seed);
        let all: Vec<_> = (0..self.ledger.len()).collect();
        let mut n = 0;
        while !is_done() {
            for logs in all.chunks(BATCH) {
                n += 1;
                let messages: Vec<_> = logs.iter().map(|log| (*log, (MARKER, n))).collect();
                if !self.is_aborted() {
                    self.notify(&mut random, &messages, 0);
                }
            }
            let pause = Duration::from_millis(100).max(Duration::from_millis(all.len() as u64));
            std::thread::sleep(pause);
        }
    }

    /// Publishes at its share of the rate.
    fn publish(&self, is_http: bool, mut random: Random) {
        let in_all = BURST as u32 * 2 * PUBLISHERS as u32;
        let pause = Duration::from_secs(1) * in_all / self.size.per_second;
        let mut life: Option<Life> = None;
        let mut next = Instant::now();
        while !self.is_quiet.load(SeqCst) && !self.is_aborted() {
            if life.as_ref().is_none_or(|life| Instant::now() >= life.end) {
                life = self.next_life(is_http, &mut random);
            }
            let Some(current) = &mut life else { continue };
            let messages = current.messages(self, &mut random);
            let text = random.below(500);
            let goes_on = match &mut current.client {
                None => {
                    self.notify(&mut random, &messages, text);
                    true
                }
                Some(client) => self.broadcast(client, &messages, text),
            };
            if !goes_on {
                life = None;
            }
            next += pause;
            // What was late is not made up for.
            next = next.max(Instant::now().checked_sub(pause).unwrap_or(next));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// A connection of a publisher, of one that can be made.
    fn next_life(&self, is_http: bool, random: &mut Random) -> Option<Life> {
        let me = self.publishers.fetch_add(1, SeqCst);
        let mut client = None;
        if !is_http {
            client = open(self.instances.any(random), &format!("publisher-{me}"), false);
            if client.is_none() {
                std::thread::sleep(Duration::from_millis(20));
                return None;
            }
        }
        // A request is a connection of its own, and knows no order with the next one.
        let time = if is_http { Duration::ZERO } else { millis(random, Duration::from_secs(2)) };
        Some(Life { me, n: 0, client, end: Instant::now() + time })
    }

    fn sending(&self, messages: &[(usize, Said)]) -> Vec<usize> {
        let each = messages.iter().map(|(log, said)| {
            let mut log = self.ledger[*log].lock().unwrap();
            log.push(Published { said: *said, sent_at: Instant::now(), is_answered: false });
            log.len() - 1
        });
        each.collect()
    }

    fn is_answered(&self, log: usize, at: usize) {
        let mut log = self.ledger[log].lock().unwrap();
        log[at].is_answered = true;
        if log[at].said.0 != MARKER {
            self.counts.answered.fetch_add(1, SeqCst);
        }
    }

    /// One request, at any instance.
    fn notify(&self, random: &mut Random, messages: &[(usize, Said)], text: usize) {
        let batch: Vec<_> = messages
            .iter()
            .map(|(log, (me, n))| {
                let data = json!([me, n, "x".repeat(text)]);
                match log.checked_sub(self.size.rooms) {
                    None => json!({"event": "e", "room": room(*log), "data": data}),
                    Some(own) => json!({"event": "e", "user_id": user(own), "data": data}),
                }
            })
            .collect();
        let addr = self.instances.any(random);
        let places = self.sending(messages);
        let asked_at = Instant::now();
        match try_notify(addr, &Value::Array(batch)) {
            Some(200) => {
                self.note_answer(asked_at);
                let each = messages.iter().zip(places);
                each.for_each(|((log, _), place)| self.is_answered(*log, place));
            }
            // It may have been killed.
            None | Some(503) => {}
            Some(status) => self.fail(format!("a notification was answered with {status}")),
        }
    }

    /// Broadcasts, and takes the answers; whether the connection goes on.
    fn broadcast(&self, client: &mut Client, messages: &[(usize, Said)], text: usize) -> bool {
        let places = self.sending(messages);
        let asked_at = Instant::now();
        for (id, (log, (me, n))) in messages.iter().enumerate() {
            let payload = json!({"room": room(*log), "body": [me, n, "x".repeat(text)]});
            let message = json!({"type": "broadcast", "id": id, "payload": payload});
            if !client.try_send_json(&message) {
                return false;
            }
        }
        for (id, ((log, _), place)) in messages.iter().zip(places).enumerate() {
            match client.next_before(asked_at + PATIENCE) {
                Some(Frame::Text(text)) => {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    if answer["type"] != "sent" || answer["id"] != id {
                        self.fail(format!("broadcast {id} was answered with {answer}"));
                        return false;
                    }
                    self.is_answered(*log, place);
                }
                Some(_) => return false,
                None => {
                    self.fail(format!("broadcast {id} was never answered"));
                    return false;
                }
            }
        }
        self.note_answer(asked_at);
        true
    }

    /// One client: comes and goes until the end, then catches up.
    fn follow(&self, me: usize, mut random: Random) -> Vec<Follower> {
        let mut chosen = BTreeSet::new();
        while chosen.len() < ROOMS_EACH {
            chosen.insert(random.below(self.size.rooms));
        }
        let own = self.size.rooms + me;
        let mut logs: Vec<_> = chosen.into_iter().map(|log| Follower::new(log, false)).collect();
        logs.push(Follower::new(own, true));
        // Not all at once.
        self.pause(millis(&mut random, self.size.stay / 2));
        let mut deadline = None;
        while !self.is_aborted() {
            let is_last = self.is_ending.load(SeqCst);
            if is_last && Instant::now() > *deadline.get_or_insert(Instant::now() + PATIENCE) {
                // What is missing is found in the end.
                return logs;
            }
            let is_narrow = !is_last && random.below(4) == 0;
            let addr = self.instances.any(&mut random);
            let Some(client) = open(addr, &user(me), is_narrow) else {
                self.pause(Duration::from_millis(20));
                continue;
            };
            self.counts.connects.fetch_add(1, SeqCst);
            let stay = millis(&mut random, self.size.stay);
            let until = Instant::now() + stay;
            let mut stay = Stay { world: self, client, logs: &mut logs, asked_at: Instant::now() };
            let end = stay.take_until(deadline.unwrap_or(until), is_last, is_narrow, &mut random);
            match end {
                Ok(is_complete) if is_complete && is_last => return logs,
                Ok(_) => stay.leave(&mut random),
                Err(fault) => {
                    let connection = stay.client.stream().peer_addr();
                    self.fail(format!("client {me} at {connection:?}: {fault}"));
                    return logs;
                }
            }
            if !is_last {
                self.pause(millis(&mut random, self.size.stay));
            }
        }
        logs
    }

    fn totals(&self, followers: &[Follower]) -> Totals {
        let sum = |of: fn(&Follower) -> u64| followers.iter().map(of).sum();
        Totals {
            messages: self.answered(),
            connects: self.counts.connects.load(SeqCst),
            recovered: sum(|follower| follower.recovered),
            not_recovered: sum(|follower| follower.not_recovered),
            resets: sum(|follower| follower.resets),
            unnumbered: sum(|follower| follower.unnumbered),
            late: followers.iter().map(Follower::late).sum(),
            numbered_again: numbered_again(followers),
            longest_answer: Duration::from_micros(self.counts.longest_micros.load(SeqCst)),
        }
    }
}

/// A connection of a publisher; of HTTP it has none.
struct Life {
    me: u64,
    n: u64,
    client: Option<Client>,
    end: Instant,
}

impl Life {
    /// The next ones, and the logs that they are for.
    fn messages(&mut self, world: &World, random: &mut Random) -> Vec<(usize, Said)> {
        let Size { rooms, clients, .. } = world.size;
        let each = (0..BURST).map(|_| {
            // One in five for a user; only backends may do that.
            let is_own = self.client.is_none() && random.below(5) == 0;
            let log = if is_own { rooms + random.below(clients) } else { random.below(rooms) };
            self.n += 1;
            (log, (self.me, self.n))
        });
        each.collect()
    }
}

/// One connection of a client.
struct Stay<'a> {
    world: &'a World<'a>,
    client: Client,
    logs: &'a mut Vec<Follower>,
    asked_at: Instant,
}

impl Stay<'_> {
    /// Asks for all logs and takes what comes; whether it has all that there is, in the end.
    fn take_until(
        &mut self,
        until: Instant,
        is_last: bool,
        is_slow: bool,
        random: &mut Random,
    ) -> Result<bool, String> {
        for log in &mut *self.logs {
            log.take(Event::Asked, Instant::now())?;
            let since = log
                .position
                .as_ref()
                .map(|Position { epoch, seq }| json!({"epoch": **epoch, "seq": seq}));
            let mut payload = json!({});
            if let Some(since) = since {
                payload["since"] = since;
            }
            let is_room = log.log < self.world.size.rooms;
            if is_room {
                payload["room"] = json!(room(log.log));
            }
            let kind = if is_room { "join" } else { "resume" };
            let message = json!({"type": kind, "id": log.log, "payload": payload});
            if !self.client.try_send_json(&message) {
                return Ok(false);
            }
        }
        while !self.world.is_aborted() && Instant::now() < until {
            let step = until.min(Instant::now() + Duration::from_millis(200));
            match self.client.next_before(step) {
                Some(Frame::Text(text)) => {
                    let is_marker = self.take(&text)?;
                    if is_last && is_marker && self.is_complete() {
                        return Ok(true);
                    }
                }
                Some(Frame::End | Frame::Close(..)) => return Ok(false),
                Some(other) => return Err(format!("{other:?}")),
                None if !is_last && self.world.is_ending.load(SeqCst) => return Ok(false),
                None => {}
            }
            let waits = self.logs.iter().any(|log| !log.is_live);
            if waits && self.asked_at.elapsed() > PATIENCE {
                return Err("a join was never answered".to_owned());
            }
            if is_slow {
                std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
            }
        }
        Ok(false)
    }

    fn is_complete(&self) -> bool {
        self.logs.iter().all(|log| log.is_complete(&self.world.ledger[log.log].lock().unwrap()))
    }

    /// Takes one message; whether it is a marker.
    fn take(&mut self, text: &str) -> Result<bool, String> {
        let message: Value = serde_json::from_str(text).unwrap();
        let payload = &message["payload"];
        let position = || {
            let epoch = payload["epoch"].as_str()?.into();
            Some(Position { epoch, seq: payload["seq"].as_u64()? })
        };
        let (name, event) = match message["type"].as_str() {
            Some("joined" | "resumed") => {
                self.world.note_answer(self.asked_at);
                let recovered = payload["recovered"].as_bool();
                let is_recovered = u64::from(recovered == Some(true));
                self.world.counts.recovered.fetch_add(is_recovered, SeqCst);
                (&payload["room"], Event::Answered { position: position(), recovered })
            }
            Some("reset") => {
                self.world.counts.resets.fetch_add(1, SeqCst);
                let position = position().ok_or_else(|| format!("without a position: {text}"))?;
                (&payload["room"], Event::Reset(position))
            }
            Some(_) => return Err(text.to_owned()),
            None => {
                let is_broadcast = message.get("from").is_some();
                let data = &message[if is_broadcast { "body" } else { "data" }];
                let said = (data[0].as_u64(), data[1].as_u64());
                let (Some(me), Some(n)) = said else { return Err(text.to_owned()) };
                let seq = message["seq"].as_u64().or(message["user_seq"].as_u64());
                self.world.counts.messages.fetch_add(1, SeqCst);
                self.world.counts.unnumbered.fetch_add(u64::from(seq.is_none()), SeqCst);
                let name = &message[if is_broadcast { "room" } else { "to" }];
                (name, Event::Message(seq, (me, n)))
            }
        };
        let is_marker = matches!(event, Event::Message(Some(_), (MARKER, _)));
        // Without a room, or with the user's name: its own.
        let number = name.as_str().and_then(|name| name.strip_prefix("room-"));
        let log = match number.and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => self.logs.iter_mut().find(|log| log.log == number),
            None => self.logs.last_mut(),
        };
        let log = log.ok_or_else(|| format!("of another room: {text}"))?;
        log.take(event, Instant::now())?;
        Ok(is_marker)
    }

    /// Ends the connection in one of the ways in which connections end.
    fn leave(mut self, random: &mut Random) {
        let stream = self.client.stream();
        match random.below(5) {
            0 => {}
            1 => drop(stream.write_all(&[0x88, 0x80, 0, 0, 0, 0])),
            2 => self.client.end_sending(),
            // Within a frame.
            3 => drop(stream.write_all(&[0x81])),
            _ => drop(SockRef::from(&*stream).set_linger(Some(Duration::ZERO))),
        }
    }
}

/// Connects, if the instance is there; `is_narrow`: its kernel takes next to nothing that it does not read.
fn open(addr: SocketAddr, user: &str, is_narrow: bool) -> Option<Client> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if is_narrow {
        socket.set_recv_buffer_size(4096).unwrap();
    }
    socket.connect(&addr.into()).ok()?;
    let mut stream = with_timeouts(socket.into());
    stream.write_all(handshake("/ws", &bearer(&token(user, ""))).as_bytes()).ok()?;
    let client = Client::over(stream)?;
    client.head.starts_with("HTTP/1.1 101 ").then_some(client)
}

/// `POST /api/notify` at an instance that may end meanwhile; the status.
fn try_notify(addr: SocketAddr, notifications: &Value) -> Option<u16> {
    let mut stream = with_timeouts(TcpStream::connect(addr).ok()?);
    let (body, bearer) = (notifications.to_string(), bearer(&token("backend", "service")));
    let length = body.len();
    let request = format!(
        "POST /api/notify HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{bearer}\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    Response::read(&mut stream).map(|response| response.status)
}

fn with_timeouts(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A position for tests of the checks themselves.
pub fn position(epoch: &str, seq: u64) -> Position {
    Position { epoch: Arc::from(epoch), seq }
}
