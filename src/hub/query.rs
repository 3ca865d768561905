//! What the hub can be asked about who is here, and the form of its answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Identity;
use crate::protocol::{Id, Room};

/// Most rooms that [`Counts`] names.
pub const MAX_COUNTED_ROOMS: usize = 1000;
/// Most rooms of a connection that a list names.
pub const MAX_LISTED_ROOMS: usize = 100;

/// Which connections to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only members of this room.
    pub room: Option<Room>,
    /// Only connections of this user.
    pub user: Option<Id>,
    /// How many to pass over.
    pub offset: usize,
    /// How many to list at most.
    pub limit: usize,
}

/// A part of the list of connections, oldest first as long as none has ended.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// How many match in all.
    pub total: usize,
    /// The wanted part.
    pub connections: Vec<ListedConnection>,
}

/// One connection in a list.
#[derive(Debug, Clone)]
pub struct ListedConnection {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// The first [`MAX_LISTED_ROOMS`] of its rooms, sorted.
    pub rooms: Vec<Room>,
    /// How many rooms it is in.
    pub rooms_total: usize,
    /// How long it has been here.
    pub age: Duration,
    /// Frames appended for it.
    pub sent: u64,
    /// Messages that came from it.
    pub received: u64,
    /// Frames that wait for its writer.
    pub backlog: u64,
}

/// How many are here, for `GET /admin/clients`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Live connections.
    pub clients: usize,
    /// Members of each room, by name; the largest [`MAX_COUNTED_ROOMS`] where there are more.
    pub rooms: BTreeMap<Room, usize>,
    /// How many rooms there are.
    pub rooms_total: usize,
}
