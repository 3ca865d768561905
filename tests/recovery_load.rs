//! Verifies that what clients have missed, and that it is kept for them, costs the others neither their turn
//! nor memory without a bound.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod crowd;
mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crowd::{
    Background, CONNECTIONS_PER_USER, Crowd, Echo, Pace, broadcast, percentile, start, start_on,
};
use serde_json::{Value, json};
use support::{PATIENCE, Redis, Service, frame, full_size, machine, token, until};

/// Nobody waits so long for an echo, whatever the machine is.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Notifies a room so often, with so many bytes each.
fn fill(service: &Service, room: &str, messages: usize, bytes: usize) {
    let data = "x".repeat(bytes);
    for first in (0..messages).step_by(100) {
        let batch: Value = (first..messages.min(first + 100))
            .map(|_| json!({"event": "e", "room": room, "data": data}))
            .collect();
        let answer = service.notify(&batch);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// The frame of a join that asks for the last hundred messages of the room.
fn asks_for_the_last(service: &Service, room: &str) -> Vec<u8> {
    let mut client = service.client("asks", "");
    client.send_json(&json!({"type": "join", "id": 1, "payload": {"room": room}}));
    let position = client.json()["payload"].take();
    let since = position["seq"].as_u64().unwrap() - 100;
    let payload = json!({"room": room, "since": {"epoch": position["epoch"], "seq": since}});
    frame(0x81, json!({"type": "join", "id": 1, "payload": payload}).to_string().as_bytes())
}

/// Each asks as often as its rate lets it, and reads all that comes: a hundred times its own bytes.
#[test]
fn users_who_ask_for_the_past_again_and_again_delay_nobody() {
    let _machine = machine();
    let (users, time) = if full_size() { (8, 10) } else { (4, 4) };
    let service = start(&[]);
    fill(&service, "lobby", 100, 8000);
    let ask = asks_for_the_last(&service, "lobby");
    let mut crowd = Crowd::new(&service);
    let links = crowd
        .connect((0..users * CONNECTIONS_PER_USER).map(|n| token(&format!("u{}", n % users), "")));
    let mut echo = Echo::new(&service, "bystander");
    echo.take_for(Duration::from_secs(1));
    let (alone, p99_alone) = (echo.longest(), percentile(&echo.times, 99));
    echo.times.clear();
    let mut next = Instant::now();
    let mut turn = 0;
    let hungry = Background::run(crowd, move |crowd| {
        crowd.pump(Duration::from_millis(2), |_, _| {});
        // 50 a second of each user.
        while next <= Instant::now() {
            next += Duration::from_secs(1) / (50 * users as u32);
            let link = links.start + turn % links.len();
            turn += 1;
            if crowd.has_sent(link) && !crowd.has_ended(link) {
                crowd.send(link, &ask);
            }
        }
    });
    std::thread::sleep(Duration::from_secs(1));
    echo.take_for(Duration::from_secs(time));
    drop(hungry);
    println!(
        "{} frames replayed; echo p99 {:?}, longest {:?}; alone {p99_alone:?}, {alone:?}",
        service.metric("realtime_replayed_frames_total"),
        percentile(&echo.times, 99),
        echo.longest(),
    );
    assert!(service.metric("realtime_replayed_frames_total") > 1000.0);
    assert!(echo.longest() < LONGEST_WAIT, "an echo took {:?}", echo.longest());
}

/// The end of a tunnel: all are back at the same moment.
#[test]
fn a_thousand_who_recover_at_once_delay_nobody() {
    let _machine = machine();
    let service = start(&[]);
    fill(&service, "lobby", 100, 200);
    let ask = asks_for_the_last(&service, "lobby");
    let mut crowd = Crowd::new(&service);
    let links =
        crowd.connect((0..1000).map(|n| token(&format!("u{}", n / CONNECTIONS_PER_USER), "")));
    let mut echo = Echo::new(&service, "bystander");
    let waiting = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(101 * links.len()));
    let left = std::sync::Arc::clone(&waiting);
    let began = Instant::now();
    let mut is_first = true;
    let back = Background::run(crowd, move |crowd| {
        if std::mem::take(&mut is_first) {
            links.clone().for_each(|link| crowd.send(link, &ask));
        }
        let mut frames = 0;
        crowd.pump(Duration::from_millis(2), |_, _| frames += 1);
        left.fetch_sub(frames, std::sync::atomic::Ordering::Relaxed);
    });
    until("all have recovered", || {
        echo.take();
        waiting.load(std::sync::atomic::Ordering::Relaxed) == 0
    });
    println!("100,000 messages in {:?}; longest echo {:?}", began.elapsed(), echo.longest());
    drop(back);
    assert_eq!(service.metric("realtime_recovered_total"), 1000.0);
    assert!(echo.longest() < LONGEST_WAIT, "an echo took {:?}", echo.longest());
}

/// What a client is still to get stays in the log, which goes on without it: it holds a turn, not a past.
#[test]
fn clients_that_take_nothing_hold_no_past_of_their_own() {
    const ROUNDS: usize = 60;
    let _machine = machine();
    let service = start(&[("WRITE_TIMEOUT", "60s"), ("HISTORY_BYTES", "2MiB")]);
    fill(&service, "lobby", 100, 8000);
    let mut crowd = Crowd::new(&service);
    let rss = service.rss_kib();
    for round in 0..ROUNDS {
        let ask = asks_for_the_last(&service, "lobby");
        let links = crowd.connect((0..2).map(|_| token(&format!("u{round}"), "")));
        links.clone().for_each(|link| {
            crowd.set_pace(link, Pace::Stalled);
            crowd.send(link, &ask);
        });
        until("it has asked", || {
            service.metric("realtime_recovered_total") == 2.0 * (round as f64 + 1.0)
        });
        // All of it is another one after this.
        fill(&service, "lobby", 100, 8000);
    }
    let grown = service.rss_kib().saturating_sub(rss);
    println!("{} clients, RSS grew {grown} KiB", 2 * ROUNDS);
    // Two connections and a turn for each; the past that the two share is 800 KiB each round.
    assert!(grown < 500 * ROUNDS as u64, "RSS grew {grown} KiB");
}

#[test]
fn the_history_takes_the_memory_that_it_counts() {
    let _machine = machine();
    let service = start(&[("HISTORY_TTL", "1h"), ("MAX_BODY_SIZE", "4MiB")]);
    // What every service takes once.
    fill(&service, "warm-up", 1000, 300);
    let (rss, before) = (service.rss_kib(), service.metric("realtime_history_bytes"));
    let mut rows = Vec::new();
    for part in 1..=4 {
        for room in 0..(if full_size() { 350 } else { 90 }) {
            fill(&service, &format!("r{part}-{room}"), 100, 300);
        }
        let counted = (service.metric("realtime_history_bytes") - before) as u64 / 1024;
        let grown = service.rss_kib().saturating_sub(rss);
        rows.push((counted, grown));
    }
    println!("KiB counted and seen in RSS: {rows:?}");
    let (counted, grown) = rows[rows.len() - 1];
    assert!(counted > 10_000);
    // The process itself gives memory back, and takes some more, by the MiB.
    assert!(grown < counted * 13 / 10 + 4096 && grown + 4096 > counted / 2, "{rows:?}");
}

/// What takes Redis longer than anybody waits for it is no sign that it is away, as long as something comes back.
#[test]
fn a_burst_that_a_slow_redis_numbers_comes_whole_and_once() {
    const USERS: usize = 100;
    const BURST: usize = 100;
    let _machine = machine();
    let redis = Redis::start();
    let service = start_on(&redis, &[]);
    let mut crowd = Crowd::new(&service);
    let links = crowd.connect((0..USERS).map(|n| token(&format!("user-{n}"), "")));
    links.clone().for_each(|link| crowd.join(link..link + 1, &format!("room-{link}")));
    let is_over = Arc::new(AtomicBool::new(false));
    let slow = std::thread::spawn({
        let (mut connection, is_over) = (redis.connection(), Arc::clone(&is_over));
        // Others' work: it leaves little time for ours.
        let busy = "local t = redis.call('TIME'); local from = t[1] * 1000000 + t[2]; \
                    repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] - from > 50000";
        move || {
            while !is_over.load(Relaxed) {
                let _: redis::Value =
                    redis::cmd("EVAL").arg(busy).arg(0).query(&mut connection).unwrap();
            }
        }
    });
    let start = Instant::now();
    let (came, mut others) = (Cell::new(0), Vec::new());
    let mut on_text = |text: &[u8]| {
        if text.starts_with(b"{\"seq\":") {
            came.set(came.get() + 1);
        } else {
            others.push(String::from_utf8_lossy(text).into_owned());
        }
    };
    for link in links {
        for n in 0..BURST {
            crowd.send(link, &broadcast(&format!("room-{link}"), &json!(n), None));
        }
        crowd.pump(Duration::ZERO, |_, text| on_text(text));
    }
    until("all has come back", || {
        crowd.pump(Duration::from_millis(20), |_, text| on_text(text));
        service.metric("realtime_log_pending") == 0.0
    });
    println!("{} messages in {:?}", USERS * BURST, start.elapsed());
    is_over.store(true, Relaxed);
    slow.join().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while came.get() < USERS * BURST && Instant::now() < deadline {
        crowd.pump(Duration::from_millis(20), |_, text| on_text(text));
    }
    assert_eq!((came.get(), others), (USERS * BURST, Vec::new()));
    assert_eq!(service.metric("realtime_unnumbered_total"), 0.0);
}
