//! Verifies which settings are taken, what they default to, and how bad ones are named.

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
fn the_defaults_are_read_out_of_the_table() {
    let config = with(&[]).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::new("secret")));
    assert_eq!(config.bind.to_string(), "0.0.0.0:8080");
    assert_eq!(config.redis.unwrap().addr.expose(), "localhost:6379");
    assert_eq!((config.jwt.issuer, config.jwt.leeway), (None, Duration::ZERO));
    assert_eq!(config.environment, Environment::Development);
    assert_eq!(config.rate_limit, RateLimit { per_second: 50, burst: 100 });
    assert_eq!((config.rate_bytes, config.room_rate_bytes), (64 * KIB, MIB));
    assert_eq!((config.send_queue_frames, config.send_queue_bytes), (16_384, MIB));
    assert_eq!((config.history_messages, config.history_bytes), (100, 64 * MIB));
    assert_eq!(config.history_ttl, Duration::from_secs(120));
    assert_eq!(config.write_timeout, Duration::from_secs(5));
    assert!(config.api_auth);
}

#[test]
fn rates_in_bytes_may_be_small_or_off() {
    let rates = with(&[("RATE_BYTES", "1"), ("ROOM_RATE_BYTES", "0")]).unwrap();
    assert_eq!((rates.rate_bytes, rates.room_rate_bytes), (1, 0));
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
        ("RATE_BYTES", "1 KiB"),
        ("ROOM_RATE_BYTES", "fast"),
        ("SEND_QUEUE_FRAMES", "0"),
        ("SEND_QUEUE_BYTES", "1GB"),
        ("HISTORY_MESSAGES", "10001"),
        ("HISTORY_TTL", "0s"),
        ("HISTORY_BYTES", "100"),
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
    assert_eq!(short.to_string(), "JWT_SECRET: has 7 bytes, expected at least 32 in production");
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
