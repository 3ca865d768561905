//! The settings, and the fixed numbers that several modules use.
//!
//! A [`Config`] is complete and checked: nothing later in the program reads the environment or doubts a
//! value. [`SETTINGS`] has every setting's name, default and meaning.

mod lookup;
mod redis_address;
mod settings;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

pub use lookup::{ConfigError, Variables, parse_duration, parse_size};
use lookup::{Lookup, parse_backend_url, parse_origins};
pub use settings::{SETTINGS, Setting};

/// Bytes in a KiB.
pub const KIB: usize = 1024;
/// Bytes in a MiB.
pub const MIB: usize = 1024 * KIB;

/// Largest request head that the gate reads, in bytes; past it the answer is 431.
pub const MAX_HEAD_BYTES: usize = 16 * KIB;
/// Largest serialised notification, in bytes, over HTTP and Redis alike.
pub const MAX_NOTIFICATION_BYTES: usize = 64 * KIB;
/// Most notifications in one batch.
pub const MAX_BATCH: usize = 100;
/// Longest `event` of a notification, in bytes.
pub const MAX_EVENT_BYTES: usize = 128;
/// Longest room name, in bytes.
pub const MAX_ROOM_BYTES: usize = 128;
/// Longest id of a user, seller or client, in bytes.
pub const MAX_ID_BYTES: usize = 128;
/// Longest `epoch` of a position that a client brings back, in bytes.
pub const MAX_EPOCH_BYTES: usize = 64;
/// Shortest `JWT_SECRET` in production, in bytes: the output size of SHA-256 (RFC 7518, section 3.2).
pub const MIN_PRODUCTION_SECRET_BYTES: usize = 32;

/// Kernel send buffer of an accepted socket, in bytes. Bounds what a peer that reads nothing takes
/// from the machine's TCP memory, yet any one frame fits, so that it is never split without need.
pub const SOCKET_SEND_BUFFER_BYTES: usize = 128 * KIB;
/// Kernel receive buffer of an accepted socket, in bytes.
pub const SOCKET_RECEIVE_BUFFER_BYTES: usize = 64 * KIB;
/// Listen backlog: the standard library's 128 drops connects in a burst.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Frames appended to outboxes before the hub flushes, while several publishers wait: bounds how long a
/// large room delays another.
pub const FLUSH_FRAMES: usize = 16_384;
/// The same while one publisher has all to itself: a send that carries more frames costs each of them less.
pub const LONE_FLUSH_FRAMES: usize = 65_536;
/// Connections that have something appended before the hub flushes, while several publishers wait: each is
/// a send, and all wait for the last.
pub const FLUSH_SOCKETS: usize = 1024;
/// Bytes appended, each frame counted once, before the hub flushes: a batch of large notifications goes out
/// in parts, rather than being a backlog at every member at once.
pub const FLUSH_BYTES: usize = 256 * KIB;
/// Bytes of a replay that a connection gets in one turn: as much as a send is worth, and little enough for
/// others to wait behind.
pub const REPLAY_BYTES: usize = 64 * KIB;
/// How long anybody waits for the broker: one that hangs is away then.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the number of a room is remembered in which nobody is, and that of a user who is away. Much
/// longer than messages are kept: who missed nothing recovers after a night too.
pub const NUMBERS_TTL: Duration = Duration::from_secs(24 * 3600);
/// After so long without a message the hub has the broker remember a number that somebody here relies on; those
/// under which nothing was said are remembered for twice as long only.
pub const NUMBERS_REFRESH: Duration = Duration::from_secs(1800);
/// Most rooms without members, and users who are away, whose numbers are remembered.
pub const MAX_VACANT_LOGS: usize = 100_000;
/// Most rooms and users of which it is remembered that something was said there without a number; with more, all
/// logs begin anew.
pub const MAX_UNNUMBERED_LOGS: usize = 100_000;
/// How often the hub walks all connections for heartbeat, expiry and deadlines.
pub const TICK: Duration = Duration::from_secs(1);
/// How long a message may stay unfinished (fragments or bytes missing) before the peer is cut.
pub const UNFINISHED_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a closing connection may take to finish before it is cut.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a client is told that it, or a room, is over its rate, when its messages have no id.
pub const RATE_TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long a client may stay over its rate, without a pause, before it is closed with 1008.
pub const RATE_PATIENCE: Duration = Duration::from_secs(10);
/// Persistent connections to tiny_http: as many as the threads that it keeps.
pub const REST_CONNECTIONS: usize = 4;
/// How long the backend may take for an answer, waiting for a free `authz` thread included.
pub const BACKEND_TIMEOUT: Duration = Duration::from_secs(3);
/// Most calls to the backend at once.
pub const BACKEND_CALLS: usize = 32;
/// Connections beyond `MAX_CONNECTIONS` that are still accepted, to answer `/health`, `/ready` and
/// `/metrics`, and 503 to all else.
pub const RESERVE_CONNECTIONS: usize = 16;
/// Stack of a connection's threads, in bytes; only touched pages count, and a test parses the deepest
/// message on it.
pub const CONNECTION_STACK_BYTES: usize = 128 * KIB;

