//! Verifies the scale that the service is made for: thousands of clients in one room get every broadcast
//! in order, once, for one thread, one descriptor and little memory each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../benches/fanout/memory.rs"]
mod memory;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use support::{Client, PATIENCE, Service, frame, token, until};

/// What the service is to hold, and the fewest that a smaller machine's limit must allow here.
const CLIENTS: usize = 5000;
const FEWEST_CLIENTS: usize = 1000;
const BROADCASTS: usize = 200;
/// Broadcasts on their way at once.
const IN_FLIGHT: usize = 4;
const BENCH_THREADS: usize = 2;

/// The payloads that a member receives, without a copy of each.
struct Deliveries {
    stream: TcpStream,
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Deliveries {
    fn new(mut client: Client) -> Self {
        // The sentinel's answer is the last that this client has been sent.
        client.assert_quiet();
        let stream = client.stream().try_clone().unwrap();
        Self { stream, buffer: vec![0; 512].into(), from: 0, to: 0 }
    }

    /// The next text; `None` at the end of the stream.
    fn next(&mut self) -> Option<&[u8]> {
        let (start, end) = loop {
            if let Some((header, length)) = extent(&self.buffer[self.from..self.to]) {
                let start = self.from + header;
                if start + length <= self.to {
                    break (start, start + length);
                }
            }
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            match self.stream.read(&mut self.buffer[self.to..]) {
                Ok(0) => return None,
                Ok(bytes) => self.to += bytes,
                Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
            }
        };
        self.from = end;
        Some(&self.buffer[start..end])
    }

    /// The number at the start of the next broadcast's body.
    fn next_number(&mut self) -> usize {
        let payload = self.next().expect("the stream goes on");
        let text = std::str::from_utf8(payload).unwrap();
        let (_, body) = text.split_once(r#""body":""#).unwrap_or_else(|| panic!("{text}"));
        body.split('"').next().unwrap().parse().unwrap()
    }
}

/// Lengths of header and payload of an unmasked text frame.
fn extent(bytes: &[u8]) -> Option<(usize, usize)> {
    assert!(bytes.first().is_none_or(|first| *first == 0x81), "no text: {bytes:?}");
    match *bytes.get(1)? {
        126 => Some((4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])))),
        length => Some((2, usize::from(length))),
    }
}

fn broadcast(number: usize) -> Vec<u8> {
    let message = json!({
        "type": "broadcast", "payload": {"room": "lobby", "body": format!("{number:08}")},
    });
    frame(0x81, message.to_string().as_bytes())
}

/// How many clients the descriptors of this process allow.
fn clients_allowed() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    let descriptors = limit.maximum.map_or(usize::MAX, |most| most as usize);
    let clients = CLIENTS.min(descriptors.saturating_sub(200));
    assert!(clients >= FEWEST_CLIENTS, "{descriptors} descriptors are too few");
    clients
}

/// Members of the lobby, connected and joined on several threads.
fn members(service: &Service, count: usize) -> Vec<Deliveries> {
    let connect_some = |threads: usize| {
        let token = token("7", "");
        let connect = || {
            let mut client = Client::connect(service.addr(), &token);
            client.join("lobby");
            Deliveries::new(client)
        };
        (0..count / threads).map(|_| connect()).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..BENCH_THREADS).map(|_| scope.spawn(|| connect_some(BENCH_THREADS))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A client that broadcasts to the lobby without being in it.
fn publisher(service: &Service) -> TcpStream {
    let mut client = service.client("publisher", "");
    client.assert_quiet();
    client.stream().try_clone().unwrap()
}

fn spacious() -> Service {
    Service::with(&[("RATE_LIMIT", "0"), ("MAX_CONNECTIONS_PER_USER", "0")])
}

#[test]
fn thousands_get_every_broadcast_in_order_for_little_memory() {
    let count = clients_allowed() / BENCH_THREADS * BENCH_THREADS;
    let service = spacious();
    // What the first connections allocate once is not theirs.
    drop(members(&service, 20));
    until("they are gone", || service.counts()["clients"] == 0);
    let mut publisher = publisher(&service);
    until("the connections of the warm-up and of REST have ended", || {
        service.threads_named("conn-") == 1
    });
    let (threads, descriptors) = (service.threads(), service.descriptors());
    let before = memory::taken_kib(service.pid()).unwrap();
    let per_connection =
        || memory::taken_kib(service.pid()).unwrap().saturating_sub(before) as f64 / count as f64;

    let connecting = Instant::now();
    let mut members = members(&service, count);
    println!("{count} connected and joined in {:?}", connecting.elapsed());
    assert_eq!(service.counts()["rooms"], json!({"lobby": count}));
    let idle = per_connection();
    // tiny_http ends a thread that has been idle, so that there may be fewer than before.
    until("one thread and one descriptor for each", || {
        service.threads_named("conn-") == 1 + count
            && service.threads() <= threads + count
            && service.descriptors() <= descriptors + count
    });

    let sending = Instant::now();
    for first in (0..BROADCASTS).step_by(IN_FLIGHT) {
        let batch: Vec<_> = (first..first + IN_FLIGHT).flat_map(broadcast).collect();
        publisher.write_all(&batch).unwrap();
        std::thread::scope(|scope| {
            for part in members.chunks_mut(count / BENCH_THREADS) {
                scope.spawn(move || {
                    for member in part {
                        for number in first..first + IN_FLIGHT {
                            assert_eq!(member.next_number(), number);
                        }
                    }
                });
            }
        });
    }
    let took = sending.elapsed();
    let busy = per_connection();
    let deliveries = (count * BROADCASTS) as f64 / took.as_secs_f64();
    println!("{BROADCASTS} broadcasts to {count} in {took:?}: {deliveries:.0} deliveries/s");
    println!("KiB per connection: {idle:.1} idle, {busy:.1} after");

    // Once each: the next that anyone gets is the sentinel.
    publisher.write_all(&broadcast(BROADCASTS)).unwrap();
    for member in &mut members {
        assert_eq!(member.next_number(), BROADCASTS);
        assert_eq!(member.from, member.to);
    }
    // The code of a debug build has larger frames.
    let most = if cfg!(debug_assertions) { 120.0 } else { 80.0 };
    let memory = idle.max(busy);
    assert!(memory <= most, "{memory:.1} KiB per connection");

    drop(members);
    until("all are gone", || service.counts()["clients"] == 1);
    until("their threads and descriptors too", || {
        service.threads() <= threads && service.descriptors() <= descriptors
    });
}
