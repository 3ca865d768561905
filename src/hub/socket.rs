//! The socket of a connection as its reader, the hub and its writer share it: one descriptor, sends,
//! cuts, and the clocks that the reader keeps for the hub.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{SendAncillaryBuffer, SendFlags};

use crate::runtime::clock::{AtomicMoment, Moment};

/// What hub and writer need of a connection's socket; tests put memory in its place.
pub trait Socket: Send + Sync {
    /// Sends what fits without waiting; `WouldBlock` when nothing does.
    ///
    /// # Errors
    /// As `sendmsg(2)` with `MSG_DONTWAIT | MSG_NOSIGNAL`.
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends all, waiting as long as the peer takes; [`Socket::shutdown`] ends the wait.
    ///
    /// # Errors
    /// As `send(2)`; the stream is broken after one.
    fn send_all(&self, bytes: &[u8]) -> io::Result<()>;

    /// Ends one or both directions and unblocks whoever waits in them. A socket that is already
    /// gone is as ended as one can ask for.
    fn shutdown(&self, how: Shutdown);

    /// The clocks that the reader keeps.
    fn activity(&self) -> &Activity;
}

/// What a reader tells the hub about its peer, without a message.
#[derive(Debug)]
pub struct Activity {
    /// Last byte from the peer; [`Moment::NEVER`] while the reader waits for the backend, so that
    /// the heartbeat rests.
    pub last_byte: AtomicMoment,
    /// Start of a message that is not complete yet; [`Moment::NEVER`] when there is none.
    pub unfinished_since: AtomicMoment,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            last_byte: AtomicMoment::new(Moment::now()),
            unfinished_since: AtomicMoment::new(Moment::NEVER),
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct TcpSocket {
    stream: TcpStream,
    activity: Activity,
    is_cut: AtomicBool,
}

impl TcpSocket {
    /// Takes over the stream.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, activity: Activity::default(), is_cut: AtomicBool::new(false) }
    }

    /// The stream, for the reader.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the hub has ended it in both directions. A reader has to look: for as long as the peer sends,
    /// Linux gives the bytes of a socket that is shut down for reading.
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }
}

impl Socket for TcpSocket {
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match slices {
            // The usual case, and the cheaper call.
            [one] => rustix::net::send(&self.stream, one, flags),
            many => {
                rustix::net::sendmsg(&self.stream, many, &mut SendAncillaryBuffer::default(), flags)
            }
        };
        Ok(sent?)
    }

    fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    fn shutdown(&self, how: Shutdown) {
        if how == Shutdown::Both {
            // Before the call that wakes the reader.
            self.is_cut.store(true, Ordering::Relaxed);
        }
        let _ = self.stream.shutdown(how);
    }

    fn activity(&self) -> &Activity {
        &self.activity
    }
}
