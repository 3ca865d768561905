//! The queue between the hub and the publisher: bounded in messages and bytes, open while connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{BridgeCounters, DropReason, Outgoing, QUEUE_BYTES, QUEUE_MESSAGES};
use crate::hub::Target;

/// The end that the hub has.
#[derive(Debug)]
pub(super) struct Queue {
    messages: Sender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    connected: AtomicBool,
    closed: AtomicBool,
    counters: Arc<BridgeCounters>,
}

/// The end that the publisher has.
#[derive(Debug)]
pub(super) struct QueueReceiver {
    /// For `select!`; whoever receives must call [`QueueReceiver::taken`].
    pub(super) messages: Receiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends of a queue that does not take messages yet.
pub(super) fn queue(counters: Arc<BridgeCounters>) -> (Queue, QueueReceiver) {
    let (sender, receiver) = bounded(QUEUE_MESSAGES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue = Queue {
        messages: sender,
        bytes: Arc::clone(&bytes),
        connected: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        counters,
    };
    (queue, QueueReceiver { messages: receiver, bytes })
}

impl Queue {
    /// Takes a message, or counts it as dropped; never waits.
    pub(super) fn offer(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        self.try_offer(outgoing).inspect_err(|reason| self.counters.dropped.add(*reason, 1))
    }

    fn try_offer(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        if matches!(outgoing.target, Target::Admins | Target::Seller(_)) {
            return Err(DropReason::NotPublishable);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(DropReason::Closed);
        }
        if !self.connected.load(Ordering::Acquire) {
            return Err(DropReason::Disconnected);
        }
        let bytes = outgoing.members.len();
        if self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes <= QUEUE_BYTES
            && self.messages.try_send(outgoing).is_ok()
        {
            return Ok(());
        }
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        Err(DropReason::QueueFull)
    }

    /// Whether the publisher has a connection: without one, messages are dropped at once.
    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
    }

    /// Refuses further messages.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Number of messages that wait.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }
}

impl QueueReceiver {
    /// The next message, if one waits.
    pub(super) fn take(&self) -> Option<Outgoing> {
        let outgoing = self.messages.try_recv().ok()?;
        self.taken(&outgoing);
        Some(outgoing)
    }

    /// Makes room for others, after a message was received.
    pub(super) fn taken(&self, outgoing: &Outgoing) {
        self.bytes.fetch_sub(outgoing.members.len(), Ordering::AcqRel);
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
        queue.set_connected(true);
        (queue, receiver)
    }

    #[test]
    fn it_holds_ten_thousand_messages() {
        let (queue, receiver) = open();
        for _ in 0..QUEUE_MESSAGES {
            queue.offer(message(2)).unwrap();
        }
        assert_eq!(queue.offer(message(2)), Err(DropReason::QueueFull));
        assert!(receiver.take().is_some());
        queue.offer(message(2)).unwrap();
        assert_eq!(queue.counters.dropped(DropReason::QueueFull), 1);
        assert_eq!(queue.len(), QUEUE_MESSAGES);
    }

    #[test]
    fn it_holds_sixteen_mebibytes() {
        let (queue, receiver) = open();
        let mebibyte = QUEUE_BYTES / 16;
        for _ in 0..16 {
            queue.offer(message(mebibyte)).unwrap();
        }
        assert_eq!(queue.offer(message(1)), Err(DropReason::QueueFull));
        let outgoing = receiver.messages.try_recv().unwrap();
        receiver.taken(&outgoing);
        assert_eq!(queue.offer(message(mebibyte + 1)), Err(DropReason::QueueFull));
        queue.offer(message(mebibyte)).unwrap();
    }

    #[test]
    fn it_takes_only_what_can_be_published_now() {
        let (queue, _drain) = queue(Arc::default());
        assert_eq!(queue.offer(message(2)), Err(DropReason::Disconnected));
        queue.set_connected(true);
        for target in [Target::Admins, Target::Seller(Id::parse("5").unwrap())] {
            let outgoing = Outgoing { target, members: Bytes::from_static(b"\"a\":1}") };
            assert_eq!(queue.offer(outgoing), Err(DropReason::NotPublishable));
        }
        queue.close();
        assert_eq!(queue.offer(message(2)), Err(DropReason::Closed));
        assert_eq!(queue.len(), 0);
    }
}
