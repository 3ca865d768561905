//! Verifies that `/health` says `connected` only while messages really flow through the master, and that an
//! instance finds its way back when one of its two connections is stranded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use support::{Redis, Service, until};

fn run(redis: &Redis, command: &[&str]) -> String {
    let value: redis::Value =
        redis::cmd(command[0]).arg(&command[1..]).query(&mut redis.connection()).unwrap();
    redis::from_redis_value(value).unwrap()
}

/// A replica of `master` that has its data.
fn replica_of(master: &Redis) -> Redis {
    let addr = master.addr();
    let (host, port) = addr.split_once(':').unwrap();
    let replica = Redis::with(&["--replicaof", host, port]);
    until("the replica follows", || {
        run(&replica, &["INFO", "replication"]).contains("master_link_status:up")
    });
    replica
}

/// How often this server was asked for its role.
fn role_calls(redis: &Redis) -> u64 {
    let stats = run(redis, &["INFO", "commandstats"]);
    let line = stats.lines().find(|line| line.starts_with("cmdstat_role:")).unwrap_or_default();
    let calls = line.split(',').find_map(|part| part.split_once("calls="));
    calls.map_or(0, |(_, number)| number.parse().unwrap())
}

fn assert_flows(service: &Service, redis: &Redis) {
    let mut client = service.client("7", "client");
    redis.publish("ws:user:7", r#"{"event":"in"}"#);
    assert_eq!(client.json()["event"], "in");
    let mut connection = redis.connection();
    let mut subscription = connection.as_pubsub();
    subscription.subscribe("ws:user:7").unwrap();
    assert_eq!(service.notify(&json!({"event": "out", "user_id": "7"})).status, 200);
    let message = subscription.get_message().unwrap();
    assert!(message.get_payload::<String>().unwrap().contains(r#""event":"out""#));
}

#[test]
fn a_replica_is_not_connected_until_it_is_promoted() {
    let master = Redis::start();
    let replica = replica_of(&master);
    let service = Service::with(&[("REDIS_ADDR", &replica.addr())]);
    let line = service.log_line("replica");
    assert!(line.contains("redis is disconnected"), "{line}");
    until("it was asked again and again", || role_calls(&replica) >= 6);
    assert_eq!(service.redis_state(), "disconnected");
    let lines = service.log().iter().filter(|line| line.contains("replica")).count();
    assert_eq!(lines, 1, "told once");
    run(&replica, &["REPLICAOF", "NO", "ONE"]);
    service.wait_for_redis("connected");
    assert_flows(&service, &replica);
}

#[test]
fn a_master_that_becomes_a_replica_is_not_connected() {
    let (first, second) = (Redis::start(), Redis::start());
    let service = Service::on(&first, &[]);
    let addr = second.addr();
    let (host, port) = addr.split_once(':').unwrap();
    run(&first, &["REPLICAOF", host, port]);
    service.wait_for_redis("disconnected");
    service.log_line("replica");
    run(&first, &["REPLICAOF", "NO", "ONE"]);
    service.wait_for_redis("connected");
    assert_flows(&service, &first);
}

#[test]
fn a_server_that_keeps_its_role_to_itself_is_believed() {
    let redis = Redis::start();
    for rule in ["on", "nopass", "~*", "&*", "+@all", "-role"].map(String::from) {
        run(&redis, &["ACL", "SETUSER", "bob", &rule]);
    }
    let service = Service::with(&[("REDIS_ADDR", &format!("redis://bob:x@{}", redis.addr()))]);
    service.wait_for_redis("connected");
    assert!(service.log_line("role").contains("+role"), "{:?}", service.log());
    assert_flows(&service, &redis);
}

#[test]
fn both_connections_are_made_anew_when_the_publisher_is_stranded() {
    let (first, second) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&first);
    let service = Service::with(&[("REDIS_ADDR", &proxy.addr.to_string())]);
    service.wait_for_redis("connected");
    // New connections go elsewhere, as behind a load balancer after a failover. The publisher's is well,
    // but nobody hears what it says.
    proxy.lead_to(&second);
    proxy.cut_subscriptions();
    service.wait_for_redis("disconnected");
    service.wait_for_redis("connected");
    assert_flows(&service, &second);
}

#[test]
fn both_connections_are_made_anew_when_the_subscription_is_stranded() {
    let (first, second) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&first);
    let service = Service::with(&[("REDIS_ADDR", &proxy.addr.to_string())]);
    service.wait_for_redis("connected");
    proxy.lead_to(&second);
    proxy.cut_publishers();
    service.wait_for_redis("disconnected");
    service.wait_for_redis("connected");
    assert_flows(&service, &second);
}

/// A way to Redis that tells publishers from subscriptions, and can lead new connections elsewhere.
struct Proxy {
    addr: SocketAddr,
    target: Arc<Mutex<String>>,
    connections: Arc<Mutex<Vec<Connection>>>,
}

struct Connection {
    client: TcpStream,
    is_subscription: Arc<AtomicBool>,
}

impl Proxy {
    fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            addr: listener.local_addr().unwrap(),
            target: Arc::new(Mutex::new(redis.addr())),
            connections: Arc::default(),
        };
        let (target, connections) = (proxy.target.clone(), proxy.connections.clone());
        // Ends with the process: nothing waits for it.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&*target.lock().unwrap()).unwrap();
                let is_subscription = Arc::new(AtomicBool::new(false));
                connections.lock().unwrap().push(Connection {
                    client: client.try_clone().unwrap(),
                    is_subscription: is_subscription.clone(),
                });
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pass(from, to, |bytes| {
                        if bytes.windows(10).any(|w| w == b"PSUBSCRIBE") {
                            is_subscription.store(true, Ordering::SeqCst);
                        }
                    });
                });
                std::thread::spawn(move || pass(server, client, |_| ()));
            }
        });
        proxy
    }

    fn lead_to(&self, redis: &Redis) {
        *self.target.lock().unwrap() = redis.addr();
    }

    fn cut_subscriptions(&self) {
        self.cut(true);
    }

    fn cut_publishers(&self) {
        self.cut(false);
    }

    fn cut(&self, subscriptions: bool) {
        for connection in self.connections.lock().unwrap().iter() {
            if connection.is_subscription.load(Ordering::SeqCst) == subscriptions {
                let _ = connection.client.shutdown(Shutdown::Both);
            }
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[u8])) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        look(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
