//! Verifies over many clients that come and go at random, under load, that what each saw over all its
//! connections is the log of its room without a hole or a repetition, or that it was told.
//!
//! `SEED` repeats a run, `FULL_SIZE=1` is the size of a release: 200 clients, 5,000 messages/s, 60 s.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod crowd;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Client, Frame, Random, Service, full_size, token};

/// Rooms of each client.
const ROOMS_EACH: usize = 2;
/// Over HTTP, and as many by broadcasts.
const PUBLISHERS: u64 = 2;
/// Messages of a publisher between two pauses.
const BURST: u64 = 25;

struct Size {
    clients: usize,
    rooms: usize,
    per_second: u64,
    time: Duration,
}

/// Up to so many milliseconds.
fn millis(random: &mut Random, end: usize) -> Duration {
    Duration::from_millis(random.below(end) as u64)
}

/// What a message says: who published it, and how many it had published to this log before.
type Said = (u64, u64);

/// What a client has of one log, over all its connections.
struct Follower {
    /// `None`: the client's own notifications.
    room: Option<usize>,
    epoch: Value,
    seq: u64,
    /// Answered on this connection.
    is_live: bool,
    seen: BTreeMap<u64, Said>,
}

#[derive(Default)]
struct Counts {
    recovered: AtomicU64,
    not_recovered: AtomicU64,
    resets: AtomicU64,
    connects: AtomicU64,
}

