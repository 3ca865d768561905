//! Verifies that what a user, or a room, may send is bounded over all connections and reconnects, and
//! that whoever is refused is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::time::{Duration, Instant};

use crowd::{broadcast, start};
use serde_json::{Value, json};
use support::{Client, Frame, Service, handshake, token};

/// `RATE_LIMIT`, `RATE_BURST`, `RATE_BYTES` and its burst, where a test does not set them.
const MESSAGES_PER_SECOND: f64 = 50.0;
const BURST_MESSAGES: f64 = 100.0;
const BYTES_PER_SECOND: f64 = 64.0 * 1024.0;
const BURST_BYTES: f64 = 4.0 * BYTES_PER_SECOND;
/// How long the tests are over a rate: less than what closes a connection.
const OVER_THE_RATE: Duration = Duration::from_secs(3);
/// A clock of another process, and a message that was just allowed.
const SLACK: f64 = 1.1;

/// What became of the messages of one user.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fate {
    sent: u64,
    limited: u64,
}

/// Broadcasts so many, each with an id, and reads the answer to each.
fn broadcast_many(client: &mut Client, room: &str, body: &Value, count: u64, fate: &mut Fate) {
    let all: Vec<_> = (0..count).flat_map(|id| broadcast(room, body, Some(id))).collect();
    client.send_bytes(&all);
    let mut waiting: std::collections::HashSet<_> = (0..count).collect();
    while !waiting.is_empty() {
        let answer = client.json();
        let id = answer["id"].as_u64();
        assert!(id.is_some_and(|id| waiting.remove(&id)), "answered twice, or no id: {answer}");
        match answer["payload"]["code"].as_str() {
            Some(code) => {
                assert_eq!(code, "rate_limited", "{answer}");
                fate.limited += 1;
            }
            None => {
                assert_eq!(answer["type"], "sent", "{answer}");
                fate.sent += 1;
            }
        }
    }
}

/// Connects as soon as the user has a place.
fn connect(service: &Service, user: &str) -> Client {
    let request = handshake("/ws", &format!("Authorization: Bearer {}\r\n", token(user, "")));
    let mut connected = None;
    support::until("a place for the user", || {
        let client = Client::try_connect(service.addr(), &request).unwrap();
        connected = client.head.starts_with("HTTP/1.1 101 ").then_some(client);
        connected.is_some()
    });
    connected.unwrap()
}

