//! Named groups of connections (rooms, and the connections of each user) with O(1) join and leave.

use std::collections::HashMap;
use std::hash::Hash;

use slotmap::{SlotMap, new_key_type};

use super::event::ConnectionKey;

new_key_type! {
    /// A group that has members.
    pub struct GroupKey;
}

/// Groups by name; one exists as long as it has members. Whoever is a member remembers its position.
pub struct Groups<N> {
    keys: HashMap<N, GroupKey>,
    groups: SlotMap<GroupKey, Group<N>>,
}

struct Group<N> {
    name: N,
    members: Vec<ConnectionKey>,
}

/// A member that took the place of one that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Who moved.
    pub member: ConnectionKey,
    /// Its new position.
    pub position: usize,
}

impl<N: Eq + Hash + Clone> Default for Groups<N> {
    fn default() -> Self {
        Self { keys: HashMap::new(), groups: SlotMap::with_key() }
    }
}

impl<N: Eq + Hash + Clone> Groups<N> {
    /// The group of this name, if it has members.
    pub fn key(&self, name: &N) -> Option<GroupKey> {
        self.keys.get(name).copied()
    }

    /// Adds a member that is not one yet; returns the group and the member's position.
    pub fn insert(&mut self, name: &N, member: ConnectionKey) -> (GroupKey, usize) {
        let key = *self.keys.entry(name.clone()).or_insert_with(|| {
            self.groups.insert(Group { name: name.clone(), members: Vec::new() })
        });
        let position = self.groups.get_mut(key).map_or(0, |group| {
            group.members.push(member);
            group.members.len() - 1
        });
        (key, position)
    }

    /// Takes the member at `position` out; the group goes with its last.
    pub fn remove(&mut self, key: GroupKey, position: usize) -> Option<Moved> {
        let group = self.groups.get_mut(key)?;
        if position >= group.members.len() {
            return None;
        }
        group.members.swap_remove(position);
        let moved = group.members.get(position).map(|&member| Moved { member, position });
        if group.members.is_empty() {
            self.keys.remove(&group.name);
            self.groups.remove(key);
        } else if group.members.capacity() > 4 * group.members.len().max(16) {
            // A room that was large for a moment does not hold its memory for ever.
            group.members.shrink_to(2 * group.members.len());
        }
        moved
    }

    /// The name of a group.
    pub fn name(&self, key: GroupKey) -> Option<&N> {
        self.groups.get(key).map(|group| &group.name)
    }

    /// The members, in no order.
    pub fn members(&self, key: GroupKey) -> &[ConnectionKey] {
        self.groups.get(key).map_or(&[], |group| &group.members)
    }

    /// Every group with its members.
    pub fn iter(&self) -> impl Iterator<Item = (&N, &[ConnectionKey])> {
        self.groups.values().map(|group| (&group.name, group.members.as_slice()))
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
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
                if let Some((key, position)) = positions.remove(&(name, member)) {
                    if let Some(moved) = groups.remove(key, position) {
                        positions.insert((name, moved.member), (key, moved.position));
                    }
                    let set = model.entry(name).or_default();
                    set.remove(&member);
                    if set.is_empty() { model.remove(&name); }
                } else {
                    positions.insert((name, member), groups.insert(&name, member));
                    model.entry(name).or_default().insert(member);
                }
                let seen: BTreeMap<u8, BTreeSet<_>> =
                    groups.iter().map(|(n, m)| (*n, m.iter().copied().collect())).collect();
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(groups.keys.len(), model.len());
            }
        }
    }
}
