//! JSON in and out, room names, error codes (DESIGN section 3), and the frames that carry them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::config::MAX_ROOM_BYTES;

/// A room name that has the right format; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room(Arc<str>);

/// What the name of a room says about who may join it (DESIGN section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomKind<'a> {
    /// `order-{id}`.
    Order(&'a str),
    /// `seller-{id}`.
    Seller(&'a str),
    /// `client-{id}`.
    Client(&'a str),
    /// `user-{id}`.
    User(&'a str),
    /// `admins`.
    Admins,
    /// Any other name.
    Other,
}

impl Room {
    /// Checks the format: 1 to 128 of `A–Z a–z 0–9 _ - . :`, and an id behind the four prefixes.
    ///
    /// # Errors
    /// [`BadRoom`] when the name has another form.
    pub fn parse(name: &str) -> Result<Self, BadRoom> {
        let in_alphabet =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
        let whole = !matches!(name, "order-" | "seller-" | "client-" | "user-");
        if (1..=MAX_ROOM_BYTES).contains(&name.len()) && name.bytes().all(in_alphabet) && whole {
            Ok(Self(name.into()))
        } else {
            Err(BadRoom)
        }
    }

    /// The room that every admin is in.
    pub fn admins() -> Self {
        Self("admins".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the name says about who may join.
    pub fn kind(&self) -> RoomKind<'_> {
        let name = self.as_str();
        match name.split_once('-') {
            Some(("order", id)) => RoomKind::Order(id),
            Some(("seller", id)) => RoomKind::Seller(id),
            Some(("client", id)) => RoomKind::Client(id),
            Some(("user", id)) => RoomKind::User(id),
            _ if name == "admins" => RoomKind::Admins,
            _ => RoomKind::Other,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A room name of the wrong form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRoom;

/// The errors a client can be told, with the codes and texts of DESIGN section 3.
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
    /// Rules or backend say no.
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
            Self::NotAuthorized => "not authorized",
            Self::TooManyRooms => "too many rooms",
            Self::RateLimited => "rate limited",
            Self::ServerError => "server error",
        }
    }
}

/// What a client asks for.
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

/// One message of a client.
#[derive(Debug, Clone)]
pub struct ClientMessage<'a> {
    /// `type`.
    pub action: Action,
    /// `payload.room`.
    pub room: Room,
    /// `payload.body` as it came, `null` when missing; only a broadcast uses it.
    pub body: &'a str,
    /// `id`, where there is one.
    pub id: Option<MessageId>,
}

/// What is wrong with a client's message, and the id to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadMessage {
    /// What is wrong.
    pub code: ErrorCode,
    /// `id`, where there is a valid one.
    pub id: Option<MessageId>,
}

/// The members as raw JSON: each is judged on its own, so that every mistake gets its own answer.
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
struct Payload<'a> {
    #[serde(borrow, default)]
    room: Option<&'a RawValue>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
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
    /// The code of DESIGN section 3, with the message's id where it has one.
    pub fn parse(text: &'a str) -> Result<Self, BadMessage> {
        let bad = |code, id: &Option<MessageId>| BadMessage { code, id: id.clone() };
        let envelope: Envelope<'a> =
            parse_object(text).ok_or_else(|| bad(ErrorCode::InvalidJson, &None))?;
        let id = match envelope.id {
            None => None,
            Some(raw)
                if raw.get().starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) =>
            {
                Some(MessageId(raw.get().into()))
            }
            Some(_) => return Err(bad(ErrorCode::InvalidJson, &None)),
        };
        let kind = envelope.kind.and_then(string);
        let action = match kind.as_deref() {
            Some("join") => Action::Join,
            Some("leave") => Action::Leave,
            Some("broadcast") => Action::Broadcast,
            _ => return Err(bad(ErrorCode::UnsupportedType, &id)),
        };
        let payload: Option<Payload<'a>> = envelope.payload.and_then(|raw| parse_object(raw.get()));
        let name = payload
            .as_ref()
            .and_then(|payload| string(payload.room?))
            .filter(|name| !name.is_empty())
            .ok_or_else(|| bad(ErrorCode::InvalidRoom(action), &id))?;
        let room = Room::parse(&name).map_err(|BadRoom| bad(ErrorCode::InvalidRoomFormat, &id))?;
        let body = payload.and_then(|payload| payload.body).map_or("null", RawValue::get);
        Ok(Self { action, room, body, id })
    }
}

/// A struct also deserialises from an array; only an object is meant.
fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    let is_object = text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{');
    is_object.then(|| serde_json::from_str(text).ok()).flatten()
}

fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if quoted.contains('\\') {
        serde_json::from_str(raw.get()).ok().map(Cow::Owned)
    } else {
        // Without an escape the text is what stands between the quotes.
        Some(Cow::Borrowed(quoted))
    }
}

