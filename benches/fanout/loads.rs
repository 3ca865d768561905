//! The loads: each drives one server process through one swarm and returns figures.

use std::thread;
use std::time::Duration;

use realtime_service::config::FLUSH_FRAMES;

use crate::Fallible;
use crate::fanout::figures::{self, Figure};
use crate::fanout::measure::Histogram;
use crate::fanout::redis::{Pace, Passage};
use crate::fanout::rooms::{Rooms, Shape};
use crate::fanout::target::{Purpose, Side, Target};
use crate::fanout::tokens::Tokens;
use crate::fanout::{callers, connections, recover, redis};

/// How a scenario loads a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// In each room one member publishes whenever it may, and all get it.
    FanOut(Shape),
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
    /// Two who talk in a room of their own, alone and beside rooms that are flooded.
    Fair(Shape),
    /// Clients that ask all at once for so many messages each, which they have missed.
    Recover { clients: usize, messages: usize },
    /// A room over two instances, so many clients on each, published to at both.
    TwoInstances { clients: usize, pace: Pace },
    /// Rooms with one member at each of so many instances, published to as fast as Redis brings it back.
    ThroughRedis(Passage),
    /// Callers that notify beside a Redis, with and without history, and without it.
    NotifyRedis { callers: usize },
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
    pub(crate) const FULL: Self = Self { span: Duration::from_secs(3), rounds: 50, seconds: 5 };
    pub(crate) const QUICK: Self =
        Self { span: Duration::from_millis(500), rounds: 10, seconds: 1 };

    /// Enough for caches, allocators and TCP windows to settle.
    pub(crate) fn warm_up(&self) -> Duration {
        self.span / 5
    }
}

impl Load {
    /// Whether there is a floor to compare with.
    pub(crate) fn has_floor(self) -> bool {
        !matches!(self, Self::Recover { .. } | Self::TwoInstances { .. } | Self::NotifyRedis { .. })
    }
}

/// What all loads of a run share.
#[derive(Clone, Copy)]
pub(crate) struct Trial<'a> {
    pub(crate) side: Side,
    pub(crate) tokens: &'a Tokens,
    pub(crate) effort: Effort,
}

impl Trial<'_> {
    /// A fresh server of the trial's side.
    pub(crate) fn start(&self, purpose: Purpose) -> Fallible<Target> {
        Target::start(self.side, purpose, self.tokens)
    }
}

/// Starts a server, puts `load` on it, and ends it.
pub(crate) fn run(load: Load, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    match load {
        Load::FanOut(shape) => fan_out(shape, trial),
        Load::Notify { callers, batch } => callers::notify(callers, batch, trial),
        Load::Idle { connections } => connections::idle(connections, trial),
        Load::Churn { per_second } => connections::churn(per_second, trial),
        Load::WakeUp => wake_up(trial),
        Load::Behind { members } => behind(members, trial),
        Load::Fair(floods) => fair(floods, trial),
        Load::Recover { clients, messages } => recover::recover(clients, messages, trial),
        Load::TwoInstances { clients, pace } => redis::two_instances(clients, pace, trial),
        Load::ThroughRedis(passage) => redis::through(passage, trial),
        Load::NotifyRedis { callers } => redis::notify(callers, trial),
    }
}

fn fan_out(shape: Shape, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let mut rooms = Rooms::open(target.address, "room", shape, trial.tokens)?;
    rooms.run(trial.effort.warm_up())?;
    rooms.ledger.reset_counts();
    let (elapsed, cpu) = figures::measured(&target, || rooms.run(trial.effort.span))?;
    let deliveries = rooms.ledger.deliveries();
    let mut figures = vec![
        (figures::DELIVERIES, figures::per_second(deliveries, elapsed)),
        (figures::DELIVERY_CPU, figures::micros_each(cpu, deliveries)),
    ];
    figures.extend(figures::latencies(rooms.ledger.near()));
    Ok(figures)
}

/// Long enough for every thread involved to sleep.
const IDLE_PAUSE: Duration = Duration::from_millis(100);

