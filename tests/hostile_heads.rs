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
fn a_body_on_a_get_is_not_the_next_request() {
    let service = Service::start();
    let smuggled = "GET /admin/clients HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let request = format!(
        "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}\
         GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        smuggled.len()
    );
    let mut stream = connect(service.addr());
    stream.write_all(request.as_bytes()).unwrap();
    let statuses: Vec<_> = std::iter::from_fn(|| Response::read(&mut stream))
        .map(|answer| (answer.status, answer.body.contains("ready")))
        .collect();
    assert_eq!(statuses, [(200, false), (200, true)]);
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
