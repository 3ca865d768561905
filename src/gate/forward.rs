//! The hop to tiny_http: a private Unix socket, four connections to it, and the exchange on one.
//!
//! tiny_http's parser must not meet the network, so it gets only what this module wrote: a request
//! line and a few headers of the gate's own, all visible ASCII, with the whole body behind.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use httparse::Status;

use crate::auth::Identity;
use crate::config::{KIB, REST_CONNECTIONS};
use crate::http::{Head, Response};
use crate::rest::{CONNECTION_HEADER, PEER_HEADER, USER_HEADER};

/// How long a request waits for one of the connections.
pub(super) const BORROW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a handler may take for its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// First size of the buffer for a response, in bytes: most fit.
const RESPONSE_BYTES: usize = KIB;
/// Most bytes of a response read at once.
const RESPONSE_CHUNK_BYTES: usize = 64 * KIB;
/// Most headers of a response; handlers set a handful.
const MAX_RESPONSE_HEADERS: usize = 32;

/// The request as tiny_http gets it, up to where the body begins. No header of the peer's is passed on:
/// handlers need none.
pub(super) fn request(
    head: &Head,
    peer: SocketAddr,
    number: u64,
    caller: Option<&Identity>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    for part in [head.method(), " ", head.path()] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(query) = head.query() {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    // Writing to a Vec does not fail.
    let _ = write!(out, " HTTP/1.1\r\n{PEER_HEADER}: {peer}\r\n{CONNECTION_HEADER}: {number}\r\n");
    if let Some(caller) = caller {
        // An id has visible ASCII characters only.
        let _ = write!(out, "{USER_HEADER}: {}\r\n", caller.user_id);
    }
    if let Some(length) = head.content_length().filter(|length| *length > 0) {
        let _ = write!(out, "Content-Length: {length}\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The connections to tiny_http, borrowed one at a time.
pub(super) struct Pool {
    path: PathBuf,
    /// `None` stands for a broken one, replaced when it is borrowed.
    free: Receiver<Option<UnixStream>>,
    give_back: Sender<Option<UnixStream>>,
}

impl Pool {
    /// Connects all of them.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let (give_back, free) = bounded(REST_CONNECTIONS);
        let pool = Self { path: path.into(), free, give_back };
        for _ in 0..REST_CONNECTIONS {
            let stream = pool.open()?;
            // As many places as connections.
            let _ = pool.give_back.try_send(Some(stream));
        }
        Ok(pool)
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        stream.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
        Ok(stream)
    }

    /// Sends a request and reads its response whole; the connection is free again before a byte of it
    /// goes to the peer. A request is not sent twice: the handler may have acted on it.
    ///
    /// # Errors
    /// The 503 for the peer.
    pub(super) fn exchange(
        &self,
        request: Vec<u8>,
        to_head_request: bool,
    ) -> Result<RestResponse, Response> {
        let Ok(free) = self.free.recv_timeout(BORROW_TIMEOUT) else {
            return Err(busy());
        };
        let mut borrowed = Borrowed { pool: self, stream: None };
        let mut stream = free.map_or_else(|| self.open(), Ok).map_err(|error| failed(&error))?;
        let response =
            ask(&mut stream, &request, to_head_request).map_err(|error| failed(&error))?;
        borrowed.stream = Some(stream);
        Ok(response)
    }
}

pub(super) fn busy() -> Response {
    Response::unavailable("all REST handlers are busy")
}

fn failed(error: &io::Error) -> Response {
    log::warn!(error:%; "REST handler did not answer");
    Response::unavailable("the REST handler did not answer")
}

/// Gives a connection back, or the place of one that broke.
struct Borrowed<'a> {
    pool: &'a Pool,
    stream: Option<UnixStream>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let _ = self.pool.give_back.try_send(self.stream.take());
    }
}

/// A response of tiny_http, complete and ready to be passed on.
#[derive(Debug)]
pub(super) struct RestResponse {
    bytes: Vec<u8>,
    head_length: usize,
}

impl RestResponse {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a header, such as `Connection: close`.
    pub(super) fn add_header(&mut self, name: &str, value: &str) {
        let line = format!("{name}: {value}\r\n");
        let blank_line = self.head_length - 2;
        self.bytes.splice(blank_line..blank_line, line.bytes());
        self.head_length += line.len();
    }
}

fn ask(stream: &mut UnixStream, request: &[u8], to_head_request: bool) -> io::Result<RestResponse> {
    stream.write_all(request)?;
    let deadline = Instant::now() + RESPONSE_TIMEOUT;
    let mut bytes = Vec::new();
    let head = loop {
        read_more(stream, &mut bytes, RESPONSE_BYTES, deadline)?;
        if let Some(head) = ResponseHead::parse(&bytes)? {
            break head;
        }
    };
    if head.status == 204 {
        // RFC 9110, section 8.6: no Content-Length in a 204, yet tiny_http writes one.
        return Ok(head.without_length(bytes));
    }
    let body = if to_head_request { 0 } else { head.content_length };
    let whole = head.length.saturating_add(body);
    while bytes.len() < whole {
        let most = (whole - bytes.len()).min(RESPONSE_CHUNK_BYTES);
        read_more(stream, &mut bytes, most, deadline)?;
    }
    if bytes.len() > whole {
        return Err(io::Error::other("the response is longer than its Content-Length"));
    }
    Ok(RestResponse { bytes, head_length: head.length })
}

fn read_more(
    stream: &mut UnixStream,
    bytes: &mut Vec<u8>,
    most: usize,
    deadline: Instant,
) -> io::Result<()> {
    let before = bytes.len();
    bytes.resize(before + most, 0);
    let read = stream.read(bytes.get_mut(before..).unwrap_or_default());
    bytes.truncate(before + *read.as_ref().unwrap_or(&0));
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ if Instant::now() > deadline => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

struct ResponseHead {
    status: u16,
    /// Of the head, in bytes.
    length: usize,
    content_length: usize,
}

impl ResponseHead {
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_RESPONSE_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let Status::Complete(length) = response.parse(bytes).map_err(io::Error::other)? else {
            return Ok(None);
        };
        let content_length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .ok_or_else(|| io::Error::other("the response has no Content-Length"))?;
        Ok(Some(Self { status: response.code.unwrap_or_default(), length, content_length }))
    }

    fn without_length(&self, bytes: Vec<u8>) -> RestResponse {
        let head = bytes.get(..self.length).unwrap_or_default();
        let mut kept = Vec::with_capacity(head.len());
        for line in head.split_inclusive(|b| *b == b'\n') {
            let named = line.get(..15).is_some_and(|n| n.eq_ignore_ascii_case(b"content-length:"));
            if !named {
                kept.extend_from_slice(line);
            }
        }
        RestResponse { head_length: kept.len(), bytes: kept }
    }
}
