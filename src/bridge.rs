//! Connects the instances of the service: what one publishes reaches the clients of all others.
//!
//! The hub knows only the trait [`PubSub`], which [`RedisPubSub`] implements.
//!
//! ```text
//! hub ──publish──▶ queue ──▶ redis-pub ──PUBLISH──▶ Redis ──pmessage──▶ redis-sub ──handler──▶ hub
//!                               └──────── probe, once a second, comes back ────────┘
//! ```

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
use std::time::Instant;

use bytes::Bytes;

use crate::hub::{Delivery, Target};

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
/// - **Own messages.** The handler never sees what its own instance published: the hub has delivered
///   that already.
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
    /// Hands one message over, without waiting. Only messages for users, rooms and everyone are published;
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

/// What comes from the broker.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// A message.
    Message(Delivery),
    /// What was published before now, and did not come, will not come any more.
    BrokenOff,
}

/// Takes what arrives, in order, on one thread; may block. It returns `Break` when nobody wants messages any
/// more, which ends the subscription.
pub type Handler = Box<dyn FnMut(Incoming) -> ControlFlow<()> + Send>;

/// The threads had not ended at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bridge had not ended in time, {queued} messages were queued")]
pub struct NotClosed {
    /// Messages still in the queue.
    pub queued: usize,
}
