//! Many clients at once, held by one epoll thread, and what is measured beside them.
//!
//! A client reads all that comes, as fast as it comes, unless [`Pace`] says otherwise, and answers
//! pings and the Close as a browser does.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "each test file uses a part of it; a test fails by panicking"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::support::{Client, PATIENCE, Redis, Service, frame, handshake, token};

/// `MAX_CONNECTIONS_PER_USER`, unless a test sets it.
pub const CONNECTIONS_PER_USER: usize = 20;

/// Connections on their way in at a time: below every listen backlog.
const OPENING_AT_ONCE: usize = 64;
/// Larger than what a client gets between two reads.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Small, so that thousands of sockets cannot take the machine's TCP memory.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// A longer text is handed over by its first bytes only: copying megabytes for thousands of clients would
/// make the clients slow.
const WHOLE_BYTES: usize = 16 * 1024;
const START_BYTES: usize = 256;
/// The longest that one step of a background thread waits for something to arrive.
const STEP: Duration = Duration::from_millis(2);

/// The service, as [`Service::with`] starts it, from the build that `REALTIME_SERVICE_BIN` names if it
/// names one: a test that fails on a debug build, or is to be seen failing on an older one, runs on it.
pub fn start(settings: &[(&str, &str)]) -> Service {
    let command = Service::command(settings);
    let Some(program) = std::env::var_os("REALTIME_SERVICE_BIN") else {
        return Service::spawn(command);
    };
    let mut other = Command::new(program);
    other.env_clear().current_dir(std::env::temp_dir());
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Service::spawn(other)
}

/// [`start`], connected to this Redis.
pub fn start_on(redis: &Redis, settings: &[(&str, &str)]) -> Service {
    let addr = redis.addr();
    let all: Vec<_> = [("REDIS_ADDR", addr.as_str())].iter().chain(settings).copied().collect();
    let service = start(&all);
    service.wait_for_redis("connected");
    service
}

/// The frame of a broadcast, with an `id` if there is one.
pub fn broadcast(room: &str, body: &Value, id: Option<u64>) -> Vec<u8> {
    let mut message = json!({"type": "broadcast", "payload": {"room": room, "body": body}});
    if let Some(id) = id {
        message["id"] = json!(id);
    }
    frame(0x81, message.to_string().as_bytes())
}

/// How fast a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All that is there.
    Eager,
    /// Nothing.
    Stalled,
    BytesPerSecond(usize),
}

/// What came from the service.
enum Unit<'a> {
    /// The answer to the handshake.
    Head(&'a [u8]),
    Text(&'a [u8]),
    Close(u16),
    Ping(&'a [u8]),
    Pong,
}

struct Link {
    stream: TcpStream,
    upgraded: bool,
    /// The start of what has not come to its end; mostly empty.
    partial: Vec<u8>,
    /// Of a long text: its first bytes, and how many are still to come.
    long: Option<(Vec<u8>, usize)>,
    unsent: Vec<u8>,
    pace: Pace,
    /// When a paced client has read last.
    read_at: Instant,
    close: Option<u16>,
    ended: bool,
    /// It ended by a reset.
    reset: bool,
}

impl Link {
    fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.flush();
    }

    /// Writes what the socket takes; what a broken one does not take is nobody's any more.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.unsent.clear(),
            }
        }
    }

    /// Reads up to `most` bytes, and hands over each text.
    fn read(&mut self, mut most: usize, scratch: &mut [u8], mut on_text: impl FnMut(&[u8])) {
        while most > 0 && !self.ended {
            let part = most.min(scratch.len());
            match self.stream.read(&mut scratch[..part]) {
                Ok(0) => {
                    self.ended = true;
                    // The service waits for this, and browsers do it; a broken one needs it no more.
                    let _ = self.stream.shutdown(Shutdown::Both);
                }
                Ok(length) => {
                    most -= length;
                    self.take(&scratch[..length], &mut on_text);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended = true;
                    self.reset = error.kind() == ErrorKind::ConnectionReset;
                }
            }
        }
    }

    fn take(&mut self, fresh: &[u8], on_text: &mut impl FnMut(&[u8])) {
        let joined;
        let mut bytes = fresh;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(fresh);
            joined = std::mem::take(&mut self.partial);
            bytes = &joined;
        }
        loop {
            if let Some((start, left)) = &mut self.long {
                let length = bytes.len().min(*left);
                bytes = &bytes[length..];
                *left -= length;
                if *left > 0 {
                    return;
                }
                on_text(start);
                self.long = None;
            }
            if let Some((start, length)) = long_text(bytes, self.upgraded) {
                self.long = Some((start.to_vec(), length));
                continue;
            }
            let Some((unit, length)) = parse(bytes, self.upgraded) else { break };
            match unit {
                Unit::Head(head) => {
                    let head = String::from_utf8_lossy(head);
                    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                    self.upgraded = true;
                }
                Unit::Text(text) => on_text(text),
                Unit::Close(code) => {
                    self.close = Some(code);
                    self.send(&frame(0x88, &code.to_be_bytes()));
                }
                Unit::Ping(payload) => self.send(&frame(0x8a, payload)),
                Unit::Pong => {}
            }
            bytes = &bytes[length..];
        }
        self.partial.extend_from_slice(bytes);
    }
}

