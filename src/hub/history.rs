//! What was said lately, for clients that come back: a log for each room and each user, with numbered
//! messages that are shared with the outboxes (docs/ARCHITECTURE.md, "History").
//!
//! A log's *number* (`seq`) counts its messages without a gap, its *epoch* names one unbroken life of the
//! number. The messages are kept for a while, the number for much longer: who missed nothing has nothing to
//! recover. Nothing here costs more than a message's own log, however many logs there are.
//!
//! Without a broker the numbers are given here. With one they are the broker's, and a log is a copy of the end of
//! the broker's: where it is not known to be the end, it is *stale*, and has to be read before it says anything.

mod order;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slotmap::{SlotMap, new_key_type};
use uuid::Uuid;

use crate::config::{Config, MAX_VACANT_LOGS, NUMBERS_REFRESH, NUMBERS_TTL};
use crate::protocol::{Draft, Number, Numbered, Position, Target};
use crate::runtime::clock::Moment;
use order::{Links, List, ListName};

/// What a kept message takes besides its frame: its place in the log, the count of who shares it, and what
/// malloc adds to both allocations.
const MESSAGE_BYTES: usize = 112;
/// Most messages that one call of [`History::forget_old`] lets go: some milliseconds. What it leaves over
/// waits for the next.
const FORGOTTEN_AT_ONCE: usize = 20_000;
/// Fewest names for which memory is given back.
const KEPT_NAMES: usize = 1024;

new_key_type! {
    /// A log; a key of one that was forgotten never hits another.
    pub struct LogKey;
}

type Logs = SlotMap<LogKey, Box<Log>>;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Of one log; 0 is off.
    messages: usize,
    ttl: Duration,
    /// Of all logs.
    bytes: usize,
    vacant_logs: usize,
}

/// All logs.
#[derive(Debug)]
pub struct History {
    limits: Limits,
    names: HashMap<Target, LogKey>,
    logs: Logs,
    /// Logs with messages, the one that was silent for longest first.
    silent: List,
    /// Logs of rooms without members and of users who are away, the one that was used longest ago first.
    vacant: List,
    /// All logs, the one first that was known to be the end of the broker's longest ago.
    by_age: List,
    /// Of all kept messages.
    bytes: usize,
    /// What the epochs of this process begin with.
    process: String,
    /// Epochs so far.
    epochs: u64,
    /// The epoch of logs that begin now.
    epoch: Arc<str>,
    /// A log was forgotten since the epoch began: were it to begin again in the same one, its old numbers
    /// would look like new ones.
    is_worn: bool,
    /// Whether the broker gives the numbers.
    is_copy: bool,
    /// Rises whenever the broker's stream was broken off: all logs are stale then. Begins with 1.
    stream: u32,
    counts: HistoryCounts,
}

/// The past of a room or a user.
#[derive(Debug)]
struct Log {
    target: Target,
    /// `None`: not known, as the broker has not been asked, or has not answered.
    epoch: Option<Arc<str>>,
    /// When it was last known to be the end of the broker's log.
    fresh: Moment,
    /// The stream in which this was last the end of the broker's log; 0 is none.
    stream: u32,
    /// Whether the broker has no messages that this lacks.
    is_whole: bool,
    /// Whether somebody was answered without a position.
    owes_position: bool,
    /// Since when it waits for messages that it lacks.
    behind_since: Option<Moment>,
    /// Number of the last message.
    seq: u64,
    /// The last messages; that with number `seq` is the last.
    messages: VecDeque<Kept>,
    /// Of a log that nobody listens to: when it was last used.
    used: Moment,
    /// Replays that read it.
    readers: u32,
    silent: Links,
    vacant: Links,
    by_age: Links,
}

#[derive(Debug)]
struct Kept {
    frame: Bytes,
    at: Moment,
}

