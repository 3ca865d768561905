//! Answers of the hub to who asks what is here. Each looks at no more than it tells, however many
//! connections and rooms there are.

use std::sync::Arc;

use super::connection::{Audience, Connection, State};
use super::core::Hub;
use super::event::ConnectionKey;
use super::query::{
    Counts, ListQuery, ListedConnection, Listing, MAX_COUNTED_ROOMS, MAX_LISTED_ROOMS,
};
use super::stats::Stats;
use crate::runtime::clock::Moment;

impl Hub {
    pub(super) fn list(&self, query: &ListQuery) -> Listing {
        let ListQuery { room, user, offset, limit } = query;
        let page = |keys: &[ConnectionKey]| {
            keys.iter().skip(*offset).take(*limit).filter_map(|key| self.listed(*key)).collect()
        };
        let Some(user) = user else {
            let keys = match room {
                Some(room) => self.rooms.members(room),
                None => self.audiences.members(&Audience::Everyone),
            };
            return Listing { total: keys.len(), connections: page(keys) };
        };
        // The connections of a user are few, and some have no socket yet.
        let is_wanted = |connection: &Connection| {
            connection.state == State::Open
                && room.as_ref().is_none_or(|room| connection.rooms.contains_key(room))
        };
        let keys = self.audiences.members(&Audience::User(user.clone())).iter().copied();
        let keys: Vec<_> =
            keys.filter(|key| self.connections.slots.get(*key).is_some_and(is_wanted)).collect();
        Listing { total: keys.len(), connections: page(&keys) }
    }

    fn listed(&self, key: ConnectionKey) -> Option<ListedConnection> {
        let connection = self.connections.slots.get(key)?;
        Some(ListedConnection {
            number: connection.number,
            identity: Arc::clone(&connection.identity),
            rooms: connection.rooms.keys().take(MAX_LISTED_ROOMS).cloned().collect(),
            rooms_total: connection.rooms.len(),
            age: Moment::now().since(connection.since),
            sent: connection.sent,
            received: connection.received,
            backlog: connection.outbox.backlog().map_or(0, |backlog| backlog.frames()),
        })
    }

    pub(super) fn stats(&self) -> Stats {
        let (publishers, messages) = self.waiting();
        Stats {
            connections: self.open_connections() as u64,
            rooms: self.rooms.len() as u64,
            writers: self.outlets.writers.threads() as u64,
            waiting_backlogs: self.outlets.writers.waiting() as u64,
            waiting_publishers: publishers as u64,
            waiting_messages: messages as u64,
            waiting_bytes: self.budget().bytes() as u64,
            held_back: self.budget().held_back(),
            history: self.history.counts(),
            copies: self.copy_counts(),
            ..self.stats.clone()
        }
    }

    fn open_connections(&self) -> usize {
        self.audiences.members(&Audience::Everyone).len()
    }

    pub(super) fn counts(&self) -> Counts {
        let largest = self.rooms.largest(MAX_COUNTED_ROOMS);
        Counts {
            clients: self.open_connections(),
            rooms: largest.map(|(room, members)| (room.clone(), members)).collect(),
            rooms_total: self.rooms.len(),
        }
    }
}
