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

fn draft_text(draft: Draft) -> String {
    payload_of(&draft.complete(None).frame)
}

#[test]
fn messages_are_read() {
    let m = ClientMessage::parse(
        r#" {"payload":{"body":{"a" : 1.00},"room":"order-1"},"id":-7,"type":"broadcast","x":0} "#,
    )
    .unwrap();
    let room = |name: &str| Room::parse(name).unwrap();
    assert_eq!(m.request, Request::Broadcast { room: room("order-1"), body: r#"{"a" : 1.00}"# });
    assert_eq!(m.id, Some(MessageId("-7".into())));
    let m = ClientMessage::parse(r#"{"type":"jo\u0069n","payload":{"room":"a"}}"#).unwrap();
    assert_eq!((m.request, m.id), (Request::Join { room: room("a"), since: None }, None));
    let m = ClientMessage::parse(r#"{"type":"broadcast","payload":{"room":"a"}}"#).unwrap();
    assert_eq!(m.request, Request::Broadcast { room: room("a"), body: "null" });
}

#[test]
fn a_position_comes_with_a_join_that_has_an_id_and_with_any_resume() {
    fn parse(text: &str) -> Result<Request<'_>, BadMessage> {
        ClientMessage::parse(text).map(|message| message.request)
    }
    let room = Room::parse("a").unwrap();
    let since = Some(Position { epoch: "e".into(), seq: 41 });
    let join = |since| Ok(Request::Join { room: room.clone(), since });
    let position = r#""since":{"epoch":"e","seq":41}"#;
    for (members, expected) in [
        (r#""id":1,"payload":{"room":"a"}"#.to_owned(), join(None)),
        (r#""id":1,"payload":{"room":"a","since":null}"#.to_owned(), join(None)),
        (format!(r#""id":1,"payload":{{"room":"a",{position}}}"#), join(since.clone())),
        (format!(r#""payload":{{"room":"a",{position}}}"#), join(None)),
        (r#""payload":{"room":"a","since":5}"#.to_owned(), join(None)),
    ] {
        assert_eq!(parse(&format!(r#"{{"type":"join",{members}}}"#)), expected, "{members}");
    }
    for (members, since) in [
        (String::new(), None),
        (r#","id":1"#.to_owned(), None),
        (r#","payload":null"#.to_owned(), None),
        (r#","payload":{}"#.to_owned(), None),
        (format!(r#","payload":{{{position}}}"#), since.clone()),
        (format!(r#","id":"x","payload":{{{position},"room":7}}"#), since),
    ] {
        let expected = Ok(Request::Resume { since });
        assert_eq!(parse(&format!(r#"{{"type":"resume"{members}}}"#)), expected, "{members}");
    }
    for text in [
        r#"{"type":"join","id":1,"payload":{"room":"a","since":5}}"#,
        r#"{"type":"join","id":1,"payload":{"room":"a","since":{"epoch":"e"}}}"#,
        r#"{"type":"resume","payload":{"since":{"epoch":"e","seq":-1}}}"#,
        r#"{"type":"resume","payload":5}"#,
    ] {
        assert_eq!(code_of(text), ErrorCode::InvalidSince, "{text}");
    }
}

#[test]
fn answers_say_where_the_client_is() {
    let room = Room::parse("a").unwrap();
    let id = MessageId("1".into());
    let position = Position { epoch: "e-1".into(), seq: 41 };
    let at = |recovered| Standing { position: Some(position.clone()), recovered };
    let lost = Standing { position: None, recovered: Some(false) };
    for (standing, members) in [
        (Standing::default(), ""),
        (at(None), r#","epoch":"e-1","seq":41"#),
        (at(Some(true)), r#","epoch":"e-1","seq":41,"recovered":true"#),
        (lost.clone(), r#","recovered":false"#),
    ] {
        assert_eq!(
            payload_of(&Reply::Joined(standing).frame(&room, Some(&id)).unwrap()),
            format!(r#"{{"type":"joined","id":1,"payload":{{"room":"a"{members}}}}}"#)
        );
    }
    assert_eq!(
        payload_of(&resumed_frame(Some(&id), &at(Some(true)))),
        r#"{"type":"resumed","id":1,"payload":{"epoch":"e-1","seq":41,"recovered":true}}"#
    );
    assert_eq!(
        payload_of(&resumed_frame(None, &lost)),
        r#"{"type":"resumed","payload":{"recovered":false}}"#
    );
    assert_eq!(
        payload_of(&reset_frame(Some(&room), position.clone())),
        r#"{"type":"reset","payload":{"room":"a","epoch":"e-1","seq":41}}"#
    );
    assert_eq!(
        payload_of(&reset_frame(None, position)),
        r#"{"type":"reset","payload":{"epoch":"e-1","seq":41}}"#
    );
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
        payload_of(&Reply::Joined(Standing::default()).frame(&room, Some(&id)).unwrap()),
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
        draft_text(broadcast("c-1", &room, at, "[1.0, 2]")),
        r#"{"from":"c-1","room":"order-123","ts":"2026-01-02T03:04:05.678Z","body":[1.0, 2]}"#
    );
    assert_eq!(
        draft_text(notification("a\"b", "{ }", "order-123")),
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
        let room = Room::parse("a").unwrap();
        let parsed = ClientMessage::parse(&text).unwrap().request;
        prop_assert_eq!(parsed, Request::Broadcast { room, body: &body });
    }
}
