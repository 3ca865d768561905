//! The reader thread of a connection: frames → client messages → events.
//!
//! It blocks in reads without a timeout (the hub keeps the clocks) and never writes: replies, pongs
//! and Close frames are the hub's.

mod intake;
mod rate;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use log::info;
use time::OffsetDateTime;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket, error::ProtocolError};

use crate::auth::Identity;
use crate::auth::{Authorizer, Verdict};
use crate::config::RateLimit;
use crate::hub::socket::{Socket, TcpSocket};
use crate::hub::{Broadcast, ConnectionKey, Event, HubGone, HubHandle};
use crate::protocol::close::Close;
use crate::protocol::{Action, ClientMessage, ErrorCode, MessageId, broadcast_frame};
use crate::runtime::clock::Moment;
use intake::Intake;
use rate::{Rate, RateDecision};

/// tungstenite's read buffer, in bytes. What is free of it is zeroed before each read, so that a larger one
/// makes every small message dearer. A message over half of it grows it to about twice the message, and a
/// connection keeps it until it ends.
const READ_BUFFER_BYTES: usize = 1024;

/// What a reader needs to do its work.
pub struct Reader {
    /// Place in the hub.
    pub key: ConnectionKey,
    /// Number of the connection, for logs.
    pub number: u64,
    /// Id of the connection, the `from` of its broadcasts.
    pub id: String,
    /// Who it belongs to.
    pub identity: Arc<Identity>,
    /// The socket, shared with hub and writer.
    pub socket: Arc<TcpSocket>,
    /// Where events go.
    pub hub: HubHandle,
    /// Who may join what.
    pub authorizer: Arc<Authorizer>,
}

/// Limits of one client's messages.
#[derive(Debug, Clone, Copy)]
pub struct ReaderLimits {
    /// `MAX_MESSAGE_SIZE`.
    pub message_bytes: usize,
    /// `RATE_LIMIT`, `RATE_BURST`.
    pub rate: RateLimit,
}

/// Why reading stops.
enum ReadEnd {
    /// Nothing will come any more.
    Gone,
    /// The hub is to send this Close; what the peer still sends is drained.
    Close(Close),
}

impl From<HubGone> for ReadEnd {
    fn from(_: HubGone) -> Self {
        Self::Gone
    }
}

impl Reader {
    /// Reads until the stream ends, and tells the hub so. `early` is what came behind the request head.
    pub fn run(self, early: Vec<u8>, limits: ReaderLimits) {
        if let ReadEnd::Close(close) = self.read(early, limits)
            && self.hub.send(Event::Close(self.key, close)).is_ok()
        {
            self.drain();
        }
        // Without a hub no one waits for this.
        let _ = self.hub.send(Event::ReaderEnded(self.key));
    }

    fn read(&self, early: Vec<u8>, limits: ReaderLimits) -> ReadEnd {
        let intake = Intake::new(Arc::clone(&self.socket), &early);
        let mut websocket = websocket(intake, early, limits.message_bytes);
        let mut rate = Rate::new(limits.rate, Instant::now());
        loop {
            let handled = match websocket.read() {
                Ok(Message::Text(text)) => self.message(Some(text.as_str()), &mut rate),
                Ok(Message::Binary(_)) => self.message(None, &mut rate),
                Ok(Message::Ping(payload)) => {
                    // The payload is a slice of the read buffer, which it would keep alive.
                    let payload = bytes::Bytes::copy_from_slice(&payload);
                    self.hub.send(Event::Ping(self.key, payload)).map_err(ReadEnd::from)
                }
                Ok(Message::Pong(_) | Message::Frame(_)) => Ok(()),
                Ok(Message::Close(frame)) => Err(echo_of(frame.as_ref())),
                Err(error) => Err(stop_of(&error)),
            };
            if let Err(stop) = handled {
                return stop;
            }
        }
    }

