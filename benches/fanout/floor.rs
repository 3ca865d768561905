//! The floor: one epoll loop that does what every server of this protocol must do, and nothing
//! else.
//!
//! It shakes hands, joins, and sends each broadcast to each member: no tokens, no limits, no JSON
//! parser. It takes all events that wait before it sends, so that several messages cost a member
//! one send; but as soon as it owes so many frames as the service does at most while several publish,
//! it sends them, since a large room must not keep another waiting for longer.
//!
//! The *unbounded* floor sends nothing before it has taken all that can be read: the fewest sends for
//! one publisher that has everything to itself.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use realtime_service::config::FLUSH_FRAMES;

use crate::Fallible;

/// The argument that makes this binary the floor. It prints its address.
pub(crate) const ARGUMENT: &str = "--floor";
/// The same for the unbounded floor.
pub(crate) const UNBOUNDED_ARGUMENT: &str = "--unbounded-floor";

const LISTENER: Token = Token(usize::MAX);
/// As the service: bursts of connects wait, they are not dropped.
pub(crate) const BACKLOG: i32 = 4096;
const EVENTS: usize = 1024;
const SCRATCH_BYTES: usize = 64 * 1024;

struct Peer {
    stream: TcpStream,
    upgraded: bool,
    /// The start of a frame or head whose end has not come yet.
    partial: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
    room: Option<usize>,
}

struct Room {
    name: String,
    members: Vec<usize>,
    /// Frames for every member, from the events taken so far.
    frames: Vec<u8>,
}

/// When the floor sends what it owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// After each round of events, and at [`FLUSH_FRAMES`].
    Bounded,
    /// When nothing more can be read.
    Unbounded,
}

struct Floor {
    flush_when: Flush,
    poll: Poll,
    listener: TcpListener,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    rooms: Vec<Room>,
    room_numbers: HashMap<String, usize>,
    /// Rooms that have frames.
    touched: Vec<usize>,
    /// Frames that members have still to be sent.
    owed: usize,
    /// The time of this round of events, once one needs it.
    timestamp: Option<String>,
}

/// A listener on a free port with a backlog for bursts.
pub(crate) fn listen() -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until it is killed.
pub(crate) fn run(flush_when: Flush) -> Fallible<()> {
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let mut floor = Floor {
        flush_when,
        poll: Poll::new()?,
        listener: TcpListener::from_std(listener),
        peers: Vec::new(),
        free: Vec::new(),
        rooms: Vec::new(),
        room_numbers: HashMap::new(),
        touched: Vec::new(),
        owed: 0,
        timestamp: None,
    };
    floor.poll.registry().register(&mut floor.listener, LISTENER, Interest::READABLE)?;
    println!("{address}");
    let mut events = Events::with_capacity(EVENTS);
    let mut scratch = vec![0; SCRATCH_BYTES];
    loop {
        // Only the unbounded floor owes anything here: it takes another look before it sends.
        let wait = (floor.owed > 0).then_some(Duration::ZERO);
        match floor.poll.poll(&mut events, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept_waiting()?,
                Token(number) => floor.serve(number, event, &mut scratch)?,
            }
        }
        if floor.flush_when == Flush::Bounded || events.is_empty() {
            floor.flush();
        }
    }
}

impl Floor {
    fn accept_waiting(&mut self) -> Fallible<()> {
        loop {
            let (mut stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            let number = self.free.pop().unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(number), both)?;
            self.peers[number] = Some(Peer {
                stream,
                upgraded: false,
                partial: Vec::new(),
                unsent: Vec::new(),
                room: None,
            });
        }
    }

