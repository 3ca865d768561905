//! A WebSocket connection: its handshake, the thread that reads from it, and the threads that write
//! what the hub could not send at once.

pub mod handshake;
pub mod reader;
pub mod writer;
