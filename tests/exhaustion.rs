//! Verifies that a service which runs out of connections, descriptors or threads refuses what is new,
//! keeps what it has, answers health where it can, and heals.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Client, Service, bearer, connect, handshake, read_to_end, token, until};

/// Tries to connect; the client, or the refusal's head.
fn attempt(service: &Service, user: &str) -> Result<Client, String> {
    let request = handshake("/ws", &bearer(&token(user, "")));
    match Client::try_connect(service.addr(), &request) {
        Some(client) if client.head.starts_with("HTTP/1.1 101 ") => Ok(client),
        Some(client) => Err(client.head),
        None => Err(String::new()),
    }
}

/// Connects up to `most` clients, until the service refuses one with 503.
fn fill(service: &Service, most: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for n in 0..most {
        match attempt(service, &format!("u{n}")) {
            Ok(client) => clients.push(client),
            Err(head) => {
                assert!(head.starts_with("HTTP/1.1 503 "), "{head:?}");
                assert!(head.contains("Retry-After: 1\r\n"), "{head}");
                return clients;
            }
        }
    }
    panic!("{most} clients were all taken");
}

/// What must hold of a service that is full of these clients, and when they leave.
fn assert_full_and_heals(service: &mut Service, mut clients: Vec<Client>) {
    for path in ["/health", "/ready"] {
        assert_eq!(service.http("GET", path, None, "").status, 200, "{path}, from the reserve");
    }
    let metrics = service.http("GET", "/metrics", Some(&token("ops", "admin")), "");
    assert_eq!(metrics.status, 200, "/metrics, from the reserve");
    let refused = service.http("GET", "/admin/clients", Some(&token("ops", "admin")), "");
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (503, "1"));
    let (last, rest) = clients.split_last_mut().unwrap();
    last.join("lobby");
    for client in rest {
        client.join("lobby");
    }
    clients[0].broadcast("lobby", &json!("full"));
    for client in &mut clients {
        assert_eq!(client.json()["body"], "full");
    }
    drop(clients);
    until("it heals", || attempt(service, "again").is_ok());
    until("it is empty", || service.threads_named("conn-") == 0);
    service.assert_serves();
    assert!(!service.has_ended());
}

/// Twice: so many connections are taken before one is refused, and all is as before when they have left.
fn assert_fills_and_heals(service: &mut Service, connections: Range<usize>) {
    let before = service.at_rest();
    for _ in 0..2 {
        let clients = fill(service, connections.end);
        assert!(connections.contains(&clients.len()), "{} connections", clients.len());
        assert_full_and_heals(service, clients);
        service.assert_recovers(before);
    }
}

#[test]
fn more_than_max_connections_get_503() {
    let mut service = Service::with(&[("MAX_CONNECTIONS", "20")]);
    assert_fills_and_heals(&mut service, 20..21);
}