// A message and a notification always fit an empty socket buffer and the reader's limits.
const _: () = assert!(MAX_NOTIFICATION_BYTES < SOCKET_SEND_BUFFER_BYTES);
// A dead peer is noticed by the tick, so a shorter close deadline would be a promise not kept.
const _: () = assert!(CLOSE_TIMEOUT.as_secs() > TICK.as_secs());

/// A text that must not reach a log: `Debug` and `Display` hide it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; the caller keeps it out of logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where the service runs; production is stricter about secrets and warns about open rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// `development`, the default.
    Development,
    /// `production`.
    Production,
}

/// Who may join a room when no backend decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomPolicy {
    /// The marketplace's own rules: sellers may join all seller rooms, clients all client rooms, and
    /// everyone all rooms without a known prefix.
    Open,
    /// The id in the room's name must be one of the token's; rooms without a known prefix are for admins.
    Strict,
}

/// Which browser origins may connect and call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`, the default.
    Any,
    /// Exactly these, as browsers send them (`https://shop.example`).
    List(Vec<String>),
}

impl AllowedOrigins {
    /// Whether a request with this `Origin` header passes; one without always does.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        match (self, origin) {
            (Self::Any, _) | (_, None) => true,
            (Self::List(list), Some(origin)) => {
                list.iter().any(|listed| listed.eq_ignore_ascii_case(origin))
            }
        }
    }
}

/// How the tokens are checked beyond their signature.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// `JWT_SECRET`, required: the key of HS256, HS384 and HS512.
    pub secret: Secret,
    /// `JWT_ISSUER`: where set, `iss` must be there and equal.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: where set, `aud` must be there and contain it.
    pub audience: Option<String>,
    /// `JWT_LEEWAY`, default 0: tolerated clock difference for `exp`, `nbf` and `iat`.
    pub leeway: Duration,
}

/// Where Redis is.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `REDIS_ADDR`, default `localhost:6379`: `host:port` or a `redis://` URL. It may hold a password.
    pub addr: Secret,
    /// `REDIS_PASSWORD`, default none.
    pub password: Option<Secret>,
    /// `REDIS_PREFIX`, default none: put before the name of every channel and key.
    pub prefix: String,
}

/// What a log line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `2026-01-02T03:04:05.678Z INFO  [realtime_service::gate] connected conn=42 user=u1`
    #[default]
    Text,
    /// `{"ts":"2026-01-02T03:04:05.678Z","level":"INFO","target":"realtime_service::gate","msg":"connected","conn":42,"user":"u1"}`
    Json,
}

