//! [`PubSub`] within one process: hubs that share a [`MemoryBroker`] are instances to each other.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use realtime_service::bridge::{
    BridgeCounters, BridgeState, DropReason, Handler, Incoming, NotClosed, Outgoing, PubSub,
    QUEUE_MESSAGES,
};
use realtime_service::hub::{Delivery, Target};
use realtime_service::protocol::Draft;
use realtime_service::runtime::threads::Threads;

/// Connects any number of instances in one process; clones are the same broker.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    members: Arc<Mutex<Vec<Sender<Delivery>>>>,
}

impl MemoryBroker {
    /// A further instance. It takes part from its start on; its thread is started through `threads`.
    pub fn connect(&self, threads: Threads) -> MemoryPubSub {
        MemoryPubSub {
            broker: self.clone(),
            threads,
            counters: Arc::default(),
            life: Mutex::default(),
        }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Sender<Delivery>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One instance of a [`MemoryBroker`]. A queue of 10,000 messages leads to each instance; the bound in
/// bytes is not kept.
pub struct MemoryPubSub {
    broker: MemoryBroker,
    threads: Threads,
    counters: Arc<BridgeCounters>,
    life: Mutex<Option<Life>>,
}

struct Life {
    /// Our own place among the members.
    own: Sender<Delivery>,
    ended: Receiver<Infallible>,
}

impl MemoryPubSub {
    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        let own = match &*self.life() {
            Some(life) => life.own.clone(),
            None => return Err(DropReason::Disconnected),
        };
        if matches!(outgoing.target, Target::Admins | Target::Seller(_)) {
            return Err(DropReason::NotPublishable);
        }
        let draft = Draft::object(&[&outgoing.members]);
        let delivery = Delivery { target: outgoing.target, draft };
        let mut all = Ok(());
        // Under the lock, so that all members see one order.
        let members = self.broker.members();
        for member in members.iter().filter(|member| !member.same_channel(&own)) {
            if member.try_send(delivery.clone()).is_err() {
                all = Err(DropReason::QueueFull);
            }
        }
        all
    }
}

impl PubSub for MemoryPubSub {
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        let result = self.try_publish(outgoing);
        match result {
            Ok(()) => {
                self.counters.published.inc();
            }
            Err(reason) => self.counters.dropped.add(reason, 1),
        }
        result
    }

    fn start(&self, handler: Handler) -> io::Result<()> {
        let mut life = self.life();
        if life.is_some() {
            let text = "the bridge was started before";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let (own, messages) = bounded(QUEUE_MESSAGES);
        let (alive, ended) = bounded(0);
        let counters = Arc::clone(&self.counters);
        self.threads.spawn("memory-sub", move || {
            let _alive = alive;
            if handler(Incoming::BrokenOff).is_break() {
                return;
            }
            for delivery in messages {
                counters.received.inc();
                if handler(Incoming::Message(delivery)).is_break() {
                    break;
                }
            }
        })?;
        self.broker.members().push(own.clone());
        *life = Some(Life { own, ended });
        Ok(())
    }

    fn state(&self) -> BridgeState {
        if self.life().is_some() { BridgeState::Connected } else { BridgeState::Disconnected }
    }

    fn counters(&self) -> &Arc<BridgeCounters> {
        &self.counters
    }

    fn close(&self, deadline: Instant) -> Result<(), NotClosed> {
        let Some(Life { own, ended }) = self.life().take() else { return Ok(()) };
        self.broker.members().retain(|member| !member.same_channel(&own));
        let queued = own.len();
        drop(own);
        match ended.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(NotClosed { queued }),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }
}

mod tests {
    use super::*;
    use realtime_service::protocol::frame_payload;
    use std::ops::ControlFlow;
    use std::time::Duration;

    fn outgoing(n: usize) -> Outgoing {
        Outgoing { target: Target::Everyone, members: format!("\"n\":{n}}}").into() }
    }

    fn member(broker: &MemoryBroker) -> (MemoryPubSub, Receiver<String>) {
        let pubsub = broker.connect(Threads::default());
        let (sender, received) = bounded(QUEUE_MESSAGES);
        pubsub
            .start(Arc::new(move |incoming| {
                if let Incoming::Message(delivery) = incoming {
                    let frame = delivery.draft.complete(None).frame;
                    let _ = sender.send(String::from_utf8(frame_payload(&frame).to_vec()).unwrap());
                }
                ControlFlow::Continue(())
            }))
            .unwrap();
        (pubsub, received)
    }

    #[test]
    fn others_get_messages_in_order_and_the_publisher_does_not() {
        let broker = MemoryBroker::default();
        let ((a, at_a), (b, at_b), (c, at_c)) = (member(&broker), member(&broker), member(&broker));
        for n in 0..100 {
            a.publish(outgoing(n)).unwrap();
        }
        b.publish(outgoing(100)).unwrap();
        let timeout = Duration::from_secs(5);
        for n in 0..=100 {
            let expected = format!("{{\"n\":{n}}}");
            assert_eq!(at_c.recv_timeout(timeout).unwrap(), expected);
            let other = if n < 100 { &at_b } else { &at_a };
            assert_eq!(other.recv_timeout(timeout).unwrap(), expected);
        }
        assert_eq!(a.counters().published(), 100);
        let deadline = Instant::now() + timeout;
        for pubsub in [&a, &b, &c] {
            pubsub.close(deadline).unwrap();
        }
        assert_eq!(a.publish(outgoing(0)), Err(DropReason::Disconnected));
        assert!(at_a.try_recv().is_err() && at_b.try_recv().is_err());
    }
}
