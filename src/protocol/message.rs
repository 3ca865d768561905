//! Messages of clients, as JSON, and the frames that answer and carry them.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::draft::Draft;
use super::frame::text_frame;
use super::json::{parse_object, quoted, string};
use super::position::{BadPosition, Position};
use super::room::{BadRoom, Room};
use crate::runtime::clock::Timestamp;

/// The errors a client can be told, with the codes and texts of `docs/PROTOCOL.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not a JSON object, or a binary message, or an `id` that is neither string nor number.
    InvalidJson,
    /// An unknown `type`.
    UnsupportedType,
    /// No `room`, not a string, or empty.
    InvalidRoom(Action),
    /// A room name of the wrong form.
    InvalidRoomFormat,
    /// A `since` that is no position.
    InvalidSince,
    /// The rules or the backend do not allow it.
    NotAuthorized,
    /// Over `MAX_ROOMS_PER_CLIENT`.
    TooManyRooms,
    /// Over the rate.
    RateLimited,
    /// The backend failed or did not answer in time.
    ServerError,
}

impl ErrorCode {
    /// The `code` of the error message.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::UnsupportedType => "unsupported_type",
            Self::InvalidRoom(_) => "invalid_room",
            Self::InvalidRoomFormat => "invalid_room_format",
            Self::InvalidSince => "invalid_since",
            Self::NotAuthorized => "not_authorized",
            Self::TooManyRooms => "too_many_rooms",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
        }
    }

    /// The `error` text of the error message.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid json",
            Self::UnsupportedType => "unsupported message type",
            Self::InvalidRoom(Action::Join) => "missing or invalid room for join",
            Self::InvalidRoom(Action::Leave) => "missing or invalid room for leave",
            Self::InvalidRoom(Action::Broadcast) => "missing or invalid room for broadcast",
            Self::InvalidRoomFormat => "invalid room format",
            Self::InvalidSince => "since is not a position with epoch and seq",
            Self::NotAuthorized => "not authorized",
            Self::TooManyRooms => "too many rooms",
            Self::RateLimited => "rate limited",
            Self::ServerError => "server error",
        }
    }
}

/// What a client asks for that names a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Enter a room.
    Join,
    /// Leave a room.
    Leave,
    /// Send to a room.
    Broadcast,
}

/// The `id` of a client's message, as JSON text, to be repeated in the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageId(Box<str>);

impl MessageId {
    /// The id of a message that is not acted upon, if it has a valid one. Takes one pass over the text and
    /// judges nothing else of it.
    pub fn of(text: &str) -> Option<Self> {
        Self::from_raw(parse_object::<IdOnly<'_>>(text).ok()?.id?)
    }

    /// A string or a number.
    fn from_raw(raw: &RawValue) -> Option<Self> {
        let is_valid = |c: char| c == '"' || c == '-' || c.is_ascii_digit();
        raw.get().starts_with(is_valid).then(|| Self(raw.get().into()))
    }
}

/// One message of a client.
#[derive(Debug, Clone)]
pub struct ClientMessage<'a> {
    /// `type` and `payload`.
    pub request: Request<'a>,
    /// `id`, where there is one.
    pub id: Option<MessageId>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Enter a room, and get what was said there since.
    Join {
        /// `payload.room`.
        room: Room,
        /// `payload.since`; ignored in a message without an `id`, whose answer has no place for it.
        since: Option<Position>,
    },
    /// Leave a room.
    Leave(Room),
    /// Send to a room.
    Broadcast {
        /// `payload.room`.
        room: Room,
        /// `payload.body` as it came, `null` when missing.
        body: &'a str,
    },
    /// Get the user's own notifications since.
    Resume {
        /// `payload.since`.
        since: Option<Position>,
    },
}

/// What is wrong with a client's message, and the id to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadMessage {
    /// What is wrong.
    pub code: ErrorCode,
    /// `id`, where there is a valid one.
    pub id: Option<MessageId>,
}

/// The members as raw JSON. Each is checked on its own, so that every mistake gets its own answer.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct IdOnly<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default)]
    room: Option<&'a RawValue>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(borrow, default)]
    since: Option<&'a RawValue>,
}

/// Unlike `Option`'s own rule, an explicit `null` counts as present.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> ClientMessage<'a> {
    /// Parses one text message.
    ///
    /// # Errors
    /// What is wrong, with the message's id where it has one.
    pub fn parse(text: &'a str) -> Result<Self, BadMessage> {
        let bad = |code, id: &Option<MessageId>| BadMessage { code, id: id.clone() };
        let envelope: Envelope<'a> =
            parse_object(text).map_err(|_| bad(ErrorCode::InvalidJson, &None))?;
        let id = match envelope.id {
            None => None,
            Some(raw) => {
                let id = MessageId::from_raw(raw);
                Some(id.ok_or_else(|| bad(ErrorCode::InvalidJson, &None))?)
            }
        };
        let kind = envelope.kind.and_then(string);
        let action = match kind.as_deref() {
            Some("join") => Action::Join,
            Some("leave") => Action::Leave,
            Some("broadcast") => Action::Broadcast,
            Some("resume") => {
                let since = resumes_since(envelope.payload);
                let since = since.map_err(|BadPosition| bad(ErrorCode::InvalidSince, &id))?;
                return Ok(Self { request: Request::Resume { since }, id });
            }
            _ => return Err(bad(ErrorCode::UnsupportedType, &id)),
        };
        let payload: Option<Payload<'a>> =
            envelope.payload.and_then(|raw| parse_object(raw.get()).ok());
        let name = payload
            .as_ref()
            .and_then(|payload| string(payload.room?))
            .filter(|name| !name.is_empty())
            .ok_or_else(|| bad(ErrorCode::InvalidRoom(action), &id))?;
        let room = Room::parse(&name).map_err(|BadRoom| bad(ErrorCode::InvalidRoomFormat, &id))?;
        let request = match action {
            Action::Join => {
                let since = payload.and_then(|payload| payload.since).filter(|_| id.is_some());
                let since = since.map(Position::from_json).transpose();
                let since = since.map_err(|BadPosition| bad(ErrorCode::InvalidSince, &id))?;
                Request::Join { room, since }
            }
            Action::Leave => Request::Leave(room),
            Action::Broadcast => {
                let body = payload.and_then(|payload| payload.body).map_or("null", RawValue::get);
                Request::Broadcast { room, body }
            }
        };
        Ok(Self { request, id })
    }
}

