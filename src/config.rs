//! Every setting once: environment name, type, unit, default, check (DESIGN section 7).
//!
//! A [`Config`] is complete and checked: nothing later in the program reads the environment or
//! doubts a value. [`SETTINGS`] is the same table for people; `--help` prints it and a test holds the
//! README against it.

mod redis_address;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

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
/// Longest id in a token, in bytes.
pub const MAX_ID_BYTES: usize = 128;
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
/// How often the hub walks all connections for heartbeat, expiry and deadlines.
pub const TICK: Duration = Duration::from_secs(1);
/// How long a message may stay unfinished (fragments or bytes missing) before the peer is cut.
pub const UNFINISHED_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a closing connection may take to finish before it is cut.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
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

/// Who may join a room when no backend decides (DESIGN section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomPolicy {
    /// The marketplace's own table: roles see all rooms of their kind, other rooms are public.
    Open,
    /// Ids must match, other rooms are for admins.
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
    /// `REDIS_PREFIX`, default none: put before every channel name.
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

/// Messages per second that a user may send, over all of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// `RATE_LIMIT`, default 50 messages per second; 0 turns the limit off.
    pub per_second: u32,
    /// `RATE_BURST`, default 100 messages.
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
    /// `RATE_BYTES`, default 64 KiB.
    pub rate_bytes: usize,
    /// `ROOM_RATE_BYTES`, default 1 MiB.
    pub room_rate_bytes: usize,
    /// `SEND_QUEUE_FRAMES`, default 256: longest backlog, in frames.
    pub send_queue_frames: usize,
    /// `SEND_QUEUE_BYTES`, default 1 MiB: largest backlog; one frame always fits an empty one.
    pub send_queue_bytes: usize,
    /// `WRITE_TIMEOUT`, default 5 s: within it the frame at the head of a backlog must be sent.
    pub write_timeout: Duration,
    /// `HEAD_TIMEOUT`, default 10 s: for a whole request head, and for an idle kept-alive connection.
    pub head_timeout: Duration,
    /// `BODY_TIMEOUT`, default 30 s: for a whole request body.
    pub body_timeout: Duration,
    /// `PING_INTERVAL`, default 30 s: silence before a ping, and again before the cut.
    pub ping_interval: Duration,
    /// `SHUTDOWN_TIMEOUT`, default 10 s: the process exits at its end, come what may.
    pub shutdown_timeout: Duration,
    /// `MAX_MESSAGE_SIZE`, default 8 KiB: one WebSocket message, fragments added up.
    pub max_message_bytes: usize,
    /// `MAX_BODY_SIZE`, default 1 MiB: one request body.
    pub max_body_bytes: usize,
}

