//! Messages on their way to the broker, which numbers them, and who waits until they are back.

use std::collections::BTreeMap;

use bytes::Bytes;
use slotmap::{SlotMap, new_key_type};

use super::event::ConnectionKey;
use crate::protocol::Target;
use crate::runtime::channel::Sender;
use crate::runtime::clock::Moment;

new_key_type! {
    /// A call that notifies.
    pub(super) struct NotifyKey;
}

/// A message that the broker has, or is to have.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) target: Target,
    /// As in [`Outgoing`](crate::bridge::Outgoing): to deliver it without the broker, if need be.
    pub(super) members: Bytes,
    pub(super) waits: Waits,
    pub(super) since: Moment,
}

/// Who waits for a message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waits {
    /// The connection that broadcast it.
    Connection(ConnectionKey),
    /// A call that notifies; the message's place in it.
    Notify(NotifyKey, usize),
}

/// The broker's ticket, and the place behind it of a message that the broker did not take: so that it is
/// delivered behind those that it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64, u32);

impl Ticket {
    /// The broker's, if it took the message.
    pub(super) fn taken(self) -> Option<u64> {
        (self.1 == 0).then_some(self.0)
    }
}

impl From<u64> for Ticket {
    fn from(ticket: u64) -> Self {
        Self(ticket, 0)
    }
}

/// All of them, in the order in which they were handed over.
#[derive(Default)]
pub(super) struct PendingMessages {
    messages: BTreeMap<Ticket, Pending>,
    last: Ticket,
}

impl PendingMessages {
    /// The broker took this one.
    pub(super) fn insert(&mut self, ticket: u64, pending: Pending) -> Ticket {
        self.last = ticket.into();
        self.messages.insert(self.last, pending);
        self.last
    }

    /// The broker did not take this one.
    pub(super) fn insert_untaken(&mut self, pending: Pending) -> Ticket {
        self.last.1 = self.last.1.saturating_add(1);
        self.messages.insert(self.last, pending);
        self.last
    }

    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Pending> {
        self.messages.remove(&ticket)
    }

    pub(super) fn contains(&self, ticket: Ticket) -> bool {
        self.messages.contains_key(&ticket)
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whom this message is for.
    pub(super) fn target(&self, ticket: Ticket) -> Option<&Target> {
        self.messages.get(&ticket).map(|pending| &pending.target)
    }

    /// All, and whom they are for.
    pub(super) fn targets(&self) -> impl Iterator<Item = (Ticket, &Target)> {
        self.messages.iter().map(|(ticket, pending)| (*ticket, &pending.target))
    }

    /// Those up to this ticket.
    pub(super) fn up_to(&self, last: u64) -> Vec<Ticket> {
        self.messages.range(..=Ticket(last, u32::MAX)).map(|(ticket, _)| *ticket).collect()
    }

    /// Those that were handed over before this moment.
    pub(super) fn before(&self, moment: Moment) -> Vec<Ticket> {
        let is_before = |(_, pending): &(&Ticket, &Pending)| pending.since < moment;
        self.messages.iter().take_while(is_before).map(|(ticket, _)| *ticket).collect()
    }
}

/// A call that notifies, until all its messages are delivered.
struct Notify {
    /// Connections that each reached.
    counts: Vec<usize>,
    /// Messages that are not back yet, and one more while some were not handed over yet.
    left: usize,
    reply: Sender<Vec<usize>>,
    taken: usize,
}

/// The calls whose answers wait.
#[derive(Default)]
pub(super) struct Notifies {
    slots: SlotMap<NotifyKey, Notify>,
}

impl Notifies {
    /// A call of which nothing is delivered.
    pub(super) fn begin(&mut self, reply: Sender<Vec<usize>>, taken: usize) -> NotifyKey {
        self.slots.insert(Notify { counts: Vec::new(), left: 1, reply, taken })
    }

    /// Place of the next message of this call.
    pub(super) fn next_place(&self, key: NotifyKey) -> usize {
        self.slots.get(key).map_or(0, |notify| notify.counts.len())
    }

    /// A further message of this call was delivered, or (`None`) is on its way.
    pub(super) fn push(&mut self, key: NotifyKey, reached: Option<usize>) {
        if let Some(notify) = self.slots.get_mut(key) {
            notify.left += usize::from(reached.is_none());
            notify.counts.push(reached.unwrap_or(0));
        }
    }

    /// A message that was on its way is delivered.
    pub(super) fn deliver(
        &mut self,
        key: NotifyKey,
        place: usize,
        reached: usize,
    ) -> Option<usize> {
        let notify = self.slots.get_mut(key)?;
        if let Some(count) = notify.counts.get_mut(place) {
            *count = reached;
        }
        self.end_one(key)
    }

    /// One thing less to wait for. With the last, the call is answered; returns the bytes that it took.
    pub(super) fn end_one(&mut self, key: NotifyKey) -> Option<usize> {
        let notify = self.slots.get_mut(key)?;
        notify.left = notify.left.saturating_sub(1);
        if notify.left > 0 {
            return None;
        }
        let Notify { counts, reply, taken, .. } = self.slots.remove(key)?;
        // Who asked may have gone.
        let _ = reply.send(counts);
        Some(taken)
    }
}