/// Messages that a user may send, over all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// `RATE_LIMIT`, default 50 messages per second; 0 turns the limit off.
    pub per_second: u32,
    /// `RATE_BURST`, default 100 messages that may come at once.
    pub burst: u32,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `BIND_ADDR` and `PORT`, default 0.0.0.0 and 8080; port 0 takes a free one.
    pub bind: SocketAddr,
    /// `JWT_*`.
    pub jwt: JwtConfig,
    /// `REDIS_*`; `None` when `REDIS_ADDR` is empty.
    pub redis: Option<RedisConfig>,
    /// `ENVIRONMENT`, default development.
    pub environment: Environment,
    /// `BACKEND_URL`, default none: base of the authorization calls, without a trailing slash.
    pub backend_url: Option<String>,
    /// `ALLOWED_ORIGINS`, default `*`.
    pub allowed_origins: AllowedOrigins,
    /// `ROOM_POLICY`, default open.
    pub room_policy: RoomPolicy,
    /// `API_AUTH`, default on: whether notify and admin ask for a token.
    pub api_auth: bool,
    /// `LOG_LEVEL`, default info.
    pub log_level: LevelFilter,
    /// `LOG_FORMAT`, default text.
    pub log_format: LogFormat,
    /// `MAX_CONNECTIONS`, default 10,000: sockets at once, lowered at start to what the system allows.
    pub max_connections: usize,
    /// `MAX_CONNECTIONS_PER_USER`, default 20; 0 is off.
    pub max_connections_per_user: usize,
    /// `MAX_ROOMS_PER_CLIENT`, default 100; admins are exempt.
    pub max_rooms_per_client: usize,
    /// `MAX_WRITERS`, default 1,024: writer threads at once, lowered with `max_connections`.
    pub max_writers: usize,
    /// `RATE_LIMIT`, `RATE_BURST`.
    pub rate_limit: RateLimit,
    /// `RATE_BYTES`, default 64 KiB: bytes per second of one user, over all its connections; four times
    /// that may come at once, and one message in any case. 0 is off.
    pub rate_bytes: usize,
    /// `ROOM_RATE_BYTES`, default 1 MiB: bytes per second into one room, over all clients. 0 is off.
    pub room_rate_bytes: usize,
    /// `SEND_QUEUE_FRAMES`, default 16,384: longest backlog, in frames.
    pub send_queue_frames: usize,
    /// `SEND_QUEUE_BYTES`, default 1 MiB: largest backlog; one frame always fits an empty one.
    pub send_queue_bytes: usize,
    /// `HISTORY_MESSAGES`, default 100: messages kept of each room and of each user's notifications, for
    /// clients that come back; the same on all instances. 0 turns numbers and recovery off.
    pub history_messages: usize,
    /// `HISTORY_TTL`, default 120 s: how long a message is kept; the same on all instances.
    pub history_ttl: Duration,
    /// `HISTORY_BYTES`, default 64 MiB: of all messages kept in this process; the rooms and users that have been
    /// silent for longest lose theirs first.
    pub history_bytes: usize,
    /// `WRITE_TIMEOUT`, default 5 s: within it the frame at the head of a backlog must be sent.
    pub write_timeout: Duration,
    /// `HEAD_TIMEOUT`, default 10 s: for a whole request head, and for an idle kept-alive connection.
    pub head_timeout: Duration,
    /// `BODY_TIMEOUT`, default 30 s: for a whole request body.
    pub body_timeout: Duration,
    /// `PING_INTERVAL`, default 30 s: silence before a ping, and again before the cut.
    pub ping_interval: Duration,
    /// `SHUTDOWN_TIMEOUT`, default 10 s: after it the process exits, whatever has not ended.
    pub shutdown_timeout: Duration,
    /// `MAX_MESSAGE_SIZE`, default 8 KiB: one WebSocket message, fragments added up.
    pub max_message_bytes: usize,
    /// `MAX_BODY_SIZE`, default 1 MiB: one request body.
    pub max_body_bytes: usize,
}

impl Config {
    /// All defaults, with this secret.
    pub fn new(secret: impl Into<String>) -> Self {
        match Self::read(&Lookup(&|_| None), Secret::new(secret)) {
            Ok(config) => config,
            // Cannot happen: a test reads all defaults.
            Err(error) => unreachable!("a default is bad: {error}"),
        }
    }

