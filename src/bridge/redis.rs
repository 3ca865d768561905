//! [`PubSub`] on Redis: two threads with a connection each, which reconnect by themselves.
//!
//! `redis-pub` drains the queue and pipelines what waits; once a second it publishes a probe to a
//! channel that only this instance has. `redis-sub` reads what the patterns bring. The state is
//! `connected` only when a probe has come back: a subscription can be dead, or never have been granted,
//! while its socket looks well. When probes stay away both connections are made anew, since either may
//! lead to a server that nobody else uses any more. A replica is never `connected`: what is published
//! there reaches nobody at the master.
//!
//! While the publisher has no connection, messages are dropped at once. A message that reaches a room
//! minutes late confuses more than it helps; clients that need the current state ask the backend.

mod link;
mod publisher;
mod subscriber;

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use redis::{Client, Connection, RedisError, Value};
use uuid::Uuid;

use super::channel_names::ChannelNames;
use super::queue::{Queue, QueueReceiver, queue};
use super::{BridgeCounters, BridgeState, DropReason, Handler, NotClosed, Outgoing, PubSub};
use crate::config::RedisConfig;
use crate::runtime::threads::Threads;
use link::Link;
use publisher::Publisher;
use subscriber::Subscriber;

/// Longest time for connecting, for a write, and for the answer to a command.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The subscription counts as dead when so many probes were confirmed by Redis but have not come back.
const MISSING_PROBES: u64 = 2;
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

/// What both threads and the hub share.
struct Shared {
    client: Client,
    channels: ChannelNames,
    /// Random at each start.
    instance: Uuid,
    queue: Queue,
    link: Link,
    counters: Arc<BridgeCounters>,
    /// Number of the last probe that Redis confirmed.
    confirmed_probe: AtomicU64,
    /// Asks the publisher for a probe now.
    probe_now: Sender<()>,
    /// Rises when a connection has shown itself to lead nowhere; both are then made anew.
    generation: AtomicU64,
    /// Whether the log says already that `ROLE` is refused.
    role_refusal_told: AtomicBool,
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
    /// The other thread found its own to lead nowhere.
    #[error("both connections are made anew")]
    Renewed,
}

enum Life {
    New { receiver: QueueReceiver, probe_asked: Receiver<()> },
    Running { stop: Option<Sender<Infallible>>, ended: Receiver<Infallible> },
    Failed,
}

impl RedisPubSub {
    /// Checks the address; connects only at [`PubSub::start`]. The threads `redis-pub` and `redis-sub`
    /// are started through `threads`.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(config: &RedisConfig, threads: Threads) -> Result<Self, String> {
        let info = config.connection_info()?;
        let address = info.addr().to_string();
        let instance = Uuid::new_v4();
        let counters = Arc::new(BridgeCounters::default());
        let (queue, receiver) = queue(Arc::clone(&counters));
        let (probe_now, probe_asked) = bounded(1);
        let shared = Arc::new(Shared {
            client: Client::open(info).map_err(|e| e.category().to_owned())?,
            channels: ChannelNames::new(&config.prefix, instance),
            instance,
            queue,
            link: Link::new(address),
            counters,
            confirmed_probe: AtomicU64::new(0),
            probe_now,
            generation: AtomicU64::new(0),
            role_refusal_told: AtomicBool::new(false),
        });
        Ok(Self { shared, threads, life: Mutex::new(Life::New { receiver, probe_asked }) })
    }

    fn spawn(
        &self,
        receiver: QueueReceiver,
        probe_asked: Receiver<()>,
        handler: Handler,
    ) -> io::Result<Life> {
        let (stop, stopped) = bounded(0);
        let (alive, ended) = bounded(0);
        let stopped = StopSignal(stopped);
        let publisher = Publisher::new(&self.shared, receiver, probe_asked, stopped.clone());
        let subscriber = Subscriber::new(&self.shared, handler, stopped);
        let also_alive = alive.clone();
        // If the second thread cannot be started, returning drops `stop`, which ends the first.
        self.threads.spawn("redis-pub", move || {
            let _alive = alive;
            publisher.run();
        })?;
        self.threads.spawn("redis-sub", move || {
            let _alive = also_alive;
            subscriber.run();
        })?;
        Ok(Life::Running { stop: Some(stop), ended })
    }
}

impl PubSub for RedisPubSub {
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        self.shared.queue.offer(outgoing)
    }

    fn start(&self, handler: Handler) -> io::Result<()> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *life, Life::Failed) {
            Life::New { receiver, probe_asked } => {
                *life = self.spawn(receiver, probe_asked, handler)?;
                Ok(())
            }
            other => {
                *life = other;
                Err(io::Error::new(io::ErrorKind::AlreadyExists, "the bridge was started before"))
            }
        }
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

    /// Read before connecting: a connection is good for as long as this stays the same.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Has both threads connect anew.
    fn renew_both(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Wakes the publisher; the subscriber looks at each message and each read timeout.
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
            Value::Array(parts) if is_named(parts.first(), "slave") => Err(SessionError::Replica),
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
