//! The generator's connections, all on one epoll thread: it opens, sends, and hands over what
//! arrives.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::Fallible;
use crate::fanout::tokens::Tokens;
use crate::fanout::wire::{self, Unit};

/// Events taken per wait.
const EVENTS: usize = 1024;
/// Larger than what a member gets between two reads, so that one read empties its socket.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Small, so that 10,000 sockets cannot hold the machine's TCP memory; holds 64 messages in flight
/// with ease.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Connections on their way in at a time: below every listen backlog.
const OPENING_AT_ONCE: usize = 64;
/// A server that is silent for so long while something is due has lost it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a connection's bytes are at the moment.
enum Speaks {
    Http,
    WebSocket,
}

struct Link {
    /// `None` once it has ended.
    stream: Option<TcpStream>,
    speaks: Speaks,
    /// The start of a unit whose end has not come yet; mostly empty.
    partial: Vec<u8>,
}

/// One arrival, for the callback of [`Swarm::pump`].
pub(crate) struct Arrival<'a> {
    pub(crate) link: usize,
    pub(crate) unit: Unit<'a>,
    /// When it was read.
    pub(crate) at: Instant,
}

/// Connections to servers, numbered from 0 in the order of their opening.
pub(crate) struct Swarm {
    poll: Poll,
    events: Events,
    links: Vec<Link>,
    scratch: Vec<u8>,
}

impl Swarm {
    pub(crate) fn new() -> Fallible<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            links: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Opens a connection, which speaks HTTP until the server accepts an upgrade. Returns its
    /// number.
    pub(crate) fn connect(&mut self, address: SocketAddr) -> Fallible<usize> {
        let mut stream =
            open_socket(address).map_err(|error| format!("connecting to {address}: {error}"))?;
        let link = self.links.len();
        self.poll.registry().register(&mut stream, Token(link), Interest::READABLE)?;
        self.links.push(Link { stream: Some(stream), speaks: Speaks::Http, partial: Vec::new() });
        Ok(link)
    }

    /// Opens one connection for each of `rooms`, joined to it; returns the number of the first.
    pub(crate) fn admit(
        &mut self,
        address: SocketAddr,
        rooms: &[String],
        tokens: &Tokens,
    ) -> Fallible<usize> {
        let first = self.links.len();
        let (mut started, mut joined) = (0, 0);
        let mut upgraded = Vec::new();
        while joined < rooms.len() {
            while started < rooms.len() && started - joined < OPENING_AT_ONCE {
                let link = self.connect(address)?;
                self.send(link, &wire::upgrade(&tokens.client()?))?;
                started += 1;
            }
            self.pump_due(|arrival| match arrival.unit {
                Unit::Upgraded => {
                    upgraded.push(arrival.link);
                    Ok(())
                }
                Unit::Text(text) if is_joined(text, &rooms[arrival.link - first]) => {
                    joined += 1;
                    Ok(())
                }
                other => Err(unexpected(arrival.link, &other)),
            })?;
            for link in upgraded.drain(..) {
                self.send(link, &wire::join(&rooms[link - first]))?;
            }
        }
        Ok(first)
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// When the socket does not take all: no scenario sends so much ahead.
    pub(crate) fn send(&mut self, link: usize, bytes: &[u8]) -> Fallible<()> {
        let Some(stream) = &mut self.links[link].stream else {
            return Err(format!("connection {link} has ended and cannot send").into());
        };
        match stream.write(bytes) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(sent) => {
                Err(format!("connection {link} took {sent} of {} bytes", bytes.len()).into())
            }
            Err(error) => Err(format!("connection {link} cannot send: {error}").into()),
        }
    }

