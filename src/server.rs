//! Wires threads and channels: starts the service, and ends it in order (docs/ARCHITECTURE.md, "Shutdown").

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use log::{info, warn};
use uuid::Uuid;

use crate::auth::{Authorizer, Verifier, VerifierError};
use crate::bridge::{BridgeState, LogLimits, PubSub, RedisPubSub};
use crate::config::{AllowedOrigins, Config, Environment, RoomPolicy};
use crate::gate::{Gate, OnUpgrade};
use crate::hub::{self, Event, Hub, HubGone, HubHandle, Outlets};
use crate::metrics::{Counters, Metrics};
use crate::notification::NotificationService;
use crate::rest::RestParts;
use crate::runtime::capacity::{Capacity, SystemLimits, TooFew};
use crate::runtime::channel;
use crate::runtime::threads::Threads;
use crate::websocket::handshake::Handshake;
use crate::websocket::writer::WriterPool;

/// A running service. It is ended with [`Server::shutdown`]; merely dropped, its threads run on.
pub struct Server {
    gate: Gate,
    hub: HubHandle,
    bridge: Option<Arc<dyn PubSub>>,
    threads: Threads,
    shutdown_timeout: Duration,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system has room for too few connections.
    #[error(transparent)]
    Capacity(#[from] TooFew),
    /// Tokens cannot be verified.
    #[error(transparent)]
    Verifier(#[from] VerifierError),
    /// `REDIS_ADDR` is bad; what is wrong with it.
    #[error("{0}")]
    Redis(String),
    /// The address cannot be bound, or a thread cannot be started: what was tried, and why not.
    #[error("cannot {0}: {1}")]
    Io(String, #[source] io::Error),
}

/// What had not ended at `SHUTDOWN_TIMEOUT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Names of threads, and of other things that were waited for.
    pub left: Vec<String>,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.left.iter().take(8).map(String::as_str).collect();
        let more = self.left.len().saturating_sub(shown.len());
        write!(f, "{} had not ended: {}", self.left.len(), shown.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

impl std::error::Error for Unfinished {}

impl Server {
    /// Starts all threads and listens.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(within_capacity(config)?);
        warn_about(&config);
        let threads = Threads::default();
        let verifier = Arc::new(Verifier::new(&config.jwt)?);
        let authorizer = Arc::new(authorizer(&config, &threads)?);
        let bridge = bridge(&config, &threads)?;
        let hub = start_hub(&config, bridge.clone(), &threads)?;
        if let Some(bridge) = &bridge {
            subscribe(&**bridge, hub.clone()).map_err(failed("start the bridge's threads"))?;
        }

        let counters = Counters::default();
        let metrics = Metrics::new(&counters, hub.clone(), &authorizer, bridge.clone());
        let instance = instance_name();
        let handshake = Handshake {
            verifier: Arc::clone(&verifier),
            authorizer,
            counters: counters.clone(),
            hub: hub.clone(),
            config: Arc::clone(&config),
            instance: instance.clone(),
        };
        let rest = RestParts {
            hub: hub.clone(),
            verifier,
            redis_state: redis_state_of(bridge.clone()),
            metrics,
            counters,
            instance,
        };
        let upgrade: OnUpgrade = Arc::new(move |upgrade| handshake.serve(upgrade));
        let gate = Gate::start(Arc::clone(&config), &threads, rest, upgrade)
            .map_err(failed(&format!("listen on {}", config.bind)))?;
        info!(addr:% = gate.addr(), connections = config.max_connections; "listening");
        Ok(Self { gate, hub, bridge, threads, shutdown_timeout: config.shutdown_timeout })
    }

    /// Where it listens, with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.gate.addr()
    }

    /// Sends notifications from within the process.
    pub fn notifications(&self) -> NotificationService {
        NotificationService::new(self.hub.clone())
    }

    /// Tells the name of a thread that the service cannot do without, when it panicked.
    pub fn failures(&self) -> &Receiver<String> {
        self.threads.failures()
    }

    /// Ends the service, from where messages come to where they go, so that nothing that was acknowledged
    /// is lost: 503 to everything new except `/health`; the running requests; Close 1001 behind what is
    /// queued for every client; then the bridge, the hub with its writers, and the port.
    ///
    /// # Errors
    /// What is left at `SHUTDOWN_TIMEOUT`; the process is to exit all the same.
    pub fn shutdown(self) -> Result<(), Unfinished> {
        let deadline = Instant::now() + self.shutdown_timeout;
        self.gate.drain();
        // What is left of them must not keep the rest from ending in order.
        let halfway = Instant::now() + self.shutdown_timeout / 2;
        let requests = self.gate.wait_for_requests(halfway).err();
        self.close_connections(deadline)?;
        if let Some(bridge) = &self.bridge {
            bridge.close(deadline).map_err(|error| Unfinished { left: vec![error.to_string()] })?;
        }
        if let Some(requests) = requests {
            return Err(Unfinished { left: vec![format!("{requests} requests")] });
        }
        self.gate.close();
        self.wait(deadline, |name| name.starts_with("conn-"))?;
        let Self { gate, hub, threads, .. } = self;
        drop(gate);
        // A hub that has failed needs no word.
        let _ = hub.send(Event::Stop);
        threads.wait(deadline, |_| true).map_err(|left| Unfinished { left })
    }

    /// Has every client closed, and waits until its threads have ended.
    fn close_connections(&self, deadline: Instant) -> Result<(), Unfinished> {
        let (closed, all_closed) = bounded::<Infallible>(0);
        if self.hub.send(Event::Shutdown(closed)).is_err() {
            return Err(Unfinished { left: vec!["hub, which failed".into()] });
        }
        match all_closed.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => self.wait(deadline, |name| name.starts_with("conn-")),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }

    fn wait(&self, deadline: Instant, matches: impl Fn(&str) -> bool) -> Result<(), Unfinished> {
        self.threads.wait(deadline, matches).map_err(|left| Unfinished { left })
    }
}

/// Why the service does not start: it could not do this.
fn failed(what: &str) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_owned();
    move |error| StartError::Io(what, error)
}

/// Lowers `MAX_CONNECTIONS` and `MAX_WRITERS` to what the system has room for.
fn within_capacity(config: Config) -> Result<Config, StartError> {
    let capacity =
        Capacity::within(config.max_connections, config.max_writers, &SystemLimits::read())?;
    if capacity.decided_by.is_some() {
        warn!("{capacity}");
    }
    let Capacity { max_connections, max_writers, .. } = capacity;
    Ok(Config { max_connections, max_writers, ..config })
}

fn authorizer(config: &Config, threads: &Threads) -> Result<Authorizer, StartError> {
    match &config.backend_url {
        Some(url) => {
            Authorizer::backend(url, threads).map_err(failed("start a thread for BACKEND_URL"))
        }
        None => Ok(Authorizer::rules(config.room_policy)),
    }
}

fn bridge(config: &Config, threads: &Threads) -> Result<Option<Arc<dyn PubSub>>, StartError> {
    let limits = LogLimits { messages: config.history_messages, ttl: config.history_ttl };
    let connect = |redis| RedisPubSub::new(redis, limits, threads.clone());
    let bridge = config.redis.as_ref().map(connect);
    let bridge = bridge.transpose().map_err(StartError::Redis)?;
    Ok(bridge.map(|bridge| Arc::new(bridge) as Arc<dyn PubSub>))
}

/// Starts the hub and the first writer.
fn start_hub(
    config: &Arc<Config>,
    bridge: Option<Arc<dyn PubSub>>,
    threads: &Threads,
) -> Result<HubHandle, StartError> {
    let (events, queue) = channel::unbounded();
    let hub = HubHandle::new(events);
    let writers = WriterPool::start(config.max_writers, threads.clone(), hub.clone())
        .map_err(failed("start a writer"))?;
    let outlets = Outlets { broker: bridge, writers: Box::new(writers) };
    let core = Hub::new(Arc::clone(config), &hub, outlets);
    threads
        .spawn_batch("hub", move || hub::run(core, &queue))
        .map_err(failed("start the hub's thread"))?;
    Ok(hub)
}

/// What an operator should know of a risky setting; once each, at the start.
fn warn_about(config: &Config) {
    if !config.api_auth {
        warn!(
            "API_AUTH=off: anyone who reaches the port may notify clients and read /admin/clients"
        );
    }
    let in_production = config.environment == Environment::Production;
    if in_production && config.room_policy == RoomPolicy::Open && config.backend_url.is_none() {
        warn!(
            "ROOM_POLICY=open without BACKEND_URL: every seller may join every seller-… room, every \
             client every client-… room, and everyone all rooms without a known prefix"
        );
    }
    if in_production && config.allowed_origins == AllowedOrigins::Any {
        warn!("ALLOWED_ORIGINS=*: pages of every origin may connect with a token that they have");
    }
}

/// Eight hex digits, random at each start.
fn instance_name() -> String {
    let mut name = Uuid::new_v4().simple().to_string();
    name.truncate(8);
    name
}

/// Hands what comes from the broker to the hub; its threads wait while too much of it waits.
fn subscribe(bridge: &dyn PubSub, hub: HubHandle) -> io::Result<()> {
    bridge.start(Arc::new(move |incoming| match hub.hear(incoming) {
        Ok(()) => ControlFlow::Continue(()),
        Err(HubGone) => ControlFlow::Break(()),
    }))
}

fn redis_state_of(bridge: Option<Arc<dyn PubSub>>) -> crate::rest::RedisState {
    Arc::new(move || bridge.as_ref().map_or(BridgeState::Disabled, |bridge| bridge.state()))
}