/// Why what a client missed cannot be given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotRecovered {
    /// The numbers have begun anew since: who gives them has restarted, or has forgotten the log.
    OtherEpoch,
    /// Some of it is no longer kept.
    TooOld,
    /// It says that it has what was never sent.
    Future,
    /// Something was said while the broker was away, without a number.
    Unnumbered,
    /// The broker has not told yet what there is.
    Unknown,
    /// `HISTORY_MESSAGES` is 0.
    Off,
}

/// Where a message stands to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the next one, or the first that is heard of.
    Next,
    /// The log has it already.
    Before,
    /// Others come before it, which are missing.
    Ahead,
    /// It is of another epoch.
    OtherEpoch,
}

impl NotRecovered {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OtherEpoch, Self::TooOld, Self::Future, Self::Unnumbered, Self::Unknown, Self::Off];

    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::OtherEpoch => "other_epoch",
            Self::TooOld => "too_old",
            Self::Future => "future",
            Self::Unnumbered => "unnumbered",
            Self::Unknown => "unknown",
            Self::Off => "off",
        }
    }
}

/// Who gives messages their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// The hub: there is no broker.
    Hub,
    /// The broker.
    Broker,
    /// Nobody: there is a broker, and it has no ordered log.
    Nobody,
}

/// What was counted since the start, and what is kept now.
#[derive(Debug, Clone, Default)]
pub struct HistoryCounts {
    /// Logs that there are.
    pub logs: u64,
    /// Bytes of all kept messages.
    pub bytes: u64,
    /// Joins and resumes that got all that they had missed.
    pub recovered: u64,
    /// Those that did not, by reason.
    pub not_recovered: BTreeMap<&'static str, u64>,
    /// Messages sent again.
    pub replayed: u64,
    /// Members that were told that something may be missing.
    pub resets: u64,
    /// Messages let go before their time, since all together were over `HISTORY_BYTES`.
    pub evicted_messages: u64,
    /// Logs forgotten before their time, since there were too many.
    pub evicted_logs: u64,
}

impl History {
    /// Without logs.
    pub fn new(config: &Config, numbers: Numbers) -> Self {
        let limits = Limits {
            messages: if numbers == Numbers::Nobody { 0 } else { config.history_messages },
            ttl: config.history_ttl,
            bytes: config.history_bytes,
            vacant_logs: MAX_VACANT_LOGS,
        };
        let mut process = Uuid::new_v4().simple().to_string();
        process.truncate(16);
        let mut history = Self {
            limits,
            names: HashMap::new(),
            logs: Logs::with_key(),
            silent: List::new(ListName::Silent),
            vacant: List::new(ListName::Vacant),
            by_age: List::new(ListName::Age),
            bytes: 0,
            process,
            epochs: 0,
            epoch: "".into(),
            is_worn: false,
            is_copy: numbers == Numbers::Broker,
            stream: 1,
            counts: HistoryCounts::default(),
        };
        history.begin_epoch();
        history
    }

    fn begin_epoch(&mut self) {
        self.epochs += 1;
        self.epoch = format!("{}-{}", self.process, self.epochs).into();
        self.is_worn = false;
    }

    /// Whether messages are numbered.
    pub fn is_on(&self) -> bool {
        self.limits.messages > 0
    }

    /// The log of a target, new where there is none; `None` for targets without one, or when history is off.
    /// `has_listeners` says whether anyone is in the room, or the user is here.
    pub fn open(&mut self, target: &Target, has_listeners: bool, now: Moment) -> Option<LogKey> {
        if !self.is_on() || !matches!(target, Target::Room(_) | Target::User(_)) {
            return None;
        }
        let key = match self.names.get(target) {
            Some(key) => *key,
            None => self.begin(target),
        };
        if has_listeners {
            self.vacant.remove(&mut self.logs, key);
        } else {
            self.use_vacant(key, now);
        }
        Some(key)
    }

    /// The log of a target, if there is one.
    pub fn find(&self, target: &Target) -> Option<LogKey> {
        self.names.get(target).copied()
    }