    /// One data message; `None` is a binary one.
    fn message(&self, text: Option<&str>, rate: &mut Rate) -> Result<(), ReadEnd> {
        match rate.take(Instant::now()) {
            RateDecision::Pass => {}
            RateDecision::Tell => return self.refuse(ErrorCode::RateLimited, None),
            RateDecision::Drop => return Ok(()),
            RateDecision::Close => return Err(ReadEnd::Close(Close::RateLimited)),
        }
        let Some(text) = text else {
            return self.refuse(ErrorCode::InvalidJson, None);
        };
        match ClientMessage::parse(text) {
            Ok(message) => self.act(message),
            Err(bad) => self.refuse(bad.code, bad.id),
        }
    }

    fn act(&self, message: ClientMessage<'_>) -> Result<(), ReadEnd> {
        let permission = match message.action {
            Action::Leave => Verdict::Allowed,
            Action::Join => self.may_join(&message),
            Action::Broadcast => self.may_broadcast(&message)?,
        };
        let ClientMessage { action, room, body, id } = message;
        let event = match (action, permission) {
            (_, Verdict::Failed) => return self.refuse(ErrorCode::ServerError, id),
            (Action::Join, Verdict::Denied) => {
                info!(conn = self.number, user = self.identity.user_id, room:% = room; "room refused");
                return self.refuse(ErrorCode::NotAuthorized, id);
            }
            (Action::Join, Verdict::Allowed) => Event::Join(self.key, room, id),
            (Action::Leave, _) => Event::Leave(self.key, room, id),
            (Action::Broadcast, permission) => {
                let frame = broadcast_frame(&self.id, &room, OffsetDateTime::now_utc(), body);
                let permitted = permission == Verdict::Allowed;
                Event::Broadcast(self.key, Broadcast { room, frame, permitted, id })
            }
        };
        Ok(self.hub.send(event)?)
    }

    /// A member may broadcast without asking the backend again; the hub knows who is one.
    fn may_broadcast(&self, message: &ClientMessage<'_>) -> Result<Verdict, ReadEnd> {
        let is_member = !self.authorizer.is_local()
            && self.hub.ask(|reply| Event::IsMember(self.key, message.room.clone(), reply))?;
        Ok(if is_member { Verdict::Allowed } else { self.may_join(message) })
    }

    /// While the backend is asked nothing is read, so the heartbeat rests.
    fn may_join(&self, message: &ClientMessage<'_>) -> Verdict {
        if self.authorizer.is_local() {
            return self.authorizer.may_join(&self.identity, &message.room);
        }
        let last_byte = &self.socket.activity().last_byte;
        last_byte.set(Moment::NEVER);
        let verdict = self.authorizer.may_join(&self.identity, &message.room);
        last_byte.set(Moment::now());
        verdict
    }

    fn refuse(&self, code: ErrorCode, id: Option<MessageId>) -> Result<(), ReadEnd> {
        Ok(self.hub.send(Event::Refuse(self.key, code, id))?)
    }

    /// Reads on without looking until the peer, or the hub at its deadline, ends the stream: closing
    /// with unread input would reset it, and could destroy the Close frame on its way.
    fn drain(&self) {
        let mut scrap = [0; 1024];
        loop {
            match self.socket.stream().read(&mut scrap) {
                Ok(0) => return,
                Ok(_) => {}
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
    let stop = loop {
        match websocket.read() {
            Ok(Message::Text(text)) => on_message(Some(text.as_str())),
            Ok(Message::Binary(_)) => on_message(None),
            Ok(Message::Close(frame)) => break echo_of(frame.as_ref()),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Err(error) => break stop_of(&error),
        }
    };
    match stop {
        ReadEnd::Close(close) => Some(close),
        ReadEnd::Gone => None,
    }
}

fn echo_of(frame: Option<&CloseFrame>) -> ReadEnd {
    ReadEnd::Close(Close::Echo(frame.map_or(1000, |frame| frame.code.into())))
}

/// tungstenite sends no Close frame on errors: what the hub is to send.
fn stop_of(error: &Error) -> ReadEnd {
    match error {
        Error::Capacity(_) => ReadEnd::Close(Close::TooLarge),
        Error::Utf8(_) => ReadEnd::Close(Close::InvalidUtf8),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => ReadEnd::Gone,
        Error::Protocol(_) => ReadEnd::Close(Close::Protocol),
        _ => ReadEnd::Gone,
    }
}
