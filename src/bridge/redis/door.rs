//! The thread `redis-door`: the durable way in for other systems. They add entries to a stream
//! (`XADD ws:publish * channel ws:room:order-123 message {…}`), and one instance of all takes them out.
//!
//! A lease says which one reads. Nothing depends on it but the work that is saved: a script takes the first
//! entry out of the stream, numbers it and publishes it in one step, and does nothing when the entry is not
//! the first any more. So each entry is numbered once, in the order of the stream, whoever reads and
//! whatever dies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Connection, RedisError, Value, cmd, from_redis_value};
use uuid::Uuid;

use super::entry::Entry;
use super::script::{DoorAppend, LogScript, is_forgotten};
use super::{SessionError, Shared, StopSignal, Throttle, describe};
use crate::bridge::DropReason;
use crate::bridge::backoff::Backoff;
use crate::bridge::envelope::Envelope;
use crate::runtime::count::Kind;

const LEASE: &str = include_str!("lease.lua");
const PASS: &str = include_str!("pass.lua");
/// How long the lease lasts when its holder is gone.
const LEASE_TIME: Duration = Duration::from_secs(5);
/// Time between two calls for the lease, by its holder and by others.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);
/// Most entries at once.
const BATCH: usize = 100;
/// How long one read waits for entries, and so how long a stop may take.
const BLOCK: Duration = Duration::from_millis(100);
/// More entries than about this many do not wait.
const MAX_ENTRIES: usize = 100_000;
/// Most characters of a channel's name in a log line.
const LOGGED_CHANNEL: usize = 160;

pub(super) struct Door {
    shared: Arc<Shared>,
    stopped: StopSignal,
    backoff: Backoff,
    /// Under which its messages are published; not the instance's own, whose numbers are tickets.
    origin: Envelope,
    bad_entries: Throttle,
    failures: Throttle,
}

/// An entry as it was read: its id, and its fields and values in turn.
type RawEntry = (String, Vec<Vec<u8>>);

/// What becomes of an entry.
enum Fate {
    Passed,
    Dropped(DropReason),
}

impl Door {
    pub(super) fn new(shared: &Arc<Shared>, stopped: StopSignal) -> Self {
        Self {
            shared: Arc::clone(shared),
            stopped,
            backoff: Backoff::default(),
            origin: Envelope { instance: Uuid::new_v4(), number: 0 },
            bad_entries: Throttle::default(),
            failures: Throttle::default(),
        }
    }

