//! The reader thread of a connection: frames → client messages → events.
//!
//! It blocks in reads without a timeout (the hub keeps the clocks) and never writes: replies, pongs
//! and Close frames are the hub's.

mod intake;
mod rate;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use log::info;
use prometheus_client::metrics::counter::Counter;
use time::OffsetDateTime;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket, error::ProtocolError};

use crate::auth::Identity;
use crate::auth::{Authorizer, Verdict};
use crate::hub::socket::{Socket, TcpSocket};
use crate::hub::{Broadcast, HubGone, Publisher, Said};
use crate::protocol::close::Close;
use crate::protocol::{ClientMessage, ErrorCode, MessageId, Request, Room, broadcast};
use crate::runtime::clock::uptime;
use intake::Intake;
use rate::{ClientRate, ControlRate, RateDecision};

/// tungstenite's read buffer, in bytes. What is free of it is zeroed before each read, so that a larger one
/// makes every small message dearer. A message over half of it grows it to about twice the message, and a
/// connection keeps it until it ends.
const READ_BUFFER_BYTES: usize = 1024;

/// How long a connection over its rate is not read behind each message that is refused.
const REFUSAL_PAUSE: Duration = Duration::from_millis(10);
/// How long a connection that is being closed is not read behind each KiB: a megabyte a second is enough for
/// what was on its way, and a flood is nothing to be in a hurry for.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// What a reader needs to do its work.
pub struct Reader {
    /// The connection's way to the hub; its drop says that nothing more will come.
    pub publisher: Publisher,
    /// Number of the connection, for logs.
    pub number: u64,
    /// Id of the connection, the `from` of its broadcasts.
    pub id: String,
    /// Who it belongs to.
    pub identity: Arc<Identity>,
    /// The socket, shared with hub and writers.
    pub socket: Arc<TcpSocket>,
    /// Who may join what.
    pub authorizer: Arc<Authorizer>,
    /// Counts messages over the rate.
    pub rate_limited: Counter,
}

/// Why reading stops.
enum ReadEnd {
    /// Nothing will come any more.
    Gone,
    /// The hub closes the connection: what the peer still sends is drained.
    Ignored,
    /// The hub is to send this Close; what the peer still sends is drained.
    Close(Close),
}

impl From<HubGone> for ReadEnd {
    fn from(_: HubGone) -> Self {
        Self::Gone
    }
}

impl Reader {
    /// Reads until the stream ends, and tells the hub so. `early` is what came behind the request head; a
    /// message has at most `message_bytes`.
    pub fn run(self, early: Vec<u8>, message_bytes: usize) {
        let is_closing = match self.read(early, message_bytes) {
            ReadEnd::Gone => false,
            ReadEnd::Ignored => true,
            ReadEnd::Close(close) => self.publisher.close(close).is_ok(),
        };
        if is_closing {
            self.drain();
        }
    }

