//! The process's monotonic clock in milliseconds, small enough for the atomics of a connection, and how the
//! time of day is written.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::macros::format_description;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process's clock started, for what milliseconds are too coarse for.
pub fn uptime() -> Duration {
    START.elapsed()
}

/// A moment: milliseconds since the process's clock started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// A moment that has not come yet, however long the process runs.
    pub const NEVER: Self = Self(u64::MAX);

    /// Now.
    pub fn now() -> Self {
        Self(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX - 1))
    }

    /// The moment so many milliseconds after the clock's start; for tests.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The moment as time since the process's clock started.
    pub fn uptime(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The moment so long before; at the earliest the clock's start.
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time since `earlier`; zero when that is later, or never.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A moment that one thread sets and another reads; it publishes no other data, so Relaxed suffices.
#[derive(Debug)]
pub struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    /// Starts at `moment`.
    pub fn new(moment: Moment) -> Self {
        Self(AtomicU64::new(moment.0))
    }

    /// Reads it.
    pub fn get(&self) -> Moment {
        Moment(self.0.load(Ordering::Relaxed))
    }

    /// Sets it.
    pub fn set(&self, moment: Moment) {
        self.0.store(moment.0, Ordering::Relaxed);
    }
}

/// `2026-01-02T03:04:05.678Z`: RFC 3339 in UTC with milliseconds, as JavaScript's `toISOString`.
#[derive(Debug, Clone, Copy)]
pub struct Timestamp([u8; 24]);

impl Timestamp {
    /// The text of this time, which must be in UTC.
    pub fn new(at: OffsetDateTime) -> Self {
        let format = format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        );
        let mut text = *b"1970-01-01T00:00:00.000Z";
        // It has 24 bytes until the year 9999.
        let _ = at.format_into(&mut text.as_mut_slice(), &format);
        Self(text)
    }

    /// The text, in ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // ASCII is UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_milliseconds() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_767_323_045_070_000_000).unwrap();
        assert_eq!(Timestamp::new(at).to_string(), "2026-01-02T03:04:05.070Z");
        assert_eq!(Timestamp::new(at).as_bytes(), b"2026-01-02T03:04:05.070Z");
    }
}
