//! Verifies that an authorization backend which hangs, floods, redirects or dies costs a join at most
//! three seconds and others nothing, with at most 32 calls in flight.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use support::{ALLOW, Backend, Client, Service, full_size, hang, respond, until};

/// How a backend behaves towards rooms other than those of the bystanders, which it allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// Takes the question and says nothing.
    Hangs,
    /// Sends a byte of the answer's head now and then.
    Trickles,
    /// Sends headers without end.
    Floods,
    /// Announces and sends 1 GiB.
    Gigabyte,
    /// Redirects to itself.
    Redirects,
    /// Ends the connection within the answer.
    Cuts,
    /// Answers what is no JSON.
    Junk,
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, target: &str, manner: Manner) -> bool {
    if ["room=lobby&", "room=bystanders&"].iter().any(|room| target.contains(room)) {
        return respond(stream, "200 OK", ALLOW);
    }
    let repeat =
        |stream: &mut TcpStream, head: &str, part: &[u8], times: usize, pause: Duration| {
            let mut left = times;
            let mut alive = stream.write_all(head.as_bytes()).is_ok();
            while alive && left > 0 {
                std::thread::sleep(pause);
                alive = stream.write_all(part).is_ok();
                left -= 1;
            }
            false
        };
    let now = Duration::ZERO;
    match manner {
        Manner::Hangs => hang(stream),
        Manner::Trickles => {
            repeat(stream, "HTTP/1.1 200 OK\r\nX: ", b"x", 100, Duration::from_millis(100))
        }
        Manner::Floods => {
            repeat(stream, "HTTP/1.1 200 OK\r\n", &b"X: y\r\n".repeat(1000), 100_000, now)
        }
        Manner::Gigabyte => {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n{\"allowed\":";
            repeat(stream, head, &[b' '; 64 * 1024], 16 * 1024, now)
        }
        Manner::Redirects => respond(stream, "302 Found\r\nLocation: /redirected", ""),
        Manner::Cuts => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"al");
            false
        }
        Manner::Junk => respond(stream, "200 OK", "true"),
    }
}

/// Clients that each ask for a room of its own, at once; returns how long the last waited.
fn join_all(clients: &mut [Client], code: &str) -> Duration {
    let start = Instant::now();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send_json(&json!({"type": "join", "id": n, "payload": {"room": format!("r{n}")}}));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let answer = client.json();
        assert_eq!(
            (&answer["id"], &answer["payload"]["code"]),
            (&json!(n), &json!(code)),
            "{answer}"
        );
    }
    start.elapsed()
}

