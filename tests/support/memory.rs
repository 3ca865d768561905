//! [`PubSub`] and [`OrderedLog`] within one process: hubs that share a [`MemoryBroker`] are instances to each
//! other.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use realtime_service::bridge::{
    Answer, BridgeCounters, BridgeState, DropReason, Handler, Incoming, KeptMessage, Logged,
    NotClosed, OrderedLog, Outgoing, PubSub, QUEUE_MESSAGES, Reading,
};
use realtime_service::hub::{Delivery, Target};
use realtime_service::protocol::{Draft, Position};
use realtime_service::runtime::threads::Threads;

/// Messages that a log keeps.
const KEPT: usize = 100;

/// Connects any number of instances in one process; clones are the same broker.
#[derive(Clone, Default)]
pub struct MemoryBroker(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    members: Vec<Sender<Incoming>>,
    logs: HashMap<Target, Log>,
    epochs: u64,
}

struct Log {
    epoch: Arc<str>,
    messages: VecDeque<(Instant, Logged)>,
    seq: u64,
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

    /// Under one lock, so that all members see one order.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, target: &Target) -> Arc<str> {
        self.epochs += 1;
        let epoch: Arc<str> = format!("memory-{}", self.epochs).into();
        let log = Log { epoch: Arc::clone(&epoch), messages: VecDeque::new(), seq: 0 };
        self.logs.insert(target.clone(), log);
        epoch
    }

    fn log(&mut self, target: &Target) -> &mut Log {
        if !self.logs.contains_key(target) {
            self.begin(target);
        }
        self.logs.get_mut(target).unwrap()
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
    own: Sender<Incoming>,
    ticket: u64,
    ended: Receiver<Infallible>,
}

impl MemoryPubSub {
    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> Option<Sender<Incoming>> {
        self.life().as_ref().map(|life| life.own.clone())
    }

    fn try_publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        let own = self.own().ok_or(DropReason::Disconnected)?;
        if matches!(outgoing.target, Target::Admins | Target::Seller(_)) {
            return Err(DropReason::NotPublishable);
        }
        let draft = Draft::object(&[&outgoing.members]);
        let delivery = Delivery { target: outgoing.target, draft };
        let mut all = Ok(());
        let state = self.broker.state();
        for member in state.members.iter().filter(|member| !member.same_channel(&own)) {
            if member.len() >= QUEUE_MESSAGES {
                all = Err(DropReason::QueueFull);
            } else {
                let _ = member.send(Incoming::Message(delivery.clone()));
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
        let (own, messages) = unbounded();
        let (alive, ended) = bounded(0);
        let counters = Arc::clone(&self.counters);
        self.threads.spawn("memory-sub", move || {
            let _alive = alive;
            for incoming in [Incoming::BrokenOff, Incoming::Back].into_iter().chain(messages) {
                if matches!(incoming, Incoming::Message(_) | Incoming::Logged(_)) {
                    counters.received.inc();
                }
                if handler(incoming).is_break() {
                    break;
                }
            }
        })?;
        self.broker.state().members.push(own.clone());
        *life = Some(Life { own, ticket: 0, ended });
        Ok(())
    }

    fn ordered_log(&self) -> Option<&dyn OrderedLog> {
        Some(self)
    }

    fn state(&self) -> BridgeState {
        if self.life().is_some() { BridgeState::Connected } else { BridgeState::Disconnected }
    }

    fn counters(&self) -> &Arc<BridgeCounters> {
        &self.counters
    }

    fn close(&self, deadline: Instant) -> Result<(), NotClosed> {
        let Some(Life { own, ended, .. }) = self.life().take() else { return Ok(()) };
        self.broker.state().members.retain(|member| !member.same_channel(&own));
        let queued = own.len();
        drop(own);
        match ended.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(NotClosed { queued }),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }
}

/// It never loses anything, and is never away.
impl OrderedLog for MemoryPubSub {
    fn append(&self, outgoing: Outgoing) -> Result<u64, DropReason> {
        let mut life = self.life();
        let life = life.as_mut().ok_or(DropReason::Disconnected)?;
        life.ticket += 1;
        self.counters.published.inc();
        let draft = Draft::object(&[&outgoing.members]);
        let mut state = self.broker.state();
        if outgoing.target == Target::Everyone {
            let (target, ticket) = (outgoing.target, life.ticket);
            for member in &state.members {
                let is_own = member.same_channel(&life.own);
                let delivery = Delivery { target: target.clone(), draft: draft.clone() };
                let returned = || Incoming::Returned { target: target.clone(), ticket };
                let incoming = if is_own { returned() } else { Incoming::Message(delivery) };
                let _ = member.send(incoming);
            }
            return Ok(ticket);
        }
        let log = state.log(&outgoing.target);
        log.seq += 1;
        let position = Position { epoch: Arc::clone(&log.epoch), seq: log.seq };
        let logged = Logged { target: outgoing.target, position, ticket: None, draft };
        log.messages.push_back((Instant::now(), logged.clone()));
        while log.messages.len() > KEPT {
            log.messages.pop_front();
        }
        for member in &state.members {
            let ticket = member.same_channel(&life.own).then_some(life.ticket);
            let _ = member.send(Incoming::Logged(Logged { ticket, ..logged.clone() }));
        }
        Ok(life.ticket)
    }

    fn read(&self, reading: Reading) {
        let Some(own) = self.own() else { return };
        let Reading { number: reading, target, since, from_start } = reading;
        let mut state = self.broker.state();
        let log = state.log(&target);
        let first = match since {
            Some(since) if since.epoch == log.epoch => since.seq + 1,
            _ if from_start => 0,
            _ => u64::MAX,
        };
        let wanted = log.messages.iter().filter(|(_, logged)| logged.position.seq >= first);
        let messages = wanted.map(|(at, logged)| KeptMessage {
            seq: logged.position.seq,
            age: at.elapsed(),
            ticket: None,
            draft: logged.draft.clone(),
        });
        let position = Position { epoch: Arc::clone(&log.epoch), seq: log.seq };
        let answer = Ok(Answer { position, messages: messages.collect() });
        let _ = own.send(Incoming::Marked { target: target.clone(), reading });
        let _ = own.send(Incoming::Answer { target, reading, answer });
    }

    fn renew(&self, target: Option<Target>, renewal: u64) {
        let Some(own) = self.own() else { return };
        let mut state = self.broker.state();
        let all: Vec<_> = match &target {
            Some(target) => vec![target.clone()],
            None => state.logs.keys().cloned().collect(),
        };
        for target in all {
            let epoch = state.begin(&target);
            for member in &state.members {
                let renewal = member.same_channel(&own).then_some(renewal);
                let (target, epoch) = (target.clone(), Arc::clone(&epoch));
                let _ = member.send(Incoming::Renewed { target, epoch, renewal });
            }
        }
        if target.is_none() {
            let _ = own.send(Incoming::AllRenewed(renewal));
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
