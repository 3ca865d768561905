//! The thread `redis-history`: reads logs and has them begin anew, on a connection of its own, so that
//! neither waits behind what is published.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use redis::{Connection, RedisError, Value, cmd, from_redis_value};
use uuid::Uuid;

use super::script::{By, LogScript, is_forgotten};
use super::{SessionError, Shared, StopSignal, Throttle, describe};
use crate::bridge::backoff::Backoff;
use crate::bridge::envelope::{Envelope, MAX_SEQ, is_epoch};
use crate::bridge::{Answer, Handler, Incoming, KeptMessage, Reading, Unanswered};
use crate::protocol::{Draft, Position, Target};

/// Most requests in one pipeline.
const BATCH: usize = 32;
/// How many keys one step of a scan looks at.
const SCAN_COUNT: usize = 256;
/// A connection that was idle for longer, or while another was lost, is pinged before it is used: it may have
/// been closed.
const PING_AFTER: Duration = Duration::from_secs(1);
/// Longest time that a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the hub asks for.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Read(Reading),
    Renew(Target, u64),
    RenewAll(u64),
}

pub(super) struct History {
    shared: Arc<Shared>,
    asked: Receiver<(Instant, Request)>,
    handler: Handler,
    stopped: StopSignal,
    backoff: Backoff,
    /// Requests that no connection has taken yet, and when each was asked for.
    waiting: VecDeque<(Instant, Request)>,
    /// Requests that were sent and have no answer yet.
    sent: VecDeque<Request>,
    failures: Throttle,
}

/// A renewal of all logs, which goes on between other requests.
struct Scan {
    cursor: Vec<u8>,
    /// Who asked for it before it began.
    renewals: Vec<u64>,
}

/// Nobody takes answers any more.
struct Ended;

