//! Verifies that a client which takes its bytes is not cut, however much comes at once and however many
//! others take none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crowd::{Background, CONNECTIONS_PER_USER, Crowd, Pace, broadcast, start, start_on};
use serde_json::{Value, json};
use support::{PATIENCE, Redis, Service, full_size, machine, token};

/// Bytes of a large notification.
const LARGE: usize = 60_000;

/// Lines about a client that was cut because it did not read.
fn cut(service: &Service) -> Vec<String> {
    service.log().into_iter().filter(|line| line.contains("slow consumer")).collect()
}

fn assert_nobody_is_cut(service: &Service) {
    let cut = cut(service);
    assert!(cut.is_empty(), "{} were cut: {}", cut.len(), cut[0]);
}

/// Large notifications for a room or a user in one request; each begins with its number and the time `at`.
fn batch((kind, name): (&str, &str), count: usize, at: u128) -> Value {
    let text = "x".repeat(LARGE);
    let one = |n| json!({"event": "batch", kind: name, "data": [n, at as u64, text]});
    (0..count).map(one).collect()
}

/// The number and the time that a notification of a [`batch`] begins with.
fn number_and_time(text: &[u8]) -> (usize, u64) {
    let start = std::str::from_utf8(&text[..text.len().min(80)]).unwrap();
    let (_, data) = start.split_once(r#""data":["#).unwrap_or_else(|| panic!("{start}"));
    let mut parts = data.split(',');
    (parts.next().unwrap().parse().unwrap(), parts.next().unwrap().parse().unwrap())
}

#[test]
fn a_large_batch_reaches_every_member_that_reads() {
    const MESSAGES: usize = 16;
    let _machine = machine();
    let members = if full_size() { 8000 } else { 2000 };
    let service = start(&[]);
    let mut crowd = Crowd::new(&service);
    let members = crowd.enter("member", members, "lobby");
    let mut writers = 0;
    let batch = batch(("room", "lobby"), MESSAGES, 0);
    let begin = Instant::now();
    let mut next = vec![0; members.len()];
    let mut whole = 0;
    std::thread::scope(|scope| {
        let request = scope.spawn(|| service.notify(&batch));
        while whole < members.len() {
            let left = members.len() - whole;
            assert!(begin.elapsed() < PATIENCE, "{left} wait, {} were cut", cut(&service).len());
            crowd.pump(Duration::from_millis(20), |link, text| {
                assert_eq!(number_and_time(text).0, next[link], "at {link}");
                next[link] += 1;
                whole += usize::from(next[link] == MESSAGES);
            });
            assert_eq!(crowd.ended(members.clone()), 0, "were cut: {:?}", cut(&service).first());
            writers = writers.max(service.threads_named("writer-"));
        }
        let delivered = request.join().unwrap().json()["delivered"].clone();
        assert_eq!(delivered, json!(vec![members.len(); MESSAGES]));
    });
    println!("{} members in {:?}, {writers} writers at most", members.len(), begin.elapsed());
    assert_nobody_is_cut(&service);
}

#[test]
fn a_fast_reader_gets_all_that_is_published_on_redis_at_once() {
    const MESSAGES: usize = 2000;
    let _machine = machine();
    let redis = Redis::start();
    let service = start_on(&redis, &[]);
    let mut reader = service.client("reader", "");
    reader.join("lobby");
    let mut messages = redis::pipe();
    let filler = "x".repeat(260);
    for n in 0..MESSAGES {
        let message = json!({"n": n, "filler": filler}).to_string();
        messages.cmd("PUBLISH").arg("ws:room:lobby").arg(message).ignore();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| messages.exec(&mut redis.connection()).unwrap());
        // A page that draws does not read meanwhile.
        std::thread::sleep(Duration::from_millis(200));
        for n in 0..MESSAGES {
            match reader.next() {
                support::Frame::Text(text) => {
                    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["n"], n);
                }
                other => panic!("{other:?} instead of message {n}: {:?}", cut(&service)),
            }
        }
    });
    reader.assert_quiet();
    assert_nobody_is_cut(&service);
}

