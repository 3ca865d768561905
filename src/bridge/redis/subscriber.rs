//! The thread `redis-sub`: reads what the patterns bring, and notices when they bring nothing more.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Connection, Msg, RedisError, Value, cmd};

use super::{MISSING_PROBES, PING_AFTER, SessionError, Shared, StopSignal, Throttle, describe};
use crate::bridge::backoff::Backoff;
use crate::bridge::inbox::{Inbound, Inbox};
use crate::bridge::{DropReason, Handler};
use crate::runtime::count::Kind;

/// How long leaving a subscription may wait for a peer that may be dead.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(50);
/// Characters of a channel's name in a log line.
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
    /// The last probe that came back; at first the last one sent before it could.
    probe: u64,
    /// When anything was last heard.
    heard: Instant,
    /// The generation of the connection.
    generation: u64,
}

impl Subscriber {
    pub(super) fn new(shared: &Arc<Shared>, handler: Handler, stopped: StopSignal) -> Self {
        Self {
            inbox: Inbox::new(shared.instance),
            shared: Arc::clone(shared),
            handler,
            stopped,
            backoff: Backoff::default(),
            was_connected: false,
            junk: Throttle::default(),
        }
    }

    /// Until it is stopped, or nobody takes deliveries.
    pub(super) fn run(mut self) {
        loop {
            let end = self.session();
            self.shared.link.subscriber_down(end.as_ref().err());
            if matches!(end, Err(SessionError::NoProbe)) {
                self.shared.renew_both();
            }
            if end.is_ok() || self.stopped.wait(self.backoff.next()) {
                break;
            }
        }
    }

    /// One connection; `Ok` when it was stopped.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        connection.send_packed_command(&cmd("ROLE").get_packed_command())?;
        self.shared.check_role(connection.recv_response()?)?;
        self.subscribe(&mut connection)?;
        if std::mem::replace(&mut self.was_connected, true) {
            self.shared.counters.reconnects.inc();
        }
        let mut subscription = connection.as_pubsub();
        let end = self.read(&mut subscription, generation);
        // Dropping it asks to leave and waits for the answer.
        let _ = subscription.set_read_timeout(Some(LEAVE_TIMEOUT));
        end
    }

    /// By hand, since `PubSub::psubscribe` takes a refusal for a success. The confirmations after the
    /// first are skipped by `get_message`.
    fn subscribe(&self, connection: &mut Connection) -> Result<(), SessionError> {
        let command = cmd("PSUBSCRIBE").arg(&self.shared.channels.patterns()).get_packed_command();
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
        let mut proof =
            Proof { probe: self.shared.confirmed_probe(), heard: Instant::now(), generation };
        let _ = self.shared.probe_now.try_send(());
        while !self.stopped.is_set() {
            if self.shared.generation() != proof.generation {
                return Err(SessionError::Renewed);
            }
            match subscription.get_message() {
                Ok(message) => {
                    proof.heard = Instant::now();
                    if self.take(&message, &mut proof).is_break() {
                        break;
                    }
                }
                Err(error) if error.is_timeout() => self.check(subscription, &mut proof)?,
                Err(error) if is_interrupted(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Msg, proof: &mut Proof) -> ControlFlow<()> {
        let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
        match self.inbox.read(&self.shared.channels, channel, payload) {
            Inbound::Deliver(delivery) => {
                self.shared.counters.received.inc();
                return (self.handler)(delivery);
            }
            Inbound::Own => {}
            Inbound::Probe(number) => {
                proof.probe = number;
                // Else this connection is about to be given up.
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
        self.shared.link.probe_returned();
    }

    /// Nothing was heard for the length of a read timeout: is the subscription alive?
    fn check(
        &mut self,
        subscription: &mut redis::PubSub<'_>,
        proof: &mut Proof,
    ) -> Result<(), SessionError> {
        if self.shared.confirmed_probe().saturating_sub(proof.probe) >= MISSING_PROBES {
            return Err(SessionError::NoProbe);
        }
        // Only while the publisher is away: else probes are heard all the time. A ping that times out
        // would swallow the next message, so it ends the session.
        if proof.heard.elapsed() >= PING_AFTER {
            let _: Value = subscription.ping()?;
            proof.heard = Instant::now();
        }
        Ok(())
    }

    fn dropped(&mut self, reason: DropReason, channel: &str, payload_bytes: usize) {
        self.shared.counters.dropped.add(reason, 1);
        // A repeated message is no one's mistake.
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

/// A read with a timeout ends so after the process was stopped and continued.
fn is_interrupted(error: &RedisError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::Interrupted)
}
