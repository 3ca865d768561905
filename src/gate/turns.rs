//! Whose request with a body is served next. A notification waits for the hub, and would keep the few
//! connections to tiny_http from others meanwhile: one is always left for probes and scrapes, and callers that
//! wait get the rest in turn, however many requests each has.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::REST_CONNECTIONS;
use crate::protocol::Id;

/// Requests with a body at once: one less than there are connections.
const MOST: usize = REST_CONNECTIONS - 1;

/// Who calls; without a token all are one caller.
type Caller = Option<Id>;

/// Turns of all callers.
#[derive(Default)]
pub(super) struct Turns(Mutex<Queue>);

/// A turn; the next who waits gets it when it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

#[derive(Default)]
struct Queue {
    /// Turns that are taken.
    taken: usize,
    /// Requests that wait, by caller.
    waiting: HashMap<Caller, VecDeque<Waiter>>,
    /// The callers that wait, the next one first.
    order: VecDeque<Caller>,
    /// Of the last request that waited.
    number: u64,
}

struct Waiter {
    number: u64,
    wake: Sender<()>,
}

impl Turns {
    /// Waits for a turn of this caller; `None` when there was none within `timeout`.
    pub(super) fn take(&self, caller: Caller, timeout: Duration) -> Option<Turn<'_>> {
        let (number, woken) = match self.queue().enter(&caller) {
            None => return Some(Turn(self)),
            Some(place) => place,
        };
        match woken.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) if self.queue().leave(&caller, number) => None,
            // Who is not in the queue any more has been given a turn.
            _ => Some(Turn(self)),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.queue().pass_on();
    }
}

impl Queue {
    /// Takes a turn that is free, or gets in line.
    fn enter(&mut self, caller: &Caller) -> Option<(u64, Receiver<()>)> {
        if self.taken < MOST {
            self.taken += 1;
            return None;
        }
        self.number += 1;
        let (wake, woken) = bounded(1);
        let waiters = self.waiting.entry(caller.clone()).or_default();
        if waiters.is_empty() {
            self.order.push_back(caller.clone());
        }
        waiters.push_back(Waiter { number: self.number, wake });
        Some((self.number, woken))
    }

    /// Gets out of the line; false when the turn has come.
    fn leave(&mut self, caller: &Caller, number: u64) -> bool {
        let Some(waiters) = self.waiting.get_mut(caller) else { return false };
        let before = waiters.len();
        waiters.retain(|waiter| waiter.number != number);
        let was_there = waiters.len() < before;
        if waiters.is_empty() {
            self.waiting.remove(caller);
            self.order.retain(|waiting| waiting != caller);
        }
        was_there
    }

    /// Gives a turn that is over to the next caller that waits.
    fn pass_on(&mut self) {
        let Some(caller) = self.order.pop_front() else {
            self.taken = self.taken.saturating_sub(1);
            return;
        };
        let Some(waiters) = self.waiting.get_mut(&caller) else {
            return self.pass_on();
        };
        let next = waiters.pop_front();
        if waiters.is_empty() {
            self.waiting.remove(&caller);
        } else {
            self.order.push_back(caller);
        }
        match next {
            // It waits for this, or is about to look whether it has come.
            Some(waiter) => _ = waiter.wake.try_send(()),
            None => self.pass_on(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn one_caller_may_have_all_turns_and_one_connection_is_left() {
        let turns = Turns::default();
        let mut held: Vec<_> = (0..MOST).map(|_| turns.take(None, SHORT).unwrap()).collect();
        assert!(turns.take(None, SHORT).is_none());
        held.pop();
        held.push(turns.take(Id::parse("a").ok(), SHORT).unwrap());
        drop(held);
        let queue = turns.queue();
        assert!(queue.taken == 0 && queue.waiting.is_empty() && queue.order.is_empty());
    }

    #[test]
    fn callers_that_wait_are_served_in_turn() {
        let turns = Arc::new(Turns::default());
        let held: Vec<_> = (0..MOST).map(|_| turns.take(None, SHORT).unwrap()).collect();
        let (report, served) = crossbeam_channel::unbounded();
        let mut threads = Vec::new();
        // Ten requests of one caller are in line before the one of another.
        for name in ["hungry"; 10].into_iter().chain(["modest"]) {
            let waiting = || turns.queue().waiting.values().map(VecDeque::len).sum::<usize>();
            let before = waiting();
            let (turns, report) = (Arc::clone(&turns), report.clone());
            threads.push(thread::spawn(move || {
                let turn = turns.take(Id::parse(name).ok(), LONG).unwrap();
                report.send(name).unwrap();
                drop(turn);
            }));
            while waiting() == before {
                thread::yield_now();
            }
        }
        // All but one stay taken, so one is served after the other.
        let mut held = held.into_iter();
        drop(held.next());
        let order: Vec<_> = (0..11).map(|_| served.recv_timeout(LONG).unwrap()).collect();
        assert!(order.iter().position(|name| *name == "modest").unwrap() <= 1, "{order:?}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