/// The first bytes of the long text that `bytes` begin with, and the length of its frame.
fn long_text(bytes: &[u8], upgraded: bool) -> Option<(&[u8], usize)> {
    let (header, length) = extent(bytes)?;
    let is_long = upgraded && bytes[0] == 0x81 && length > WHOLE_BYTES;
    let start = bytes.get(header..header + START_BYTES)?;
    is_long.then_some((start, header + length))
}

/// Lengths of header and payload of the frame that `bytes` begin with.
fn extent(bytes: &[u8]) -> Option<(usize, usize)> {
    Some(match *bytes.get(1)? {
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        length => (2, usize::from(length)),
    })
}

/// The first whole unit in `bytes`, and its length there.
fn parse(bytes: &[u8], upgraded: bool) -> Option<(Unit<'_>, usize)> {
    if !upgraded {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        return Some((Unit::Head(&bytes[..end]), end));
    }
    let (header, length) = extent(bytes)?;
    let payload = bytes.get(header..header + length)?;
    let unit = match bytes[0] {
        0x81 => Unit::Text(payload),
        0x88 if payload.len() < 2 => Unit::Close(1005),
        0x88 => Unit::Close(u16::from_be_bytes([payload[0], payload[1]])),
        0x89 => Unit::Ping(payload),
        0x8a => Unit::Pong,
        other => panic!("a frame that the service never sends: {other:#x}"),
    };
    Some((unit, header + length))
}

/// The clients, numbered from 0 in the order in which they came.
pub struct Crowd {
    addr: SocketAddr,
    poll: Poll,
    events: Events,
    links: Vec<Link>,
    /// Those that are neither eager nor stalled.
    paced: Vec<usize>,
    scratch: Vec<u8>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(service: &Service) -> Self {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .unwrap();
        Self {
            addr: service.addr(),
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(1024),
            links: Vec::new(),
            paced: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
        }
    }

    /// Connects one client for each token.
    pub fn connect(&mut self, tokens: impl IntoIterator<Item = String>) -> Range<usize> {
        let first = self.links.len();
        for token in tokens {
            let bearer = format!("Authorization: Bearer {token}\r\n");
            let link = self.open();
            self.links[link].send(handshake("/ws", &bearer).as_bytes());
            let earlier = first.max((link + 1).saturating_sub(OPENING_AT_ONCE));
            self.pump_until(
                "a handshake",
                |_, _| {},
                |crowd| link == earlier || crowd.links[earlier].upgraded,
            );
        }
        let all = first..self.links.len();
        self.pump_until(
            "handshakes",
            |_, _| {},
            |crowd| crowd.links[first..].iter().all(|link| link.upgraded),
        );
        all
    }

    fn open(&mut self) -> usize {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(socket.into());
        let link = self.links.len();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(link), interest).unwrap();
        self.links.push(Link {
            stream,
            upgraded: false,
            partial: Vec::new(),
            long: None,
            unsent: Vec::new(),
            pace: Pace::Eager,
            read_at: Instant::now(),
            close: None,
            ended: false,
            reset: false,
        });
        link
    }

    /// Lets each of these join the room, and waits for the answers.
    pub fn join(&mut self, links: Range<usize>, room: &str) {
        let join = json!({"type": "join", "payload": {"room": room}}).to_string();
        let answer = format!("joined {room}");
        let mut joined = 0;
        links.clone().for_each(|link| self.send(link, &frame(0x81, join.as_bytes())));
        let deadline = Instant::now() + PATIENCE;
        while joined < links.len() {
            assert!(Instant::now() < deadline, "{joined} of {} joined {room}", links.len());
            self.pump(STEP, |_, text| joined += usize::from(text == answer.as_bytes()));
        }
    }

    /// Connects `count` clients, [`CONNECTIONS_PER_USER`] for each user of the name, into the room.
    pub fn enter(&mut self, name: &str, count: usize, room: &str) -> Range<usize> {
        let user = |n: usize| token(&format!("{name}-{}", n / CONNECTIONS_PER_USER), "");
        let links = self.connect((0..count).map(user));
        self.join(links.clone(), room);
        links
    }

    /// Sends these bytes, as the socket takes them.
    pub fn send(&mut self, link: usize, bytes: &[u8]) {
        self.links[link].send(bytes);
    }

    /// Whether all that was sent is in the kernel.
    pub fn has_sent(&self, link: usize) -> bool {
        self.links[link].unsent.is_empty()
    }

    /// From now on it reads so.
    pub fn set_pace(&mut self, link: usize, pace: Pace) {
        self.paced.retain(|paced| *paced != link);
        if matches!(pace, Pace::BytesPerSecond(_)) {
            self.paced.push(link);
        }
        let changed = &mut self.links[link];
        (changed.pace, changed.read_at, changed.ended) = (pace, Instant::now(), false);
        // What has come already is told again.
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().reregister(&mut changed.stream, Token(link), interest).unwrap();
    }

    /// Waits for one round of arrivals, and hands over each text and whose it is.
    pub fn pump(&mut self, wait: Duration, mut on_text: impl FnMut(usize, &[u8])) {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            other => other.unwrap(),
        }
        for event in &self.events {
            let number = event.token().0;
            let link = &mut self.links[number];
            if event.is_writable() {
                link.flush();
            }
            if link.pace == Pace::Eager {
                link.read(usize::MAX, &mut self.scratch, |text| on_text(number, text));
            } else if event.is_error() || event.is_read_closed() {
                link.ended = true;
            }
        }
        for &number in &self.paced {
            let link = &mut self.links[number];
            let Pace::BytesPerSecond(rate) = link.pace else { continue };
            let now = Instant::now();
            let most = (rate as f64 * (now - link.read_at).as_secs_f64()) as usize;
            if most > 0 {
                link.read_at = now;
                link.read(most, &mut self.scratch, |text| on_text(number, text));
            }
        }
    }

    /// Pumps until a condition holds; panics with `what` at the deadline.
    pub fn pump_until(
        &mut self,
        what: &str,
        mut on_text: impl FnMut(usize, &[u8]),
        mut holds: impl FnMut(&Self) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "never came: {what}");
            self.pump(STEP, &mut on_text);
        }
    }

    /// The code of the Close that it got.
    pub fn close_code(&self, link: usize) -> Option<u16> {
        self.links[link].close
    }

    /// Whether its connection has ended, or that of a client that does not read is broken.
    pub fn has_ended(&self, link: usize) -> bool {
        self.links[link].ended
    }

    /// Whether its connection has ended by a reset.
    pub fn was_reset(&self, link: usize) -> bool {
        self.links[link].reset
    }

    /// How many of these have ended.
    pub fn ended(&self, links: Range<usize>) -> usize {
        self.links[links].iter().filter(|link| link.ended).count()
    }
}

