//! The hub: the event loop that alone owns users, rooms and memberships (invariants 1 and 2).
//!
//! [`Hub`] is its pure core: [`Hub::accept`] takes one event, [`Hub::serve`] what
//! publishers have said, [`Hub::flush`] sends what that appended,
//! [`Hub::tick`] is its only clock. [`run`] feeds it from the channel. The core touches sockets and
//! threads only through [`Socket`] and [`Outlets`], so tests drive it with memory.

mod allowance;
mod backlog;
mod batch;
mod connection;
mod conversation;
mod copies;
mod core;
pub mod event;
mod groups;
mod handle;
pub mod history;
mod listing;
mod outbox;
mod pending;
mod query;
pub mod rates;
mod reading;
mod recovery;
mod replay;
mod room_rates;
mod rooms;
mod schedule;
pub mod socket;
mod stats;
mod unnumbered;
mod users;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crossbeam_channel::RecvTimeoutError;

pub use allowance::HubGone;
pub use backlog::{Drain, Drained, Step};
pub use connection::DisconnectReason;
pub use copies::CopyCounts;
pub use core::Hub;
pub use event::{Broadcast, ConnectionKey, Event, Notify, PublisherName, Refusal, Said};
pub use handle::{HubHandle, Publisher};
pub use query::{
    Counts, ListQuery, ListedConnection, Listing, MAX_COUNTED_ROOMS, MAX_LISTED_ROOMS,
};
use socket::Socket;
pub use stats::{Buckets, Stats};

use crate::bridge::PubSub;
use crate::config::TICK;
pub use crate::protocol::{Delivery, Target};
use crate::runtime::channel::Receiver;
use crate::runtime::clock::Moment;
use allowance::Budget;

/// What [`backlog`] is built from; its model check puts loom's in the same place.
mod sync {
    pub(super) use crossbeam_channel::{Receiver, Sender, unbounded};
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

/// Events that the hub looks at before it serves: all that can be there, but not what comes meanwhile.
const EVENTS_AT_ONCE: usize = 65_536;

/// A backlog for a writer to drain.
pub struct WriterJob {
    /// The connection, for [`Event::WriterEnded`].
    pub key: ConnectionKey,
    /// Where to write.
    pub socket: Arc<dyn Socket>,
    /// What to write.
    pub drain: Drain,
}

/// The threads that drain backlogs; each job is answered by one [`Event::WriterEnded`].
pub trait Writers: Send {
    /// Queues a backlog, without waiting.
    fn submit(&self, job: WriterJob);

    /// Threads that run.
    fn threads(&self) -> usize;

    /// Backlogs that wait for a thread.
    fn waiting(&self) -> usize;
}

/// Where the hub's effects go besides sockets.
pub struct Outlets {
    /// To the broker, if there is one.
    pub broker: Option<Arc<dyn PubSub>>,
    /// To the writers.
    pub writers: Box<dyn Writers>,
}

/// Tells those who wait for the hub that it has ended, also by a panic.
struct EndOfHub(Arc<Budget>);

impl Drop for EndOfHub {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Looks at all that has come; breaks at [`Event::Stop`].
fn accept_all(hub: &mut Hub, events: &Receiver<Event>) -> ControlFlow<()> {
    for event in events.try_iter().take(EVENTS_AT_ONCE) {
        if matches!(event, Event::Stop) {
            return ControlFlow::Break(());
        }
        hub.accept(event);
    }
    ControlFlow::Continue(())
}

/// The hub's loop: looks at all that has come, serves what waits until a flush is due, flushes, and ticks
/// once a second, also under load. Ends at [`Event::Stop`].
pub fn run(mut hub: Hub, events: &Receiver<Event>) {
    let _end = EndOfHub(Arc::clone(hub.budget()));
    let mut next_tick = Instant::now() + TICK;
    loop {
        if !hub.has_work() {
            match events.recv_deadline(next_tick) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(event) => hub.accept(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let start = Instant::now();
        if accept_all(&mut hub, events).is_break() {
            return;
        }
        hub.serve();
        while !hub.flush_part() {
            if accept_all(&mut hub, events).is_break() {
                return;
            }
            hub.serve_newcomers();
        }
        let now = Instant::now();
        hub.observe_iteration(now - start);
        if now >= next_tick {
            hub.tick(Moment::now(), SystemTime::now());
            next_tick = now + TICK;
        }
    }
}

#[cfg(test)]
mod tests;
