//! What a connection that came back has still to get of the past: places in logs, read as its socket takes the
//! messages.
//!
//! A replay holds no messages: they stay in the log, whose limits bound them. While one runs, the log's new
//! messages are not appended for the connection; the replay comes to them. So the order is the log's, and a
//! long replay is no backlog.

use super::history::LogKey;

/// A log that a connection reads, and the number that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replay {
    pub(super) log: LogKey,
    pub(super) next: u64,
}

/// The replays of one connection, in the order in which it asked for them.
#[derive(Debug, Default)]
pub(super) struct Replays {
    running: Vec<Replay>,
    /// Whether a turn waits in the schedule, or for the end of the flush.
    pub(super) is_scheduled: bool,
    /// Frames and bytes of the last turn: not counted against the limits of the backlog that they may become.
    pub(super) in_turn: (u64, u64),
}

impl Replays {
    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether this log is read.
    pub(super) fn is_reading(&self, log: LogKey) -> bool {
        self.running.iter().any(|replay| replay.log == log)
    }

    pub(super) fn first(&self) -> Option<Replay> {
        self.running.first().copied()
    }

    pub(super) fn push(&mut self, replay: Replay) {
        self.running.push(replay);
    }

    /// Ends the replay of this log; whether there was one.
    pub(super) fn end(&mut self, log: LogKey) -> bool {
        let running = self.running.len();
        self.running.retain(|replay| replay.log != log);
        self.running.len() < running
    }

    /// The first replay has come to this number.
    pub(super) fn advance(&mut self, next: u64) {
        if let Some(replay) = self.running.first_mut() {
            replay.next = next;
        }
    }

    /// Ends all.
    pub(super) fn end_all(&mut self) -> Vec<Replay> {
        std::mem::take(&mut self.running)
    }
}
