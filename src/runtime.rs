//! What the service runs on: threads, the channel between them, the clock, counters, and what the system allows.

pub mod capacity;
pub mod channel;
pub mod clock;
pub mod count;
pub mod threads;

/// What [`channel`] is built from; its model check puts loom's in the same place.
mod sync {
    pub(super) use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
    pub(super) use std::sync::OnceLock;
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
    pub(super) use std::thread::{self, Thread};
}

#[cfg(test)]
mod tests;
