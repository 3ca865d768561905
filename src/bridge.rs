//! Connects the instances of the service: what one publishes reaches the clients of all others.
//!
//! The hub knows only the traits [`PubSub`] and [`OrderedLog`], which [`RedisPubSub`] implements.
//!
//! ```text
//! hub ──append──▶ queue ──▶ redis-pub ──EVALSHA──▶ Redis ──pmessage──▶ redis-sub ──handler──▶ hub
//!                               └──────── probe, once a second, comes back ────────┘
//! hub ──read──▶ redis-history ──EVALSHA──▶ Redis ──answer──▶ redis-history ──handler──▶ hub
//!                                            └──mark──▶ redis-sub ──handler──▶ hub
//! ```
//!
//! Without history the hub publishes, and there is no `redis-history`.

mod backoff;
mod channel_names;
mod counters;
mod envelope;
mod inbox;
mod queue;
mod redis;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::protocol::{Delivery, Draft, Position, Target};

pub use self::redis::RedisPubSub;
pub use counters::{BridgeCounters, DropReason};

/// Most messages that wait for the broker.
pub const QUEUE_MESSAGES: usize = 10_000;
/// Most bytes of payload that wait for the broker: 16 MiB.
pub const QUEUE_BYTES: usize = 16 * crate::config::MIB;

/// Carries messages between the instances of the service, over any broker.
///
/// What an implementation (Redis; NATS, RabbitMQ or Kafka would be others) must keep:
///
/// - **Order.** What one instance publishes arrives at each other instance in the order of the
///   [`publish`](Self::publish) calls, over all targets. Different publishers have no common order.
/// - **At most once.** Nothing is handed to the handler twice. A message that may or may not have
///   arrived, since the connection broke before its confirmation, is counted as lost and not sent again.
///   A message that cannot be sent now is dropped and counted, not delivered late.
/// - **Own messages.** The handler never sees what its own instance published by [`publish`](Self::publish):
///   the hub has delivered that already.
/// - **Back-pressure.** `publish` never waits and never logs, since the hub calls it: it hands over to
///   a bounded queue and reports when that is full. The handler may block for as long as it likes; the
///   implementation then reads no further.
/// - **Absence.** The broker may be away at any time, at start too. The implementation reconnects by
///   itself, tells about it in [`state`](Self::state) and in one log line per change, and delivers
///   again within 5 s of the broker's return.
/// - **Losses are told.** Whenever messages of others may have been missed, since there was no subscription, the
///   handler gets [`Incoming::BrokenOff`] before the first message that comes again; so also at the start.
/// - **Foreign messages.** What other systems publish is checked before it reaches the handler; what is
///   not understood is counted and dropped.
pub trait PubSub: Send + Sync {
    /// Hands one message over, without waiting. With an ordered log, one for a room or a user is one that was
    /// refused there: the others are told so. Only messages for users, rooms and everyone are published;
    /// those for other targets stay on this instance.
    ///
    /// # Errors
    /// Why the message was dropped; it is counted already.
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason>;

    /// Starts the threads; from now on `handler` gets what other instances and systems publish.
    ///
    /// # Errors
    /// When the system has no thread left, or when it was started before.
    fn start(&self, handler: Handler) -> io::Result<()>;

    /// The broker's ordered log, where it has one. Without one, messages have no numbers and nothing is recovered.
    fn ordered_log(&self) -> Option<&dyn OrderedLog> {
        None
    }

    /// Whether messages flow both ways; for `/health`. Never [`BridgeState::Disabled`].
    fn state(&self) -> BridgeState;

    /// What passed and what was dropped, for `/metrics`.
    fn counters(&self) -> &Arc<BridgeCounters>;

    /// Refuses further messages, publishes what is queued, and waits until the threads have ended.
    ///
    /// # Errors
    /// When they have not ended by `deadline`.
    fn close(&self, deadline: Instant) -> Result<(), NotClosed>;
}

/// What `/health` says of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeState {
    /// Messages flow both ways.
    Connected,
    /// They do not: what is published stays on this instance.
    Disconnected,
    /// There is no broker: `REDIS_ADDR` is empty.
    Disabled,
}

impl BridgeState {
    /// `connected`, `disconnected` or `disabled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Disabled => "disabled",
        }
    }
}

/// A message on its way to the other instances.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Whom it is for.
    pub target: Target,
    /// The JSON object that clients get, from behind its opening brace and its number on: at least one member,
    /// and the closing brace.
    pub members: Bytes,
}