impl History {
    pub(super) fn new(
        shared: &Arc<Shared>,
        asked: Receiver<(Instant, Request)>,
        handler: Handler,
        stopped: StopSignal,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            asked,
            handler,
            stopped,
            backoff: Backoff::default(),
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            failures: Throttle::default(),
        }
    }

    /// Connects, again and again, until it is stopped or nobody takes answers any more.
    pub(super) fn run(mut self) {
        loop {
            let end = self.session();
            let unanswered: Vec<_> = self.sent.drain(..).collect();
            if unanswered.into_iter().try_for_each(|request| self.give_up(request)).is_err() {
                return;
            }
            let pause = match end {
                Ok(()) => break,
                // The connection was well, but leads elsewhere than the others, or was closed while idle.
                Err(SessionError::Renewed | SessionError::Idle) => Duration::ZERO,
                Err(error) => {
                    log::debug!(reason:% = error; "redis: no connection for history");
                    self.backoff.next()
                }
            };
            if self.pause(pause).is_break() {
                break;
            }
        }
        self.take_asked();
        while let Some((_, request)) = self.waiting.pop_front() {
            if self.give_up(request).is_err() {
                return;
            }
        }
    }

    /// Serves one connection. `Ok` when it was stopped, or nobody takes answers any more.
    fn session(&mut self) -> Result<(), SessionError> {
        let generation = self.shared.generation();
        let mut connection = self.shared.connect()?;
        let script = LogScript::load(&self.shared, &mut connection)?;
        self.backoff.reset();
        let mut scan = None;
        let mut renewals = Vec::new();
        let mut losses = self.shared.losses();
        loop {
            let idle_since = Instant::now();
            if self.waiting.is_empty() && scan.is_none() {
                self.wait(None);
            }
            if self.stopped.is_set() {
                return Ok(());
            }
            if self.shared.generation() != generation {
                return Err(SessionError::Renewed);
            }
            let lost_before = std::mem::replace(&mut losses, self.shared.losses());
            if idle_since.elapsed() > PING_AFTER || losses != lost_before {
                cmd("PING").exec(&mut connection).map_err(|_| SessionError::Idle)?;
            }
            self.take_asked();
            let batch = self.batch(&mut renewals);
            if scan.is_none() && !renewals.is_empty() {
                scan =
                    Some(Scan { cursor: b"0".to_vec(), renewals: std::mem::take(&mut renewals) });
            }
            if self.ask(&script, &mut connection, By::Hash, batch)?.is_break() {
                return Ok(());
            }
            if let Some(now) = scan.take() {
                match self.scan(&script, &mut connection, now)? {
                    ControlFlow::Continue(next) => scan = next,
                    ControlFlow::Break(Ended) => return Ok(()),
                }
            }
        }
    }

    /// What is asked now; those who want all logs renewed go to `renewals`.
    fn batch(&mut self, renewals: &mut Vec<u64>) -> Vec<Request> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match self.waiting.pop_front() {
                None => break,
                Some((_, Request::RenewAll(renewal))) => renewals.push(renewal),
                Some((_, request)) => batch.push(request),
            }
        }
        batch
    }

    /// Sends requests at once, and hands over the answers one by one.
    fn ask(
        &mut self,
        script: &LogScript,
        connection: &mut Connection,
        by: By,
        batch: Vec<Request>,
    ) -> Result<ControlFlow<()>, SessionError> {
        let mut commands = Vec::new();
        for request in batch {
            let written = match &request {
                Request::Read(reading) => script.read(by, reading, &mut commands),
                Request::Renew(target, renewal) => {
                    script.renew(by, target, *renewal, &mut commands)
                }
                Request::RenewAll(_) => None,
            };
            match written {
                Some(()) => self.sent.push_back(request),
                // Its target has no log, which the hub knows.
                None if self.give_up(request).is_err() => return Ok(ControlFlow::Break(())),
                None => {}
            }
        }
        if commands.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        connection.send_packed_command(&commands)?;
        let mut forgotten = Vec::new();
        for _ in 0..self.sent.len() {
            let answer = match connection.recv_response() {
                Ok(answer) => answer,
                Err(error) => {
                    // They have no answer either.
                    self.sent.extend(forgotten);
                    return Err(error.into());
                }
            };
            let Some(request) = self.sent.pop_front() else { break };
            if by == By::Hash && is_forgotten(&answer) {
                forgotten.push(request);
            } else if self.answered(request, answer).is_err() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if forgotten.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        self.ask(script, connection, By::Text, forgotten)
    }

    fn answered(&mut self, request: Request, answer: Value) -> Result<(), Ended> {
        if let Value::ServerError(error) = answer {
            self.refused(&error.into());
            return self.give_up(request);
        }
        let Request::Read(reading) = request else { return Ok(()) };
        let answer = read_answer(answer, self.shared.instance).ok_or(Unanswered);
        self.answer(reading, answer)
    }

    fn answer(&self, reading: Reading, answer: Result<Answer, Unanswered>) -> Result<(), Ended> {
        let Reading { target, number, .. } = reading;
        self.hand(Incoming::Answer { target, reading: number, answer })
    }

    /// A renewal that comes to nothing is not told: the hub asks again.
    fn give_up(&self, request: Request) -> Result<(), Ended> {
        match request {
            Request::Read(reading) => self.answer(reading, Err(Unanswered)),
            Request::Renew(..) | Request::RenewAll(_) => Ok(()),
        }
    }

    fn hand(&self, incoming: Incoming) -> Result<(), Ended> {
        if (self.handler)(incoming).is_break() { Err(Ended) } else { Ok(()) }
    }

    /// Renews the logs that one step finds. The scan that is left, if it is not at its end.
    fn scan(
        &mut self,
        script: &LogScript,
        connection: &mut Connection,
        scan: Scan,
    ) -> Result<ControlFlow<Ended, Option<Scan>>, SessionError> {
        let (cursor, keys): (Vec<u8>, Vec<Vec<u8>>) = cmd("SCAN")
            .arg(&scan.cursor)
            .arg("MATCH")
            .arg(self.shared.channels.logs())
            .arg("COUNT")
            .arg(SCAN_COUNT)
            .query(connection)?;
        let target = |key: Vec<u8>| self.shared.channels.log_at(std::str::from_utf8(&key).ok()?);
        let targets: Vec<_> = keys.into_iter().filter_map(target).collect();
        // The notices say who asked; they are the last one's, which stands for all that ask at once.
        let renewal = scan.renewals.last().copied().unwrap_or_default();
        let renew = targets.into_iter().map(|target| Request::Renew(target, renewal)).collect();
        if self.ask(script, connection, By::Hash, renew)?.is_break() {
            return Ok(ControlFlow::Break(Ended));
        }
        if cursor != b"0" {
            return Ok(ControlFlow::Continue(Some(Scan { cursor, ..scan })));
        }
        for renewal in scan.renewals {
            if self.hand(Incoming::AllRenewed(renewal)).is_err() {
                return Ok(ControlFlow::Break(Ended));
            }
        }
        Ok(ControlFlow::Continue(None))
    }

    /// Waits until something is asked for, it is stopped, or this time has passed.
    fn wait(&mut self, time: Option<Duration>) {
        let never = crossbeam_channel::never();
        let timeout = time.map_or(never, crossbeam_channel::after);
        select! {
            recv(self.asked) -> asked => self.waiting.extend(asked),
            recv(self.stopped.0) -> _ => {}
            recv(timeout) -> _ => {}
        }
    }

    fn take_asked(&mut self) {
        self.waiting.extend(self.asked.try_iter());
    }

    /// Waits before the next attempt, or until the other connections show that there is a server again, behind which
    /// the hub asks at once; what waits for too long meanwhile is given up.
    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        let end = Instant::now() + time;
        let was_connected = self.shared.link.is_connected();
        loop {
            self.take_asked();
            while self.waiting.front().is_some_and(|(asked, _)| asked.elapsed() >= PATIENCE) {
                let request = self.waiting.pop_front().map(|(_, request)| request);
                if request.is_some_and(|request| self.give_up(request).is_err()) {
                    return ControlFlow::Break(());
                }
            }
            if self.stopped.is_set() {
                return ControlFlow::Break(());
            }
            let now = Instant::now();
            if now >= end || (!was_connected && self.shared.link.is_connected()) {
                return ControlFlow::Continue(());
            }
            let next = self.waiting.front().map_or(end, |(asked, _)| end.min(*asked + PATIENCE));
            self.wait(Some(next.saturating_duration_since(now)));
        }
    }

    fn refused(&mut self, error: &RedisError) {
        if let Some(held_back) = self.failures.pass() {
            let reason = describe(error);
            log::warn!(reason = reason.as_str(), held_back; "redis refused to read or renew a log");
        }
    }
}

