//! Verifies how messages of clients are read and answered.

use super::*;
use crate::protocol::frame_payload;
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
    for payload in ["{}", "null", "[]", "5", r#"{"room":5}"#, r#"{"room":null}"#, r#"{"room":""}"#]
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