    fn begin(&mut self, target: &Target) -> LogKey {
        if self.is_worn {
            self.begin_epoch();
        }
        let key = self.logs.insert(Box::new(Log {
            target: target.clone(),
            epoch: (!self.is_copy).then(|| Arc::clone(&self.epoch)),
            fresh: Moment::NEVER,
            stream: 0,
            is_whole: !self.is_copy,
            owes_position: false,
            behind_since: None,
            seq: 0,
            messages: VecDeque::new(),
            used: Moment::NEVER,
            readers: 0,
            silent: Links::default(),
            vacant: Links::default(),
            by_age: Links::default(),
        }));
        if self.is_copy {
            // It is stale, and next to be read.
            self.by_age.push_first(&mut self.logs, key);
        }
        self.names.insert(target.clone(), key);
        key
    }

    /// Someone listens to this target again: its log, if it has one, stays.
    pub fn occupy(&mut self, target: &Target) {
        if let Some(key) = self.names.get(target) {
            self.vacant.remove(&mut self.logs, *key);
        }
    }

    /// Nobody listens to this target any more: its log is kept as long as there is room.
    pub fn vacate(&mut self, target: &Target, now: Moment) {
        if let Some(key) = self.names.get(target) {
            self.use_vacant(*key, now);
        }
    }

    fn use_vacant(&mut self, key: LogKey, now: Moment) {
        if let Some(log) = self.logs.get_mut(key) {
            log.used = now;
        }
        self.vacant.push_last(&mut self.logs, key);
        while self.vacant.len() > self.limits.vacant_logs
            && let Some(first) = self.vacant.first()
        {
            self.counts.evicted_logs += 1;
            self.forget(first);
        }
    }

    fn forget(&mut self, key: LogKey) {
        self.let_go_all(key);
        self.vacant.remove(&mut self.logs, key);
        self.by_age.remove(&mut self.logs, key);
        if let Some(log) = self.logs.remove(key) {
            self.names.remove(&log.target);
            self.is_worn = true;
        }
    }

    /// Where a log is now.
    pub fn position(&self, key: LogKey) -> Option<Position> {
        let log = self.logs.get(key)?;
        Some(Position { epoch: log.epoch.clone()?, seq: log.seq })
    }

    /// Whose log it is.
    pub fn target(&self, key: LogKey) -> Option<&Target> {
        self.logs.get(key).map(|log| &log.target)
    }

    /// Gives a message its number, completes its frame, and keeps it.
    pub fn append(&mut self, key: LogKey, draft: Draft, now: Moment) -> Numbered {
        let Some(log) = self.logs.get(key) else {
            return draft.complete(None);
        };
        let seq = log.seq + 1;
        let numbered = draft.complete(Some(Number::of(&log.target, seq)));
        self.keep(key, numbered.frame.clone(), now);
        numbered
    }

    /// Keeps a message that has the next number.
    pub fn keep(&mut self, key: LogKey, frame: Bytes, at: Moment) {
        let Some(log) = self.logs.get_mut(key) else { return };
        log.seq += 1;
        self.bytes += cost(&frame);
        log.messages.push_back(Kept { frame, at });
        self.silent.push_last(&mut self.logs, key);
        self.trim(key, at);
        self.make_room(key);
    }

    /// Lets go what a log has too much of, or for too long.
    fn trim(&mut self, key: LogKey, now: Moment) {
        let Limits { messages, ttl, .. } = self.limits;
        while let Some(log) = self.logs.get(key)
            && let Some(oldest) = log.messages.front()
            && (log.messages.len() > messages || (log.readers == 0 && now.since(oldest.at) > ttl))
        {
            self.let_go(key);
        }
    }

    /// Lets go messages while all together are over their limit: first those of the log that was silent for
    /// longest; of the log that was appended to, as many as it takes.
    fn make_room(&mut self, appended: LogKey) {
        while self.bytes > self.limits.bytes
            && let Some(key) = self.silent.first()
        {
            self.counts.evicted_messages +=
                if key == appended { self.let_go(key) } else { self.let_go_all(key) };
            // The broker may have them still.
            if self.is_copy
                && let Some(log) = self.logs.get_mut(key)
            {
                log.is_whole = false;
            }
        }
    }

