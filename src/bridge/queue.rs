//! The queue between the hub and the publisher: bounded in messages and bytes, open while connected. What is
//! appended to the log is bounded by the hub, which keeps it until it is back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::envelope::ENVELOPE_BYTES;
use super::{BridgeCounters, DropReason, Outgoing, QUEUE_BYTES, QUEUE_MESSAGES};
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::protocol::Target;

/// Longest members of an append: with its envelope, every instance takes it. Its own ticket would not come
/// back otherwise.
const MAX_APPEND_BYTES: usize = MAX_NOTIFICATION_BYTES + ENVELOPE_BYTES / 2;

/// The end that the hub has.
#[derive(Debug)]
pub(super) struct Queue {
    messages: Sender<Queued>,
    bytes: Arc<AtomicUsize>,
    gate: Mutex<Gate>,
    counters: Arc<BridgeCounters>,
}

/// What is taken. Under one lock with the numbers: when it has been closed, nothing slips in any more.
#[derive(Debug, Default)]
struct Gate {
    /// Number of the last message that was taken.
    last: u64,
    /// The publisher has a connection.
    connected: bool,
    /// Messages for the ordered log are taken too.
    appends: bool,
    /// Nothing is taken any more.
    closed: bool,
}

/// A message that waits.
#[derive(Debug)]
pub(super) struct Queued {
    /// Its number: of all messages, in the order of the queue, from 1.
    pub(super) number: u64,
    /// Whether it was appended: it comes back.
    pub(super) is_append: bool,
    pub(super) outgoing: Outgoing,
}

/// The end that the publisher has.
#[derive(Debug)]
pub(super) struct QueueReceiver {
    /// For `select!`; whoever receives must call [`QueueReceiver::taken`].
    pub(super) messages: Receiver<Queued>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends of a queue that does not take messages yet.
pub(super) fn queue(counters: Arc<BridgeCounters>) -> (Queue, QueueReceiver) {
    let (sender, receiver) = unbounded();
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue =
        Queue { messages: sender, bytes: Arc::clone(&bytes), gate: Mutex::default(), counters };
    (queue, QueueReceiver { messages: receiver, bytes })
}

impl Queue {
    /// Takes a message and gives it a number, or counts it as dropped; never waits.
    pub(super) fn offer(&self, outgoing: Outgoing, is_append: bool) -> Result<u64, DropReason> {
        self.try_offer(outgoing, is_append)
            .inspect_err(|reason| self.counters.dropped.add(*reason, 1))
    }

    fn try_offer(&self, outgoing: Outgoing, is_append: bool) -> Result<u64, DropReason> {
        let bytes = outgoing.members.len();
        let publishable = match outgoing.target {
            Target::Room(_) | Target::User(_) | Target::Everyone => {
                !is_append || bytes <= MAX_APPEND_BYTES
            }
            Target::Admins | Target::Seller(_) => false,
        };
        if !publishable {
            return Err(DropReason::NotPublishable);
        }
        let mut gate = self.gate();
        if gate.closed {
            return Err(DropReason::Closed);
        }
        if !(if is_append { gate.appends } else { gate.connected }) {
            return Err(DropReason::Disconnected);
        }
        let number = gate.last + 1;
        let fits = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes <= QUEUE_BYTES
            && self.messages.len() < QUEUE_MESSAGES;
        if (fits || is_append) && self.messages.send(Queued { number, is_append, outgoing }).is_ok()
        {
            gate.last = number;
            return Ok(number);
        }
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        Err(DropReason::QueueFull)
    }

    /// The publisher has a connection.
    pub(super) fn connect(&self) {
        self.gate().connected = true;
    }

    /// It has none: messages are dropped at once.
    pub(super) fn disconnect(&self) {
        let mut gate = self.gate();
        (gate.connected, gate.appends) = (false, false);
    }

    /// Messages for the ordered log are taken from now on.
    pub(super) fn take_appends(&self) {
        self.gate().appends = true;
    }

    /// None is taken from now on; returns the number of the last message that was.
    pub(super) fn refuse_appends(&self) -> u64 {
        let mut gate = self.gate();
        gate.appends = false;
        gate.last
    }

