//! Verifies that no request head or body, however it is cut, stretched or forged, gets more than one
//! error, or costs others anything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use support::{Response, Service, connect, full_size, read_to_end, token, until};

/// What a request is refused with, and that this is all that comes.
fn only_answer(service: &Service, request: &[u8]) -> (u16, String) {
    let mut stream = connect(service.addr());
    // The answer may come, and the connection end, before all is written.
    let _ = stream.write_all(request);
    let text = read_to_end(&mut stream);
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "one answer to {request:?}: {text}");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), text)
}

#[test]
fn half_a_head_is_late() {
    let service = Service::with(&[("HEAD_TIMEOUT", "1s")]);
    service.assert_unharmed_by(|service| {
        for (start, slowly) in [
            ("GET /health HTTP/1.1\r\nHost: te", ""),
            ("G", ""),
            ("GET /ws HTTP/1.1\r\nHost: test\r\n", ""),
            ("GET /health HTTP/1.1\r\nX: ", "one byte after the other, and never an end"),
        ] {
            let mut stream = connect(service.addr());
            stream.write_all(start.as_bytes()).unwrap();
            let mut trickle = stream.try_clone().unwrap();
            let trickling = std::thread::spawn({
                let bytes = slowly.as_bytes().to_vec();
                move || {
                    for byte in bytes {
                        std::thread::sleep(Duration::from_millis(50));
                        if trickle.write_all(&[byte]).is_err() {
                            return;
                        }
                    }
                }
            });
            let text = read_to_end(&mut stream);
            assert!(text.starts_with("HTTP/1.1 408 "), "{start:?}: {text}");
            trickling.join().unwrap();
        }
    });
}

#[test]
fn two_thousand_late_heads_leave_health_quick() {
    const PEERS: usize = 2000;
    let service = Service::with(&[("HEAD_TIMEOUT", "4s")]);
    service.assert_unharmed_by(|service| {
        let idle = service.rss_kib();
        let mut peers: Vec<_> = (0..PEERS).map(|_| connect(service.addr())).collect();
        for peer in &mut peers {
            peer.write_all(b"GET /health HTTP/1.1\r\nHost: test\r\nX-Slow: ").unwrap();
        }
        until("all are waited for", || service.threads_named("conn-") >= PEERS);
        let mut took: Vec<_> = (0..100)
            .map(|n| {
                for peer in peers.iter_mut().skip(n).step_by(100) {
                    let _ = peer.write_all(b"x");
                }
                let start = Instant::now();
                assert_eq!(service.http("GET", "/health", None, "").status, 200);
                start.elapsed()
            })
            .collect();
        took.sort();
        let each = service.rss_kib().saturating_sub(idle) / PEERS as u64;
        println!(
            "health among {PEERS}: median {:?}, longest {:?}; {each} KiB each",
            took[50], took[99]
        );
        let bound = Duration::from_millis(if full_size() { 50 } else { 1000 });
        assert!(took[50] < bound, "health took {:?}", took[50]);
        assert!(each < 64, "{each} KiB kept for each");
        for peer in &mut peers {
            assert!(read_to_end(peer).starts_with("HTTP/1.1 408 "));
        }
    });
}

#[test]
fn heads_without_end_are_too_large() {
    let service = Service::start();
    let many = "X-Many: 1\r\n".repeat(100);
    let megabyte = "a".repeat(1024 * 1024);
    service.assert_unharmed_by(|service| {
        for (request, status) in [
            (format!("GET /{megabyte} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
            (format!("GET /ws?token={megabyte} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {megabyte}"), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{megabyte}: x\r\n\r\n"), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(50_000)), 431),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
            (megabyte.clone(), 414),
            ("\r\n".repeat(20_000), 431),
        ] {
            let (got, text) = only_answer(service, request.as_bytes());
            assert_eq!(got, status, "{}…: {text}", &request[..40]);
        }
    });
}

#[test]
fn long_heads_keep_little_memory() {
    const PEERS: usize = 300;
    let service = Service::with(&[("HEAD_TIMEOUT", "60s")]);
    service.assert_unharmed_by(|service| {
        let idle = service.rss_kib();
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(15_000));
        let peers: Vec<_> = (0..PEERS)
            .map(|_| {
                let mut stream = connect(service.addr());
                stream.write_all(head.as_bytes()).unwrap();
                stream
            })
            .collect();
        until("all are waited for", || service.threads_named("conn-") >= PEERS);
        let each = service.rss_kib().saturating_sub(idle) / PEERS as u64;
        assert!(each < 64, "{each} KiB kept for each");
        drop(peers);
    });
}

#[test]
fn lengths_that_two_readers_could_differ_on_get_one_error() {
    let service = Service::start();
    let token = token("backend", "service");
    let smuggled = "GET /admin/clients HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    service.assert_unharmed_by(|service| {
        for (headers, status) in [
            ("Content-Length: 2\r\nContent-Length: 2\r\n", 400),
            ("Content-Length: 2\r\nContent-Length: 60\r\n", 400),
            ("Content-Length: 2, 2\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: +2\r\n", 400),
            ("Content-Length: 0x2\r\n", 400),
            ("Content-Length: 2 \u{b}\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length : 2\r\n", 400),
            ("Content-Length: 4611686018427387904\r\n", 413),
            ("Content-Length: 18446744073709551618\r\n", 413),
            ("Content-Length: 99999999999999999999999999\r\n", 413),
            ("Content-Length: 1048577\r\n", 413),
            ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 400),
            ("Transfer-Encoding: chunked\r\n", 501),
            ("Transfer-Encoding: xchunked\r\n", 501),
            ("Transfer-Encoding: chunked, identity\r\n", 501),
            ("Transfer-Encoding : chunked\r\n", 400),
            (" Transfer-Encoding: chunked\r\n", 400),
            ("X: a\r\n Transfer-Encoding: chunked\r\n", 400),
            ("X: a\nContent-Length: 2\r\n", 400),
            ("X: a\rContent-Length: 2\r\n", 400),
            ("X\0: a\r\nContent-Length: 2\r\n", 400),
            ("X: \0\r\nContent-Length: 2\r\n", 400),
            ("Host: b\r\nContent-Length: 2\r\n", 400),
            ("", 411),
        ] {
            let request = format!(
                "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
                 {headers}\r\n{{}}{smuggled}"
            );
            let (got, text) = only_answer(service, request.as_bytes());
            assert_eq!(got, status, "{headers:?}: {text}");
            assert!(text.contains("Connection: close\r\n"), "{headers:?}: {text}");
        }
    });
}