    /// Reads every setting through `lookup`, which answers with the value of an environment variable.
    /// An empty value counts as absent, except that an empty `REDIS_ADDR` turns Redis off.
    ///
    /// # Errors
    /// The first bad value: its variable, the value (not that of a secret) and what is expected.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = Lookup(&lookup);
        let secret = env.parse("JWT_SECRET", "the secret that signs the tokens", |secret| {
            Some(Secret::new(secret))
        })?;
        Self::read(&env, secret)
    }

    fn read(env: &Lookup<'_>, secret: Secret) -> Result<Self, ConfigError> {
        let environments =
            [("development", Environment::Development), ("production", Environment::Production)];
        let environment = env.choice("ENVIRONMENT", environments)?;
        Ok(Self {
            bind: env.bind()?,
            jwt: env.jwt(secret, environment)?,
            redis: env.redis()?,
            environment,
            backend_url: env.optional(
                "BACKEND_URL",
                "an http:// or https:// URL without a query or user",
                parse_backend_url,
            )?,
            allowed_origins: env.parse(
                "ALLOWED_ORIGINS",
                "* or a comma-separated list of origins such as https://shop.example",
                parse_origins,
            )?,
            room_policy: env.choice(
                "ROOM_POLICY",
                [("open", RoomPolicy::Open), ("strict", RoomPolicy::Strict)],
            )?,
            api_auth: env.choice("API_AUTH", [("on", true), ("off", false)])?,
            log_level: env.parse("LOG_LEVEL", "off, error, warn, info, debug or trace", |v| {
                LevelFilter::from_str(v).ok()
            })?,
            log_format: env
                .choice("LOG_FORMAT", [("text", LogFormat::Text), ("json", LogFormat::Json)])?,
            max_connections: env.number("MAX_CONNECTIONS", 1..=1_000_000)?,
            max_connections_per_user: env.number("MAX_CONNECTIONS_PER_USER", 0..=1_000_000)?,
            max_rooms_per_client: env.number("MAX_ROOMS_PER_CLIENT", 1..=1_000_000)?,
            max_writers: env.number("MAX_WRITERS", 1..=100_000)?,
            rate_limit: RateLimit {
                per_second: env.number("RATE_LIMIT", 0..=1_000_000)?,
                burst: env.number("RATE_BURST", 1..=1_000_000)?,
            },
            rate_bytes: env.size("RATE_BYTES", 0..=1024 * MIB)?,
            room_rate_bytes: env.size("ROOM_RATE_BYTES", 0..=1024 * MIB)?,
            send_queue_frames: env.number("SEND_QUEUE_FRAMES", 1..=1_000_000)?,
            send_queue_bytes: env.size("SEND_QUEUE_BYTES", 1..=1024 * MIB)?,
            history_messages: env.number("HISTORY_MESSAGES", 0..=10_000)?,
            history_ttl: env.duration("HISTORY_TTL", 1..=86_400)?,
            history_bytes: env.size("HISTORY_BYTES", KIB..=65_536 * MIB)?,
            write_timeout: env.duration("WRITE_TIMEOUT", 1..=3600)?,
            head_timeout: env.duration("HEAD_TIMEOUT", 1..=3600)?,
            body_timeout: env.duration("BODY_TIMEOUT", 1..=3600)?,
            ping_interval: env.duration("PING_INTERVAL", 1..=3600)?,
            shutdown_timeout: env.duration("SHUTDOWN_TIMEOUT", 1..=3600)?,
            max_message_bytes: env.size("MAX_MESSAGE_SIZE", 64..=MAX_NOTIFICATION_BYTES)?,
            max_body_bytes: env.size("MAX_BODY_SIZE", KIB..=64 * MIB)?,
        })
    }
}

/// The address of `BIND_ADDR` and `PORT` alone, for a process that wants to reach the service.
///
/// # Errors
/// When one of the two is bad.
pub fn bind_address(lookup: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, ConfigError> {
    Lookup(&lookup).bind()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
