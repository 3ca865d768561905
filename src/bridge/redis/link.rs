//! Whether messages flow both ways, and one log line when that changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::SessionError;

/// The state of both connections together.
#[derive(Debug)]
pub(super) struct Link {
    address: String,
    /// What it means for messages when it is down.
    without: &'static str,
    connected: AtomicBool,
    sides: Mutex<Sides>,
}

#[derive(Debug, Default)]
struct Sides {
    publisher: bool,
    /// A probe has come back, from the current publisher through the current subscription.
    proved: bool,
    /// Since when there is no subscription that was proved; `None` while there is one, or never was.
    lost: Option<Instant>,
    /// What was logged last; `None` at first.
    told: Option<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Connected,
    Disconnected,
    /// Disconnected, since this server is a replica: told even where a disconnection was told before,
    /// since somebody has to act.
    Replica,
}

impl Link {
    /// A link to this address, not connected; with a log, messages have no numbers while it is down.
    pub(super) fn new(address: String, has_log: bool) -> Self {
        let without = if has_log {
            "messages stay on this instance and get no numbers"
        } else {
            "messages stay on this instance"
        };
        Self { address, without, connected: AtomicBool::new(false), sides: Mutex::default() }
    }

    /// Whether messages flow both ways.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// The publisher has a connection that answers.
    pub(super) fn publisher_up(&self) {
        let mut sides = self.sides();
        sides.publisher = true;
        self.tell_if_up(&mut sides);
    }

    /// A probe has come back. Whether messages flow both ways only from now on.
    pub(super) fn probe_returned(&self) -> bool {
        let mut sides = self.sides();
        sides.proved = true;
        sides.lost = None;
        let was_connected = self.is_connected();
        self.tell_if_up(&mut sides);
        self.is_connected() && !was_connected
    }

    /// Since when the subscription is lost.
    pub(super) fn subscription_lost(&self) -> Option<Instant> {
        self.sides().lost
    }

    /// The publisher has lost its connection, or could not connect; the reason is `None` when it was
    /// stopped. Without its probes the subscription is not proved either.
    pub(super) fn publisher_down(&self, reason: Option<&SessionError>) {
        let mut sides = self.sides();
        sides.publisher = false;
        sides.proved = false;
        self.tell_down(&mut sides, "publisher", reason);
    }

    /// The subscriber has lost its connection, or could not connect; the reason is `None` when it was
    /// stopped.
    pub(super) fn subscriber_down(&self, reason: Option<&SessionError>) {
        let mut sides = self.sides();
        sides.proved = false;
        sides.lost.get_or_insert_with(Instant::now);
        self.tell_down(&mut sides, "subscriber", reason);
    }

    fn sides(&self) -> MutexGuard<'_, Sides> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_if_up(&self, sides: &mut Sides) {
        if !(sides.publisher && sides.proved) {
            return;
        }
        self.connected.store(true, Ordering::Release);
        if sides.told.replace(Told::Connected) != Some(Told::Connected) {
            log::info!(redis = self.address.as_str(); "redis is connected");
        }
    }

    fn tell_down(&self, sides: &mut Sides, side: &str, reason: Option<&SessionError>) {
        self.connected.store(false, Ordering::Release);
        let Some(reason) = reason else { return };
        let redis = self.address.as_str();
        let now = match reason {
            SessionError::Replica => Told::Replica,
            _ => Told::Disconnected,
        };
        let is_news = match sides.told {
            None | Some(Told::Connected) => true,
            Some(Told::Disconnected) => now == Told::Replica,
            Some(Told::Replica) => false,
        };
        if is_news {
            sides.told = Some(now);
            log::warn!(redis, side, reason:%; "redis is disconnected, {}", self.without);
        } else {
            log::debug!(redis, side, reason:%; "redis is still disconnected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_connected_only_while_both_sides_are() {
        let link = Link::new("localhost:1".into(), true);
        let mut states = Vec::new();
        let mut then = |step: &dyn Fn(&Link)| {
            step(&link);
            states.push(link.is_connected());
        };
        then(&|l| _ = l.probe_returned());
        then(&|l| l.publisher_up());
        then(&|l| l.subscriber_down(Some(&SessionError::NoProbe)));
        then(&|l| _ = l.probe_returned());
        then(&|l| l.publisher_down(Some(&SessionError::NoProbe)));
        then(&|l| l.publisher_up());
        then(&|l| _ = l.probe_returned());
        then(&|l| l.publisher_down(None));
        assert_eq!(states, [false, true, false, true, false, false, true, false]);
    }
}