fn wake_up(trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let mut one = Rooms::open(target.address, "room", Shape::SINGLE, trial.tokens)?;
    for _ in 0..trial.effort.rounds {
        thread::sleep(IDLE_PAUSE);
        one.run(Duration::ZERO)?;
    }
    Ok(figures::latencies(one.ledger.near()).to_vec())
}

/// Between the broadcast and the message that must be behind it, so that the hub meets them in this
/// order.
const HEAD_START: Duration = Duration::from_micros(300);

fn behind(members: usize, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let shape = Shape { rooms: 1, members, in_flight: 1 };
    let mut crowd = Rooms::open(target.address, "room", shape, trial.tokens)?;
    let mut other = Rooms::open(target.address, "beside", Shape::SINGLE, trial.tokens)?;
    let (elapsed, _) = figures::measured(&target, || crowd.run(trial.effort.span))?;
    let flush_ms =
        FLUSH_FRAMES as f64 / figures::per_second(crowd.ledger.deliveries(), elapsed) * 1e3;
    let (mut alone, mut behind) = (Histogram::new(), Histogram::new());
    for _ in 0..trial.effort.rounds {
        alone.record(one_way_ns(&mut other)?);
        crowd.fill(0)?;
        thread::sleep(HEAD_START);
        // The crowd's sockets hold what comes meanwhile: the generator takes no CPU from the server.
        behind.record(one_way_ns(&mut other)?);
        crowd.settle()?;
    }
    let (alone_ms, behind_ms) = (alone.quantile_us(0.5) / 1e3, behind.quantile_us(0.5) / 1e3);
    Ok(vec![
        (figures::ALONE, alone_ms),
        (figures::BEHIND, behind_ms),
        (figures::DELAY, behind_ms - alone_ms),
        (figures::DELAY_IN_FLUSHES, (behind_ms - alone_ms) / flush_ms),
    ])
}

/// How long one message takes in a room of one, in nanoseconds.
fn one_way_ns(room: &mut Rooms) -> Fallible<u64> {
    room.ledger.reset_counts();
    room.run(Duration::ZERO)?;
    Ok((room.ledger.near().max_us() * 1e3) as u64)
}

/// The pair talks for longer than other loads run: a p99 needs messages.
const FAIR_STRETCH: u32 = 4;
/// Between a message of the pair, with its answer, and the next.
const TALK_GAP: Duration = Duration::from_millis(5);

fn fair(floods: Shape, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let mut pair = Rooms::shared([target.address; 2], 1, 1, trial.tokens)?;
    let mut floods = Rooms::open(target.address, "flood", floods, trial.tokens)?;
    let warm_up = trial.effort.warm_up();
    pair.talk(warm_up, TALK_GAP)?;
    pair.ledger.reset_counts();
    pair.talk(trial.effort.span, TALK_GAP)?;
    let milliseconds = |pair: &Rooms, share| pair.ledger.far().quantile_us(share) / 1e3;
    let alone = [0.5, 0.99].map(|share| milliseconds(&pair, share));
    floods.run(warm_up)?;
    floods.ledger.reset_counts();
    pair.ledger.reset_counts();
    let span = trial.effort.span * FAIR_STRETCH;
    // A thread and an epoll of its own: the pair waits for the server, not for the floods' members.
    let (measured, talked) = thread::scope(|scope| {
        let talking = scope.spawn(|| {
            // Before the floods have risen, the pair would still be alone.
            thread::sleep(warm_up);
            pair.talk(span.saturating_sub(warm_up), TALK_GAP)
        });
        let measured = figures::measured(&target, || floods.run(span));
        (measured, talking.join())
    });
    talked.map_err(|_| "the pair's thread panicked")??;
    let (elapsed, cpu) = measured?;
    let deliveries = floods.ledger.deliveries();
    Ok(vec![
        (figures::PAIR_ALONE_P50, alone[0]),
        (figures::PAIR_ALONE_P99, alone[1]),
        (figures::PAIR_P50, milliseconds(&pair, 0.5)),
        (figures::PAIR_P99, milliseconds(&pair, 0.99)),
        (figures::PAIR_MAX, pair.ledger.far().max_us() / 1e3),
        (figures::FLOOD_DELIVERIES, figures::per_second(deliveries, elapsed)),
        (figures::FLOOD_CPU, figures::micros_each(cpu, deliveries)),
    ])
}
