//! A message and whom it is for, as hub and broker hand it to each other.

use super::draft::Draft;
use super::id::Id;
use super::room::Room;

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every connection of a user.
    User(Id),
    /// Every member of a room.
    Room(Room),
    /// Every connection.
    Everyone,
    /// Every connection of role admin.
    Admins,
    /// Every connection of role seller with this seller id.
    Seller(Id),
}

/// A message, and whom it is for.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whom it is for.
    pub target: Target,
    /// The message; the hub numbers it where it can.
    pub draft: Draft,
}