#[test]
fn a_body_where_none_belongs_is_refused_and_not_the_next_request() {
    let service = Service::start();
    let smuggled = "GET /admin/clients HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    for line in ["GET /health", "HEAD /health", "GET /nothing", "OPTIONS /health", "PUT /ready"] {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}\
             GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            smuggled.len()
        );
        let (status, text) = only_answer(&service, request.as_bytes());
        assert!(matches!(status, 400 | 404 | 405), "{line}: {text}");
        assert!(text.contains("Connection: close\r\n"), "{line}: {text}");
        assert_eq!(text.ends_with("\r\n\r\n"), line.starts_with("HEAD"), "{line}: {text}");
    }
}

/// A request with a body, of which it has the head only.
fn head_of(line: &str, token: &str, headers: &str) -> String {
    let authorization =
        if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    format!("{line} HTTP/1.1\r\nHost: a\r\n{authorization}{headers}\r\n")
}

#[test]
fn what_the_head_decides_is_answered_before_a_byte_of_the_body() {
    let service = Service::start();
    let (good, client) = (token("backend", "service"), token("7", "client"));
    let body = "Content-Length: 100\r\n";
    let expecting = "Content-Length: 100\r\nExpect: 100-continue\r\n";
    service.assert_unharmed_by(|service| {
        for (line, token, headers, status, header) in [
            ("POST /nowhere", "", body, 404, "connection: close"),
            ("POST /nowhere", "", expecting, 404, "connection: close"),
            ("PUT /api/notify", "", body, 405, "allow: POST, OPTIONS"),
            ("POST /health", "", body, 405, "allow: GET, HEAD, OPTIONS"),
            ("POST /api/notify", "", body, 401, "www-authenticate: Bearer"),
            ("POST /api/notify", "forged", body, 401, "www-authenticate: Bearer"),
            ("POST /api/notify", "forged", expecting, 401, "www-authenticate: Bearer"),
            ("POST /api/notify", "", "Content-Length: 99999999\r\n", 401, "connection: close"),
            ("POST /api/notify", &client, body, 403, "connection: close"),
            ("POST /api/notify", &client, expecting, 403, "connection: close"),
            ("POST /api/notify", &good, "Content-Length: 1048577\r\n", 413, "connection: close"),
            (
                "POST /api/notify",
                &good,
                "Content-Length: 1048577\r\nExpect: 100-continue\r\n",
                413,
                "connection: close",
            ),
            ("GET /health", "", body, 400, "connection: close"),
            ("GET /metrics", &good, body, 400, "connection: close"),
            ("OPTIONS /api/notify", "", body, 400, "connection: close"),
        ] {
            let mut stream = connect(service.addr());
            stream.write_all(head_of(line, token, headers).as_bytes()).unwrap();
            // A response of another status first, such as 100, fails here.
            let response = Response::read(&mut stream).expect("an answer");
            assert_eq!(response.status, status, "{line} {headers}: {response:?}");
            let (name, value) = header.split_once(": ").unwrap();
            assert_eq!(response.headers[name], value, "{line}: {response:?}");
            assert_eq!(response.headers["access-control-allow-origin"], "*", "{line}");
            assert_eq!(response.json()["status"], "error", "{line}");
            assert_eq!(read_to_end(&mut stream), "", "{line}: the connection ends");
        }
    });
}