impl Drop for Crowd {
    /// Resets instead of closing: thousands of ports in TIME_WAIT would weigh on the next test.
    fn drop(&mut self) {
        for link in &self.links {
            // Closing works without it too.
            let _ = SockRef::from(&link.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A crowd on a thread of its own; the thread ends when this is dropped.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Crowd>>,
}

impl Background {
    /// Repeats the step, which is to pump, until it is stopped.
    pub fn run(mut crowd: Crowd, mut step: impl FnMut(&mut Crowd) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                step(&mut crowd);
            }
            crowd
        });
        Self { stop, thread: Some(thread) }
    }

    /// The crowd back.
    pub fn stop(mut self) -> Crowd {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Messages that senders repeat.
pub struct Flood {
    senders: Range<usize>,
    message: Vec<u8>,
    pause: Duration,
    next: Instant,
}

impl Flood {
    /// Each of the senders broadcasts to the room this often a second, unless it is held back.
    pub fn new(senders: Range<usize>, room: &str, per_second: u32) -> Self {
        let message = broadcast(room, &json!("flood"), None);
        let pause = Duration::from_secs(1) / per_second;
        Self { senders, message, pause, next: Instant::now() }
    }

    /// Sends what is due.
    pub fn step(&mut self, crowd: &mut Crowd) {
        let now = Instant::now();
        // What a slow machine did not send in time is not sent later.
        if now < self.next {
            return;
        }
        self.next = now + self.pause;
        for sender in self.senders.clone() {
            let is_open = crowd.close_code(sender).is_none() && !crowd.has_ended(sender);
            if is_open && crowd.has_sent(sender) {
                crowd.send(sender, &self.message);
            }
        }
    }
}

/// Runs the crowd and these floods in the background.
pub fn flooded(crowd: Crowd, mut floods: Vec<Flood>) -> Background {
    Background::run(crowd, move |crowd| {
        crowd.pump(STEP, |_, _| {});
        floods.iter_mut().for_each(|flood| flood.step(crowd));
    })
}

/// A client that is alone in a room, and so gets its own broadcasts only.
pub struct Echo {
    client: Client,
    room: String,
    /// How long each has taken.
    pub times: Vec<Duration>,
}

impl Echo {
    /// Of a user of its own.
    pub fn new(service: &Service, user: &str) -> Self {
        let mut client = Client::connect(service.addr(), &token(user, ""));
        let room = format!("echo-{user}");
        client.join(&room);
        Self { client, room, times: Vec::new() }
    }

    /// One round trip.
    pub fn take(&mut self) -> Duration {
        let start = Instant::now();
        self.client.broadcast(&self.room, &json!("echo"));
        assert_eq!(self.client.json()["body"], "echo");
        let took = start.elapsed();
        self.times.push(took);
        took
    }

    /// Round trips for so long, below the rate that a user has.
    pub fn take_for(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.take();
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.times.iter().copied().max().unwrap()
    }
}

/// The time that so many percent do not exceed.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
