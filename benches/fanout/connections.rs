//! Connections that only come, stay or go.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::figures::{self, Figure};
use crate::fanout::loads::Trial;
use crate::fanout::measure::{self, Histogram};
use crate::fanout::rooms::{Rooms, Shape};
use crate::fanout::swarm::{self, Swarm};
use crate::fanout::target::{self, Purpose};
use crate::fanout::tokens::Tokens;
use crate::fanout::wire::{self, Unit};

/// Opens connections and leaves them alone: what they cost.
pub(crate) fn idle(connections: usize, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let each = |kib: f64| kib / connections as f64;
    let (available, resident, threads) =
        (measure::available_kib()?, target.resident_kib()?, target.threads()?);
    let taken = target.taken_kib()?;
    let start = Instant::now();
    let shape = Shape { rooms: connections, ..Shape::SINGLE };
    let _rooms = Rooms::open(target.address, "room", shape, trial.tokens)?;
    let opening = start.elapsed();
    let (elapsed, cpu) = figures::measured(&target, || {
        thread::sleep(trial.effort.span);
        Ok(())
    })?;
    Ok(vec![
        (figures::MEMORY, each(target.taken_kib()? - taken)),
        (figures::AVAILABLE, each(available - measure::available_kib()?)),
        (figures::RESIDENT, each(target.resident_kib()? - resident)),
        (figures::THREADS, each(target.threads()?.saturating_sub(threads) as f64)),
        (figures::IDLE_CPU, cpu.as_secs_f64() * 1e3 / elapsed.as_secs_f64()),
        (figures::OPENED, figures::per_second(connections as u64, opening)),
    ])
}

/// Rooms that the passing connections spread over.
const CHURN_ROOMS: usize = 100;
/// How long after the last arrival the last may leave.
const CHURN_PATIENCE: Duration = Duration::from_secs(10);

/// Opens connections at a fixed rate, each of which joins a room and leaves.
pub(crate) fn churn(rate: u32, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let open = || -> Fallible<u64> { Ok(target.threads()? + target.descriptors()?) };
    let open_before = open()?;
    let count = (rate * trial.effort.seconds) as usize;
    let mut passers = Passers::new(target.address)?;
    let (elapsed, cpu) = figures::measured(&target, || passers.run(rate, count, trial.tokens))?;
    // The last threads may still be ending.
    let settled =
        target::wait_until(
            "threads and descriptors to be as before",
            || Ok(open()? <= open_before),
        );
    let left_behind = if settled.is_ok() { 0 } else { open()?.saturating_sub(open_before) };
    let mut figures = vec![
        (figures::CAME_AND_WENT, figures::per_second(count as u64, elapsed)),
        (figures::CONNECTION_CPU, figures::micros_each(cpu, count as u64)),
        (figures::LEFT_BEHIND, left_behind as f64),
    ];
    figures.extend(figures::latencies(&passers.until_joined));
    Ok(figures)
}

/// Connections that come, join a room, and go as soon as they are in.
struct Passers {
    address: SocketAddr,
    swarm: Swarm,
    rooms: Vec<String>,
    /// When each began to connect.
    came: Vec<Instant>,
    gone: usize,
    until_joined: Histogram,
    /// Those that must join next.
    upgraded: Vec<usize>,
    /// Those that must leave next.
    joined: Vec<usize>,
}

impl Passers {
    fn new(address: SocketAddr) -> Fallible<Self> {
        Ok(Self {
            address,
            swarm: Swarm::new()?,
            rooms: (0..CHURN_ROOMS).map(|room| format!("room-{room}")).collect(),
            came: Vec::new(),
            gone: 0,
            until_joined: Histogram::new(),
            upgraded: Vec::new(),
            joined: Vec::new(),
        })
    }

    fn run(&mut self, rate: u32, count: usize, tokens: &Tokens) -> Fallible<()> {
        let gap = Duration::from_secs(1) / rate;
        let start = Instant::now();
        let deadline = start + gap * count as u32 + CHURN_PATIENCE;
        while self.gone < count {
            while self.came.len() < count && start.elapsed() >= gap * self.came.len() as u32 {
                self.arrive(tokens)?;
            }
            self.take(gap)?;
            if Instant::now() > deadline {
                let (came, gone) = (self.came.len(), self.gone);
                return Err(format!("of {count} connections {came} came and {gone} went").into());
            }
        }
        Ok(())
    }

    fn arrive(&mut self, tokens: &Tokens) -> Fallible<()> {
        self.came.push(Instant::now());
        let link = self.swarm.connect(self.address)?;
        self.swarm.send(link, &wire::upgrade(&tokens.client()?))
    }

    /// Takes a round of arrivals, waiting for it at most `wait`, and lets each connection go on.
    fn take(&mut self, wait: Duration) -> Fallible<()> {
        let Self { swarm, rooms, came, gone, until_joined, upgraded, joined, .. } = self;
        swarm.pump(wait, |arrival| {
            let link = arrival.link;
            match arrival.unit {
                Unit::Upgraded => upgraded.push(link),
                Unit::Text(text) if swarm::is_joined(text, &rooms[link % CHURN_ROOMS]) => {
                    until_joined.record(arrival.at.duration_since(came[link]).as_nanos() as u64);
                    joined.push(link);
                }
                Unit::Close => {}
                Unit::End => *gone += 1,
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
        Ok(())
    }
}
