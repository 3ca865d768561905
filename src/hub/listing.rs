//! Answers of the hub to who asks what is here: counts, lists of connections, statistics.

use std::sync::Arc;

use super::connection::{Connection, State};
use super::core::Hub;
use super::event::{Counts, ListQuery, ListedConnection, Listing};
use super::stats::Stats;
use crate::runtime::clock::Moment;

impl Hub {
    pub(super) fn list(&self, query: &ListQuery) -> Listing {
        let room = query.room.as_ref().map(|room| self.rooms.key(room));
        let mut matching: Vec<_> = self
            .connections
            .slots
            .values()
            .filter(|c| c.state == State::Open)
            .filter(|c| query.user.as_ref().is_none_or(|user| c.identity.user_id == **user))
            .filter(|c| room.is_none_or(|room| room.is_some_and(|key| c.rooms.contains_key(&key))))
            .collect();
        matching.sort_unstable_by_key(|connection| connection.number);
        let part = matching.iter().skip(query.offset).take(query.limit);
        Listing {
            total: matching.len(),
            connections: part.map(|connection| self.listed(connection)).collect(),
        }
    }

    fn listed(&self, connection: &Connection) -> ListedConnection {
        let rooms = connection.rooms.keys().filter_map(|key| self.rooms.name(*key));
        let mut rooms: Vec<_> = rooms.map(|room| room.as_str().to_owned()).collect();
        rooms.sort_unstable();
        ListedConnection {
            number: connection.number,
            identity: Arc::clone(&connection.identity),
            rooms,
            age: Moment::now().since(connection.since),
            sent: connection.sent,
            received: connection.received,
            backlog: connection.outbox.backlog().map_or(0, |backlog| backlog.frames()),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            connections: self.open_connections() as u64,
            rooms: self.rooms.iter().count() as u64,
            writers: self.writers as u64,
            ..self.stats.clone()
        }
    }

    fn open_connections(&self) -> usize {
        self.connections.slots.values().filter(|c| c.state == State::Open).count()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            clients: self.open_connections(),
            rooms: self
                .rooms
                .iter()
                .map(|(room, members)| (room.as_str().to_owned(), members.len()))
                .collect(),
        }
    }
}
