//! The thread `redis-sub`: reads the subscription, and notices when it is dead.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{Connection, Msg, RedisError, Value, cmd};

use super::{PING_AFTER, SessionError, Shared, StopSignal, TIMEOUT, Throttle, describe};
use crate::bridge::backoff::Backoff;
use crate::bridge::inbox::{Inbound, Inbox};
use crate::bridge::{DropReason, Handler, Incoming, Logged};
use crate::runtime::count::Kind;

/// Longest wait for a message. What Redis had confirmed before such a wait began, it has also sent.
const SLICE: Duration = Duration::from_millis(500);
/// Probes that may be missing while other messages come: they may only stand behind those.
const MISSING_PROBES_UNDER_LOAD: u64 = 10;
/// Longest wait for the answer when a subscription is left; Redis may be dead.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(50);
/// Most characters of a channel's name in a log line.
const LOGGED_CHANNEL: usize = 160;

pub(super) struct Subscriber {
    shared: Arc<Shared>,
    inbox: Inbox,
    handler: Handler,
    stopped: StopSignal,
    backoff: Backoff,
    was_connected: bool,
    junk: Throttle,
}

/// What shows that a subscription lives.
struct Proof {
    /// Number of the last probe that came back; at first, of the last one before the subscription.
    probe: u64,
    /// Highest ticket that came back; at first, of the last append before the subscription.
    ticket: u64,
    /// When anything was last heard.
    heard: Instant,
    /// The generation of the connection.
    generation: u64,
}

impl Subscriber {
    pub(super) fn new(shared: &Arc<Shared>, handler: Handler, stopped: StopSignal) -> Self {
        Self {
            inbox: Inbox::new(shared.instance, shared.has_log()),
            shared: Arc::clone(shared),
            handler,
            stopped,
            backoff: Backoff::default(),
            was_connected: false,
            junk: Throttle::default(),
        }
    }

    /// Connects, again and again, until it is stopped or nobody takes messages any more.
    pub(super) fn run(mut self) {
        loop {
            let end = self.session();
            if end.is_err() {
                self.shared.count_loss();
            }
            self.shared.link.subscriber_down(end.as_ref().err());
            if matches!(end, Err(SessionError::NoProbe)) {
                self.shared.renew_all();
            } else if self.shared.has_log() {
                // It watches over how long the subscription is lost.
                self.shared.wake_publisher();
            }
            if end.is_ok() || self.stopped.wait(self.backoff.next()) {
                break;
            }
        }
    }

