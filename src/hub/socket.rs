//! The socket as hub and writer see it: sends, cuts, and the clocks that its reader keeps.

use std::io::{self, IoSlice};
use std::net::Shutdown;

/// What the hub and a writer need of a connection's socket; tests put memory in its place.
pub trait Socket: Send + Sync {
    /// Sends what fits without waiting; `WouldBlock` when nothing does.
    ///
    /// # Errors
    /// As `send(2)` with `MSG_DONTWAIT | MSG_NOSIGNAL`.
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends, waiting until at least one byte is taken.
    ///
    /// # Errors
    /// As `send(2)`; the stream is broken after one.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends one or both directions; unblocks whoever waits in them.
    fn shutdown(&self, how: Shutdown);
}
