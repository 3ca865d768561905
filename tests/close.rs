//! Verifies that a connection ends with the Close code that its reason has, that the Close arrives, and
//! that nothing else is harmed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::{Client, Frame, Service, frame, token_with, unix_now, until};

const INVALID_UTF8: &[u8] = b"\xc3\x28";

fn close(code: u16, reason: &str) -> Frame {
    Frame::Close(code, reason.into())
}

/// A client, in the room lobby.
fn member(service: &Service) -> Client {
    let mut client = service.client("1", "");
    client.join("lobby");
    client
}

/// The Close arrives, nothing behind it, and the stream ends once the client has ended its own half.
fn assert_closed(client: &mut Client, expected: &Frame, why: &str) {
    assert_eq!(client.next(), *expected, "{why}");
    client.end_sending();
    assert_eq!(client.next(), Frame::End, "{why}");
}

#[test]
fn a_peer_s_close_is_echoed() {
    let service = Service::start();
    for code in [1000, 1001, 1003, 1008, 1011, 3000, 4000, 4999] {
        let mut client = member(&service);
        client.send_close(code);
        assert_closed(&mut client, &close(code, ""), &code.to_string());
    }
    let mut with_reason = member(&service);
    with_reason.send_bytes(&frame(0x88, b"\x03\xe8bye"));
    assert_closed(&mut with_reason, &close(1000, ""), "with a reason");
    let mut without_code = member(&service);
    without_code.send_bytes(&frame(0x88, b""));
    assert_closed(&mut without_code, &close(1000, ""), "without a code");
}

#[test]
fn a_code_that_may_not_be_sent_is_not_echoed() {
    let service = Service::start();
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535] {
        let mut client = member(&service);
        client.send_close(code);
        let Frame::Close(answer, _) = client.next() else { panic!("no Close after {code}") };
        assert_eq!(answer, 1002, "{code}");
    }
}

#[test]
fn what_is_sent_behind_a_close_does_not_count() {
    let service = Service::start();
    let (mut client, mut other) = (member(&service), member(&service));
    let text = br#"{"type":"broadcast","payload":{"room":"lobby","body":"late"}}"#;
    client.send_bytes(&[frame(0x88, b"\x03\xe8"), frame(0x81, text), frame(0x89, b"")].concat());
    assert_closed(&mut client, &close(1000, ""), "behind a close");
    other.assert_quiet();
}

#[test]
fn no_pong_comes_behind_the_close() {
    let service = Service::start();
    for n in 0..50_u8 {
        let mut client = member(&service);
        // In one segment: the pong may come before the Close, or not at all.
        client.send_bytes(&[frame(0x89, &[n]), frame(0x88, b"\x03\xe8")].concat());
        let mut first = client.next();
        if first == Frame::Pong(vec![n]) {
            first = client.next();
        }
        assert_eq!(first, close(1000, ""), "{n}");
        client.end_sending();
        assert_eq!(client.next(), Frame::End, "{n}");
    }
}

#[test]
fn a_breach_of_the_rfc_is_1002() {
    let service = Service::start();
    let mut bystander = member(&service);
    let unmasked = b"\x81\x02{}".to_vec();
    let breaches = [
        ("an unmasked frame", unmasked),
        ("a reserved bit", frame(0xc1, b"{}")),
        ("another reserved bit", frame(0x91, b"{}")),
        ("an unknown opcode", frame(0x83, b"{}")),
        ("an unknown control opcode", frame(0x8b, b"")),
        ("a fragmented ping", frame(0x09, b"")),
        ("a long ping", frame(0x89, &[b'x'; 126])),
        ("a continuation of nothing", frame(0x80, b"{}")),
        ("a message within a message", [frame(0x01, b"{"), frame(0x81, b"{}")].concat()),
        ("a Close of one byte", frame(0x88, b"\x03")),
    ];
    for (why, bytes) in &breaches {
        let mut client = member(&service);
        client.send_bytes(bytes);
        assert_closed(&mut client, &close(1002, "protocol error"), why);
    }
    until("all are logged", || {
        let lines = service.log();
        lines.iter().filter(|line| line.contains("protocol error (1002)")).count() == breaches.len()
    });
    bystander.assert_quiet();
}

#[test]
fn text_that_is_not_utf_8_is_1007() {
    let service = Service::start();
    let cases = [
        ("a text", frame(0x81, INVALID_UTF8)),
        ("fragments", [frame(0x01, b"{\"a\":\"\xf0\x9f"), frame(0x80, b"\"}")].concat()),
        ("an unfinished character", frame(0x81, b"\xe2\x82")),
        ("the reason of a Close", frame(0x88, &[&[0x03, 0xe8], INVALID_UTF8].concat())),
    ];
    for (why, bytes) in cases {
        let mut client = member(&service);
        client.send_bytes(&bytes);
        assert_closed(&mut client, &close(1007, "invalid UTF-8"), why);
    }
    // A character may be split between fragments.
    let mut client = member(&service);
    let message = "{\"type\":\"leave\",\"id\":\"é\",\"payload\":{\"room\":\"a\"}}".as_bytes();
    let middle = message.iter().position(|byte| *byte == 0xc3).unwrap() + 1;
    let (first, second) = message.split_at(middle);
    client.send_bytes(&[frame(0x01, first), frame(0x80, second)].concat());
    assert_eq!(client.json()["id"], "é");
}

