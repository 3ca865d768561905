//! **realtime_service**: a synchronous, thread-per-connection WebSocket server for a marketplace.
//! Clients connect with a JWT and join rooms; backends notify them over `POST /api/notify` or Redis.
//!
//! `docs/ARCHITECTURE.md` leads through the code: it follows a message from file to file, and says why the
//! service is built like this. `docs/PROTOCOL.md` describes what stands on the wire. A program that embeds
//! the service begins with [`server::Server::start`]; `examples/embed.rs` is such a program.
//!
//! # The way of an event
//!
//! ```text
//! client ─TCP─▶ gate ──▶ one thread per connection
//!                         │ reads the request head
//!                         ├─ GET /ws ─▶ handshake ─▶ reader ──events──▶ hub ──frames──▶ socket
//!                         │                                             ▲ │    (by a writer, when
//!                         └─ anything else ─▶ tiny_http ─▶ rest ─events─┘ │     the socket is full)
//!                                                                         ▼
//!                            Redis ──PSUBSCRIBE──▶ bridge ──events──▶ hub ──▶ bridge ──PUBLISH──▶ Redis
//! ```
//!
//! # Invariants
//!
//! 1. The hub thread alone owns users, rooms and memberships.
//! 2. The hub never blocks, and nobody blocks on its channel: a publisher waits for its own allowance.
//! 3. One party at a time writes to a socket: the hub, or one of the writers while there is a backlog.
//! 4. Every thread has a name and an owner that waits for it, with a deadline, at the shutdown.
//! 5. Nothing that a peer sends, or fails to send or to read, costs more than a bounded amount of memory,
//!    or delays anyone else by more than its turn.
//!
//! # Delivery
//!
//! What one connection or backend connection publishes to one room arrives in order, and at most once. All
//! members of a room, on all instances, see its numbered messages in one order, each once, or are told that
//! something may be missing. What has no number has no common order over instances.
//!
//! # Layout
//!
//! The modules below stand in the order in which an event meets them. What all of them use comes last.

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
