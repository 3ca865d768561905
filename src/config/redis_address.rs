//! Where Redis is and who we are there: `REDIS_ADDR` and `REDIS_PASSWORD`, checked at start.

use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use super::{RedisConfig, Secret};

const EXPECTED: &str = "expected host:port or redis://[user[:password]@]host[:port][/database]";
/// TCP keepalive: after so much silence the kernel asks whether the peer is alive.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// TCP keepalive: time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

impl RedisConfig {
    /// Reads the address and the password; the password is never put into a URL, so it may hold any
    /// characters.
    ///
    /// # Errors
    /// What is wrong with the address, without repeating it, since it may hold a password.
    pub fn connection_info(&self) -> Result<ConnectionInfo, String> {
        let addr = self.addr.expose();
        let info = match addr.split_once("://") {
            Some((scheme, _)) => parse_url(scheme, addr)?,
            None => parse_host_port(addr)?,
        };
        check_target(info.addr())?;
        let login = login(info.redis_settings(), self.password.as_ref())?;
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        Ok(info.set_redis_settings(login).set_tcp_settings(tcp))
    }
}

fn parse_url(scheme: &str, url: &str) -> Result<ConnectionInfo, String> {
    match scheme {
        "redis" | "valkey" => {}
        "rediss" | "valkeys" => {
            return Err(format!(
                "{scheme}:// (TLS) is not supported: reach Redis over a private network or a TLS tunnel"
            ));
        }
        _ => return Err(format!("unknown scheme, {EXPECTED}")),
    }
    if url.contains(['?', '#']) {
        return Err(format!(
            "a URL with ? or # (in a password: write %3F or %23, or use REDIS_PASSWORD), {EXPECTED}"
        ));
    }
    url.into_connection_info().map_err(|e| match e.detail() {
        // Without a detail the crate's text is a constant; a detail could repeat the password.
        None => format!("{e}, {EXPECTED}"),
        Some(_) => format!("{}, {EXPECTED}", e.category()),
    })
}

fn parse_host_port(addr: &str) -> Result<ConnectionInfo, String> {
    let (host, port) = addr.rsplit_once(':').ok_or_else(|| format!("no port, {EXPECTED}"))?;
    let port = port.parse().map_err(|_| format!("bad port, {EXPECTED}"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        return Err(format!("an IPv6 address without brackets, {EXPECTED}"));
    }
    let addr = ConnectionAddr::Tcp(bracketed.unwrap_or(host).to_owned(), port);
    addr.into_connection_info().map_err(|e| e.category().to_owned())
}

fn check_target(addr: &ConnectionAddr) -> Result<(), String> {
    let ConnectionAddr::Tcp(host, port) = addr else {
        return Err(format!("not a TCP address, {EXPECTED}"));
    };
    let in_alphabet = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(in_alphabet) {
        return Err(format!("bad host, {EXPECTED}"));
    }
    if matches!(host.as_str(), "0.0.0.0" | "::") {
        return Err(format!("a wildcard address is nobody's, {EXPECTED}"));
    }
    if *port == 0 {
        return Err(format!("bad port, {EXPECTED}"));
    }
    Ok(())
}

fn login(
    url: &RedisConnectionInfo,
    password: Option<&Secret>,
) -> Result<RedisConnectionInfo, String> {
    if url.db() < 0 {
        return Err(format!("bad database, {EXPECTED}"));
    }
    let password = match (url.password(), password.map(Secret::expose)) {
        (Some(one), Some(other)) if one != other => {
            return Err("the URL and REDIS_PASSWORD give different passwords, expected one".into());
        }
        (one, other) => other.or(one),
    };
    // Telling Redis the library's name would cost a round trip per connection.
    let mut login = RedisConnectionInfo::default().set_db(url.db()).set_skip_set_lib_name();
    match (url.username(), password) {
        (Some(_), None) => return Err("a user without a password, expected both".into()),
        (Some(user), Some(_)) => login = login.set_username(user),
        (None, _) => {}
    }
    Ok(match password {
        Some(password) => login.set_password(password),
        None => login,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(addr: &str, password: Option<&str>) -> Result<ConnectionInfo, String> {
        RedisConfig {
            addr: Secret::new(addr),
            password: password.map(Secret::new),
            prefix: String::new(),
        }
        .connection_info()
    }

    #[test]
    fn addresses_are_read() {
        for (addr, at, user, password, database) in [
            ("localhost:6379", "localhost:6379", None, None, 0),
            ("[::1]:7000", "::1:7000", None, None, 0),
            ("redis://cache", "cache:6379", None, None, 0),
            ("redis://cache:7000/3", "cache:7000", None, None, 3),
            ("redis://[::1]/", "::1:6379", None, None, 0),
            ("redis://:p%40ss@10.0.0.1", "10.0.0.1:6379", None, Some("p@ss"), 0),
            ("redis://al%2Fice:x%3F@h:1/2", "h:1", Some("al/ice"), Some("x?"), 2),
            ("valkey://h:1", "h:1", None, None, 0),
        ] {
            let info = parse(addr, None).unwrap();
            let login = info.redis_settings();
            assert_eq!(info.addr().to_string(), at, "{addr}");
            assert_eq!(
                (login.username(), login.password(), login.db()),
                (user, password, database)
            );
            assert!(info.tcp_settings().nodelay() && info.tcp_settings().keepalive().is_some());
        }
    }

    #[test]
    fn a_password_may_hold_any_characters() {
        let odd = "a b@/:?#%41\"'\\{}$\u{e4}\u{1f511}\n";
        let info = parse("localhost:6379", Some(odd)).unwrap();
        assert_eq!(info.redis_settings().password(), Some(odd));
        let info = parse("redis://bob@h", Some(odd)).unwrap();
        assert_eq!(info.redis_settings().username(), Some("bob"));
        assert_eq!(info.redis_settings().password(), Some(odd));
        assert!(!format!("{info:?}").contains("41\""), "Debug would leak it");
    }

    #[test]
    fn bad_addresses_are_refused_without_repeating_them() {
        for addr in [
            "sesame",
            "sesame:",
            ":6379",
            "host:sesame",
            "host:0",
            "host:65536",
            "::1:6379",
            "bob:sesame@host:6379",
            "ho st:6379",
            "0.0.0.0:6379",
            "[::]:6379",
            "redis://",
            "redis://:sesame@",
            "redis://:sesame@host:port",
            "redis://:sesame@host/db",
            "redis://:sesame@host/-1",
            "redis://:sesame@host/0?protocol=sesame",
            "redis://:ses#ame@host",
            "redis://bob@host",
            "redis://:sesame@ho%20st",
            "redis://:%ff@host",
            "unix:///sesame",
            "http://sesame",
            "sesame://x",
        ] {
            let error = parse(addr, None).unwrap_err();
            assert!(!error.contains("sesame") && error.contains("expected"), "{addr}: {error}");
        }
        assert!(parse("rediss://host", None).unwrap_err().contains("TLS"));
        assert!(parse("redis://:a@host", Some("b")).unwrap_err().contains("different passwords"));
        parse("redis://:a@host", Some("a")).unwrap();
    }
}
