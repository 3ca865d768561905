//! The types of models and messages as TypeScript, and the test that docs/types.ts is made of them.
//!
//! The service writes its messages byte by byte (see [`crate::protocol`]); the types here say what comes
//! out, and their tests hold them against what does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "some of the types exist only for their TypeScript")]

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use ts_rs::TS;

use crate::protocol::models::{
    Admin, Cart, Category, Client, Delivery, Inventory, Message, Notification, Order,
    PaymentMethod, Product, Seller, SubCategory,
};
use crate::protocol::{
    self, Action, ErrorCode as Code, Number, Position, Reply, Request, Room, Standing, broadcast,
    error_frame, frame_payload, notification, reset_frame, resumed_frame,
};

/// Repeated in the reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, TS)]
#[serde(untagged)]
enum MessageId {
    Text(String),
    Number(f64),
}

/// What a client sends.
#[derive(Debug, Serialize, TS)]
#[serde(tag = "type", rename_all = "lowercase")]
#[ts(optional_fields)]
enum ClientMessage {
    Join { id: Option<MessageId>, payload: JoinPayload },
    Leave { id: Option<MessageId>, payload: RoomPayload },
    Broadcast { id: Option<MessageId>, payload: BroadcastPayload },
    Resume { id: Option<MessageId>, payload: ResumePayload },
}

/// Where a client is in the past of a room, or of its own notifications.
#[derive(Debug, Clone, PartialEq, Serialize, TS)]
struct LogPosition {
    /// Another one than before: messages between may be missing.
    epoch: String,
    /// Number of the last message that the client has.
    seq: u64,
}

/// Names a room, and what the client has of it.
#[derive(Debug, Clone, PartialEq, Serialize, TS)]
struct JoinPayload {
    /// 1 to 128 of `A–Z a–z 0–9 _ - . :`
    room: String,
    /// Asks for all that came since; only in a message with an `id`.
    #[ts(optional)]
    since: Option<LogPosition>,
}

/// What the client has of its own notifications.
#[derive(Debug, Clone, PartialEq, Serialize, TS)]
struct ResumePayload {
    /// Asks for all that came since.
    #[ts(optional)]
    since: Option<LogPosition>,
}

/// Names a room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct RoomPayload {
    /// 1 to 128 of `A–Z a–z 0–9 _ - . :`
    room: String,
}

/// What a client sends to a room.
#[derive(Debug, Serialize, TS)]
struct BroadcastPayload {
    /// One that the client is in, or may join.
    room: String,
    /// Any JSON, passed on byte for byte; `null` when absent.
    #[ts(type = "unknown", optional)]
    body: Option<Value>,
}

/// The answer to a message that had an `id`; errors also come without one.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum ReplyMessage {
    Joined {
        id: MessageId,
        payload: JoinedPayload,
    },
    Left {
        id: MessageId,
        payload: RoomPayload,
    },
    Sent {
        id: MessageId,
        payload: RoomPayload,
    },
    Error {
        #[ts(optional)]
        id: Option<MessageId>,
        payload: ErrorPayload,
    },
    Resumed {
        #[ts(optional)]
        id: Option<MessageId>,
        payload: ResumedPayload,
    },
}

/// Where the client is in a room.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct JoinedPayload {
    /// As it was asked for.
    room: String,
    /// Absent, as `seq`, where `HISTORY_MESSAGES` is 0, or Redis has not told it yet; a `reset` then does.
    #[ts(optional)]
    epoch: Option<String>,
    /// Number of the last message before the ones that come now.
    #[ts(optional)]
    seq: Option<u64>,
    /// Only with `since`: whether all messages since come now; if not, none of them does.
    #[ts(optional)]
    recovered: Option<bool>,
}

/// Where the client is in its own notifications.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct ResumedPayload {
    /// Absent, as `seq`, where `HISTORY_MESSAGES` is 0, or Redis has not told it yet; a `reset` then does.
    #[ts(optional)]
    epoch: Option<String>,
    /// Number of the last message before the ones that come now.
    #[ts(optional)]
    seq: Option<u64>,
    /// With `since`: whether all notifications since come now; `false` also where nothing is kept.
    #[ts(optional)]
    recovered: Option<bool>,
}

