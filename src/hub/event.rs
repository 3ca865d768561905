//! What comes to the hub: the closed set of events.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use slotmap::new_key_type;

use super::query::{Counts, ListQuery, Listing};
use super::socket::Socket;
use super::stats::Stats;
use super::users::UserShare;
use crate::auth::Identity;
use crate::bridge::Incoming;
use crate::protocol::close::Close;
use crate::protocol::{Delivery, Draft, ErrorCode, Id, MessageId, Position, Room, Target};
use crate::runtime::channel::Sender;

new_key_type! {
    /// Place of a connection in the hub; a key of an ended connection never hits a later one.
    pub struct ConnectionKey;
}

/// A client's broadcast.
#[derive(Debug)]
pub struct Broadcast {
    /// The room.
    pub room: Room,
    /// The message for every member.
    pub draft: Draft,
    /// Whether the sender may join the room, which also lets it broadcast; a member always may.
    pub permitted: bool,
    /// The id to repeat in the answer.
    pub id: Option<MessageId>,
}

/// A place in the hub, as a handshake gets it.
#[derive(Debug)]
pub struct Place {
    /// The connection's key.
    pub key: ConnectionKey,
    /// What it shares with the user's other connections.
    pub share: Arc<UserShare>,
}

/// Why a place in the hub was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The user has `MAX_CONNECTIONS_PER_USER` already.
    UserCap,
    /// The service is shutting down.
    ShuttingDown,
}

/// Everything that the hub reacts to.
///
/// [`Event::Said`], [`Event::Notify`] and most of [`Event::Broker`] are what publishers say: they wait in the
/// schedule. All others are control: the hub reacts to them before it serves anything that waits.
pub enum Event {
    /// A handshake asks for a place.
    Reserve {
        /// Who connects.
        identity: Arc<Identity>,
        /// Number of the connection, for logs.
        number: u64,
        /// Where the answer goes.
        reply: Sender<Result<Place, Refusal>>,
    },
    /// The handshake has succeeded: the connection is live.
    Register {
        /// The reserved place.
        key: ConnectionKey,
        /// The socket to write to.
        socket: Arc<dyn Socket>,
        /// The 101, which the hub writes too: a thread that has sent once keeps 32 KiB of the kernel's
        /// memory to its end (`task_frag`), and a connection's thread so never sends. Empty for none.
        response: Bytes,
    },
    /// What a connection says.
    Said {
        /// The connection.
        key: ConnectionKey,
        /// What it says.
        said: Said,
        /// Bytes taken from its allowance; `None` for what takes none.
        taken: Option<usize>,
    },
    /// A writer has done with a backlog: it is drained, or its socket is broken or cut.
    WriterEnded {
        /// Its connection.
        key: ConnectionKey,
        /// Whether a send failed.
        broken: bool,
    },
    /// Notifications of this instance.
    Notify(Notify),
    /// What came from the broker.
    Broker(Incoming),
    /// How many are here.
    Counts(Sender<Counts>),
    /// Who is here, one by one.
    List(ListQuery, Sender<Listing>),
    /// What the hub has counted.
    Stats(Sender<Stats>),
    /// Close everything: no new place, Close 1001 behind what is queued. The sender is dropped when
    /// the last connection has ended.
    Shutdown(crossbeam_channel::Sender<Infallible>),
    /// End the hub's loop; everyone else has ended.
    Stop,
}

/// What a connection says; served in its order.
pub enum Said {
    /// An authorised join.
    Join {
        /// The room.
        room: Room,
        /// What the client has of it; `None` when it does not want the past.
        since: Option<Position>,
        /// The id to repeat in the answer.
        id: Option<MessageId>,
    },
    /// It wants its user's notifications.
    Resume {
        /// What it has of them; `None` when it only wants to know where they are.
        since: Option<Position>,
        /// The id to repeat in the answer.
        id: Option<MessageId>,
    },
    /// A leave.
    Leave(Room, Option<MessageId>),
    /// A broadcast.
    Broadcast(Broadcast),
    /// Whether the connection is in the room now, asked before the backend is.
    IsMember(Room, Sender<bool>),
    /// A message was refused: tell the client.
    Refuse(ErrorCode, Option<MessageId>),
    /// The peer sent a ping with this payload.
    Ping(Bytes),
    /// The reader asks for a Close, and from now on only drains the socket.
    Close(Close),
    /// Nothing more: its reader has ended, or its handshake came to nothing.
    Ended,
}

/// Notifications that are sent together.
pub struct Notify {
    /// Who sends them.
    pub publisher: PublisherName,
    /// They, in order.
    pub deliveries: Vec<Delivery>,
    /// Gets a count of connections for each.
    pub reply: Sender<Vec<usize>>,
    /// Bytes taken from the allowance of notifications.
    pub taken: usize,
}

/// Who publishes: whose messages wait in one queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublisherName {
    /// A user, over all connections.
    User(Id),
    /// A user of role admin or service, over all connections and REST requests.
    Backend(Id),
    /// The service itself, and REST callers where `API_AUTH` is off.
    Service,
    /// The broker, for this room, user or group.
    Broker(Target),
}

impl PublisherName {
    /// The publisher that this identity's messages belong to.
    pub fn of(identity: &Identity) -> Self {
        let id = identity.user_id.clone();
        if identity.role.may_call_api() { Self::Backend(id) } else { Self::User(id) }
    }

    /// How many times as much as a user it gets of the hub while others wait.
    pub(super) fn weight(&self) -> u32 {
        match self {
            Self::User(_) | Self::Broker(_) => 1,
            Self::Backend(_) | Self::Service => 8,
        }
    }

    /// Whether it may come first when it had nothing waiting. The broker has a queue for each target, and so
    /// could always come with a new one.
    pub(super) fn may_come_first(&self) -> bool {
        !matches!(self, Self::Broker(_))
    }
}