impl Config {
    /// All defaults, with this secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080),
            jwt: JwtConfig {
                secret: Secret::new(secret),
                issuer: None,
                audience: None,
                leeway: Duration::ZERO,
            },
            redis: Some(RedisConfig {
                addr: Secret::new("localhost:6379"),
                password: None,
                prefix: String::new(),
            }),
            environment: Environment::Development,
            backend_url: None,
            allowed_origins: AllowedOrigins::Any,
            room_policy: RoomPolicy::Open,
            api_auth: true,
            log_level: LevelFilter::Info,
            log_format: LogFormat::Text,
            max_connections: 10_000,
            max_connections_per_user: 20,
            max_rooms_per_client: 100,
            max_writers: 1024,
            rate_limit: RateLimit { per_second: 50, burst: 100 },
            rate_bytes: 64 * KIB,
            room_rate_bytes: MIB,
            send_queue_frames: 16_384,
            send_queue_bytes: MIB,
            write_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(10),
            max_message_bytes: 8 * KIB,
            max_body_bytes: MIB,
        }
    }

    /// Reads every setting through `lookup`, which answers with the value of an environment variable.
    /// An empty value counts as absent, except that an empty `REDIS_ADDR` turns Redis off.
    ///
    /// # Errors
    /// The first bad value: its variable, the value (not that of a secret) and what is expected.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = Lookup(&lookup);
        let secret = env.get("JWT_SECRET").ok_or_else(|| ConfigError {
            variable: "JWT_SECRET",
            value: None,
            problem: "not set, expected the secret that signs the tokens".into(),
        })?;
        let mut config = Self::new(secret);

        config.bind = env.bind()?;
        config.environment = env.parse(
            "ENVIRONMENT",
            config.environment,
            "development or production",
            |v| match v {
                "development" => Some(Environment::Development),
                "production" => Some(Environment::Production),
                _ => None,
            },
        )?;
        if config.environment == Environment::Production
            && config.jwt.secret.expose().len() < MIN_PRODUCTION_SECRET_BYTES
        {
            return Err(ConfigError {
                variable: "JWT_SECRET",
                value: None,
                problem: format!(
                    "has {} bytes, expected at least {MIN_PRODUCTION_SECRET_BYTES} in production",
                    config.jwt.secret.expose().len()
                ),
            });
        }
        config.jwt.issuer = env.get("JWT_ISSUER");
        config.jwt.audience = env.get("JWT_AUDIENCE");
        config.jwt.leeway = env.duration("JWT_LEEWAY", config.jwt.leeway, 0, 3600)?;
        config.redis = env.redis()?;
        config.backend_url = env.backend_url()?;
        config.allowed_origins = env.parse(
            "ALLOWED_ORIGINS",
            config.allowed_origins,
            "* or a comma-separated list of origins such as https://shop.example",
            parse_origins,
        )?;
        config.room_policy =
            env.parse("ROOM_POLICY", config.room_policy, "open or strict", |v| match v {
                "open" => Some(RoomPolicy::Open),
                "strict" => Some(RoomPolicy::Strict),
                _ => None,
            })?;
        config.api_auth = env.parse("API_AUTH", config.api_auth, "on or off", |v| match v {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        })?;
        config.log_level = env.parse(
            "LOG_LEVEL",
            config.log_level,
            "off, error, warn, info, debug or trace",
            |v| LevelFilter::from_str(v).ok(),
        )?;
        config.log_format =
            env.parse("LOG_FORMAT", config.log_format, "text or json", |v| match v {
                "text" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            })?;
        config.max_connections =
            env.count("MAX_CONNECTIONS", config.max_connections, 1, 1_000_000)?;
        config.max_connections_per_user =
            env.count("MAX_CONNECTIONS_PER_USER", config.max_connections_per_user, 0, 1_000_000)?;
        config.max_rooms_per_client =
            env.count("MAX_ROOMS_PER_CLIENT", config.max_rooms_per_client, 1, 1_000_000)?;
        config.max_writers = env.count("MAX_WRITERS", config.max_writers, 1, 100_000)?;
        config.rate_limit = RateLimit {
            per_second: env.number("RATE_LIMIT", config.rate_limit.per_second, 0, 1_000_000)?,
            burst: env.number("RATE_BURST", config.rate_limit.burst, 1, 1_000_000)?,
        };
        config.rate_bytes = env.size("RATE_BYTES", config.rate_bytes, 0, 1024 * MIB)?;
        config.send_queue_frames =
            env.count("SEND_QUEUE_FRAMES", config.send_queue_frames, 1, 1_000_000)?;
        config.send_queue_bytes =
            env.size("SEND_QUEUE_BYTES", config.send_queue_bytes, 1, 1024 * MIB)?;
        config.write_timeout = env.duration("WRITE_TIMEOUT", config.write_timeout, 1, 3600)?;
        config.head_timeout = env.duration("HEAD_TIMEOUT", config.head_timeout, 1, 3600)?;
        config.body_timeout = env.duration("BODY_TIMEOUT", config.body_timeout, 1, 3600)?;
        config.ping_interval = env.duration("PING_INTERVAL", config.ping_interval, 1, 3600)?;
        config.shutdown_timeout =
            env.duration("SHUTDOWN_TIMEOUT", config.shutdown_timeout, 1, 3600)?;
        config.max_message_bytes =
            env.size("MAX_MESSAGE_SIZE", config.max_message_bytes, 64, MAX_NOTIFICATION_BYTES)?;
        config.max_body_bytes = env.size("MAX_BODY_SIZE", config.max_body_bytes, KIB, 64 * MIB)?;
        Ok(config)
    }
}

/// Where settings come from: the environment, and behind it the `.env` file of the working directory or
/// one above it, if there is one.
#[derive(Debug)]
pub struct Variables {
    file: HashMap<String, String>,
}

