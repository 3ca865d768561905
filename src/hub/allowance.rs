//! How much may wait for the hub: for each publisher, and in all.
//!
//! Who says something takes its bytes from its [`Allowance`] before it hands the message to the hub, and
//! waits while there is not enough; the hub gives them back when it has served the message. So a publisher
//! that floods holds back its own readers, and nobody else's.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::config::MIB;

/// Bytes that may wait for the hub in all.
pub const ALL_BYTES: usize = 64 * MIB;
/// Messages of one publisher that may wait.
pub const PUBLISHER_MESSAGES: usize = 1024;
/// Bytes of one publisher that may wait.
pub const PUBLISHER_BYTES: usize = MIB / 4;
/// Part of what is left of [`ALL_BYTES`] that one user may take: however many take as much as they may,
/// something is left for the next (the dynamic threshold of Choudhury and Hahne, 1998).
const PART_OF_FREE: usize = 8;
/// What a message takes besides its bytes: its place in the queue.
const MESSAGE_BYTES: usize = 128;
/// How often who waits looks again: what others give back, and the hub's end, wake nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The hub's thread has ended: the service is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hub has ended")]
pub struct HubGone;

/// What waits for the hub in all.
#[derive(Debug, Default)]
pub struct Budget {
    bytes: AtomicUsize,
    /// How often a publisher had to wait.
    held_back: AtomicU64,
    hub_gone: AtomicBool,
}

/// What of one publisher waits for the hub; shared by all its connections.
#[derive(Debug)]
pub struct Allowance {
    budget: Arc<Budget>,
    most_messages: usize,
    most_bytes: usize,
    part_of_free: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Threads that wait in [`Self::take`].
    blocked: AtomicUsize,
    lock: Mutex<()>,
    given_back: Condvar,
}

impl Budget {
    /// Bytes that wait, what each message takes besides included.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How often a publisher had to wait since the start.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Nothing will be given back any more: whoever waits shall end.
    pub fn end(&self) {
        self.hub_gone.store(true, Ordering::Release);
    }

    fn free(&self) -> usize {
        ALL_BYTES.saturating_sub(self.bytes())
    }
}

impl Allowance {
    /// With the bounds of a user.
    pub fn of_user(budget: Arc<Budget>) -> Self {
        Self {
            part_of_free: PART_OF_FREE,
            ..Self::new(budget, PUBLISHER_MESSAGES, PUBLISHER_BYTES)
        }
    }

    /// With these bounds, as far as all together have room.
    pub fn new(budget: Arc<Budget>, most_messages: usize, most_bytes: usize) -> Self {
        Self {
            budget,
            most_messages,
            most_bytes,
            part_of_free: 1,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            given_back: Condvar::new(),
        }
    }

    /// With these bounds, whatever others have taken: for what brings back what waits.
    pub fn reserved(budget: Arc<Budget>, most_messages: usize, most_bytes: usize) -> Self {
        Self { part_of_free: 0, ..Self::new(budget, most_messages, most_bytes) }
    }

    /// Takes room for a message, waiting while there is none. A message always fits an allowance of which
    /// nothing is taken.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn take(&self, bytes: usize) -> Result<(), HubGone> {
        if self.try_take(bytes) {
            return Ok(());
        }
        self.budget.held_back.fetch_add(1, Ordering::Relaxed);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.blocked.fetch_add(1, Ordering::SeqCst);
        let taken = loop {
            if self.try_take(bytes) {
                break Ok(());
            }
            if self.budget.hub_gone.load(Ordering::Acquire) {
                break Err(HubGone);
            }
            let waited = self.given_back.wait_timeout(guard, LOOK_AGAIN);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.blocked.fetch_sub(1, Ordering::SeqCst);
        taken
    }

    fn try_take(&self, bytes: usize) -> bool {
        let cost = bytes.saturating_add(MESSAGE_BYTES);
        let messages = self.messages.fetch_add(1, Ordering::SeqCst);
        let own = self.bytes.fetch_add(cost, Ordering::SeqCst);
        let all = self.budget.bytes.fetch_add(cost, Ordering::SeqCst);
        let is_reserved = self.part_of_free == 0;
        let free = self.budget.free().checked_div(self.part_of_free);
        let most = self.most_bytes.min(free.unwrap_or(usize::MAX));
        let fits_own =
            messages == 0 || (messages < self.most_messages && own.saturating_add(cost) <= most);
        if fits_own && (is_reserved || all.saturating_add(cost) <= ALL_BYTES) {
            return true;
        }
        self.subtract(cost);
        false
    }

