//! The thread `redis-pub`: sends what waits in the queue, many messages at once, and the probes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, select};
use redis::{Cmd, Connection, RedisError, Value, cmd};

use super::{PROBE_INTERVAL, SessionError, Shared, StopSignal, Throttle, describe};
use crate::bridge::backoff::Backoff;
use crate::bridge::envelope::Envelope;
use crate::bridge::queue::QueueReceiver;
use crate::bridge::{DropReason, Outgoing};
use crate::config::MIB;

/// Most messages in one pipeline.
const BATCH_MESSAGES: usize = 512;
/// A pipeline that has so many bytes takes no further message.
const BATCH_BYTES: usize = MIB;

pub(super) struct Publisher {
    shared: Arc<Shared>,
    receiver: QueueReceiver,
    probe_asked: Receiver<()>,
    stopped: StopSignal,
    backoff: Backoff,
    /// Number of the last message. Numbers are given in the order of sending, and never twice.
    number: u64,
    /// Number of the last probe.
    probe: u64,
    probe_due: Instant,
    was_connected: bool,
    refusals: Throttle,
}

/// Commands that are sent at once.
#[derive(Default)]
struct Pipeline {
    commands: Vec<u8>,
    messages: usize,
    /// The last two commands are `ROLE` and the probe with this number.
    probe: Option<u64>,
}

