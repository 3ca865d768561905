//! Instances of the service on one Redis: what its way adds, and what goes through it.
//!
//! Settings are compared within a run: their servers stand side by side, and are loaded in turn in short slices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::callers::Callers;
use crate::fanout::figures::{self, Figure};
use crate::fanout::loads::Trial;
use crate::fanout::measure::Histogram;
use crate::fanout::redis_floor;
use crate::fanout::rooms::Rooms;
use crate::fanout::target::{Broker, History, Redis, Side, Target};

/// How messages follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// From the publishers in turn, whether the last one has come or not.
    PerSecond(u32),
    /// From the publishers in turn, each when the last one has reached everyone.
    InTurn,
    /// So many from each publisher are on their way.
    InFlight(usize),
}

/// What goes through Redis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    pub(crate) instances: usize,
    /// With a member at each instance, one of whom publishes.
    pub(crate) rooms: usize,
    /// In each room.
    pub(crate) in_flight: usize,
    pub(crate) history: History,
}

/// At a fixed rate no more than a few are on their way, unless an instance stalls.
const MOST_AT_RATE: usize = 256;
/// So often each of the servers that are compared is loaded.
const SLICES: u32 = 8;
/// A fixed rate runs longer than other loads do: a p99 needs messages.
const RATE_STRETCH: u32 = 2;

/// Instances on a Redis of their own.
struct Site {
    instances: Vec<Target>,
    redis: Redis,
}

impl Site {
    fn start(instances: usize, history: History, trial: Trial<'_>) -> Fallible<Self> {
        let redis = Redis::start()?;
        let start = |_| Target::start_service(trial.tokens, Broker::Redis(&redis, history));
        let instances = (0..instances).map(start).collect::<Result<_, _>>()?;
        Ok(Self { instances, redis })
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.instances.iter().map(|instance| instance.address).collect()
    }

    /// Of all instances.
    fn cpu_time(&self) -> Fallible<Duration> {
        self.instances.iter().map(Target::cpu_time).sum()
    }
}

/// A room over two instances with history, and one over two without: what the way of a numbered message adds.
pub(crate) fn two_instances(clients: usize, pace: Pace, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let in_flight = match pace {
        Pace::PerSecond(_) => MOST_AT_RATE,
        Pace::InTurn => 1,
        Pace::InFlight(count) => count,
    };
    let mut sites = Vec::new();
    for history in [History::Off, History::On] {
        let site = Site::start(2, history, trial)?;
        let addresses = [site.instances[0].address, site.instances[1].address];
        let rooms = Rooms::shared(addresses, clients, in_flight, trial.tokens)?;
        sites.push((site, rooms));
    }
    let effort = trial.effort;
    let load = |rooms: &mut Rooms, parts: u32| match pace {
        Pace::PerSecond(rate) => {
            rooms.run_at_rate(rate, rate * effort.seconds * RATE_STRETCH / parts)
        }
        Pace::InTurn => rooms.talk(effort.span / parts, Duration::ZERO),
        Pace::InFlight(_) => rooms.run(effort.span / parts),
    };
    for (_, rooms) in &mut sites {
        load(rooms, SLICES)?;
        rooms.ledger.reset_counts();
    }
    in_turn(&mut sites, |(_, rooms)| load(rooms, SLICES / 2))?;
    let ms = |histogram: &Histogram, share| histogram.quantile_us(share) / 1e3;
    let [off, on] = [&sites[0].1.ledger, &sites[1].1.ledger].map(|ledger| {
        let (near, far) = (ledger.near(), ledger.far());
        [ms(near, 0.5), ms(near, 0.99), ms(far, 0.5), ms(far, 0.99)]
    });
    Ok(vec![
        (figures::NEAR_OFF_P50, off[0]),
        (figures::NEAR_OFF_P99, off[1]),
        (figures::FAR_OFF_P50, off[2]),
        (figures::FAR_OFF_P99, off[3]),
        (figures::NEAR_P50, on[0]),
        (figures::NEAR_P99, on[1]),
        (figures::FAR_P50, on[2]),
        (figures::FAR_P99, on[3]),
        (figures::ADDED_NEAR_P50, on[0] - off[0]),
        (figures::ADDED_NEAR_P99, on[1] - off[1]),
        (figures::ADDED_FAR_P50, on[2] - off[2]),
        (figures::ADDED_FAR_P99, on[3] - off[3]),
        (figures::WAY_P99, on[3] - off[1]),
    ])
}