fn room(n: usize) -> String {
    format!("room-{n}")
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

impl Follower {
    fn new(room: Option<usize>) -> Self {
        Self { room, epoch: Value::Null, seq: 0, is_live: false, seen: BTreeMap::new() }
    }

    fn ask(&mut self, client: &mut Client) {
        self.is_live = false;
        let since = json!({"epoch": self.epoch, "seq": self.seq});
        let since = if self.epoch.is_null() { Value::Null } else { since };
        client.send_json(&match self.room {
            Some(n) => {
                json!({"type": "join", "id": n, "payload": {"room": room(n), "since": since}})
            }
            None => json!({"type": "resume", "id": "own", "payload": {"since": since}}),
        });
    }

    /// The answer to a join or resume, or a reset.
    fn take_position(&mut self, message: &Value, counts: &Counts) {
        let payload = &message["payload"];
        let (epoch, seq) = (payload["epoch"].clone(), payload["seq"].as_u64().unwrap());
        match payload["recovered"].as_bool() {
            Some(true) => {
                assert_eq!((&epoch, seq), (&self.epoch, self.seq), "{message}");
                counts.recovered.fetch_add(1, Relaxed);
            }
            Some(false) => drop(counts.not_recovered.fetch_add(1, Relaxed)),
            None if message["type"] == "reset" => drop(counts.resets.fetch_add(1, Relaxed)),
            None => assert!(self.epoch.is_null(), "{message}"),
        }
        (self.epoch, self.seq, self.is_live) = (epoch, seq, true);
    }

    fn take(&mut self, seq: u64, said: Said) {
        // Own notifications come before the answer to `resume` too, and once more after it.
        if self.is_live {
            assert_eq!(seq, self.seq + 1, "a hole or a repetition in {:?}", self.room);
            self.seq = seq;
            assert_eq!(self.seen.insert(seq, said), None);
        } else {
            assert_eq!(self.room, None, "{seq} before the join was answered");
        }
    }
}

/// One client: comes and goes until the end, then catches up.
fn follow(
    service: &Service,
    me: usize,
    rooms: usize,
    random: &mut Random,
    stop: &AtomicBool,
    counts: &Counts,
    published: &dyn Fn(Option<usize>) -> u64,
) -> Vec<Follower> {
    let mut chosen = BTreeSet::new();
    while chosen.len() < ROOMS_EACH {
        chosen.insert(random.below(rooms));
    }
    let mut logs: Vec<_> = chosen.into_iter().map(Some).chain([None]).map(Follower::new).collect();
    loop {
        let is_last = stop.load(Relaxed);
        // Every other one reads slowly, over a line that holds little.
        let is_slow = !is_last && random.below(2) == 0;
        let mut client = if is_slow {
            service.narrow_connection(&user(me))
        } else {
            Client::connect(service.addr(), &token(&user(me), ""))
        };
        counts.connects.fetch_add(1, Relaxed);
        logs.iter_mut().for_each(|log| log.ask(&mut client));
        let until = Instant::now() + millis(random, 1500);
        // The last one waits for all that there is.
        let is_done = |logs: &[Follower]| {
            if is_last {
                logs.iter().all(|log| log.is_live && log.seq == published(log.room))
            } else {
                Instant::now() >= until
            }
        };
        let mut is_cut = false;
        while !is_cut && !is_done(&logs) {
            is_cut = !take(&mut client, &mut logs, counts);
            if is_slow {
                std::thread::sleep(Duration::from_micros(random.below(4000) as u64));
            }
        }
        if is_last && !is_cut {
            return logs;
        }
        match random.below(if is_cut { 1 } else { 5 }) {
            0 => {}
            1 => client.send_close(1000),
            2 => client.end_sending(),
            // Within a frame.
            3 => client.send_bytes(&[0x81]),
            _ => {}
        }
        drop(client);
        std::thread::sleep(millis(random, 1500));
    }
}

/// Takes the next frame; whether there is one.
fn take(client: &mut Client, logs: &mut [Follower], counts: &Counts) -> bool {
    let text = match client.next() {
        Frame::Text(text) => text,
        // It was too slow.
        Frame::End => return false,
        other => panic!("{other:?}"),
    };
    let message: Value = serde_json::from_str(&text).unwrap();
    let of_room = |name: &Value| {
        let name = name.as_str().unwrap();
        logs.iter().position(|log| log.room.map(room).as_deref() == Some(name)).unwrap()
    };
    if message["to"] == "broadcast" {
        return true;
    }
    let own = logs.len() - 1;
    if message.get("type").is_some() {
        let name = &message["payload"]["room"];
        let log = if name.is_null() { own } else { of_room(name) };
        logs[log].take_position(&message, counts);
        return true;
    }
    let (log, seq, body) = match (message["seq"].as_u64(), message["user_seq"].as_u64()) {
        (Some(seq), None) if message.get("from").is_some() => {
            (of_room(&message["room"]), seq, &message["body"])
        }
        (Some(seq), None) => (of_room(&message["to"]), seq, &message["data"]),
        (None, Some(seq)) => (own, seq, &message["data"]),
        _ => panic!("{text}"),
    };
    logs[log].take(seq, (body[0].as_u64().unwrap(), body[1].as_u64().unwrap()));
    true
}

/// Publishes at its share of the rate until it is told to stop; counts what it published to each log.
fn publish(
    service: &Service,
    me: u64,
    size: &Size,
    mut random: Random,
    stop: &AtomicBool,
    totals: &[AtomicU64],
) {
    let mut sent = vec![0_u64; totals.len()];
    let is_http = me < PUBLISHERS;
    let mut client = (!is_http).then(|| service.client(&format!("publisher-{me}"), ""));
    let pause = Duration::from_secs(1) * (BURST * 2 * PUBLISHERS) as u32 / size.per_second as u32;
    let mut next = Instant::now();
    while !stop.load(Relaxed) {
        let mut batch = Vec::new();
        for _ in 0..BURST {
            // One in ten for a user.
            let is_own = is_http && random.below(10) == 0;
            let to = if is_own { size.clients } else { size.rooms };
            let n = random.below(to);
            let log = if is_own { size.rooms + n } else { n };
            // A hundred of them are several turns of a replay.
            let body = json!([me, sent[log], "x".repeat(random.below(3000))]);
            sent[log] += 1;
            totals[log].fetch_add(1, Relaxed);
            match &mut client {
                None if is_own => {
                    batch.push(json!({"event": "e", "user_id": user(n), "data": body}));
                }
                None => batch.push(json!({"event": "e", "room": room(n), "data": body})),
                Some(client) => client.broadcast(&room(n), &body),
            }
        }
        if !batch.is_empty() {
            assert_eq!(service.notify(&Value::Array(batch)).status, 200);
        }
        next += pause;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // What was broadcast has been served.
    client.iter_mut().for_each(Client::assert_quiet);
}

#[test]
fn nobody_has_a_hole_or_a_repetition_that_it_was_not_told_of() {
    let seed = std::env::var("SEED").map_or(13, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let size = if full_size() {
        Size { clients: 200, rooms: 50, per_second: 5000, time: Duration::from_secs(60) }
    } else {
        Size { clients: 40, rooms: 10, per_second: 1000, time: Duration::from_secs(8) }
    };
    let service = crowd::start(&[("RATE_LIMIT", "0")]);
    let totals: Vec<_> = (0..size.rooms + size.clients).map(|_| AtomicU64::new(0)).collect();
    let (stop, counts) = (AtomicBool::new(false), Counts::default());
    let (publishing_ended, size, totals, counts) =
        (AtomicBool::new(false), &size, &totals, &counts);
    let followers: Vec<_> = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..2 * PUBLISHERS)
            .map(|me| {
                let (random, service, stop) = (Random(seed * 1000 + me), &service, &stop);
                scope.spawn(move || publish(service, me, size, random, stop, totals))
            })
            .collect();
        let followers: Vec<_> = (0..size.clients)
            .map(|me| {
                let (service, stop) = (&service, &publishing_ended);
                let mut random = Random(seed * 1_000_000 + me as u64);
                scope.spawn(move || {
                    let published =
                        |room: Option<usize>| totals[room.unwrap_or(size.rooms + me)].load(Relaxed);
                    follow(service, me, size.rooms, &mut random, stop, counts, &published)
                })
            })
            .collect();
        std::thread::sleep(size.time);
        stop.store(true, Relaxed);
        let published: Vec<_> = publishers.into_iter().map(|thread| thread.join()).collect();
        publishing_ended.store(true, Relaxed);
        published.into_iter().for_each(|result| result.unwrap());
        // Who waits for a message looks whether it is the last.
        while !followers.iter().all(|thread| thread.is_finished()) {
            service.notify(&json!({"event": "tick", "broadcast": true}));
            std::thread::sleep(Duration::from_millis(50));
        }
        followers.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!(
        "{} messages, {} connects, {} recovered, {} not recovered, {} resets",
        totals.iter().map(|total| total.load(Relaxed)).sum::<u64>(),
        counts.connects.load(Relaxed),
        counts.recovered.load(Relaxed),
        counts.not_recovered.load(Relaxed),
        counts.resets.load(Relaxed),
    );
    assert!(counts.recovered.load(Relaxed) > size.clients as u64);
    // All saw the same log: each number is one message, and each publisher's messages are in its order.
    let mut logs: BTreeMap<(Option<usize>, usize), BTreeMap<u64, Said>> = BTreeMap::new();
    for (me, follower) in followers.into_iter().enumerate() {
        for Follower { room, seen, .. } in follower {
            let log = logs.entry((room, if room.is_some() { 0 } else { me })).or_default();
            for (seq, said) in seen {
                assert_eq!(*log.entry(seq).or_insert(said), said, "{seq} in {room:?}");
            }
        }
    }
    for ((room, me), log) in logs {
        let total = totals[room.unwrap_or(size.rooms + me)].load(Relaxed);
        assert!(log.keys().all(|seq| (1..=total).contains(seq)));
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for (seq, (publisher, n)) in &log {
            let before = last.insert(*publisher, *n);
            assert!(before.is_none_or(|before| before < *n), "{publisher} overtaken at {seq}");
        }
        // Where all numbers were seen by someone, each message is there once.
        if log.len() as u64 == total {
            let said: BTreeSet<_> = log.values().collect();
            assert_eq!(said.len() as u64, total);
        }
    }
}
