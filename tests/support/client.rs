//! A WebSocket client of raw bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, bearer, connect};

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    /// Code (0 when there is none) and reason.
    Close(u16, String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The stream ended, or was reset.
    End,
}

/// A WebSocket client of raw bytes, which answers nothing by itself.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The head of the handshake's answer.
    pub head: String,
}

/// A message without the number that it begins with, if it does.
pub fn without_number(text: &str) -> String {
    let numbered = [r#"{"seq":"#, r#"{"user_seq":"#].iter().any(|start| text.starts_with(start));
    match text.split_once(',') {
        Some((_, rest)) if numbered => format!("{{{rest}"),
        _ => text.to_owned(),
    }
}

/// The request of a handshake; `headers` come with their line ends.
pub fn handshake(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// One masked client frame; `opcode` holds the FIN bit and the reserved bits too.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x1f, 0x2e, 0x3d, 0x4c];
    let mut bytes = vec![opcode];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

impl Client {
    /// Connects with a token in the `Authorization` header.
    pub fn connect(addr: SocketAddr, token: &str) -> Self {
        let request = handshake("/ws", &bearer(token));
        let client = Self::try_connect(addr, &request).expect("an answer");
        assert!(client.head.starts_with("HTTP/1.1 101 "), "{}", client.head);
        client
    }

    /// Sends a handshake's request; `None` when the stream ends before an answer.
    pub fn try_connect(addr: SocketAddr, request: &str) -> Option<Self> {
        let mut stream = connect(addr);
        stream.write_all(request.as_bytes()).ok()?;
        Self::over(stream)
    }

    /// Reads the answer to a handshake that was sent already.
    pub fn over(stream: TcpStream) -> Option<Self> {
        let mut client = Self { stream, buffer: Vec::new(), head: String::new() };
        loop {
            if let Some(end) = client.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<_> = client.buffer.drain(..end + 4).collect();
                client.head = String::from_utf8(head).unwrap();
                return Some(client);
            }
            if !client.fill() {
                return None;
            }
        }
    }

    /// Reads more; whether the stream goes on. Panics when nothing comes for too long.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend(&chunk[..length]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came within {PATIENCE:?}")
            }
            // The process was stopped and goes on (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(_) => false,
        }
    }

    /// The raw stream.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends raw bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends one text message.
    pub fn send(&mut self, text: &str) {
        self.send_bytes(&frame(0x81, text.as_bytes()));
    }

    /// Sends one JSON message.
    pub fn send_json(&mut self, message: &Value) {
        self.send(&message.to_string());
    }

    /// Sends a Close frame with this code.
    pub fn send_close(&mut self, code: u16) {
        self.send_bytes(&frame(0x88, &code.to_be_bytes()));
    }

    /// Ends the sending half.
    pub fn end_sending(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next frame.
    pub fn next(&mut self) -> Frame {
        loop {
            if let Some((frame, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return frame;
            }
            if !self.fill() {
                return Frame::End;
            }
        }
    }

    /// The next frame, if it comes before the deadline.
    pub fn next_before(&mut self, deadline: Instant) -> Option<Frame> {
        let mut chunk = [0; 16 * 1024];
        let frame = loop {
            if let Some((frame, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                break Some(frame);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            // Less than a millisecond would be none at all.
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            match self.stream.read(&mut chunk) {
                Ok(0) => break Some(Frame::End),
                Ok(length) => self.buffer.extend(&chunk[..length]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(_) => break Some(Frame::End),
            }
        };
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        frame
    }

    /// Sends one JSON message; whether the stream took it.
    pub fn try_send_json(&mut self, message: &Value) -> bool {
        self.stream.write_all(&frame(0x81, message.to_string().as_bytes())).is_ok()
    }

    /// The frames that have come so far, without waiting for more: the stream does not block from now
    /// on. An end counts as a frame.
    pub fn arrived(&mut self) -> Vec<Frame> {
        self.stream.set_nonblocking(true).unwrap();
        let mut chunk = [0; 16 * 1024];
        let ended = match self.stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(length) => {
                self.buffer.extend(&chunk[..length]);
                false
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        let mut frames = Vec::new();
        let mut taken = 0;
        while let Some((frame, length)) = parse(&self.buffer[taken..]) {
            frames.push(frame);
            taken += length;
        }
        self.buffer.drain(..taken);
        if ended {
            frames.push(Frame::End);
        }
        frames
    }

    /// The next frame, which is to be a text.
    pub fn text(&mut self) -> String {
        match self.next() {
            Frame::Text(text) => text,
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// The next frame, which is to be a text of JSON.
    pub fn json(&mut self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
    }

    /// Joins a room and takes the answer.
    pub fn join(&mut self, room: &str) {
        self.send_json(&json!({"type": "join", "payload": {"room": room}}));
        assert_eq!(self.text(), format!("joined {room}"));
    }

    /// Broadcasts without an id, which is not answered.
    pub fn broadcast(&mut self, room: &str, body: &Value) {
        self.send_json(&json!({"type": "broadcast", "payload": {"room": room, "body": body}}));
    }

    /// Proves that nothing else is on its way: what was sent before has been handled, and its answers
    /// would have come before this one.
    pub fn assert_quiet(&mut self) {
        self.send(r#"{"type":"leave","payload":{"room":"sentinel"}}"#);
        assert_eq!(self.text(), "left sentinel");
    }
}

/// The first whole frame in `bytes`, and its length.
fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (header, length) = match *bytes.get(1)? {
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(header..header + length)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let frame = match bytes[0] {
        0x81 => Frame::Text(text(payload)),
        0x88 if payload.len() < 2 => Frame::Close(0, String::new()),
        0x88 => Frame::Close(u16::from_be_bytes([payload[0], payload[1]]), text(&payload[2..])),
        0x89 => Frame::Ping(payload.to_vec()),
        0x8a => Frame::Pong(payload.to_vec()),
        other => panic!("a frame that the service never sends: {other:#x}"),
    };
    Some((frame, header + length))
}
