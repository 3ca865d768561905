//! Logs in the order in which they were last used: a list through the logs themselves, so that moving one to
//! the end costs the same however many there are.

use super::{LogKey, Logs};

/// Which of a log's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListName {
    /// Of logs with messages.
    Silent,
    /// Of logs that nobody listens to.
    Vacant,
    /// Of all logs that are copies, in the order in which they were last known to be whole.
    Age,
}

/// A log's place in a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Links {
    is_in: bool,
    before: Option<LogKey>,
    behind: Option<LogKey>,
}

impl Links {
    pub(super) fn is_in(self) -> bool {
        self.is_in
    }
}

/// One list; the log that was used longest ago is its first.
#[derive(Debug)]
pub(super) struct List {
    name: ListName,
    first: Option<LogKey>,
    last: Option<LogKey>,
    len: usize,
}

impl List {
    pub(super) fn new(name: ListName) -> Self {
        Self { name, first: None, last: None, len: 0 }
    }

    pub(super) fn first(&self) -> Option<LogKey> {
        self.first
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The one behind this.
    pub(super) fn behind(&self, logs: &Logs, key: LogKey) -> Option<LogKey> {
        logs.get(key)?.links(self.name).behind
    }

    /// Puts a log first, whether it was in the list or not.
    pub(super) fn push_first(&mut self, logs: &mut Logs, key: LogKey) {
        if self.first == Some(key) {
            return;
        }
        self.remove(logs, key);
        let links = Links { is_in: true, before: None, behind: self.first };
        if !self.set(logs, Some(key), |own| *own = links) {
            return;
        }
        self.set(logs, self.first, |first| first.before = Some(key));
        self.first = Some(key);
        self.last = self.last.or(Some(key));
        self.len += 1;
    }

    /// Puts a log last, whether it was in the list or not.
    pub(super) fn push_last(&mut self, logs: &mut Logs, key: LogKey) {
        if self.last == Some(key) {
            return;
        }
        self.remove(logs, key);
        let links = Links { is_in: true, before: self.last, behind: None };
        if !self.set(logs, Some(key), |own| *own = links) {
            return;
        }
        self.set(logs, self.last, |last| last.behind = Some(key));
        self.last = Some(key);
        self.first = self.first.or(Some(key));
        self.len += 1;
    }

    /// Takes a log out, if it is in the list.
    pub(super) fn remove(&mut self, logs: &mut Logs, key: LogKey) {
        let Some(&Links { is_in: true, before, behind }) =
            logs.get(key).map(|log| log.links(self.name))
        else {
            return;
        };
        self.set(logs, Some(key), |own| *own = Links::default());
        if !self.set(logs, before, |before| before.behind = behind) {
            self.first = behind;
        }
        if !self.set(logs, behind, |behind| behind.before = before) {
            self.last = before;
        }
        self.len -= 1;
    }

    /// Changes the links of a log; whether there is one.
    fn set(&self, logs: &mut Logs, key: Option<LogKey>, change: impl FnOnce(&mut Links)) -> bool {
        let log = key.and_then(|key| logs.get_mut(key));
        log.map(|log| change(log.links_mut(self.name))).is_some()
    }
}
