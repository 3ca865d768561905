//! Verifies that what other systems add to the stream `ws:publish` on Redis is numbered once and in order by
//! whatever instance there is, or will be, and that nothing else that they may add there does any harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::{Client, Redis, Service, machine, until};

const DOOR: &str = "ws:publish";
const ENTRIES: u64 = 10_000;
/// All entries are kept, in any case.
const SETTINGS: [(&str, &str); 4] = [
    ("RATE_LIMIT", "0"),
    ("PING_INTERVAL", "1h"),
    ("HISTORY_MESSAGES", "10000"),
    ("HISTORY_BYTES", "256MiB"),
];

fn on(redis: &Redis) -> Service {
    crowd::start_on(redis, &SETTINGS)
}

/// Milliseconds since 1970, as in the ids of entries.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn message(n: u64, room: &str) -> String {
    format!(r#"{{"event":"e","data":{n},"to":"{room}"}}"#)
}

/// Adds entries of one millisecond, `ms-1` the first.
fn add(redis: &Redis, ms: u64, numbers: std::ops::Range<u64>, room: &str) {
    let mut connection = redis.connection();
    let numbers: Vec<_> = numbers.collect();
    for part in numbers.chunks(1000) {
        let mut pipe = redis::pipe();
        for n in part {
            pipe.cmd("XADD")
                .arg(DOOR)
                .arg(format!("{ms}-{}", n + 1))
                .arg("channel")
                .arg(format!("ws:room:{room}"))
                .arg("message")
                .arg(message(*n, room))
                .ignore();
        }
        pipe.exec(&mut connection).unwrap();
    }
}

/// Adds one entry with these fields.
fn add_fields(redis: &Redis, fields: &[(&str, &[u8])]) {
    let mut command = redis::cmd("XADD");
    command.arg(DOOR).arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value);
    }
    command.exec(&mut redis.connection()).unwrap();
}

fn add_one(redis: &Redis, channel: &str, message: &str) {
    add_fields(redis, &[("channel", channel.as_bytes()), ("message", message.as_bytes())]);
}

fn join(client: &mut Client, room: &str, since: Value) -> Value {
    let payload = json!({"room": room, "since": since});
    client.send_json(&json!({"type": "join", "id": 1, "payload": payload}));
    let answer = client.json();
    assert_eq!(answer["type"], "joined", "{answer}");
    answer["payload"].clone()
}

/// Waits until the room has so many messages, and reads them all, as who comes back to before the first.
fn log(service: &Service, room: &str, count: u64) -> Vec<String> {
    let mut position = Value::Null;
    until(&format!("{count} messages in {room}"), || {
        std::thread::sleep(Duration::from_millis(20));
        position = join(&mut service.client("looks", ""), room, Value::Null);
        position["seq"].as_u64() >= Some(count)
    });
    assert_eq!(position["seq"], count, "more than were added: {position}");
    let mut client = service.client("reads", "");
    let since = json!({"epoch": position["epoch"], "seq": 0});
    assert_eq!(join(&mut client, room, since)["recovered"], true);
    let texts = (0..count).map(|_| client.text()).collect();
    client.assert_quiet();
    texts
}

/// The messages from 0 on, with their numbers.
fn expected(count: u64, room: &str) -> Vec<String> {
    let each = (0..count).map(|n| {
        let message = message(n, room);
        format!("{{\"seq\":{},{}", n + 1, message.strip_prefix('{').unwrap())
    });
    each.collect()
}

fn assert_log(service: &Service, room: &str, count: u64) {
    let (found, expected) = (log(service, room, count), expected(count, room));
    if let Some(at) = (0..expected.len()).find(|at| found[*at] != expected[*at]) {
        panic!("{} where {} was added", found[at], expected[at]);
    }
}