    /// Connects, again and again, until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            let pause = match self.session() {
                Ok(()) => break,
                Err(SessionError::Renewed) => Duration::ZERO,
                Err(error) => {
                    log::debug!(reason:% = error; "redis: no connection for the door");
                    self.backoff.next()
                }
            };
            if self.stopped.wait(pause) {
                break;
            }
        }
    }

    /// Serves one connection. `Ok` when it was stopped.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        let mut script = LogScript::load(&self.shared, &mut connection)?;
        self.backoff.reset();
        while !self.stopped.is_set() {
            if self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
            if self.lease(&mut connection, LEASE_TIME)? {
                self.hold(&mut connection, &mut script)?;
            } else {
                self.stopped.wait(LEASE_INTERVAL);
            }
        }
        // Only if it is ours.
        self.lease(&mut connection, Duration::ZERO)?;
        Ok(())
    }

    /// Takes the lease, keeps it, or with no time gives it back. Whether it is ours.
    fn lease(&self, connection: &mut Connection, time: Duration) -> Result<bool, SessionError> {
        let holder: u8 = cmd("EVAL")
            .arg(LEASE)
            .arg(1)
            .arg(self.shared.channels.lease())
            .arg(self.shared.instance.to_string())
            .arg(time.as_millis().to_string())
            .query(connection)?;
        Ok(holder == 1)
    }

    /// Takes entries until the lease is to be kept.
    fn hold(
        &mut self,
        connection: &mut Connection,
        script: &mut LogScript,
    ) -> Result<(), SessionError> {
        let kept = Instant::now();
        while kept.elapsed() < LEASE_INTERVAL && !self.stopped.is_set() {
            let (entries, oldest) = self.read(connection)?;
            let all_taken = self.take(connection, script, &entries, oldest)?;
            if !all_taken {
                // What the server refuses now stays first, and is tried again.
                self.stopped.wait(LEASE_INTERVAL);
            }
        }
        Ok(())
    }

    /// The first entries, and the oldest time that an id may have.
    fn read(&self, connection: &mut Connection) -> Result<(Vec<RawEntry>, u64), SessionError> {
        let door = self.shared.channels.door();
        let mut commands = Vec::new();
        cmd("XTRIM")
            .arg(&door)
            .arg("MAXLEN")
            .arg("~")
            .arg(MAX_ENTRIES)
            .write_packed_command(&mut commands);
        cmd("XREAD")
            .arg("COUNT")
            .arg(BATCH)
            .arg("BLOCK")
            .arg(BLOCK.as_millis().to_string())
            .arg("STREAMS")
            .arg(&door)
            .arg(0)
            .write_packed_command(&mut commands);
        cmd("TIME").write_packed_command(&mut commands);
        connection.send_packed_command(&commands)?;
        let trimmed: u64 = receive(connection)?;
        let streams: Option<Vec<(String, Vec<RawEntry>)>> = receive(connection)?;
        let (seconds, _): (u64, u64) = receive(connection)?;
        self.shared.counters.dropped.add(DropReason::DoorFull, trimmed);
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries).collect();
        let ttl = u64::try_from(self.shared.limits.ttl.as_millis()).unwrap_or(u64::MAX);
        Ok((entries, (seconds * 1000).saturating_sub(ttl)))
    }

    /// Takes these entries out, all in one pipeline; each is skipped when it is not the first any more.
    /// Whether the server refused none.
    fn take(
        &mut self,
        connection: &mut Connection,
        script: &mut LogScript,
        entries: &[RawEntry],
        oldest: u64,
    ) -> Result<bool, SessionError> {
        let mut commands = Vec::new();
        let fates: Vec<_> =
            entries.iter().map(|entry| self.write(script, entry, oldest, &mut commands)).collect();
        if fates.is_empty() {
            return Ok(true);
        }
        connection.send_packed_command(&commands)?;
        let (mut refused, mut forgotten) = (false, false);
        for (fate, entry) in fates.into_iter().zip(entries) {
            match connection.recv_response()? {
                answer if is_forgotten(&answer) => forgotten = true,
                Value::ServerError(error) => {
                    refused = true;
                    self.refused(&error.into());
                }
                Value::Int(1) => self.taken(fate, entry),
                // Another was faster, or one before it was refused.
                _ => {}
            }
        }
        if forgotten {
            *script = LogScript::load(&self.shared, connection)?;
        }
        Ok(!refused)
    }

    fn write(
        &mut self,
        script: &LogScript,
        (id, fields): &RawEntry,
        oldest: u64,
        commands: &mut Vec<u8>,
    ) -> Fate {
        let at = id.split_once('-').and_then(|(ms, _)| ms.parse::<u64>().ok()).unwrap_or(0);
        if at < oldest {
            self.pass(id, None, commands);
            return Fate::Dropped(DropReason::DoorTooOld);
        }
        let channels = &self.shared.channels;
        match Entry::read(channels, fields) {
            Ok(Entry::Publish { channel, message }) => {
                self.pass(id, Some((channel, message)), commands);
                return Fate::Passed;
            }
            Ok(Entry::Append(target, members)) => {
                if let Some(names) = channels.log_of(&target) {
                    self.origin.number += 1;
                    let entry = DoorAppend { id, names, origin: self.origin, members };
                    script.append_entry(&entry, commands);
                    return Fate::Passed;
                }
            }
            Err(_) => {}
        }
        self.pass(id, None, commands);
        Fate::Dropped(DropReason::DoorBadEntry)
    }

    /// Takes an entry out without a log; publishes it, or drops it.
    fn pass(&self, id: &str, publish: Option<(&str, &str)>, commands: &mut Vec<u8>) {
        let mut command = cmd("EVAL");
        command.arg(PASS).arg(1).arg(self.shared.channels.door()).arg(id).arg(publish);
        command.write_packed_command(commands);
    }

    fn taken(&mut self, fate: Fate, (id, fields): &RawEntry) {
        let reason = match fate {
            Fate::Passed => {
                self.shared.counters.published.inc();
                return;
            }
            Fate::Dropped(reason) => reason,
        };
        self.shared.counters.dropped.count(reason);
        if let Some(held_back) = self.bad_entries.pass() {
            let channel = channel_of(fields);
            log::warn!(
                reason = reason.as_str(), id = id.as_str(), channel = channel.as_str(), held_back;
                "dropped an entry at redis' door"
            );
        }
    }

    fn refused(&mut self, error: &RedisError) {
        if let Some(held_back) = self.failures.pass() {
            let reason = describe(error);
            log::warn!(reason = reason.as_str(), held_back; "redis refused an entry of the door");
        }
    }
}

/// What an entry gives as its channel, for a log line.
fn channel_of(fields: &[Vec<u8>]) -> String {
    let value = fields.chunks_exact(2).find_map(|pair| match pair {
        [name, value] if name == b"channel" => Some(value),
        _ => None,
    });
    let value = value.map(|value| String::from_utf8_lossy(value)).unwrap_or_default();
    value.chars().take(LOGGED_CHANNEL).collect()
}

fn receive<T: redis::FromRedisValue>(connection: &mut Connection) -> Result<T, SessionError> {
    let answer = connection.recv_response()?;
    if let Value::ServerError(error) = answer {
        return Err(RedisError::from(error).into());
    }
    Ok(from_redis_value(answer).map_err(RedisError::from)?)
}