#[test]
fn a_refused_request_without_a_body_leaves_the_connection_open() {
    let service = Service::start();
    let client = token("7", "client");
    let mut stream = connect(service.addr());
    for (line, token, headers, status) in [
        ("GET /nowhere", "", "", 404),
        ("DELETE /health", "", "", 405),
        ("GET /admin/clients", "", "", 401),
        ("GET /metrics", &*client, "", 403),
        ("POST /api/notify", "", "Content-Length: 0\r\n", 401),
        ("OPTIONS /api/notify", "", "Origin: https://a.b\r\n", 204),
        ("OPTIONS /metrics", "", "Content-Length: 0\r\n", 204),
        ("GET /health", "", "", 200),
    ] {
        stream.write_all(head_of(line, token, headers).as_bytes()).unwrap();
        let response = Response::read(&mut stream).expect("an answer");
        assert_eq!(response.status, status, "{line}");
        assert!(!response.headers.contains_key("connection"), "{line}: {response:?}");
        assert_eq!(response.headers["server"], "realtime_service", "{line}");
        assert!(response.headers["date"].ends_with(" GMT"), "{line}: {response:?}");
        let has_length = response.headers.contains_key("content-length");
        assert_eq!(has_length, status != 204, "{line}: {response:?}");
    }
}

#[test]
fn bodies_without_a_token_take_nothing_from_those_with_one() {
    const PEERS: usize = 64;
    let service = Service::start();
    let good = token("backend", "service");
    let client = token("7", "client");
    let body = vec![b' '; 1024 * 1024 - 1];
    let before = service.at_rest();
    let peers: Vec<_> = (0..PEERS)
        .map(|n| {
            let token = if n % 2 == 0 { "" } else { &client };
            let head = head_of("POST /api/notify", token, "Content-Length: 1048576\r\n");
            let mut stream = connect(service.addr());
            // The connection may end before all is written.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            stream
        })
        .collect();
    let notification = r#"{"event":"e","broadcast":true}"#;
    let large = format!("{notification}{}", " ".repeat(1024 * 1024 - notification.len()));
    for body in [notification, &large].repeat(5) {
        let answer = service.http("POST", "/api/notify", Some(&good), body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // A slow body of a backend is as good as a fast one.
    let length = format!("Content-Length: {}\r\n", notification.len());
    let mut slow = connect(service.addr());
    slow.write_all(head_of("POST /api/notify", &good, &length).as_bytes()).unwrap();
    for byte in notification.bytes() {
        std::thread::sleep(Duration::from_millis(20));
        slow.write_all(&[byte]).unwrap();
    }
    assert_eq!(Response::read(&mut slow).expect("an answer").status, 200);
    for (n, mut peer) in peers.into_iter().enumerate() {
        let status = Response::read(&mut peer).expect("an answer").status;
        assert_eq!(status, if n % 2 == 0 { 401 } else { 403 });
    }
    drop(slow);
    service.assert_recovers(before);
}

#[test]
fn late_and_short_bodies_end() {
    let service = Service::with(&[("BODY_TIMEOUT", "1s")]);
    let token = token("backend", "service");
    service.assert_unharmed_by(|service| {
        let head = format!(
            "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 1000\r\n\r\n{{\"event\""
        );
        assert_eq!(only_answer(service, head.as_bytes()).0, 408);
        let mut stream = connect(service.addr());
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stream), "");
    });
}

#[test]
fn a_peer_that_reads_no_answer_is_let_go() {
    let service = Service::with(&[("WRITE_TIMEOUT", "1s")]);
    service.assert_unharmed_by(|service| {
        let mut stream = connect(service.addr());
        let requests = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
        // Ends when the service has no patience left: the answers fill both sockets first.
        while stream.write_all(requests.as_bytes()).is_ok() {}
    });
}

/// A fixed sequence of numbers that look random.
fn numbers(mut seed: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    })
}

#[test]
fn junk_gets_an_error_or_the_end() {
    let service = Service::with(&[("HEAD_TIMEOUT", "1s")]);
    let good =
        b"POST /api/notify HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    service.assert_unharmed_by(|service| {
        let mut random = numbers(0x5eed);
        let mut junk = |n: usize| -> Vec<u8> {
            if n.is_multiple_of(2) {
                return (0..n % 300).map(|_| random.next().unwrap() as u8).collect();
            }
            let mut bytes = good.to_vec();
            for _ in 0..=n % 4 {
                let at = random.next().unwrap() as usize % bytes.len();
                bytes[at] = random.next().unwrap() as u8;
            }
            bytes
        };
        for n in 0..400 {
            let bytes = junk(n);
            let mut stream: TcpStream = connect(service.addr());
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let text = read_to_end(&mut stream);
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 "), "{bytes:?}: {text}");
        }
    });
}
