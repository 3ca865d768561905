//! What passed the bridge and what was dropped there, and why.

use prometheus_client::metrics::counter::Counter;

use crate::runtime::count::{CountBy, Kind};

/// Why a message did not pass the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Out: 10,000 messages or 16 MiB wait already.
    QueueFull,
    /// Out: there is no connection to the broker.
    Disconnected,
    /// Out: the bridge is closing, or was closed.
    Closed,
    /// Out: the connection broke before the broker confirmed it; it may have arrived.
    Lost,
    /// Out: the broker refused this message.
    Refused,
    /// Out: not a JSON object, or for a target that is not published.
    NotPublishable,
    /// In: it has come before; its number is not above the highest seen of its instance.
    Repeated,
    /// In: not UTF-8.
    NotUtf8,
    /// In: over 64 KiB, the envelope not counted.
    TooLarge,
    /// In: an empty or malformed room or user, or an unknown channel.
    BadChannel,
    /// In: an event that is not JSON, or lacks a member that it needs.
    BadEvent,
    /// In: an event of a type that nobody here takes.
    UnknownEvent,
    /// At the door: an entry whose channel or message is not understood.
    DoorBadEntry,
    /// At the door: an entry that waited for longer than `HISTORY_TTL`.
    DoorTooOld,
    /// At the door: more than about 100,000 entries waited, and the oldest were let go.
    DoorFull,
}

impl Kind for DropReason {
    const ALL: &'static [Self] = &[
        Self::QueueFull,
        Self::Disconnected,
        Self::Closed,
        Self::Lost,
        Self::Refused,
        Self::NotPublishable,
        Self::Repeated,
        Self::NotUtf8,
        Self::TooLarge,
        Self::BadChannel,
        Self::BadEvent,
        Self::UnknownEvent,
        Self::DoorBadEntry,
        Self::DoorTooOld,
        Self::DoorFull,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Disconnected => "disconnected",
            Self::Closed => "closed",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::NotPublishable => "not_publishable",
            Self::Repeated => "repeated",
            Self::NotUtf8 => "not_utf8",
            Self::TooLarge => "too_large",
            Self::BadChannel => "bad_channel",
            Self::BadEvent => "bad_event",
            Self::UnknownEvent => "unknown_event",
            Self::DoorBadEntry => "door_bad_entry",
            Self::DoorTooOld => "door_too_old",
            Self::DoorFull => "door_full",
        }
    }
}

/// Counts since the start; any thread may read them at any time.
#[derive(Debug)]
pub struct BridgeCounters {
    /// Messages that the broker confirmed.
    pub published: Counter,
    /// Messages of others that were handed to the handler.
    pub received: Counter,
    /// Connections to the broker that were made again after one was lost: the publisher's and the
    /// subscriber's.
    pub reconnects: Counter,
    /// Messages that were dropped, by reason.
    pub dropped: CountBy<DropReason>,
}

impl Default for BridgeCounters {
    fn default() -> Self {
        Self {
            published: Counter::default(),
            received: Counter::default(),
            reconnects: Counter::default(),
            dropped: CountBy::new("reason"),
        }
    }
}

impl BridgeCounters {
    /// The number of [`Self::published`].
    pub fn published(&self) -> u64 {
        self.published.get()
    }

    /// The number of [`Self::received`].
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// The number of [`Self::reconnects`].
    pub fn reconnects(&self) -> u64 {
        self.reconnects.get()
    }

    /// Messages dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason)
    }
}
