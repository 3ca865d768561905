//! The script that keeps the ordered log, as one connection knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Cmd, Connection, RedisError, Value, cmd};
use uuid::Uuid;

use super::{SessionError, Shared};
use crate::bridge::channel_names::{LogNames, log_name};
use crate::bridge::envelope::Envelope;
use crate::bridge::queue::Queued;
use crate::bridge::{LogLimits, Reading};
use crate::config::NUMBERS_TTL;
use crate::protocol::Target;

const TEXT: &str = include_str!("log.lua");

/// Epochs that there never were.
#[derive(Debug)]
pub(super) struct Epochs {
    process: String,
    last: AtomicU64,
}

impl Epochs {
    pub(super) fn new() -> Self {
        let mut process = Uuid::new_v4().simple().to_string();
        process.truncate(16);
        Self { process, last: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.process)
    }
}

/// How a script is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// By its hash: the usual way.
    Hash,
    /// By its text, which the server then knows again: when it has forgotten the hash.
    Text,
}

/// An entry of the door that goes into a log.
#[derive(Debug)]
pub(super) struct DoorAppend<'a> {
    pub(super) id: &'a str,
    pub(super) names: LogNames,
    pub(super) origin: Envelope,
    pub(super) members: &'a str,
}

/// The script on one connection.
pub(super) struct LogScript {
    shared: Arc<Shared>,
    hash: Vec<u8>,
    /// Which process the server is.
    run_id: String,
}

impl LogScript {
    /// Has the server load it, and asks who the server is.
    pub(super) fn load(
        shared: &Arc<Shared>,
        connection: &mut Connection,
    ) -> Result<Self, SessionError> {
        let mut commands = Vec::new();
        cmd("SCRIPT").arg("LOAD").arg(TEXT).write_packed_command(&mut commands);
        cmd("INFO").arg("server").write_packed_command(&mut commands);
        connection.send_packed_command(&commands)?;
        let hash = text(connection.recv_response()?)?;
        let info = text(connection.recv_response()?)?;
        let info = String::from_utf8_lossy(&info);
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let run_id = run_id.map(str::trim).filter(|id| !id.is_empty());
        let run_id = run_id.ok_or(SessionError::NoRunId)?.to_owned();
        let script = Self { shared: Arc::clone(shared), hash, run_id };
        script.greet(connection)?;
        Ok(script)
    }

    /// Has the server know that it counts from now on, before a replica of it could be told so.
    fn greet(&self, connection: &mut Connection) -> Result<(), SessionError> {
        let life = self.shared.channels.life();
        // The keys of a log are not looked at.
        // One of the threads begins the new life.
        let was_replica = self.shared.replica_seen.swap(false, Ordering::AcqRel);
        let mut greeting = self.call(By::Hash, &[&life, &life], "greet");
        greeting.arg(u8::from(was_replica));
        connection.send_packed_command(&greeting.get_packed_command())?;
        // A replica refuses it, and is found out by its role.
        let answer = connection.recv_response();
        if was_replica && !matches!(answer, Ok(Value::Int(_))) {
            self.shared.replica_seen.store(true, Ordering::Release);
        }
        answer?;
        Ok(())
    }

    /// A message of the queue. `None` when its target has no log; the queue has checked that.
    pub(super) fn append(&self, by: By, queued: &Queued, commands: &mut Vec<u8>) -> Option<()> {
        let names = self.shared.channels.log_of(&queued.outgoing.target)?;
        let origin = Envelope { instance: self.shared.instance, number: queued.number };
        self.call(by, &[&names.numbers, &names.messages], "append")
            .arg(self.limits().messages)
            .arg(&names.channel)
            .arg(origin.to_string())
            .arg(&*queued.outgoing.members)
            .write_packed_command(commands);
        Some(())
    }

    /// An entry of the door; the answer is 0 when another has taken it.
    pub(super) fn append_entry(&self, entry: &DoorAppend<'_>, commands: &mut Vec<u8>) {
        let (names, door) = (&entry.names, self.shared.channels.door());
        self.call_with(By::Hash, &[&names.numbers, &names.messages], &[&door], "door")
            .arg(self.limits().messages)
            .arg(&names.channel)
            .arg(entry.origin.to_string())
            .arg(entry.id)
            .arg(entry.members)
            .write_packed_command(commands);
    }

    /// A reading. `None` when its target has no log.
    pub(super) fn read(&self, by: By, reading: &Reading, commands: &mut Vec<u8>) -> Option<()> {
        let names = self.shared.channels.log_of(&reading.target)?;
        let mark = format!("{} {}", reading.number, log_name(&reading.target)?);
        let (epoch, seq) = reading.since.as_ref().map_or(("", 0), |at| (&at.epoch, at.seq));
        self.call(by, &[&names.numbers, &names.messages], "read")
            .arg(&names.numbers)
            .arg(epoch)
            .arg(seq)
            .arg(u8::from(reading.from_start))
            .arg(self.shared.channels.mark())
            .arg(mark)
            .write_packed_command(commands);
        Some(())
    }

    /// A new epoch. `None` when the target has no log.
    pub(super) fn renew(
        &self,
        by: By,
        target: &Target,
        renewal: u64,
        commands: &mut Vec<u8>,
    ) -> Option<()> {
        let names = self.shared.channels.log_of(target)?;
        let asker = Envelope { instance: self.shared.instance, number: renewal };
        self.call(by, &[&names.numbers, &names.messages], "renew")
            .arg(&names.numbers)
            .arg(asker.to_string())
            .write_packed_command(commands);
        Some(())
    }

    fn call(&self, by: By, log: &[&str; 2], mode: &str) -> Cmd {
        self.call_with(by, log, &[], mode)
    }

    /// A call with the keys and arguments that all modes have, and further keys.
    fn call_with(&self, by: By, log: &[&str; 2], more: &[&str], mode: &str) -> Cmd {
        let mut command = match by {
            By::Hash => cmd("EVALSHA"),
            By::Text => cmd("EVAL"),
        };
        match by {
            By::Hash => command.arg(&self.hash),
            By::Text => command.arg(TEXT),
        };
        command
            .arg(log.len() + 1 + more.len())
            .arg(log)
            .arg(self.shared.channels.life())
            .arg(more)
            .arg(mode)
            .arg(&self.run_id)
            .arg(self.shared.epochs.next())
            .arg(NUMBERS_TTL.as_secs())
            .arg(u64::try_from(self.limits().ttl.as_millis()).unwrap_or(u64::MAX));
        command
    }

    fn limits(&self) -> LogLimits {
        self.shared.limits
    }
}

/// Whether the server has forgotten the script; it then did nothing.
pub(super) fn is_forgotten(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

/// The bytes of a text.
fn text(answer: Value) -> Result<Vec<u8>, SessionError> {
    match answer {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::VerbatimString { text, .. } => Ok(text.into_bytes()),
        Value::ServerError(error) => Err(RedisError::from(error).into()),
        _ => Err(SessionError::Unexpected),
    }
}
