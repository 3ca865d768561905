//! Verifies that SIGTERM and SIGINT end the service in order: nothing new, what is queued, Close 1001 to
//! every client, all threads, exit code 0; and that nobody can hold it up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::process::ExitStatus;

use serde_json::json;
use support::{
    Client, Frame, Response, Service, bearer, connect, handshake, read_to_end, token, until,
};

fn going_away() -> Frame {
    Frame::Close(1001, "going away".into())
}

fn assert_ended_well((status, log): (ExitStatus, Vec<String>)) {
    assert_eq!(status.code(), Some(0), "{log:?}");
    let last = log.last().unwrap();
    assert!(last.ends_with("shut down"), "{last}");
}

/// Takes the Close and answers it, as a client should.
fn say_goodbye(client: &mut Client) {
    assert_eq!(client.next(), going_away());
    client.send_close(1001);
    assert_eq!(client.next(), Frame::End);
}

/// Sends a user more than the socket's buffers hold; returns how many messages.
fn fill_backlog(service: &Service, user: &str) -> u64 {
    let text = "x".repeat(40_000);
    for n in 0..20 {
        let notification = json!({"event": "e", "user_id": user, "data": [n, text]});
        assert_eq!(service.notify(&notification).json()["delivered"], 1);
    }
    20
}

#[test]
fn sigterm_closes_every_client_behind_what_is_queued() {
    let service = Service::start();
    let mut clients: Vec<_> = (0..10).map(|n| service.client(&n.to_string(), "")).collect();
    for client in &mut clients {
        client.join("lobby");
    }
    for n in 0..50 {
        service.notify(&json!({"event": "n", "room": "lobby", "data": n}));
    }
    service.signal("TERM");
    for client in &mut clients {
        for n in 0..50 {
            assert_eq!(client.json()["data"], n);
        }
        say_goodbye(client);
    }
    let (status, log) = service.wait();
    assert!(log.iter().any(|line| line.contains("shutting down signal=SIGTERM")), "{log:?}");
    let closed = log.iter().filter(|line| line.contains("reason=\"going away (1001)\"")).count();
    assert_eq!(closed, 10);
    assert_ended_well((status, log));
}

#[test]
fn sigint_does_the_same() {
    let service = Service::start();
    let mut client = service.client("1", "");
    client.assert_quiet();
    service.signal("INT");
    say_goodbye(&mut client);
    let (status, log) = service.wait();
    assert!(log.iter().any(|line| line.contains("shutting down signal=SIGINT")), "{log:?}");
    assert_ended_well((status, log));
}

#[test]
fn without_clients_it_just_ends() {
    assert_ended_well(Service::start().stop());
}