#[test]
fn members_on_a_slow_line_survive_a_burst_of_two_sockets() {
    const EACH: u64 = 100;
    let _machine = machine();
    let service = start(&[]);
    let mut crowd = Crowd::new(&service);
    let members = crowd.enter("member", 20, "lobby");
    // 16 Mbit/s.
    members.clone().for_each(|member| crowd.set_pace(member, Pace::BytesPerSecond(2_000_000)));
    let senders = crowd.connect((0..2).map(|_| token("sender", "")));
    let body = json!("x".repeat(8000));
    for sender in senders.clone() {
        (0..EACH).for_each(|id| crowd.send(sender, &broadcast("lobby", &body, Some(id))));
    }
    let mut waiting: HashSet<_> =
        senders.clone().flat_map(|sender| (0..EACH).map(move |id| (sender, id))).collect();
    let (mut sent, mut received) = (0, vec![0; members.len()]);
    let begin = Instant::now();
    while !waiting.is_empty() || received.iter().any(|count| *count < sent) {
        assert!(begin.elapsed() < PATIENCE, "{} answers missing, {received:?}", waiting.len());
        crowd.pump(Duration::from_millis(5), |link, text| {
            if members.contains(&link) {
                received[link] += 1;
                return;
            }
            let answer: Value = serde_json::from_slice(text).unwrap();
            let known = answer["id"].as_u64().is_some_and(|id| waiting.remove(&(link, id)));
            assert!(known, "answered twice, or without an id: {answer}");
            sent += u64::from(answer["type"] == "sent");
            assert!(answer["type"] == "sent" || answer["payload"]["code"] == "rate_limited");
        });
        assert_eq!(crowd.ended(members.clone()), 0, "were cut: {:?}", cut(&service).first());
    }
    println!("{sent} of {} were sent", 2 * EACH);
    assert!(sent > 0 && received.iter().all(|count| *count == sent), "{sent}: {received:?}");
    assert_nobody_is_cut(&service);
}

#[test]
fn members_that_read_do_not_wait_for_those_that_do_not() {
    const ROUNDS: usize = 16;
    /// What everyone gets in a round; and what a hundred of those that read get besides, which is more
    /// than a socket takes, so that they push back for a moment and need writers, too.
    const FOR_ALL: usize = 4;
    const FOR_SOME: usize = 8;
    const SOME_USERS: usize = 5;
    let _machine = machine();
    // The smaller size has fewer writers than stalled members too, and shares the machine.
    let (each, writers, pause, bound) = if full_size() {
        (1000, "1024", Duration::from_secs(1), Duration::from_millis(500))
    } else {
        (100, "50", Duration::from_millis(400), Duration::from_secs(2))
    };
    let service = start(&[("MAX_WRITERS", writers)]);
    let mut crowd = Crowd::new(&service);
    let stalled = crowd.enter("stalled", each, "lobby");
    stalled.clone().for_each(|member| crowd.set_pace(member, Pace::Stalled));
    let reading = crowd.enter("reading", each, "lobby");
    let begin = Instant::now();
    let longest = Arc::new(AtomicU64::new(0));
    let received = Arc::new(AtomicU64::new(0));
    let (longest_wait, all) = (Arc::clone(&longest), Arc::clone(&received));
    let reads = reading.clone();
    let background = Background::run(crowd, move |crowd| {
        crowd.pump(Duration::from_millis(2), |link, text| {
            if reads.contains(&link) {
                let now = begin.elapsed().as_micros() as u64;
                longest_wait.fetch_max(now - number_and_time(text).1, Ordering::Relaxed);
                all.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let send = |target: (&str, &str), count| {
            let answer = service.notify(&batch(target, count, begin.elapsed().as_micros()));
            assert_eq!(answer.status, 200, "{answer:?}");
        };
        send(("room", "lobby"), FOR_ALL);
        (0..SOME_USERS).for_each(|n| send(("user_id", &format!("reading-{n}")), FOR_SOME));
        std::thread::sleep(pause.saturating_sub(start.elapsed()));
    }
    let due = ROUNDS * (FOR_ALL * each + FOR_SOME * SOME_USERS * CONNECTIONS_PER_USER);
    let due = due as u64;
    let deadline = Instant::now() + PATIENCE;
    while received.load(Ordering::Relaxed) < due && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let crowd = background.stop();
    let longest = Duration::from_micros(longest.load(Ordering::Relaxed));
    println!(
        "longest wait {longest:?}; of {each} stalled {} were cut, of {each} reading {}",
        crowd.ended(stalled),
        crowd.ended(reading.clone()),
    );
    let cut: Vec<_> = cut(&service).into_iter().filter(|line| line.contains("reading")).collect();
    assert!(cut.is_empty(), "{} that read were cut: {}", cut.len(), cut[0]);
    assert_eq!(crowd.ended(reading), 0);
    assert_eq!(received.load(Ordering::Relaxed), due);
    assert!(longest < bound, "one that reads waited {longest:?}");
}
