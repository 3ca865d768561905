//! The message rate of one client: a token bucket, and patience with one that stays over it.

use std::time::{Duration, Instant};

use crate::config::{RATE_PATIENCE, RateLimit};

/// How often a client that is over its rate is told; a pause this long also ends a row of drops.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RateDecision {
    /// Within the rate.
    Pass,
    /// Over it: dropped, and the client is told.
    Tell,
    /// Over it: dropped; the client was told within this second.
    Drop,
    /// Over it for too long: the connection is closed.
    Close,
}

/// A bucket of messages that fills with the time.
#[derive(Debug)]
pub(super) struct Rate {
    limit: RateLimit,
    messages: f64,
    filled_at: Instant,
    /// First and latest drop of the current row, and when the client was last told.
    row: Option<Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    start: Instant,
    latest: Instant,
    told: Instant,
}

impl Rate {
    /// A full bucket.
    pub(super) fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, messages: f64::from(limit.burst), filled_at: now, row: None }
    }

    /// Takes one message at `now`.
    pub(super) fn take(&mut self, now: Instant) -> RateDecision {
        if self.limit.per_second == 0 {
            return RateDecision::Pass;
        }
        let refill = (now - self.filled_at).as_secs_f64() * f64::from(self.limit.per_second);
        self.messages = (self.messages + refill).min(f64::from(self.limit.burst));
        self.filled_at = now;
        if self.messages >= 1.0 {
            self.messages -= 1.0;
            return RateDecision::Pass;
        }
        match &mut self.row {
            Some(row) if now - row.latest <= TOLD_EVERY => {
                row.latest = now;
                if now - row.start >= RATE_PATIENCE {
                    RateDecision::Close
                } else if now - row.told >= TOLD_EVERY {
                    row.told = now;
                    RateDecision::Tell
                } else {
                    RateDecision::Drop
                }
            }
            row => {
                *row = Some(Row { start: now, latest: now, told: now });
                RateDecision::Tell
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { per_second: 10, burst: 5 };

    #[test]
    fn a_burst_passes_and_the_bucket_refills() {
        let start = Instant::now();
        let mut rate = Rate::new(LIMIT, start);
        for _ in 0..5 {
            assert_eq!(rate.take(start), RateDecision::Pass);
        }
        assert_eq!(rate.take(start), RateDecision::Tell);
        assert_eq!(rate.take(start), RateDecision::Drop);
        assert_eq!(rate.take(start + Duration::from_millis(110)), RateDecision::Pass);
    }

    #[test]
    fn twice_the_rate_is_told_once_a_second_and_closed_after_ten() {
        let start = Instant::now();
        let mut rate = Rate::new(LIMIT, start);
        let verdicts: Vec<_> =
            (0..260_u32).map(|n| rate.take(start + Duration::from_millis(50) * n)).collect();
        let count = |v| verdicts.iter().filter(|x| **x == v).count();
        assert_eq!(verdicts.iter().position(|v| *v == RateDecision::Close), Some(209));
        assert!((9..=11).contains(&count(RateDecision::Tell)), "{}", count(RateDecision::Tell));
    }

    #[test]
    fn a_pause_ends_the_row_and_zero_is_off() {
        let start = Instant::now();
        let mut rate = Rate::new(LIMIT, start);
        for second in 0..60 {
            let now = start + Duration::from_secs(second * 2);
            let verdicts: Vec<_> = (0..7).map(|_| rate.take(now)).collect();
            assert!(!verdicts.contains(&RateDecision::Close));
        }
        let mut off = Rate::new(RateLimit { per_second: 0, burst: 1 }, start);
        assert!((0..1000).all(|_| off.take(start) == RateDecision::Pass));
    }
}
