//! What a client has of one log over all its connections, and whether that is what it was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// What a message says: which connection published it, and as which of its messages.
pub type Said = (u64, u64);

/// Of those that are published at the end, to see that all is there.
pub const MARKER: u64 = 0;

/// A place in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub epoch: Arc<str>,
    pub seq: u64,
}

/// What a client does and gets.
#[derive(Debug, Clone)]
pub enum Event {
    /// A new connection asked, with what there is to ask with.
    Asked,
    Answered {
        position: Option<Position>,
        recovered: Option<bool>,
    },
    Reset(Position),
    /// A message with its number, if it has one.
    Message(Option<u64>, Said),
}

/// A message that was published, or may have been.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    pub said: Said,
    /// Before it was sent.
    pub sent_at: Instant,
    /// The service has said that it took it.
    pub is_answered: bool,
}

/// A message that a client saw: its epoch and number, and what it says.
pub type Seen = (Arc<str>, u64, Said);

/// What a client has of one log.
pub struct Follower {
    pub log: usize,
    /// The user's own log: what comes before the answer may come again.
    is_own: bool,
    pub position: Option<Position>,
    asked: Option<Position>,
    /// Answered on this connection.
    pub is_live: bool,
    /// When it was last told that it cannot know what was before.
    told_at: Option<Instant>,
    /// The first answer aside.
    pub recovered: u64,
    pub not_recovered: u64,
    pub resets: u64,
    pub unnumbered: u64,
    /// What came without a number, or a position, since it was last told.
    unplaced: Vec<Said>,
    /// Over the whole run.
    pub numbered: Vec<Seen>,
    on_connection: BTreeSet<Said>,
    since_told: BTreeSet<Said>,
}

impl Follower {
    pub fn new(log: usize, is_own: bool) -> Self {
        Self {
            log,
            is_own,
            position: None,
            asked: None,
            is_live: false,
            told_at: None,
            recovered: 0,
            not_recovered: 0,
            resets: 0,
            unnumbered: 0,
            unplaced: Vec::new(),
            numbered: Vec::new(),
            on_connection: BTreeSet::new(),
            since_told: BTreeSet::new(),
        }
    }

    /// Takes what happened; else what is wrong with it.
    pub fn take(&mut self, event: Event, at: Instant) -> Result<(), String> {
        let what = format!("{event:?} at {:?}, asked with {:?}", self.position, self.asked);
        self.try_take(event, at).map_err(|why| format!("log {}: {why}: {what}", self.log))
    }

    fn try_take(&mut self, event: Event, at: Instant) -> Result<(), &'static str> {
        match event {
            Event::Asked => {
                self.asked = self.position.clone();
                self.is_live = false;
                self.on_connection.clear();
            }
            Event::Answered { position, recovered } => {
                match (recovered, &self.asked) {
                    (Some(true), Some(asked)) if Some(asked) == position.as_ref() => {
                        self.recovered += 1;
                    }
                    (Some(true), _) => return Err("recovered, but not what was asked for"),
                    (Some(false), Some(_)) => {
                        self.not_recovered += 1;
                        self.tell(at);
                    }
                    (None, None) => self.tell(at),
                    _ => return Err("an answer to another question"),
                }
                (self.position, self.is_live) = (position, true);
            }
            Event::Reset(position) => {
                self.resets += 1;
                self.tell(at);
                self.position = Some(position);
            }
            Event::Message(seq, said) => self.message(seq, said)?,
        }
        Ok(())
    }

    /// From here on, everything counts anew.
    fn tell(&mut self, at: Instant) {
        self.told_at = Some(at);
        self.unplaced.clear();
        self.since_told.clear();
    }

    fn message(&mut self, seq: Option<u64>, said: Said) -> Result<(), &'static str> {
        if !self.is_live && !self.is_own {
            return Err("a message before the join was answered");
        }
        if self.is_live && !self.on_connection.insert(said) {
            return Err("twice on one connection");
        }
        let Some(seq) = seq else {
            self.unnumbered += 1;
            self.unplaced.push(said);
            return Ok(());
        };
        if !self.is_live {
            return Ok(());
        }
        let Some(position) = &mut self.position else {
            self.unplaced.push(said);
            return Ok(());
        };
        if seq != position.seq + 1 {
            return Err("a hole or a repetition");
        }
        position.seq = seq;
        self.numbered.push((Arc::clone(&position.epoch), seq, said));
        if !self.since_told.insert(said) {
            return Err("twice since it was told last");
        }
        Ok(())
    }

    /// What came without a number and was sent after it was last told: of that it is still to be told. (What
    /// was sent before may come behind a reset, from another instance that Redis had refused.)
    pub fn untold(&self, published: &[Published]) -> Vec<Said> {
        let is_due = |said: &Said| {
            let sent = published.iter().find(|message| message.said == *said);
            sent.is_none_or(|message| self.told_at.is_none_or(|told| message.sent_at > told))
        };
        self.unplaced.iter().copied().filter(is_due).collect()
    }

    /// How much came without a number behind the reset that told of it.
    pub fn late(&self) -> usize {
        self.unplaced.len()
    }

    /// What was published and acknowledged since it was last told, and that it has not got.
    pub fn missing(&self, published: &[Published]) -> Vec<Said> {
        let Some(told_at) = self.told_at else { return Vec::new() };
        let due = published.iter().filter(|message| {
            message.is_answered && message.sent_at > told_at && message.said.0 != MARKER
        });
        due.map(|message| message.said).filter(|said| !self.since_told.contains(said)).collect()
    }

    /// Whether it knows where it is, and that is all there is.
    pub fn is_complete(&self, published: &[Published]) -> bool {
        let has_marker = self.on_connection.iter().next().is_some_and(|said| said.0 == MARKER);
        self.is_live
            && has_marker
            && self.position.is_some()
            && self.untold(published).is_empty()
            && self.missing(published).is_empty()
    }
}