/// Something may be missing: load anew what the messages are about.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum ResetMessage {
    Reset { payload: ResetPayload },
}

/// Of which room, and where the client is now.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct ResetPayload {
    /// Absent: the user's own notifications.
    #[ts(optional)]
    room: Option<String>,
    /// Another one than before, unless the client only was too slow for what it missed.
    epoch: String,
    /// Number of the last message before the ones that come now.
    seq: u64,
}

/// What went wrong; the connection stays open.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct ErrorPayload {
    /// For programs.
    code: ErrorCode,
    /// For people.
    error: String,
}

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
enum ErrorCode {
    InvalidJson,
    UnsupportedType,
    InvalidRoom,
    InvalidRoomFormat,
    InvalidSince,
    NotAuthorized,
    TooManyRooms,
    RateLimited,
    ServerError,
}

/// What members of a room get when a client broadcasts.
#[derive(Debug, PartialEq, Deserialize, TS)]
#[serde(deny_unknown_fields)]
struct RoomMessage {
    /// Number of the message in the room; absent where `HISTORY_MESSAGES` is 0, or Redis was away.
    #[ts(optional)]
    seq: Option<u64>,
    /// Id of the sender's connection.
    from: String,
    /// The room that it was sent to.
    room: String,
    /// RFC 3339 in UTC, milliseconds.
    ts: String,
    /// As the sender gave it.
    #[ts(type = "unknown")]
    body: Value,
}

/// All JSON that the service sends to a client. Joins and leaves without an `id` are answered with the
/// plain texts `joined <room>` and `left <room>`.
#[derive(Debug, TS)]
#[ts(untagged)]
enum ServerMessage {
    Reply(ReplyMessage),
    Reset(ResetMessage),
    Room(RoomMessage),
    Notification(Notification),
}

/// Whom a notification is for: exactly one of three.
#[derive(Debug, Serialize, TS)]
#[serde(untagged)]
enum NotificationTarget {
    User {
        user_id: MessageId,
    },
    Room {
        room: String,
    },
    Everyone {
        #[ts(type = "true")]
        broadcast: bool,
    },
}

/// The body of `POST /api/notify`, or an element of it where it is an array.
#[derive(Debug, Serialize, TS)]
struct NotificationRequest {
    /// 1 to 128 bytes.
    event: String,
    /// Any JSON, passed on byte for byte; `null` when absent.
    #[ts(type = "unknown", optional)]
    data: Option<Value>,
    #[serde(flatten)]
    target: NotificationTarget,
}

/// The answer to a good `POST /api/notify`.
#[derive(Debug, TS)]
struct NotifyAnswer {
    /// Errors have another body: `ErrorAnswer`.
    #[ts(type = "\"success\"")]
    status: String,
    /// For people.
    message: String,
    /// Connections on this instance that took it; for a batch one number each.
    #[ts(type = "number | Array<number>")]
    delivered: Value,
}

/// The body of every HTTP error.
#[derive(Debug, TS)]
struct ErrorAnswer {
    /// Good answers have other values.
    #[ts(type = "\"error\"")]
    status: String,
    /// For programs.
    error: String,
    /// What and where, for people.
    message: String,
}

const HEADER: &str = "\
// Models and messages of realtime_service, made from its Rust types: do not edit.
// UPDATE_TYPES=1 cargo test --lib typescript
";

/// The whole of docs/types.ts.
fn types() -> String {
    // JSON numbers are what JavaScript reads; ids and phone numbers stay below 2^53.
    let config = ts_rs::Config::new().with_large_int("number");
    let mut text = HEADER.to_owned();
    macro_rules! add {
        ($($type:ty),* $(,)?) => {
            $(
                let docs = <$type>::docs().unwrap_or_default();
                text += &laid_out(&format!("\n{docs}export {}", <$type>::decl(&config)));
            )*
        };
    }
    add!(
        Order,
        Product,
        Client,
        Seller,
        Cart,
        Category,
        SubCategory,
        Inventory,
        Delivery,
        PaymentMethod,
        Admin,
        Notification,
        Message,
    );
    add!(
        MessageId,
        LogPosition,
        RoomPayload,
        JoinPayload,
        BroadcastPayload,
        ResumePayload,
        ClientMessage,
        ErrorCode,
        ErrorPayload,
        JoinedPayload,
        ResumedPayload,
        ReplyMessage,
        ResetPayload,
        ResetMessage,
        RoomMessage,
        ServerMessage,
    );
    add!(NotificationTarget, NotificationRequest, NotifyAnswer, ErrorAnswer);
    text
}

