//! `ROOM_RATE_BYTES`: how much clients may broadcast into each room.

use std::collections::HashMap;
use std::time::Duration;

use super::rates::{OwnedRate, Pace};
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::protocol::Room;

/// The rates of the rooms that are not full; all others have no entry.
#[derive(Debug)]
pub struct RoomRates {
    pace: Pace,
    rates: HashMap<Room, OwnedRate>,
}

impl RoomRates {
    /// So many bytes a second into each room, as many at once, and at least one message; 0 is off.
    pub fn new(per_second: usize) -> Self {
        let pace = Pace::room_bytes(per_second as u64, MAX_NOTIFICATION_BYTES as u64);
        Self { pace, rates: HashMap::new() }
    }

    /// Takes a message of so many bytes at `now` (time since the process's clock started); whether it may
    /// pass.
    pub fn take(&mut self, room: &Room, now: Duration, bytes: usize) -> bool {
        if self.pace.is_off() {
            return true;
        }
        let rate = match self.rates.get_mut(room) {
            Some(rate) => rate,
            None => self.rates.entry(room.clone()).or_default(),
        };
        rate.take(self.pace, now, bytes as u64)
    }

    /// Forgets the rooms whose rates are full again. There are at most as many as were broadcast into in
    /// the time in which a burst is regained.
    pub fn forget_full(&mut self, now: Duration) {
        self.rates.retain(|_, rate| !rate.is_full(now));
        if self.rates.capacity() > 8 * self.rates.len().max(64) {
            self.rates.shrink_to(2 * self.rates.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn rooms_have_rates_of_their_own_and_full_ones_are_forgotten() {
        let (a, b) = (Room::parse("a").unwrap(), Room::parse("b").unwrap());
        let mut rates = RoomRates::new(100_000);
        let at = |millis: u64| Duration::from_millis(5_000 + millis);
        assert!((0..10).all(|_| rates.take(&a, at(0), 10_000)));
        assert!(!rates.take(&a, at(0), 10_000));
        assert!(rates.take(&b, at(0), 10_000));
        assert!(rates.take(&a, at(100), 10_000));
        rates.forget_full(at(200));
        assert_eq!(rates.rates.keys().collect::<Vec<_>>(), [&a]);
        rates.forget_full(at(1200));
        assert!(rates.rates.is_empty());
        let mut off = RoomRates::new(0);
        assert!((0..1000).all(|_| off.take(&a, at(0), 1 << 20)));
        assert!(off.rates.is_empty());
    }
}