    /// Like [`Self::pump`], when something is due: waits for it, and fails when nothing comes.
    pub(crate) fn pump_due(
        &mut self,
        on_arrival: impl FnMut(Arrival<'_>) -> Fallible<()>,
    ) -> Fallible<()> {
        if self.pump(PATIENCE, on_arrival)? == 0 {
            return Err(
                format!("nothing came for {PATIENCE:?}: a message or answer was lost").into()
            );
        }
        Ok(())
    }

    /// Waits for one round of arrivals and hands each over; returns how many sockets had some.
    pub(crate) fn pump(
        &mut self,
        wait: Duration,
        mut on_arrival: impl FnMut(Arrival<'_>) -> Fallible<()>,
    ) -> Fallible<usize> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            other => other?,
        }
        let mut sockets = 0;
        for event in &self.events {
            sockets += 1;
            let link = event.token().0;
            let to_the_end = event.is_read_closed();
            drain(&mut self.links[link], link, to_the_end, &mut self.scratch, &mut on_arrival)?;
        }
        Ok(sockets)
    }
}

/// Sockets are alike on both sides of a comparison: no delay, a small buffer for what comes.
fn open_socket(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    // On loopback this returns at once: fewer are on their way in than fit the listener's backlog.
    socket.connect_timeout(&address.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(TcpStream::from_std(socket.into()))
}

/// Reads what a socket holds. A read that leaves room in the buffer has emptied it (epoll(7)), but
/// for the end of the stream, which the event tells.
fn drain(
    link: &mut Link,
    number: usize,
    to_the_end: bool,
    scratch: &mut [u8],
    on_arrival: &mut impl FnMut(Arrival<'_>) -> Fallible<()>,
) -> Fallible<()> {
    while let Some(stream) = &mut link.stream {
        match stream.read(scratch) {
            Ok(0) => {
                link.stream = None;
                return on_arrival(Arrival { link: number, unit: Unit::End, at: Instant::now() });
            }
            Ok(count) => {
                take(link, number, &scratch[..count], on_arrival)?;
                if count < scratch.len() && !to_the_end {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("connection {number} broke: {error}").into()),
        }
    }
    Ok(())
}

fn take(
    link: &mut Link,
    number: usize,
    fresh: &[u8],
    on_arrival: &mut impl FnMut(Arrival<'_>) -> Fallible<()>,
) -> Fallible<()> {
    let at = Instant::now();
    let joined;
    let mut bytes = fresh;
    if !link.partial.is_empty() {
        link.partial.extend_from_slice(fresh);
        joined = std::mem::take(&mut link.partial);
        bytes = &joined;
    }
    loop {
        let parsed = match link.speaks {
            Speaks::WebSocket => wire::parse_frame(bytes)?,
            Speaks::Http if bytes.is_empty() => None,
            Speaks::Http => wire::parse_response(bytes)?,
        };
        let Some((unit, length)) = parsed else {
            break;
        };
        if matches!(unit, Unit::Upgraded) {
            link.speaks = Speaks::WebSocket;
        }
        on_arrival(Arrival { link: number, unit, at })?;
        bytes = &bytes[length..];
    }
    link.partial.extend_from_slice(bytes);
    Ok(())
}

/// Whether `text` is the answer to a join of `room`.
pub(crate) fn is_joined(text: &[u8], room: &str) -> bool {
    text.strip_prefix(b"joined ") == Some(room.as_bytes())
}

/// The error for something that the scenario did not ask for.
pub(crate) fn unexpected(link: usize, unit: &Unit<'_>) -> Box<dyn std::error::Error + Send + Sync> {
    match unit {
        Unit::Text(text) => format!("connection {link} got {}", text.escape_ascii()).into(),
        Unit::Response { status, body } => {
            format!("connection {link} got {status}: {}", body.escape_ascii()).into()
        }
        other => format!("connection {link} got {other:?}").into(),
    }
}

impl Drop for Swarm {
    /// Resets instead of closing: thousands of ports in TIME_WAIT would weigh on the next run.
    fn drop(&mut self) {
        for stream in self.links.iter().filter_map(|link| link.stream.as_ref()) {
            // Closing works without it too.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}