    /// Refuses further messages.
    pub(super) fn close(&self) {
        self.gate().closed = true;
    }

    /// Number of messages that wait.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueReceiver {
    /// The next message, if one waits.
    pub(super) fn take(&self) -> Option<Queued> {
        let queued = self.messages.try_recv().ok()?;
        self.taken(&queued);
        Some(queued)
    }

    /// Makes room for others, after a message was received.
    pub(super) fn taken(&self, queued: &Queued) {
        self.bytes.fetch_sub(queued.outgoing.members.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::protocol::Id;
    use bytes::Bytes;

    fn message(bytes: usize) -> Outgoing {
        Outgoing { target: Target::Everyone, members: vec![b'x'; bytes].into() }
    }

    fn open() -> (Queue, QueueReceiver) {
        let (queue, receiver) = queue(Arc::default());
        queue.connect();
        (queue, receiver)
    }

    #[test]
    fn it_holds_ten_thousand_messages() {
        let (queue, receiver) = open();
        for _ in 0..QUEUE_MESSAGES {
            queue.offer(message(2), false).unwrap();
        }
        assert_eq!(queue.offer(message(2), false), Err(DropReason::QueueFull));
        assert!(receiver.take().is_some());
        queue.offer(message(2), false).unwrap();
        assert_eq!(queue.counters.dropped(DropReason::QueueFull), 1);
        assert_eq!(queue.len(), QUEUE_MESSAGES);
    }

    #[test]
    fn it_holds_sixteen_mebibytes() {
        let (queue, receiver) = open();
        let mebibyte = QUEUE_BYTES / 16;
        for _ in 0..16 {
            queue.offer(message(mebibyte), false).unwrap();
        }
        assert_eq!(queue.offer(message(1), false), Err(DropReason::QueueFull));
        let queued = receiver.messages.try_recv().unwrap();
        receiver.taken(&queued);
        assert_eq!(queue.offer(message(mebibyte + 1), false), Err(DropReason::QueueFull));
        queue.offer(message(mebibyte), false).unwrap();
    }

    #[test]
    fn it_takes_only_what_can_be_published_now() {
        let (queue, _drain) = queue(Arc::default());
        assert_eq!(queue.offer(message(2), false), Err(DropReason::Disconnected));
        queue.connect();
        for target in [Target::Admins, Target::Seller(Id::parse("5").unwrap())] {
            let outgoing = Outgoing { target, members: Bytes::from_static(b"\"a\":1}") };
            assert_eq!(queue.offer(outgoing, false), Err(DropReason::NotPublishable));
        }
        queue.close();
        assert_eq!(queue.offer(message(2), false), Err(DropReason::Closed));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn numbers_rise_over_both_kinds_and_only_by_what_was_taken() {
        let (queue, receiver) = open();
        let room = || Outgoing {
            target: Target::User(Id::parse("5").unwrap()),
            members: Bytes::from_static(b"\"a\":1}"),
        };
        assert_eq!(queue.offer(room(), true), Err(DropReason::Disconnected));
        queue.take_appends();
        assert_eq!(queue.offer(room(), true), Ok(1));
        assert_eq!(queue.offer(message(2), false), Ok(2));
        let admins = || Outgoing { target: Target::Admins, ..message(2) };
        assert_eq!(queue.offer(admins(), true), Err(DropReason::NotPublishable));
        let long = Outgoing { members: vec![b'x'; MAX_APPEND_BYTES + 1].into(), ..room() };
        assert_eq!(queue.offer(long, true), Err(DropReason::NotPublishable));
        assert_eq!(queue.offer(room(), true), Ok(3));
        assert_eq!(queue.refuse_appends(), 3);
        assert_eq!(queue.offer(room(), true), Err(DropReason::Disconnected));
        assert_eq!(queue.offer(room(), false), Ok(4));
        queue.disconnect();
        assert_eq!(queue.offer(room(), false), Err(DropReason::Disconnected));
        let taken: Vec<_> = std::iter::from_fn(|| receiver.take()).collect();
        let taken: Vec<_> = taken.iter().map(|q| (q.number, q.is_append)).collect();
        assert_eq!(taken, [(1, true), (2, false), (3, true), (4, false)]);
    }
}
