//! The hub: the event loop that alone owns users, rooms and memberships (invariants 1 and 2).
//!
//! [`Hub`] is its pure core: [`Hub::handle`] takes one event, [`Hub::flush`] sends what that appended,
//! [`Hub::tick`] is its only clock. [`run`] feeds it from the channel. The core touches sockets and
//! threads only through [`Socket`] and [`Outlets`], so tests drive it with memory.

mod backlog;
mod batch;
mod connection;
mod core;
pub mod event;
mod groups;
mod listing;
mod outbox;
pub mod rates;
pub mod socket;
mod stats;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::RecvTimeoutError;

pub use backlog::Drain;
pub use connection::DisconnectReason;
pub use core::Hub;
pub use event::{
    Broadcast, ConnectionKey, Counts, Delivery, Event, HubGone, HubHandle, ListQuery,
    ListedConnection, Listing, Refusal, Target,
};
use socket::Socket;
pub use stats::{Buckets, Stats};

use crate::config::{Config, HUB_QUEUE, TICK};
use crate::runtime::channel::Receiver;
use crate::runtime::clock::Moment;

/// What [`backlog`] is built from; its model check puts loom's in the same place.
mod sync {
    pub(super) use crossbeam_channel::{Receiver, Sender, unbounded};
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

/// The settings that the hub enforces.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `MAX_CONNECTIONS_PER_USER`; 0 is off.
    pub connections_per_user: usize,
    /// `MAX_ROOMS_PER_CLIENT`.
    pub rooms_per_client: usize,
    /// `MAX_WRITERS`.
    pub writers: usize,
    /// `SEND_QUEUE_FRAMES`.
    pub send_queue_frames: usize,
    /// `SEND_QUEUE_BYTES`.
    pub send_queue_bytes: usize,
    /// `WRITE_TIMEOUT`.
    pub write_timeout: Duration,
    /// `PING_INTERVAL`.
    pub ping_interval: Duration,
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        Self {
            connections_per_user: config.max_connections_per_user,
            rooms_per_client: config.max_rooms_per_client,
            writers: config.max_writers,
            send_queue_frames: config.send_queue_frames,
            send_queue_bytes: config.send_queue_bytes,
            write_timeout: config.write_timeout,
            ping_interval: config.ping_interval,
        }
    }
}

/// A backlog for a writer thread to drain.
pub struct WriterJob {
    /// The connection, for [`Event::WriterEnded`].
    pub key: ConnectionKey,
    /// Its number, for the thread's name.
    pub number: u64,
    /// Where to write.
    pub socket: Arc<dyn Socket>,
    /// What to write.
    pub drain: Drain,
}

/// Hands a frame of this instance to the broker, without waiting.
pub type Publish = Box<dyn FnMut(&Target, &Bytes) + Send>;

/// Starts a writer thread.
pub type StartWriter = Box<dyn FnMut(WriterJob) -> io::Result<()> + Send>;

/// Where the hub's effects go besides sockets.
pub struct Outlets {
    /// To the broker.
    pub publish: Publish,
    /// To a writer.
    pub start_writer: StartWriter,
}

/// The hub's loop: drains the channel until a flush is due, flushes, and ticks once a second, also
/// under load. Ends at [`Event::Stop`].
pub fn run(mut hub: Hub, events: &Receiver<Event>) {
    let mut next_tick = Instant::now() + TICK;
    loop {
        let first = events.recv_deadline(next_tick);
        let start = Instant::now();
        match first {
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(event) => hub.handle(event),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Events that append nothing must not put off the flush either.
        let mut waiting = events.try_iter().take(HUB_QUEUE);
        while !hub.wants_flush()
            && let Some(event) = waiting.next()
        {
            if matches!(event, Event::Stop) {
                return;
            }
            hub.handle(event);
        }
        hub.flush();
        let now = Instant::now();
        hub.stats.batch_seconds.observe((now - start).as_secs_f64());
        if now >= next_tick {
            hub.tick(Moment::now(), SystemTime::now());
            next_tick = now + TICK;
        }
    }
}

#[cfg(test)]
mod tests;
