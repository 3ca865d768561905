//! What a connection that came back has still to get of the past: places in logs, read as its socket takes the
//! messages.
//!
//! A replay holds no messages: they stay in the log, whose limits bound them. While one runs, the log's new
//! messages are not appended for the connection; the replay comes to them. So the order is the log's, and a
//! long replay is no backlog.

use std::collections::{HashMap, VecDeque};

use super::history::LogKey;

/// The replays of one connection; served in turns, so that a busy log does not keep the others waiting.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// The number that comes next of each log that is read.
    next: HashMap<LogKey, u64>,
    /// Whose turn it is. May name logs that are no longer read.
    turns: VecDeque<LogKey>,
    /// Whether the next turn waits in the schedule, or for the end of the flush.
    pub(super) is_scheduled: bool,
    /// What was appended in the last turn, until the socket has taken it.
    pub(super) turn: Option<Turn>,
}

/// The messages of one turn: they do not count against the limits of the backlog that they may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl Replays {
    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Whether this log is read.
    pub(super) fn is_reading(&self, log: LogKey) -> bool {
        self.next.contains_key(&log)
    }

    /// Reads a log from this number on.
    pub(super) fn begin(&mut self, log: LogKey, next: u64) {
        self.next.insert(log, next);
        if self.turns.len() > 2 * self.next.len() {
            self.turns.retain(|log| self.next.contains_key(log));
        }
        self.turns.push_back(log);
    }

    /// Ends the replay of this log; whether there was one.
    pub(super) fn end(&mut self, log: LogKey) -> bool {
        self.next.remove(&log).is_some()
    }

    /// Whose turn it is, and the number that comes next of it. It stands last then.
    pub(super) fn take_turn(&mut self) -> Option<(LogKey, u64)> {
        while let Some(log) = self.turns.pop_front() {
            if let Some(next) = self.next.get(&log) {
                self.turns.push_back(log);
                return Some((log, *next));
            }
        }
        None
    }

    /// The replay of this log has come to this number.
    pub(super) fn advance(&mut self, log: LogKey, to: u64) {
        if let Some(next) = self.next.get_mut(&log) {
            *next = to;
        }
    }

    /// The logs that are read.
    pub(super) fn logs(&self) -> impl Iterator<Item = LogKey> {
        self.next.keys().copied()
    }
}
