//! Verifies that a client which reads nothing, or too little, is cut, and that the others get
//! everything meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Client, Frame, PATIENCE, Service, full_size, read_to_end, token, until};

/// Frames on their way at most: those that the slowest healthy member has not received.
const IN_FLIGHT: usize = 64;
/// Bytes of a broadcast's body.
const BODY: usize = 6 * 1024;

/// Reads `messages` broadcasts of the room, in order; returns the longest pause.
fn receive(client: &mut Client, messages: usize, received: &AtomicUsize) -> Duration {
    let mut longest = Duration::ZERO;
    let mut latest: Option<Instant> = None;
    for n in 0..messages {
        let text = client.text();
        let number = text.split(r#""body":""#).nth(1).unwrap().split(' ').next().unwrap();
        assert_eq!(number, n.to_string());
        let now = Instant::now();
        longest = longest.max(latest.map_or(Duration::ZERO, |latest| now - latest));
        latest = Some(now);
        received.store(n + 1, Ordering::Relaxed);
    }
    longest
}

#[test]
fn one_of_a_hundred_reads_nothing_and_the_others_get_everything() {
    let messages: usize = if full_size() { 10_000 } else { 1000 };
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let before = service.at_rest();
    let mut stalled = service.client("stalled", "");
    stalled.join("lobby");
    let mut members: Vec<_> = (0..98).map(|n| service.client(&format!("u{n}"), "")).collect();
    let mut sender = service.client("sender", "");
    members.iter_mut().chain([&mut sender]).for_each(|member| member.join("lobby"));
    let idle = service.rss_kib();

    let received: Arc<Vec<_>> = Arc::new((0..99).map(|_| AtomicUsize::new(0)).collect());
    let mut sending = sender.stream().try_clone().unwrap();
    members.push(sender);
    let readers: Vec<_> = members
        .into_iter()
        .enumerate()
        .map(|(n, mut member)| {
            let received = Arc::clone(&received);
            std::thread::spawn(move || {
                let longest = receive(&mut member, messages, &received[n]);
                member.assert_quiet();
                longest
            })
        })
        .collect();
    let filler = "x".repeat(BODY);
    let mut most = idle;
    for n in 0..messages {
        until("the slowest member catches up", || {
            let slowest = received.iter().map(|count| count.load(Ordering::Relaxed)).min();
            n - slowest.unwrap() < IN_FLIGHT
        });
        let message = json!({"type": "broadcast",
            "payload": {"room": "lobby", "body": format!("{n} {filler}")}});
        sending.write_all(&support::frame(0x81, message.to_string().as_bytes())).unwrap();
        if n % 50 == 0 {
            most = most.max(service.rss_kib());
        }
    }
    let longest = readers.into_iter().map(|reader| reader.join().unwrap()).max().unwrap();
    let grown = most - idle;
    println!("{messages} messages to 99 of 100: longest pause {longest:?}, RSS grew {grown} KiB");
    let bound = if full_size() { Duration::from_millis(500) } else { Duration::from_secs(5) };
    assert!(longest < bound, "a pause of {longest:?}");
    assert!(grown < 4096, "RSS grew {grown} KiB");
    assert!(service.log_line("slow consumer").contains("user=stalled"));
    let cut = service.log().iter().filter(|line| line.contains("slow consumer")).count();
    assert_eq!(cut, 1, "others were cut");
    // Its stream ends behind what its kernel had taken.
    read_to_end(stalled.stream());
    drop((stalled, sending));
    service.assert_recovers(before);
}

/// `POST /api/notify`s of 60 KiB to the room until `done`.
fn notify_until(service: &Service, room: &str, mut done: impl FnMut() -> bool) {
    let filler = json!({"event": "filler", "room": room, "data": "x".repeat(60_000)});
    until("enough is sent", || {
        assert_eq!(service.notify(&filler).status, 200);
        done()
    });
}

/// Frames that wait for a writer of this user's connection.
fn backlog(service: &Service, user: &str) -> u64 {
    let path = format!("/admin/clients?user={user}");
    let list = service.http("GET", &path, Some(&token("ops", "admin")), "").json();
    list["connections"][0]["backlog"].as_u64().unwrap_or(0)
}

#[test]
fn a_full_queue_is_cut_within_write_timeout_and_a_second() {
    let service = Service::with(&[("WRITE_TIMEOUT", "2s")]);
    service.assert_unharmed_by(|service| {
        let seen = service.log().len();
        let mut stalled = service.narrow_client("stalled");
        stalled.join("lobby");
        // A backlog that is within the queue's limits.
        notify_until(service, "lobby", || backlog(service, "stalled") > 0);
        let full = Instant::now();
        let cut = || service.log()[seen..].iter().any(|line| line.contains("slow consumer"));
        until("the slow consumer is cut", cut);
        let took = full.elapsed();
        println!("cut {took:?} after its socket was full");
        assert!(took > Duration::from_secs(1), "{took:?}");
        let slack = if full_size() { 0 } else { 5 };
        assert!(took < Duration::from_millis(3100 + slack * 1000), "{took:?}");
        drop(stalled);
    });
}

#[test]
fn one_byte_now_and_then_is_too_little() {
    let service = Service::with(&[("WRITE_TIMEOUT", "3s")]);
    let before = service.at_rest();
    let mut trickle = service.narrow_client("trickle");
    trickle.join("lobby");
    notify_until(&service, "lobby", || backlog(&service, "trickle") > 0);
    let full = Instant::now();
    let pause = Duration::from_millis(if full_size() { 1000 } else { 200 });
    until("it is cut", || {
        let _ = trickle.stream().read(&mut [0]);
        std::thread::sleep(pause);
        service.log().iter().any(|line| line.contains("slow consumer"))
    });
    println!("cut after {:?}, a byte every {pause:?}", full.elapsed());
    drop(trickle);
    service.assert_recovers(before);
}

#[test]
fn many_that_read_nothing_at_once_hold_little() {
    let peers: usize = if full_size() { 1000 } else { 200 };
    let service = Service::with(&[("WRITE_TIMEOUT", "3s")]);
    let mut round = 0;
    service.assert_unharmed_by(|service| {
        round += 1;
        let seen = service.log().len();
        let mut reading = service.client("reading", "");
        reading.join("lobby");
        let stalled: Vec<_> = (0..peers)
            .map(|n| {
                let mut client = service.narrow_client(&format!("stalled-{n}"));
                client.join("lobby");
                client
            })
            .collect();
        let idle = service.rss_kib();
        let tcp_before = tcp_memory_kib(service);
        let mut sent = 0;
        notify_until(service, "lobby", || {
            sent += 1;
            assert!(reading.text().contains("filler"), "the reading member gets each");
            service.threads_named("writer-") >= peers
        });
        let each = service.rss_kib().saturating_sub(idle) / peers as u64;
        let tcp = tcp_memory_kib(service).saturating_sub(tcp_before);
        println!(
            "round {round}: {peers} stalled after {sent} messages: {each} KiB of RSS each, \
             {tcp} KiB of TCP memory in all"
        );
        assert!(each < 40, "{each} KiB of RSS each");
        // 128 KiB of socket buffer, which the kernel counts twice, and the peer's own.
        assert!(tcp < peers as u64 * 400, "{tcp} KiB of TCP memory");
        let cut = || {
            let log = service.log();
            log[seen..].iter().filter(|line| line.contains("slow consumer")).count()
        };
        until("all are cut", || cut() == peers);
        until("one connection and one writer are left", || {
            service.threads_named("conn-") == 1 && service.threads_named("writer-") == 1
        });
        reading.assert_quiet();
        drop(stalled);
    });
}

/// Kernel memory of the sockets between the service and its clients, both ends: what is received, sent, and
/// reserved for more.
fn tcp_memory_kib(service: &Service) -> u64 {
    let port = format!(":{}", service.addr().port());
    let arguments = ["-tmnH", "sport", "=", &port, "or", "dport", "=", &port];
    let output = Command::new("ss").args(arguments).output().expect("ss is installed, of iproute2");
    let text = String::from_utf8(output.stdout).unwrap();
    // skmem:(r0,rb131072,t0,tb262144,f0,w0,o0,bl0,d0), see ss(8).
    let bytes = text
        .split(['(', ',', ')'])
        .filter_map(|field| field.strip_prefix(['r', 'w', 'f'])?.parse::<u64>().ok());
    bytes.sum::<u64>() / 1024
}

#[test]
fn stalled_peers_do_not_keep_the_only_writer_from_one_that_reads() {
    let service = Service::with(&[("MAX_WRITERS", "1"), ("WRITE_TIMEOUT", "10s")]);
    let before = service.at_rest();
    let stalled = ["a", "b"].map(|user| {
        let mut client = service.narrow_client(user);
        client.join("lobby");
        client
    });
    let mut reading = service.narrow_client("reading");
    reading.join("lobby");
    let mut sent = 0;
    notify_until(&service, "lobby", || {
        sent += 1;
        ["a", "b", "reading"].iter().all(|user| backlog(&service, user) > 0)
    });
    let start = Instant::now();
    for _ in 0..sent {
        assert!(reading.text().contains("filler"));
    }
    println!("{sent} notifications of 60 kB beside two stalled peers in {:?}", start.elapsed());
    let is_cut = || service.log().iter().any(|line| line.contains("slow consumer"));
    assert!(!is_cut(), "the only writer waited for a stalled peer");
    until("the stalled are cut by their clock", || {
        service.log().iter().filter(|line| line.contains("slow consumer")).count() == 2
    });
    reading.assert_quiet();
    drop((stalled, reading));
    service.assert_recovers(before);
}

#[test]
fn a_peer_that_paused_gets_a_writer_again_while_others_never_cease() {
    const STEADY: usize = 8;
    const BATCHES: usize = 3;
    const MESSAGES: usize = 16;
    let service = Service::with(&[("MAX_WRITERS", "2"), ("SEND_QUEUE_BYTES", "16MiB")]);
    let enter = |user: &str| {
        let mut client = service.narrow_client(user);
        client.join("lobby");
        client
    };
    let steady: Vec<_> = (0..STEADY).map(|n| enter(&format!("steady-{n}"))).collect();
    let mut paused = enter("paused");
    let (done, filler) = (AtomicBool::new(false), "x".repeat(60_000));
    std::thread::scope(|scope| {
        for mut client in steady {
            let done = &done;
            // 200 KB a second at most, for about 14 seconds.
            scope.spawn(move || {
                let begin = Instant::now();
                while !done.load(Ordering::Relaxed) && begin.elapsed() < PATIENCE {
                    let _ = client.stream().read(&mut [0; 4096]);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let one = json!({"event": "filler", "room": "lobby", "data": filler});
        let batch = serde_json::Value::from(vec![one; MESSAGES]);
        (0..BATCHES).for_each(|_| assert_eq!(service.notify(&batch).status, 200));
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        for n in 0..BATCHES * MESSAGES {
            let Frame::Text(text) = paused.next() else { panic!("cut before message {n}") };
            assert!(text.contains("filler"));
        }
        println!(
            "all had after {:?}, beside a steady one with {} frames left",
            start.elapsed(),
            backlog(&service, "steady-0")
        );
        paused.assert_quiet();
        done.store(true, Ordering::Relaxed);
    });
    let cut = service.log().into_iter().find(|line| line.contains("slow consumer"));
    assert_eq!(cut, None);
}
