//! The process's monotonic clock in milliseconds, small enough for the atomics of a connection.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

    /// Time since `earlier`; zero when that is later, or never.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A moment that one thread sets and another reads; no other memory hangs on it, so it is relaxed.
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
