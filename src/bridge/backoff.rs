//! How long to wait before the next attempt to connect: exponential, with full jitter.

use std::time::Duration;

use uuid::Uuid;

/// Longest first wait.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait at all.
const LONGEST: Duration = Duration::from_secs(2);

/// The wait after `failures` failed attempts in a row. It lies between zero and 100 ms after the first,
/// 200 ms after the second, and so on up to 2 s; `random` (0 to `u64::MAX`) chooses where. Instances that
/// lose the broker at the same moment so come back at different ones.
fn wait(failures: u32, random: u64) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let ceiling = FIRST.saturating_mul(doubled).min(LONGEST);
    let nanos = (ceiling.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Counts failed attempts in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // 60 of these 64 bits are random; the other four are the UUID's version.
        wait(self.failures, Uuid::new_v4().as_u64_pair().0)
    }

    /// An attempt has succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ceiling_doubles_up_to_two_seconds() {
        let capacity = [1, 2, 3, 4, 5, 6, 7, 32, 33, u32::MAX].map(|failures| {
            let nanos = wait(failures, u64::MAX).as_nanos();
            (nanos as f64 / 1e6).round() as u64
        });
        assert_eq!(capacity, [100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000, 2000]);
    }

    #[test]
    fn the_jitter_covers_the_whole_range() {
        assert_eq!(wait(5, 0), Duration::ZERO);
        assert_eq!(wait(5, 1 << 63), Duration::from_millis(800));
        assert_eq!(wait(0, 1 << 63), Duration::from_millis(50));
    }

    #[test]
    fn a_success_starts_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            assert!(backoff.next() <= LONGEST);
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }

    proptest! {
        #[test]
        fn no_wait_is_over_two_seconds(failures: u32, random: u64) {
            prop_assert!(wait(failures, random) <= LONGEST);
        }
    }
}
