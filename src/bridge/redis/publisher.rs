//! The thread `redis-pub`: sends what waits in the queue, many messages at once, and the probes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, select};
use redis::{Cmd, Connection, RedisError, Value, cmd};

use super::script::{By, LogScript, is_forgotten};
use super::{GRACE, PROBE_INTERVAL, SessionError, Shared, StopSignal, Throttle, describe};
use crate::bridge::backoff::Backoff;
use crate::bridge::envelope::Envelope;
use crate::bridge::queue::{QueueReceiver, Queued};
use crate::bridge::{DropReason, Handler, Incoming};
use crate::config::MIB;
use crate::protocol::Target;

/// Most messages in one pipeline.
const BATCH_MESSAGES: usize = 512;
/// A pipeline that has so many bytes takes no further message.
const BATCH_BYTES: usize = MIB;

pub(super) struct Publisher {
    shared: Arc<Shared>,
    handler: Handler,
    receiver: QueueReceiver,
    probe_asked: Receiver<()>,
    stopped: StopSignal,
    backoff: Backoff,
    /// Of the current connection, with an ordered log.
    script: Option<LogScript>,
    /// Whether appends are taken: [`Incoming::Back`] was told, and not [`Incoming::Away`] since.
    is_back: bool,
    /// Number of the last probe.
    probe: u64,
    probe_due: Instant,
    was_connected: bool,
    refusals: Throttle,
}

/// Commands that are sent at once.
struct Pipeline {
    commands: Vec<u8>,
    by: By,
    /// What the commands publish, one each.
    messages: Vec<Queued>,
    /// The last two commands are `ROLE` and the probe with this number.
    probe: Option<u64>,
}

impl Pipeline {
    fn new(by: By) -> Self {
        Self { commands: Vec::new(), by, messages: Vec::new(), probe: None }
    }
}