    /// Gives the room of a message back. The hub calls it, so it takes no lock, and wakes who waits only when
    /// half is free: a thread woken for each message would cost the hub more than the message. Who begins to
    /// wait at the very moment is not woken, and looks again by itself.
    pub fn give_back(&self, bytes: usize) {
        self.subtract(bytes.saturating_add(MESSAGE_BYTES));
        let is_half_free = self.messages.load(Ordering::Relaxed) <= self.most_messages / 2
            && self.bytes.load(Ordering::Relaxed) <= self.most_bytes / 2;
        if is_half_free && self.blocked.load(Ordering::Relaxed) > 0 {
            self.given_back.notify_all();
        }
    }

    fn subtract(&self, cost: usize) {
        self.budget.bytes.fetch_sub(cost, Ordering::SeqCst);
        self.bytes.fetch_sub(cost, Ordering::SeqCst);
        self.messages.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn user(budget: &Arc<Budget>) -> Arc<Allowance> {
        Arc::new(Allowance::of_user(Arc::clone(budget)))
    }

    fn fill(allowance: &Allowance, bytes: usize) -> usize {
        (0..).take_while(|_| allowance.try_take(bytes)).count()
    }

    #[test]
    fn a_publisher_is_bounded_in_messages_and_in_bytes_and_one_message_always_fits() {
        let budget = Arc::new(Budget::default());
        let (many, large, huge) = (user(&budget), user(&budget), user(&budget));
        assert_eq!(fill(&many, 1), PUBLISHER_MESSAGES);
        assert_eq!(fill(&large, 8064), PUBLISHER_BYTES / 8192);
        assert_eq!(fill(&huge, 2 * PUBLISHER_BYTES), 1);
        many.give_back(1);
        assert_eq!(fill(&many, 1), 1);
    }

    #[test]
    fn all_together_stay_within_the_budget_and_a_newcomer_still_gets_its_part() {
        let budget = Arc::new(Budget::default());
        let hogs: Vec<_> = (0..200).map(|_| user(&budget)).collect();
        hogs.iter().for_each(|hog| assert!(fill(hog, 1024) >= 1));
        assert!(budget.bytes() <= ALL_BYTES);
        assert!(fill(&user(&budget), 1024) >= 1);
    }

    #[test]
    fn who_waits_goes_on_when_something_is_given_back_or_the_hub_ends() {
        let budget = Arc::new(Budget::default());
        let allowance = user(&budget);
        let taken = fill(&allowance, 8064);
        let (report, reported) = mpsc::channel();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (allowance, report) = (Arc::clone(&allowance), report.clone());
                thread::spawn(move || report.send(allowance.take(8064)).unwrap())
            })
            .collect();
        for _ in 0..2 {
            allowance.give_back(8064);
            assert_eq!(reported.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(()));
        }
        budget.end();
        assert_eq!(reported.recv_timeout(Duration::from_secs(10)).unwrap(), Err(HubGone));
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        (0..taken).for_each(|_| allowance.give_back(8064));
        assert_eq!(budget.bytes(), 0);
        assert!(budget.held_back() >= 1);
    }

    /// What waits to come back through the broker does not keep the broker's stream from bringing it.
    #[test]
    fn what_is_on_its_way_leaves_room_for_what_brings_it_back() {
        let budget = Arc::new(Budget::default());
        let broker = Allowance::reserved(Arc::clone(&budget), 10_000, 16 * MIB);
        let users: Vec<_> = (0..5000).map(|_| user(&budget)).collect();
        // One message of each: large ones, then small ones.
        users.iter().take(2000).for_each(|user| _ = user.try_take(60_000));
        users.iter().skip(2000).for_each(|user| _ = user.try_take(100));
        assert!(!user(&budget).try_take(60_000));
        assert!(broker.try_take(60_000));
    }
}