/// ts-rs leaves layout to formatters; this knows just what it writes here: structs whose members all
/// have docs, unions, and a struct that is part of an intersection.
fn laid_out(declaration: &str) -> String {
    let short_docs = declaration.replace("/**\n * ", "/** ").replace("\n */", " */");
    let mut inside = false;
    let mut text = String::new();
    for line in short_docs.lines() {
        let line = if inside {
            format!("  {line}").replacen(", }", ",\n}", 1).replace(", }", " }")
        } else {
            line.replace(" | { ", "\n  | { ").replace(", }", " }")
        };
        text += line.trim_end();
        text.push('\n');
        inside |= line.ends_with("{ ");
    }
    text
}

#[test]
fn docs_types_ts_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/types.ts");
    if std::env::var_os("UPDATE_TYPES").is_some() {
        std::fs::write(path, types()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == types(),
        "docs/types.ts is stale: UPDATE_TYPES=1 cargo test --lib typescript"
    );
}

fn room() -> RoomPayload {
    RoomPayload { room: "order-123".into() }
}

#[test]
fn what_a_client_may_send_is_understood() {
    let order = Room::parse("order-123").unwrap();
    let position = Position { epoch: "e-1".into(), seq: 41 };
    let since = || Some(LogPosition { epoch: "e-1".into(), seq: 41 });
    for id in [None, Some(MessageId::Text("r1".into())), Some(MessageId::Number(1.0))] {
        let join = |since| JoinPayload { room: "order-123".into(), since };
        let broadcast = BroadcastPayload { room: "order-123".into(), body: Some(json!([1])) };
        let messages = [
            (
                ClientMessage::Join { id: id.clone(), payload: join(None) },
                Request::Join { room: order.clone(), since: None },
            ),
            (
                ClientMessage::Join { id: id.clone(), payload: join(since()) },
                Request::Join {
                    room: order.clone(),
                    since: id.is_some().then(|| position.clone()),
                },
            ),
            (
                ClientMessage::Leave { id: id.clone(), payload: room() },
                Request::Leave(order.clone()),
            ),
            (
                ClientMessage::Broadcast { id: id.clone(), payload: broadcast },
                Request::Broadcast { room: order.clone(), body: "[1]" },
            ),
            (
                ClientMessage::Resume { id: id.clone(), payload: ResumePayload { since: since() } },
                Request::Resume { since: Some(position.clone()) },
            ),
            (
                ClientMessage::Resume { id: id.clone(), payload: ResumePayload { since: None } },
                Request::Resume { since: None },
            ),
        ];
        for (message, request) in messages {
            // An absent member, not null: so it is in TypeScript.
            let mut message = serde_json::to_value(message).unwrap();
            message.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            let text = message.to_string();
            let parsed = protocol::ClientMessage::parse(&text).unwrap();
            assert_eq!((parsed.request, parsed.id.is_some()), (request, id.is_some()), "{text}");
        }
    }
}