/// `type` of a reply to a message that carried an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Joined the room.
    Joined,
    /// Left the room, or was not in it.
    Left,
    /// The broadcast was accepted.
    Sent,
}

impl Reply {
    fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Sent => "sent",
        }
    }

    /// The frame that answers: JSON with an id, the plain text that old clients know without; a
    /// broadcast without an id is not answered.
    pub fn frame(self, room: &Room, id: Option<&MessageId>) -> Option<Bytes> {
        let kind = self.as_str();
        match (self, id) {
            (_, Some(id)) => Some(text_frame(&format!(
                r#"{{"type":"{kind}","id":{},"payload":{{"room":"{room}"}}}}"#,
                id.0
            ))),
            (Self::Sent, None) => None,
            (_, None) => Some(text_frame(&format!("{kind} {room}"))),
        }
    }
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

/// The frame of a client's broadcast; the body's bytes are passed on as they came.
pub fn broadcast_frame(from: &str, room: &Room, at: OffsetDateTime, body: &str) -> Bytes {
    let ts = timestamp(at);
    let parts = [
        br#"{"from":""#,
        from.as_bytes(),
        br#"","room":""#,
        room.as_str().as_bytes(),
        br#"","ts":""#,
        &ts,
        br#"","body":"#,
        body.as_bytes(),
        b"}",
    ];
    frame(OPCODE_TEXT, &parts)
}

/// `2026-01-02T03:04:05.678Z`: RFC 3339 in UTC, milliseconds, as JavaScript's `toISOString`.
fn timestamp(at: OffsetDateTime) -> [u8; 24] {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let mut text = *b"1970-01-01T00:00:00.000Z";
    // It has 24 bytes until the year 9999.
    let _ = at.format_into(&mut text.as_mut_slice(), &format);
    text
}

/// The frame of a notification; `data` is JSON and is passed on as it came.
pub fn notification_frame(event: &str, data: &str, to: &str) -> Bytes {
    let (event, to) = (json_string(event), json_string(to));
    let parts = [
        br#"{"event":"#,
        event.as_bytes(),
        br#","data":"#,
        data.as_bytes(),
        br#","to":"#,
        to.as_bytes(),
        b"}",
    ];
    frame(OPCODE_TEXT, &parts)
}