/// A reply of pairs, as a map would be.
fn pairs(value: &redis::Value) -> Vec<(String, String)> {
    let redis::Value::Array(values) = value else { panic!("{value:?}") };
    let text = |value| redis::from_redis_value::<Option<String>>(value).ok().flatten();
    let each = values.chunks(2).map(|pair| {
        let [name, value] = [0, 1].map(|n| text(pair[n].clone()).unwrap_or_default());
        (name, value)
    });
    each.collect()
}

/// What `XINFO GROUPS` says of the one group that takes from the door.
fn group(redis: &Redis, name: &str) -> Option<String> {
    let groups = redis::cmd("XINFO").arg("GROUPS").arg(DOOR).query(&mut redis.connection());
    let Ok(redis::Value::Array(groups)) = groups else { return None };
    let group = pairs(groups.first()?);
    group.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

/// How many messages the room has by now.
fn numbered(service: &Service, room: &str) -> u64 {
    let position = join(&mut service.client("looks", ""), room, Value::Null);
    position["seq"].as_u64().unwrap_or(0)
}

/// Waits until nothing is left to do: what was done is gone from the stream, or acknowledged in its group.
fn wait_until_all_is_done(redis: &Redis) {
    until("nothing is left", || {
        let left: u64 = redis::cmd("XLEN").arg(DOOR).query(&mut redis.connection()).unwrap();
        left == 0 || group(redis, "pending").as_deref() == Some("0")
    });
}

#[test]
fn ten_thousand_entries_wait_for_the_first_instances() {
    let _machine = machine();
    let redis = Redis::start();
    add(&redis, now_ms(), 0..ENTRIES, "lobby");
    let services: Vec<_> = std::thread::scope(|scope| {
        let starts = [(); 2].map(|()| scope.spawn(|| on(&redis)));
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    for service in &services {
        assert_log(service, "lobby", ENTRIES);
    }
    wait_until_all_is_done(&redis);
    // And one that was not there: from Redis, not from its own memory.
    assert_log(&on(&redis), "lobby", ENTRIES);
}

#[test]
fn instances_that_are_killed_while_they_take_leave_nothing_undone_and_nothing_done_twice() {
    let _machine = machine();
    let redis = Redis::start();
    add(&redis, now_ms(), 0..ENTRIES, "lobby");
    // Whichever takes: both are killed, one after the other.
    for least in [200, 3000] {
        let service = on(&redis);
        let mut taken = 0;
        until("some are taken", || {
            taken = numbered(&service, "lobby");
            taken >= least
        });
        service.signal("KILL");
        assert!(!service.wait().0.success());
        println!("killed when at least {taken} were taken");
        assert!(taken < ENTRIES, "it was too late for this test");
    }
    let services = [on(&redis), on(&redis)];
    for service in &services {
        assert_log(service, "lobby", ENTRIES);
    }
    wait_until_all_is_done(&redis);
}

/// Both are there, and one of them dies.
#[test]
fn one_instance_goes_on_where_the_other_was_killed() {
    let _machine = machine();
    let redis = Redis::start();
    let (a, b) = (on(&redis), on(&redis));
    let mut member = b.client("1", "");
    let start = join(&mut member, "lobby", Value::Null);
    assert_eq!(start["seq"], 0);
    let ms = now_ms();
    std::thread::scope(|scope| {
        let adds = scope.spawn(|| {
            for part in 0..20 {
                add(&redis, ms, part * 100..(part + 1) * 100, "lobby");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        until("some are taken", || numbered(&a, "lobby") >= 500);
        a.signal("KILL");
        adds.join().unwrap();
    });
    // Live, in order, each once.
    for expected in expected(2000, "lobby") {
        assert_eq!(member.text(), expected);
    }
    member.assert_quiet();
    assert_log(&b, "lobby", 2000);
    wait_until_all_is_done(&redis);
}

#[test]
fn what_is_older_than_messages_are_kept_is_dropped() {
    let redis = Redis::start();
    add(&redis, now_ms() - 300_000, 0..50, "lobby");
    add(&redis, now_ms(), 0..50, "lobby");
    let services = [on(&redis), on(&redis)];
    services.iter().for_each(|service| assert_log(service, "lobby", 50));
    wait_until_all_is_done(&redis);
}

#[test]
fn what_is_no_message_does_no_harm() {
    let redis = Redis::start();
    let too_large = format!(r#"{{"event":"e","data":"{}"}}"#, "x".repeat(70_000));
    let junk = |redis: &Redis| {
        let lobby = ("channel", &b"ws:room:lobby"[..]);
        let good = ("message", &br#"{"event":"e"}"#[..]);
        let messages: [&[u8]; 11] = [
            b"",
            b"{",
            br#"{"a":1"#,
            br#"{"a":1}}"#,
            br#"[{"event":"e"}]"#,
            b"1",
            b"null",
            b"\"text\"",
            b"{\"a\":\"\xff\"}",
            br#"{"a":1} {"a":2}"#,
            too_large.as_bytes(),
        ];
        messages.iter().for_each(|bytes| add_fields(redis, &[lobby, ("message", bytes)]));
        let channels: [&[u8]; 9] = [
            b"",
            b"lobby",
            b"ws:room:",
            b"ws:room:a b",
            b"ws:user:",
            b"ws:other:1",
            b"shop:ws:room:lobby",
            b"\xff",
            "ws:room:ü".as_bytes(),
        ];
        channels.iter().for_each(|bytes| add_fields(redis, &[("channel", bytes), good]));
        add_fields(redis, &[lobby]);
        add_fields(redis, &[good]);
        add_fields(redis, &[("other", b"field")]);
    };
    // Before there is an instance, and while there are two.
    junk(&redis);
    add_one(&redis, "ws:room:lobby", &message(0, "lobby"));
    let services = [on(&redis), on(&redis)];
    let mut member = services[0].client("1", "");
    until("the first one", || join(&mut member, "lobby", Value::Null)["seq"] == 1);
    for n in 1..4 {
        junk(&redis);
        add_one(&redis, "ws:room:lobby", &message(n, "lobby"));
        assert_eq!(member.text(), expected(n + 1, "lobby").pop().unwrap());
    }
    services.iter().for_each(|service| assert_log(service, "lobby", 4));
    wait_until_all_is_done(&redis);
    services.iter().for_each(Service::assert_serves);
}

#[test]
fn a_message_is_delivered_as_it_is_behind_its_number() {
    let redis = Redis::start();
    let services = [on(&redis), on(&redis)];
    let mut members = services.each_ref().map(|service| service.client("7", ""));
    for member in &mut members {
        join(member, "lobby", Value::Null);
    }
    let messages = [
        (r#"{"event":"e","data":{ "z": 1.0 }}"#, r#"{"seq":1,"event":"e","data":{ "z": 1.0 }}"#),
        (r#"{"a":"ü \u0000"}"#, r#"{"seq":2,"a":"ü \u0000"}"#),
    ];
    for (added, _) in messages {
        add_one(&redis, "ws:room:lobby", added);
    }
    // However the blanks come out, it is an object with a number.
    add_one(&redis, "ws:room:lobby", " { \"a\": 1}\n");
    for member in &mut members {
        for (_, expected) in messages {
            assert_eq!(member.text(), expected);
        }
        assert_eq!(member.json(), json!({"seq": 3, "a": 1}));
    }
}

/// It is an object like others: dropped or delivered, but nothing broken.
#[test]
fn an_object_of_nothing_does_no_harm() {
    let redis = Redis::start();
    let service = on(&redis);
    let mut member = service.client("7", "");
    join(&mut member, "lobby", Value::Null);
    ["{}", "{ }"].iter().for_each(|added| add_one(&redis, "ws:room:lobby", added));
    add_one(&redis, "ws:room:lobby", &message(0, "lobby"));
    let mut seq = 0;
    loop {
        let came = member.json();
        seq += 1;
        assert_eq!(came["seq"], seq, "{came}");
        if came.get("data").is_some() {
            break;
        }
        assert_eq!(came, json!({ "seq": seq }));
    }
    println!("{} of 2 were delivered", seq - 1);
}

#[test]
fn users_and_everyone_are_reached_too() {
    let redis = Redis::start();
    let services = [on(&redis), on(&redis)];
    let mut users = services.each_ref().map(|service| service.client("7", ""));
    let mut admins = services.each_ref().map(|service| service.client("ops", "admin"));
    let own = r#"{"event":"e","to":"7"}"#;
    add_one(&redis, "ws:user:7", own);
    for user in &mut users {
        assert_eq!(user.text(), r#"{"user_seq":1,"event":"e","to":"7"}"#);
    }
    let everyone = r#"{"event":"sale","to":"broadcast"}"#;
    add_one(&redis, "ws:broadcast", everyone);
    let statistics = r#"{"type":"ADMIN_STATS_UPDATED","data":{}}"#;
    add_one(&redis, "events", statistics);
    for user in &mut users {
        assert_eq!(user.text(), everyone);
    }
    for admin in &mut admins {
        assert_eq!(admin.text(), everyone);
        assert_eq!(admin.text(), statistics);
    }
    // Each once.
    wait_until_all_is_done(&redis);
    users.iter_mut().chain(&mut admins).for_each(Client::assert_quiet);
}

#[test]
fn the_door_has_the_prefix_and_so_have_its_channels() {
    let redis = Redis::start();
    let service = crowd::start_on(&redis, &[("REDIS_PREFIX", "shop:")]);
    let mut member = service.client("1", "");
    join(&mut member, "lobby", Value::Null);
    let add = |door: &str, channel: &str, n: u64| {
        let text = message(n, "lobby");
        redis.run(&["XADD", door, "*", "channel", channel, "message", &text]);
    };
    add("ws:publish", "ws:room:lobby", 8);
    add("shop:ws:publish", "ws:room:lobby", 9);
    add("shop:ws:publish", "shop:ws:room:lobby", 0);
    assert_eq!(member.text(), expected(1, "lobby")[0]);
    member.assert_quiet();
}

/// What the service had made there is gone, and is made anew.
#[test]
fn the_door_opens_again_after_a_flush_and_a_restart() {
    let mut redis = Redis::start();
    let service = on(&redis);
    let mut member = service.client("1", "");
    join(&mut member, "lobby", Value::Null);
    let mut n = 0;
    let mut passes = |redis: &Redis, member: &mut Client| {
        n += 1;
        add_one(redis, "ws:room:lobby", &message(n, "lobby"));
        // A reset may come before or behind it.
        loop {
            let came = member.json();
            if came["type"] != "reset" {
                assert_eq!(came["data"], n, "{came}");
                break;
            }
        }
    };
    passes(&redis, &mut member);
    redis.run(&["FLUSHALL"]);
    passes(&redis, &mut member);
    redis.run(&["DEL", DOOR]);
    passes(&redis, &mut member);
    redis.kill();
    redis.start_again();
    passes(&redis, &mut member);
    passes(&redis, &mut member);
}

/// Each entry is for another room, so that one instance cannot do it by counting.
#[test]
fn entries_for_many_rooms_are_each_numbered_once() {
    const ROOMS: u64 = 20;
    let redis = Redis::start();
    let services = [on(&redis), on(&redis)];
    let mut connection = redis.connection();
    let mut pipe = redis::pipe();
    for n in 0..100 {
        for room in 0..ROOMS {
            let room = format!("room-{room}");
            let channel = format!("ws:room:{room}");
            let text = message(n, &room);
            pipe.cmd("XADD").arg(&[DOOR, "*", "channel", &channel, "message", &text]).ignore();
        }
    }
    pipe.exec(&mut connection).unwrap();
    for room in 0..ROOMS {
        assert_log(&services[room as usize % 2], &format!("room-{room}"), 100);
    }
    wait_until_all_is_done(&redis);
}
