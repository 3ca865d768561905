//! Verifies that a peer which resets at any stage, or vanishes without a word, is let go of in time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use serde_json::json;
use socket2::SockRef;
use support::{
    Backend, Client, Frame, Service, bearer, connect, frame, full_size, handshake, token, until,
};

/// Ends the connection with RST.
fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    // The descriptor closes where the caller drops it, which sends RST.
}

#[test]
fn a_reset_at_every_byte_of_a_request_is_survived() {
    let service = Service::with(&[("HEAD_TIMEOUT", "5s")]);
    // For nobody: it may still be delivered when the reset is long over.
    let body = r#"{"event":"e","user_id":"nobody"}"#;
    let requests = [
        handshake("/ws", &bearer(&token("1", ""))),
        format!(
            "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            token("backend", "service"),
            body.len()
        ),
        "GET /health HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
    ];
    service.assert_unharmed_by(|service| {
        for request in &requests {
            for end in (0..=request.len()).step_by(3).chain([request.len()]) {
                let mut stream = connect(service.addr());
                stream.write_all(&request.as_bytes()[..end]).unwrap();
                reset(&stream);
            }
        }
    });
}

/// A member of the lobby.
fn member(service: &Service) -> Client {
    let mut client = service.client("victim", "");
    client.join("lobby");
    client
}

#[test]
fn a_reset_at_every_stage_of_a_websocket_is_survived() {
    let service = Service::with(&[("RATE_LIMIT", "0"), ("MAX_CONNECTIONS_PER_USER", "0")]);
    let broadcast =
        json!({"type": "broadcast", "payload": {"room": "lobby", "body": 1}}).to_string();
    let bytes = frame(0x81, broadcast.as_bytes());
    service.assert_unharmed_by(|service| {
        for end in 0..=bytes.len() {
            let mut client = member(service);
            client.send_bytes(&bytes[..end]);
            reset(client.stream());
        }
        for behind in [frame(0x88, b"\x03\xe8"), frame(0x89, b"ping"), b"\x81\x02hi".to_vec()] {
            let mut client = member(service);
            client.send_bytes(&behind);
            reset(client.stream());
        }
        // With answers on their way, and with a backlog and its writer.
        let mut client = member(service);
        client.send_bytes(&bytes.repeat(1000));
        reset(client.stream());
        drop(client);
        let mut stalled = service.narrow_client("victim");
        stalled.join("lobby");
        let filler = json!({"event": "e", "room": "lobby", "data": "x".repeat(60_000)});
        until("a writer works on the backlog", || {
            assert_eq!(service.notify(&filler).status, 200);
            service.threads_named("writer-") > 0
        });
        reset(stalled.stream());
        drop(stalled);
        until("the lobby is empty", || service.counts() == json!({"clients": 0, "rooms": {}}));
    });
}

#[test]
fn a_reset_within_a_backend_call_is_survived() {
    let (release, released) = unbounded::<()>();
    let backend = Backend::deciding(move |_| released.recv().is_ok());
    let service = backend.service();
    let before = service.idle();
    let mut client = service.client("1", "");
    client.send_json(&json!({"type": "join", "payload": {"room": "lobby"}}));
    backend.wait_for_calls(1);
    reset(client.stream());
    drop(client);
    until("the connection has ended", || service.threads_named("conn-") == 0);
    release.send(()).unwrap();
    until("all is back", || {
        service.threads() <= before.0 + 1 && service.descriptors() <= before.1 + 1
    });
    assert_eq!(service.counts(), json!({"clients": 0, "rooms": {}}));
}

#[test]
fn a_peer_that_ends_its_half_is_closed() {
    let service = Service::start();
    service.assert_unharmed_by(|service| {
        let mut client = member(service);
        client.end_sending();
        assert_eq!(client.next(), Frame::End);
    });
}

/// A network of two ends: the service in a namespace of its own, the test outside.
struct Wire {
    name: String,
}

/// Where the service is on the wire; the test has the address before it. A block that is reserved for
/// benchmarks of networks (RFC 2544), so that it hides nothing of the machine's.
const FAR_END: &str = "198.18.7.2";

impl Wire {
    fn new() -> Self {
        let wire = Self { name: format!("rt{}", std::process::id()) };
        let (name, inner) = (wire.name.as_str(), format!("{}i", wire.name));
        for command in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name {inner} netns {name}"),
            format!("addr add 198.18.7.1/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {FAR_END}/30 dev {inner}"),
            format!("-n {name} link set {inner} up"),
            format!("-n {name} link set lo up"),
        ] {
            let output = ip(&command.split(' ').collect::<Vec<_>>());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "this test needs root, for ip {command}: {said}");
        }
        wire
    }

    /// Runs the service on the far end; returns its address there too.
    fn start(&self, settings: &[(&str, &str)]) -> (Service, std::net::SocketAddr) {
        let wrapper = ["ip", "netns", "exec", &self.name];
        let mut command = Service::command_behind(&wrapper, settings);
        command.env("BIND_ADDR", FAR_END);
        let service = Service::spawn(command);
        let addr = service.addr();
        (service, addr)
    }

    /// From now on no packet passes, and neither end is told.
    fn cut(&self) {
        // Both sides keep their interface, so that packets are sent and get lost.
        let rules = "table inet lost {
            chain out { type filter hook output priority 0; policy drop; }
            chain in { type filter hook input priority 0; policy drop; }
        }";
        let output = ip(&["netns", "exec", &self.name, "nft", rules]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft, of the package nftables: {said}");
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for kind in ["link", "netns"] {
            let _ = Command::new("ip").args([kind, "del", &self.name]).output();
        }
    }
}

fn ip(arguments: &[&str]) -> Output {
    Command::new("ip").args(arguments).output().expect("ip is installed, of the package iproute2")
}

#[test]
fn a_peer_that_lost_its_power_is_cut_within_two_ping_intervals_and_a_second() {
    let wire = Wire::new();
    let (service, addr) = wire.start(&[("PING_INTERVAL", "2s"), ("HEAD_TIMEOUT", "2s")]);
    let mut idle = Client::connect(addr, &token("idle", ""));
    idle.join("lobby");
    let mut busy = Client::connect(addr, &token("busy", ""));
    busy.join("lobby");
    busy.broadcast("lobby", &json!(1));
    assert_eq!((&busy.json()["body"], &idle.json()["body"]), (&json!(1), &json!(1)));
    let mut half = connect(addr);
    half.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    until("all are here", || service.threads_named("conn-") == 3);

    wire.cut();
    let lost = Instant::now();
    let dead = || service.log().iter().filter(|line| line.contains("dead peer")).count();
    until("both are cut", || dead() == 2);
    let took = lost.elapsed();
    println!("cut {took:?} after the power was lost, at a ping interval of 2 s");
    let slack = Duration::from_secs(if full_size() { 0 } else { 5 });
    assert!(took < Duration::from_millis(5100) + slack, "{took:?}");
    until("no thread is left", || service.threads_named("conn-") == 0);
}
