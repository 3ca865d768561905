//! The account of every message: who must get it, in which order, and how long that took.

use std::time::Instant;

use crate::Fallible;
use crate::fanout::measure::Histogram;
use crate::fanout::wire::Stamp;

/// Publishers that one member can hear.
const PUBLISHERS: usize = 2;

/// A member of a room: what it must get next, from each publisher.
struct Member {
    /// Number of each publisher's stream.
    streams: [usize; PUBLISHERS],
    next: [u32; PUBLISHERS],
    /// Bytes behind the body in what it gets.
    tail_bytes: usize,
    /// The publisher at the member's own address.
    near: u8,
}

/// A message on its way.
#[derive(Clone, Copy, Default)]
struct Flight {
    missing: u32,
    sent_ns: u64,
}

/// What one publisher sends to one room.
struct Stream {
    members: u32,
    published: u32,
    /// Fan-outs that reached every member.
    completed: u32,
    /// Message `n` is at `n` modulo the length, the most that may be in flight.
    flights: Vec<Flight>,
}

/// Checks that every message comes to every member once and in order; anything else ends the run.
pub(crate) struct Ledger {
    epoch: Instant,
    members: Vec<Member>,
    streams: Vec<Stream>,
    deliveries: u64,
    /// From the sending to the reading, for members at the publisher's address.
    near: Histogram,
    /// The same for the others.
    far: Histogram,
    /// Streams on which a fan-out has completed since they were last taken.
    completed: Vec<usize>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            members: Vec::new(),
            streams: Vec::new(),
            deliveries: 0,
            near: Histogram::new(),
            far: Histogram::new(),
            completed: Vec::new(),
        }
    }

    /// A stream to `members` members, of which at most `in_flight` messages are on their way.
    pub(crate) fn add_stream(&mut self, members: u32, in_flight: usize) -> usize {
        self.streams.push(Stream {
            members,
            published: 0,
            completed: 0,
            flights: vec![Flight::default(); in_flight],
        });
        self.streams.len() - 1
    }

    /// The next member (numbered like the connections of its swarm), which hears `streams`; `near`
    /// is the publisher at its own address.
    pub(crate) fn add_member(&mut self, streams: [usize; PUBLISHERS], near: u8, tail_bytes: usize) {
        self.members.push(Member { streams, next: [0; PUBLISHERS], tail_bytes, near });
    }

    fn now_ns(&self, at: Instant) -> u64 {
        at.duration_since(self.epoch).as_nanos() as u64
    }

    /// How many messages may be published on `stream` now.
    pub(crate) fn room_for(&self, stream: usize) -> usize {
        let stream = &self.streams[stream];
        stream.flights.len() - (stream.published - stream.completed) as usize
    }

    /// Books a message about to be sent; returns its sequence number.
    pub(crate) fn publish(&mut self, stream: usize) -> u32 {
        let sent_ns = self.now_ns(Instant::now());
        let stream = &mut self.streams[stream];
        let sequence = stream.published;
        let slot = sequence as usize % stream.flights.len();
        stream.flights[slot] = Flight { missing: stream.members, sent_ns };
        stream.published += 1;
        sequence
    }

    /// Books what `member` got at `at`.
    ///
    /// # Errors
    /// When it is not exactly the next message of its publisher.
    pub(crate) fn deliver(&mut self, number: usize, text: &[u8], at: Instant) -> Fallible<()> {
        let at_ns = self.now_ns(at);
        let member = &mut self.members[number];
        let stamp = Stamp::read(text, member.tail_bytes)
            .filter(|stamp| usize::from(stamp.publisher) < PUBLISHERS)
            .ok_or_else(|| format!("member {number} got {}", text.escape_ascii()))?;
        let publisher = usize::from(stamp.publisher);
        let next = &mut member.next[publisher];
        let stream_number = member.streams[publisher];
        let stream = &mut self.streams[stream_number];
        if stamp.sequence != *next || stamp.sequence >= stream.published {
            let due = *next;
            return Err(
                format!("member {number}: message {due} was due, and {stamp:?} came").into()
            );
        }
        *next += 1;
        let slot = stamp.sequence as usize % stream.flights.len();
        let flight = &mut stream.flights[slot];
        let latency_ns = at_ns.saturating_sub(flight.sent_ns);
        if member.near == stamp.publisher {
            self.near.record(latency_ns);
        } else {
            self.far.record(latency_ns);
        }
        self.deliveries += 1;
        flight.missing -= 1;
        if flight.missing == 0 {
            stream.completed += 1;
            self.completed.push(stream_number);
        }
        Ok(())
    }

    /// Takes the streams on which a fan-out has completed.
    pub(crate) fn take_completed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.completed)
    }

    /// Whether every published message has reached every member.
    pub(crate) fn is_settled(&self) -> bool {
        self.streams.iter().all(|stream| stream.published == stream.completed)
    }

    /// Starts counting anew: what comes before is warm-up.
    pub(crate) fn reset_counts(&mut self) {
        self.deliveries = 0;
        self.near = Histogram::new();
        self.far = Histogram::new();
        self.completed.clear();
    }

    /// Deliveries since the counts were reset.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Latencies at members at the publisher's own address.
    pub(crate) fn near(&self) -> &Histogram {
        &self.near
    }

    /// Latencies at the others.
    pub(crate) fn far(&self) -> &Histogram {
        &self.far
    }
}