fn json_string(text: &str) -> String {
    // A &str always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

/// Opcode of a text frame (RFC 6455 section 5.2).
pub const OPCODE_TEXT: u8 = 0x1;
/// Opcode of a Close frame.
pub const OPCODE_CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const OPCODE_PING: u8 = 0x9;
/// Opcode of a pong.
pub const OPCODE_PONG: u8 = 0xa;

/// One unmasked, final text frame.
pub fn text_frame(text: &str) -> Bytes {
    frame(OPCODE_TEXT, &[text.as_bytes()])
}

/// One control frame; a payload past the 125 bytes that RFC 6455 section 5.5 allows is cut there.
pub fn control_frame(opcode: u8, payload: &[u8]) -> Bytes {
    frame(opcode, &[payload.get(..125).unwrap_or(payload)])
}

/// A frame whose payload is these parts end to end, written in one go.
fn frame(opcode: u8, parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(header_length(length) + length);
    out.put_u8(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.put_u8(short),
        (_, Ok(medium)) => {
            out.put_u8(126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

/// Length of an unmasked frame's header (RFC 6455 section 5.2).
fn header_length(payload: usize) -> usize {
    match payload {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// The payload inside a frame that this module made, without copying.
pub fn frame_payload(frame: &Bytes) -> Bytes {
    let header = match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    };
    frame.slice(header.min(frame.len())..)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code_of(text: &str) -> ErrorCode {
        ClientMessage::parse(text).unwrap_err().code
    }

    fn payload_of(frame: &Bytes) -> String {
        String::from_utf8(frame_payload(frame).to_vec()).unwrap()
    }

    #[test]
    fn messages_are_read() {
        let m = ClientMessage::parse(
            r#" {"payload":{"body":{"a" : 1.00},"room":"order-1"},"id":-7,"type":"broadcast","x":0} "#,
        )
        .unwrap();
        assert_eq!(
            (m.action, m.room.as_str(), m.body),
            (Action::Broadcast, "order-1", r#"{"a" : 1.00}"#)
        );
        assert_eq!(m.id, Some(MessageId("-7".into())));
        let m = ClientMessage::parse(r#"{"type":"jo\u0069n","payload":{"room":"a"}}"#).unwrap();
        assert_eq!((m.action, m.body, m.id), (Action::Join, "null", None));
    }

    #[test]
    fn each_mistake_has_its_code() {
        use ErrorCode::*;
        for text in [
            "",
            "x",
            "[]",
            "null",
            "1",
            r#""a""#,
            r#"{"type":"join""#,
            r#"["join",1,{}]"#,
            r#"{"type":"join","payload":{"room":"a"}} x"#,
            r#"{"type":"join","type":"join"}"#,
            r#"{"type":"join","id":null,"payload":{"room":"a"}}"#,
            r#"{"type":"join","id":{},"payload":{"room":"a"}}"#,
            r#"{"type":"join","id":true,"payload":{"room":"a"}}"#,
        ] {
            assert_eq!(code_of(text), InvalidJson, "{text}");
        }
        for text in
            ["{}", r#"{"type":"fly"}"#, r#"{"type":5}"#, r#"{"type":null}"#, r#"{"type":"Join"}"#]
        {
            assert_eq!(code_of(text), UnsupportedType, "{text}");
        }
        for payload in
            ["{}", "null", "[]", "5", r#"{"room":5}"#, r#"{"room":null}"#, r#"{"room":""}"#]
        {
            let text = format!(r#"{{"type":"leave","payload":{payload}}}"#);
            assert_eq!(code_of(&text), InvalidRoom(Action::Leave), "{text}");
        }
        for room in
            ["order-", "seller-", "client-", "user-", "a b", "ä", "a/b", "a\\n", &"x".repeat(129)]
        {
            let text = format!(r#"{{"type":"join","payload":{{"room":"{room}"}}}}"#);
            assert_eq!(code_of(&text), InvalidRoomFormat, "{text}");
        }
    }

    #[test]
    fn errors_and_replies_repeat_the_id_as_it_came() {
        let bad = ClientMessage::parse(r#"{"type":"join","id":"r\u0031"}"#).unwrap_err();
        assert_eq!(
            payload_of(&error_frame(bad.code, bad.id.as_ref())),
            r#"{"type":"error","id":"r\u0031","payload":{"code":"invalid_room","error":"missing or invalid room for join"}}"#
        );
        let room = Room::parse("order-123").unwrap();
        let id = MessageId("\"r1\"".into());
        assert_eq!(
            payload_of(&Reply::Joined.frame(&room, Some(&id)).unwrap()),
            r#"{"type":"joined","id":"r1","payload":{"room":"order-123"}}"#
        );
        assert_eq!(payload_of(&Reply::Left.frame(&room, None).unwrap()), "left order-123");
        assert_eq!(Reply::Sent.frame(&room, None), None);
        assert_eq!(
            payload_of(&error_frame(ErrorCode::NotAuthorized, None)),
            r#"{"type":"error","payload":{"code":"not_authorized","error":"not authorized"}}"#
        );
    }

    #[test]
    fn broadcasts_and_notifications_pass_the_bytes_on() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_767_323_045_678_900_000).unwrap();
        let room = Room::parse("order-123").unwrap();
        assert_eq!(
            payload_of(&broadcast_frame("c-1", &room, at, "[1.0, 2]")),
            r#"{"from":"c-1","room":"order-123","ts":"2026-01-02T03:04:05.678Z","body":[1.0, 2]}"#
        );
        assert_eq!(
            payload_of(&notification_frame("a\"b", "{ }", "order-123")),
            r#"{"event":"a\"b","data":{ },"to":"order-123"}"#
        );
    }

    #[test]
    fn rooms_tell_their_kind() {
        let kind = |name: &str| format!("{:?}", Room::parse(name).unwrap().kind());
        assert_eq!(kind("order-1-2"), "Order(\"1-2\")");
        assert_eq!(kind("user-a:b"), "User(\"a:b\")");
        assert_eq!(kind("admins"), "Admins");
        assert_eq!(kind("admins-1"), "Other");
        assert_eq!(kind("orders"), "Other");
    }

    #[test]
    fn frame_lengths_follow_the_rfc() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let frame = text_frame(&"x".repeat(length));
            assert_eq!(frame_payload(&frame).len(), length);
        }
        assert_eq!(control_frame(OPCODE_PONG, &[0; 200]).len(), 127);
    }

    proptest! {
        #[test]
        fn any_text_is_a_message_or_a_code(text in "\\PC{0,200}") {
            let _ = ClientMessage::parse(&text);
        }

        #[test]
        fn a_body_comes_back_byte_for_byte(body in "(\\[( ?-?[1-9][0-9]{0,20},)*0\\]|\"[a-z ]*\"|\\{\"k\" : 1e5\\})") {
            let text = format!(r#"{{"type":"broadcast","payload":{{"room":"a","body":{body}}}}}"#);
            prop_assert_eq!(ClientMessage::parse(&text).unwrap().body, body);
        }
    }
}
