//! What the service runs on: threads, the channel between them, the clock, counters, and what the system allows.

pub mod capacity;
pub mod channel;
pub mod clock;
pub mod count;
pub mod threads;
