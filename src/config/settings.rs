//! The table of all settings: name, default and meaning of each, once. `--help` prints it, a test holds the
//! README against it, and [`Config`](super::Config) reads its defaults.

/// A row of the settings table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// Its default, as people write it and as it is read; `none` or `required` where there is none.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

impl Setting {
    /// The text of the default, where there is one.
    pub(super) fn default_of(name: &str) -> Option<&'static str> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
        Some(setting.default).filter(|default| !matches!(*default, "none" | "required"))
    }
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
    "REDIS_PREFIX", "none", "put before every Redis channel and key";
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
    "RATE_LIMIT", "50", "messages per second of one user, over all its connections; 0 is off";
    "RATE_BURST", "100", "messages that may come at once";
    "RATE_BYTES", "64KiB", "bytes per second of one user, four times that at once; 0 is off";
    "ROOM_RATE_BYTES", "1MiB", "bytes per second into one room, over all clients; 0 is off";
    "SEND_QUEUE_FRAMES", "16384", "longest backlog of a slow client";
    "SEND_QUEUE_BYTES", "1MiB", "largest backlog of a slow client";
    "HISTORY_MESSAGES", "100", "messages kept of each room and user, the same on all instances; 0 is off";
    "HISTORY_TTL", "120s", "how long a message is kept; the same on all instances";
    "HISTORY_BYTES", "64MiB", "all messages kept in this process; the longest silent go first";
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