impl Publisher {
    pub(super) fn new(
        shared: &Arc<Shared>,
        handler: Handler,
        receiver: QueueReceiver,
        probe_asked: Receiver<()>,
        stopped: StopSignal,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            handler,
            receiver,
            probe_asked,
            stopped,
            backoff: Backoff::default(),
            script: None,
            is_back: false,
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
            // In this order: what is taken still, is drained; what is drained, is given up.
            self.shared.queue.disconnect();
            self.drop_queued();
            if end.is_err() {
                self.shared.count_loss();
                self.away();
            }
            self.shared.link.publisher_down(end.as_ref().err());
            if end.is_ok() {
                break;
            }
            if self.stopped.wait(self.backoff.next()) {
                self.shared.last_probe.store(0, Ordering::Release);
                break;
            }
        }
    }

    /// Serves one connection. `Ok` when it was stopped and has sent what was queued.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        if self.shared.has_log() {
            self.script = Some(LogScript::load(&self.shared, &mut connection)?);
        }
        self.probe_due = Instant::now();
        // A TCP connection alone says little: only an answer shows that Redis is there.
        let first = self.pipeline(None);
        self.send(&mut connection, first)?;
        self.connected();
        loop {
            // Read before the queue is: what was queued before the stop is then still sent.
            let stopping = self.stopped.is_set();
            if self.shared.has_log() {
                self.watch();
            }
            let first = if stopping { None } else { self.wait() };
            // What was taken from the queue is sent all the same.
            if first.is_none() && self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
            let pipeline = self.pipeline(first);
            let idle = pipeline.messages.is_empty();
            let sent = self.send(&mut connection, pipeline);
            if matches!(sent, Err(SessionError::Replica)) {
                // It was the master when we connected: the subscriber is to leave it too.
                self.shared.renew_all();
            }
            sent?;
            if stopping && idle {
                break;
            }
            if self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
        }
        // A last probe wakes the subscriber, which then ends: all that came before it is there.
        self.probe_due = Instant::now();
        let last = self.pipeline(None);
        self.shared.last_probe.store(self.probe, Ordering::Release);
        self.send(&mut connection, last)
    }

    fn connected(&mut self) {
        self.backoff.reset();
        if std::mem::replace(&mut self.was_connected, true) {
            self.shared.counters.reconnects.inc();
        }
        self.shared.queue.connect();
        self.shared.link.publisher_up();
    }

    /// Tells the hub when what it appends comes back, and when it does not any more. Only this thread does,
    /// so the two never overtake each other.
    fn watch(&mut self) {
        if self.is_back {
            if self.give_up_at().is_some_and(|at| at <= Instant::now()) {
                self.away();
            }
        } else if self.shared.link.is_connected() {
            self.is_back = true;
            self.shared.queue.take_appends();
            let _ = (self.handler)(Incoming::Back);
        }
    }

    /// When the subscription has been lost for too long, if it is lost.
    fn give_up_at(&self) -> Option<Instant> {
        self.shared.link.subscription_lost().map(|lost| lost + GRACE)
    }

    fn away(&mut self) {
        if std::mem::replace(&mut self.is_back, false) {
            let last = self.shared.queue.refuse_appends();
            let _ = (self.handler)(Incoming::Away(last));
        }
    }

    /// Waits until there is a message, the next probe is due, the subscription has been lost for too long, or
    /// it is stopped.
    fn wait(&mut self) -> Option<Queued> {
        let give_up_at = self.give_up_at().filter(|_| self.is_back);
        let wake_at = give_up_at.map_or(self.probe_due, |at| at.min(self.probe_due));
        let pause = wake_at.saturating_duration_since(Instant::now());
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
    fn pipeline(&mut self, first: Option<Queued>) -> Pipeline {
        let mut pipeline = Pipeline::new(By::Hash);
        let mut next = first.or_else(|| self.receiver.take());
        while let Some(queued) = next {
            self.push(&mut pipeline, queued);
            let full =
                pipeline.messages.len() >= BATCH_MESSAGES || pipeline.commands.len() >= BATCH_BYTES;
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

    fn push(&self, pipeline: &mut Pipeline, queued: Queued) {
        let commands = &mut pipeline.commands;
        let is_numbered = queued.is_append && queued.outgoing.target != Target::Everyone;
        let written = if is_numbered {
            self.script.as_ref().and_then(|script| script.append(pipeline.by, &queued, commands))
        } else {
            self.publish(&queued, commands)
        };
        // Cannot fail: the queue has checked it.
        match written {
            Some(()) => pipeline.messages.push(queued),
            None => self.shared.counters.dropped.add(DropReason::NotPublishable, 1),
        }
    }

    fn publish(&self, queued: &Queued, commands: &mut Vec<u8>) -> Option<()> {
        let channel = self.shared.channels.of(&queued.outgoing.target)?;
        let origin = Envelope { instance: self.shared.instance, number: queued.number };
        // With a log, what is for a room or a user is published so only when Redis has refused it a number.
        let is_refused = self.shared.has_log() && queued.outgoing.target != Target::Everyone;
        let members = &queued.outgoing.members;
        let wrapped = if is_refused { origin.wrap_refused(members) } else { origin.wrap(members) };
        publish(&channel, &wrapped, commands);
        Some(())
    }

    /// Sends a pipeline and reads the answers. Messages without an answer count as lost.
    fn send(
        &mut self,
        connection: &mut Connection,
        mut pipeline: Pipeline,
    ) -> Result<(), SessionError> {
        if pipeline.commands.is_empty() {
            return Ok(());
        }
        let by = pipeline.by;
        let mut forgotten = Vec::new();
        let mut messages = std::mem::take(&mut pipeline.messages).into_iter();
        let sent = connection
            .send_packed_command(&pipeline.commands)
            .map_err(SessionError::from)
            .and_then(|()| self.read_answers(connection, by, &mut messages, &mut forgotten))
            .and_then(|()| self.read_probe(connection, pipeline.probe));
        if sent.is_err() {
            let lost = messages.len() + forgotten.len();
            self.shared.counters.dropped.add(DropReason::Lost, lost as u64);
        }
        sent?;
        // Redis has done nothing with these: they are not sent twice.
        let mut again = Pipeline::new(By::Text);
        forgotten.into_iter().for_each(|queued| self.push(&mut again, queued));
        self.send(connection, again)
    }

    /// Reads by hand: the crate's own pipeline goes on after a timeout, and waits a second for each of the
    /// other answers.
    fn read_answers(
        &mut self,
        connection: &mut Connection,
        by: By,
        messages: &mut std::vec::IntoIter<Queued>,
        forgotten: &mut Vec<Queued>,
    ) -> Result<(), SessionError> {
        while messages.len() > 0 {
            let answer = connection.recv_response()?;
            let Some(queued) = messages.next() else { break };
            if by == By::Hash && is_forgotten(&answer) {
                forgotten.push(queued);
            } else {
                self.answered(&queued, answer);
            }
        }
        Ok(())
    }

    fn answered(&mut self, queued: &Queued, answer: Value) {
        match answer {
            Value::ServerError(error) => {
                self.refused(&error.into());
                if queued.is_append {
                    let _ = (self.handler)(Incoming::Refused(queued.number));
                }
            }
            _ => {
                self.shared.counters.published.inc();
                if queued.is_append {
                    self.shared.confirmed_ticket.fetch_max(queued.number, Ordering::AcqRel);
                }
            }
        }
    }

    fn read_probe(
        &self,
        connection: &mut Connection,
        probe: Option<u64>,
    ) -> Result<(), SessionError> {
        let Some(probe) = probe else { return Ok(()) };
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
