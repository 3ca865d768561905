//! Verifies that the kernel keeps nothing of a client that was cut: no orphaned socket and no memory,
//! also when the peer keeps its end open, and that thousands who come and are cut leave nothing behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use crowd::{CONNECTIONS_PER_USER, Crowd, Pace, start};
use serde_json::{Value, json};
use support::{Service, full_size, machine, token, until};

/// Rounds of those who were cut and keep their end open, at most.
const HELD_ROUNDS: usize = 5;

/// The service's sockets that belong to no process any more, and the bytes that they have not got rid
/// of (proc_net_tcp.txt of the kernel's documentation).
fn orphans(service: &Service) -> (usize, u64) {
    const TIME_WAIT: &str = "06";
    const SYN_RECEIVED: &str = "03";
    let port = format!(":{:04X}", service.addr().port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let orphans = rows.filter(|row| {
        row[1].ends_with(&port) && row[9] == "0" && ![TIME_WAIT, SYN_RECEIVED].contains(&row[3])
    });
    orphans.fold((0, 0), |(count, bytes), row| {
        let (unsent, _) = row[4].split_once(':').unwrap();
        (count + 1, bytes + u64::from_str_radix(unsent, 16).unwrap())
    })
}

/// This number of the line about TCP in /proc/net/sockstat, such as `orphan` or `mem` (in pages).
fn tcp_total(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let mut words = line.split(' ').skip_while(|word| *word != name);
    words.nth(1).unwrap().parse().unwrap()
}

/// As many connections as a user may have, which read nothing, are sent too much, and are cut.
fn connect_and_be_cut(service: &Service, crowd: &mut Crowd, user: &str) -> Range<usize> {
    let links = crowd.connect((0..CONNECTIONS_PER_USER).map(|_| token(user, "")));
    links.clone().for_each(|link| crowd.set_pace(link, Pace::Stalled));
    let text = "x".repeat(60_000);
    let batch: Value =
        (0..16).map(|_| json!({"event": "e", "user_id": user, "data": text})).collect();
    until("all are cut", || {
        assert_eq!(service.notify(&batch).status, 200);
        service.counts()["clients"] == 0
    });
    links
}

#[test]
fn a_peer_that_keeps_its_end_open_keeps_nothing_of_the_service_s() {
    let _machine = machine();
    let rounds = if full_size() { 100 } else { 10 };
    let service = start(&[]);
    // What the first connections take once is not counted.
    drop({
        let mut crowd = Crowd::new(&service);
        connect_and_be_cut(&service, &mut crowd, "1");
        crowd
    });
    let memory = tcp_total("mem");
    let mut crowd = Crowd::new(&service);
    let mut all = 0..0;
    for round in 0..rounds {
        let links = connect_and_be_cut(&service, &mut crowd, &format!("u{round}"));
        all = all.start..links.end;
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    while orphans(&service).0 > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = orphans(&service);
    println!("{} were cut: {} orphans hold {} bytes unsent", all.len(), left.0, left.1);
    assert_eq!(left, (0, 0), "orphaned sockets and their bytes, of {} that were cut", all.len());

    // A cut peer is told by a reset, behind what its kernel has taken.
    all.clone().for_each(|link| crowd.set_pace(link, Pace::Eager));
    crowd.pump_until("all have ended", |_, _| {}, |crowd| crowd.ended(all.clone()) == all.len());
    assert!(all.clone().all(|link| crowd.was_reset(link)));
    drop(crowd);
    until("the memory of TCP is as before", || tcp_total("mem") < memory + 2048);
}

#[test]
fn a_peer_that_says_goodbye_and_does_not_read_keeps_nothing_for_long() {
    const PEERS: usize = 20;
    let _machine = machine();
    let service = start(&[]);
    let mut peers: Vec<_> = (0..PEERS).map(|_| service.narrow_client("7")).collect();
    // More than a peer's socket takes, and less than the service's: the Close lies behind it in the kernel.
    let text = "x".repeat(50_000);
    let filler = json!({"event": "e", "user_id": "7", "data": text});
    assert_eq!(service.notify(&filler).json()["delivered"], PEERS);
    for peer in &mut peers {
        peer.send_close(1000);
        peer.end_sending();
    }
    until("the service has no connection left", || service.threads_named("conn-") == 0);
    let begin = Instant::now();
    println!("orphans and their bytes at the end: {:?}", orphans(&service));
    // Five seconds without any progress are enough; the kernel's own bound is minutes.
    until("no socket is orphaned", || orphans(&service).0 == 0);
    println!("none is left after {:?}", begin.elapsed());
    drop(peers);
    service.assert_serves();
}

#[test]
fn thousands_who_come_and_are_cut_leave_nothing_behind() {
    let _machine = machine();
    let connects = if full_size() { 100_000 } else { 5000 };
    // What was said is kept for those who come back, within its own limit.
    let service = start(&[("HISTORY_BYTES", "1MiB")]);
    // The latest who were cut, and have not ended their side.
    let mut held = VecDeque::new();
    let mut round = |n: usize| {
        let user = format!("u{n}");
        let mut crowd = Crowd::new(&service);
        // One of five is cut by the service; the others reset what they have.
        if n.is_multiple_of(5) {
            connect_and_be_cut(&service, &mut crowd, &user);
            held.push_back(crowd);
        } else {
            let links = crowd.connect((0..CONNECTIONS_PER_USER).map(|_| token(&user, "")));
            crowd.join(links, "lobby");
            drop(crowd);
        }
        if held.len() > HELD_ROUNDS {
            held.pop_front();
        }
        until("the places are free", || service.counts()["clients"] == 0);
    };
    let rounds = connects / CONNECTIONS_PER_USER;
    // What the allocator keeps for the next is not theirs.
    let warm_up = rounds / 2;
    (0..warm_up).for_each(&mut round);
    let at_rest = service.at_rest();
    let (rss, memory, orphaned) = (service.rss_kib(), tcp_total("mem"), tcp_total("orphan"));
    let begin = Instant::now();
    (warm_up..rounds).for_each(&mut round);
    println!("{connects} in {:?}", begin.elapsed());
    service.assert_recovers(at_rest);
    until("no socket is orphaned", || orphans(&service).0 == 0);
    held.clear();
    let grown = service.rss_kib().saturating_sub(rss);
    println!(
        "RSS grew {grown} KiB; pages of TCP {memory} -> {}, orphans {orphaned} -> {}",
        tcp_total("mem"),
        tcp_total("orphan"),
    );
    assert!(grown < 8192, "RSS grew {grown} KiB from {rss} KiB");
    until("the machine's orphans and memory are as before", || {
        tcp_total("orphan") <= orphaned + 5 && tcp_total("mem") < memory + 2048
    });
}
