//! Named groups of connections (rooms, users, sellers, admins, everyone) with O(1) join and leave.

use std::collections::HashMap;
use std::hash::Hash;

use super::event::ConnectionKey;

/// Fewest places for which memory is given back.
const KEPT_PLACES: usize = 16;

/// Groups by name; one exists as long as it has members. Whoever is a member remembers its position.
#[derive(Debug)]
pub struct Groups<N> {
    groups: HashMap<N, Vec<ConnectionKey>>,
}

/// A member that took the place of one that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Who moved.
    pub member: ConnectionKey,
    /// Its new position.
    pub position: usize,
}

impl<N> Default for Groups<N> {
    fn default() -> Self {
        Self { groups: HashMap::new() }
    }
}

impl<N: Eq + Hash + Clone> Groups<N> {
    /// Adds a member that is not one yet; returns its position.
    pub fn insert(&mut self, name: &N, member: ConnectionKey) -> usize {
        let members = match self.groups.get_mut(name) {
            Some(members) => members,
            None => self.groups.entry(name.clone()).or_default(),
        };
        members.push(member);
        members.len() - 1
    }

    /// Takes the member at `position` out; the group goes with its last. A group, or the table of all,
    /// that was large for a moment gives its memory back.
    pub fn remove(&mut self, name: &N, position: usize) -> Option<Moved> {
        let members = self.groups.get_mut(name)?;
        if position >= members.len() {
            return None;
        }
        members.swap_remove(position);
        let moved = members.get(position).map(|&member| Moved { member, position });
        if members.is_empty() {
            self.groups.remove(name);
            if self.groups.capacity() > 8 * self.groups.len().max(KEPT_PLACES) {
                self.groups.shrink_to(2 * self.groups.len());
            }
        } else if members.capacity() > 4 * members.len().max(KEPT_PLACES) {
            members.shrink_to(2 * members.len());
        }
        moved
    }

    /// The members, oldest first as long as none has left.
    pub fn members(&self, name: &N) -> &[ConnectionKey] {
        self.groups.get(name).map_or(&[], Vec::as_slice)
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use slotmap::SlotMap;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        /// Against a plain model: any sequence of joins and leaves.
        #[test]
        fn groups_behave_like_sets(steps in prop::collection::vec((0..4_u8, 0..6_usize), 0..200)) {
            let mut keys = SlotMap::<ConnectionKey, ()>::with_key();
            let members: Vec<_> = (0..6).map(|_| keys.insert(())).collect();
            let mut groups = Groups::<u8>::default();
            let mut positions = BTreeMap::new();
            let mut model: BTreeMap<u8, BTreeSet<ConnectionKey>> = BTreeMap::new();
            for (name, who) in steps {
                let member = members[who];
                if let Some(position) = positions.remove(&(name, member)) {
                    if let Some(moved) = groups.remove(&name, position) {
                        positions.insert((name, moved.member), moved.position);
                    }
                    let set = model.entry(name).or_default();
                    set.remove(&member);
                    if set.is_empty() { model.remove(&name); }
                } else {
                    positions.insert((name, member), groups.insert(&name, member));
                    model.entry(name).or_default().insert(member);
                }
                let seen: BTreeMap<u8, BTreeSet<_>> =
                    groups.groups.iter().map(|(n, m)| (*n, m.iter().copied().collect())).collect();
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(groups.len(), model.len());
            }
        }

        #[test]
        fn the_memory_of_vanished_groups_is_given_back(many in 1_000..5_000_u32, left in 0..20_u32) {
            let member = SlotMap::<ConnectionKey, ()>::with_key().insert(());
            let mut groups = Groups::<u32>::default();
            (0..many).for_each(|name| { groups.insert(&name, member); });
            (left..many).for_each(|name| { groups.remove(&name, 0); });
            prop_assert_eq!(groups.len(), left as usize);
            prop_assert!(groups.groups.capacity() <= 16 * KEPT_PLACES.max(left as usize));
        }
    }
}
