//! What passed the bridge and what was dropped there, and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a message did not pass the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Out: 10,000 messages or 16 MiB wait already.
    QueueFull,
    /// Out: the broker is away, or was when its turn came.
    Disconnected,
    /// Out: the bridge is closing, or was closed.
    Closed,
    /// Out: the broker went away in the middle; it may have arrived.
    Lost,
    /// Out: the broker refused this message.
    Refused,
    /// Out: not a JSON object, or for a target that is not published.
    NotPublishable,
    /// In: its number is not above the highest seen of its origin.
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
}

impl DropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 12] = [
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
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
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
        }
    }
}

/// Counts since the start; any thread may read them at any time.
#[derive(Debug, Default)]
pub struct BridgeCounters {
    published: AtomicU64,
    received: AtomicU64,
    reconnects: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

impl BridgeCounters {
    /// Messages that the broker confirmed.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Messages of others that were handed to the handler.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Connections to the broker that were made again after one was lost; publisher and subscriber
    /// have one each.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Messages dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.slot(reason).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(super) fn add_published(&self, messages: u64) {
        self.published.fetch_add(messages, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_dropped(&self, reason: DropReason, messages: u64) {
        if let Some(count) = self.slot(reason) {
            count.fetch_add(messages, Ordering::Relaxed);
        }
    }

    fn slot(&self, reason: DropReason) -> Option<&AtomicU64> {
        self.dropped.get(reason as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_count_and_name() {
        let counters = BridgeCounters::default();
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            counters.add_dropped(reason, i as u64 + 1);
        }
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(counters.dropped(reason), i as u64 + 1, "{}", reason.as_str());
        }
        let names: std::collections::BTreeSet<_> = DropReason::ALL.map(DropReason::as_str).into();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
