//! How far the shutdown of the gate is, and the requests that it waits for.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long bodies may still take once draining has begun.
const DRAINING_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// How far the shutdown of the gate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ShutdownPhase {
    /// Serving.
    Open,
    /// 503 to all but the probes; idle kept-alive connections end.
    Draining,
    /// No new connection; those that wait for a request or a part of it end.
    Closed,
}

/// The phase, and the requests that are being served; shared by all threads of the gate.
#[derive(Debug, Default)]
pub(super) struct GateShutdown {
    phase: AtomicU8,
    draining_since: OnceLock<Instant>,
    serving: Mutex<usize>,
    served: Condvar,
}

impl GateShutdown {
    pub(super) fn phase(&self) -> ShutdownPhase {
        match self.phase.load(Ordering::Relaxed) {
            0 => ShutdownPhase::Open,
            1 => ShutdownPhase::Draining,
            _ => ShutdownPhase::Closed,
        }
    }

    /// Phases only go forward.
    pub(super) fn advance(&self, phase: ShutdownPhase) {
        self.draining_since.get_or_init(Instant::now);
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// `deadline` of a body, or the earlier one that draining sets.
    pub(super) fn body_deadline(&self, deadline: Instant) -> Instant {
        match self.draining_since.get() {
            Some(since) => deadline.min(*since + DRAINING_BODY_TIMEOUT),
            None => deadline,
        }
    }

    /// A request whose head was accepted is waited for until the guard is dropped; `None` when no more
    /// may start.
    pub(super) fn begin_request(&self) -> Option<RunningRequest<'_>> {
        let mut serving = self.serving();
        // Read under the lock: who waits has advanced the phase before it looks at the number.
        if self.phase() >= ShutdownPhase::Draining {
            return None;
        }
        *serving += 1;
        Some(RunningRequest(self))
    }

    /// Waits until no request is being served; no other starts once draining has begun.
    ///
    /// # Errors
    /// How many still were at the deadline.
    pub(super) fn wait_for_requests(&self, deadline: Instant) -> Result<(), usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.served.wait_timeout_while(self.serving(), left, |serving| *serving > 0);
        match *waited.unwrap_or_else(PoisonError::into_inner).0 {
            0 => Ok(()),
            left => Err(left),
        }
    }

    /// A thread that panicked while it held the lock has left a whole number.
    fn serving(&self) -> MutexGuard<'_, usize> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose body is being read, or whose handler is at work.
pub(super) struct RunningRequest<'a>(&'a GateShutdown);

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        let mut serving = self.0.serving();
        *serving -= 1;
        if *serving == 0 && self.0.phase() >= ShutdownPhase::Draining {
            self.0.served.notify_all();
        }
    }
}
