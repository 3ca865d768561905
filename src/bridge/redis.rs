//! [`PubSub`] on Redis: threads with a connection each, which reconnect by themselves.
//!
//! `redis-pub` drains the queue and pipelines what waits; once a second it publishes a probe to a
//! channel that only this instance has. `redis-sub` reads what the patterns bring. The state is
//! `connected` only when a probe has come back: a subscription can be dead, or never have been granted,
//! while its socket looks well. When probes stay away all connections are made anew, since any may
//! lead to a server that nobody else uses any more. A replica is never `connected`: what is published
//! there reaches nobody at the master.
//!
//! While the publisher has no connection, messages are dropped at once. A message that reaches a room
//! minutes late confuses more than it helps; clients that need the current state ask the backend.
//!
//! With an ordered log, `redis-history` answers readings, and `redis-door` takes in what other systems add
//! durably. All that a log does is one script, `log.lua`.

mod door;
mod entry;
mod history;
mod link;
mod publisher;
mod script;
mod subscriber;

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use redis::{Client, Connection, RedisError, Value};
use uuid::Uuid;

use super::channel_names::ChannelNames;
use super::queue::{Queue, QueueReceiver, queue};
use super::{
    BridgeCounters, BridgeState, DropReason, Handler, LogLimits, NotClosed, OrderedLog, Outgoing,
    PubSub, Reading,
};
use crate::config::RedisConfig;
use crate::protocol::Target;
use crate::runtime::threads::Threads;
use door::Door;
use history::{History, Request};
use link::Link;
use publisher::Publisher;
use script::Epochs;
use subscriber::Subscriber;

/// Longest time for connecting, for a write, and for the answer to a command.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the subscription may be lost before what was appended is given up: it is in the log, and mostly
/// comes by the readings that follow a short loss.
const GRACE: Duration = Duration::from_secs(1);
/// The subscription is pinged when it brought nothing for so long, not even probes.
const PING_AFTER: Duration = Duration::from_secs(2);
/// Shortest time between two log lines about the same thing.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Messages between instances over Redis (or Valkey).
pub struct RedisPubSub {
    shared: Arc<Shared>,
    threads: Threads,
    life: Mutex<Life>,
}

/// What the threads and the hub share.
struct Shared {
    client: Client,
    channels: ChannelNames,
    /// Random at each start.
    instance: Uuid,
    limits: LogLimits,
    epochs: Epochs,
    queue: Queue,
    requests: Sender<(Instant, Request)>,
    link: Link,
    counters: Arc<BridgeCounters>,
    /// Number of the last probe that Redis confirmed.
    confirmed_probe: AtomicU64,
    /// Highest ticket of an append that Redis confirmed.
    confirmed_ticket: AtomicU64,
    /// Number of the probe behind the last message of all, once it is known; 0 when there will be none.
    last_probe: AtomicU64,
    /// Wakes the publisher, and asks it for a probe now.
    probe_now: Sender<()>,
    /// Rises when a connection has shown itself to lead nowhere; all are then made anew.
    generation: AtomicU64,
    /// Rises when the publisher or the subscriber loses its connection: others may be closed too.
    losses: AtomicU64,
    /// Whether the log says already that `ROLE` is refused.
    role_refusal_told: AtomicBool,
    /// Whether the server was seen to be a replica, and was not told since that it counts anew.
    replica_seen: AtomicBool,
}

/// Why a thread gives up its connection.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{}", describe(.0))]
    Redis(#[from] RedisError),
    #[error("PSUBSCRIBE refused: {0}")]
    Refused(String),
    #[error("probes do not come back")]
    NoProbe,
    #[error("this server is a replica")]
    Replica,
    /// Another thread found its own to lead nowhere.
    #[error("all connections are made anew")]
    Renewed,
    #[error("INFO tells no run_id")]
    NoRunId,
    #[error("an answer of another form")]
    Unexpected,
    #[error("closed while idle")]
    Idle,
}

/// What the threads are given when they start.
struct Ends {
    queued: QueueReceiver,
    probe_asked: Receiver<()>,
    requests: Receiver<(Instant, Request)>,
}

enum Life {
    New(Ends),
    Running { stop: Option<Sender<Infallible>>, ended: Receiver<Infallible> },
    Failed,
}

impl RedisPubSub {
    /// Checks the address; connects only at [`PubSub::start`]. The threads `redis-pub` and `redis-sub`, and
    /// for an ordered log `redis-history` and `redis-door`, are started through `threads`.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(config: &RedisConfig, limits: LogLimits, threads: Threads) -> Result<Self, String> {
        let info = config.connection_info()?;
        let address = info.addr().to_string();
        let instance = Uuid::new_v4();
        let counters = Arc::new(BridgeCounters::default());
        let (queue, queued) = queue(Arc::clone(&counters));
        let (probe_now, probe_asked) = bounded(1);
        let (ask, requests) = unbounded();
        let shared = Arc::new(Shared {
            client: Client::open(info).map_err(|e| e.category().to_owned())?,
            channels: ChannelNames::new(&config.prefix, instance),
            instance,
            limits,
            epochs: Epochs::new(),
            queue,
            requests: ask,
            link: Link::new(address, limits.messages > 0),
            counters,
            confirmed_probe: AtomicU64::new(0),
            confirmed_ticket: AtomicU64::new(0),
            last_probe: AtomicU64::new(u64::MAX),
            probe_now,
            generation: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            role_refusal_told: AtomicBool::new(false),
            replica_seen: AtomicBool::new(false),
        });
        let ends = Ends { queued, probe_asked, requests };
        Ok(Self { shared, threads, life: Mutex::new(Life::New(ends)) })
    }

    fn spawn(&self, ends: Ends, handler: &Handler) -> io::Result<Life> {
        let (stop, stopped) = bounded(0);
        let (alive, ended) = bounded(0);
        let (shared, stopped) = (&self.shared, StopSignal(stopped));
        let Ends { queued, probe_asked, requests } = ends;
        let handler = || Arc::clone(handler);
        // If a later thread cannot be started, returning drops `stop`, which ends those before it.
        let publisher = Publisher::new(shared, handler(), queued, probe_asked, stopped.clone());
        self.spawn_one("redis-pub", &alive, || publisher.run())?;
        let subscriber = Subscriber::new(shared, handler(), stopped.clone());
        self.spawn_one("redis-sub", &alive, || subscriber.run())?;
        if shared.has_log() {
            let history = History::new(shared, requests, handler(), stopped.clone());
            self.spawn_one("redis-history", &alive, || history.run())?;
            let door = Door::new(shared, stopped);
            self.spawn_one("redis-door", &alive, || door.run())?;
        }
        Ok(Life::Running { stop: Some(stop), ended })
    }

    fn spawn_one(
        &self,
        name: &str,
        alive: &Sender<Infallible>,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let alive = alive.clone();
        self.threads.spawn(name, move || {
            let _alive = alive;
            run();
        })
    }

    fn ask(&self, request: Request) {
        // The thread ends only when nobody takes answers any more.
        let _ = self.shared.requests.send((Instant::now(), request));
    }
}

