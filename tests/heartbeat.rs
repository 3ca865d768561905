//! Verifies that a silent peer is pinged, that one without a sign of life is cut, and that any byte is
//! one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use support::{Backend, Client, Frame, Service, frame, hang};

fn impatient() -> Service {
    Service::with(&[("PING_INTERVAL", "1s")])
}

/// Waits for a ping, answers it with these bytes, four times over: without the answers the peer would
/// be dead after the second.
fn lives_by(client: &mut Client, mut sign_of_life: impl FnMut(&mut Client)) {
    for round in 0..4 {
        match client.next() {
            Frame::Ping(_) => sign_of_life(client),
            other => panic!("round {round}: {other:?}"),
        }
    }
}

#[test]
fn a_peer_that_answers_nothing_is_pinged_once_and_cut() {
    let service = impatient();
    let start = Instant::now();
    let (mut dead, mut alive) = (service.client("1", ""), service.client("2", ""));
    assert_eq!(dead.next(), Frame::Ping(Vec::new()));
    assert!(start.elapsed() >= Duration::from_millis(900), "pinged without silence");
    lives_by(&mut alive, |client| client.send_bytes(&frame(0x8a, b"")));
    assert_eq!(dead.next(), Frame::End);
    assert!(service.log_line("disconnected conn=1 ").contains("\"dead peer\""));
    assert!(!service.log().iter().any(|line| line.contains("disconnected conn=2 ")));
}

#[test]
fn messages_and_pings_are_signs_of_life() {
    let service = impatient();
    let (mut talks, mut pings) = (service.client("1", ""), service.client("2", ""));
    let pinging = std::thread::spawn(move || {
        lives_by(&mut pings, |client| {
            client.send_bytes(&frame(0x89, b"mine"));
            assert_eq!(client.next(), Frame::Pong(b"mine".to_vec()));
        });
    });
    lives_by(&mut talks, Client::assert_quiet);
    pinging.join().unwrap();
}

#[test]
fn a_single_byte_is_a_sign_of_life() {
    let service = impatient();
    let mut client = service.client("1", "");
    let message = frame(0x81, br#"{"type":"join","payload":{"room":"lobby"}}"#);
    let mut sent = 0;
    lives_by(&mut client, |client| {
        client.send_bytes(&message[sent..=sent]);
        sent += 1;
    });
    client.send_bytes(&message[sent..]);
    assert_eq!(client.text(), "joined lobby");
}

#[test]
fn the_heartbeat_rests_while_the_backend_is_asked() {
    let backend = Backend::start(|_, stream| hang(stream));
    let service = Service::with(&[("PING_INTERVAL", "1s"), ("BACKEND_URL", &backend.url())]);
    let mut client = service.client("1", "");
    client.send(r#"{"type":"join","payload":{"room":"lobby"}}"#);
    backend.wait_for_calls(1);
    // Three seconds are longer than the two after which a silent peer is cut.
    let mut pings = 0;
    let answer = loop {
        match client.next() {
            Frame::Ping(_) => pings += 1,
            other => break other,
        }
    };
    assert!(matches!(&answer, Frame::Text(text) if text.contains("server_error")), "{answer:?}");
    assert!(pings <= 1, "pinged {pings} times while the backend was asked");
    lives_by(&mut client, |client| client.send_bytes(&frame(0x8a, b"")));
}