/// `payload.since` of a resume; `None` when there is no payload or no `since` in it.
fn resumes_since(payload: Option<&RawValue>) -> Result<Option<Position>, BadPosition> {
    let Some(payload) = payload else { return Ok(None) };
    let payload: Payload<'_> = parse_object(payload.get()).map_err(|_| BadPosition)?;
    payload.since.map(Position::from_json).transpose()
}

/// What the answer to a join or a resume says of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Where the client is from now on; `None` where nothing is numbered.
    pub position: Option<Position>,
    /// Whether all that was missed follows; `None` when it was not asked for.
    pub recovered: Option<bool>,
}

impl Standing {
    /// The members of the answer's payload.
    fn payload(&self, room: Option<&Room>) -> String {
        let room = room.map(|room| format!(r#""room":"{room}""#));
        let position = self.position.as_ref().map(|Position { epoch, seq }| {
            let epoch = quoted(epoch);
            format!(r#""epoch":{epoch},"seq":{seq}"#)
        });
        let recovered = self.recovered.map(|recovered| format!(r#""recovered":{recovered}"#));
        room.into_iter().chain(position).chain(recovered).collect::<Vec<_>>().join(",")
    }
}

/// The answer to a message that names a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Joined the room.
    Joined(Standing),
    /// Left the room, or was not in it.
    Left,
    /// The broadcast was accepted.
    Sent,
}

impl Reply {
    /// The frame that answers a message: JSON where the message had an id, else the plain text that old
    /// clients know. A broadcast without an id is not answered.
    pub fn frame(&self, room: &Room, id: Option<&MessageId>) -> Option<Bytes> {
        let none = Standing::default();
        let (kind, standing) = match self {
            Self::Joined(standing) => ("joined", standing),
            Self::Left => ("left", &none),
            Self::Sent => ("sent", &none),
        };
        match (self, id) {
            (_, Some(MessageId(id))) => {
                let payload = standing.payload(Some(room));
                Some(text_frame(&format!(
                    r#"{{"type":"{kind}","id":{id},"payload":{{{payload}}}}}"#
                )))
            }
            (Self::Sent, None) => None,
            (_, None) => Some(text_frame(&format!("{kind} {room}"))),
        }
    }
}

/// The frame that answers a resume.
pub fn resumed_frame(id: Option<&MessageId>, standing: &Standing) -> Bytes {
    let id = id.map(|MessageId(id)| format!(r#""id":{id},"#)).unwrap_or_default();
    let payload = standing.payload(None);
    text_frame(&format!(r#"{{"type":"resumed",{id}"payload":{{{payload}}}}}"#))
}

/// The frame that says that something of a room may be missing, or without one of the user's own
/// notifications, and where the client is now.
pub fn reset_frame(room: Option<&Room>, position: Position) -> Bytes {
    let payload = Standing { position: Some(position), recovered: None }.payload(room);
    text_frame(&format!(r#"{{"type":"reset","payload":{{{payload}}}}}"#))
}

/// The frame of an error message.
pub fn error_frame(code: ErrorCode, id: Option<&MessageId>) -> Bytes {
    let (code, text) = (code.code(), code.text());
    text_frame(&match id {
        Some(id) => format!(
            r#"{{"type":"error","id":{},"payload":{{"code":"{code}","error":"{text}"}}}}"#,
            id.0
        ),
        None => format!(r#"{{"type":"error","payload":{{"code":"{code}","error":"{text}"}}}}"#),
    })
}

/// A client's broadcast; the body's bytes are passed on as they came.
pub fn broadcast(from: &str, room: &Room, at: OffsetDateTime, body: &str) -> Draft {
    let ts = Timestamp::new(at);
    Draft::object(&[
        br#""from":""#,
        from.as_bytes(),
        br#"","room":""#,
        room.as_str().as_bytes(),
        br#"","ts":""#,
        ts.as_bytes(),
        br#"","body":"#,
        body.as_bytes(),
        b"}",
    ])
}

/// A notification; `data` is JSON and is passed on as it came.
pub fn notification(event: &str, data: &str, to: &str) -> Draft {
    let (event, to) = (quoted(event), quoted(to));
    Draft::object(&[
        br#""event":"#,
        event.as_bytes(),
        br#","data":"#,
        data.as_bytes(),
        br#","to":"#,
        to.as_bytes(),
        b"}",
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