    fn let_go_all(&mut self, key: LogKey) -> u64 {
        let Some(log) = self.logs.get_mut(key) else { return 0 };
        let messages = std::mem::take(&mut log.messages);
        self.bytes -= messages.iter().map(|message| cost(&message.frame)).sum::<usize>();
        self.silent.remove(&mut self.logs, key);
        messages.len() as u64
    }

    /// Lets go the oldest message of a log.
    fn let_go(&mut self, key: LogKey) -> u64 {
        let Some(log) = self.logs.get_mut(key) else { return 0 };
        if log.messages.len() <= 1 {
            return self.let_go_all(key);
        }
        let oldest = log.messages.pop_front();
        self.bytes -= oldest.iter().map(|message| cost(&message.frame)).sum::<usize>();
        1
    }

    /// Lets go what is older than `HISTORY_TTL`, and forgets the numbers of rooms and users that nobody has
    /// used for a day; for the hub's tick. What a replay still reads stays.
    pub fn forget_old(&mut self, now: Moment) {
        let mut left = FORGOTTEN_AT_ONCE as u64;
        let mut next = self.silent.first();
        while let Some(key) = next
            && let Some(log) = self.logs.get(key)
            && log.messages.back().is_some_and(|last| now.since(last.at) > self.limits.ttl)
            && left > 0
        {
            let is_read = log.readers > 0;
            next = self.silent.behind(&self.logs, key);
            left = left.saturating_sub(if is_read { 1 } else { self.let_go_all(key) });
        }
        while let Some(key) = self.vacant.first()
            && self.logs.get(key).is_some_and(|log| now.since(log.used) > NUMBERS_TTL)
            && left > 0
        {
            self.forget(key);
            left -= 1;
        }
        if self.names.capacity() > 8 * self.names.len().max(KEPT_NAMES) {
            self.names.shrink_to(2 * self.names.len());
        }
    }

    /// Whether all behind this position is kept.
    ///
    /// # Errors
    /// Why it is not.
    pub fn recover(
        &mut self,
        key: LogKey,
        since: &Position,
        now: Moment,
    ) -> Result<(), NotRecovered> {
        self.trim(key, now);
        let recovered = match self.logs.get(key) {
            None => Err(NotRecovered::OtherEpoch),
            Some(log) if log.epoch.is_none() => Err(NotRecovered::Unknown),
            Some(log) if log.epoch.as_ref() != Some(&since.epoch) => Err(NotRecovered::OtherEpoch),
            Some(log) if since.seq > log.seq => Err(NotRecovered::Future),
            Some(log) if since.seq < log.first().saturating_sub(1) => Err(NotRecovered::TooOld),
            // A replay of another client may keep it for a while longer.
            Some(log) if log.is_over(since.seq, self.limits.ttl, now) => Err(NotRecovered::TooOld),
            Some(_) => Ok(()),
        };
        match recovered {
            Ok(()) => self.counts.recovered += 1,
            Err(reason) => self.count_not_recovered(reason),
        }
        recovered
    }

    /// Counts a client that was told that it cannot have what it missed.
    pub fn count_not_recovered(&mut self, reason: NotRecovered) {
        *self.counts.not_recovered.entry(reason.label()).or_default() += 1;
    }