impl Publisher {
    pub(super) fn new(
        shared: &Arc<Shared>,
        receiver: QueueReceiver,
        probe_asked: Receiver<()>,
        stopped: StopSignal,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            receiver,
            probe_asked,
            stopped,
            backoff: Backoff::default(),
            number: 0,
            probe: 0,
            probe_due: Instant::now(),
            was_connected: false,
            refusals: Throttle::default(),
        }
    }

    /// Connects, again and again, until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            let end = self.session();
            self.shared.queue.set_connected(false);
            self.drop_queued();
            self.shared.link.publisher_down(end.as_ref().err());
            if end.is_ok() || self.stopped.wait(self.backoff.next()) {
                break;
            }
        }
    }

    /// Serves one connection. `Ok` when it was stopped and has sent what was queued.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        self.drop_queued();
        self.probe_due = Instant::now();
        // A TCP connection alone says little: only an answer shows that Redis is there.
        let first = self.pipeline(None);
        self.send(&mut connection, first)?;
        self.connected();
        loop {
            // Read before the queue is: what was queued before the stop is then still sent.
            let stopping = self.stopped.is_set();
            let first = if stopping { None } else { self.wait() };
            // What was taken from the queue is sent all the same.
            if first.is_none() && self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
            let pipeline = self.pipeline(first);
            let idle = pipeline.messages == 0;
            let sent = self.send(&mut connection, pipeline);
            if matches!(sent, Err(SessionError::Replica)) {
                // It was the master when we connected: the subscriber is to leave it too.
                self.shared.renew_both();
            }
            sent?;
            if stopping && idle {
                break;
            }
            if self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
        }
        // A last probe wakes the subscriber, which then ends at once.
        self.probe_due = Instant::now();
        let last = self.pipeline(None);
        self.send(&mut connection, last)
    }

    fn connected(&mut self) {
        self.backoff.reset();
        if std::mem::replace(&mut self.was_connected, true) {
            self.shared.counters.reconnects.inc();
        }
        self.shared.queue.set_connected(true);
        self.shared.link.publisher_up();
    }

    /// Waits until there is a message, the next probe is due, or it is stopped.
    fn wait(&mut self) -> Option<Outgoing> {
        let pause = self.probe_due.saturating_duration_since(Instant::now());
        select! {
            recv(self.receiver.messages) -> message => {
                let message = message.ok()?;
                self.receiver.taken(&message);
                return Some(message);
            }
            recv(self.probe_asked) -> _ => self.probe_due = Instant::now(),
            recv(self.stopped.0) -> _ => {}
            default(pause) => {}
        }
        None
    }

    /// Takes what waits in the queue, as far as it fits, and adds a probe when one is due.
    fn pipeline(&mut self, first: Option<Outgoing>) -> Pipeline {
        let mut pipeline = Pipeline::default();
        let mut next = first.or_else(|| self.receiver.take());
        while let Some(outgoing) = next {
            self.push(&mut pipeline, &outgoing);
            let full =
                pipeline.messages >= BATCH_MESSAGES || pipeline.commands.len() >= BATCH_BYTES;
            next = if full { None } else { self.receiver.take() };
        }
        let now = Instant::now();
        if now >= self.probe_due {
            self.probe_due = now + PROBE_INTERVAL;
            self.probe += 1;
            pipeline.probe = Some(self.probe);
            cmd("ROLE").write_packed_command(&mut pipeline.commands);
            let number = self.probe.to_string();
            publish(self.shared.channels.probe(), number.as_bytes(), &mut pipeline.commands);
        }
        pipeline
    }

    fn push(&mut self, pipeline: &mut Pipeline, outgoing: &Outgoing) {
        let origin = Envelope { instance: self.shared.instance, number: self.number + 1 };
        let channel = self.shared.channels.of(&outgoing.target);
        // Cannot fail: the queue has checked it.
        let Some(channel) = channel else {
            return self.shared.counters.dropped.add(DropReason::NotPublishable, 1);
        };
        let message = origin.wrap(&outgoing.members);
        self.number += 1;
        pipeline.messages += 1;
        publish(&channel, &message, &mut pipeline.commands);
    }

    /// Sends a pipeline and reads the answers. Messages without an answer count as lost.
    fn send(
        &mut self,
        connection: &mut Connection,
        pipeline: Pipeline,
    ) -> Result<(), SessionError> {
        if pipeline.commands.is_empty() {
            return Ok(());
        }
        let mut answered = 0;
        let sent = connection
            .send_packed_command(&pipeline.commands)
            .map_err(SessionError::from)
            .and_then(|()| self.read_answers(connection, &pipeline, &mut answered));
        let lost = pipeline.messages.saturating_sub(answered);
        self.shared.counters.dropped.add(DropReason::Lost, lost as u64);
        sent
    }

    /// Reads by hand: the crate's own pipeline goes on after a timeout, and waits a second for each of the
    /// other answers.
    fn read_answers(
        &mut self,
        connection: &mut Connection,
        pipeline: &Pipeline,
        answered: &mut usize,
    ) -> Result<(), SessionError> {
        while *answered < pipeline.messages {
            let answer = connection.recv_response()?;
            *answered += 1;
            match answer {
                Value::ServerError(error) => self.refused(&error.into()),
                _ => {
                    self.shared.counters.published.inc();
                }
            }
        }
        let Some(probe) = pipeline.probe else { return Ok(()) };
        let role = connection.recv_response()?;
        match connection.recv_response()? {
            Value::ServerError(error) => Err(RedisError::from(error).into()),
            _ => {
                self.shared.check_role(role)?;
                self.shared.confirmed_probe.store(probe, Ordering::Release);
                Ok(())
            }
        }
    }

    fn refused(&mut self, error: &RedisError) {
        self.shared.counters.dropped.add(DropReason::Refused, 1);
        if let Some(held_back) = self.refusals.pass() {
            let reason = describe(error);
            log::warn!(reason = reason.as_str(), held_back; "redis refused a message");
        }
    }

    fn drop_queued(&self) {
        let mut dropped = 0;
        while self.receiver.take().is_some() {
            dropped += 1;
        }
        self.shared.counters.dropped.add(DropReason::Disconnected, dropped);
    }
}

fn publish(channel: &str, message: &[u8], commands: &mut Vec<u8>) {
    let mut command = Cmd::with_capacity(3, channel.len() + message.len() + 7);
    command.arg("PUBLISH").arg(channel).arg(message);
    command.write_packed_command(commands);
}
