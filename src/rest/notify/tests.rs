//! Verifies which bodies of `POST /api/notify` are taken, and how the others are refused.

use super::*;
use crate::protocol::frame_payload;
use proptest::prelude::*;

fn error(body: &str) -> (&'static str, String) {
    let bad = parse(body.as_bytes()).unwrap_err();
    (bad.code, bad.message)
}

fn frames(body: &str) -> Vec<String> {
    let wanted = parse(body.as_bytes()).unwrap();
    let text = |d: &Delivery| {
        String::from_utf8(frame_payload(&d.draft.clone().complete(None).frame).to_vec()).unwrap()
    };
    wanted.deliveries.iter().map(text).collect()
}

#[test]
fn one_and_many_are_read_byte_for_byte() {
    assert_eq!(
        frames(r#" {"event":"e","data": {"a" : 1.00} ,"user_id":-7,"extra":1}"#),
        [r#"{"event":"e","data":{"a" : 1.00},"to":"-7"}"#]
    );
    let batch = r#"[{"event":"a","room":"order-1"},
        {"event":"b","data":null,"broadcast":true},
        {"event":"c","data":[],"user_id":"u","room":null,"broadcast":false}]"#;
    assert_eq!(
        frames(batch),
        [
            r#"{"event":"a","data":null,"to":"order-1"}"#,
            r#"{"event":"b","data":null,"to":"broadcast"}"#,
            r#"{"event":"c","data":[],"to":"u"}"#
        ]
    );
    assert!(parse(batch.as_bytes()).unwrap().is_batch);
    assert_eq!(
        parse(br#"{"event":"e","user_id":18446744073709551615}"#).unwrap().deliveries[0].target,
        Target::User(Id::parse("18446744073709551615").unwrap())
    );
}

#[test]
fn json_of_the_wrong_form_is_invalid_json() {
    for body in [
        "",
        "x",
        "null",
        "5",
        "\"a\"",
        "[]",
        "[",
        "{",
        "[5]",
        "[[]]",
        "{}x",
        r#"{"event":"a","event":"b","room":"a"}"#,
        r#"{"event":"a","room":"a"} {}"#,
    ] {
        assert_eq!(error(body).0, "invalid_json", "{body}");
    }
    assert_eq!(parse(b"{\"\xff\"}").unwrap_err().message, "body is not UTF-8 at byte 2");
    let many = format!("[{}]", vec!["{}"; MAX_BATCH + 1].join(","));
    assert!(error(&many).1.contains("at most 100 notifications"));
}

#[test]
fn each_bad_member_is_named() {
    for (body, place) in [
        (r#"{"room":"a"}"#, "event: "),
        (r#"{"event":"","room":"a"}"#, "event: "),
        (r#"{"event":5,"room":"a"}"#, "event: "),
        (r#"{"event":"\ud800","room":"a"}"#, "event: "),
        (r#"{"event":"e"}"#, "notification: "),
        (r#"{"event":"e","broadcast":false}"#, "notification: "),
        (r#"{"event":"e","room":"a","user_id":"b"}"#, "notification: "),
        (r#"{"event":"e","room":"a","broadcast":true}"#, "notification: "),
        (r#"{"event":"e","broadcast":1}"#, "broadcast: "),
        (r#"{"event":"e","room":""}"#, "room: "),
        (r#"{"event":"e","room":"order-"}"#, "room: "),
        (r#"{"event":"e","room":5}"#, "room: "),
        (r#"{"event":"e","user_id":""}"#, "user_id: "),
        (r#"{"event":"e","user_id":"a b"}"#, "user_id: "),
        (r#"{"event":"e","user_id":"a\n"}"#, "user_id: "),
        (r#"{"event":"e","user_id":1.5}"#, "user_id: "),
        (r#"{"event":"e","user_id":1e3}"#, "user_id: "),
        (r#"{"event":"e","user_id":18446744073709551616}"#, "user_id: "),
        (r#"{"event":"e","user_id":true}"#, "user_id: "),
        (r#"[{"event":"e","room":"a"},{"event":"e","room":"ä"}]"#, "notifications[1].room: "),
        (r#"[{"event":"e","room":"a"},{"room":"a"}]"#, "notifications[1].event: "),
    ] {
        let (code, message) = error(body);
        assert_eq!(code, "invalid_notification", "{body}");
        assert!(message.starts_with(place), "{body}: {message}");
    }
    let long = format!(r#"{{"event":"{}","room":"a"}}"#, "e".repeat(129));
    assert!(error(&long).1.starts_with("event: "));
}

#[test]
fn a_notification_over_64_kib_is_too_large() {
    let of = |n: usize| format!(r#"{{"event":"e","room":"a","data":"{}"}}"#, "x".repeat(n));
    assert!(parse(of(65_000).as_bytes()).is_ok());
    assert_eq!(error(&of(65_536)).0, "notification_too_large");
}

proptest! {
    #[test]
    fn any_body_is_judged(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&body);
    }
}