/// Epoch, number, the time, and the messages: what the script answers to a reading.
type RawAnswer = (String, String, String, Vec<String>);

fn read_answer(answer: Value, instance: Uuid) -> Option<Answer> {
    let (epoch, seq, now, entries): RawAnswer = from_redis_value(answer).ok()?;
    let now: u64 = now.parse().ok()?;
    // What is not ours there is left out: a gap, which the hub sees.
    let messages = entries.chunks_exact(3).filter_map(|entry| kept(entry, now, instance)).collect();
    let seq = seq.parse().ok().filter(|seq| *seq <= MAX_SEQ)?;
    let position = Position { epoch: is_epoch(&epoch).then(|| epoch.into())?, seq };
    Some(Answer { position, messages })
}

fn kept(entry: &[String], now: u64, instance: Uuid) -> Option<KeptMessage> {
    let [seq, at, text] = entry else { return None };
    let (origin, members) = Envelope::unwrap_kept(text)?;
    Some(KeptMessage {
        seq: seq.parse().ok()?,
        age: Duration::from_millis(now.saturating_sub(at.parse().ok()?)),
        ticket: (origin.instance == instance).then_some(origin.number),
        draft: Draft::object(&[members.as_bytes()]),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// An entry of the door may begin with any member.
    #[test]
    fn a_message_that_begins_with_log_is_kept_whole() {
        let uuid = Uuid::from_u128(5);
        for members in [r#""log":"x","a":1}"#, r#""log":"e:7","a":1}"#, r#""log":5}"#] {
            let text = format!(r#"{{"origin":"{uuid}:1",{members}"#);
            let entry = ["5".to_owned(), "1".to_owned(), text];
            let kept = kept(&entry, 2, uuid).map(|kept| kept.draft.into_members());
            assert_eq!(kept.as_deref(), Some(members.as_bytes()));
        }
    }
}
