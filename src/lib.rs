//! A synchronous, thread-per-connection WebSocket server.

pub mod auth;
pub mod authorization;
pub mod clock;
pub mod close;
pub mod config;
pub mod hub;
pub mod logging;
pub mod models;
pub mod notification;
pub mod protocol;
pub mod threads;
pub mod writer;
