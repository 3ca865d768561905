//! Verifies that every message of a client gets exactly the bytes that the protocol promises: replies,
//! errors, ids, broadcasts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use serde_json::json;
use support::{Client, Frame, Service, frame, until};

/// An error message as docs/PROTOCOL.md has it; `id` is JSON text.
fn error(code: &str, text: &str, id: Option<&str>) -> String {
    let id = id.map(|id| format!(r#""id":{id},"#)).unwrap_or_default();
    format!(r#"{{"type":"error",{id}"payload":{{"code":"{code}","error":"{text}"}}}}"#)
}

fn invalid_json() -> String {
    error("invalid_json", "invalid json", None)
}

fn not_authorized(id: Option<&str>) -> String {
    error("not_authorized", "not authorized", id)
}

fn unlimited() -> Service {
    Service::with(&[("RATE_LIMIT", "0")])
}

/// Sends a message and expects this one answer.
fn assert_answer(client: &mut Client, message: &str, answer: &str) {
    client.send(message);
    assert_eq!(client.text(), answer, "{message}");
}

/// The parts of a broadcast: `from`, `ts`, and the text of `body`.
fn broadcast_parts<'a>(text: &'a str, room: &str) -> (&'a str, &'a str, &'a str) {
    let (number, rest) = text.split_once(r#","from":""#).expect(text);
    assert!(number.starts_with(r#"{"seq":"#), "{text}");
    let (from, rest) = rest.split_once(&format!(r#"","room":"{room}","ts":""#)).expect(text);
    let (ts, body) = rest.split_once(r#"","body":"#).expect(text);
    (from, ts, body.strip_suffix('}').expect(text))
}

#[test]
fn what_is_no_json_object_is_invalid_json() {
    let service = unlimited();
    let mut client = service.client("1", "");
    for message in [
        "",
        " ",
        "hello",
        "null",
        "5",
        "\"join\"",
        "[]",
        r#"["join",{"room":"lobby"}]"#,
        "{",
        "{}x",
        "{} {}",
        r#"{"type":"join","payload":{"room":"lobby"}"#,
        r#"{'type':'join'}"#,
        r#"{"type":"join",}"#,
        r#"{"type":"join","type":"leave","payload":{"room":"lobby"}}"#,
        "{\"type\":\"join\",\"payload\":{\"room\":\"a\u{1}\"}}",
    ] {
        assert_answer(&mut client, message, &invalid_json());
    }
    client.send_bytes(&frame(0x82, br#"{"type":"join","payload":{"room":"lobby"}}"#));
    assert_eq!(client.text(), invalid_json());
    client.join("lobby");
}

#[test]
fn an_id_is_a_string_or_a_number() {
    let service = unlimited();
    let mut client = service.client("1", "");
    for id in ["null", "true", "[]", "[1]", "{}", r#"{"a":1}"#] {
        let message = format!(r#"{{"type":"join","id":{id},"payload":{{"room":"lobby"}}}}"#);
        assert_answer(&mut client, &message, &invalid_json());
    }
}

#[test]
fn an_unknown_type_is_unsupported() {
    let service = unlimited();
    let mut client = service.client("1", "");
    let text = "unsupported message type";
    for message in [
        "{}",
        r#"{"type":"shout","payload":{"room":"lobby"}}"#,
        r#"{"type":"JOIN","payload":{"room":"lobby"}}"#,
        r#"{"type":" join","payload":{"room":"lobby"}}"#,
        r#"{"type":null,"payload":{"room":"lobby"}}"#,
        r#"{"type":5}"#,
        r#"{"type":["join"]}"#,
        r#"{"Type":"join","payload":{"room":"lobby"}}"#,
    ] {
        assert_answer(&mut client, message, &error("unsupported_type", text, None));
    }
    let with_id = r#"{"id":"x","type":"shout"}"#;
    assert_answer(&mut client, with_id, &error("unsupported_type", text, Some(r#""x""#)));
}

#[test]
fn a_message_without_a_room_is_told_for_what() {
    let service = unlimited();
    let mut client = service.client("1", "");
    for kind in ["join", "leave", "broadcast"] {
        let text = format!("missing or invalid room for {kind}");
        for rest in [
            "",
            r#","payload":null"#,
            r#","payload":5"#,
            r#","payload":["lobby"]"#,
            r#","payload":{}"#,
            r#","payload":{"Room":"lobby"}"#,
            r#","payload":{"room":null}"#,
            r#","payload":{"room":5}"#,
            r#","payload":{"room":["lobby"]}"#,
            r#","payload":{"room":""}"#,
            r#","room":"lobby""#,
        ] {
            let message = format!(r#"{{"type":"{kind}"{rest}}}"#);
            assert_answer(&mut client, &message, &error("invalid_room", &text, None));
        }
        let message = format!(r#"{{"type":"{kind}","id":4}}"#);
        assert_answer(&mut client, &message, &error("invalid_room", &text, Some("4")));
    }
}

#[test]
fn a_room_has_its_format() {
    let service = unlimited();
    let mut client = service.client("1", "");
    let long = "r".repeat(129);
    for room in [
        "a b", " a", "a\\n", "a/b", "é", "a\\u0000", "*", "a,b", "order-", "seller-", "client-",
        "user-", &long,
    ] {
        for kind in ["join", "leave", "broadcast"] {
            let message = format!(r#"{{"type":"{kind}","payload":{{"room":"{room}"}}}}"#);
            let answer = error("invalid_room_format", "invalid room format", None);
            assert_answer(&mut client, &message, &answer);
            let message = format!(r#"{{"type":"{kind}","id":"r","payload":{{"room":"{room}"}}}}"#);
            let answer = error("invalid_room_format", "invalid room format", Some(r#""r""#));
            assert_answer(&mut client, &message, &answer);
        }
    }
    for room in ["a", "A-Z_a.z:09", "order", "-", "...", &"r".repeat(128)] {
        client.join(room);
    }
    // A name is what its JSON means.
    assert_answer(
        &mut client,
        r#"{"type":"join","payload":{"room":"lob\u0062y"}}"#,
        "joined lobby",
    );
}

#[test]
fn without_permission_the_answer_is_not_authorized() {
    let service = Service::start();
    let mut client = service.client("1", "");
    for kind in ["join", "broadcast"] {
        let message = format!(r#"{{"type":"{kind}","payload":{{"room":"order-2"}}}}"#);
        assert_answer(&mut client, &message, &not_authorized(None));
        let message = format!(r#"{{"type":"{kind}","id":1,"payload":{{"room":"order-2"}}}}"#);
        assert_answer(&mut client, &message, &not_authorized(Some("1")));
    }
}

#[test]
fn over_the_rate_a_client_is_told_and_what_it_sent_is_dropped() {
    let service = Service::with(&[("RATE_LIMIT", "1"), ("RATE_BURST", "2")]);
    let mut client = service.client("1", "");
    let join = |room: &str| {
        frame(0x81, format!(r#"{{"type":"join","payload":{{"room":"{room}"}}}}"#).as_bytes())
    };
    // At once, so that no refill comes in between.
    client.send_bytes(&["a", "b", "c", "d"].map(join).concat());
    assert_eq!((client.text(), client.text()), ("joined a".into(), "joined b".into()));
    assert_eq!(client.text(), error("rate_limited", "rate limited", None));
    // Another user's rate is its own.
    service.client("2", "").join("e");
    // Time fills the rate again: what has an id is answered either way.
    let mut id = 0;
    until("an answer", || {
        id += 1;
        client.send(&format!(r#"{{"type":"leave","id":{id},"payload":{{"room":"a"}}}}"#));
        loop {
            let answer = client.json();
            if answer["id"] == id {
                return answer["type"] == "left";
            }
        }
    });
}

#[test]
fn what_has_an_id_is_always_answered() {
    let service = Service::with(&[("RATE_LIMIT", "1"), ("RATE_BURST", "1")]);
    let mut client = service.client("1", "");
    let leave = |id: &str| {
        frame(0x81, format!(r#"{{"type":"leave","payload":{{"room":"a"}}{id}}}"#).as_bytes())
    };
    let ids = ["", "", "", r#","id":7"#, "", r#","id":"x""#, r#","id":null"#, r#","id":-1e3"#];
    client.send_bytes(&ids.map(leave).concat());
    assert_eq!(client.text(), "left a");
    for id in [None, Some("7"), Some(r#""x""#), Some("-1e3")] {
        assert_eq!(client.text(), error("rate_limited", "rate limited", id));
    }
    client.send_bytes(&frame(0x89, b"nothing more"));
    assert_eq!(client.next(), Frame::Pong(b"nothing more".to_vec()));
}

#[test]
fn the_rate_is_the_user_s_over_connections_and_reconnects() {
    let service = Service::with(&[("RATE_LIMIT", "1"), ("RATE_BURST", "6")]);
    let mut left = 0;
    // Two sockets at once and one after the other: six messages in all, and one for each second.
    let start = std::time::Instant::now();
    for _ in 0..3 {
        let mut sockets = [service.client("1", ""), service.client("1", "")];
        for client in &mut sockets {
            for id in 0..4 {
                client.send(&format!(r#"{{"type":"leave","id":{id},"payload":{{"room":"a"}}}}"#));
                left += usize::from(client.text().contains(r#""type":"left""#));
            }
        }
    }
    let seconds = start.elapsed().as_secs() as usize + 1;
    assert!((6..=6 + seconds).contains(&left), "{left} passed in {seconds} s");
    service.client("2", "").join("a");
}

#[test]
fn bytes_have_a_rate_too() {
    let service = Service::with(&[("RATE_BYTES", "1KiB")]);
    let mut client = service.client("1", "");
    let filler = "x".repeat(950);
    let mut answers = Vec::new();
    for id in 0..6 {
        client.send(&format!(
            r#"{{"type":"leave","id":{id},"payload":{{"room":"a","body":"{filler}"}}}}"#
        ));
        answers.push(client.text().contains("rate_limited"));
    }
    assert_eq!(answers[..4], [false; 4]);
    assert!(answers[4..].contains(&true), "{answers:?}");
    // A small one still fits, and any that is larger than the burst when the rate is full.
    let mut other = service.client("2", "");
    other.send(&format!(
        r#"{{"type":"leave","payload":{{"room":"b","body":"{}"}}}}"#,
        "x".repeat(6000)
    ));
    assert_eq!(other.text(), "left b");
}

#[test]
fn control_frames_do_not_count_towards_the_rate() {
    let service = Service::with(&[("RATE_LIMIT", "1"), ("RATE_BURST", "1")]);
    let mut client = service.client("1", "");
    client.send_bytes(&[frame(0x89, b"x"), frame(0x8a, b"y")].concat().repeat(50));
    client.send(r#"{"type":"leave","payload":{"room":"sentinel"}}"#);
    loop {
        match client.next() {
            Frame::Pong(payload) => assert_eq!(payload, b"x"),
            other => return assert_eq!(other, Frame::Text("left sentinel".into())),
        }
    }
}

#[test]
fn a_backend_that_is_down_is_a_server_error() {
    let service = Service::with(&[("BACKEND_URL", "http://127.0.0.1:1")]);
    let mut client = service.client("1", "");
    for kind in ["join", "broadcast"] {
        let message = format!(r#"{{"type":"{kind}","id":"b","payload":{{"room":"order-1"}}}}"#);
        let answer = error("server_error", "server error", Some(r#""b""#));
        assert_answer(&mut client, &message, &answer);
    }
    let message = r#"{"type":"join","payload":{"room":"lobby"}}"#;
    assert_answer(&mut client, message, &error("server_error", "server error", None));
}

#[test]
fn ids_are_repeated_as_they_came() {
    let service = Service::with(&[("RATE_LIMIT", "0"), ("HISTORY_MESSAGES", "0")]);
    let mut client = service.client("1", "");
    for id in [
        r#""r1""#,
        r#""""#,
        r#""\u0041\/\" \n""#,
        r#""ü😀""#,
        "0",
        "7",
        "-0",
        "1.50",
        "1e3",
        "-12.5E-7",
        "123456789012345678901234567890",
    ] {
        let payload = r#""payload":{"room":"order-1"}"#;
        for (kind, reply) in [("join", "joined"), ("leave", "left"), ("broadcast", "sent")] {
            let message = format!(r#"{{"type":"{kind}","id": {id} ,{payload}}}"#);
            let answer = format!(r#"{{"type":"{reply}","id":{id},{payload}}}"#);
            assert_answer(&mut client, &message, &answer);
        }
    }
}

#[test]
fn without_an_id_the_replies_are_the_old_plain_texts() {
    let service = Service::start();
    let mut client = service.client("1", "");
    let payload = r#""payload":{"room":"order-1"}"#;
    assert_answer(&mut client, &format!(r#"{{"type":"join",{payload}}}"#), "joined order-1");
    client.send(&format!(r#"{{"type":"broadcast",{payload}}}"#));
    assert_eq!(client.json()["room"], "order-1");
    // The broadcast is not answered, so the next text is that of the leave.
    assert_answer(&mut client, &format!(r#"{{"type":"leave",{payload}}}"#), "left order-1");
}

#[test]
fn members_and_order_of_a_message_do_not_matter() {
    let service = Service::start();
    let mut client = service.client("1", "");
    let message =
        " \r\n{ \"extra\" : [1] , \"payload\" : {\"more\":{},\"room\":\"a\"}, \"type\":\"join\"}\t";
    assert_answer(&mut client, message, "joined a");
    assert_answer(&mut client, r#"{"t\u0079pe":"joi\u006e","payload":{"room":"b"}}"#, "joined b");
}

#[test]
fn a_body_is_passed_on_byte_for_byte() {
    let service = unlimited();
    let (mut sender, mut member) = (service.client("1", ""), service.client("2", ""));
    sender.join("lobby");
    member.join("lobby");
    let deep = format!("{}{}", "[".repeat(4000), "]".repeat(4000));
    for body in [
        "null",
        "true",
        "1.0",
        "1.50e+007",
        "-0",
        "123456789012345678901234567890.123456789012345678901234567890",
        r#""""#,
        r#""\u00e9\/\ud83d\ude00é😀\t""#,
        "[ ]",
        r#"{"b" : 1 ,	"a":[1.0 ,2],"a":"twice"}"#,
        &deep,
    ] {
        let message =
            format!(r#"{{"type":"broadcast","payload":{{"room":"lobby","body":  {body} }}}}"#);
        sender.send(&message);
        for client in [&mut sender, &mut member] {
            let text = client.text();
            assert_eq!(broadcast_parts(&text, "lobby").2, body);
        }
    }
    // Line ends within the body are whitespace of JSON too.
    sender.send("{\"type\":\"broadcast\",\"payload\":{\"room\":\"lobby\",\"body\":{\r\n\"a\":1}}}");
    assert_eq!(broadcast_parts(&member.text(), "lobby").2, "{\r\n\"a\":1}");
}

#[test]
fn a_missing_body_is_null() {
    let service = Service::start();
    let mut client = service.client("1", "");
    client.join("lobby");
    client.send(r#"{"type":"broadcast","payload":{"room":"lobby"}}"#);
    assert_eq!(broadcast_parts(&client.text(), "lobby").2, "null");
}

#[test]
fn a_broadcast_says_from_which_connection_and_when() {
    let service = Service::start();
    let (mut a, mut b) = (service.client("1", ""), service.client("1", ""));
    a.join("lobby");
    b.join("lobby");
    let mut from = Vec::new();
    for sender in 0..4 {
        [&mut a, &mut b][sender % 2].broadcast("lobby", &json!(sender));
        let (at_a, at_b) = (a.text(), b.text());
        assert_eq!(at_a, at_b);
        let (id, ts, _) = broadcast_parts(&at_a, "lobby");
        assert!(!id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
        from.push(id.to_owned());
        let shape: String = ts.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99T99:99:99.999Z");
    }
    assert_eq!((&from[0], &from[1]), (&from[2], &from[3]));
    assert_ne!(from[0], from[1]);
}

#[test]
fn the_sender_s_own_copy_comes_before_sent() {
    let service = Service::start();
    let mut client = service.client("1", "");
    client.join("lobby");
    client.send(r#"{"type":"broadcast","id":"m","payload":{"room":"lobby","body":1}}"#);
    assert_eq!(broadcast_parts(&client.text(), "lobby").2, "1");
    assert_eq!(client.text(), r#"{"type":"sent","id":"m","payload":{"room":"lobby"}}"#);
}

#[test]
fn a_broadcast_without_membership_needs_the_permission_to_join() {
    let service = Service::start();
    let (mut member, mut permitted) = (service.client("7", ""), service.client("7", ""));
    let mut stranger = service.client("8", "");
    member.join("order-7");
    let message = r#"{"type":"broadcast","id":1,"payload":{"room":"order-7","body":"hi"}}"#;
    assert_answer(&mut stranger, message, &not_authorized(Some("1")));
    // Not a member, so no copy comes before the answer.
    let sent = r#"{"type":"sent","id":1,"payload":{"room":"order-7"}}"#;
    assert_answer(&mut permitted, message, sent);
    assert_eq!(broadcast_parts(&member.text(), "order-7").2, "\"hi\"");
    member.assert_quiet();
    permitted.assert_quiet();
}

#[test]
fn the_largest_message_passes_whole_and_in_fragments() {
    let service = unlimited();
    let mut client = service.client("1", "");
    client.join("lobby");
    let (start, end) = (r#"{"type":"broadcast","payload":{"room":"lobby","body":""#, r#""}}"#);
    let body = "x".repeat(8192 - start.len() - end.len());
    let message = format!("{start}{body}{end}");
    client.send(&message);
    assert_eq!(broadcast_parts(&client.text(), "lobby").2, format!("\"{body}\""));

    let (first, rest) = message.as_bytes().split_at(5000);
    let (second, third) = rest.split_at(1);
    client.send_bytes(&[frame(0x01, first), frame(0x89, b"between")].concat());
    assert_eq!(client.next(), Frame::Pong(b"between".to_vec()));
    client.send_bytes(&[frame(0x00, second), frame(0x00, b""), frame(0x80, third)].concat());
    assert_eq!(broadcast_parts(&client.text(), "lobby").2, format!("\"{body}\""));
}

#[test]
fn pings_are_answered_and_pongs_are_not() {
    let service = Service::start();
    let mut client = service.client("1", "");
    for payload in [&b""[..], b"abc", &[0xff; 125]] {
        client.send_bytes(&frame(0x89, payload));
        assert_eq!(client.next(), Frame::Pong(payload.to_vec()));
    }
    client.send_bytes(&frame(0x8a, b"unasked"));
    client.assert_quiet();
}
