//! How much users and rooms may send: the generic cell rate algorithm (ITU-T I.371, annex A, in its
//! "virtual scheduling" form).
//!
//! What is left of a rate is one number: the moment from which on it is full. Each take moves that
//! moment on by the time in which the rate regains what was taken, and is refused when that would put
//! it further ahead of now than the burst allows. So a take is one compare-exchange, nothing has to run
//! while time passes, and whoever has no entry has a full rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::RateLimit;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A user may send the bytes of so many seconds at once.
const BYTES_BURST_SECONDS: u64 = 4;

/// So much a second, and so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Messages or bytes; 0 is off.
    per_second: u64,
    /// The time in which the burst is regained.
    burst_nanos: u64,
}

impl Pace {
    /// Messages per second, and how many may come at once; a limit of 0 is off.
    pub const fn messages(limit: RateLimit) -> Self {
        let one = cost(1, limit.per_second as u64);
        Self {
            per_second: limit.per_second as u64,
            burst_nanos: one.saturating_mul(limit.burst as u64),
        }
    }

    /// Bytes per second of one user, four times as many at once; 0 is off.
    pub const fn user_bytes(per_second: u64) -> Self {
        Self {
            per_second,
            burst_nanos: cost(per_second.saturating_mul(BYTES_BURST_SECONDS), per_second),
        }
    }

    /// Bytes per second of one room, as many at once, and at least one frame of `largest` bytes; 0 is
    /// off.
    pub const fn room_bytes(per_second: u64, largest: u64) -> Self {
        let burst = if largest > per_second { largest } else { per_second };
        Self { per_second, burst_nanos: cost(burst, per_second) }
    }

    pub(super) const fn is_off(self) -> bool {
        self.per_second == 0
    }

    /// The moment from which on the rate is full once `amount` is taken at `now`; `None` is a refusal.
    /// What is larger than the whole burst passes when the rate is full, and is paid off afterwards.
    fn take(self, full_at: u64, now: u64, amount: u64) -> Option<u64> {
        let cost = cost(amount, self.per_second);
        let next = full_at.max(now).saturating_add(cost);
        (next.saturating_sub(now) <= self.burst_nanos.max(cost)).then_some(next)
    }
}

/// The nanoseconds in which a rate regains `amount`. Rounded up, so that many small takes never add up to
/// more than the rate.
const fn cost(amount: u64, per_second: u64) -> u64 {
    match per_second {
        0 => 0,
        _ => amount.saturating_mul(NANOS_PER_SECOND).div_ceil(per_second),
    }
}

pub(super) fn nanos(now: Duration) -> u64 {
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A rate that one thread owns: that of a room in the hub, that of a connection's control frames.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnedRate {
    full_at: u64,
}

impl OwnedRate {
    /// Takes `amount` at `now` (time since the process's clock started); whether it was left.
    pub fn take(&mut self, pace: Pace, now: Duration, amount: u64) -> bool {
        if pace.is_off() {
            return true;
        }
        let next = pace.take(self.full_at, nanos(now), amount);
        self.full_at = next.unwrap_or(self.full_at);
        next.is_some()
    }

    /// Whether nothing is missing.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= nanos(now)
    }
}

/// A rate that the threads of a user's connections share. It publishes no other data, so Relaxed suffices.
#[derive(Debug)]
struct SharedRate {
    pace: Pace,
    full_at: AtomicU64,
}

/// One take, so that it can be undone.
struct Taken {
    before: u64,
    after: u64,
}

impl SharedRate {
    fn new(pace: Pace) -> Self {
        Self { pace, full_at: AtomicU64::new(0) }
    }

    fn has(&self, now: u64, amount: u64) -> bool {
        self.pace.is_off() || self.pace.take(self.full_at(), now, amount).is_some()
    }

    fn take(&self, now: u64, amount: u64) -> Option<Taken> {
        if self.pace.is_off() {
            return Some(Taken { before: 0, after: 0 });
        }
        let mut before = self.full_at();
        loop {
            let after = self.pace.take(before, now, amount)?;
            match self.full_at.compare_exchange_weak(
                before,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Taken { before, after }),
                Err(current) => before = current,
            }
        }
    }

    /// Only if nothing was taken since: what others took meanwhile could otherwise be forgiven too.
    fn undo(&self, taken: &Taken) {
        let Taken { before, after } = *taken;
        let _ = self.full_at.compare_exchange(after, before, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn full_at(&self) -> u64 {
        self.full_at.load(Ordering::Relaxed)
    }
}

/// What a user may send, over all of its connections: `RATE_LIMIT` and `RATE_BURST`, `RATE_BYTES`.
#[derive(Debug)]
pub struct UserRates {
    messages: SharedRate,
    bytes: SharedRate,
}

impl UserRates {
    /// Full rates.
    pub fn new(limits: UserLimits) -> Self {
        Self { messages: SharedRate::new(limits.messages), bytes: SharedRate::new(limits.bytes) }
    }

    /// Takes a message of `bytes` at `now` (time since the process's clock started), from both rates or
    /// from none; whether it may pass.
    ///
    /// When two connections of one user are after its last bytes at the same time, the one that gets none
    /// may have cost the user a message of its rate nevertheless; more than the rate never passes.
    pub fn take(&self, now: Duration, bytes: usize) -> bool {
        let (now, bytes) = (nanos(now), bytes as u64);
        if !self.bytes.has(now, bytes) {
            return false;
        }
        let Some(message) = self.messages.take(now, 1) else {
            return false;
        };
        let passes = self.bytes.take(now, bytes).is_some();
        if !passes {
            self.messages.undo(&message);
        }
        passes
    }

    /// When both rates are full, if nothing more is taken.
    pub(super) fn full_at(&self) -> u64 {
        self.messages.full_at().max(self.bytes.full_at())
    }
}

/// The limits of each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimits {
    /// `RATE_LIMIT`, `RATE_BURST`.
    pub messages: Pace,
    /// `RATE_BYTES`.
    pub bytes: Pace,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests;
