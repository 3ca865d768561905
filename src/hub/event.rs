//! What comes to the hub: the closed set of events, and the handle that sends them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slotmap::new_key_type;

use super::allowance::{Allowance, Budget};
use super::rates::UserRates;
use super::socket::Socket;
use super::stats::Stats;
use super::users::UserShare;
use crate::auth::Identity;
use crate::config::MIB;
use crate::protocol::close::Close;
use crate::protocol::{ErrorCode, Id, MessageId, Room};
use crate::runtime::channel::{Sender, bounded};

/// Messages of the broker that may wait for the hub.
const BROKER_MESSAGES: usize = 10_000;
/// Bytes of the broker's messages that may wait for the hub.
const BROKER_BYTES: usize = 16 * MIB;

new_key_type! {
    /// Place of a connection in the hub; a key of an ended connection never hits a later one.
    pub struct ConnectionKey;
}

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
///
/// [`Event::Said`], [`Event::Notify`] and [`Event::Remote`] are what publishers say: they wait in the
/// schedule. All others are control: the hub reacts to them before it serves anything that waits.
pub enum Event {
    /// A handshake asks for a place.
    Reserve {
        /// Who connects.
        identity: Arc<Identity>,
        /// Number of the connection, for logs.
        number: u64,
        /// Where the answer goes.
        reply: Sender<Result<Publisher, Refusal>>,
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

/// What a connection says; served in its order.
pub enum Said {
    /// An authorised join.
    Join(Room, Option<MessageId>),
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

    /// How many times as much as a user it may say while others wait.
    pub fn weight(&self) -> u32 {
        match self {
            Self::User(_) | Self::Broker(_) => 1,
            Self::Backend(_) | Self::Service => 8,
        }
    }
}

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
    pub rooms: std::collections::BTreeMap<Room, usize>,
    /// How many rooms there are.
    pub rooms_total: usize,
}

/// A connection's way to the hub: what it says waits in its user's queue, and it waits while that is full.
/// Dropping it, also by a panic, says that nothing more will come.
pub struct Publisher {
    pub(super) key: ConnectionKey,
    hub: HubHandle,
    share: Arc<UserShare>,
}

impl Publisher {
    pub(super) fn new(key: ConnectionKey, hub: HubHandle, share: Arc<UserShare>) -> Self {
        Self { key, hub, share }
    }

    /// What the user may send, over all its connections.
    pub fn rates(&self) -> &UserRates {
        &self.share.rates
    }

    /// Makes the connection live; the hub writes `response` first.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn register(&self, socket: Arc<dyn Socket>, response: Bytes) -> Result<(), HubGone> {
        self.hub.send(Event::Register { key: self.key, socket, response })
    }

    /// Says something that is based on so many bytes of the peer; waits while too much waits already.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn say(&self, said: Said, bytes: usize) -> Result<(), HubGone> {
        self.share.allowance.take(bytes)?;
        self.hub.send(Event::Said { key: self.key, said, taken: Some(bytes) })
    }

    /// Whether the connection is in the room, once what it has said before is served.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn is_member(&self, room: &Room) -> Result<bool, HubGone> {
        let (reply, answer) = bounded(1);
        self.say(Said::IsMember(room.clone(), reply), room.as_str().len())?;
        answer.recv().map_err(|_| HubGone)
    }

    /// Asks for a Close; from now on nothing else is said.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn close(&self, close: Close) -> Result<(), HubGone> {
        self.hub.send(Event::Said { key: self.key, said: Said::Close(close), taken: None })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Without a hub no one waits for this.
        let _ = self.hub.send(Event::Said { key: self.key, said: Said::Ended, taken: None });
    }
}

/// The hub's thread has ended: the service is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hub has ended")]
pub struct HubGone;

/// Sends events to the hub, and never waits to do so: what may wait is bounded by allowances, and by what
/// one thread asks at a time.
#[derive(Clone)]
pub struct HubHandle {
    events: Sender<Event>,
    budget: Arc<Budget>,
    /// Of the broker, and of notifications, which wait in the threads that serve REST.
    broker: Arc<Allowance>,
}

impl HubHandle {
    /// A handle over the hub's channel.
    pub fn new(events: Sender<Event>) -> Self {
        let budget = Arc::new(Budget::default());
        let broker = Arc::new(Allowance::new(Arc::clone(&budget), BROKER_MESSAGES, BROKER_BYTES));
        Self { events, budget, broker }
    }

    /// Sends one event.
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
    pub fn notify(
        &self,
        publisher: PublisherName,
        deliveries: Vec<Delivery>,
    ) -> Result<Vec<usize>, HubGone> {
        self.ask(|reply| Event::Notify(Notify { publisher, deliveries, reply }))
    }

    /// Delivers what came through the broker; waits while too much of it waits already.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn deliver(&self, delivery: Delivery) -> Result<(), HubGone> {
        self.broker.take(delivery.frame.len())?;
        self.send(Event::Remote(delivery))
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

    /// Events that the hub has not looked at yet.
    pub fn queue_len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn broker(&self) -> &Arc<Allowance> {
        &self.broker
    }
}
