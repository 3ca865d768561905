//! Names of rooms, and the kinds of rooms that they stand for.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::config::MAX_ROOM_BYTES;

/// Name of the room that every admin is in.
const ADMINS: &str = "admins";

/// A room name that has the right format; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room(Arc<str>);

/// What the name of a room says about who may join it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomKind<'a> {
    /// `order-{id}`.
    Order(&'a str),
    /// `seller-{id}`.
    Seller(&'a str),
    /// `client-{id}`.
    Client(&'a str),
    /// `user-{id}`.
    User(&'a str),
    /// `admins`.
    Admins,
    /// Any other name.
    Other,
}

impl Room {
    /// Checks the format: 1 to 128 of `A–Z a–z 0–9 _ - . :`, and an id behind the four prefixes.
    ///
    /// # Errors
    /// [`BadRoom`] when the name has another form.
    pub fn parse(name: &str) -> Result<Self, BadRoom> {
        let in_alphabet =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
        let fits = (1..=MAX_ROOM_BYTES).contains(&name.len()) && name.bytes().all(in_alphabet);
        if fits && !RoomKind::of(name).lacks_id() { Ok(Self(name.into())) } else { Err(BadRoom) }
    }

    /// The room that every admin is in.
    pub fn admins() -> Self {
        Self(ADMINS.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the name says about who may join.
    pub fn kind(&self) -> RoomKind<'_> {
        RoomKind::of(self.as_str())
    }
}

impl<'a> RoomKind<'a> {
    /// The only place that knows the prefixes.
    fn of(name: &'a str) -> Self {
        match name.split_once('-') {
            Some(("order", id)) => Self::Order(id),
            Some(("seller", id)) => Self::Seller(id),
            Some(("client", id)) => Self::Client(id),
            Some(("user", id)) => Self::User(id),
            _ if name == ADMINS => Self::Admins,
            _ => Self::Other,
        }
    }

    fn lacks_id(self) -> bool {
        matches!(self, Self::Order("") | Self::Seller("") | Self::Client("") | Self::User(""))
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Room {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A room name of the wrong form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRoom;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn rooms_tell_their_kind() {
        let kind = |name: &str| format!("{:?}", Room::parse(name).unwrap().kind());
        assert_eq!(kind("order-1-2"), "Order(\"1-2\")");
        assert_eq!(kind("user-a:b"), "User(\"a:b\")");
        assert_eq!(kind("admins"), "Admins");
        assert_eq!(kind("admins-1"), "Other");
        assert_eq!(kind("orders"), "Other");
    }
}
