//! A synchronous, thread-per-connection WebSocket server.

pub mod auth;
pub mod ceilings;
pub mod clock;
pub mod close;
pub mod config;
pub mod gate;
pub mod hub;
pub mod logging;
pub mod models;
pub mod notification;
pub mod protocol;
pub mod rest;
pub mod threads;
