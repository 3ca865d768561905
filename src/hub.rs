//! The event loop that alone owns users, rooms and memberships.

pub mod event;
pub mod socket;

pub use event::{Census, ConnectionKey, Delivery, Event, HubGone, HubHandle, Refusal, Target};
