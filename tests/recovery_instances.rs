//! Verifies that who comes back to any of several instances gets exactly what it missed, in the one order
//! that all see; that neither the end of an instance nor an older one beside it changes that; and in which
//! order a connection is answered when its messages go over Redis.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod hopping;
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hopping::{Instances, SETTINGS, Size, run, run_at};
use serde_json::{Value, json};
use support::{Client, Frame, PATIENCE, Redis, Service, full_size, until, without_number};

fn three(redis: &Redis) -> Instances {
    Instances::start(&[&redis.addr(), &redis.addr(), &redis.addr()], &[])
}

#[test]
fn who_hops_between_three_instances_misses_nothing() {
    let redis = Redis::start();
    let instances = three(&redis);
    let totals = run(&instances, |_| {});
    assert!(totals.recovered > 20, "{totals:?}");
    instances.assert_undisturbed(&totals);
}

#[test]
fn a_killed_instance_takes_nothing_with_it() {
    let redis = Redis::start();
    let instances = three(&redis);
    let totals = run(&instances, |world| {
        for killed in [0, 1] {
            instances.kill(killed);
            world.goes_on("with two", Duration::from_secs(1));
            instances.start_again(killed);
            world.goes_on("with three again", Duration::from_secs(1));
        }
    });
    instances.assert_undisturbed(&totals);
}

#[test]
fn a_thousand_clients_in_a_hundred_rooms_survive_a_restart_of_redis() {
    let mut redis = Redis::start();
    let instances = Instances::start(&[&redis.addr(), &redis.addr()], &[]);
    let size = Size {
        clients: if full_size() { 5000 } else { 1000 },
        rooms: 100,
        per_second: if full_size() { 400 } else { 120 },
        time: Duration::from_secs(2),
        stay: Duration::from_secs(if full_size() { 30 } else { 6 }),
        // They all come back at once.
        longest_answer: PATIENCE,
    };
    let totals = run_at(size, &instances, |world| {
        redis.kill();
        world.goes_on("without Redis", Duration::from_secs(1));
        redis.start_again();
        until("a reset", || world.resets() > 0);
    });
    assert!(totals.told() > 500 && totals.unnumbered > 0, "{totals:?}");
}

/// Joins with an `id`, and takes the answer; what comes before it is of other rooms.
fn join(client: &mut Client, room: &str) -> Value {
    client.send_json(&json!({"type": "join", "id": "join", "payload": {"room": room}}));
    let answer = client.json();
    assert_eq!((&answer["type"], &answer["id"]), (&json!("joined"), &json!("join")), "{answer}");
    answer["payload"].clone()
}

fn two(redis: &Redis) -> [Service; 2] {
    std::array::from_fn(|_| on(redis))
}

fn on(redis: &Redis) -> Service {
    crowd::start_on(redis, &SETTINGS)
}

/// What an instance of the version before publishes.
fn old_message(n: u64, room: &str) -> String {
    format!(
        r#"{{"origin":"67e55044-10b1-426f-9247-bb680e5fe0c8:{n}","from":"0ld-1","room":"{room}","ts":"2026-01-02T03:04:05.678Z","body":["old",{n}]}}"#
    )
}

#[test]
fn what_the_version_before_publishes_arrives_live_once_and_without_a_number() {
    const MESSAGES: u64 = 100;
    let redis = Redis::start();
    let services = two(&redis);
    let mut members = services.each_ref().map(|service| service.client("m", ""));
    let starts = members.each_mut().map(|member| join(member, "lobby"));
    assert_eq!(starts[0], starts[1], "one log");
    for n in 1..=MESSAGES {
        redis.publish("ws:room:lobby", old_message(n, "lobby"));
        let service = &services[n as usize % 2];
        let message = json!({"event": "e", "room": "lobby", "data": ["new", n]});
        assert_eq!(service.notify(&message).status, 200);
    }
    for member in &mut members {
        let (mut old, mut new) = (0, 0);
        while (old, new) != (MESSAGES, MESSAGES) {
            let text = member.text();
            let message: Value = serde_json::from_str(&text).unwrap();
            if message.get("from").is_some() {
                old += 1;
                let expected = old_message(old, "lobby");
                let expected = expected.split_once(',').unwrap().1;
                assert_eq!(text, format!("{{{expected}"), "as it is, but for its origin");
            } else {
                new += 1;
                assert_eq!(message["data"], json!(["new", new]), "{text}");
                assert_eq!(message["seq"], new, "{text}");
            }
        }
        // Neither a reset nor a second copy.
        member.assert_quiet();
    }
    // They are no part of the log.
    let mut back = services[1].client("m", "");
    let since = json!({"epoch": starts[0]["epoch"], "seq": 0});
    let payload = json!({"room": "lobby", "since": since});
    back.send_json(&json!({"type": "join", "id": 1, "payload": payload}));
    assert_eq!(back.json()["payload"]["recovered"], true);
    for n in 1..=MESSAGES {
        let message = back.json();
        assert_eq!((&message["seq"], &message["data"]), (&json!(n), &json!(["new", n])));
    }
    back.assert_quiet();
}

