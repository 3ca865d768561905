//! Verifies that instances survive what can happen to Redis and to each other: nobody waits for it,
//! nothing comes twice, and all is well again within seconds of its return.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Client, Frame, Redis, Service, until};

/// Cross-instance delivery resumes within this of the return of Redis.
const RESUMED: Duration = Duration::from_secs(5);

/// Tests send as fast as they can, and are not pinged however slow the machine is.
const UNDISTURBED: [(&str, &str); 2] = [("RATE_LIMIT", "0"), ("PING_INTERVAL", "1h")];

fn on(redis: &Redis) -> Service {
    Service::on(redis, &UNDISTURBED)
}

/// Notifies everyone; the answer says that the hub has taken it over.
fn notify(service: &Service, event: &str) {
    let answer = service.notify(&json!({"event": event, "broadcast": true}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Notifies at `from` until that arrives at `to`, which must be soon, and takes all of it.
fn resumes(from: &Service, to: &mut Client, since: Instant) {
    let mut events = Vec::new();
    to.stream().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while !(to.stream().peek(&mut [0]).is_ok_and(|bytes| bytes > 0)) {
        assert!(since.elapsed() < RESUMED, "not resumed");
        events.push(format!("try-{}", events.len()));
        notify(from, events.last().unwrap());
    }
    assert!(since.elapsed() < RESUMED, "resumed only after {:?}", since.elapsed());
    to.stream().set_read_timeout(Some(support::PATIENCE)).unwrap();
    events.push("resumed".into());
    notify(from, "resumed");
    // Some of the tries were lost; the others come in order, once.
    let mut left = events.into_iter();
    loop {
        let event = to.json()["event"].as_str().unwrap().to_owned();
        assert!(left.any(|sent| sent == event), "{event} came twice or out of order");
        if event == "resumed" {
            break;
        }
    }
}

/// A broadcast comes back to its sender.
fn assert_local_delivery(client: &mut Client, body: Value) {
    client.broadcast("lobby", &body);
    assert_eq!(client.json()["body"], body);
}

/// The lines about the state of Redis, as `connected` and `disconnected`.
fn told(service: &Service) -> Vec<&'static str> {
    let lines = service.log();
    lines
        .iter()
        .filter_map(|line| {
            if line.contains("redis is connected") {
                return Some("connected");
            }
            line.contains("redis is disconnected").then_some("disconnected")
        })
        .collect()
}

/// One line per change, and these in the end. There may be more before: on a machine where an answer of
/// Redis takes over a second, Redis counts as hung.
fn assert_told_in_turn(service: &Service, last: &[&str]) {
    let told = told(service);
    assert!(told.ends_with(last), "{told:?}");
    assert!(told.windows(2).all(|two| two[0] != two[1]), "{told:?}");
}

#[test]
fn redis_is_absent_comes_dies_and_returns() {
    let mut redis = Redis::start();
    redis.kill();
    let addr = redis.addr();
    let services: [Service; 2] = std::array::from_fn(|_| {
        Service::with(&[UNDISTURBED.as_slice(), &[("REDIS_ADDR", addr.as_str())]].concat())
    });
    let [a, b] = &services;
    let (mut here, mut there) = (a.client("1", ""), b.client("2", ""));
    here.join("lobby");
    for service in &services {
        service.log_line("redis is disconnected");
        assert_eq!(service.redis_state(), "disconnected");
    }
    assert_local_delivery(&mut here, json!("absent"));

    redis.start_again();
    resumes(a, &mut there, Instant::now());
    for service in &services {
        service.wait_for_redis("connected");
    }
    until("the notifications at home", || event(&mut here) == "resumed");

    redis.kill();
    for service in &services {
        service.wait_for_redis("disconnected");
        notify(service, "while it was dead");
    }
    assert_eq!(event(&mut there), "while it was dead");
    assert_eq!(event(&mut here), "while it was dead");
    assert_local_delivery(&mut here, json!("dead"));

    redis.start_again();
    // What was told while it was away does not come late.
    resumes(a, &mut there, Instant::now());
    for service in &services {
        service.wait_for_redis("connected");
        assert_told_in_turn(service, &["disconnected", "connected", "disconnected", "connected"]);
    }
}

fn event(client: &mut Client) -> String {
    client.json()["event"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_hung_redis_costs_neither_time_nor_memory() {
    const ROUNDS: u32 = 50;
    let redis = Redis::start();
    let (a, b) = (on(&redis), on(&redis));
    let (mut here, mut there) = (a.client("1", ""), b.client("2", ""));
    here.join("lobby");
    assert_local_delivery(&mut here, json!("before"));
    // One round first, so that what stays allocated is so already.
    let one = json!({"event": "e", "data": "x".repeat(2000), "room": "far"});
    let (batch, token) = (json!(vec![one; 100]).to_string(), support::token("backend", "service"));
    let publish = |messages: usize| {
        for _ in 0..messages / 100 {
            let answer = a.http("POST", "/api/notify", Some(&token), &batch);
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    publish(1000);
    let before_kib = a.rss_kib();
    redis.signal("STOP");
    let start = Instant::now();
    // What is on its way to Redis waits until the silence is noticed, and comes in its order.
    for n in 0..20 {
        here.broadcast("lobby", &json!(n));
    }
    for n in 0..20 {
        assert_eq!(here.json()["body"], json!(n));
    }
    let mut most_kib = 0;
    for n in 0..ROUNDS {
        publish(1000);
        assert_local_delivery(&mut here, json!(n));
        most_kib = most_kib.max(a.rss_kib());
    }
    assert!(start.elapsed() < ROUNDS * Duration::from_secs(1), "each waited for Redis");
    // 100 MB were published; 16 MiB may wait, once more as commands that wait for their answers.
    let grown_kib = most_kib.saturating_sub(before_kib);
    assert!(grown_kib < 48 * 1024, "{grown_kib} KiB more than before");
    eprintln!("50,000 messages against a hung Redis: {grown_kib} KiB at most");
    for service in [&a, &b] {
        service.wait_for_redis("disconnected");
    }
    notify(&a, "to whom it is near");
    assert_eq!(event(&mut here), "to whom it is near");

    redis.signal("CONT");
    // It still had some of what was published before it was given up, and passes that on.
    resumes(&a, &mut there, Instant::now());
    for service in [&a, &b] {
        service.wait_for_redis("connected");
        assert_told_in_turn(service, &["connected", "disconnected", "connected"]);
    }
}

#[test]
fn a_hung_redis_does_not_hold_up_the_shutdown() {
    let redis = Redis::start();
    let a = on(&redis);
    let mut client = a.client("1", "");
    redis.signal("STOP");
    for _ in 0..10 {
        notify(&a, "e");
    }
    a.signal("TERM");
    for _ in 0..10 {
        assert_eq!(event(&mut client), "e");
    }
    assert_eq!(client.next(), Frame::Close(1001, "going away".into()));
    client.send_close(1001);
    drop(client);
    let (status, lines) = a.wait();
    assert!(status.success(), "{status}: {lines:#?}");
    redis.signal("CONT");
}

#[test]
fn a_wrong_password_is_told_without_the_password() {
    let redis = Redis::with(&["--requirepass", "right one"]);
    let addr = redis.addr();
    let in_url = format!("redis://:sesame%21@{addr}/0");
    for settings in [
        [("REDIS_ADDR", addr.as_str()), ("REDIS_PASSWORD", "sesame!")],
        [("REDIS_ADDR", in_url.as_str()), ("LOG_LEVEL", "debug")],
    ] {
        let service = Service::with(&settings);
        let line = service.log_line("redis is disconnected");
        assert!(line.contains("authentication failed"), "{line}");
        assert!(line.contains(&addr), "{line}");
        assert_eq!(service.redis_state(), "disconnected");
        let mut client = service.client("1", "");
        client.join("lobby");
        assert_local_delivery(&mut client, json!("alone"));
        drop(client);
        let (status, lines) = service.stop();
        assert!(status.success(), "{status}");
        assert!(lines.iter().all(|line| !line.contains("sesame")), "{lines:#?}");
        let at_info = lines.iter().filter(|line| !line.contains("DEBUG"));
        assert_eq!(at_info.filter(|line| line.contains("disconnected, messages")).count(), 1);
    }
    let good = [("REDIS_ADDR", addr.as_str()), ("REDIS_PASSWORD", "right one")];
    Service::with(&good).wait_for_redis("connected");
}

#[test]
fn without_the_right_to_subscribe_it_is_not_connected_until_it_has_it() {
    let redis = Redis::start();
    let acl = |rules: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("bob").arg(rules).exec(&mut redis.connection()).unwrap();
    };
    acl(&["on", "nopass", "~*", "&*", "+@all", "-psubscribe"]);
    let a = on(&redis);
    let url = format!("redis://bob:x@{}", redis.addr());
    let b = Service::with(&[UNDISTURBED.as_slice(), &[("REDIS_ADDR", url.as_str())]].concat());
    let mut there = b.client("2", "");
    let line = b.log_line("redis is disconnected");
    assert!(line.contains("PSUBSCRIBE refused"), "{line}");
    assert_eq!(b.redis_state(), "disconnected");
    acl(&["+psubscribe"]);
    resumes(&a, &mut there, Instant::now());
    b.wait_for_redis("connected");
    assert_told_in_turn(&b, &["disconnected", "connected"]);
}

#[test]
fn connections_that_redis_kills_are_made_anew() {
    let redis = Redis::start();
    let (a, b) = (on(&redis), on(&redis));
    let (mut here, mut there) = (a.client("1", ""), b.client("2", ""));
    for kind in ["pubsub", "normal", "pubsub"] {
        redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", kind, "SKIPME", "yes"])
            .exec(&mut redis.connection())
            .unwrap();
        let start = Instant::now();
        resumes(&a, &mut there, start);
        until("the same at home", || event(&mut here) == "resumed");
        resumes(&b, &mut here, start);
        until("the same at home", || event(&mut there) == "resumed");
        for service in [&a, &b] {
            service.wait_for_redis("connected");
        }
    }
}

#[test]
fn a_killed_instance_is_replaced_and_the_other_s_clients_go_on() {
    let redis = Redis::start();
    let (a, b) = (on(&redis), on(&redis));
    let (mut lost, mut stays) = (a.client("1", ""), b.client("2", ""));
    // So that the new one's numbers are below those that were seen of the old one.
    for n in 0..50 {
        notify(&a, &format!("old-{n}"));
    }
    for n in 0..50 {
        assert_eq!(event(&mut stays), format!("old-{n}"));
    }
    a.signal("KILL");
    drop(a.wait());
    until("the end", || lost.next() == Frame::End);
    let mut local = b.client("3", "");
    for client in [&mut stays, &mut local] {
        client.join("lobby");
    }
    assert_local_delivery(&mut stays, json!("alone"));
    assert_eq!(local.json()["body"], "alone");

    let c = on(&redis);
    let mut new = c.client("1", "");
    notify(&c, "new");
    for client in [&mut stays, &mut local, &mut new] {
        assert_eq!(event(client), "new");
    }
    notify(&b, "answer");
    for client in [&mut stays, &mut local, &mut new] {
        assert_eq!(event(client), "answer");
    }
}

#[test]
fn a_rolling_restart_loses_nothing_of_what_the_others_clients_are_sent() {
    let redis = Redis::start();
    let mut services = [on(&redis), on(&redis)];
    for round in 0..4 {
        let (leaving, staying) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let mut leaves = services[leaving].client("1", "");
        let mut stays = services[staying].client("2", "");
        let at = |n: usize, from: &str| format!("{from}-{round}-{n}");
        for n in 0..200 {
            notify(&services[leaving], &at(n, "last"));
        }
        // What it has taken over is published before it ends.
        services[leaving].signal("TERM");
        for n in 0..200 {
            assert_eq!(event(&mut leaves), at(n, "last"));
        }
        assert_eq!(leaves.next(), Frame::Close(1001, "going away".into()));
        drop(leaves);
        for n in 0..100 {
            notify(&services[staying], &at(n, "own"));
        }
        let mut from_leaving = 0;
        let mut own = 0;
        while (from_leaving, own) != (200, 100) {
            let event = event(&mut stays);
            if event.starts_with("last") {
                assert_eq!(event, at(from_leaving, "last"));
                from_leaving += 1;
            } else {
                assert_eq!(event, at(own, "own"));
                own += 1;
            }
        }
        let old = std::mem::replace(&mut services[leaving], on(&redis));
        let (status, lines) = old.wait();
        assert!(status.success(), "{status}: {lines:#?}");
        let mut back = services[leaving].client("1", "");
        notify(&services[leaving], "back");
        notify(&services[staying], "welcome");
        for client in [&mut back, &mut stays] {
            let mut both = [event(client), event(client)];
            both.sort();
            assert_eq!(both, ["back", "welcome"]);
        }
    }
    for service in &services {
        assert_eq!(told(service), ["connected"]);
    }
}
