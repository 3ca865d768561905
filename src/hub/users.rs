//! What all connections of a user share: its rates, and its part of what may wait for the hub.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::allowance::{Allowance, Budget};
use super::rates::{UserLimits, UserRates, nanos};
use crate::protocol::Id;

/// Most users that one call of [`UserTable::forget_full`] looks at: more than connect in a second, so that
/// the queue is worked off, and few enough for one or two milliseconds.
pub(super) const FORGOTTEN_AT_ONCE: usize = 10_000;

/// Handed out with each place of the user in the hub.
#[derive(Debug)]
pub struct UserShare {
    /// What it may send.
    pub rates: UserRates,
    /// What of it may wait.
    pub allowance: Allowance,
}

/// The rates of the users who are here, and of those who left before theirs were full again: a new
/// connection is no way to a new burst.
#[derive(Debug)]
pub struct UserTable {
    limits: UserLimits,
    budget: Arc<Budget>,
    pub(super) users: HashMap<Id, User>,
    /// Users to look at again, the earliest first; each is in it at most once.
    pub(super) leaving: BinaryHeap<Reverse<(u64, Id)>>,
}

#[derive(Debug)]
pub(super) struct User {
    share: Arc<UserShare>,
    /// Places in the hub.
    places: usize,
    is_leaving: bool,
}

impl UserTable {
    /// Without users.
    pub fn new(limits: UserLimits, budget: Arc<Budget>) -> Self {
        Self { limits, budget, users: HashMap::new(), leaving: BinaryHeap::new() }
    }

    /// The user gets a place in the hub: its rates, as it left them.
    pub fn enter(&mut self, id: &Id) -> Arc<UserShare> {
        let Self { limits, budget, users, .. } = self;
        let user = users.entry(id.clone()).or_insert_with(|| User {
            share: Arc::new(UserShare {
                rates: UserRates::new(*limits),
                allowance: Allowance::of_user(Arc::clone(budget)),
            }),
            places: 0,
            is_leaving: false,
        });
        user.places += 1;
        Arc::clone(&user.share)
    }

    /// A place of the user is free again. With its last one it is forgotten as soon as its rates are full.
    pub fn leave(&mut self, name: &Id, now: Duration) {
        let Some(user) = self.users.get_mut(name) else {
            return;
        };
        user.places = user.places.saturating_sub(1);
        // One that is on the queue already stays there, so that it is on it once only.
        if user.places > 0 || user.is_leaving {
            return;
        }
        let full_at = user.share.rates.full_at();
        if full_at <= nanos(now) {
            self.users.remove(name);
        } else {
            user.is_leaving = true;
            self.leaving.push(Reverse((full_at, name.clone())));
        }
    }

    /// Forgets users without a place whose rates are full; for the hub's tick. The work of one call is
    /// bounded, and what it leaves over waits for the next.
    pub fn forget_full(&mut self, now: Duration) {
        let now = nanos(now);
        for _ in 0..FORGOTTEN_AT_ONCE {
            if self.leaving.peek().is_none_or(|Reverse((due, _))| *due > now) {
                break;
            }
            let Some(Reverse((_, name))) = self.leaving.pop() else {
                break;
            };
            let Some(user) = self.users.get_mut(&name) else {
                continue;
            };
            let full_at = user.share.rates.full_at();
            if user.places > 0 {
                user.is_leaving = false;
            } else if full_at > now {
                // It came back meanwhile, sent and left again.
                self.leaving.push(Reverse((full_at, name)));
            } else {
                self.users.remove(&name);
            }
        }
        // Many users for a moment do not hold their memory for ever.
        if self.users.capacity() > 4 * self.users.len().max(256) {
            self.users.shrink_to(2 * self.users.len());
            self.leaving.shrink_to(2 * self.leaving.len());
        }
    }
}