/// The version before, when it is here.
fn old_program() -> Option<PathBuf> {
    let named = std::env::var_os("OLD_BIN").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from("/tmp/before")).filter(|program| program.exists()))
}

/// With `OLD_BIN`, or `/tmp/before`: a release of the version before.
#[test]
fn the_version_before_works_beside_this_one() {
    let Some(program) = old_program() else {
        println!("LEFT OUT: no OLD_BIN and no /tmp/before, so nothing was checked");
        return;
    };
    const MESSAGES: u64 = 50;
    let redis = Redis::start();
    let addr = redis.addr();
    let new = on(&redis);
    let mut command = Command::new(program);
    command.env_clear().current_dir(std::env::temp_dir());
    let like = Service::command(&[("REDIS_ADDR", &addr)]);
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let old = Service::spawn(command);
    old.wait_for_redis("connected");
    let (mut at_new, mut at_old) = (new.client("1", ""), old.client("2", ""));
    join(&mut at_new, "lobby");
    at_old.join("lobby");
    for n in 0..MESSAGES {
        let from = |who: &str| json!({"event": "e", "room": "lobby", "data": [who, n]});
        assert_eq!(old.notify(&from("old")).status, 200);
        assert_eq!(new.notify(&from("new")).status, 200);
    }
    let mut seen = [0, 0];
    while seen != [MESSAGES; 2] {
        let message = at_new.json();
        let is_new = message["data"][0] == "new";
        assert_eq!(message["data"][1], seen[usize::from(is_new)], "{message}");
        assert_eq!(message.get("seq").is_some(), is_new, "{message}");
        seen[usize::from(is_new)] += 1;
    }
    at_new.assert_quiet();
    // What the new one says reaches the old one's members too, or not at all; never twice.
    let mut seen = [0, 0];
    let everyone = json!({"event": "end", "broadcast": true});
    assert_eq!(new.notify(&everyone).status, 200);
    loop {
        let message = at_old.json();
        if message["event"] == "end" {
            break;
        }
        let is_new = usize::from(message["data"][0] == "new");
        assert_eq!(message["data"][1], seen[is_new], "{message}");
        seen[is_new] += 1;
    }
    println!("at the version before: {seen:?} of {MESSAGES} each, its own and those of this one");
    assert_eq!(seen[0], MESSAGES);
}

/// Messages of a connection, answered in order; what came of rooms is returned with the count of answers
/// that had come before.
fn pipeline(client: &mut Client, messages: &[Value]) -> Vec<(usize, Value)> {
    let bytes: Vec<_> = messages
        .iter()
        .flat_map(|message| support::frame(0x81, message.to_string().as_bytes()))
        .collect();
    client.send_bytes(&bytes);
    let mut rooms = Vec::new();
    let mut answered = 0;
    while answered < messages.len() {
        let message = client.json();
        if message.get("id").is_none() {
            rooms.push((answered, message));
            continue;
        }
        let asked = &messages[answered];
        let kind = match asked["type"].as_str().unwrap() {
            "join" => "joined",
            "leave" => "left",
            _ => "sent",
        };
        assert_eq!((&message["type"], &message["id"]), (&json!(kind), &asked["id"]), "{message}");
        answered += 1;
        if kind == "joined" {
            rooms.push((answered, message));
        }
    }
    rooms
}

fn message(kind: &str, id: usize, room: &str) -> Value {
    let mut payload = json!({"room": room});
    if kind == "broadcast" {
        payload["body"] = json!(id);
    }
    json!({"type": kind, "id": id, "payload": payload})
}

fn rounds() -> usize {
    if full_size() { 2000 } else { 100 }
}

#[test]
fn after_left_comes_nothing_of_the_room() {
    let redis = Redis::start();
    let [a, b] = two(&redis);
    // Others say something all the time, there and here.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for service in [&a, &b] {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                    service.notify(&json!(vec![json!({"event": "e", "room": "lobby"}); 5]));
                }
            });
        }
        let end = End(&is_over);
        let mut client = a.client("1", "");
        let mut copies = 0;
        for _ in 0..rounds() {
            let mut messages =
                ["join", "broadcast", "leave"].map(str::to_owned).map(Value::from).to_vec();
            for (id, kind) in messages.iter_mut().enumerate() {
                *kind = message(kind.as_str().unwrap(), id, "lobby");
            }
            for (answered, message) in pipeline(&mut client, &messages) {
                assert!(answered > 0, "before it joined: {message}");
                if message.get("from").is_some() {
                    assert_eq!(answered, 1, "its own copy, not before `sent`: {message}");
                    copies += 1;
                }
            }
            // Whatever was on its way has come by now.
            client.assert_quiet();
        }
        println!("{copies} of {} saw their own message before they left", rounds());
        drop(end);
    });
}