/// Holds `most` silent connections, half of them with a started head, and opens 2,000 others each second in
/// place of the oldest, until it is dropped. Faster than the service accepts, and the kernel's queue would
/// overflow.
struct SilentPeers {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl SilentPeers {
    fn hold(service: &Service, most: usize) -> Self {
        let (stop, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (addr, stopped, count) = (service.addr(), Arc::clone(&stop), Arc::clone(&opened));
        let thread = std::thread::spawn(move || {
            let mut held = VecDeque::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut stream = connect(addr);
                if held.len() % 2 == 0 {
                    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n");
                }
                held.push_back(stream);
                count.fetch_add(1, Ordering::Relaxed);
                if held.len() > most {
                    held.pop_front();
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        });
        let peers = Self { stop, opened, thread: Some(thread) };
        until("they are there", || peers.opened.load(Ordering::Relaxed) > most);
        peers
    }
}

impl Drop for SilentPeers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// What a probe that gives up after a second sees, and how long it waited.
fn probe(service: &Service, path: &str) -> (String, Duration) {
    let start = Instant::now();
    let mut stream = connect(service.addr());
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let text = stream.write_all(request.as_bytes()).map(|()| read_to_end(&mut stream));
    (text.unwrap_or_default(), start.elapsed())
}

fn assert_health_is_quick(service: &Service) {
    for n in 0..100 {
        let (text, took) = probe(service, "/health");
        assert!(text.starts_with("HTTP/1.1 200 "), "probe {n} after {took:?}: {text:?}");
    }
}

#[test]
fn silent_peers_make_room_for_who_sends_a_head() {
    for connections in ["20", "1000"] {
        let service = Service::with(&[("MAX_CONNECTIONS", connections)]);
        let before = service.at_rest();
        let silent = SilentPeers::hold(&service, 2 * connections.parse::<usize>().unwrap());
        assert_health_is_quick(&service);
        let mut clients: Vec<_> = (0..10)
            .map(|n| attempt(&service, &format!("u{n}")).expect("a client that sends its head"))
            .collect();
        clients.iter_mut().for_each(|client| client.join("lobby"));
        clients[0].broadcast("lobby", &json!("among the silent"));
        for client in &mut clients {
            assert_eq!(client.json()["body"], "among the silent");
        }
        assert_eq!(service.notify(&json!({"event": "e", "broadcast": true})).status, 200);
        let metrics = service.http("GET", "/metrics", Some(&token("ops", "admin")), "").body;
        let evicted = metrics.lines().find_map(|l| l.strip_prefix("realtime_heads_evicted_total "));
        assert!(evicted.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
        drop((silent, clients));
        service.assert_recovers(before);
    }
}

#[test]
fn among_clients_silent_peers_hold_not_even_the_reserve() {
    let mut service = Service::with(&[("MAX_CONNECTIONS", "10")]);
    let before = service.at_rest();
    let clients = fill(&service, 11);
    let silent = SilentPeers::hold(&service, 100);
    assert_health_is_quick(&service);
    drop(silent);
    assert_full_and_heals(&mut service, clients);
    service.assert_recovers(before);
}

#[test]
fn sixteen_silent_peers_beyond_the_cap_leave_health_alone() {
    let mut service = Service::with(&[("MAX_CONNECTIONS", "10")]);
    let clients = fill(&service, 11);
    let silent: Vec<TcpStream> = (0..16).map(|_| connect(service.addr())).collect();
    for path in ["/health", "/ready"] {
        let (text, took) = probe(&service, path);
        assert!(text.starts_with("HTTP/1.1 200 "), "{path} after {took:?}: {text:?}");
    }
    drop(silent);
    assert_full_and_heals(&mut service, clients);
}

#[test]
fn few_descriptors_are_planned_for() {
    let wrapper = ["sh", "-c", r#"ulimit -n 200; exec "$0""#];
    let mut service = Service::spawn(Service::command_behind(&wrapper, &[]));
    assert!(service.log_line("lowered to").contains("RLIMIT_NOFILE is 200"));
    assert_fills_and_heals(&mut service, 50..200);
}

#[test]
fn descriptors_used_up_stop_the_accepting_only() {
    let mut service = Service::start();
    let mut pair = [service.client("a", ""), service.client("b", "")];
    pair.iter_mut().for_each(|client| client.join("lobby"));
    let before = service.descriptors();
    set_limit(&service, "--nofile", before);
    // They wait in the kernel's backlog; an accept for one of them fails.
    let waiting: Vec<_> = (0..20).map(|_| connect(service.addr())).collect();
    service.log_line("no connection can be accepted");
    for n in 0..20 {
        pair[0].broadcast("lobby", &json!(n));
        pair.iter_mut().for_each(|client| assert_eq!(client.json()["body"], n));
    }
    drop(waiting);
    set_limit(&service, "--nofile", 10_000);
    service.assert_serves();
    assert!(!service.has_ended());
    let lines = service.log().iter().filter(|line| line.contains("be accepted")).count();
    assert!(lines < 10, "{lines} lines for one shortage");
}

/// Sets a soft and hard limit of the running service.
fn set_limit(service: &Service, limit: &str, value: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &service.pid().to_string(), &format!("{limit}={value}:20000")])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A pids cgroup of the test's own, of whichever version there is.
struct PidsGroup(PathBuf);

impl PidsGroup {
    fn new(name: &str, most: usize) -> Self {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists());
        let root = root.expect("control groups are mounted under /sys/fs/cgroup");
        let group = Self(root.join(format!("realtime_service-{name}-{}", std::process::id())));
        if let Err(error) = std::fs::create_dir(&group.0) {
            panic!("this test needs root, to make {}: {error}", group.0.display());
        }
        group.limit(most);
        group
    }

    fn limit(&self, most: usize) {
        let file = self.0.join("pids.max");
        if let Err(error) = std::fs::write(&file, most.to_string()) {
            panic!("this test needs the pids controller, to write {}: {error}", file.display());
        }
    }

    fn used(&self) -> usize {
        std::fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap()
    }

    fn start(&self, settings: &[(&str, &str)]) -> Service {
        let procs = self.0.join("cgroup.procs");
        let enter = format!(r#"echo $$ > {} && exec "$0""#, procs.display());
        Service::spawn(Service::command_behind(&["sh", "-c", &enter], settings))
    }
}

impl Drop for PidsGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn few_threads_are_planned_for() {
    let group = PidsGroup::new("planned", 160);
    let mut service = group.start(&[]);
    assert!(service.log_line("lowered to").contains("pids.max of the cgroup is 160"));
    assert_fills_and_heals(&mut service, 20..160);
    drop(service);
}

#[test]
fn threads_used_up_refuse_what_is_new_only() {
    let group = PidsGroup::new("used-up", 1000);
    let mut service = group.start(&[("RATE_BYTES", "0")]);
    let before = service.at_rest();
    let mut pair = [service.client("a", ""), service.client("b", "")];
    pair.iter_mut().for_each(|client| client.join("lobby"));
    let idle_readers = |service: &Service| service.threads_named("conn-") == 2;
    until("only the pair is here", || idle_readers(&service));
    // Below what the capacity planned with: as if a neighbour had taken them all.
    group.limit(group.used());
    for _ in 0..20 {
        let head = attempt(&service, "c").err().expect("no thread for it");
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After"), "{head:?}");
    }
    // A stalled client finds no writer thread, and is cut without harm to the other.
    let filler =
        json!({"type": "broadcast", "payload": {"room": "lobby", "body": "x".repeat(7000)}});
    let no_writer = || service.log().iter().any(|line| line.contains("no writer left"));
    let (sender, stalled) = pair.split_at_mut(1);
    until("the stalled one is cut", || {
        sender[0].send_json(&filler);
        let text = sender[0].text();
        assert!(text.contains("xxx") || text.contains("rate_limited"), "{text}");
        no_writer()
    });
    assert!(stalled[0].text().contains("xxx"));
    sender[0].send(r#"{"type":"leave","payload":{"room":"lobby"}}"#);
    group.limit(1000);
    until("it heals", || attempt(&service, "c").is_ok());
    assert!(!service.has_ended());
    drop(pair);
    service.assert_recovers(before);
    drop(service);
}

#[test]
fn a_user_with_few_threads_is_planned_for() {
    let wrapper =
        ["prlimit", "--nproc=160", "setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"];
    let version = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args([env!("CARGO_BIN_EXE_realtime_service"), "--version"])
        .output()
        .unwrap();
    assert!(
        version.status.success(),
        "this test needs root, to become user 64321, and that this user may reach the binary: {}",
        String::from_utf8_lossy(&version.stderr)
    );
    let mut service = Service::spawn(Service::command_behind(&wrapper, &[]));
    assert!(service.log_line("lowered to").contains("RLIMIT_NPROC is 160"));
    assert_fills_and_heals(&mut service, 20..160);
}
