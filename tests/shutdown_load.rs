//! Verifies that SIGTERM ends the service in order also under load: every client gets its Close, what was
//! acknowledged is published, and a backend that hangs holds nothing up.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::collections::HashSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crowd::{Crowd, Flood, flooded, start, start_on};
use serde_json::{Value, json};
use support::{Frame, Redis, Response, Service, full_size, machine, token};

/// SIGTERM; the exit code is to be 0. Returns how long it took.
fn end(service: Service) -> Duration {
    let signalled = Instant::now();
    let (status, log) = service.stop();
    let took = signalled.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert_eq!(status.code(), Some(0), "after {took:?}: {:?}", log.last());
    took
}

#[test]
fn every_client_gets_its_close_while_forty_flood() {
    let _machine = machine();
    let members = if full_size() { 5000 } else { 1500 };
    let service = start(&[]);
    let mut crowd = Crowd::new(&service);
    let members = crowd.enter("member", members, "lobby");
    let senders = crowd.connect((0..40).map(|n| token(&format!("sender-{n}"), "")));
    let flood = flooded(crowd, vec![Flood::new(senders.clone(), "lobby", 100)]);
    std::thread::sleep(Duration::from_secs(2));
    let took = end(service);
    // Not behind what the senders have queued: that alone takes longer.
    assert!(took < Duration::from_secs(6), "{took:?}");
    let mut crowd = flood.stop();
    let all = members.start..senders.end;
    crowd.pump_until("the end of all", |_, _| {}, |crowd| crowd.ended(all.clone()) == all.len());
    let closed = all.clone().filter(|link| crowd.close_code(*link) == Some(1001)).count();
    assert_eq!(closed, all.len(), "clients that got a Close 1001");
}

/// Notifies one after the other on a connection of its own, until the service refuses or is gone; returns
/// which were answered 200. Those of this caller are numbered from `first`.
fn notify_to_the_end(addr: SocketAddr, token: &str, first: u64) -> Vec<u64> {
    let mut answered = Vec::new();
    let Ok(mut stream) = TcpStream::connect(addr) else { return answered };
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    for n in first.. {
        let body = json!({"event": "e", "room": "lobby", "data": n}).to_string();
        let request = format!(
            "POST /api/notify HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(request.as_bytes()).is_err() {
            break;
        }
        match Response::read(&mut stream) {
            Some(answer) if answer.status == 200 => answered.push(n),
            _ => break,
        }
    }
    answered
}

/// All numbers that were published for the lobby before this.
fn published(subscription: &mut redis::PubSub<'_>, redis: &Redis) -> HashSet<u64> {
    redis.publish("ws:room:last", "{}");
    let mut numbers = HashSet::new();
    loop {
        let message = subscription.get_message().unwrap();
        if message.get_channel_name() == "ws:room:last" {
            return numbers;
        }
        let payload: Value = serde_json::from_slice(message.get_payload_bytes()).unwrap();
        numbers.insert(payload["data"].as_u64().unwrap());
    }
}

#[test]
fn what_was_answered_200_has_been_published() {
    const CALLERS: u64 = 8;
    let _machine = machine();
    let redis = Redis::start();
    let mut other = redis.connection();
    let mut subscription = other.as_pubsub();
    subscription.psubscribe("ws:room:*").unwrap();
    let token = token("backend", "service");
    let mut lost = Vec::new();
    for round in 0..10 {
        let service = start_on(&redis, &[]);
        let addr = service.addr();
        let answered: Vec<_> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    let (token, first) = (&token, (round * CALLERS + caller) * 1_000_000);
                    scope.spawn(move || notify_to_the_end(addr, token, first))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(200 + 13 * round));
            end(service);
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        let published = published(&mut subscription, &redis);
        assert!(!answered.is_empty(), "nothing was answered");
        let missing = answered.iter().filter(|number| !published.contains(number)).count();
        println!("round {round}: {} answered, {missing} of them not published", answered.len());
        lost.push(missing);
    }
    assert_eq!(lost.iter().sum::<usize>(), 0, "answered 200 and not published, by round: {lost:?}");
}

#[test]
fn a_backend_that_hangs_does_not_hold_the_end_up() {
    // It takes connections and answers nothing.
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", backend.local_addr().unwrap());
    let service = start(&[("BACKEND_URL", &url)]);
    let mut client = service.client("1", "");
    // Each waits three seconds for its answer: together longer than the shutdown may take.
    for n in 0..10 {
        client.send_json(&json!({"type": "join", "payload": {"room": format!("room-{n}")}}));
    }
    let _asked = backend.accept().unwrap();
    let signalled = Instant::now();
    service.signal("TERM");
    assert_eq!(client.next(), Frame::Close(1001, "going away".into()));
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
    client.send_close(1001);
    assert_eq!(client.next(), Frame::End);
    let (status, log) = service.wait();
    let took = signalled.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert_eq!(status.code(), Some(0), "after {took:?}: {:?}", log.last());
    // The Close handshake has its five seconds; a hanging question has no more.
    assert!(took < Duration::from_secs(8), "{took:?}");
}