#[test]
fn a_message_over_the_limit_is_1009() {
    let service = Service::start();
    let announced =
        |length: u64| [&[0x81, 0xff][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat();
    let cases = [
        ("one byte too many", frame(0x81, &[b'x'; 8193])),
        ("a binary message", frame(0x82, &[b'x'; 9000])),
        ("fragments added up", [frame(0x01, &[b'x'; 8192]), frame(0x80, b"x")].concat()),
        ("many fragments", frame(0x00, &[b'x'; 100]).repeat(100)),
        ("only announced", announced(1 << 40)),
    ];
    for (why, bytes) in cases {
        let mut client = member(&service);
        if why == "many fragments" {
            client.send_bytes(&frame(0x01, b"x"));
        }
        client.send_bytes(&bytes);
        assert_closed(&mut client, &close(1009, "message too large"), why);
    }
    let small = Service::with(&[("MAX_MESSAGE_SIZE", "64")]);
    let mut client = member(&small);
    client.send_bytes(&frame(0x81, &[b'x'; 65]));
    assert_closed(&mut client, &close(1009, "message too large"), "a smaller limit");
    service.log_line("message too large (1009)");
}

#[test]
fn a_flood_behind_a_breach_does_not_destroy_the_close() {
    let service = Service::start();
    let mut client = member(&service);
    let mut bytes = frame(0x83, b"");
    bytes.extend(frame(0x81, &[b'x'; 8000]).repeat(30));
    client.send_bytes(&bytes);
    assert_closed(&mut client, &close(1002, "protocol error"), "a flood");
}

#[test]
fn a_closed_client_has_left_its_rooms_at_once() {
    let service = Service::start();
    let (mut client, mut other) = (member(&service), member(&service));
    client.send_bytes(&frame(0x83, b""));
    assert_eq!(client.next(), close(1002, "protocol error"));
    // It has not answered the Close yet, and counts no more.
    assert_eq!(service.counts(), json!({"clients": 1, "rooms": {"lobby": 1}}));
    assert_eq!(service.notify(&json!({"event": "e", "room": "lobby"})).json()["delivered"], 1);
    assert_eq!(service.notify(&json!({"event": "e", "user_id": "1"})).json()["delivered"], 1);
    assert_eq!(
        (other.json()["to"].clone(), other.json()["to"].clone()),
        (json!("lobby"), json!("1"))
    );
    client.end_sending();
    assert_eq!(client.next(), Frame::End);
}

#[test]
fn a_peer_that_ignores_the_close_is_cut() {
    let service = Service::start();
    let mut client = member(&service);
    client.send_bytes(&frame(0x83, b""));
    assert_eq!(client.next(), close(1002, "protocol error"));
    // It goes on sending and never ends its half.
    let stream = client.stream().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let bytes = frame(0x81, &[b'x'; 1000]);
        while std::io::Write::write_all(&mut &stream, &bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(client.next(), Frame::End);
    service.log_line("disconnected conn=1 ");
    flood.join().unwrap();
}

#[test]
fn a_token_that_expires_closes_its_socket_with_4001() {
    let service = Service::start();
    let expiring = token_with(json!({"sub": "1", "exp": unix_now() + 3}));
    let mut client = Client::connect(service.addr(), &expiring);
    client.join("lobby");
    let mut other = member(&service);
    assert_closed(&mut client, &close(4001, "token expired"), "an expired token");
    assert!(service.log_line("disconnected conn=1 ").contains("\"token expired (4001)\""));
    other.assert_quiet();
    let again = support::handshake("/ws", &support::bearer(&expiring));
    assert_eq!(service.raw(again).json()["error"], "token_expired");
}

#[test]
fn leeway_keeps_an_expired_token_s_socket_open() {
    let service = Service::with(&[("JWT_LEEWAY", "10m")]);
    let expired = token_with(json!({"sub": "1", "exp": unix_now() - 60}));
    let mut client = Client::connect(service.addr(), &expired);
    client.assert_quiet();
}

#[test]
fn a_peer_that_just_goes_away_is_noticed() {
    let service = Service::start();
    let mut gone = member(&service);
    gone.end_sending();
    assert_eq!(gone.next(), Frame::End);
    assert!(service.log_line("disconnected conn=1 ").contains("\"gone without a close\""));
    // In the middle of a frame too.
    let mut half = member(&service);
    half.send_bytes(b"\x81\xff\x00");
    drop(half);
    service.log_line("disconnected conn=2 ");
    assert_eq!(service.counts(), json!({"clients": 0, "rooms": {}}));
}
