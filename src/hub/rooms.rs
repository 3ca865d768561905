//! The rooms that have members, and which of them are the largest.

use std::collections::BTreeSet;

use super::event::ConnectionKey;
use super::groups::{Groups, Moved};
use crate::protocol::Room;

/// Rooms and their members.
#[derive(Debug, Default)]
pub struct Rooms {
    groups: Groups<Room>,
    /// Kept in order, since a scrape or the console may ask at any time and must not hold up the hub.
    by_size: BTreeSet<(usize, Room)>,
}

impl Rooms {
    /// Adds a member that is not one yet; returns its position.
    pub fn insert(&mut self, room: &Room, member: ConnectionKey) -> usize {
        let position = self.groups.insert(room, member);
        self.resize(room, position, position + 1);
        position
    }

    /// Takes the member at `position` out; the room goes with its last.
    pub fn remove(&mut self, room: &Room, position: usize) -> Option<Moved> {
        let before = self.members(room).len();
        let moved = self.groups.remove(room, position);
        self.resize(room, before, self.members(room).len());
        moved
    }

    /// The members.
    pub fn members(&self, room: &Room) -> &[ConnectionKey] {
        self.groups.members(room)
    }

    /// Number of rooms.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// The rooms with most members and their sizes, largest first.
    pub fn largest(&self, limit: usize) -> impl Iterator<Item = (&Room, usize)> {
        self.by_size.iter().rev().take(limit).map(|(size, room)| (room, *size))
    }

    fn resize(&mut self, room: &Room, before: usize, now: usize) {
        if before == now {
            return;
        }
        // The name of an entry that is there already is used again.
        let entry = self.by_size.take(&(before, room.clone()));
        if now > 0 {
            self.by_size.insert((now, entry.map_or_else(|| room.clone(), |(_, room)| room)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use slotmap::SlotMap;

    #[test]
    fn the_largest_rooms_come_first_and_empty_ones_are_gone() {
        let mut keys = SlotMap::<ConnectionKey, ()>::with_key();
        let mut rooms = Rooms::default();
        let room = |name: &str| Room::parse(name).unwrap();
        for (name, size) in [("a", 1), ("b", 3), ("c", 2)] {
            (0..size).for_each(|_| _ = rooms.insert(&room(name), keys.insert(())));
        }
        let largest = |rooms: &Rooms, limit| {
            rooms.largest(limit).map(|(room, size)| format!("{room} {size}")).collect::<Vec<_>>()
        };
        assert_eq!(largest(&rooms, 2), ["b 3", "c 2"]);
        rooms.remove(&room("b"), 0);
        rooms.remove(&room("b"), 0);
        rooms.remove(&room("a"), 0);
        assert_eq!(largest(&rooms, 9), ["c 2", "b 1"]);
        assert_eq!(rooms.remove(&room("a"), 0), None);
        assert_eq!((rooms.len(), rooms.by_size.len()), (2, 2));
    }
}
