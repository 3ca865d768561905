//! A connection of raw bytes, and the answers of HTTP on it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// All that still comes, up to the end of the stream.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A connection of raw bytes, with read and write timeouts.
pub fn connect(addr: SocketAddr) -> TcpStream {
    with_timeouts(TcpStream::connect(addr).unwrap())
}

pub(super) fn with_timeouts(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Up to the blank line; else what came instead.
fn read_head(stream: &mut TcpStream) -> Result<String, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            // With a timeout, a read ends so when its process was stopped and goes on (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            end => return Err(format!("{end:?} behind {:?}", String::from_utf8_lossy(&head))),
        }
    }
    Ok(String::from_utf8(head).unwrap())
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Response {
    /// Reads one answer; `None` when the stream ends before one has come.
    pub fn read(stream: &mut TcpStream) -> Option<Self> {
        let head = read_head(stream).ok()?;
        Self::parse(stream, &head)
    }

    /// The same, where an answer must come.
    pub fn expect(stream: &mut TcpStream) -> Self {
        let head = read_head(stream).unwrap_or_else(|why| panic!("no answer: {why}"));
        Self::parse(stream, &head).expect("a whole answer")
    }

    fn parse(stream: &mut TcpStream, head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: HashMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self { status, headers, body: String::from_utf8(body).unwrap() })
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}
