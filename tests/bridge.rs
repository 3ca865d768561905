//! Verifies that instances reach each other over a real redis-server, and survive all that it can do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use realtime_service::bridge::{
    BridgeState, DropReason, Incoming, LogLimits, Outgoing, PubSub, QUEUE_MESSAGES, RedisPubSub,
};
use realtime_service::config::{RedisConfig, Secret};
use realtime_service::hub::Target;
use realtime_service::protocol::{Id, Room, frame_payload};
use realtime_service::runtime::count::Kind;
use realtime_service::runtime::threads::Threads;
use support::{PATIENCE, Redis, free_port, run, until};

/// Delivery resumes within this of the return of Redis.
const RESUMED: Duration = Duration::from_secs(5);

/// tests/ordered_log.rs has the cases with a log.
const NO_LOG: LogLimits = LogLimits { messages: 0, ttl: Duration::from_secs(1) };

fn config(addr: &str) -> RedisConfig {
    RedisConfig { addr: Secret::new(addr), password: None, prefix: String::new() }
}

fn config_of(redis: &Redis) -> RedisConfig {
    config(&redis.addr())
}

/// A count from Redis' statistics of commands.
fn stat(connection: &mut redis::Connection, command: &str, field: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg("commandstats").query(connection).unwrap();
    let line = text.lines().find(|line| line.starts_with(command)).unwrap_or_default();
    let count = line.split(',').find_map(|part| part.strip_prefix(field)?.strip_prefix('='));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// One instance: its bridge, and what the bridge gave to its hub.
struct Instance {
    bridge: RedisPubSub,
    received: Receiver<(Target, String)>,
}

impl Instance {
    fn start(config: &RedisConfig) -> Self {
        Self::start_with(config, None)
    }

    /// With a gate, the handler waits for a token before each delivery.
    fn start_with(config: &RedisConfig, gate: Option<Receiver<()>>) -> Self {
        let bridge = RedisPubSub::new(config, NO_LOG, Threads::default()).unwrap();
        let (sender, received) = unbounded();
        bridge
            .start(Arc::new(move |incoming| {
                let Incoming::Message(delivery) = incoming else {
                    return ControlFlow::Continue(());
                };
                if let Some(gate) = &gate {
                    let _ = gate.recv();
                }
                let frame = delivery.draft.complete(None).frame;
                let text = String::from_utf8(frame_payload(&frame).to_vec()).unwrap();
                match sender.send((delivery.target, text)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }))
            .unwrap();
        Self { bridge, received }
    }

    fn connected(config: &RedisConfig) -> Self {
        let instance = Self::start(config);
        instance.wait_for("connected");
        instance
    }

    fn wait_for(&self, state: &str) {
        until(state, || self.bridge.state().as_str() == state);
    }

    fn publish(&self, target: &Target, payload: &str) -> Result<(), DropReason> {
        let members = payload.strip_prefix('{').unwrap().to_owned().into();
        self.bridge.publish(Outgoing { target: target.clone(), members })
    }

    fn next(&self) -> (Target, String) {
        self.received.recv_timeout(PATIENCE).expect("a message arrives")
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.bridge.counters().dropped(reason)
    }

    fn close(&self) {
        self.bridge.close(Instant::now() + PATIENCE).unwrap();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.bridge.close(Instant::now() + PATIENCE);
    }
}

fn room(name: &str) -> Target {
    Target::Room(Room::parse(name).unwrap())
}

fn numbered(n: usize) -> String {
    format!(r#"{{"n":{n}}}"#)
}

fn number_of((_, text): &(Target, String)) -> usize {
    text.strip_prefix(r#"{"n":"#).unwrap().strip_suffix('}').unwrap().parse().unwrap()
}

/// Publishes at `from` until it arrives at `to`, which must be soon; returns the last number used.
fn resumes(from: &Instance, to: &Instance, mut n: usize) -> usize {
    let start = Instant::now();
    loop {
        n += 1;
        let _ = from.publish(&Target::Everyone, &numbered(n));
        if let Ok(message) = to.received.recv_timeout(Duration::from_millis(20)) {
            assert!(start.elapsed() < RESUMED, "resumed only after {:?}", start.elapsed());
            eprintln!("resumed after {:?}", start.elapsed());
            assert!(number_of(&message) <= n);
            break;
        }
        assert!(start.elapsed() < RESUMED, "not resumed");
    }
    // What is still on its way arrives before this one.
    n += 1;
    until("the sentinel is taken", || from.publish(&Target::Everyone, &numbered(n)).is_ok());
    while number_of(&to.next()) != n {}
    n
}

#[test]
fn two_instances_exchange_in_order_without_duplicates() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let targets = [
        room("order-1"),
        room("seller-5"),
        Target::User(Id::parse("u1").unwrap()),
        Target::Everyone,
    ];
    for n in 0..2000 {
        let target = &targets[n % targets.len()];
        a.publish(target, &numbered(n)).unwrap();
        b.publish(target, &numbered(n)).unwrap();
    }
    a.publish(&room("end"), r#"{"a":1}"#).unwrap();
    b.publish(&room("end"), r#"{"a":1}"#).unwrap();
    for instance in [&a, &b] {
        for n in 0..2000 {
            assert_eq!(instance.next(), (targets[n % targets.len()].clone(), numbered(n)));
        }
        // Anything repeated, or its own, would stand before this.
        assert_eq!(instance.next(), (room("end"), r#"{"a":1}"#.to_owned()));
    }
    until("all is confirmed", || a.bridge.counters().published() == 2001);
    a.close();
    b.close();
    assert!(a.received.is_empty() && b.received.is_empty());
    assert_eq!(a.bridge.counters().received(), 2001);
    assert_eq!(a.bridge.state(), BridgeState::Disconnected);
}

#[test]
fn foreign_messages_and_events_arrive_and_junk_harms_nothing() {
    let redis = Redis::start();
    let a = Instance::connected(&config_of(&redis));
    let mut admin = redis.connection();
    let mut publish = |channel: &str, payload: &[u8]| {
        redis::cmd("PUBLISH").arg(channel).arg(payload).exec(&mut admin).unwrap();
    };
    let full = format!(r#"{{"x":"{}"}}"#, "x".repeat(65_536 - 8));
    let good = [
        ("ws:room:seller-5", room("seller-5"), r#"{"event":"new_order","data":{"id":1.0}}"#),
        ("ws:user:u1", Target::User(Id::parse("u1").unwrap()), r#"{"origin":"shop"}"#),
        ("ws:broadcast", Target::Everyone, "plain ü"),
        ("ws:room:a", room("a"), &full),
        ("events", Target::Admins, r#"{"type":"ADMIN_STATS_UPDATED","x":[1]}"#),
        (
            "events",
            Target::Seller(Id::parse("5").unwrap()),
            r#"{"type":"SELLER_STATS_UPDATED","seller_id":"5"}"#,
        ),
        (
            "events",
            Target::Seller(Id::parse("7").unwrap()),
            r#"{"type":"SELLER_STATS_UPDATED","seller_id":7}"#,
        ),
    ];
    let over = full.clone() + " ";
    let junk: [(&str, &[u8], DropReason); 9] = [
        ("ws:room:a", b"\xff\xfe", DropReason::NotUtf8),
        ("ws:room:", b"{}", DropReason::BadChannel),
        ("ws:room:a b", b"{}", DropReason::BadChannel),
        ("ws:room:ä", b"{}", DropReason::BadChannel),
        ("ws:user:", b"{}", DropReason::BadChannel),
        ("ws:broadcast", over.as_bytes(), DropReason::TooLarge),
        ("events", b"{", DropReason::BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED"}"#, DropReason::BadEvent),
        ("events", br#"{"type":"OTHER"}"#, DropReason::UnknownEvent),
    ];
    for i in 0..junk.len().max(good.len()) {
        if let Some((channel, payload, _)) = junk.get(i) {
            publish(channel, payload);
        }
        if let Some((channel, _, payload)) = good.get(i) {
            publish(channel, payload.as_bytes());
        }
    }
    publish("ws:room:end", b"end");
    for (_, target, payload) in good {
        assert_eq!(a.next(), (target, payload.to_owned()));
    }
    assert_eq!(a.next(), (room("end"), "end".to_owned()));
    for &reason in DropReason::ALL {
        let expected = junk.iter().filter(|(_, _, r)| *r == reason).count() as u64;
        assert_eq!(a.dropped(reason), expected, "{reason:?}");
    }
    assert_eq!(a.bridge.state(), BridgeState::Connected);
    assert_eq!(a.bridge.counters().reconnects(), 0);
}

#[test]
fn what_an_instance_writes_is_plain_json_with_one_leading_member() {
    let redis = Redis::start();
    let mut listener = redis.connection();
    let mut listener = listener.as_pubsub();
    listener.subscribe("ws:room:order-1").unwrap();
    let a = Instance::connected(&config_of(&redis));
    for n in 0..2 {
        a.publish(&room("order-1"), &numbered(n)).unwrap();
    }
    for n in 0..2 {
        let wire: String = listener.get_message().unwrap().get_payload().unwrap();
        let json: serde_json::Value = serde_json::from_str(&wire).unwrap();
        let (instance, number) = json["origin"].as_str().unwrap().split_once(':').unwrap();
        uuid::Uuid::parse_str(instance).unwrap();
        assert_eq!((number.to_owned(), json["n"].as_u64()), ((n + 1).to_string(), Some(n)));
    }
}

#[test]
fn a_prefix_with_glob_characters_separates_systems() {
    let redis = Redis::start();
    let with = |prefix: &str| RedisConfig { prefix: prefix.to_owned(), ..config_of(&redis) };
    let odd = "a*[b]?\\ ü:";
    let (a, b) = (Instance::connected(&with(odd)), Instance::connected(&with(odd)));
    // A pattern that was not escaped would match these too.
    let others = ["", "aXb?\\ ü:", "ab*[b]?\\ ü:"].map(|p| Instance::connected(&with(p)));
    for other in &others {
        other.publish(&room("x"), r#"{"other":1}"#).unwrap();
        until("it is confirmed", || other.bridge.counters().published() == 1);
    }
    a.publish(&room("x"), r#"{"a":1}"#).unwrap();
    assert_eq!(b.next(), (room("x"), r#"{"a":1}"#.to_owned()));
    for other in &others {
        other.close();
        assert!(other.received.is_empty());
    }
    assert_eq!(b.dropped(DropReason::BadChannel), 0);
}

#[test]
fn passwords_users_and_databases_are_honoured() {
    let redis = Redis::start();
    let odd = "p@ss:/?#%41 \"'\\{}$ü";
    let mut admin = redis.connection();
    run(&mut admin, &["ACL", "SETUSER", "bob", "on", &format!(">{odd}"), "~*", "&*", "+@all"]);
    run(&mut admin, &["ACL", "SETUSER", "eve", "on", ">s%3F", "~*", "&*", "+@all"]);
    run(&mut admin, &["CONFIG", "SET", "requirepass", odd]);
    let at = redis.addr();
    let password = || Some(Secret::new(odd));
    let a = Instance::connected(&RedisConfig { password: password(), ..config_of(&redis) });
    let bob = config(&format!("redis://bob@{at}/3"));
    let b = Instance::connected(&RedisConfig { password: password(), ..bob });
    let c = Instance::connected(&config(&format!("redis://eve:s%253F@{at}")));
    a.publish(&room("x"), r#"{"a":1}"#).unwrap();
    assert_eq!(b.next(), (room("x"), r#"{"a":1}"#.to_owned()));
    assert_eq!(c.next(), (room("x"), r#"{"a":1}"#.to_owned()));
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).unwrap();
    let of_bob = list.lines().filter(|l| l.contains("user=bob") && l.contains(" db=3 ")).count();
    assert_eq!(of_bob, 2, "two connections per instance: {list}");
}

#[test]
fn a_refused_password_is_tried_again() {
    let redis = Redis::start();
    let mut admin = redis.connection();
    run(&mut admin, &["CONFIG", "SET", "requirepass", "right"]);
    let with = |p: &str| RedisConfig { password: Some(Secret::new(p)), ..config_of(&redis) };
    let a = Instance::connected(&with("right"));
    let b = Instance::start(&with("other"));
    let none = Instance::start(&config_of(&redis));
    until("refusals", || {
        let of_b = stat(&mut admin, "cmdstat_auth", "failed_calls");
        of_b >= 4 && stat(&mut admin, "cmdstat_publish", "rejected_calls") >= 2
    });
    assert_eq!(
        (b.bridge.state(), none.bridge.state()),
        (BridgeState::Disconnected, BridgeState::Disconnected)
    );
    assert_eq!(b.publish(&Target::Everyone, r#"{"a":1}"#), Err(DropReason::Disconnected));
    run(&mut admin, &["CONFIG", "SET", "requirepass", "other"]);
    resumes(&a, &b, 0);
}

#[test]
fn a_refused_subscription_is_not_connected_and_heals() {
    let redis = Redis::start();
    let a = Instance::connected(&config_of(&redis));
    for (refuse, allow) in [("resetchannels", "allchannels"), ("-psubscribe", "+psubscribe")] {
        redis.run(&["ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all", refuse]);
        let bob = config(&format!("redis://bob:x@{}", redis.addr()));
        let b = Instance::start(&bob);
        until("it was refused twice", || {
            stat(&mut redis.connection(), "cmdstat_psubscribe", "rejected_calls") >= 2
        });
        assert_eq!(b.bridge.state(), BridgeState::Disconnected);
        redis.run(&["ACL", "SETUSER", "bob", allow]);
        resumes(&a, &b, 0);
        b.wait_for("connected");
        redis.run(&["CONFIG", "RESETSTAT"]);
    }
}

#[test]
fn a_hung_redis_delays_nobody_and_resumes() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let mut n = 0;
    let mut publish = || {
        n += 1;
        let _ = a.publish(&Target::Everyone, &numbered(n));
    };
    // Had a publisher waited for Redis, the silence would be noticed before more is taken than the queue
    // holds; so it is on a slow machine, which tries again.
    until("a full queue before the silence is noticed", || {
        a.wait_for("connected");
        redis.signal("STOP");
        while a.bridge.state() == BridgeState::Connected && a.dropped(DropReason::QueueFull) == 0 {
            publish();
        }
        let full = a.dropped(DropReason::QueueFull) > 0;
        if !full {
            redis.signal("CONT");
        }
        full
    });
    let start = Instant::now();
    while a.bridge.state() == BridgeState::Connected {
        assert!(start.elapsed() < RESUMED, "not noticed");
        publish();
    }
    eprintln!("noticed after {:?}, {n} messages", start.elapsed());
    assert_eq!(a.publish(&Target::Everyone, r#"{"a":1}"#), Err(DropReason::Disconnected));
    until("what waited is counted", || {
        a.dropped(DropReason::Disconnected) > 0 && a.dropped(DropReason::Lost) > 0
    });
    b.wait_for("disconnected");
    redis.signal("CONT");
    let n = resumes(&a, &b, n);
    resumes(&b, &a, n);
    a.wait_for("connected");
    b.wait_for("connected");
}

#[test]
fn a_hung_redis_does_not_hold_up_the_end() {
    let redis = Redis::start();
    let a = Instance::connected(&config_of(&redis));
    redis.signal("STOP");
    for n in 0..QUEUE_MESSAGES {
        let _ = a.publish(&Target::Everyone, &numbered(n));
    }
    let start = Instant::now();
    a.close();
    assert!(start.elapsed() < Duration::from_secs(4), "closed after {:?}", start.elapsed());
    assert_eq!(a.publish(&Target::Everyone, r#"{"a":1}"#), Err(DropReason::Closed));
    redis.signal("CONT");
}

#[test]
fn a_killed_redis_is_found_again_each_time() {
    let mut redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let mut n = 0;
    for _ in 0..5 {
        redis.kill();
        a.wait_for("disconnected");
        b.wait_for("disconnected");
        redis.start_again();
        n = resumes(&a, &b, n);
        n = resumes(&b, &a, n);
        a.wait_for("connected");
        b.wait_for("connected");
    }
    assert!(a.bridge.counters().reconnects() >= 10);
}

#[test]
fn an_absent_redis_is_found_when_it_comes() {
    let port = free_port();
    let (a, b) = {
        let config = config(&format!("127.0.0.1:{port}"));
        (Instance::start(&config), Instance::start(&config))
    };
    assert_eq!(a.bridge.state(), BridgeState::Disconnected);
    assert_eq!(a.publish(&Target::Everyone, r#"{"a":1}"#), Err(DropReason::Disconnected));
    let _redis = Redis::at(port, &[]);
    let n = resumes(&a, &b, 0);
    resumes(&b, &a, n);
    a.wait_for("connected");
    assert_eq!(a.bridge.counters().reconnects(), 0);
}

#[test]
fn a_lost_subscriber_comes_back() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let mut n = 0;
    for _ in 0..3 {
        redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        n = resumes(&a, &b, n);
        b.wait_for("connected");
    }
}

#[test]
fn a_subscriber_lost_to_a_full_output_buffer_comes_back() {
    let redis = Redis::start();
    redis.run(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 32kb 0 0"]);
    let a = Instance::connected(&config_of(&redis));
    let (gate, closed): (Sender<()>, _) = bounded(0);
    let b = Instance::start_with(&config_of(&redis), Some(closed));
    b.wait_for("connected");
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(30_000));
    until("it is cut", || {
        let _ = a.publish(&Target::Everyone, &body);
        let list = format!("{:?}", redis.run(&["CLIENT", "LIST", "TYPE", "pubsub"]));
        list.matches("sub=0 psub=5").count() < 2
    });
    drop(gate);
    // The old messages that its socket still held come first, then the break, then the new ones.
    let start = Instant::now();
    let mut n = 0;
    loop {
        n += 1;
        let _ = a.publish(&Target::Everyone, &numbered(n));
        match b.received.recv_timeout(Duration::from_millis(20)) {
            Ok((_, text)) if text.starts_with(r#"{"n""#) => break,
            _ => assert!(start.elapsed() < RESUMED, "not resumed"),
        }
    }
    b.wait_for("connected");
}

#[test]
fn a_publisher_lost_midway_repeats_nothing() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let mut n = 0;
    let mut accepted = 0;
    for round in 1..=5 {
        let until_kill = n + 3000;
        while n < until_kill {
            n += 1;
            accepted += u64::from(a.publish(&Target::Everyone, &numbered(n)).is_ok());
        }
        redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
        until("it is back", || {
            a.bridge.counters().reconnects() == round && a.bridge.state() == BridgeState::Connected
        });
    }
    n += 1;
    until("the sentinel is taken", || a.publish(&Target::Everyone, &numbered(n)).is_ok());
    accepted += 1;
    let mut last = 0;
    let mut arrived = 0;
    while last < n {
        let number = number_of(&b.next());
        assert!(number > last, "{number} after {last}");
        last = number;
        arrived += 1;
    }
    let counters = a.bridge.counters();
    let refused =
        counters.dropped(DropReason::Disconnected) + counters.dropped(DropReason::QueueFull);
    let lost = counters.dropped(DropReason::Lost);
    eprintln!("accepted {accepted}, arrived {arrived}, lost {lost}, dropped {refused}");
    until("all is accounted for", || {
        counters.published()
            + counters.dropped(DropReason::Lost)
            + counters.dropped(DropReason::Disconnected)
            + counters.dropped(DropReason::QueueFull)
            == n as u64
    });
    assert!(arrived >= counters.published(), "confirmed, but did not arrive");
}

#[test]
fn closing_publishes_what_is_queued() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    for n in 0..5000 {
        a.publish(&Target::Everyone, &numbered(n)).unwrap();
    }
    a.close();
    assert_eq!(a.bridge.counters().published(), 5000);
    assert_eq!(a.publish(&Target::Everyone, r#"{"a":1}"#), Err(DropReason::Closed));
    for n in 0..5000 {
        assert_eq!(number_of(&b.next()), n);
    }
    b.close();
    b.close();
}

#[test]
fn closing_waits_out_no_idle_second() {
    const INSTANCES: u32 = 20;
    let redis = Redis::start();
    let instances: Vec<_> =
        (0..INSTANCES).map(|_| Instance::connected(&config_of(&redis))).collect();
    let start = Instant::now();
    instances.iter().for_each(Instance::close);
    let took = start.elapsed();
    eprintln!("{INSTANCES} closed after {took:?}");
    // One alone might be closed just when its second ends, or on a machine that is busy for a moment.
    assert!(took < INSTANCES * Duration::from_millis(250), "{took:?}");
}

/// A way to Redis on which subscriptions can be silenced while their sockets stay open.
struct Proxy {
    port: u16,
    /// Subscriptions up to this connection bring nothing more.
    silenced: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
}

impl Proxy {
    fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            silenced: Arc::default(),
            connections: Arc::default(),
        };
        let (silenced, connections) = (proxy.silenced.clone(), proxy.connections.clone());
        let behind = redis.addr();
        // Ends with the process: nothing waits for it.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                let server = TcpStream::connect(&behind).unwrap();
                let (client_too, server_too) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                let silenced = silenced.clone();
                std::thread::spawn(move || pass(client_too, server_too, |_| true));
                std::thread::spawn(move || {
                    let mut subscription = false;
                    pass(server, client, |bytes| {
                        subscription |= bytes.windows(10).any(|w| w == b"psubscribe");
                        !subscription || number > silenced.load(Ordering::SeqCst)
                    });
                });
            }
        });
        proxy
    }

    fn silence_subscriptions(&self) {
        self.silenced.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if passes(&buffer[..length]) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_subscription_that_falls_silent_is_made_anew() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let a = Instance::connected(&config_of(&redis));
    let b = Instance::connected(&config(&format!("127.0.0.1:{}", proxy.port)));
    proxy.silence_subscriptions();
    let n = resumes(&a, &b, 0);
    resumes(&b, &a, n);
    b.wait_for("connected");
    assert_eq!(b.bridge.counters().reconnects(), 2, "the publisher's connection too");
}

#[test]
fn a_subscription_without_a_publisher_is_kept_and_pinged() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all", "-publish"]);
    let a = Instance::connected(&config_of(&redis));
    let b = Instance::start(&config(&format!("redis://bob:x@{}", redis.addr())));
    let list =
        || -> String { redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap() };
    until("it is pinged", || {
        list()
            .lines()
            .any(|l| l.contains("user=bob") && l.contains("psub=5") && l.contains("cmd=ping"))
    });
    assert_eq!(b.bridge.state(), BridgeState::Disconnected);
    a.publish(&Target::Everyone, r#"{"a":1}"#).unwrap();
    assert_eq!(b.next(), (Target::Everyone, r#"{"a":1}"#.to_owned()));
    assert_eq!(b.bridge.counters().reconnects(), 0);
    redis.run(&["ACL", "SETUSER", "bob", "+publish"]);
    b.wait_for("connected");
}

/// What was logged, one text per line, by all tests of this file.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Text(String);
        impl<'kvs> log::kv::VisitSource<'kvs> for Text {
            fn visit_pair(
                &mut self,
                key: log::kv::Key<'kvs>,
                value: log::kv::Value<'kvs>,
            ) -> Result<(), log::kv::Error> {
                self.0 += &format!(" {key}={value}");
                Ok(())
            }
        }
        let mut text = Text(format!("{} {}", record.level(), record.args()));
        record.key_values().visit(&mut text).unwrap();
        self.0.lock().unwrap().push(text.0);
    }

    fn flush(&self) {}
}

/// The lines at info or above that name this Redis.
fn lines_of(redis: &Redis) -> Vec<String> {
    let address = format!("redis={}", redis.addr());
    let lines = LINES.0.lock().unwrap();
    lines.iter().filter(|l| !l.starts_with("DEBUG") && l.contains(&address)).cloned().collect()
}

#[test]
fn each_change_is_one_line_that_tells_no_secret() {
    let _ = log::set_logger(&LINES);
    log::set_max_level(log::LevelFilter::Debug);
    let mut redis = Redis::start();
    redis.run(&["CONFIG", "SET", "requirepass", "other"]);
    let config = RedisConfig { password: Some(Secret::new("sesame")), ..config_of(&redis) };
    let a = Instance::start(&config);
    let tries = || {
        let lines = LINES.0.lock().unwrap();
        let addr = redis.addr();
        lines.iter().filter(|l| l.contains(&addr) && l.contains("authentication failed")).count()
    };
    until("some tries", || tries() >= 4);
    redis.kill();
    redis.start_again();
    // The new one asks for no password and refuses one: it is wrong still.
    redis.run(&["CONFIG", "SET", "requirepass", "sesame"]);
    a.wait_for("connected");
    redis.kill();
    a.wait_for("disconnected");
    redis.start_again();
    redis.run(&["CONFIG", "SET", "requirepass", "sesame"]);
    a.wait_for("connected");
    a.close();
    let lines = lines_of(&redis);
    let levels: Vec<_> = lines.iter().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(levels, ["WARN", "INFO", "WARN", "INFO"], "{lines:#?}");
    assert!(lines[0].contains("reason="), "{lines:#?}");
    assert!(LINES.0.lock().unwrap().iter().all(|line| !line.contains("sesame")));
}

/// `cargo test --release --test bridge -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let redis = Redis::start();
    let (a, b) = (Instance::connected(&config_of(&redis)), Instance::connected(&config_of(&redis)));
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(200));
    let start = Instant::now();
    let total = 300_000;
    for n in 0..total {
        // More on the way, and Redis would cut the subscriber for its output buffer.
        until("there is room", || b.received.len() as u64 + 20_000 > n);
        while a.publish(&room("order-1"), &body).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    until("all is confirmed", || a.bridge.counters().published() == total);
    let published = start.elapsed();
    until("all arrived", || b.received.len() as u64 == total);
    let rate = |took: Duration| total as f64 / took.as_secs_f64();
    eprintln!("published {:.0}/s, arrived {:.0}/s", rate(published), rate(start.elapsed()));
    while b.received.try_recv().is_ok() {}
    let mut delays: Vec<_> = (0..1000)
        .map(|n| {
            let start = Instant::now();
            a.publish(&room("order-1"), &numbered(n)).unwrap();
            b.next();
            start.elapsed()
        })
        .collect();
    delays.sort();
    eprintln!("one at a time: p50 {:?}, p99 {:?}", delays[500], delays[990]);
}