/// Repeats a round for [`OVER_THE_RATE`]; returns what became of all, and how many seconds it took.
fn over_the_rate(mut round: impl FnMut(&mut Fate)) -> (Fate, f64) {
    let start = Instant::now();
    let mut fate = Fate::default();
    while start.elapsed() < OVER_THE_RATE {
        round(&mut fate);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{fate:?} in {seconds:.1} s");
    (fate, seconds)
}

fn assert_within_the_rate(fate: &Fate, seconds: f64) {
    let most = (BURST_MESSAGES + MESSAGES_PER_SECOND * seconds) * SLACK;
    assert!((fate.sent as f64) < most, "{fate:?} in {seconds} s, allowed are {most}");
    assert!(fate.sent as f64 >= BURST_MESSAGES, "{fate:?}: less than a burst");
    assert!(fate.limited > 0, "{fate:?}");
}

#[test]
fn a_reconnect_brings_no_new_burst() {
    let service = start(&[]);
    let (fate, seconds) = over_the_rate(|fate| {
        let mut client = connect(&service, "1");
        broadcast_many(&mut client, "lobby", &json!(1), 100, fate);
    });
    assert_within_the_rate(&fate, seconds);
}

#[test]
fn what_a_user_has_spent_comes_back_at_its_rate_while_nobody_is_connected() {
    let service = start(&[("RATE_LIMIT", "10"), ("RATE_BURST", "40")]);
    let mut first = Fate::default();
    let spending = Instant::now();
    broadcast_many(&mut connect(&service, "1"), "lobby", &json!(1), 100, &mut first);
    std::thread::sleep(Duration::from_secs(1));
    let mut second = Fate::default();
    broadcast_many(&mut connect(&service, "1"), "lobby", &json!(1), 100, &mut second);
    let seconds = spending.elapsed().as_secs_f64();
    println!("{first:?}, {second:?} in {seconds:.1} s");
    assert!(first.sent >= 40 && second.sent >= 9, "{first:?}, {second:?}");
    let most = (40.0 + 10.0 * seconds) * SLACK;
    assert!(((first.sent + second.sent) as f64) < most, "{first:?}, {second:?} in {seconds} s");
}

#[test]
fn twenty_connections_of_a_user_share_its_rate() {
    let service = start(&[]);
    let mut clients: Vec<_> = (0..20).map(|_| connect(&service, "1")).collect();
    let (fate, seconds) = over_the_rate(|fate| {
        for client in &mut clients {
            broadcast_many(client, "lobby", &json!(1), 20, fate);
        }
    });
    assert_within_the_rate(&fate, seconds);
}

#[test]
fn bytes_are_limited_over_connections_and_reconnects_too() {
    let service = start(&[]);
    let body = json!("x".repeat(7 * 1024));
    let mut clients: Vec<_> = (0..10).map(|_| connect(&service, "1")).collect();
    let (fate, seconds) = over_the_rate(|fate| {
        // Below the rate of messages in all.
        for client in clients.iter_mut().chain([&mut connect(&service, "1")]) {
            broadcast_many(client, "lobby", &body, 2, fate);
        }
        std::thread::sleep(Duration::from_millis(300));
    });
    let bytes = fate.sent as f64 * 7.0 * 1024.0;
    let most = (BURST_BYTES + BYTES_PER_SECOND * seconds) * SLACK;
    println!("{bytes} bytes, allowed are {most}");
    assert!(bytes < most, "{bytes} bytes in {seconds} s, allowed are {most}");
    assert!(bytes > BURST_BYTES / 2.0, "{bytes} bytes: less than a burst");
}

#[test]
fn users_share_no_rate() {
    let service = start(&[]);
    let (mut one, mut other) = (Fate::default(), Fate::default());
    broadcast_many(&mut connect(&service, "1"), "lobby", &json!(1), 500, &mut one);
    broadcast_many(&mut connect(&service, "2"), "lobby", &json!(1), 100, &mut other);
    assert!(one.limited > 0, "{one:?}");
    assert_eq!(other, Fate { sent: 100, limited: 0 });
}

#[test]
fn zero_turns_every_rate_off() {
    let off = [("RATE_LIMIT", "0"), ("RATE_BYTES", "0"), ("ROOM_RATE_BYTES", "0")];
    let service = start(&off);
    let mut client = connect(&service, "1");
    let mut fate = Fate::default();
    // More than the room and the user could send at once.
    for _ in 0..60 {
        broadcast_many(&mut client, "lobby", &json!("x".repeat(7 * 1024)), 20, &mut fate);
    }
    assert_eq!(fate, Fate { sent: 1200, limited: 0 });
}

#[test]
fn a_room_over_its_rate_refuses_its_senders_and_no_others() {
    const ROOM_BYTES: f64 = 16.0 * 1024.0;
    let service = start(&[("ROOM_RATE_BYTES", "16KiB")]);
    let body = json!("x".repeat(1000));
    let start = Instant::now();
    let mut busy = Fate::default();
    for user in 0..10 {
        broadcast_many(&mut connect(&service, &format!("u{user}")), "busy", &body, 40, &mut busy);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{busy:?} in {seconds:.1} s");
    let most = (4.0 * ROOM_BYTES + ROOM_BYTES * seconds) * SLACK;
    assert!(busy.sent as f64 * 1000.0 < most, "{busy:?} in {seconds} s, allowed are {most} bytes");
    // Frames are a little longer than their bodies.
    assert!(busy.sent >= 12, "{busy:?}: less than a second's");

    let mut quiet = Fate::default();
    broadcast_many(&mut connect(&service, "other"), "quiet", &body, 10, &mut quiet);
    assert_eq!(quiet, Fate { sent: 10, limited: 0 });

    // Backends are trusted: they say what they have to say.
    let mut member = service.client("member", "");
    member.join("busy");
    for n in 0..100 {
        let notification = json!({"event": "e", "room": "busy", "data": [n, body]});
        let answer = service.notify(&notification);
        assert_eq!((answer.status, &answer.json()["delivered"]), (200, &json!(1)), "{answer:?}");
        assert_eq!(member.json()["data"][0], n);
    }
}

#[test]
fn who_sends_no_id_is_told_once_a_second() {
    let service = start(&[]);
    let mut client = connect(&service, "1");
    let mut told = 0;
    let start = Instant::now();
    while start.elapsed() < OVER_THE_RATE {
        (0..50).for_each(|_| client.broadcast("lobby", &json!(1)));
        client.send_bytes(&support::frame(0x89, b"end"));
        // The pong tells that all before it has been handled.
        loop {
            match client.next() {
                Frame::Pong(_) => break,
                Frame::Text(text) if text.contains(r#""code":"rate_limited""#) => told += 1,
                other => panic!("{other:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(150));
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(told >= 2 && f64::from(told) <= seconds + 1.0, "told {told} times in {seconds} s");
}