    /// Serves one connection. `Ok` when it was stopped.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        connection.send_packed_command(&cmd("ROLE").get_packed_command())?;
        self.shared.check_role(connection.recv_response()?)?;
        self.subscribe(&mut connection)?;
        if std::mem::replace(&mut self.was_connected, true) {
            self.shared.counters.reconnects.inc();
        }
        if (self.handler)(Incoming::BrokenOff).is_break() {
            return Ok(());
        }
        let mut subscription = connection.as_pubsub();
        let end = self.read(&mut subscription, generation);
        // Its drop unsubscribes and waits for the answer; not for long.
        let _ = subscription.set_read_timeout(Some(LEAVE_TIMEOUT));
        end
    }

    /// Subscribes by hand, since `PubSub::psubscribe` takes a refusal for a success. Redis confirms each
    /// pattern; `get_message` skips the confirmations after the first.
    fn subscribe(&self, connection: &mut Connection) -> Result<(), SessionError> {
        let patterns = self.shared.channels.patterns(self.shared.has_log());
        let command = cmd("PSUBSCRIBE").arg(&patterns).get_packed_command();
        connection.send_packed_command(&command)?;
        match connection.recv_response()? {
            Value::ServerError(error) => Err(SessionError::Refused(describe(&error.into()))),
            _ => Ok(()),
        }
    }

    fn read(
        &mut self,
        subscription: &mut redis::PubSub<'_>,
        generation: u64,
    ) -> Result<(), SessionError> {
        subscription.set_read_timeout(Some(SLICE))?;
        let mut proof = Proof {
            probe: self.shared.confirmed_probe(),
            ticket: self.shared.confirmed_ticket(),
            heard: Instant::now(),
            generation,
        };
        self.shared.wake_publisher();
        while !self.has_ended(&proof) {
            if self.shared.generation() != proof.generation {
                return Err(SessionError::Renewed);
            }
            let confirmed = (self.shared.confirmed_probe(), self.shared.confirmed_ticket());
            match subscription.get_message() {
                Ok(message) => {
                    proof.heard = Instant::now();
                    if self.take(&message, &mut proof).is_break() {
                        break;
                    }
                    if self.missing_probes(&proof) >= MISSING_PROBES_UNDER_LOAD {
                        return Err(SessionError::NoProbe);
                    }
                }
                Err(error) if error.is_timeout() => {
                    if self.stopped.is_set() {
                        break;
                    }
                    if confirmed.0 > proof.probe || confirmed.1 > proof.ticket {
                        return Err(SessionError::NoProbe);
                    }
                    ping_if_silent(subscription, &mut proof)?;
                }
                Err(error) if is_interrupted(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether nothing is awaited any more: it is stopped, and what the publisher has appended is back.
    fn has_ended(&self, proof: &Proof) -> bool {
        self.stopped.is_set()
            && (!self.shared.has_log()
                || proof.probe >= self.shared.last_probe.load(Ordering::Acquire))
    }

    fn take(&mut self, message: &Msg, proof: &mut Proof) -> ControlFlow<()> {
        let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
        match self.inbox.read(&self.shared.channels, channel, payload) {
            Inbound::Deliver(incoming) => {
                match &incoming {
                    Incoming::Logged(Logged { ticket: Some(ticket), .. })
                    | Incoming::Returned { ticket, .. } => {
                        proof.ticket = proof.ticket.max(*ticket);
                    }
                    Incoming::Message(_) | Incoming::Logged(_) => {
                        self.shared.counters.received.inc();
                    }
                    _ => {}
                }
                return (self.handler)(incoming);
            }
            Inbound::Own => {}
            Inbound::Probe(number) => {
                proof.probe = number;
                // What was appended before this subscription comes through none. The next probe covers what
                // this lets go by mistake.
                proof.ticket = proof.ticket.max(self.shared.confirmed_ticket());
                // After a renewal this connection is about to be given up, and proves nothing.
                if self.shared.generation() == proof.generation {
                    self.proved();
                }
            }
            Inbound::Drop(reason) => self.dropped(reason, channel, payload.len()),
        }
        ControlFlow::Continue(())
    }

    fn proved(&mut self) {
        self.backoff.reset();
        if self.shared.link.probe_returned() && self.shared.has_log() {
            // It tells that messages flow again.
            self.shared.wake_publisher();
        }
    }

    /// Probes that were sent since the last one that came back.
    fn missing_probes(&self, proof: &Proof) -> u64 {
        self.shared.confirmed_probe().saturating_sub(proof.probe)
    }

    fn dropped(&mut self, reason: DropReason, channel: &str, payload_bytes: usize) {
        self.shared.counters.dropped.add(reason, 1);
        // Nobody has to mend anything when a message comes twice.
        if reason == DropReason::Repeated {
            return;
        }
        if let Some(held_back) = self.junk.pass() {
            let channel: String = channel.chars().take(LOGGED_CHANNEL).collect();
            log::warn!(
                reason = reason.as_str(), channel = channel.as_str(), payload_bytes, held_back;
                "dropped a message from redis"
            );
        }
    }
}

/// Only needed while there is no publisher, and so no probes. A ping that times out would swallow the next
/// message, so then the session ends.
fn ping_if_silent(
    subscription: &mut redis::PubSub<'_>,
    proof: &mut Proof,
) -> Result<(), SessionError> {
    if proof.heard.elapsed() >= PING_AFTER {
        subscription.set_read_timeout(Some(TIMEOUT))?;
        let _: Value = subscription.ping()?;
        subscription.set_read_timeout(Some(SLICE))?;
        proof.heard = Instant::now();
    }
    Ok(())
}

/// Whether a signal ended the read, such as when the process was stopped and continued.
fn is_interrupted(error: &RedisError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
}
