//! What one connection may send: its patience with a client that stays over its user's rates, and a rate
//! of the connection's own for control frames.

use std::time::Duration;

use crate::config::{RATE_PATIENCE, RATE_TOLD_EVERY, RateLimit};
use crate::hub::rates::{OwnedRate, Pace, UserRates};

/// Pings and pongs of one connection. Clients ping every few seconds at most, to keep the connection or to
/// measure its delay; each ping costs the hub an event and a send.
const CONTROL_PACE: Pace = Pace::messages(RateLimit { per_second: 10, burst: 100 });

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RateDecision {
    /// Within the rates.
    Pass,
    /// Over them.
    Refuse {
        /// The client is told even if the message has no id to answer to: it was not within this second.
        tell: bool,
    },
    /// Over them for too long: the connection is closed.
    Close,
}

/// How long a connection has been over the rates of its user.
#[derive(Debug, Default)]
pub(super) struct ClientRate {
    /// The current row of refusals.
    row: Option<Row>,
}

/// Moments as time since the process's clock started.
#[derive(Debug, Clone, Copy)]
struct Row {
    start: Duration,
    latest: Duration,
    told: Duration,
}

impl ClientRate {
    /// Takes one message of `bytes` from the user's rates at `now` (time since the process's clock
    /// started).
    pub(super) fn take(&mut self, user: &UserRates, now: Duration, bytes: usize) -> RateDecision {
        if user.take(now, bytes) {
            return RateDecision::Pass;
        }
        match &mut self.row {
            // A pause this long ends the row.
            Some(row) if now.saturating_sub(row.latest) <= RATE_TOLD_EVERY => {
                row.latest = now;
                if now.saturating_sub(row.start) >= RATE_PATIENCE {
                    return RateDecision::Close;
                }
                let tell = now.saturating_sub(row.told) >= RATE_TOLD_EVERY;
                if tell {
                    row.told = now;
                }
                RateDecision::Refuse { tell }
            }
            row => {
                *row = Some(Row { start: now, latest: now, told: now });
                RateDecision::Refuse { tell: true }
            }
        }
    }
}

/// The rate of a connection's control frames: 10 a second, 100 at once.
#[derive(Debug, Default)]
pub(super) struct ControlRate(OwnedRate);

impl ControlRate {
    /// Takes one ping or pong at `now` (time since the process's clock started). One that is refused
    /// closes the connection: no client has a use for so many.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        self.0.take(CONTROL_PACE, now, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::rates::UserLimits;

    const PASS: RateDecision = RateDecision::Pass;
    const TELL: RateDecision = RateDecision::Refuse { tell: true };
    const REFUSE: RateDecision = RateDecision::Refuse { tell: false };

    /// 10 messages a second, 5 at once; 100 bytes a second, 400 at once.
    fn user() -> UserRates {
        UserRates::new(UserLimits {
            messages: Pace::messages(RateLimit { per_second: 10, burst: 5 }),
            bytes: Pace::user_bytes(100),
        })
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_burst_passes_and_the_rate_comes_back() {
        let (user, mut rate) = (user(), ClientRate::default());
        assert!((0..5).all(|_| rate.take(&user, ms(0), 1) == PASS));
        assert_eq!(rate.take(&user, ms(0), 1), TELL);
        assert_eq!(rate.take(&user, ms(0), 1), REFUSE);
        assert_eq!(rate.take(&user, ms(110), 1), PASS);
    }

    #[test]
    fn twice_the_rate_is_told_once_a_second_and_closed_after_ten() {
        let (user, mut rate) = (user(), ClientRate::default());
        let decisions: Vec<_> = (0..260).map(|n| rate.take(&user, ms(50 * n), 1)).collect();
        let told = decisions.iter().filter(|decision| **decision == TELL).count();
        let first = |wanted| decisions.iter().position(|decision| *decision == wanted);
        let row = first(RateDecision::Close).zip(first(TELL)).map(|(closed, told)| closed - told);
        assert_eq!(row, Some(200), "ten seconds");
        assert!((9..=11).contains(&told), "{told}");
    }

    #[test]
    fn a_pause_ends_the_row() {
        let (user, mut rate) = (user(), ClientRate::default());
        for second in 0..60 {
            let decisions: Vec<_> =
                (0..7).map(|_| rate.take(&user, ms(2000 * second), 1)).collect();
            assert_eq!(decisions, [PASS, PASS, PASS, PASS, PASS, TELL, REFUSE]);
        }
    }

    #[test]
    fn bytes_count_as_messages_do() {
        let (user, mut rate) = (user(), ClientRate::default());
        assert_eq!(rate.take(&user, ms(0), 300), PASS);
        assert_eq!(rate.take(&user, ms(0), 101), TELL);
        assert_eq!(rate.take(&user, ms(0), 100), PASS);
    }

    #[test]
    fn connections_of_a_user_share_its_rate_but_each_has_its_own_row() {
        let user = user();
        let (mut one, mut other) = (ClientRate::default(), ClientRate::default());
        let mut times = (0..20_000).step_by(20);
        let told = times.find(|now| one.take(&user, ms(*now), 0) == TELL).unwrap_or_default();
        let closed = times.find(|now| one.take(&user, ms(*now), 0) == RateDecision::Close);
        assert!((told..told + 200).contains(&(closed.unwrap_or_default() - 10_000)), "{closed:?}");
        assert_eq!(other.take(&user, ms(closed.unwrap_or_default()), 0), TELL);
    }

    #[test]
    fn a_hundred_pings_may_come_at_once_and_ten_a_second() {
        let mut rate = ControlRate::default();
        assert!((0..100).all(|_| rate.take(ms(0))));
        assert!(!rate.take(ms(0)) && !rate.take(ms(99)) && rate.take(ms(100)));
        let mut steady = ControlRate::default();
        assert!((0..10_000).all(|n| steady.take(ms(100 * n))));
    }
}
