//! Whose request with a body is served next. A notification waits for the hub, and would keep the few
//! connections to tiny_http from others meanwhile: one is always left for probes and scrapes, and one caller
//! never has all of the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::REST_CONNECTIONS;
use crate::protocol::Id;

/// Requests with a body at once: one less than there are connections.
const ALL: usize = REST_CONNECTIONS - 1;
/// Of these, those of one caller.
const EACH: usize = ALL - 1;

/// Turns of all callers.
pub(super) struct Turns {
    all: Arc<Tickets>,
    /// Of each caller that has or waits for one; without a token all are one caller.
    callers: Mutex<HashMap<Option<Id>, Weak<Tickets>>>,
}

/// A turn; given back when dropped, its caller's behind that of all.
pub(super) struct Turn {
    _all: Ticket,
    _own: Ticket,
}

/// A number of tickets, handed out in the order in which they are asked for.
struct Tickets {
    give_back: Sender<()>,
    free: Receiver<()>,
}

struct Ticket(Arc<Tickets>);

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = self.0.give_back.try_send(());
    }
}

impl Tickets {
    fn new(count: usize) -> Self {
        let (give_back, free) = bounded(count);
        (0..count).for_each(|_| _ = give_back.try_send(()));
        Self { give_back, free }
    }

    fn take(self: &Arc<Self>, deadline: Instant) -> Option<Ticket> {
        self.free.recv_deadline(deadline).ok()?;
        Some(Ticket(Arc::clone(self)))
    }
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Tickets::new(ALL)), callers: Mutex::default() }
    }

    /// Waits for a turn of this caller; `None` when there was none within `timeout`.
    pub(super) fn take(&self, caller: Option<Id>, timeout: Duration) -> Option<Turn> {
        let deadline = Instant::now() + timeout;
        let own = self.of(caller).take(deadline)?;
        Some(Turn { _all: self.all.take(deadline)?, _own: own })
    }

    fn of(&self, caller: Option<Id>) -> Arc<Tickets> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tickets) = callers.get(&caller).and_then(Weak::upgrade) {
            return tickets;
        }
        // Whoever comes anew looks after those who have gone; callers are backends, and few.
        callers.retain(|_, tickets| tickets.strong_count() > 0);
        let tickets = Arc::new(Tickets::new(EACH));
        callers.insert(caller, Arc::downgrade(&tickets));
        tickets
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_caller_leaves_a_turn_to_the_next_and_all_leave_a_connection() {
        let turns = Turns::new();
        let take = |name: &str| turns.take(Id::parse(name).ok(), Duration::from_millis(5));
        let mut hungry: Vec<_> = (0..EACH).map(|_| take("hungry").unwrap()).collect();
        assert!(take("hungry").is_none());
        let other = take("other").unwrap();
        assert!(take("third").is_none(), "{ALL} are taken");
        hungry.pop();
        assert!(take("third").is_some());
        drop((hungry, other));
        assert!(take("").is_some());
        assert_eq!(turns.callers.lock().unwrap().len(), 1);
    }
}
