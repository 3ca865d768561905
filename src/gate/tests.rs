//! Verifies the gate with raw bytes on real sockets: what is served, refused, cut, and when.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

use super::*;
use crate::auth::{Authorizer, Verifier};
use crate::bridge::BridgeState;
use crate::config::{AllowedOrigins, KIB, MIB, RESERVE_CONNECTIONS, RoomPolicy};
use crate::hub::{Counts, Event, HubHandle};
use crate::metrics::{Counters, Metrics};
use crate::runtime::channel;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gate with a hub that counts 7 connections for each notification.
struct Rig {
    gate: Option<Gate>,
    threads: Threads,
    /// Upgrades, handed over by connection threads that wait until they are let go.
    upgrades: Receiver<(Upgrade, Sender<()>)>,
}

/// Signs the tokens.
const SECRET: &str = "a secret of the tests";

fn config() -> Config {
    Config {
        bind: "127.0.0.1:0".parse().unwrap(),
        max_connections: 1000,
        head_timeout: PATIENCE,
        body_timeout: PATIENCE,
        write_timeout: PATIENCE,
        allowed_origins: AllowedOrigins::List(vec!["https://shop.example".into()]),
        ..Config::new(SECRET)
    }
}

/// A good token of this role, until 2100.
fn token(role: &str) -> String {
    let claims = json!({"sub": "u", "role": role, "exp": 4_102_444_800_u64});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn count_seven(events: &channel::Receiver<Event>) {
    while let Ok(event) = events.recv() {
        match event {
            Event::Notify(notify) => {
                let _ = notify.reply.send(vec![7; notify.deliveries.len()]);
            }
            Event::Counts(reply) => {
                let room = |n| crate::protocol::Room::parse(&format!("order-{n:08}")).unwrap();
                let rooms = (0..40_000).map(|n| (room(n), 1)).collect();
                let _ = reply.send(Counts { clients: 1, rooms, rooms_total: 40_000 });
            }
            _ => {}
        }
    }
}

impl Rig {
    fn start(config: Config) -> Self {
        Self::with(config, count_seven, || BridgeState::Disabled)
    }

    fn with(
        config: Config,
        hub: impl FnOnce(&channel::Receiver<Event>) + Send + 'static,
        redis_state: fn() -> BridgeState,
    ) -> Self {
        let threads = Threads::default();
        let (events, received) = channel::bounded(16);
        threads.spawn("hub", move || hub(&received)).unwrap();
        let hub = HubHandle::new(events);
        let counters = Counters::default();
        let authorizer = Authorizer::rules(RoomPolicy::Open);
        let parts = RestParts {
            metrics: Metrics::new(&counters, hub.clone(), &authorizer, None),
            counters,
            instance: "test".into(),
            hub,
            verifier: Arc::new(Verifier::new(&config.jwt).unwrap()),
            redis_state: Arc::new(redis_state),
        };
        let (upgraded, upgrades) = unbounded();
        let on_upgrade = move |upgrade| {
            let (let_go, wait) = bounded(0);
            upgraded.send((upgrade, let_go)).unwrap();
            let _ = wait.recv();
        };
        let gate = Gate::start(Arc::new(config), &threads, parts, Arc::new(on_upgrade)).unwrap();
        Self { gate: Some(gate), threads, upgrades }
    }

    fn gate(&self) -> &Gate {
        self.gate.as_ref().unwrap()
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.gate().addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, bytes: Vec::new() }
    }

    /// A connection that is handed over as a WebSocket.
    fn upgraded(&self) -> (Client, Upgrade, Sender<()>) {
        let mut client = self.connect();
        client.send(get("/ws"));
        let (upgrade, let_go) = self.upgrades.recv_timeout(PATIENCE).unwrap();
        (client, upgrade, let_go)
    }

    /// One request on a connection of its own.
    fn ask(&self, request: &str) -> Reply {
        let mut client = self.connect();
        client.send(request);
        client.reply()
    }

    fn wait_for_connections(&self, expected: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.gate().connections() != expected {
            assert!(Instant::now() < deadline, "{} connections", self.gate().connections());
            std::thread::yield_now();
        }
    }
}

