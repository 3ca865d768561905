//! What the hub counts, as plain numbers that it alone touches; `/metrics` asks for a copy.

use std::collections::BTreeMap;

use super::copies::CopyCounts;
use super::history::HistoryCounts;

/// Upper bounds of the durations of a batch, in seconds.
const BATCH_BOUNDS: [f64; 10] =
    [0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3];
/// Upper bounds of the number of connections that one message goes to.
const FAN_OUT_BOUNDS: [f64; 8] = [0.0, 1.0, 3.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0];

/// Counts since the start, and what is here now.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Live connections.
    pub connections: u64,
    /// Rooms that have members.
    pub rooms: u64,
    /// Writer threads.
    pub writers: u64,
    /// Backlogs that wait for a writer.
    pub waiting_backlogs: u64,
    /// Publishers that have messages waiting.
    pub waiting_publishers: u64,
    /// Messages that wait for their publisher's turn.
    pub waiting_messages: u64,
    /// Bytes that wait for the hub in all.
    pub waiting_bytes: u64,
    /// How often a publisher had to wait since too much of it waited already.
    pub held_back: u64,
    /// Broadcasts refused since their room was over `ROOM_RATE_BYTES`.
    pub room_limited: u64,
    /// Connections that became live.
    pub connects: u64,
    /// Connections that ended, by reason.
    pub disconnects: BTreeMap<&'static str, u64>,
    /// Messages of clients, by kind.
    pub received: ReceivedCounts,
    /// Frames appended for a connection.
    pub deliveries: u64,
    /// Frames that were appended and not sent, by the reason of the connection's end.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Of the logs of rooms and users.
    pub history: HistoryCounts,
    /// Of what the broker numbers.
    pub copies: CopyCounts,
    /// Seconds from the first event of a batch to the end of its flush.
    pub batch_seconds: Buckets<10>,
    /// Connections that one message went to.
    pub fan_out: Buckets<8>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            connections: 0,
            rooms: 0,
            writers: 0,
            waiting_backlogs: 0,
            waiting_publishers: 0,
            waiting_messages: 0,
            waiting_bytes: 0,
            held_back: 0,
            room_limited: 0,
            connects: 0,
            disconnects: BTreeMap::new(),
            received: ReceivedCounts::default(),
            deliveries: 0,
            dropped: BTreeMap::new(),
            history: HistoryCounts::default(),
            copies: CopyCounts::default(),
            batch_seconds: Buckets::new(BATCH_BOUNDS),
            fan_out: Buckets::new(FAN_OUT_BOUNDS),
        }
    }
}

/// What a client's message was.
#[derive(Debug, Clone, Copy)]
pub(super) enum MessageKind {
    Join,
    Leave,
    Broadcast,
    Resume,
    /// Anything that was answered with an error before it came to the hub.
    Refused,
}

/// Counts of messages, by kind.
#[derive(Debug, Clone, Default)]
pub struct ReceivedCounts {
    joins: u64,
    leaves: u64,
    broadcasts: u64,
    resumes: u64,
    refused: u64,
}

impl ReceivedCounts {
    /// Counts one.
    pub(super) fn count(&mut self, kind: MessageKind) {
        *match kind {
            MessageKind::Join => &mut self.joins,
            MessageKind::Leave => &mut self.leaves,
            MessageKind::Broadcast => &mut self.broadcasts,
            MessageKind::Resume => &mut self.resumes,
            MessageKind::Refused => &mut self.refused,
        } += 1;
    }

    /// Each kind's name in the metrics, and its count.
    pub fn by_kind(&self) -> [(&'static str, u64); 5] {
        [
            ("join", self.joins),
            ("leave", self.leaves),
            ("broadcast", self.broadcasts),
            ("resume", self.resumes),
            ("refused", self.refused),
        ]
    }
}

/// A histogram with `N` bounds; what is over the last is only in the count.
#[derive(Debug, Clone)]
pub struct Buckets<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Buckets<N> {
    const fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: [0; N], count: 0, sum: 0.0 }
    }

    /// Counts one value.
    pub(super) fn observe(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        let place = self.bounds.iter().position(|bound| value <= *bound);
        if let Some(count) = place.and_then(|place| self.counts.get_mut(place)) {
            *count += 1;
        }
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Each bound, with the number of values up to it and over the one before; infinity comes last.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let counted: u64 = self.counts.iter().sum();
        let bounded = self.bounds.iter().copied().zip(self.counts);
        bounded.chain([(f64::INFINITY, self.count - counted)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        let mut buckets = Buckets::new([1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            buckets.observe(value);
        }
        assert_eq!(buckets.buckets(), [(1.0, 2), (2.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((buckets.count(), buckets.sum()), (4, 12.0));
    }
}