/// The broker numbers messages for rooms and users and keeps them: one order for all instances.
///
/// What an implementation must keep, besides what [`PubSub`] says:
///
/// - **One log for each target**, with an epoch and numbers from 1 without a gap. A log that the broker has lost, or
///   that it may have lost a part of (a restart, a failover), begins again under an epoch that there never was.
/// - **One stream.** What is appended and renewed, by any instance, comes to the handler in the broker's order, the
///   own messages too ([`Incoming::Logged`], [`Incoming::Renewed`]). A reading has its place in that order, told by
///   [`Incoming::Marked`]: what the stream brings before it is in the answer, what it brings behind it is not.
/// - **No message is left hanging.** Each append that was taken comes back in the stream, or is given up by
///   [`Incoming::Refused`] or [`Incoming::Away`], which also follows when one was not taken since the broker has just
///   gone; a broker that hangs is away after a second. What was given up may be in the log all the same, and then
///   turns up.
/// - **At most once.** An append is never sent twice unless it is certain that the broker did not act on it.
/// - **Readings end.** Each is answered, by [`Unanswered`] if need be, within some seconds.
pub trait OrderedLog: Send + Sync {
    /// Hands over a message, without waiting; returns the ticket by which it comes back. Tickets rise, from 1. A
    /// message for a room or a user is numbered and kept; one for everyone is only published, and comes back as
    /// [`Incoming::Returned`]. How much of it waits is bounded by the hub.
    ///
    /// # Errors
    /// Why it was not taken; it is counted already, and is in no log.
    fn append(&self, outgoing: Outgoing) -> Result<u64, DropReason>;

    /// Asks where a log is and what it has, without waiting. A log that does not exist begins.
    fn read(&self, reading: Reading);

    /// Has a log begin a new epoch, which all instances are told, without waiting; `None` stands for all logs that
    /// the broker has. It may come to nothing when the broker is away: then nothing is told, and the hub asks again.
    fn renew(&self, target: Option<Target>, renewal: u64);
}

/// How much a log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Messages; 0 stands for no log at all.
    pub messages: usize,
    /// How long each is kept.
    pub ttl: Duration,
}

/// What the hub wants to know of a log.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The hub's number for it.
    pub number: u64,
    /// Whose log.
    pub target: Target,
    /// Messages behind this position are wanted, if it is of the log's epoch.
    pub since: Option<Position>,
    /// Without `since`, or when the epoch is another: all messages are wanted, not only the position.
    pub from_start: bool,
}

/// What a log had when it was read.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its epoch, and the number of its last message.
    pub position: Position,
    /// The wanted messages that there are, in order; not all of them where they are many or large. It may be none
    /// although some were wanted, when they are no longer kept.
    pub messages: Vec<KeptMessage>,
}

impl Answer {
    /// Bytes of its messages.
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.draft.len()).sum()
    }
}

/// A message of a log's past.
#[derive(Debug, Clone)]
pub struct KeptMessage {
    /// Its number.
    pub seq: u64,
    /// How long ago it was appended.
    pub age: Duration,
    /// Its ticket, if it is this instance's.
    pub ticket: Option<u64>,
    /// The message.
    pub draft: Draft,
}

/// The broker did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker did not answer")]
pub struct Unanswered;

/// A message that the broker has numbered.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Whose log.
    pub target: Target,
    /// Its epoch, and the message's number.
    pub position: Position,
    /// The ticket that [`OrderedLog::append`] gave, if it is this instance's.
    pub ticket: Option<u64>,
    /// The message.
    pub draft: Draft,
}

/// What comes from the broker.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// A message without a number; in the order of the stream.
    Message(Delivery),
    /// A message for a room or a user to which the broker refused a number; in the order of the stream.
    Unnumbered(Delivery),
    /// What was published before now, and did not come, will not come any more; in the order of the stream.
    BrokenOff,
    /// A numbered message; in the order of the stream.
    Logged(Logged),
    /// A log has begun a new epoch, and has no messages; in the order of the stream.
    Renewed {
        /// Whose log.
        target: Target,
        /// Its epoch.
        epoch: Arc<str>,
        /// The renewal that asked for it, if it is this instance's.
        renewal: Option<u64>,
    },
    /// The place of a reading in the stream.
    Marked {
        /// Whose log.
        target: Target,
        /// Its number.
        reading: u64,
    },
    /// The answer to a reading; in no order with the stream.
    Answer {
        /// Whose log.
        target: Target,
        /// The reading's number.
        reading: u64,
        /// What the log has.
        answer: Result<Answer, Unanswered>,
    },
    /// A message of this instance that gets no number is back; in the order of the stream.
    Returned {
        /// Whom it is for.
        target: Target,
        /// Its ticket.
        ticket: u64,
    },
    /// All logs have been renewed that the broker had when this was asked for.
    AllRenewed(u64),
    /// The broker refused this message, which is in no log.
    Refused(u64),
    /// The broker is away: it takes nothing, and of what it has taken, up to this ticket, nothing may come back.
    Away(u64),
    /// Messages flow both ways again.
    Back,
}

/// Takes what arrives; may block, which holds back what follows in the stream. It returns `Break` when nobody wants
/// messages any more, which ends the subscription. Called by several threads at a time; what is in the order of the
/// stream comes from one.
pub type Handler = Arc<dyn Fn(Incoming) -> ControlFlow<()> + Send + Sync>;

/// The threads had not ended at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bridge had not ended in time, {queued} messages were queued")]
pub struct NotClosed {
    /// Messages still in the queue.
    pub queued: usize,
}
