//! Whose request with a body is served next. A notification waits for the hub, and keeps one of the few
//! connections to tiny_http from others meanwhile: callers that wait get them in turn, however many requests
//! each has.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::REST_CONNECTIONS;
use crate::protocol::Id;

/// Requests with a body at once: all connections, so that a probe or a scrape, which needs no turn, waits for
/// the first of these to be answered, and for none that waits.
const MOST: usize = REST_CONNECTIONS;

/// Who calls; without a token all are one caller.
type Caller = Option<Id>;

/// Turns of all callers.
#[derive(Default)]
pub(super) struct Turns(Mutex<Queue>);

/// A turn; when it is dropped, another caller that waits gets it.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    caller: Caller,
}

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
    wake: Sender<Woken>,
}

/// What a request that waited is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// It has a turn.
    Granted,
    /// A turn of its own caller is over: it may have it, unless a request that need not be woken was faster.
    TryAgain,
}

impl Turns {
    /// Waits for a turn of this caller; `None` when there was none within `timeout`.
    pub(super) fn take(&self, caller: Caller, timeout: Duration) -> Option<Turn<'_>> {
        let deadline = Instant::now() + timeout;
        let mut is_first = false;
        loop {
            let Some((number, woken)) = self.queue().enter(&caller, is_first) else {
                return Some(Turn { turns: self, caller });
            };
            match woken.recv_deadline(deadline) {
                Ok(Woken::Granted) => return Some(Turn { turns: self, caller }),
                Ok(Woken::TryAgain) => is_first = true,
                Err(_) => {
                    if self.queue().leave(&caller, number) {
                        return None;
                    }
                    // It was woken at the last moment.
                    is_first = true;
                    if woken.try_recv() == Ok(Woken::Granted) {
                        return Some(Turn { turns: self, caller });
                    }
                }
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.queue().pass_on(&self.caller);
    }
}

impl Queue {
    /// Takes a turn that is free, or gets in line.
    fn enter(&mut self, caller: &Caller, is_first: bool) -> Option<(u64, Receiver<Woken>)> {
        if self.taken < MOST {
            self.taken += 1;
            return None;
        }
        self.number += 1;
        let (wake, woken) = bounded(1);
        let waiter = Waiter { number: self.number, wake };
        let waiters = self.waiting.entry(caller.clone()).or_default();
        if waiters.is_empty() {
            self.order.push_back(caller.clone());
        }
        if is_first {
            waiters.push_front(waiter);
        } else {
            waiters.push_back(waiter);
        }
        Some((self.number, woken))
    }

    /// Gets out of the line; false when it was woken.
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

    /// A turn of `caller` is over. Another caller that waits gets it; one of its own requests is only woken,
    /// since handing a turn to a thread that sleeps leaves a connection idle until it runs.
    fn pass_on(&mut self, caller: &Caller) {
        let other = self.order.iter().position(|waiting| waiting != caller);
        let woken = if other.is_some() { Woken::Granted } else { Woken::TryAgain };
        let next = self.order.remove(other.unwrap_or(0));
        let waiter = next.and_then(|next| {
            let waiters = self.waiting.get_mut(&next)?;
            let waiter = waiters.pop_front();
            if waiters.is_empty() {
                self.waiting.remove(&next);
            } else {
                self.order.push_back(next);
            }
            waiter
        });
        if waiter.is_none() || woken == Woken::TryAgain {
            self.taken = self.taken.saturating_sub(1);
        }
        if let Some(waiter) = waiter {
            // It waits for this, or is about to look whether it has come.
            let _ = waiter.wake.try_send(woken);
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
    fn one_caller_may_have_all_turns_when_nobody_else_waits() {
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