/// What is wrong in the end, over all clients; `published` is by log.
pub fn faults(followers: &[Follower], published: &[Vec<Published>]) -> Vec<String> {
    let mut faults = Vec::new();
    // One order for all: an epoch and a number are one message.
    let mut logs: BTreeMap<(usize, &str), BTreeMap<u64, Said>> = BTreeMap::new();
    for follower in followers {
        let log = follower.log;
        for (epoch, seq, said) in &follower.numbered {
            let first = *logs.entry((log, epoch)).or_default().entry(*seq).or_insert(*said);
            if first != *said {
                faults.push(format!("log {log}: {seq} of {epoch} is {first:?} and {said:?}"));
            }
        }
        let missing = follower.missing(&published[log]);
        if let Some(first) = missing.first() {
            let count = missing.len();
            faults.push(format!("log {log}: {count} not seen and not told, {first:?} among them"));
        }
        let untold = follower.untold(&published[log]);
        if let Some(first) = untold.first() {
            let (count, position) = (untold.len(), &follower.position);
            faults.push(format!(
                "log {log}: {count} without a number, and no word of it, {first:?} among them: {position:?}"
            ));
        }
        if follower.position.is_none() {
            faults.push(format!("log {log}: no position in the end"));
        }
    }
    let known: Vec<BTreeSet<Said>> = published
        .iter()
        .map(|published| published.iter().map(|message| message.said).collect())
        .collect();
    for ((log, epoch), messages) in &logs {
        let mut last: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut once = BTreeSet::new();
        for (seq, said) in messages {
            if !known[*log].contains(said) {
                faults.push(format!("log {log}: {said:?} was never published to it"));
            }
            if !once.insert(*said) {
                faults.push(format!("log {log}: {said:?} has two numbers in {epoch}"));
            }
            let before = last.insert(said.0, (*seq, said.1));
            if let Some((earlier, n)) = before.filter(|(_, n)| *n > said.1) {
                let publisher = said.0;
                faults.push(format!(
                    "log {log}: {publisher} was overtaken: its {n} is {earlier}, its {} is {seq}",
                    said.1
                ));
            }
        }
    }
    faults
}

/// How many messages have numbers in more than one epoch of their log.
pub fn numbered_again(followers: &[Follower]) -> usize {
    let mut epochs: BTreeMap<(usize, Said), BTreeSet<&str>> = BTreeMap::new();
    for follower in followers {
        for (epoch, _, said) in &follower.numbered {
            epochs.entry((follower.log, *said)).or_default().insert(epoch);
        }
    }
    epochs.values().filter(|epochs| epochs.len() > 1).count()
}
