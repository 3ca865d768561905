//! Reads one setting at a time: where values come from, what they may be, and how a bad one is named.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{
    AllowedOrigins, Environment, JwtConfig, KIB, MIB, MIN_PRODUCTION_SECRET_BYTES, RedisConfig,
    SETTINGS, Secret, Setting,
};

/// Where settings come from: the environment, and for what it does not have the `.env` file, in the working
/// directory or one above it.
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
        // The line itself is not told, since it may contain the secret.
        dotenvy::Error::LineParse(..) => {
            "cannot read .env: a line is not NAME=value (quote values with spaces)".into()
        }
        other => format!("cannot read .env: {other}"),
    }
}

/// One line that tells which variable is bad, its value, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) variable: &'static str,
    /// `None` for secrets.
    pub(super) value: Option<String>,
    pub(super) problem: String,
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

/// Reads settings through a function that answers with the value of an environment variable.
pub(super) struct Lookup<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Lookup<'_> {
    /// The value, or the default; an empty value counts as absent. `None` where there is neither.
    pub(super) fn get(&self, variable: &str) -> Option<String> {
        let set = (self.0)(variable).filter(|value| !value.is_empty());
        set.or_else(|| Setting::default_of(variable).map(str::to_owned))
    }

    /// A setting without a default.
    pub(super) fn optional<T>(
        &self,
        variable: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(variable) else {
            return Ok(None);
        };
        let problem = format!("expected {expected}");
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(ConfigError { variable, value: Some(value), problem }),
        }
    }

    /// A setting that must be there, as all with a default are.
    pub(super) fn parse<T>(
        &self,
        variable: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.optional(variable, expected, parse)?.ok_or_else(|| {
            let problem = format!("not set, expected {expected}");
            ConfigError { variable, value: None, problem }
        })
    }

    /// One of two words.
    pub(super) fn choice<T: Copy>(
        &self,
        variable: &'static str,
        words: [(&str, T); 2],
    ) -> Result<T, ConfigError> {
        let expected = words.map(|(word, _)| word).join(" or ");
        self.parse(variable, &expected, |v| {
            words.iter().find(|(word, _)| *word == v).map(|(_, chosen)| *chosen)
        })
    }

    pub(super) fn number<T: TryFrom<u64> + PartialOrd + fmt::Display>(
        &self,
        variable: &'static str,
        range: RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.parse(variable, &expected, |v| {
            T::try_from(parse_digits(v)?).ok().filter(|number| range.contains(number))
        })
    }

    pub(super) fn size(
        &self,
        variable: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let (least, most) = (range.start(), range.end());
        let expected = format!("bytes, or 8KiB, 1MiB, from {least} to {most} bytes");
        self.parse(variable, &expected, |v| parse_size(v).filter(|size| range.contains(size)))
    }

    pub(super) fn duration(
        &self,
        variable: &'static str,
        seconds: RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        let (least, most) = (*seconds.start(), *seconds.end());
        let expected = format!("seconds, or 250ms, 30s, 15m, from {least} s to {most} s");
        let range = Duration::from_secs(least)..=Duration::from_secs(most);
        self.parse(variable, &expected, |v| parse_duration(v).filter(|time| range.contains(time)))
    }

    pub(super) fn bind(&self) -> Result<SocketAddr, ConfigError> {
        let ip = self.parse("BIND_ADDR", "an IP address", |v| v.parse().ok())?;
        Ok(SocketAddr::new(ip, self.number("PORT", 0..=u16::MAX)?))
    }

    pub(super) fn jwt(
        &self,
        secret: Secret,
        environment: Environment,
    ) -> Result<JwtConfig, ConfigError> {
        let bytes = secret.expose().len();
        if environment == Environment::Production && bytes < MIN_PRODUCTION_SECRET_BYTES {
            let problem = format!(
                "has {bytes} bytes, expected at least {MIN_PRODUCTION_SECRET_BYTES} in production"
            );
            return Err(ConfigError { variable: "JWT_SECRET", value: None, problem });
        }
        Ok(JwtConfig {
            secret,
            issuer: self.get("JWT_ISSUER"),
            audience: self.get("JWT_AUDIENCE"),
            leeway: self.duration("JWT_LEEWAY", 0..=3600)?,
        })
    }

    pub(super) fn redis(&self) -> Result<Option<RedisConfig>, ConfigError> {
        let prefix =
            self.optional("REDIS_PREFIX", "at most 128 bytes without control characters", |v| {
                (v.len() <= 128 && !v.chars().any(char::is_control)).then(|| v.to_owned())
            })?;
        // Set and empty, it turns Redis off.
        if (self.0)("REDIS_ADDR").is_some_and(|addr| addr.is_empty()) {
            return Ok(None);
        }
        let redis = RedisConfig {
            addr: Secret::new(self.get("REDIS_ADDR").unwrap_or_default()),
            password: self.get("REDIS_PASSWORD").map(Secret::new),
            prefix: prefix.unwrap_or_default(),
        };
        match redis.connection_info() {
            Ok(_) => Ok(Some(redis)),
            Err(problem) => {
                // An address with an @ contains a password.
                let value = Some(redis.addr.0).filter(|addr| !addr.contains('@'));
                Err(ConfigError { variable: "REDIS_ADDR", value, problem })
            }
        }
    }
}

pub(super) fn parse_origins(value: &str) -> Option<AllowedOrigins> {
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

pub(super) fn parse_backend_url(value: &str) -> Option<String> {
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

/// Takes digits only; `parse` alone would accept a sign.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