    fn read(&self, early: Vec<u8>, message_bytes: usize) -> ReadEnd {
        let intake = Intake::new(Arc::clone(&self.socket), &early);
        let mut websocket = websocket(intake, early, message_bytes);
        let mut rate = ClientRate::default();
        let mut control = ControlRate::default();
        loop {
            let handled = match websocket.read() {
                Ok(Message::Text(text)) => self.message(Ok(text.as_str()), &mut rate),
                Ok(Message::Binary(bytes)) => self.message(Err(bytes.len()), &mut rate),
                Ok(Message::Ping(_) | Message::Pong(_)) if !control.take(uptime()) => {
                    Err(ReadEnd::Close(Close::RateLimited))
                }
                Ok(Message::Ping(payload)) => {
                    // The payload is a slice of the read buffer, which it would keep alive.
                    let payload = bytes::Bytes::copy_from_slice(&payload);
                    self.say(payload.len(), Said::Ping(payload))
                }
                Ok(Message::Pong(_) | Message::Frame(_)) => Ok(()),
                Ok(Message::Close(frame)) => Err(echo_of(frame.as_ref())),
                Err(error) => Err(end_of(&error)),
            };
            match handled {
                Ok(()) if self.socket.activity().is_ignored() => return ReadEnd::Ignored,
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// One data message; of a binary one the length is enough.
    fn message(&self, text: Result<&str, usize>, rate: &mut ClientRate) -> Result<(), ReadEnd> {
        let bytes = text.map_or_else(|length| length, str::len);
        match rate.take(self.publisher.rates(), uptime(), bytes) {
            RateDecision::Pass => {}
            RateDecision::Refuse { tell } => {
                self.rate_limited.inc();
                // Else a flood that is refused would cost more than one that is served.
                std::thread::sleep(REFUSAL_PAUSE);
                // Who asked with an id waits for the answer.
                let id = text.ok().and_then(MessageId::of);
                let answers = tell || id.is_some();
                return if answers { self.refuse(ErrorCode::RateLimited, id) } else { Ok(()) };
            }
            RateDecision::Close => return Err(ReadEnd::Close(Close::RateLimited)),
        }
        let Ok(text) = text else {
            return self.refuse(ErrorCode::InvalidJson, None);
        };
        match ClientMessage::parse(text) {
            Ok(message) => self.act(message, bytes),
            Err(bad) => self.refuse(bad.code, bad.id),
        }
    }

    fn act(&self, message: ClientMessage<'_>, bytes: usize) -> Result<(), ReadEnd> {
        let ClientMessage { request, id } = message;
        let said = match request {
            Request::Leave(room) => Said::Leave(room, id),
            Request::Resume { since } => Said::Resume { since, id },
            Request::Join { room, since } => match self.may_join(&room) {
                Verdict::Allowed => Said::Join { room, since, id },
                Verdict::Denied => {
                    let user = &self.identity.user_id;
                    info!(conn = self.number, user, room:% = room; "room refused");
                    Said::Refuse(ErrorCode::NotAuthorized, id)
                }
                Verdict::Failed => Said::Refuse(ErrorCode::ServerError, id),
            },
            Request::Broadcast { room, body } => match self.may_broadcast(&room)? {
                Verdict::Failed => Said::Refuse(ErrorCode::ServerError, id),
                verdict => {
                    let draft = broadcast(&self.id, &room, OffsetDateTime::now_utc(), body);
                    let permitted = verdict == Verdict::Allowed;
                    Said::Broadcast(Broadcast { room, draft, permitted, id })
                }
            },
        };
        self.say(bytes, said)
    }

    /// A member may broadcast without asking the backend again; the hub knows who is one.
    fn may_broadcast(&self, room: &Room) -> Result<Verdict, ReadEnd> {
        if !self.authorizer.is_local() && self.publisher.is_member(room)? {
            return Ok(Verdict::Allowed);
        }
        Ok(self.may_join(room))
    }

    /// While the backend is asked nothing is read, so the peer's clocks rest.
    fn may_join(&self, room: &Room) -> Verdict {
        let give_up = || self.socket.activity().is_ignored();
        let clocks = (!self.authorizer.is_local()).then(|| self.socket.activity().rest());
        let verdict = self.authorizer.may_join(&self.identity, room, give_up);
        drop(clocks);
        verdict
    }

    fn refuse(&self, code: ErrorCode, id: Option<MessageId>) -> Result<(), ReadEnd> {
        self.say(0, Said::Refuse(code, id))
    }

    fn say(&self, bytes: usize, said: Said) -> Result<(), ReadEnd> {
        Ok(self.publisher.say(said, bytes)?)
    }

    /// Reads on without looking until the peer, or the hub at its deadline, ends the stream: closing
    /// with unread input would reset it, and could destroy the Close frame on its way.
    fn drain(&self) {
        let mut scrap = [0; 1024];
        loop {
            match self.socket.stream().read(&mut scrap) {
                Ok(0) => return,
                Ok(_) if self.socket.is_aborted() => return,
                Ok(_) => std::thread::sleep(DRAIN_PAUSE),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn websocket<S: Read + Write>(stream: S, early: Vec<u8>, message_bytes: usize) -> WebSocket<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        // Nothing is ever written, so the write buffer only has to satisfy its own assertion.
        .write_buffer_size(0)
        .max_write_buffer_size(1024)
        .max_message_size(Some(message_bytes))
        .max_frame_size(Some(message_bytes));
    WebSocket::from_partially_read(stream, early, Role::Server, Some(config))
}

/// The frame path without a socket, for the fuzz targets: reads the frames of a client to the end of
/// the stream or of the connection, hands each data message to `on_message` (`None` is a binary one),
/// and returns the Close that is due, if one is.
#[cfg(fuzzing)]
pub fn follow(
    stream: impl Read,
    message_bytes: usize,
    mut on_message: impl FnMut(Option<&str>),
) -> Option<Close> {
    let stream = intake::Followed::new(stream);
    let mut websocket = websocket(stream, Vec::new(), message_bytes);
    let end = loop {
        match websocket.read() {
            Ok(Message::Text(text)) => on_message(Some(text.as_str())),
            Ok(Message::Binary(_)) => on_message(None),
            Ok(Message::Close(frame)) => break echo_of(frame.as_ref()),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Err(error) => break end_of(&error),
        }
    };
    match end {
        ReadEnd::Close(close) => Some(close),
        ReadEnd::Gone | ReadEnd::Ignored => None,
    }
}

fn echo_of(frame: Option<&CloseFrame>) -> ReadEnd {
    ReadEnd::Close(Close::Echo(frame.map_or(1000, |frame| frame.code.into())))
}

/// tungstenite sends no Close frame on errors: what the hub is to send.
fn end_of(error: &Error) -> ReadEnd {
    match error {
        Error::Capacity(_) => ReadEnd::Close(Close::TooLarge),
        Error::Utf8(_) => ReadEnd::Close(Close::InvalidUtf8),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => ReadEnd::Gone,
        Error::Protocol(_) => ReadEnd::Close(Close::Protocol),
        _ => ReadEnd::Gone,
    }
}
