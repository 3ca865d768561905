//! The socket of a connection as its reader, the hub and its writer share it: one descriptor, sends,
//! cuts, and the clocks that the reader keeps for the hub.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::SockRef;

use crate::config::CLOSE_TIMEOUT;
use crate::runtime::clock::{AtomicMoment, Moment};

/// How long a writer waits for a peer to take anything before it looks whether others wait.
pub const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// What hub and writers need of a connection's socket; tests put memory in its place.
pub trait Socket: Send + Sync {
    /// Sends what fits without waiting; `WouldBlock` when nothing does.
    ///
    /// # Errors
    /// As `sendmsg(2)` with `MSG_DONTWAIT | MSG_NOSIGNAL`.
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends what fits within [`SEND_TIMEOUT`], and waits so long for any of it to fit; ended by
    /// [`Socket::abort`].
    ///
    /// # Errors
    /// `WouldBlock` when the peer took nothing, else as `send(2)`; the stream is broken then.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends one or both directions and unblocks whoever waits in them. A socket that is already
    /// gone is as ended as one can ask for.
    fn shutdown(&self, how: Shutdown);

    /// Ends both directions and has the socket reset when it is closed, so that the kernel keeps nothing
    /// of what the peer did not take.
    fn abort(&self);

    /// The clocks that the reader keeps.
    fn activity(&self) -> &Activity;
}

/// What a reader and the hub tell each other about the peer, without a message.
#[derive(Debug)]
pub struct Activity {
    /// Last byte from the peer; [`Moment::NEVER`] while the reader waits for the backend, so that
    /// the heartbeat rests.
    pub last_byte: AtomicMoment,
    /// Start of a message that is not complete yet; [`Moment::NEVER`] when there is none.
    pub unfinished_since: AtomicMoment,
    is_ignored: AtomicBool,
}

impl Activity {
    /// From now on the hub ignores what the connection says, since it closes it or has cut it.
    pub fn ignore(&self) {
        self.is_ignored.store(true, Ordering::Relaxed);
    }

    /// Whether the hub ignores what the connection says: nothing that the reader still waits for or has
    /// to read is of use.
    pub fn is_ignored(&self) -> bool {
        self.is_ignored.load(Ordering::Relaxed)
    }

    /// Stops the peer's clocks while nothing is read, until the guard is dropped: neither a ping is due,
    /// nor the rest of a message.
    pub fn rest(&self) -> Rest<'_> {
        let is_unfinished = self.unfinished_since.get() != Moment::NEVER;
        self.last_byte.set(Moment::NEVER);
        self.unfinished_since.set(Moment::NEVER);
        Rest { activity: self, is_unfinished }
    }
}

/// The clocks of a peer rest; see [`Activity::rest`].
pub struct Rest<'a> {
    activity: &'a Activity,
    is_unfinished: bool,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let now = Moment::now();
        self.activity.last_byte.set(now);
        if self.is_unfinished {
            self.activity.unfinished_since.set(now);
        }
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            last_byte: AtomicMoment::new(Moment::now()),
            unfinished_since: AtomicMoment::new(Moment::NEVER),
            is_ignored: AtomicBool::new(false),
        }
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct TcpSocket {
    stream: TcpStream,
    activity: Activity,
    is_aborted: AtomicBool,
}

impl TcpSocket {
    /// Takes over the stream. From now on the hub keeps the clocks: the reader waits as long as it is let,
    /// and a writer looks after [`SEND_TIMEOUT`] whether others wait for it.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { stream, activity: Activity::default(), is_aborted: AtomicBool::new(false) })
    }

    /// Whether the hub has ended the connection. A reader has to look: for as long as the peer sends, Linux
    /// gives the bytes of a socket that is shut down for reading.
    pub fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Acquire)
    }

    /// The stream, for the reader.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
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

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    fn shutdown(&self, how: Shutdown) {
        // Nothing more is sent: what the peer does not take in time is not worth the kernel's memory.
        let _ = SockRef::from(&self.stream).set_tcp_user_timeout(Some(CLOSE_TIMEOUT));
        let _ = self.stream.shutdown(how);
    }

    fn abort(&self) {
        self.is_aborted.store(true, Ordering::Release);
        // On a socket that is gone already there is nothing to reset.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        self.shutdown(Shutdown::Both);
    }

    fn activity(&self) -> &Activity {
        &self.activity
    }
}