/// Puts a slice of load on each in turn, in one order and then in the other.
fn in_turn<T>(all: &mut [T], mut slice: impl FnMut(&mut T) -> Fallible<()>) -> Fallible<()> {
    for number in 0..SLICES {
        for place in 0..all.len() {
            let at = if number % 2 == 0 { place } else { all.len() - 1 - place };
            slice(&mut all[at])?;
        }
    }
    Ok(())
}

/// What goes through Redis: of the service, or of the command alone that the service has Redis run.
pub(crate) fn through(passage: Passage, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    if trial.side != Side::Service {
        return redis_floor::run(passage, trial.effort);
    }
    let Passage { instances, rooms, in_flight, history } = passage;
    let site = Site::start(instances, history, trial)?;
    let mut rooms = Rooms::across(&site.addresses(), rooms, in_flight, trial.tokens)?;
    rooms.run(trial.effort.warm_up())?;
    rooms.ledger.reset_counts();
    let (cpu, redis_cpu) = (site.cpu_time()?, site.redis.cpu_time()?);
    let start = Instant::now();
    rooms.run(trial.effort.span)?;
    let elapsed = start.elapsed();
    let cpu = site.cpu_time()?.saturating_sub(cpu);
    let redis_cpu = site.redis.cpu_time()?.saturating_sub(redis_cpu);
    let messages = rooms.ledger.deliveries() / instances as u64;
    let last = if instances == 1 { rooms.ledger.near() } else { rooms.ledger.far() };
    let mut figures = vec![
        (figures::THROUGH_REDIS, figures::per_second(messages, elapsed)),
        (figures::REDIS_CPU, figures::micros_each(redis_cpu, messages)),
        (figures::SERVICE_CPU, figures::micros_each(cpu, messages)),
    ];
    figures.extend(figures::latencies(last));
    Ok(figures)
}

/// Has callers notify an instance without Redis, one with it but without history, and one with both.
pub(crate) fn notify(callers: usize, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let alone = Target::start_service(trial.tokens, Broker::None)?;
    let sites = [Site::start(1, History::Off, trial)?, Site::start(1, History::On, trial)?];
    let mut all = Vec::new();
    for address in [alone.address, sites[0].instances[0].address, sites[1].instances[0].address] {
        let mut callers = Callers::open(address, callers, 1, trial.tokens)?;
        callers.run(trial.effort.warm_up())?;
        callers.reset_counts();
        all.push((callers, Duration::ZERO));
    }
    in_turn(&mut all, |(callers, spent)| {
        let start = Instant::now();
        callers.run(trial.effort.span / (SLICES / 2))?;
        *spent += start.elapsed();
        Ok(())
    })?;
    let [alone, off, on] = [&all[0], &all[1], &all[2]].map(|(callers, spent)| {
        let quantile = |share| callers.answers().quantile_us(share);
        [figures::per_second(callers.answered(), *spent), quantile(0.5), quantile(0.99)]
    });
    Ok(vec![
        (figures::REQUESTS_ALONE, alone[0]),
        (figures::REQUESTS_OFF, off[0]),
        (figures::REQUESTS_ON, on[0]),
        (figures::OFF_TO_ALONE, off[0] / alone[0]),
        (figures::ON_TO_ALONE, on[0] / alone[0]),
        (figures::ANSWER_ALONE, alone[1]),
        (figures::ANSWER_OFF, off[1]),
        (figures::ANSWER_ON, on[1]),
        (figures::ANSWER_ALONE_P99, alone[2]),
        (figures::ANSWER_OFF_P99, off[2]),
        (figures::ANSWER_ON_P99, on[2]),
    ])
}