#[test]
fn what_a_client_gets_has_these_types() {
    let parse = |frame| frame_payload(&frame);
    let message = r#"{"type":"join","id":"r1","payload":{"room":"order-123"}}"#;
    let id = protocol::ClientMessage::parse(message).unwrap().id.unwrap();
    let order = Room::parse("order-123").unwrap();
    let repeated = || MessageId::Text("r1".into());
    let position = Position { epoch: "e-1".into(), seq: 41 };
    let standing = Standing { position: Some(position.clone()), recovered: Some(true) };
    let (epoch, seq, recovered) = (Some("e-1".to_owned()), Some(41), Some(true));
    let payload = JoinedPayload { room: "order-123".into(), epoch: epoch.clone(), seq, recovered };
    for (reply, expected) in [
        (Reply::Joined(standing.clone()), ReplyMessage::Joined { id: repeated(), payload }),
        (Reply::Left, ReplyMessage::Left { id: repeated(), payload: room() }),
        (Reply::Sent, ReplyMessage::Sent { id: repeated(), payload: room() }),
    ] {
        let frame = parse(reply.frame(&order, Some(&id)).unwrap());
        assert_eq!(serde_json::from_slice::<ReplyMessage>(&frame).unwrap(), expected);
    }
    let payload = ResumedPayload { epoch, seq, recovered };
    let frame = parse(resumed_frame(Some(&id), &standing));
    assert_eq!(
        serde_json::from_slice::<ReplyMessage>(&frame).unwrap(),
        ReplyMessage::Resumed { id: Some(repeated()), payload }
    );
    for (room, name) in [(Some(&order), Some("order-123".to_owned())), (None, None)] {
        let payload = ResetPayload { room: name, epoch: "e-1".into(), seq: 41 };
        let frame = parse(reset_frame(room, position.clone()));
        let expected = ResetMessage::Reset { payload };
        assert_eq!(serde_json::from_slice::<ResetMessage>(&frame).unwrap(), expected);
    }

    let at = OffsetDateTime::UNIX_EPOCH;
    let draft = broadcast("c-1", &order, at, r#"{"a":1}"#);
    let frame = parse(draft.complete(Some(Number::Room(7))).frame);
    let message: RoomMessage = serde_json::from_slice(&frame).unwrap();
    assert_eq!((message.seq, message.from.as_str()), (Some(7), "c-1"));
    assert_eq!(message.body, json!({"a": 1}));

    let draft = notification("order_created", "[1]", "order-123");
    for (number, seq, user_seq) in
        [(Number::Room(7), Some(7), None), (Number::User(8), None, Some(8))]
    {
        let frame = parse(draft.clone().complete(Some(number)).frame);
        let notification: Notification = serde_json::from_slice(&frame).unwrap();
        assert_eq!((notification.seq, notification.user_seq), (seq, user_seq));
        assert_eq!(notification.data.get(), "[1]");
    }
}

/// Exhaustive, so that a new code is missed here.
fn named(code: Code) -> ErrorCode {
    match code {
        Code::InvalidJson => ErrorCode::InvalidJson,
        Code::UnsupportedType => ErrorCode::UnsupportedType,
        Code::InvalidRoom(_) => ErrorCode::InvalidRoom,
        Code::InvalidRoomFormat => ErrorCode::InvalidRoomFormat,
        Code::InvalidSince => ErrorCode::InvalidSince,
        Code::NotAuthorized => ErrorCode::NotAuthorized,
        Code::TooManyRooms => ErrorCode::TooManyRooms,
        Code::RateLimited => ErrorCode::RateLimited,
        Code::ServerError => ErrorCode::ServerError,
    }
}

#[test]
fn every_error_has_its_code() {
    for code in [
        Code::InvalidJson,
        Code::UnsupportedType,
        Code::InvalidRoom(Action::Join),
        Code::InvalidRoomFormat,
        Code::InvalidSince,
        Code::NotAuthorized,
        Code::TooManyRooms,
        Code::RateLimited,
        Code::ServerError,
    ] {
        let frame = frame_payload(&error_frame(code, None));
        let payload = ErrorPayload { code: named(code), error: code.text().into() };
        let expected = ReplyMessage::Error { id: None, payload };
        assert_eq!(serde_json::from_slice::<ReplyMessage>(&frame).unwrap(), expected);
    }
}

#[test]
fn what_a_backend_may_send_is_understood() {
    let user_ids = [MessageId::Text("7".into()), MessageId::Number(7.0)];
    let users = user_ids.map(|user_id| NotificationTarget::User { user_id });
    let others = [
        NotificationTarget::Room { room: "order-123".into() },
        NotificationTarget::Everyone { broadcast: true },
    ];
    for target in users.into_iter().chain(others) {
        let request =
            NotificationRequest { event: "order_created".into(), data: Some(json!(1)), target };
        // JavaScript writes a whole number without a fraction.
        let body = serde_json::to_string(&request).unwrap().replace("7.0", "7");
        crate::rest::notify::parse(body.as_bytes()).unwrap();
    }
}