impl Variables {
    /// Reads the `.env` file.
    ///
    /// # Errors
    /// One line: the file is unreadable, or a variable of the service is not UTF-8.
    pub fn load() -> Result<Self, String> {
        let odd = SETTINGS.iter().find(|setting| {
            matches!(std::env::var(setting.name), Err(std::env::VarError::NotUnicode(_)))
        });
        if let Some(setting) = odd {
            return Err(format!("{}: expected UTF-8", setting.name));
        }
        let lines = match dotenvy::dotenv_iter() {
            Ok(lines) => lines,
            Err(error) if error.not_found() => return Ok(Self { file: HashMap::new() }),
            Err(error) => return Err(unreadable(&error)),
        };
        let file = lines.collect::<Result<_, _>>().map_err(|error| unreadable(&error))?;
        Ok(Self { file })
    }

    /// The value of a variable, where it is set.
    pub fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.file.get(name).cloned())
    }
}

fn unreadable(error: &dotenvy::Error) -> String {
    match error {
        // Not the line itself: it may hold the secret.
        dotenvy::Error::LineParse(..) => {
            "cannot read .env: a line is not NAME=value (quote values with spaces)".into()
        }
        other => format!("cannot read .env: {other}"),
    }
}

/// The address that `BIND_ADDR` and `PORT` name, for whoever wants to reach the service, not be it.
///
/// # Errors
/// When one of the two is bad.
pub fn bind_address(lookup: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, ConfigError> {
    Lookup(&lookup).bind()
}

/// One line that tells which variable is bad, its value, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    variable: &'static str,
    /// `None` for secrets.
    value: Option<String>,
    problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => {
                write!(f, "{} is \"{}\": {}", self.variable, value.escape_debug(), self.problem)
            }
            None => write!(f, "{}: {}", self.variable, self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}

struct Lookup<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Lookup<'_> {
    fn get(&self, variable: &str) -> Option<String> {
        (self.0)(variable).filter(|value| !value.is_empty())
    }

    fn parse<T>(
        &self,
        variable: &'static str,
        default: T,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let Some(value) = self.get(variable) else {
            return Ok(default);
        };
        parse(&value).ok_or_else(|| ConfigError {
            variable,
            value: Some(value),
            problem: format!("expected {expected}"),
        })
    }

    fn number<T: TryFrom<u64> + PartialOrd + fmt::Display>(
        &self,
        variable: &'static str,
        default: T,
        least: T,
        most: T,
    ) -> Result<T, ConfigError> {
        let expected = format!("a whole number from {least} to {most}");
        self.parse(variable, default, &expected, |v| {
            T::try_from(parse_digits(v)?).ok().filter(|n| *n >= least && *n <= most)
        })
    }

    fn count(
        &self,
        variable: &'static str,
        default: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, ConfigError> {
        self.number(variable, default, least, most)
    }

    fn size(
        &self,
        variable: &'static str,
        default: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, ConfigError> {
        let expected = format!("bytes, or 8KiB, 1MiB, from {least} to {most} bytes");
        self.parse(variable, default, &expected, |v| {
            parse_size(v).filter(|n| *n >= least && *n <= most)
        })
    }

    fn duration(
        &self,
        variable: &'static str,
        default: Duration,
        least_seconds: u64,
        most_seconds: u64,
    ) -> Result<Duration, ConfigError> {
        let expected =
            format!("seconds, or 250ms, 30s, 15m, from {least_seconds} s to {most_seconds} s");
        self.parse(variable, default, &expected, |v| {
            parse_duration(v).filter(|d| {
                *d >= Duration::from_secs(least_seconds) && *d <= Duration::from_secs(most_seconds)
            })
        })
    }

    fn bind(&self) -> Result<SocketAddr, ConfigError> {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ip = self.parse("BIND_ADDR", any, "an IP address", |v| v.parse().ok())?;
        Ok(SocketAddr::new(ip, self.number("PORT", 8080, 0, u16::MAX)?))
    }

    fn redis(&self) -> Result<Option<RedisConfig>, ConfigError> {
        let prefix = self.parse(
            "REDIS_PREFIX",
            String::new(),
            "at most 128 bytes without control characters",
            |v| (v.len() <= 128 && !v.chars().any(char::is_control)).then(|| v.to_owned()),
        )?;
        let addr = (self.0)("REDIS_ADDR").unwrap_or_else(|| "localhost:6379".into());
        if addr.is_empty() {
            return Ok(None);
        }
        let redis = RedisConfig {
            addr: Secret::new(addr),
            password: self.get("REDIS_PASSWORD").map(Secret::new),
            prefix,
        };
        match redis.connection_info() {
            Ok(_) => Ok(Some(redis)),
            Err(problem) => {
                // Before an @ stands a password.
                let value = Some(redis.addr.0).filter(|addr| !addr.contains('@'));
                Err(ConfigError { variable: "REDIS_ADDR", value, problem })
            }
        }
    }

    fn backend_url(&self) -> Result<Option<String>, ConfigError> {
        self.parse("BACKEND_URL", None, "an http:// or https:// URL without a query or user", |v| {
            parse_backend_url(v).map(Some)
        })
    }
}

fn parse_origins(value: &str) -> Option<AllowedOrigins> {
    if value == "*" {
        return Some(AllowedOrigins::Any);
    }
    value
        .split(',')
        .map(str::trim)
        .map(|origin| {
            let (scheme, host) = origin.split_once("://")?;
            let plain = |s: &str, extra: &str| {
                !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
            };
            (plain(scheme, "+-.") && plain(host, "-._:[]")).then(|| origin.to_owned())
        })
        .collect::<Option<Vec<_>>>()
        .map(AllowedOrigins::List)
}

fn parse_backend_url(value: &str) -> Option<String> {
    let uri: ureq::http::Uri = value.parse().ok()?;
    let scheme = uri.scheme_str()?;
    let authority = uri.authority()?;
    let plain = matches!(scheme, "http" | "https")
        && !authority.as_str().contains('@')
        && !authority.host().is_empty()
        && uri.query().is_none()
        && !value.contains('#');
    plain.then(|| value.trim_end_matches('/').to_owned())
}

/// Reads a duration: a number of seconds, or with a unit `ms`, `s`, `m`, `h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..)?;
    let number = parse_digits(digits)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// Reads a size: a number of bytes, or with a unit `KiB`, `MiB`.
pub fn parse_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..)?;
    let number = usize::try_from(parse_digits(digits)?).ok()?;
    match unit {
        "" | "B" => Some(number),
        "KiB" => number.checked_mul(KIB),
        "MiB" => number.checked_mul(MIB),
        _ => None,
    }
}