/// The longest way of a message between two members, until `done`.
fn longest_way(pair: &mut [Client; 2], mut done: impl FnMut() -> bool) -> Duration {
    let mut longest = Duration::ZERO;
    let mut n = 0;
    while !done() {
        let start = Instant::now();
        pair[0].broadcast("lobby", &json!(n));
        for client in pair.iter_mut() {
            assert_eq!(client.json()["body"], n);
        }
        longest = longest.max(start.elapsed());
        n += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    longest
}

/// Connections to the backend that the service has open, those kept for a next call included: the
/// sockets whose far end is `backend`, connecting or established (proc(5), `/proc/net/tcp`).
fn open_calls(backend: SocketAddr) -> usize {
    let far = format!("0100007F:{:04X}", backend.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_call = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(&far) && matches!(fields.next(), Some("01" | "02"))
    };
    table.lines().filter(is_call).count()
}

/// The smaller of two counts: the table is no snapshot, and shows old and new where many change in one moment.
fn open_calls_at_least(backend: SocketAddr) -> usize {
    open_calls(backend).min(open_calls(backend))
}

/// A backend of this manner under this many joins at once.
fn assert_harmless(manner: Manner, joins: usize, code: &str) -> Backend {
    let backend = Backend::start(move |target, stream| answer(stream, target, manner));
    let service = backend.service();
    let before = service.at_rest();
    let mut pair = [service.client("a", ""), service.client("b", "")];
    pair.iter_mut().for_each(|client| client.join("lobby"));
    let mut clients: Vec<_> = (0..joins).map(|n| service.client(&format!("u{n}"), "")).collect();
    let idle = service.rss_kib();
    let joining = std::thread::spawn({
        let code = code.to_owned();
        move || (join_all(&mut clients, &code), clients)
    });
    let mut open = 0;
    let longest = longest_way(&mut pair, || {
        open = open.max(open_calls_at_least(backend.addr()));
        joining.is_finished()
    });
    let (took, clients) = joining.join().unwrap();
    let most = backend.most_open();
    let grown = service.rss_kib().saturating_sub(idle);
    println!(
        "{manner:?}, {joins} joins: the last was answered after {took:?}, {open} calls were open at once (the backend saw {most}), \
         longest way of a message {longest:?}, RSS grew {grown} KiB"
    );
    // What the backend counts may be more: it learns late that a caller has given up.
    let callers = service.threads_named("authz-");
    assert!((1..=32).contains(&callers), "{callers} callers");
    assert!(open <= 32, "{open} calls were open at once");
    let slack = Duration::from_secs(if full_size() { 2 } else { 10 });
    assert!(took < Duration::from_secs(3) + slack, "{took:?}");
    assert!(longest < Duration::from_millis(if full_size() { 250 } else { 2000 }), "{longest:?}");
    assert!(grown < 64 * 1024, "RSS grew {grown} KiB");
    assert!(pair.iter_mut().all(|client| {
        client.assert_quiet();
        true
    }));
    drop((pair, clients));
    // Its 32 calling threads and their connections stay.
    service.assert_recovers((before.0 + 32, before.1 + 32));
    backend
}

fn joins() -> usize {
    if full_size() { 5000 } else { 200 }
}

#[test]
fn a_backend_that_hangs() {
    assert_harmless(Manner::Hangs, joins(), "server_error");
}

#[test]
fn a_backend_that_trickles() {
    assert_harmless(Manner::Trickles, 64, "server_error");
}

#[test]
fn a_backend_that_floods_headers() {
    assert_harmless(Manner::Floods, 64, "server_error");
}

#[test]
fn a_backend_that_answers_a_gigabyte() {
    assert_harmless(Manner::Gigabyte, 64, "server_error");
}

#[test]
fn a_backend_that_redirects() {
    let backend = assert_harmless(Manner::Redirects, 64, "not_authorized");
    let followed = backend.targets().iter().any(|target| target.contains("redirected"));
    assert!(!followed);
}

#[test]
fn a_backend_that_cuts_or_talks_junk() {
    assert_harmless(Manner::Cuts, 64, "server_error");
    assert_harmless(Manner::Junk, 64, "server_error");
}

#[test]
fn a_backend_that_dies_under_many_joins() {
    // Nothing listens there any more.
    let gone = support::free_port();
    let url = format!("http://127.0.0.1:{gone}");
    let service = Service::with(&[("BACKEND_URL", &url), ("RATE_LIMIT", "0")]);
    let before = service.idle();
    let mut clients: Vec<_> = (0..joins()).map(|n| service.client(&format!("u{n}"), "")).collect();
    let took = join_all(&mut clients, "server_error");
    println!("{} joins at a dead backend took {took:?}", clients.len());
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(service.http("GET", "/health", None, "").status == 200);
    drop(clients);
    until("threads are back", || service.threads() <= before.0 + 32);
    let lines = service.log().iter().filter(|line| line.contains("authorization backend")).count();
    assert!(lines < 30, "{lines} lines about one failure");
}

#[test]
fn equal_joins_share_one_call() {
    let backend = Backend::start(|_, stream| hang(stream));
    let service = backend.service();
    let mut clients: Vec<_> = (0..20).map(|_| service.client("same", "")).collect();
    let start = Instant::now();
    for client in &mut clients {
        client.send_json(&json!({"type": "join", "payload": {"room": "one"}}));
    }
    for client in &mut clients {
        assert_eq!(client.json()["payload"]["code"], "server_error");
    }
    assert_eq!(backend.targets().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}
