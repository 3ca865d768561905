//! Whose message the hub serves next: deficit round robin between publishers (Shreedhar and Varghese,
//! 1995), where one that had nothing waiting comes before those that have (RFC 8290, section 4.2).
//!
//! Each publisher has a queue of its own. A turn lets it be served until its credit, [`QUANTUM`] a round, is
//! used up; what a message costs beyond that is a debt, which it pays by waiting further rounds. So a
//! publisher waits for what others *may* be served, never for what they have queued:
//!
//! - one that had nothing waiting and owes nothing, for one turn of each publisher that is active: at most
//!   two quanta each, or one message that costs more than that;
//! - one that has more waiting, for two such turns of each.
//!
//! What a message costs is the core's to say: about the time that it takes, in sends (`Hub::serve`).
//!
//! Pure: no clock, no thread.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use slotmap::{SlotMap, new_key_type};

/// What a publisher of weight 1 may cost in a round, in sends.
pub const QUANTUM: i64 = 1000;
/// Emptied queues that are kept for the next publishers, so that a lone message allocates nothing.
const SPARE_QUEUES: usize = 64;

new_key_type! {
    struct FlowKey;
}

/// What a publisher gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Quanta in a round.
    pub weight: u32,
    /// Whether its first message, when it had nothing waiting and owed nothing, comes before what waits.
    pub comes_first: bool,
}

/// What waits, by publisher `P`.
pub struct Schedule<P, T> {
    keys: HashMap<P, FlowKey>,
    flows: SlotMap<FlowKey, Flow<P, T>>,
    /// Publishers that had nothing waiting and owed nothing when their first message came.
    new: VecDeque<FlowKey>,
    /// All others, in the order of their turns.
    old: VecDeque<FlowKey>,
    /// The publisher whose message was served last, until it is charged.
    served: Option<FlowKey>,
    /// Messages in all queues.
    waiting: usize,
    /// Publishers that have messages waiting.
    active: usize,
    spare: Vec<VecDeque<T>>,
}

/// One publisher's queue.
struct Flow<P, T> {
    publisher: P,
    messages: VecDeque<T>,
    /// What it may still cost in this turn; at or below zero it waits.
    credit: i64,
    /// What a round adds.
    quantum: i64,
    is_new: bool,
}

impl<P: Eq + Hash + Clone, T> Default for Schedule<P, T> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            flows: SlotMap::with_key(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            served: None,
            waiting: 0,
            active: 0,
            spare: Vec::new(),
        }
    }
}

impl<P: Eq + Hash + Clone, T> Schedule<P, T> {
    /// Puts a message behind all others of its publisher, whose share holds until it has nothing waiting and
    /// owes nothing.
    pub fn push(&mut self, publisher: &P, share: Share, message: T) {
        let key = match self.keys.get(publisher) {
            Some(key) => *key,
            None => self.enter(publisher, share),
        };
        if let Some(flow) = self.flows.get_mut(key) {
            self.active += usize::from(flow.messages.is_empty());
            flow.messages.push_back(message);
            self.waiting += 1;
        }
    }

    fn enter(&mut self, publisher: &P, share: Share) -> FlowKey {
        let quantum = QUANTUM.saturating_mul(i64::from(share.weight.max(1)));
        let key = self.flows.insert(Flow {
            publisher: publisher.clone(),
            messages: self.spare.pop().unwrap_or_default(),
            credit: quantum,
            quantum,
            is_new: share.comes_first,
        });
        self.keys.insert(publisher.clone(), key);
        if share.comes_first { &mut self.new } else { &mut self.old }.push_back(key);
        key
    }

    /// The message to serve now. Its cost is due before the next call, see [`Self::charge`].
    pub fn next(&mut self) -> Option<T> {
        if self.waiting == 0 {
            // Debts are owed to those who wait; nobody does.
            self.clear();
            return None;
        }
        loop {
            let is_new = !self.new.is_empty();
            let key = *if is_new { self.new.front() } else { self.old.front() }?;
            let Some(flow) = self.flows.get_mut(key) else {
                self.rotate(is_new, false);
                continue;
            };
            if flow.credit <= 0 {
                flow.credit = flow.credit.saturating_add(flow.quantum);
                flow.is_new = false;
                self.rotate(is_new, true);
                continue;
            }
            if let Some(message) = flow.messages.pop_front() {
                self.active -= usize::from(flow.messages.is_empty());
                self.waiting -= 1;
                self.served = Some(key);
                return Some(message);
            }
            // It owes nothing and has nothing. A new one stands in line once more before it is
            // forgotten, so that sending now and then is not a way to come first every time.
            let stays = std::mem::take(&mut flow.is_new);
            self.rotate(is_new, stays);
            if !stays {
                self.forget(key);
            }
        }
    }

    /// The next message of publishers that had nothing waiting and owed nothing, if any is left in their first
    /// turn; else as [`Self::next`].
    pub fn next_newcomer(&mut self) -> Option<T> {
        let flow = self.new.front().and_then(|key| self.flows.get(*key))?;
        let is_in_its_turn = flow.credit > 0 && !flow.messages.is_empty();
        if is_in_its_turn { self.next() } else { None }
    }

    /// Charges the message that [`Self::next`] returned last.
    pub fn charge(&mut self, cost: usize) {
        if let Some(flow) = self.served.take().and_then(|key| self.flows.get_mut(key)) {
            let cost = i64::try_from(cost).unwrap_or(i64::MAX);
            flow.credit = flow.credit.saturating_sub(cost);
        }
    }

    /// Puts back what is left of the message that [`Self::next`] returned last, before it is charged: it
    /// stays the first of its publisher.
    pub fn put_back(&mut self, rest: T) {
        if let Some(flow) = self.served.and_then(|key| self.flows.get_mut(key)) {
            self.active += usize::from(flow.messages.is_empty());
            flow.messages.push_front(rest);
            self.waiting += 1;
        }
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Publishers that have messages waiting.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Takes the first of a list off, or puts it last on the list of those that wait for their turn.
    fn rotate(&mut self, is_new: bool, stays: bool) {
        let first = if is_new { self.new.pop_front() } else { self.old.pop_front() };
        if let (Some(key), true) = (first, stays) {
            self.old.push_back(key);
        }
    }

    fn forget(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.remove(key) {
            self.keys.remove(&flow.publisher);
            if self.spare.len() < SPARE_QUEUES {
                self.spare.push(flow.messages);
            }
        }
    }

    fn clear(&mut self) {
        if !self.flows.is_empty() {
            let keys: Vec<_> = self.flows.keys().collect();
            keys.into_iter().for_each(|key| self.forget(key));
            self.new.clear();
            self.old.clear();
        }
    }
}

#[cfg(test)]
mod tests;