impl OrderedLog for RedisPubSub {
    fn append(&self, outgoing: Outgoing) -> Result<u64, DropReason> {
        self.shared.queue.offer(outgoing, true)
    }

    fn read(&self, reading: Reading) {
        self.ask(Request::Read(reading));
    }

    fn renew(&self, target: Option<Target>, renewal: u64) {
        self.ask(match target {
            Some(target) => Request::Renew(target, renewal),
            None => Request::RenewAll(renewal),
        });
    }
}

impl PubSub for RedisPubSub {
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        self.shared.queue.offer(outgoing, false).map(|_| ())
    }

    fn start(&self, handler: Handler) -> io::Result<()> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *life, Life::Failed) {
            Life::New(ends) => {
                *life = self.spawn(ends, &handler)?;
                Ok(())
            }
            other => {
                *life = other;
                Err(io::Error::new(io::ErrorKind::AlreadyExists, "the bridge was started before"))
            }
        }
    }

    fn ordered_log(&self) -> Option<&dyn OrderedLog> {
        self.shared.has_log().then_some(self as &dyn OrderedLog)
    }

    fn state(&self) -> BridgeState {
        if self.shared.link.is_connected() {
            BridgeState::Connected
        } else {
            BridgeState::Disconnected
        }
    }

    fn counters(&self) -> &Arc<BridgeCounters> {
        &self.shared.counters
    }

    fn close(&self, deadline: Instant) -> Result<(), NotClosed> {
        self.shared.queue.close();
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        let Life::Running { stop, ended } = &mut *life else { return Ok(()) };
        drop(stop.take());
        match ended.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(NotClosed { queued: self.shared.queue.len() }),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }
}

impl Shared {
    fn has_log(&self) -> bool {
        self.limits.messages > 0
    }

    /// Connects, and then sets all timeouts, since connecting resets them.
    fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(TIMEOUT)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        Ok(connection)
    }

    fn confirmed_probe(&self) -> u64 {
        self.confirmed_probe.load(Ordering::Acquire)
    }

    fn confirmed_ticket(&self) -> u64 {
        self.confirmed_ticket.load(Ordering::Acquire)
    }

    /// Read before connecting: a connection is good for as long as this stays the same.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has all threads connect anew.
    fn renew_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // The others look before each use, the subscriber at each message and each read timeout.
        self.wake_publisher();
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    fn count_loss(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    fn wake_publisher(&self) {
        // When it was asked already, it will wake.
        let _ = self.probe_now.try_send(());
    }

    /// Judges the answer to `ROLE`. A server that refuses it is taken for a master.
    fn check_role(&self, answer: Value) -> Result<(), SessionError> {
        match answer {
            Value::ServerError(error) => {
                let refused = error.code() == "NOPERM";
                if refused && !self.role_refusal_told.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "redis refuses ROLE, so a replica would count as connected: allow +role"
                    );
                }
                Ok(())
            }
            Value::Array(parts) if is_named(parts.first(), "slave") => {
                self.replica_seen.store(true, Ordering::Release);
                Err(SessionError::Replica)
            }
            _ => Ok(()),
        }
    }
}

/// What went wrong, for a log line. No error of the redis crate contains a password.
fn describe(error: &RedisError) -> String {
    if error.is_timeout() {
        // The system's own text is "Resource temporarily unavailable".
        return format!("no answer within {TIMEOUT:?}");
    }
    error.to_string()
}

fn is_named(value: Option<&Value>, name: &str) -> bool {
    matches!(value, Some(Value::BulkString(text)) if text == name.as_bytes())
}

/// Tells a thread to end, by the drop of the channel's other end.
#[derive(Clone)]
struct StopSignal(Receiver<Infallible>);

impl StopSignal {
    fn is_set(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for this time, or until it is set; whether it is.
    fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Lets one log line per second through.
#[derive(Debug, Default)]
struct Throttle {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// Whether a line may be written now, and how many were held back since the last one.
    fn pass(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_second_passes_and_the_rest_is_counted() {
        let mut throttle = Throttle::default();
        let passed: Vec<_> = (0..5).map(|_| throttle.pass()).collect();
        assert_eq!(passed, [Some(0), None, None, None, None]);
        throttle.last = Instant::now().checked_sub(LOG_INTERVAL);
        assert_eq!(throttle.pass(), Some(4));
    }
}
