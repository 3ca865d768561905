//! **realtime_service**: a synchronous, thread-per-connection WebSocket server for a marketplace.
//! Clients connect with a JWT and join rooms; backends notify them over `POST /api/notify` or Redis.
//!
//! # The way of an event
//!
//! ```text
//! client ─TCP─▶ gate ──▶ one thread per connection
//!                         │ reads the request head
//!                         ├─ GET /ws ─▶ handshake ─▶ reader ──events──▶ hub ──frames──▶ socket
//!                         │                                             ▲ │    (writer thread, when
//!                         └─ anything else ─▶ tiny_http ─▶ rest ─events─┘ │     the socket is full)
//!                                                                         ▼
//!                            Redis ──PSUBSCRIBE──▶ bridge ──events──▶ hub ──▶ bridge ──PUBLISH──▶ Redis
//! ```
//!
//! # Invariants
//!
//! 1. The hub thread alone owns users, rooms and memberships. No lock, no shared map: events come in
//!    over one bounded channel, frames go out. What crosses besides are a few atomics per connection:
//!    time of the last byte, start of an unfinished message, frames that the writer finished; and two per
//!    user, of what it may send.
//! 2. The hub never blocks: it sends without waiting or not at all, logs nothing per message, and uses
//!    `try_send` towards everyone. So everyone else may block on the hub, and its full channel is the
//!    back-pressure on publishers.
//! 3. One party at a time writes to a socket: the hub, or the connection's writer thread while it has
//!    a backlog. The reader never writes; its pongs and Close replies go to the hub.
//! 4. Every thread has a name and an owner that waits for it, with a deadline, at shutdown. No thread
//!    is spawned with a call that panics when the system has none left.
//! 5. Nothing a peer sends, or fails to send or read, costs more than a bounded amount of memory,
//!    user's or kernel's, or delays anyone else.
//!
//! # Delivery
//!
//! What one connection or backend connection publishes to one room arrives in order, at most once; on
//! one instance, for a client that keeps up, exactly once. Different publishers have no common order.
//!
//! # Layout
//!
//! The modules below stand in the order in which an event meets them; what all of them use comes last.

pub mod server;

pub mod gate;
pub mod http;

pub mod websocket;

pub mod auth;

pub mod hub;

pub mod rest;

pub mod notification;

pub mod bridge;

pub mod protocol;

pub mod config;
pub mod logging;
pub mod metrics;
pub mod runtime;