    /// Takes what `number` has sent, and sends it what waited for its socket.
    fn serve(&mut self, number: usize, event: &Event, scratch: &mut [u8]) -> Fallible<()> {
        while let Some(peer) = &mut self.peers[number] {
            if event.is_writable() && !peer.unsent.is_empty() {
                let waiting = std::mem::take(&mut peer.unsent);
                peer.send(&waiting);
            }
            match peer.stream.read(scratch) {
                Ok(0) => self.remove(number),
                Ok(count) => {
                    let bytes = if peer.partial.is_empty() {
                        self.take(number, &scratch[..count])
                    } else {
                        peer.partial.extend_from_slice(&scratch[..count]);
                        let bytes = std::mem::take(&mut peer.partial);
                        self.take(number, &bytes)
                    };
                    bytes?;
                    // The socket is empty now, but for an end of the stream, which the event tells.
                    if count < scratch.len() && !event.is_read_closed() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.remove(number),
            }
        }
        Ok(())
    }

    /// Takes the units in `bytes`, and keeps what is left of them.
    fn take(&mut self, number: usize, mut bytes: &[u8]) -> Fallible<()> {
        while let Some(peer) = &mut self.peers[number] {
            let length = if !peer.upgraded {
                let Some((answer, length)) = answer_upgrade(bytes)? else {
                    break;
                };
                peer.send(answer.as_bytes());
                peer.upgraded = true;
                length
            } else {
                let Some((opcode, text, length)) = read_frame(bytes) else {
                    break;
                };
                self.take_message(number, opcode, &text)?;
                length
            };
            bytes = &bytes[length..];
        }
        if let Some(peer) = &mut self.peers[number] {
            peer.partial.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn take_message(&mut self, number: usize, opcode: u8, text: &[u8]) -> Fallible<()> {
        if opcode == CLOSE {
            if let Some(peer) = &mut self.peers[number] {
                peer.send(&frame(CLOSE, text));
            }
            self.remove(number);
            return Ok(());
        }
        let message = Message::read(text)
            .ok_or_else(|| format!("the floor does not know {}", text.escape_ascii()))?;
        match message {
            Message::Join(name) => self.join(number, name),
            Message::Broadcast(name, body) => {
                let timestamp = self.timestamp.get_or_insert_with(now);
                let text = format!(
                    "{{\"from\":\"conn-{number}\",\"room\":\"{name}\",\"ts\":\"{timestamp}\",\"body\":{body}}}"
                );
                let room = self
                    .room_numbers
                    .get(name)
                    .copied()
                    .ok_or_else(|| format!("nobody is in {name}"))?;
                let frames = &mut self.rooms[room].frames;
                if frames.is_empty() {
                    self.touched.push(room);
                }
                frames.extend_from_slice(&frame(TEXT, text.as_bytes()));
                self.owed += self.rooms[room].members.len();
                if self.flush_when == Flush::Bounded && self.owed >= FLUSH_FRAMES {
                    self.flush();
                }
            }
        }
        Ok(())
    }

    fn join(&mut self, number: usize, name: &str) {
        let room = *self.room_numbers.entry(name.to_owned()).or_insert_with(|| {
            self.rooms.push(Room {
                name: name.to_owned(),
                members: Vec::new(),
                frames: Vec::new(),
            });
            self.rooms.len() - 1
        });
        self.rooms[room].members.push(number);
        if let Some(peer) = &mut self.peers[number] {
            peer.room = Some(room);
            peer.send(&frame(TEXT, format!("joined {}", self.rooms[room].name).as_bytes()));
        }
    }

    fn remove(&mut self, number: usize) {
        let Some(peer) = self.peers[number].take() else {
            return;
        };
        if let Some(room) = peer.room {
            self.rooms[room].members.retain(|member| *member != number);
        }
        self.free.push(number);
    }

    /// One send to each member of each touched room.
    fn flush(&mut self) {
        self.timestamp = None;
        self.owed = 0;
        for room in self.touched.drain(..) {
            let room = &mut self.rooms[room];
            for member in &room.members {
                if let Some(peer) = &mut self.peers[*member] {
                    peer.send(&room.frames);
                }
            }
            room.frames.clear();
        }
    }
}

impl Peer {
    /// Sends without waiting; what does not fit waits for the socket. A broken socket shows when it
    /// is next read.
    fn send(&mut self, bytes: &[u8]) {
        let sent = if self.unsent.is_empty() { self.stream.write(bytes).unwrap_or(0) } else { 0 };
        self.unsent.extend_from_slice(&bytes[sent..]);
    }
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

pub(crate) const TEXT: u8 = 0x1;
pub(crate) const CLOSE: u8 = 0x8;

/// A final frame as a server sends it.
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 4);
    frame.push(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        long => {
            frame.push(126);
            frame.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// Opcode, unmasked payload and length of the client's frame at the front of `bytes`.
pub(crate) fn read_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (head, length) = match bytes {
        [_, second, ..] if second & 0x7f < 126 => (2, usize::from(second & 0x7f)),
        [_, _, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return None,
    };
    let mask = bytes.get(head..head + 4)?;
    let masked = bytes.get(head + 4..head + 4 + length)?;
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((bytes[0] & 0x0f, payload, head + 4 + length))
}

/// A message as the generator writes it; no other is understood.
pub(crate) enum Message<'a> {
    Join(&'a str),
    Broadcast(&'a str, &'a str),
}

impl<'a> Message<'a> {
    pub(crate) fn read(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        if let Some(rest) = text.strip_prefix("{\"type\":\"join\",\"payload\":{\"room\":\"") {
            return Some(Self::Join(rest.strip_suffix("\"}}")?));
        }
        let rest = text.strip_prefix("{\"type\":\"broadcast\",\"payload\":{\"room\":\"")?;
        let (room, rest) = rest.split_once("\",\"body\":")?;
        Some(Self::Broadcast(room, rest.strip_suffix("}}")?))
    }
}

/// The 101 for the upgrade request at the front of `bytes`, and its length; `None` while it is
/// incomplete.
pub(crate) fn answer_upgrade(bytes: &[u8]) -> Fallible<Option<(String, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes)? else {
        return Ok(None);
    };
    let key = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Sec-WebSocket-Key"))
        .ok_or("an upgrade without a key")?;
    let accept = tungstenite::handshake::derive_accept_key(key.value);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok(Some((answer, length)))
}
