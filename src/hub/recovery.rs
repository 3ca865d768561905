//! What the hub does for connections that come back: tells them where they are, gives them in turns what they
//! have missed, and tells them when something may be missing (docs/ARCHITECTURE.md, "History").

use super::core::Hub;
use super::event::ConnectionKey;
use super::history::{LogKey, NotRecovered};
use super::replay::Turn;
use crate::config::REPLAY_BYTES;
use crate::protocol::{Position, Standing, Target, reset_frame};
use crate::runtime::clock::Moment;

/// Bytes of a replay that cost as much as a delivery: a send of [`REPLAY_BYTES`] takes ten times as long as one
/// of a small frame.
const REPLAY_BYTES_PER_DELIVERY: usize = 512;

impl Hub {
    /// What a client that asks for a log is told of it. A replay of it that runs has ended by this; where there
    /// is something to recover, another one begins.
    pub(super) fn stand(
        &mut self,
        key: ConnectionKey,
        target: &Target,
        since: Option<&Position>,
    ) -> Standing {
        let now = Moment::now();
        let Some(log) = self.history.open(target, true, now) else {
            // Without history there is only an answer to who asks for the past.
            let asks = since.is_some() || matches!(target, Target::User(_));
            if asks {
                self.history.count_not_recovered(NotRecovered::Off);
            }
            return Standing { position: None, recovered: asks.then_some(false) };
        };
        self.end_replay(key, log);
        if let Some(connection) = self.connections.open(key) {
            connection.knows_positions = true;
        }
        let position = self.history.position(log);
        if position.is_none() {
            self.history.owe_position(log);
        }
        let Some(since) = since else {
            return Standing { position, recovered: None };
        };
        let recovered = if self.copies.unnumbered.contains(target) {
            self.history.count_not_recovered(NotRecovered::Unnumbered);
            Err(NotRecovered::Unnumbered)
        } else {
            self.history.recover(log, since, now)
        };
        if recovered.is_err() {
            return Standing { position, recovered: Some(false) };
        }
        if position.is_some_and(|position| since.seq < position.seq)
            && let Some(connection) = self.connections.open(key)
        {
            connection.replays.get_or_insert_default().begin(log, since.seq + 1);
            self.history.begin_reading(log);
        }
        Standing { position: Some(since.clone()), recovered: Some(true) }
    }

    /// Tells connections that something of a log may be missing; they get no more of its past. Those that never
    /// asked for a position have none to lose.
    pub(super) fn reset(&mut self, keys: &[ConnectionKey], log: LogKey) {
        keys.iter().for_each(|key| self.end_replay(*key, log));
        let (Some(position), Some(target)) = (self.history.position(log), self.history.target(log))
        else {
            return;
        };
        let room = if let Target::Room(room) = target { Some(room) } else { None };
        let frame = self.connections.batch.add(reset_frame(room, position));
        for key in keys {
            let knows = self.connections.open(*key).is_some_and(|c| c.knows_positions);
            if knows && self.connections.append(*key, frame) {
                self.history.count_reset();
            }
        }
    }

    pub(super) fn end_replay(&mut self, key: ConnectionKey, log: LogKey) {
        if let Some(connection) = self.connections.slots.get_mut(key)
            && let Some(replays) = &mut connection.replays
            && replays.end(log)
        {
            self.history.end_reading(log);
        }
    }

    pub(super) fn end_replays(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.slots.get_mut(key) else { return };
        for log in connection.replays.take().iter().flat_map(|replays| replays.logs()) {
            self.history.end_reading(log);
        }
    }

    /// Appends what comes next of a connection's replays, as much as one turn has, if its socket has taken
    /// what it was sent before; else it goes on when that is so. Returns what that cost, in deliveries.
    pub(super) fn replay(&mut self, key: ConnectionKey) -> usize {
        let is_due = self.connections.open(key).is_some_and(|connection| {
            let replays = connection.replays.as_ref();
            replays.is_some_and(|replays| replays.turn.is_none()) && connection.outbox.is_drained()
        });
        if !is_due {
            return 0;
        }
        let (mut frames, mut bytes) = (0, 0);
        while bytes < REPLAY_BYTES
            && let Some((log, mut next)) = self.take_turn(key)
        {
            let Some(messages) = self.history.read(log, next) else {
                self.reset(&[key], log);
                continue;
            };
            for frame in messages {
                if bytes >= REPLAY_BYTES {
                    break;
                }
                self.connections.send(key, frame.clone());
                (frames, bytes, next) = (frames + 1, bytes + frame.len(), next + 1);
            }
            if self.history.ends_before(log, next) {
                self.end_replay(key, log);
            } else if let Some(connection) = self.connections.open(key)
                && let Some(replays) = &mut connection.replays
            {
                replays.advance(log, next);
            }
        }
        if frames > 0
            && let Some(connection) = self.connections.open(key)
            && let Some(replays) = &mut connection.replays
        {
            replays.turn = Some(Turn { frames: frames as u64, bytes: bytes as u64 });
        }
        self.history.count_replayed(frames as u64);
        frames + bytes / REPLAY_BYTES_PER_DELIVERY
    }

    /// The socket has taken a connection's last turn of its replays: what is left goes on with the next.
    pub(super) fn turn_is_sent(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.open(key) else { return };
        let Some(replays) = &mut connection.replays else { return };
        replays.turn = None;
        if replays.is_empty() {
            connection.replays = None;
        } else if !std::mem::replace(&mut replays.is_scheduled, true) {
            self.replaying.push(key);
        }
    }

    /// The log whose turn it is of a connection's replays, and the number that comes next of it.
    fn take_turn(&mut self, key: ConnectionKey) -> Option<(LogKey, u64)> {
        self.connections.open(key)?.replays.as_mut()?.take_turn()
    }
}
