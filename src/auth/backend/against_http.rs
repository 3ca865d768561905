//! Verifies the backend mode against a real HTTP server on loopback that can misbehave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::call::{CallError, Caller};
use super::{Backend, Question, Settings};
use crate::auth::{Authorizer, Identity, Judge, Verdict};
use crate::config::BACKEND_CALLS;
use crate::protocol::{Id, Room};
use crate::runtime::threads::Threads;

/// Long enough for a busy machine; no test waits for it when all is well.
const LONG: Duration = Duration::from_secs(60);

/// A server with one thread for each connection, which keeps connections alive.
struct HttpServer {
    addr: SocketAddr,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    targets: Mutex<Vec<String>>,
    calls: Mutex<usize>,
    most_calls: AtomicUsize,
    changed: Condvar,
    stopping: AtomicBool,
}

impl Log {
    fn begin(&self, target: &str) {
        self.targets.lock().unwrap().push(target.to_owned());
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        self.most_calls.fetch_max(*calls, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn wait_for_calls(&self, wanted: usize) {
        let calls = self.calls.lock().unwrap();
        let enough = |_: &mut usize| self.most_calls.load(Ordering::SeqCst) < wanted;
        let (_calls, wait) = self.changed.wait_timeout_while(calls, LONG, enough).unwrap();
        assert!(!wait.timed_out(), "{wanted} calls at once");
    }
}

impl HttpServer {
    /// `answer` gets the request target and writes the response.
    fn start(answer: impl Fn(&str, &mut TcpStream, &Log) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let (shared, answer) = (Arc::clone(&log), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, log, answer) =
                    (stream.unwrap(), Arc::clone(&shared), Arc::clone(&answer));
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { addr, log }
    }

    fn answering(body: &'static str) -> Self {
        Self::start(move |_, stream, _| respond(stream, "200 OK", body))
    }

    fn targets(&self) -> Vec<String> {
        self.log.targets.lock().unwrap().clone()
    }

    fn calls(&self) -> usize {
        self.targets().len()
    }

    fn authorizer(&self, settings: Settings) -> Authorizer {
        authorizer(self.addr, settings, &Threads::default())
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.log.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(mut stream: TcpStream, log: &Log, answer: &dyn Fn(&str, &mut TcpStream, &Log)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(request)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let target = request.split(' ').nth(1).unwrap();
        log.begin(target);
        answer(target, &mut stream, log);
        *log.calls.lock().unwrap() -= 1;
    }
}

fn respond(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    // These have no body (RFC 9112, section 6.3): one that is sent all the same, after them, must not
    // stand before the next answer.
    let close = if matches!(status.split(' ').next(), Some("204" | "304")) {
        "Connection: close\r\n"
    } else {
        ""
    };
    // The peer may have hung up.
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{close}Content-Length: {length}\r\n\r\n{body}");
    if !close.is_empty() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn authorizer(addr: SocketAddr, settings: Settings, threads: &Threads) -> Authorizer {
    let caller = Caller::new(&format!("http://{addr}/base"));
    let call = Arc::new(move |question: &_, left: Duration| caller.call(question, left));
    Authorizer(Judge::Backend(Backend::start(call, settings, threads).unwrap()))
}

fn patient() -> Settings {
    Settings { timeout: LONG, ..Settings::default() }
}

fn timeout(timeout: Duration) -> Settings {
    Settings { timeout, ..Settings::default() }
}

fn identity(user_id: &str) -> Identity {
    Identity {
        user_id: Id::parse(user_id).unwrap(),
        role: "client".into(),
        seller_id: None,
        client_id: None,
        expires_at: SystemTime::UNIX_EPOCH,
    }
}

fn may_join(authorizer: &Authorizer, user_id: &str, room: &str) -> Verdict {
    authorizer.may_join(&identity(user_id), &Room::parse(room).unwrap(), || false)
}

#[test]
fn every_part_of_the_url_is_encoded() {
    let server = HttpServer::answering(r#"{"allowed":true}"#);
    let authorizer = server.authorizer(patient());
    for (user, room) in [
        ("7", "order-5"),
        ("7", "seller-a:b.c"),
        ("7", "client-3"),
        ("7", "user-7"),
        ("7", "admins"),
        ("7", "lobby_1:a.b"),
        ("a/../b", "order-..."),
        ("x&user_id=1", "order-1"),
        ("+%20;\"#?~", "seller-2"),
    ] {
        assert_eq!(may_join(&authorizer, user, room), Verdict::Allowed, "{user} {room}");
    }
    assert_eq!(
        server.targets(),
        [
            "/base/orders/5/can_access?user_id=7",
            "/base/sellers/a%3Ab.c/can_access?user_id=7",
            "/base/ws/can_join?room=client-3&user_id=7",
            "/base/ws/can_join?room=user-7&user_id=7",
            "/base/ws/can_join?room=admins&user_id=7",
            "/base/ws/can_join?room=lobby_1%3Aa.b&user_id=7",
            "/base/orders/.../can_access?user_id=a%2F..%2Fb",
            "/base/orders/1/can_access?user_id=x%26user_id%3D1",
            "/base/sellers/2/can_access?user_id=%2B%2520%3B%22%23%3F~",
        ]
    );
}

#[test]
fn only_a_200_that_allows_lets_in() {
    let long = " ".repeat(64 * 1024);
    let verdicts: Vec<(&str, String, Verdict)> = [
        (r#"{"allowed":true}"#, Verdict::Allowed),
        (" { \"reason\" : [{}], \"allowed\" : true } \n", Verdict::Allowed),
        (r#"{"allowed":false}"#, Verdict::Denied),
        ("", Verdict::Failed),
        ("null", Verdict::Failed),
        ("true", Verdict::Failed),
        ("[true]", Verdict::Failed),
        ("{}", Verdict::Failed),
        (r#"{"allowed":"true"}"#, Verdict::Failed),
        (r#"{"allowed":1}"#, Verdict::Failed),
        (r#"{"allowed":null}"#, Verdict::Failed),
        (r#"{"allowed":true,"allowed":false}"#, Verdict::Failed),
        (r#"{"allowed":true"#, Verdict::Failed),
        (r#"{"allowed":true} x"#, Verdict::Failed),
        ("<html>", Verdict::Failed),
        (&format!(r#"{{"allowed":true}}{long}"#), Verdict::Failed),
    ]
    .map(|(body, verdict)| ("200 OK", body.to_owned(), verdict))
    .into_iter()
    .chain(
        [
            "201 Created",
            "204 No Content",
            "304 Not Modified",
            "400 Bad Request",
            "401 Unauthorized",
            "403 Forbidden",
            "404 Not Found",
            "429 Too Many Requests",
            "500 Internal Server Error",
            "503 Service Unavailable",
        ]
        .map(|status| (status, r#"{"allowed":true}"#.to_owned(), Verdict::Denied)),
    )
    .collect();
    let answers: Vec<_> = verdicts.iter().map(|(s, body, _)| (*s, body.clone())).collect();
    let server = HttpServer::start(move |target, stream, _| {
        let number: usize = target.rsplit('=').next().unwrap().parse().unwrap();
        let (status, body) = answers.get(number).unwrap();
        respond(stream, status, body);
    });
    let authorizer = server.authorizer(patient());
    for (number, (status, body, verdict)) in verdicts.iter().enumerate() {
        let body = body.trim_end();
        assert_eq!(
            may_join(&authorizer, &number.to_string(), "lobby"),
            *verdict,
            "{status} {body}"
        );
    }
    let stats = authorizer.stats().unwrap();
    let calls = [Verdict::Allowed, Verdict::Denied, Verdict::Failed].map(|v| stats.calls().get(v));
    assert_eq!(calls, [2, 11, 13]);
}

#[test]
fn a_redirect_is_not_followed() {
    let server = HttpServer::start(|target, stream, _| {
        if target == "/elsewhere" {
            return respond(stream, "200 OK", r#"{"allowed":true}"#);
        }
        let head = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
    });
    assert_eq!(may_join(&server.authorizer(patient()), "7", "order-5"), Verdict::Denied);
    assert_eq!(server.targets(), ["/base/orders/5/can_access?user_id=7"]);
}

#[test]
fn two_hundred_questions_make_at_most_32_calls_at_once() {
    let server = HttpServer::start(|_, stream, log| {
        log.wait_for_calls(BACKEND_CALLS);
        respond(stream, "200 OK", r#"{"allowed":true}"#);
    });
    let threads = Threads::default();
    let authorizer = authorizer(server.addr, patient(), &threads);
    thread::scope(|scope| {
        for number in 0..200 {
            let authorizer = &authorizer;
            scope.spawn(move || {
                let verdict = may_join(authorizer, &number.to_string(), "lobby");
                assert_eq!(verdict, Verdict::Allowed);
            });
        }
    });
    assert_eq!(server.calls(), 200);
    assert_eq!(server.log.most_calls.load(Ordering::SeqCst), BACKEND_CALLS);
    assert_eq!(threads.count(), BACKEND_CALLS + 1);
    drop(authorizer);
    threads.wait(Instant::now() + LONG, |_| true).unwrap();
}

#[test]
fn fifty_equal_questions_make_one_call() {
    let server = HttpServer::answering(r#"{"allowed":true}"#);
    let authorizer = server.authorizer(patient());
    let together = Barrier::new(50);
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                together.wait();
                assert_eq!(may_join(&authorizer, "7", "order-5"), Verdict::Allowed);
            });
        }
    });
    assert_eq!(server.calls(), 1);
}

#[test]
fn answers_are_kept_for_their_time_and_failures_are_not() {
    let server = HttpServer::start(|target, stream, _| {
        let user = target.rsplit('=').next().unwrap();
        match user {
            "junk" => respond(stream, "200 OK", "junk"),
            "no" => respond(stream, "403 Forbidden", ""),
            _ => respond(stream, "200 OK", r#"{"allowed":true}"#),
        }
    });
    let calls_of_three = |settings: Settings, user: &str| {
        let authorizer = server.authorizer(settings);
        let before = server.calls();
        for _ in 0..3 {
            may_join(&authorizer, user, "lobby");
        }
        server.calls() - before
    };
    assert_eq!(calls_of_three(patient(), "yes"), 1);
    assert_eq!(calls_of_three(patient(), "no"), 1);
    assert_eq!(calls_of_three(patient(), "junk"), 3);
    let unkept = || Settings { allow_kept: Duration::ZERO, deny_kept: Duration::ZERO, ..patient() };
    assert_eq!(calls_of_three(unkept(), "yes"), 3);
    assert_eq!(calls_of_three(unkept(), "no"), 3);
    assert_eq!(calls_of_three(Settings { max_answers: 0, ..patient() }, "yes"), 3);
}

#[test]
fn a_backend_that_hangs_or_trickles_is_given_up_in_time() {
    let server = HttpServer::start(|target, stream, log| {
        if target.contains("trickle") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n");
        }
        while target.contains("trickle") && stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        while !log.stopping.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let limit = Duration::from_millis(500);
    let threads = Threads::default();
    let authorizer = authorizer(server.addr, timeout(limit), &threads);
    // More than there are threads: waiting for one counts too.
    thread::scope(|scope| {
        for number in 0..80 {
            let authorizer = &authorizer;
            scope.spawn(move || {
                let user = if number % 2 == 0 { "hang" } else { "trickle" };
                let began = Instant::now();
                let verdict = may_join(authorizer, &format!("{user}{number}"), "lobby");
                assert_eq!(verdict, Verdict::Failed);
                let took = began.elapsed();
                // The bound is loose for a busy machine; without a deadline it would be for ever.
                assert!(took >= limit && took < limit * 10, "{took:?}");
            });
        }
    });
    drop(authorizer);
    threads.wait(Instant::now() + LONG, |_| true).unwrap();
}

#[test]
fn an_endless_answer_is_cut() {
    let written = Arc::new(AtomicUsize::new(0));
    let (count, (ended, end)) = (Arc::clone(&written), crossbeam_channel::unbounded());
    let server = HttpServer::start(move |target, stream, _| {
        let framing = if target.contains("chunked") {
            "Transfer-Encoding: chunked"
        } else {
            "Content-Length: 1073741824"
        };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
        let piece = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
        while stream.write_all(piece.as_bytes()).is_ok() {
            count.fetch_add(piece.len(), Ordering::SeqCst);
        }
        ended.send(()).unwrap();
    });
    let authorizer = server.authorizer(patient());
    for user in ["sized", "chunked"] {
        assert_eq!(may_join(&authorizer, user, "lobby"), Verdict::Failed, "{user}");
        // The connection was closed, not read on.
        end.recv_timeout(LONG).unwrap();
    }
    // What the kernel buffers on loopback, and no more.
    assert!(written.load(Ordering::SeqCst) < 32 * 1024 * 1024);
}

#[test]
fn a_dead_backend_fails_at_once_and_one_that_returns_is_asked_again() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = authorizer(dead, patient(), &Threads::default());
    let began = Instant::now();
    assert_eq!(may_join(&unreachable, "7", "lobby"), Verdict::Failed);
    assert!(began.elapsed() < LONG / 2);

    let cut = AtomicUsize::new(0);
    let server = HttpServer::start(move |_, stream, _| {
        if cut.fetch_add(1, Ordering::SeqCst) == 0 {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        } else {
            respond(stream, "200 OK", r#"{"allowed":true}"#);
        }
    });
    let authorizer = server.authorizer(patient());
    assert_eq!(may_join(&authorizer, "7", "lobby"), Verdict::Failed);
    assert_eq!(may_join(&authorizer, "7", "lobby"), Verdict::Allowed);
}

#[test]
fn a_connection_that_the_backend_closed_is_not_used_again() {
    let (closed, close) = crossbeam_channel::unbounded();
    let server = HttpServer::start(move |_, stream, _| {
        respond(stream, "200 OK", r#"{"allowed":true}"#);
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        closed.send(()).unwrap();
    });
    let authorizer = server.authorizer(patient());
    for number in 0..20 {
        assert_eq!(may_join(&authorizer, &number.to_string(), "lobby"), Verdict::Allowed);
        close.recv_timeout(LONG).unwrap();
    }
}

#[test]
fn names_are_resolved_and_tls_to_a_plain_port_is_no_answer() {
    let server = HttpServer::answering(r#"{"allowed":true}"#);
    let port = server.addr.port();
    let question =
        Question { user_id: Id::parse("7").unwrap(), room: Room::parse("lobby").unwrap() };
    let call = |base: &str| Caller::new(base).call(&question, Duration::from_secs(10));
    assert!(call(&format!("http://localhost:{port}")).unwrap());
    assert!(call(&format!("http://127.0.0.1:{port}/")).unwrap());
    assert_eq!(server.targets(), ["/ws/can_join?room=lobby&user_id=7"; 2]);
    for base in [format!("https://127.0.0.1:{port}"), format!("http://[::1]:{port}")] {
        assert!(matches!(call(&base), Err(CallError::Http(_))), "{base}");
    }
}