#[test]
fn while_it_ends_only_the_probes_are_answered_and_running_requests_finish() {
    let service = Service::start();
    // It holds the shutdown up for the seconds that a client has to answer a Close.
    let mut last = service.client("1", "");
    last.assert_quiet();
    let mut idle = connect(service.addr());
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(Response::read(&mut idle).unwrap().status, 200);
    let body = r#"{"event":"e","user_id":"nobody"}"#;
    let mut running = service.ask_to_notify(body.len());

    service.signal("TERM");
    until("/ready is 503", || service.http("GET", "/ready", None, "").status == 503);
    running.write_all(body.as_bytes()).unwrap();
    let ready = service.http("GET", "/ready", None, "");
    assert_eq!((ready.status, ready.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(service.http("GET", "/health", None, "").status, 200);
    let upgrade = service.raw(handshake("/ws", &bearer(&token("2", ""))));
    assert_eq!((upgrade.status, upgrade.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(upgrade.json()["error"], "service_unavailable");
    let admin = token("ops", "admin");
    assert_eq!(service.http("GET", "/admin/clients", Some(&admin), "").status, 503);
    let notified = Response::read(&mut running).unwrap();
    assert_eq!((notified.status, notified.json()["delivered"].clone()), (200, json!(0)));
    assert_eq!(notified.headers["connection"], "close");
    assert!(Response::read(&mut idle).is_none());
    assert_eq!(last.next(), going_away());
    last.send_close(1001);
    assert_eq!(last.next(), Frame::End);
    assert_ended_well(service.wait());
}

#[test]
fn a_notification_that_runs_at_the_signal_is_delivered_before_the_close() {
    let service = Service::start();
    let mut client = service.client("7", "");
    client.assert_quiet();
    let body = r#"{"event":"last","user_id":"7","data":1}"#;
    let (first, second) = body.split_at(body.len() / 2);
    let mut running = service.ask_to_notify(body.len());
    running.write_all(first.as_bytes()).unwrap();

    service.signal("TERM");
    until("/ready is 503", || service.http("GET", "/ready", None, "").status == 503);
    running.write_all(second.as_bytes()).unwrap();
    let notified = Response::read(&mut running).unwrap();
    assert_eq!((notified.status, notified.json()["delivered"].clone()), (200, json!(1)));
    assert_eq!(client.json()["event"], "last");
    say_goodbye(&mut client);
    assert_ended_well(service.wait());
}

#[test]
fn a_backlog_is_delivered_before_the_close() {
    let service = Service::with(&[("WRITE_TIMEOUT", "30s")]);
    let mut slow = service.narrow_client("7");
    let sent = fill_backlog(&service, "7");
    service.signal("TERM");
    service.log_line("shutting down");
    for n in 0..sent {
        assert_eq!(slow.json()["data"][0], n);
    }
    say_goodbye(&mut slow);
    assert_ended_well(service.wait());
}

#[test]
fn a_client_that_does_not_answer_the_close_is_cut() {
    let service = Service::start();
    let mut silent = service.client("1", "");
    silent.assert_quiet();
    service.signal("TERM");
    assert_eq!(silent.next(), going_away());
    // It neither answers nor ends its half.
    assert_eq!(silent.next(), Frame::End);
    assert_ended_well(service.wait());
}

#[test]
fn a_client_that_reads_nothing_is_cut() {
    let service = Service::with(&[("WRITE_TIMEOUT", "1m")]);
    let _stalled = service.narrow_client("7");
    fill_backlog(&service, "7");
    assert_ended_well(service.stop());
}

#[test]
fn half_requests_and_idle_connections_do_not_hold_it_up() {
    let service = Service::start();
    let nothing = connect(service.addr());
    let mut half_head = connect(service.addr());
    half_head.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgr").unwrap();
    let mut half_body = connect(service.addr());
    half_body
        .write_all(
            format!(
                "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
                 Content-Length: 100\r\n\r\n{{",
                token("backend", "service")
            )
            .as_bytes(),
        )
        .unwrap();
    service.http("GET", "/health", None, "");
    assert_ended_well(service.stop());
    for mut stream in [nothing, half_head] {
        assert!(matches!(stream.read(&mut [0; 100]), Ok(0) | Err(_)));
    }
    // Its request had been accepted.
    let text = read_to_end(&mut half_body);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 503 "), "{text}");
}

#[test]
fn at_the_timeout_it_exits_with_1_and_says_what_was_left() {
    let service = Service::with(&[("SHUTDOWN_TIMEOUT", "1s")]);
    let mut silent = service.client("1", "");
    silent.assert_quiet();
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(1), "{log:?}");
    let line = log.iter().find(|line| line.contains("shutdown took too long")).expect("a line");
    assert!(line.contains("conn-1"), "{line}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM")] {
        let service = Service::with(&[("SHUTDOWN_TIMEOUT", "1h")]);
        let mut silent = service.client("1", "");
        silent.assert_quiet();
        service.signal(first);
        assert_eq!(silent.next(), going_away());
        service.signal(second);
        let (status, log) = service.wait();
        // An orderly end, had it waited for the client, would have been 0.
        assert_eq!(status.code(), Some(1), "{log:?}");
        assert!(!log.iter().any(|line| line.ends_with("shut down")), "{log:?}");
    }
}
