//! What comes to the hub: the closed set of events, and the handle that sends them.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slotmap::new_key_type;

use super::socket::Socket;
use super::stats::Stats;
use crate::auth::Identity;
use crate::protocol::close::Close;
use crate::protocol::{ErrorCode, Id, MessageId, Room};
use crate::runtime::channel::{Sender, bounded};

new_key_type! {
    /// Place of a connection in the hub; a key of an ended connection never hits a later one.
    pub struct ConnectionKey;
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// A frame, ready to be sent, and whom it is for.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whom it is for.
    pub target: Target,
    /// One unmasked text frame.
    pub frame: Bytes,
}

/// A client's broadcast.
#[derive(Debug)]
pub struct Broadcast {
    /// The room.
    pub room: Room,
    /// The frame for every member.
    pub frame: Bytes,
    /// Whether the sender may join the room, which also lets it broadcast; a member always may.
    pub permitted: bool,
    /// The id to repeat in the answer.
    pub id: Option<MessageId>,
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
pub enum Event {
    /// A handshake asks for a place.
    Reserve {
        /// Who connects.
        identity: Arc<Identity>,
        /// Number of the connection, for logs.
        number: u64,
        /// Where the answer goes.
        reply: Sender<Result<ConnectionKey, Refusal>>,
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
    /// The handshake came to nothing: the place is free again.
    Release(ConnectionKey),
    /// An authorised join.
    Join(ConnectionKey, Room, Option<MessageId>),
    /// A leave.
    Leave(ConnectionKey, Room, Option<MessageId>),
    /// A broadcast.
    Broadcast(ConnectionKey, Broadcast),
    /// Whether the connection is in the room now, asked before the backend is.
    IsMember(ConnectionKey, Room, Sender<bool>),
    /// A message was refused: tell the client.
    Refuse(ConnectionKey, ErrorCode, Option<MessageId>),
    /// The peer sent a ping with this payload.
    Ping(ConnectionKey, Bytes),
    /// The reader asks for a Close, and from now on only drains the socket.
    Close(ConnectionKey, Close),
    /// The reader has ended: it reads nothing any more.
    ReaderEnded(ConnectionKey),
    /// A writer has ended.
    WriterEnded {
        /// Its connection.
        key: ConnectionKey,
        /// Whether a send failed.
        broken: bool,
    },
    /// Notifications of this instance; the answer has a count of connections for each.
    Notify(Vec<Delivery>, Sender<Vec<usize>>),
    /// A message that came through the broker.
    Remote(Delivery),
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

/// Which connections to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only members of this room.
    pub room: Option<Room>,
    /// Only connections of this user.
    pub user: Option<String>,
    /// How many to pass over.
    pub offset: usize,
    /// How many to list at most.
    pub limit: usize,
}

/// A part of the list of connections, oldest first.
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
    /// Its rooms, sorted.
    pub rooms: Vec<String>,
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
    /// Members of each room, by name.
    pub rooms: std::collections::BTreeMap<String, usize>,
}

/// The hub's thread has ended: the service is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubGone;

impl fmt::Display for HubGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the hub has ended")
    }
}

impl std::error::Error for HubGone {}

/// Sends events to the hub; a full channel blocks the sender, which is the back-pressure on it.
#[derive(Clone)]
pub struct HubHandle {
    events: Sender<Event>,
}

impl HubHandle {
    /// A handle over the hub's channel.
    pub fn new(events: Sender<Event>) -> Self {
        Self { events }
    }

    /// Sends one event; blocks while the channel is full.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn send(&self, event: Event) -> Result<(), HubGone> {
        self.events.send(event).map_err(|_| HubGone)
    }

    /// Delivers on this instance and hands over to the broker; returns for each the number of local
    /// connections whose outbox took it.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn notify(&self, deliveries: Vec<Delivery>) -> Result<Vec<usize>, HubGone> {
        self.ask(|reply| Event::Notify(deliveries, reply))
    }

    /// Who is here.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn counts(&self) -> Result<Counts, HubGone> {
        self.ask(Event::Counts)
    }

    /// Sends a question and waits for its answer.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn ask<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> Result<T, HubGone> {
        let (reply, answer) = bounded(1);
        self.send(event(reply))?;
        answer.recv().map_err(|_| HubGone)
    }

    /// Events that wait for the hub.
    pub fn queue_len(&self) -> usize {
        self.events.len()
    }
}
