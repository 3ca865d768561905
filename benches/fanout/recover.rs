//! Clients that were away: all ask at the same moment for what they have missed.

use std::time::Duration;

use crate::Fallible;
use crate::fanout::figures::{self, Figure};
use crate::fanout::loads::Trial;
use crate::fanout::rooms::{Rooms, Shape};
use crate::fanout::swarm::{self, Swarm};
use crate::fanout::target::Purpose;
use crate::fanout::wire::{self, Unit};

/// Rounds of a full run; each is as many messages as all clients together missed.
const ROUNDS_PER_TEN: usize = 4;

/// Has `clients` read `messages` of a room live, as fast as they come, then ask for these again, all at once.
pub(crate) fn recover(clients: usize, messages: usize, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rooms)?;
    let shape = Shape { rooms: 1, members: clients, in_flight: messages };
    let mut live = Rooms::open(target.address, "room", shape, trial.tokens)?;
    live.run(trial.effort.warm_up())?;
    live.ledger.reset_counts();
    let (live_time, live_cpu) = figures::measured(&target, || live.run(trial.effort.span))?;
    let read_live = live.ledger.deliveries();
    drop(live);

    let mut swarm = Swarm::new()?;
    // Those who recover are members of it only then.
    let elsewhere = vec!["elsewhere".to_owned(); clients + 1];
    swarm.admit(target.address, &elsewhere, trial.tokens)?;
    let (epoch, last) = position(&mut swarm, clients)?;
    let first = last
        .checked_sub(messages as u64)
        .ok_or_else(|| format!("only {last} messages were kept"))?;
    let ask = wire::join_since("room-0", &epoch, first);
    let mut recover_all = || -> Fallible<()> {
        (0..clients).try_for_each(|link| swarm.send(link, &ask))?;
        let mut next = vec![None; clients];
        let mut missing = clients;
        while missing > 0 {
            swarm.pump_due(|arrival| {
                let Unit::Text(text) = arrival.unit else {
                    return Err(swarm::unexpected(arrival.link, &arrival.unit));
                };
                let next = &mut next[arrival.link];
                let expected = next.unwrap_or(first);
                let is_due = match *next {
                    None => wire::is_recovered(text),
                    Some(_) => wire::room_number(text) == Some(expected),
                };
                if !is_due {
                    return Err(swarm::unexpected(arrival.link, &arrival.unit));
                }
                *next = Some(expected + 1);
                missing -= usize::from(expected == last);
                Ok(())
            })?;
        }
        Ok(())
    };
    recover_all()?;
    let rounds = (trial.effort.rounds * ROUNDS_PER_TEN / 10).max(1);
    let (time, cpu): (Duration, Duration) =
        figures::measured(&target, || (0..rounds).try_for_each(|_| recover_all()))?;
    let recovered = (rounds * clients * messages) as u64;
    let (live_rate, rate) =
        (figures::per_second(read_live, live_time), figures::per_second(recovered, time));
    Ok(vec![
        (figures::RECOVERED, rate),
        (figures::READ_LIVE, live_rate),
        (figures::RECOVERED_TO_LIVE, rate / live_rate),
        (figures::RECOVERED_CPU, figures::micros_each(cpu, recovered)),
        (figures::READ_LIVE_CPU, figures::micros_each(live_cpu, read_live)),
    ])
}

/// Where the room is now: its epoch, and the number of its last message.
fn position(swarm: &mut Swarm, link: usize) -> Fallible<(String, u64)> {
    swarm.send(link, &wire::join_with_id("room-0"))?;
    let mut found = None;
    while found.is_none() {
        swarm.pump_due(|arrival| {
            let Unit::Text(text) = arrival.unit else {
                return Err(swarm::unexpected(arrival.link, &arrival.unit));
            };
            found = wire::position(text);
            if found.is_some() {
                Ok(())
            } else {
                Err(swarm::unexpected(arrival.link, &arrival.unit))
            }
        })?;
    }
    found.ok_or_else(|| "no position".into())
}