    /// A replay begins to read a log: until it ends, nothing of it goes for its age.
    pub fn begin_reading(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.readers += 1;
        }
    }

    /// Whether a replay reads this log.
    pub fn is_read(&self, key: LogKey) -> bool {
        self.logs.get(key).is_some_and(|log| log.readers > 0)
    }

    /// A replay has ended.
    pub fn end_reading(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.readers = log.readers.saturating_sub(1);
        }
    }

    /// The messages of a log from this number on; `None` when some are no longer kept.
    pub fn read(&self, key: LogKey, from: u64) -> Option<impl Iterator<Item = &Bytes>> {
        let log = self.logs.get(key)?;
        let skipped = usize::try_from(from.checked_sub(log.first())?).ok()?;
        Some(log.messages.iter().skip(skipped).map(|message| &message.frame))
    }

    /// Whether there is no message with this number yet.
    pub fn ends_before(&self, key: LogKey, number: u64) -> bool {
        self.logs.get(key).is_none_or(|log| log.seq < number)
    }

    /// The broker's stream was broken off, and goes on: every log is stale until more is known.
    pub fn break_off(&mut self) {
        self.stream = self.stream.wrapping_add(1).max(1);
    }

    /// Whether a log is the end of the broker's, and has all that is wanted behind `since`.
    pub fn answers(&self, key: LogKey, since: Option<&Position>) -> bool {
        let Some(log) = self.logs.get(key) else { return false };
        let lacks = since.is_some_and(|since| {
            log.epoch.as_ref() == Some(&since.epoch)
                && !log.is_whole
                && since.seq < log.first().saturating_sub(1)
        });
        log.epoch.is_some() && log.stream == self.stream && !lacks
    }

    /// Whether a client has been further than a log.
    pub fn is_ahead(&self, key: LogKey, since: Option<&Position>) -> bool {
        let log = self.logs.get(key).zip(since);
        log.is_some_and(|(log, since)| {
            log.epoch.as_ref() == Some(&since.epoch) && since.seq > log.seq
        })
    }

    /// The log that is stale for longest, if any is. One that was silent for long is stale too: who reads it has the
    /// broker remember its number.
    pub fn next_stale(&self, now: Moment) -> Option<LogKey> {
        let first = self.by_age.first()?;
        let log = self.logs.get(first)?;
        let is_stale = log.stream != self.stream || now.since(log.fresh) > NUMBERS_REFRESH;
        is_stale.then_some(first)
    }

    /// It is the end of the broker's, or is being read.
    pub fn freshen(&mut self, key: LogKey, now: Moment) {
        if let Some(log) = self.logs.get_mut(key) {
            (log.stream, log.fresh) = (self.stream, now);
        }
        self.by_age.push_last(&mut self.logs, key);
    }

    /// It may not be the end of the broker's, and is not to be read before [`Self::ask_again`].
    pub fn doubt(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.stream = 0;
        }
        self.by_age.remove(&mut self.logs, key);
    }

    /// A log in doubt is to be read.
    pub fn ask_again(&mut self, key: LogKey) {
        if self.logs.get(key).is_some_and(|log| log.stream != self.stream) {
            self.by_age.push_first(&mut self.logs, key);
        }
    }

    /// The broker's stream as it is now.
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// Forgets a log that nobody listens to; whether it did.
    pub fn forget_vacant(&mut self, key: LogKey) -> bool {
        let is_vacant =
            self.logs.get(key).is_some_and(|log| log.vacant.is_in() && log.readers == 0);
        if is_vacant {
            self.forget(key);
        }
        is_vacant
    }

    /// Where a message with this position stands.
    pub fn place(&self, key: LogKey, position: &Position) -> Place {
        let Some(log) = self.logs.get(key) else { return Place::Ahead };
        match &log.epoch {
            None if log.owes_position => Place::OtherEpoch,
            None => Place::Next,
            Some(epoch) if *epoch != position.epoch => Place::OtherEpoch,
            Some(_) if position.seq <= log.seq => Place::Before,
            Some(_) if position.seq - log.seq == 1 => Place::Next,
            Some(_) => Place::Ahead,
        }
    }

    /// Somebody is answered without a position, and is to be told when there is one.
    pub fn owe_position(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.owes_position = true;
        }
    }

    /// Since when messages are missing that come before those that came.
    pub fn is_behind_since(&mut self, key: LogKey, now: Moment) -> Moment {
        let log = self.logs.get_mut(key);
        log.map_or(now, |log| *log.behind_since.get_or_insert(now))
    }

    /// Goes to a position of the broker's, and lets go what it has. Whether those who listen have to be told that
    /// something may be missing.
    pub fn adopt(&mut self, key: LogKey, position: &Position) -> bool {
        self.let_go_all(key);
        let Some(log) = self.logs.get_mut(key) else { return false };
        let is_reset = log.epoch.is_some() || log.owes_position;
        log.epoch = Some(Arc::clone(&position.epoch));
        log.seq = position.seq;
        log.is_whole = position.seq == 0;
        log.owes_position = false;
        log.behind_since = None;
        is_reset
    }

    /// Has caught up.
    pub fn catch_up(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(key) {
            log.behind_since = None;
        }
    }

    /// Whether a message with this number comes next.
    pub fn is_next(&self, key: LogKey, seq: u64) -> bool {
        self.logs.get(key).is_some_and(|log| log.seq.checked_add(1) == Some(seq))
    }

    /// Whether the broker gives the numbers, and the logs are copies.
    pub fn is_copy(&self) -> bool {
        self.is_copy && self.is_on()
    }

    /// Takes the messages up to its number, instead of those that it has, if they are more: all that the broker
    /// has.
    pub fn fill(&mut self, key: LogKey, messages: Vec<(Bytes, Moment)>, now: Moment) {
        let Some(log) = self.logs.get(key) else { return };
        if messages.len() > log.messages.len() {
            self.let_go_all(key);
            let Some(log) = self.logs.get_mut(key) else { return };
            self.bytes += messages.iter().map(|(frame, _)| cost(frame)).sum::<usize>();
            log.messages = messages.into_iter().map(|(frame, at)| Kept { frame, at }).collect();
            self.silent.push_last(&mut self.logs, key);
        }
        if let Some(log) = self.logs.get_mut(key) {
            log.is_whole = true;
        }
        self.trim(key, now);
        self.make_room(key);
    }

    /// Counts messages that were sent again.
    pub fn count_replayed(&mut self, messages: u64) {
        self.counts.replayed += messages;
    }

    /// Counts a member that was told that something may be missing.
    pub fn count_reset(&mut self) {
        self.counts.resets += 1;
    }

    /// Replays that run.
    #[cfg(test)]
    pub(super) fn readers(&self) -> u32 {
        self.logs.values().map(|log| log.readers).sum()
    }

    /// What was counted.
    pub fn counts(&self) -> HistoryCounts {
        let (logs, bytes) = (self.logs.len() as u64, self.bytes as u64);
        HistoryCounts { logs, bytes, ..self.counts.clone() }
    }
}

impl Log {
    /// Number of the first message that is kept; of the next one when none is.
    fn first(&self) -> u64 {
        self.seq.saturating_add(1).saturating_sub(self.messages.len() as u64)
    }

    /// Whether the message behind this number is over its time.
    fn is_over(&self, seq: u64, ttl: Duration, now: Moment) -> bool {
        let skipped = seq.saturating_add(1).saturating_sub(self.first());
        let wanted = usize::try_from(skipped).ok().and_then(|skipped| self.messages.get(skipped));
        wanted.is_some_and(|message| now.since(message.at) > ttl)
    }

    fn links(&self, list: ListName) -> &Links {
        match list {
            ListName::Age => &self.by_age,
            ListName::Silent => &self.silent,
            ListName::Vacant => &self.vacant,
        }
    }

    fn links_mut(&mut self, list: ListName) -> &mut Links {
        match list {
            ListName::Age => &mut self.by_age,
            ListName::Silent => &mut self.silent,
            ListName::Vacant => &mut self.vacant,
        }
    }
}

/// What a kept message counts for.
fn cost(frame: &Bytes) -> usize {
    frame.len() + MESSAGE_BYTES
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests;