impl Drop for Rig {
    /// Every test also verifies that all threads end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.upgrades.try_recv().is_ok() {}
        self.gate().close();
        let of_connections = |name: &str| name == "gate" || name.starts_with("conn-");
        self.threads.wait(deadline, of_connections).unwrap();
        assert_eq!(self.gate().connections(), 0);
        self.gate = None;
        self.threads.wait(deadline, |_| true).unwrap();
    }
}

struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn has(&self, line: &str) -> bool {
        self.head.lines().any(|l| l.eq_ignore_ascii_case(line))
    }

    /// An error of the gate: JSON, and the connection closes.
    fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let start = format!(r#"{{"status":"error","error":"{code}","message":""#);
        assert!(self.body.starts_with(&start), "{self:?}");
        assert!(self.has("Connection: close"), "{self:?}");
        assert!(self.has("Content-Type: application/json"), "{self:?}");
        if status == 503 {
            assert!(self.has("Retry-After: 1"), "{self:?}");
        }
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn more(&mut self) -> usize {
        let mut chunk = [0; 16 * KIB];
        let read = self.stream.read(&mut chunk).unwrap();
        self.bytes.extend_from_slice(&chunk[..read]);
        read
    }

    fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                return String::from_utf8(self.bytes.drain(..end + 4).collect()).unwrap();
            }
            assert!(self.more() > 0, "ended in {:?}", String::from_utf8_lossy(&self.bytes));
        }
    }

    fn reply(&mut self) -> Reply {
        let head = self.head();
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("Content-Length: "))
            .map_or(0, |n| n.parse().unwrap());
        while self.bytes.len() < length {
            assert!(self.more() > 0, "ended in a body of {length} bytes after {head}");
        }
        let body = String::from_utf8(self.bytes.drain(..length).collect()).unwrap();
        Reply { status: head[9..12].parse().unwrap(), head, body }
    }

    /// Nothing more comes: the gate ended the connection in order.
    fn assert_ended(&mut self) {
        let more = self.more();
        assert_eq!(more, 0, "{:?}", String::from_utf8_lossy(&self.bytes));
        assert!(self.bytes.is_empty(), "{:?}", String::from_utf8_lossy(&self.bytes));
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A request of this role.
fn notify(role: &str, body: &str) -> String {
    notify_with(&token(role), body)
}

fn notify_with(token: &str, body: &str) -> String {
    format!(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: beAREr {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const ONE: &str = r#"{"event":"e","room":"order-1"}"#;

#[test]
fn the_routes_answer() {
    let rig = Rig::start(config());
    let health = rig.ask(&get("/health?x"));
    assert_eq!(health.status, 200);
    assert_eq!(
        health.body,
        r#"{"status":"healthy","service":"realtime_service","redis":"disabled"}"#
    );
    assert!(health.has("Content-Type: application/json") && health.has("Vary: Origin"));
    assert!(!health.has("Connection: close") && health.has("Server: realtime_service"));
    assert_eq!(rig.ask(&get("/ready")).status, 200);
    let missing = rig.ask(&get("/nothing"));
    assert_eq!(missing.status, 404);
    assert!(missing.body.contains(r#""error":"not_found""#));
    let wrong = rig.ask("DELETE /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(wrong.status, 405);
    assert!(wrong.has("Allow: GET, HEAD, OPTIONS"));
    assert!(rig.ask(&get("/api/notify")).has("Allow: POST, OPTIONS"));
}

#[test]
fn head_is_like_get_without_a_body() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    client.send("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send(get("/health"));
    let head = client.head();
    assert!(head.contains("\r\nContent-Length: 68\r\n"), "{head}");
    assert_eq!(client.reply().body.len(), 68);
    client.send("HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 404 "));
    client.send("HEAD /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 400 "));
    client.assert_ended();
}

#[test]
fn preflights_and_origins() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    client.send(
        "OPTIONS /api/notify HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\
         Access-Control-Request-Method: POST\r\n\r\n",
    );
    let reply = client.reply();
    assert_eq!(reply.status, 204);
    for line in [
        "Access-Control-Allow-Origin: https://shop.example",
        "Vary: Origin",
        "Access-Control-Allow-Methods: POST, OPTIONS",
        "Access-Control-Allow-Headers: Authorization, Content-Type",
    ] {
        assert!(reply.has(line), "{line} in {reply:?}");
    }
    assert!(!reply.head.to_ascii_lowercase().contains("content-length"), "{reply:?}");
    client.send("GET /health HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n");
    let reply = client.reply();
    assert!(reply.status == 200 && !reply.head.contains("Allow-Origin"), "{reply:?}");
    // Errors of the gate carry them too, so that a page can read them.
    client.send(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\
         Content-Length: 99999999\r\n\r\n",
    );
    let reply = client.reply();
    assert_eq!(reply.status, 401);
    assert!(reply.has("Access-Control-Allow-Origin: https://shop.example"));
}

#[test]
fn notify_needs_a_role_and_answers_counts() {
    let rig = Rig::start(config());
    let ask = |token: &str, body: &str| rig.ask(&notify(token, body));
    let sent = ask("service", ONE);
    assert_eq!(sent.status, 200);
    assert_eq!(sent.body, r#"{"status":"success","message":"Notification sent","delivered":7}"#);
    let batch = ask("admin", &format!("[{ONE},{ONE}]"));
    assert!(batch.body.ends_with(r#""delivered":[7,7]}"#), "{batch:?}");
    let bad = ask("admin", r#"[{"event":"e","room":"a"},{"event":"","room":"a"}]"#);
    assert_eq!(bad.status, 400);
    assert!(bad.body.contains(r#""message":"notifications[1].event: "#), "{bad:?}");
    let forged = rig.ask(&notify_with("forged", ONE));
    assert_eq!(forged.status, 401);
    assert!(forged.has("WWW-Authenticate: Bearer"));
    assert!(
        forged.body.contains(r#""error":"invalid_token","message":"invalid token""#),
        "{forged:?}"
    );
    assert_eq!(rig.ask(&notify_with("a b", ONE)).status, 401);
    assert_eq!(ask("client", ONE).status, 403);
    assert_eq!(rig.ask(&get("/admin/clients")).status, 401);
    let long = "x".repeat(60_000);
    let large = format!(r#"{{"event":"e","broadcast":true,"data":"{long}"}}"#);
    assert_eq!(ask("admin", &large).status, 200);
    assert_eq!(ask("admin", &large.replace(&long, &"x".repeat(65_536))).status, 400);
}

#[test]
fn api_auth_off_asks_for_no_token() {
    let rig = Rig::start(Config { api_auth: false, ..config() });
    let body = format!(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{ONE}",
        ONE.len()
    );
    assert_eq!(rig.ask(&body).status, 200);
    let counts = rig.ask(&get("/admin/clients"));
    assert!(counts.body.starts_with(r#"{"clients":1,"rooms":{"order-00000000":1,"#));
}

#[test]
fn a_panic_in_a_handler_costs_an_answer_not_a_thread() {
    let rig = Rig::with(config(), count_seven, || panic!("on purpose"));
    for _ in 0..2 * crate::config::REST_CONNECTIONS {
        assert_eq!(rig.ask(&get("/health")).status, 500);
    }
    assert_eq!(rig.ask(&notify("admin", ONE)).status, 200);
}

#[test]
fn connections_are_kept_and_pipelined_requests_answered_in_order() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    client.send([get("/health"), notify("admin", ONE), get("/nothing"), get("/ready")].concat());
    for expected in [200, 200, 404, 200] {
        assert_eq!(client.reply().status, expected);
    }
    let split = notify("admin", ONE);
    for part in [&split[..7], &split[7..60], &split[60..split.len() - 3], &split[split.len() - 3..]]
    {
        client.send(part);
    }
    assert_eq!(client.reply().status, 200);
    client.send("GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(client.reply().has("Connection: close"));
    client.assert_ended();
    let mut old = rig.connect();
    old.send("GET /health HTTP/1.0\r\n\r\n");
    assert!(old.reply().has("Connection: close"));
    old.assert_ended();
}

#[test]
fn a_refused_head_ends_the_connection_without_a_second_answer() {
    let rig = Rig::start(Config { api_auth: false, ..config() });
    let post = |headers: &str| format!("POST /api/notify HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    let smuggled = get("/health");
    for (request, status, code) in [
        (post("Content-Length: 0\r\nContent-Length: 44\r\n"), 400, "bad_request"),
        (post("Content-Length: 44, 0\r\n"), 400, "bad_request"),
        (post("Content-Length: -1\r\n"), 400, "bad_request"),
        (post("Content-Length: +1\r\n"), 400, "bad_request"),
        (post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"), 400, "bad_request"),
        (post("Transfer-Encoding: chunked\r\n"), 501, "not_implemented"),
        (post("Transfer-Encoding: \x0bchunked\r\n"), 400, "bad_request"),
        (post("Content-Length : 4\r\n"), 400, "bad_request"),
        (post("X: a\r\n Content-Length: 4\r\n"), 400, "bad_request"),
        (post("X: a\nContent-Length: 4\r\n"), 400, "bad_request"),
        (post("X: a\rContent-Length: 4\r\n"), 400, "bad_request"),
        (post(""), 411, "length_required"),
        (post("Content-Length: 1048577\r\n"), 413, "payload_too_large"),
        (post("Content-Length: 4611686018427387904\r\n"), 413, "payload_too_large"),
        (post("Content-Length: 99999999999999999999999\r\n"), 413, "payload_too_large"),
        ("GET / HTTP/2.0\r\n\r\n".into(), 505, "version_not_supported"),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400, "bad_request"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9000)), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(20_000)), 431, "headers_too_large"),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(65)), 431, "headers_too_large"),
        ("\x16\x03\x01\x02\x01".into(), 400, "bad_request"),
        ("GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n".into(), 400, "bad_request"),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n".into(), 404, "not_found"),
        (
            "PUT /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n".into(),
            405,
            "method_not_allowed",
        ),
        (
            "POST /api/notify HTTP/1.1\r\nHost: a\r\nExpect: gold\r\nContent-Length: 4\r\n\r\n"
                .into(),
            417,
            "expectation_failed",
        ),
    ] {
        let mut client = rig.connect();
        client.send(format!("{request}{smuggled}"));
        client.reply().assert_refused(status, code);
        client.assert_ended();
    }
}

#[test]
fn a_peer_that_uploads_too_much_still_reads_the_refusal() {
    let rig = Rig::start(Config { api_auth: false, ..config() });
    let mut client = rig.connect();
    client.send("POST /api/notify HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n");
    client.send(vec![b'x'; 8 * MIB]);
    client.reply().assert_refused(413, "payload_too_large");
    client.assert_ended();
}

#[test]
fn expect_is_answered_once_the_head_is_accepted() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    let request = notify("admin", ONE).replace("\r\n\r\n", "\r\nExpect: 100-Continue\r\n\r\n");
    let (head, body) = request.split_at(request.len() - ONE.len());
    client.send(head);
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(body);
    assert_eq!(client.reply().status, 200);
    // The body is there already: nothing to continue.
    client.send(&request);
    assert_eq!(client.reply().status, 200);
    client.send(head.replace("Content-Length: ", "Content-Length: 99999"));
    client.reply().assert_refused(413, "payload_too_large");
}

#[test]
fn an_upgrade_gets_the_raw_socket_also_after_rest() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    client.send(get("/health"));
    assert_eq!(client.reply().status, 200);
    client.send(format!("{}early", get("/ws?token=t")));
    let (upgrade, let_go) = rig.upgrades.recv_timeout(PATIENCE).unwrap();
    assert_eq!((upgrade.head.path(), upgrade.head.query()), ("/ws", Some("token=t")));
    assert_eq!(upgrade.early, b"early");
    assert_eq!((upgrade.number, upgrade.peer), (1, client.stream.local_addr().unwrap()));
    assert_eq!(upgrade.stream.read_timeout().unwrap(), None);
    (&upgrade.stream).write_all(b"hello").unwrap();
    client.bytes.resize(5, 0);
    client.stream.read_exact(&mut client.bytes).unwrap();
    assert_eq!(client.bytes, b"hello");
    assert_eq!(rig.gate().connections(), 1);
    drop(upgrade);
    drop(let_go);
    rig.wait_for_connections(0);
    // Any method, but no other path.
    assert_eq!(rig.ask(&get("/ws/")).status, 404);
    let mut client = rig.connect();
    client.send("PURGE /ws HTTP/1.1\r\nHost: a\r\n\r\n");
    let (upgrade, _) = rig.upgrades.recv_timeout(PATIENCE).unwrap();
    assert_eq!(upgrade.head.method(), "PURGE");
}

#[test]
fn accepted_sockets_inherit_the_options_of_the_listener() {
    let rig = Rig::start(config());
    let mut client = rig.connect();
    client.send(get("/ws"));
    let (upgrade, _) = rig.upgrades.recv_timeout(PATIENCE).unwrap();
    let socket = SockRef::from(&upgrade.stream);
    // The kernel doubles what is set, for its own bookkeeping.
    assert_eq!(socket.send_buffer_size().unwrap(), 2 * SOCKET_SEND_BUFFER_BYTES);
    assert_eq!(socket.recv_buffer_size().unwrap(), 2 * SOCKET_RECEIVE_BUFFER_BYTES);
    assert!(upgrade.stream.nodelay().unwrap());
}

#[test]
fn late_heads_get_408_and_silence_a_silent_close() {
    let timeout = Duration::from_millis(400);
    let rig = Rig::start(Config { head_timeout: timeout, ..config() });
    let started = Instant::now();
    let mut silent = rig.connect();
    let mut half = rig.connect();
    half.send("GET /health HTT");
    let mut kept = rig.connect();
    kept.send(get("/health"));
    assert_eq!(kept.reply().status, 200);
    half.reply().assert_refused(408, "request_timeout");
    assert!(started.elapsed() >= timeout);
    half.assert_ended();
    silent.assert_ended();
    kept.assert_ended();
    // One byte now and then is no excuse.
    let mut slow = rig.connect();
    let mut dripping = slow.stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        for byte in get("/health?aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").bytes() {
            std::thread::sleep(timeout / 20);
            if dripping.write_all(&[byte]).is_err() {
                break;
            }
        }
    });
    slow.reply().assert_refused(408, "request_timeout");
    slow.assert_ended();
    drop(slow);
    drip.join().unwrap();
}

#[test]
fn late_bodies_get_408() {
    let rig = Rig::start(Config { body_timeout: Duration::from_millis(300), ..config() });
    let mut client = rig.connect();
    let request = notify("admin", ONE);
    client.send(&request[..request.len() - 1]);
    client.reply().assert_refused(408, "request_timeout");
    client.assert_ended();
}

#[test]
fn beyond_the_cap_probes_are_served_from_the_reserve_and_all_heals() {
    let rig = Rig::start(Config { max_connections: 2, ..config() });
    let regular: Vec<_> = (0..2).map(|_| rig.upgraded()).collect();
    let health = rig.ask(&get("/health"));
    assert!(health.status == 200 && health.has("Connection: close"), "{health:?}");
    assert_eq!(rig.ask(&get("/ready")).status, 200);
    rig.ask(&notify("admin", ONE)).assert_refused(503, "service_unavailable");
    rig.ask(&get("/ws")).assert_refused(503, "service_unavailable");
    rig.wait_for_connections(2);
    let reserve: Vec<_> = (0..RESERVE_CONNECTIONS).map(|_| rig.connect()).collect();
    rig.wait_for_connections(2 + RESERVE_CONNECTIONS);
    // They are silent, so one of them makes room.
    assert_eq!(rig.ask(&get("/health")).status, 200);
    drop((regular, reserve));
    rig.wait_for_connections(0);
    assert_eq!(rig.ask(&notify("admin", ONE)).status, 200);
}

#[test]
fn who_waits_longest_makes_room_first() {
    let rig = Rig::start(Config { max_connections: 3, ..config() });
    let wait_for = |waiting| {
        let deadline = Instant::now() + PATIENCE;
        while rig.gate().context.permits.waiting() != waiting {
            assert!(Instant::now() < deadline, "{waiting} never wait");
            std::thread::yield_now();
        }
    };
    let mut silent = rig.connect();
    wait_for(1);
    let mut half = rig.connect();
    half.send("GET /health HTTP/1.1\r\nHo");
    wait_for(2);
    let mut kept = rig.connect();
    kept.send(get("/health"));
    assert_eq!(kept.reply().status, 200);
    wait_for(3);
    let served = rig.upgraded();
    silent.assert_ended();
    let mut last = rig.connect();
    half.assert_ended();
    wait_for(2);
    // Waits since its last response, and so longer than the one that came after that.
    assert_eq!(rig.ask(&get("/ready")).status, 200);
    kept.assert_ended();
    last.send(get("/health"));
    assert_eq!(last.reply().status, 200);
    assert_eq!(rig.gate().context.counters.heads_evicted.get(), 3);
    drop(served);
}

#[test]
fn a_silent_reserve_connection_is_soon_cut() {
    let rig = Rig::start(Config { max_connections: 0, ..config() });
    let mut client = rig.connect();
    let started = Instant::now();
    client.send("GET /hea");
    client.reply().assert_refused(408, "request_timeout");
    assert!(started.elapsed() < PATIENCE / 2);
}

#[test]
fn draining_ends_idle_connections_and_refuses_new_requests() {
    let rig = Rig::start(config());
    let mut idle = rig.connect();
    idle.send(get("/health"));
    assert_eq!(idle.reply().status, 200);
    let fresh = rig.connect();
    let mut half = rig.connect();
    half.send(&get("/api/notify")[..10]);
    rig.wait_for_connections(3);
    rig.gate().drain();
    idle.assert_ended();
    let health = rig.ask(&get("/health"));
    assert!(health.status == 200 && health.has("Connection: close"), "{health:?}");
    rig.ask(&get("/ready")).assert_refused(503, "service_unavailable");
    rig.ask(&get("/ws")).assert_refused(503, "service_unavailable");
    rig.ask(&notify("admin", ONE)).assert_refused(503, "service_unavailable");
    half.send(&get("/api/notify")[10..]);
    half.reply().assert_refused(503, "service_unavailable");
    drop(fresh);
}

#[test]
fn a_running_request_finishes_while_the_gate_drains() {
    let (taken, is_taken) = bounded(1);
    let (go, wait) = bounded(1);
    let hub = move |events: &channel::Receiver<Event>| {
        let Ok(Event::Notify(notify)) = events.recv() else { panic!("not a notification") };
        taken.send(()).unwrap();
        wait.recv().unwrap();
        notify.reply.send(vec![7]).unwrap();
    };
    let rig = Rig::with(config(), hub, || BridgeState::Disabled);
    let mut client = rig.connect();
    client.send(notify("admin", ONE));
    is_taken.recv_timeout(PATIENCE).unwrap();
    rig.gate().drain();
    rig.gate().close();
    assert_eq!(rig.gate().wait_for_requests(Instant::now()), Err(1));
    go.send(()).unwrap();
    assert_eq!(rig.gate().wait_for_requests(Instant::now() + PATIENCE), Ok(()));
    let reply = client.reply();
    assert!(reply.status == 200 && reply.has("Connection: close"), "{reply:?}");
    client.assert_ended();
}

#[test]
fn bodies_may_still_come_for_a_second_once_the_gate_drains() {
    let rig = Rig::start(config());
    let request = notify("admin", ONE);
    let request = request.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let (head, body) = request.split_at(request.len() - ONE.len());
    let mut clients = [rig.connect(), rig.connect()];
    for client in &mut clients {
        client.send(head);
        assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    }
    rig.gate().drain();
    let [prompt, silent] = &mut clients;
    prompt.send(body);
    let reply = prompt.reply();
    assert!(reply.status == 200 && reply.has("Connection: close"), "{reply:?}");
    assert_eq!(rig.gate().wait_for_requests(Instant::now()), Err(1));
    assert_eq!(rig.gate().wait_for_requests(Instant::now() + PATIENCE), Ok(()));
    silent.reply().assert_refused(503, "service_unavailable");
    assert_eq!(rig.ask(&get("/health")).status, 200);
}

#[test]
fn closing_frees_the_port_and_the_private_socket() {
    let rig = Rig::start(config());
    let directory = rig.gate().context.pool.path().parent().unwrap().to_owned();
    let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let addr = rig.gate().addr();
    let mut waiting = rig.connect();
    rig.wait_for_connections(1);
    rig.gate().close();
    rig.threads.wait(Instant::now() + PATIENCE, |name| name == "gate").unwrap();
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    waiting.assert_ended();
    drop(rig);
    assert!(!directory.exists());
}

#[test]
fn a_peer_that_does_not_read_its_answer_is_cut_and_delays_nobody() {
    let write_timeout = Duration::from_secs(1);
    let rig = Rig::start(Config { write_timeout, api_auth: false, ..config() });
    let mut stalled: Vec<_> = (0..8).map(|_| rig.connect()).collect();
    for client in &mut stalled {
        client.send(get("/admin/clients"));
    }
    let mut client = rig.connect();
    client.send(get("/health"));
    assert_eq!(client.reply().status, 200);
    rig.wait_for_connections(1);
    drop(stalled);
}

#[test]
fn only_checked_headers_reach_tiny_http() {
    let bytes = b"PUT http://x/a?b=c HTTP/1.1\r\nHost: a\r\nX-Realtime-Peer: 6.6.6.6:6\r\n\
        X-Realtime-Connection: 6\r\nX-Realtime-User: admin\r\n\
        Connection: close, upgrade\r\nUpgrade: x\r\nTE: chunked\r\nExpect: 100-continue\r\n\
        Keep-Alive: 5\r\ncontent-length: 007\r\nauthorization: Bearer  x\t\r\nCookie: \xc3\xa4\r\n\r\n";
    let (head, _) = Head::parse(bytes).unwrap().unwrap();
    let caller = Verifier::new(&config().jwt).unwrap().verify(&token("admin")).unwrap();
    let request = forward::request(&head, "127.0.0.1:9".parse().unwrap(), 1, Some(&caller));
    assert_eq!(
        String::from_utf8(request).unwrap(),
        "PUT /a?b=c HTTP/1.1\r\nX-Realtime-Peer: 127.0.0.1:9\r\nX-Realtime-Connection: 1\r\n\
         X-Realtime-User: u\r\nContent-Length: 7\r\n\r\n"
    );
}

#[test]
fn a_broken_link_is_replaced() {
    let (socket, listener) = PrivateSocket::bind().unwrap();
    let server = std::thread::spawn(move || {
        let accept = |listener: &UnixListener| listener.accept().unwrap().0;
        let first: Vec<_> =
            (0..crate::config::REST_CONNECTIONS).map(|_| accept(&listener)).collect();
        drop(first);
        let mut second = accept(&listener);
        let mut request = [0; 64];
        let length = second.read(&mut request).unwrap();
        assert_eq!(&request[..length], b"request");
        second.write_all(b"HTTP/1.1 200 OK\r\nContent-").unwrap();
        second.write_all(b"Length: 2\r\n\r\no").unwrap();
        second.write_all(b"k").unwrap();
    });
    let pool = Pool::connect(socket.path()).unwrap();
    for _ in 0..crate::config::REST_CONNECTIONS {
        let refused = pool.exchange(b"request".to_vec(), false).unwrap_err();
        assert_eq!(refused.status(), 503);
    }
    let mut answered = pool.exchange(b"request".to_vec(), false).unwrap();
    answered.add_header("Connection", "close");
    assert_eq!(
        String::from_utf8(answered.bytes().to_vec()).unwrap(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    server.join().unwrap();
}