/// Digits only: `parse` alone would let a sign through.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A row of the settings table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// Its default, as people write it.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

macro_rules! settings {
    ($($name:literal, $default:literal, $meaning:literal;)*) => {
        /// All settings, for `--help` and the README.
        pub const SETTINGS: &[Setting] =
            &[$(Setting { name: $name, default: $default, meaning: $meaning }),*];
    };
}

settings! {
    "JWT_SECRET", "required", "key of the tokens (HS256, HS384, HS512); in production at least 32 bytes";
    "PORT", "8080", "TCP port of everything; 0 takes a free one";
    "BIND_ADDR", "0.0.0.0", "IP address to listen on";
    "ENVIRONMENT", "development", "development or production";
    "REDIS_ADDR", "localhost:6379", "host:port or redis:// URL; empty turns Redis off";
    "REDIS_PASSWORD", "none", "password of Redis";
    "REDIS_PREFIX", "none", "put before every Redis channel";
    "BACKEND_URL", "none", "asks this backend who may join a room";
    "ROOM_POLICY", "open", "without a backend: open or strict";
    "ALLOWED_ORIGINS", "*", "browser origins, separated by commas";
    "API_AUTH", "on", "off: notify and admin ask for no token (private networks only)";
    "JWT_ISSUER", "none", "where set, iss must equal it";
    "JWT_AUDIENCE", "none", "where set, aud must contain it";
    "JWT_LEEWAY", "0s", "tolerated clock difference for exp, nbf, iat";
    "MAX_CONNECTIONS", "10000", "sockets at once, or fewer where the system allows fewer";
    "MAX_CONNECTIONS_PER_USER", "20", "sockets of one user; 0 is off";
    "MAX_ROOMS_PER_CLIENT", "100", "rooms of one socket; admins are exempt";
    "MAX_WRITERS", "1024", "writer threads for clients that read slowly";
    "RATE_LIMIT", "50", "messages per second of one user; 0 is off";
    "RATE_BURST", "100", "messages of one user that may come at once";
    "RATE_BYTES", "64KiB", "message bytes per second of one user, four times as many at once; 0 is off";
    "SEND_QUEUE_FRAMES", "256", "longest backlog of a slow client";
    "SEND_QUEUE_BYTES", "1MiB", "largest backlog of a slow client";
    "WRITE_TIMEOUT", "5s", "for one frame to a slow client";
    "HEAD_TIMEOUT", "10s", "for a whole request head";
    "BODY_TIMEOUT", "30s", "for a whole request body";
    "PING_INTERVAL", "30s", "silence before a ping, and again before the cut";
    "SHUTDOWN_TIMEOUT", "10s", "longest shutdown";
    "MAX_MESSAGE_SIZE", "8KiB", "one WebSocket message";
    "MAX_BODY_SIZE", "1MiB", "one request body";
    "LOG_LEVEL", "info", "off, error, warn, info, debug or trace";
    "LOG_FORMAT", "text", "text or json";
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_lookup(|name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
                .or_else(|| (name == "JWT_SECRET").then(|| "secret".into()))
        })
    }

    #[test]
    fn defaults_are_those_of_new() {
        assert_eq!(format!("{:?}", with(&[]).unwrap()), format!("{:?}", Config::new("secret")));
    }

    #[test]
    fn written_defaults_give_the_defaults() {
        let pairs: Vec<_> = SETTINGS
            .iter()
            .filter(|s| s.default != "none" && s.default != "required")
            .map(|s| (s.name, s.default))
            .collect();
        assert_eq!(format!("{:?}", with(&pairs).unwrap()), format!("{:?}", Config::new("secret")));
    }

    #[test]
    fn every_bad_value_is_named_with_what_is_expected() {
        let bad = [
            ("PORT", "65536"),
            ("PORT", "+80"),
            ("BIND_ADDR", "localhost"),
            ("ENVIRONMENT", "Production"),
            ("REDIS_PREFIX", "a\nb"),
            ("BACKEND_URL", "ftp://x"),
            ("BACKEND_URL", "backend:80"),
            ("BACKEND_URL", "http://u:p@host"),
            ("BACKEND_URL", "http://host/?q=1"),
            ("ROOM_POLICY", "closed"),
            ("ALLOWED_ORIGINS", "shop.example"),
            ("ALLOWED_ORIGINS", "https://shop.example,"),
            ("API_AUTH", "true"),
            ("JWT_LEEWAY", "-1"),
            ("JWT_LEEWAY", "2h"),
            ("MAX_CONNECTIONS", "0"),
            ("MAX_CONNECTIONS_PER_USER", "-1"),
            ("MAX_ROOMS_PER_CLIENT", "0"),
            ("MAX_WRITERS", "many"),
            ("RATE_LIMIT", "1.5"),
            ("RATE_BURST", "0"),
            ("RATE_BYTES", "64KB"),
            ("SEND_QUEUE_FRAMES", "0"),
            ("SEND_QUEUE_BYTES", "1GB"),
            ("WRITE_TIMEOUT", "0"),
            ("BODY_TIMEOUT", "s"),
            ("PING_INTERVAL", "10ms"),
            ("SHUTDOWN_TIMEOUT", "1d"),
            ("MAX_MESSAGE_SIZE", "1MiB"),
            ("MAX_BODY_SIZE", "99999999999999999999"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
        ];
        for (name, value) in bad {
            let line = with(&[(name, value)]).unwrap_err().to_string();
            assert!(line.starts_with(&format!("{name} is \"{}\"", value.escape_debug())), "{line}");
            assert!(line.contains(": expected ") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_missing_empty_or_short_secret_is_refused_and_never_shown() {
        let none = Config::from_lookup(|_| None).unwrap_err().to_string();
        assert_eq!(none, "JWT_SECRET: not set, expected the secret that signs the tokens");
        assert!(with(&[("JWT_SECRET", "")]).is_err());
        let short = with(&[("JWT_SECRET", "hunter2"), ("ENVIRONMENT", "production")]).unwrap_err();
        assert_eq!(
            short.to_string(),
            "JWT_SECRET: has 7 bytes, expected at least 32 in production"
        );
        assert!(!format!("{:?}", with(&[("JWT_SECRET", "hunter2")]).unwrap()).contains("hunter2"));
    }

    #[test]
    fn units_are_read() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("15m"), Some(Duration::from_secs(900)));
        assert_eq!(parse_duration("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse_duration("99999999999999999h"), None);
        assert_eq!(parse_duration(""), None);
        assert_eq!(parse_size("8KiB"), Some(8192));
        assert_eq!(parse_size("1MB"), None);
        assert_eq!(parse_size("é"), None);
    }

    #[test]
    fn an_empty_redis_address_turns_redis_off() {
        assert!(with(&[("REDIS_ADDR", "")]).unwrap().redis.is_none());
        assert!(with(&[]).unwrap().redis.is_some());
    }
}
