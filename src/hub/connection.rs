//! What the hub knows of one connection.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::conversation::Conversation;
use super::outbox::Outbox;
use super::replay::Replays;
use super::socket::Socket;
use super::users::UserShare;
use crate::auth::Identity;
use crate::config::{CLOSE_TIMEOUT, UNFINISHED_MESSAGE_TIMEOUT};
use crate::protocol::close::Close;
use crate::protocol::{Id, Room};
use crate::runtime::clock::Moment;

/// Whom a message may be for besides the members of a room. A connection is in those that it belongs to
/// from its registration to its end, that of its user from the reservation on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Audience {
    Everyone,
    User(Id),
    Admins,
    /// Connections of role seller with this seller id.
    Seller(Id),
}

/// A connection from its reservation to the end of its threads.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) identity: Arc<Identity>,
    pub(super) share: Arc<UserShare>,
    pub(super) since: Moment,
    pub(super) state: State,
    /// On the list of connections to flush.
    pub(super) dirty: bool,
    /// Whether it knows of positions, since it has asked for one: only then a reset tells it anything.
    pub(super) knows_positions: bool,
    /// What it has missed and is still to get; mostly nothing.
    pub(super) replays: Option<Box<Replays>>,
    /// What it said and waits for an answer to.
    pub(super) conversation: Conversation,
    /// `None` until the connection registers.
    pub(super) socket: Option<Arc<dyn Socket>>,
    pub(super) outbox: Outbox,
    /// Joined rooms, and the position in each. Ordered, so that leaving a million can be cut in parts.
    pub(super) rooms: BTreeMap<Room, usize>,
    /// Audiences, and the position in each; that of the user comes first.
    pub(super) audiences: Vec<(Audience, usize)>,
    pub(super) reader_ended: bool,
    /// Backlogs that the writers have not reported as done: the report of one that the hub took the socket
    /// back from may still be on its way when there is another.
    pub(super) writers: usize,
    pub(super) pinged: Option<Moment>,
    /// When it was last told that a room is over its rate.
    pub(super) told_of_room_rate: Option<Moment>,
    pub(super) reason: Option<DisconnectReason>,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Has a place, not yet a socket.
    Reserved,
    /// Live: the only state in which events count and frames are appended.
    Open,
    /// The Close frame is appended; the next flush sends or queues it.
    Closing,
    /// The Close frame is on its way; the peer has until the deadline to end the stream.
    Draining(Moment),
    /// Shut down in both directions; only its threads have still to end.
    Aborted,
}

/// Why a connection ended, as its log line and the metrics say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DisconnectReason {
    /// With a Close frame.
    Closed(Close),
    /// The peer ended the stream or reset it without a Close.
    Gone,
    /// It did not read: its backlog was over a limit, or its head over `WRITE_TIMEOUT`.
    SlowConsumer,
    /// It did not answer a ping.
    DeadPeer,
    /// It did not finish a message within 30 s.
    UnfinishedMessage,
}

impl DisconnectReason {
    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed(close) => close.label(),
            Self::Gone => "gone",
            Self::SlowConsumer => "slow_consumer",
            Self::DeadPeer => "dead_peer",
            Self::UnfinishedMessage => "unfinished_message",
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(close) => match close.code_and_reason() {
                (code, "") => write!(f, "closed by the peer with {code}"),
                (code, reason) => write!(f, "{reason} ({code})"),
            },
            Self::Gone => f.write_str("gone without a close"),
            Self::SlowConsumer => f.write_str("slow consumer"),
            Self::DeadPeer => f.write_str("dead peer"),
            Self::UnfinishedMessage => f.write_str("unfinished message"),
        }
    }
}

/// What the clock makes due on a connection.
pub(super) enum Due {
    Close(Close),
    Abort(DisconnectReason),
    Ping,
    Flush,
}

/// The moments and spans that [`Connection::due`] compares.
pub(super) struct Clocks {
    pub(super) now: Moment,
    pub(super) wall: SystemTime,
    pub(super) write_timeout: Duration,
    pub(super) ping_interval: Duration,
}

impl Connection {
    /// A connection that has a place, and no socket yet.
    pub(super) fn reserved(number: u64, identity: Arc<Identity>, share: Arc<UserShare>) -> Self {
        Self {
            number,
            identity,
            share,
            since: Moment::now(),
            state: State::Reserved,
            dirty: false,
            knows_positions: false,
            replays: None,
            conversation: Conversation::default(),
            socket: None,
            outbox: Outbox::default(),
            rooms: BTreeMap::new(),
            audiences: Vec::new(),
            reader_ended: false,
            writers: 0,
            pinged: None,
            told_of_room_rate: None,
            reason: None,
            sent: 0,
            received: 0,
        }
    }

    /// Takes the last audience off, but for that of the user.
    pub(super) fn leave_audience(&mut self) -> Option<(Audience, usize)> {
        self.audiences.pop_if(|(audience, _)| !matches!(audience, Audience::User(_)))
    }

    /// It has another position in this audience now.
    pub(super) fn moved_in_audience(&mut self, audience: &Audience, position: usize) {
        if let Some(place) = self.audiences.iter_mut().find(|(own, _)| own == audience) {
            place.1 = position;
        }
    }

    /// What is due now; at most one thing a second.
    pub(super) fn due(&self, clocks: &Clocks) -> Option<Due> {
        let Clocks { now, .. } = *clocks;
        match self.state {
            State::Open => self.due_while_open(clocks),
            State::Draining(since) => (now.since(since) >= CLOSE_TIMEOUT)
                .then_some(Due::Abort(self.reason.unwrap_or(DisconnectReason::Gone))),
            State::Reserved | State::Closing | State::Aborted => None,
        }
    }

    fn due_while_open(&self, clocks: &Clocks) -> Option<Due> {
        let Clocks { now, wall, write_timeout, ping_interval } = *clocks;
        let activity = self.socket.as_ref()?.activity();
        let over = |since: Moment, limit| since != Moment::NEVER && now.since(since) > limit;
        if self.identity.expires_at <= wall {
            return Some(Due::Close(Close::TokenExpired));
        }
        if self.outbox.head_since().is_some_and(|since| over(since, write_timeout)) {
            return Some(Due::Abort(DisconnectReason::SlowConsumer));
        }
        if over(activity.unfinished_since.get(), UNFINISHED_MESSAGE_TIMEOUT) {
            return Some(Due::Abort(DisconnectReason::UnfinishedMessage));
        }
        let last_byte = activity.last_byte.get();
        if last_byte != Moment::NEVER && now.since(last_byte) >= ping_interval {
            // A ping follows at least an interval of silence, so that a byte of its own millisecond answers it.
            match self.pinged.filter(|pinged| *pinged > last_byte) {
                None => return Some(Due::Ping),
                Some(pinged) if now.since(pinged) >= ping_interval => {
                    return Some(Due::Abort(DisconnectReason::DeadPeer));
                }
                Some(_) => {}
            }
        }
        (self.outbox.backlog().is_some() || self.outbox.has_pong()).then_some(Due::Flush)
    }
}