/// Ends what goes on beside a test, also when it panics.
struct End<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn join_leave_and_join_at_once_are_one_membership() {
    let redis = Redis::start();
    let [a, b] = two(&redis);
    let mut client = a.client("1", "");
    for round in 0..rounds() {
        let room = format!("fresh-{round}");
        let say = |service: &Service, n: u64| {
            let answer = service.notify(&json!({"event": "e", "room": room, "data": n}));
            assert_eq!(answer.status, 200);
        };
        // Half of the rooms are unknown to everyone, the others to this instance only.
        let before = if round % 2 == 0 { 0 } else { 3 };
        (0..before).for_each(|n| say(&b, n));
        let messages = [message("join", 0, &room), message("leave", 1, &room)];
        let messages = [&messages[..], &[message("join", 2, &room)]].concat();
        let answers = pipeline(&mut client, &messages);
        let is_second =
            |(answered, message): &&(usize, Value)| *answered == 3 && message["type"] == "joined";
        let joined = answers.iter().find(is_second).unwrap();
        let mut seq = joined.1["payload"]["seq"].as_u64().unwrap();
        assert!(seq <= before, "{answers:?}");
        // What was said before may still be on its way here.
        (before..before + 2).for_each(|n| say(&b, n));
        while seq < before + 2 {
            seq += 1;
            let message = client.json();
            assert_eq!((&message["seq"], &message["data"]), (&json!(seq), &json!(seq - 1)));
        }
        client.send_json(&message("leave", 3, &room));
        assert_eq!(client.json()["type"], "left");
    }
}

#[test]
fn what_is_sent_at_once_is_answered_in_order() {
    let redis = Redis::start();
    let [a, b] = two(&redis);
    for round in 0..rounds() {
        let service = [&a, &b][round % 2];
        let room = format!("fresh-{round}");
        let mut client = service.client("1", "");
        let kinds = ["broadcast", "join", "broadcast", "leave", "join", "broadcast"];
        let messages: Vec<_> =
            kinds.iter().enumerate().map(|(id, kind)| message(kind, id, &room)).collect();
        let came = pipeline(&mut client, &messages);
        let mut seq = None;
        for (answered, message) in &came {
            if message["type"] == "joined" {
                // What was said before may still be on its way here, and then comes behind the answer.
                let position = message["payload"]["seq"].as_u64().unwrap();
                let said_before = if *answered == 2 { 1 } else { 2 };
                assert!(position <= said_before, "{came:?}");
                seq = Some(position);
            } else {
                let next = seq.expect("nothing before it joined") + 1;
                assert_eq!(message["seq"], next, "{came:?}");
                assert!([2, 5].contains(answered), "between `joined` and `sent`: {came:?}");
                seq = Some(next);
            }
        }
        // It is a member when the last one is said, and so gets it.
        let (answered, last) = came.last().unwrap();
        assert_eq!((*answered, &last["body"], &last["seq"]), (5, &json!(5), &json!(3)), "{came:?}");
        client.assert_quiet();
    }
}

/// Two rooms, two instances, a member of each at each.
#[test]
fn an_answer_comes_behind_the_own_copy_and_with_the_same_bytes_for_all() {
    let redis = Redis::start();
    let [a, b] = two(&redis);
    let (mut here, mut there) = (a.client("1", ""), b.client("2", ""));
    let starts = [join(&mut here, "lobby"), join(&mut there, "lobby")];
    assert_eq!(starts[0], starts[1]);
    for n in 1..=rounds() {
        let (sender, other) =
            if n % 2 == 0 { (&mut here, &mut there) } else { (&mut there, &mut here) };
        sender.send_json(&message("broadcast", n, "lobby"));
        let own = sender.text();
        assert!(own.starts_with(&format!("{{\"seq\":{n},")), "{own}");
        assert_eq!(sender.json(), json!({"type": "sent", "id": n, "payload": {"room": "lobby"}}));
        assert_eq!(other.text(), own);
        assert!(without_number(&own).starts_with(r#"{"from":"#));
    }
}

/// A message for a room that is hung in Redis, and the joins and leaves around it.
#[test]
fn answers_keep_their_order_while_redis_hangs() {
    let redis = Redis::start();
    let [a, _b] = two(&redis);
    let mut client = a.client("1", "");
    join(&mut client, "lobby");
    redis.signal("STOP");
    let asked_at = Instant::now();
    let kinds = ["broadcast", "leave", "join", "broadcast", "leave"];
    let messages: Vec<_> =
        kinds.iter().enumerate().map(|(id, kind)| message(kind, id, "lobby")).collect();
    let came = pipeline(&mut client, &messages);
    let took = asked_at.elapsed();
    redis.signal("CONT");
    println!("answered in {took:?} while Redis hangs");
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(came.iter().all(|(answered, _)| *answered != 2 && *answered != 5), "{came:?}");
    // Not when Redis is back either.
    a.wait_for_redis("connected");
    let mut other = a.client("2", "");
    until("numbers again", || {
        other.send_json(&message("join", 1, "lobby"));
        let joined = loop {
            match other.next_before(Instant::now() + PATIENCE) {
                Some(Frame::Text(text)) if text.contains(r#""joined""#) => break text,
                Some(Frame::Text(_)) => {}
                end => panic!("{end:?}"),
            }
        };
        a.notify(&json!({"event": "e", "room": "lobby"}));
        let is_numbered = other.text().starts_with(r#"{"seq":"#);
        joined.contains("epoch") && is_numbered
    });
    client.assert_quiet();
}
