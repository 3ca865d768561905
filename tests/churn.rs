//! Verifies that connections which come and leave as fast as they can are accepted or refused, never
//! stuck, and leave nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;
use support::{Client, Frame, Service, bearer, connect, full_size, handshake, token, until};

/// Threads of the test that connect and leave.
const BUSY: usize = 8;

/// Connects and leaves in one of the ways that there are.
fn come_and_leave(service: &Service, way: usize, token: &str) {
    let request = handshake("/ws", &bearer(token));
    let mut stream = connect(service.addr());
    match way % 8 {
        // At once.
        0 => {}
        // In the middle of the head.
        1 => stream.write_all(&request.as_bytes()[..40]).unwrap(),
        // Without waiting for the answer.
        2 => stream.write_all(request.as_bytes()).unwrap(),
        // The same, by a reset.
        3 => {
            stream.write_all(request.as_bytes()).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        // As one whose token is refused.
        4 => {
            stream.write_all(handshake("/ws?token=x.y.z", "").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        }
        // As a member of a room, with a handshake to close.
        5 => {
            stream.write_all(request.as_bytes()).unwrap();
            let mut client = Client::over(stream).unwrap();
            client.join("lobby");
            client.send_close(1000);
            let mut next = client.next();
            while let Frame::Text(_) = next {
                next = client.next();
            }
            assert_eq!(next, Frame::Close(1000, String::new()));
            assert_eq!(client.next(), Frame::End);
        }
        // As a member of a room, without a word.
        6 => {
            stream.write_all(request.as_bytes()).unwrap();
            Client::over(stream).unwrap().join("lobby");
        }
        // As one that asks for health.
        _ => {
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
}

#[test]
fn a_thousand_a_second_leave_nothing_behind() {
    let each: usize = if full_size() { 2500 } else { 400 };
    let service = Service::with(&[("MAX_CONNECTIONS_PER_USER", "0"), ("RATE_LIMIT", "0")]);
    service.assert_unharmed_by(|service| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for busy in 0..BUSY {
                scope.spawn(move || {
                    let token = token(&format!("u{busy}"), "");
                    (0..each).for_each(|n| come_and_leave(service, n, &token));
                });
            }
            // Meanwhile others are served.
            let mut member = service.client("member", "");
            member.join("elsewhere");
            for n in 0..50 {
                member.broadcast("elsewhere", &json!(n));
                assert_eq!(member.json()["body"], n);
            }
        });
        let rate = (BUSY * each) as f64 / start.elapsed().as_secs_f64();
        println!("{rate:.0} connections a second");
        until("the rooms are empty", || service.counts() == json!({"clients": 0, "rooms": {}}));
    });
}

#[test]
fn a_user_over_the_cap_is_refused_until_one_leaves() {
    let service = Service::with(&[("MAX_CONNECTIONS_PER_USER", "3")]);
    service.assert_unharmed_by(|service| {
        let mut clients: Vec<_> = (0..3).map(|_| service.client("1", "")).collect();
        let request = handshake("/ws", &bearer(&token("1", "")));
        for _ in 0..50 {
            let answer = service.raw(&request);
            assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (429, "1"));
        }
        drop(service.client("2", ""));
        clients.pop();
        until("the place is free", || {
            let client = Client::try_connect(service.addr(), &request).unwrap();
            client.head.starts_with("HTTP/1.1 101 ")
        });
    });
}
