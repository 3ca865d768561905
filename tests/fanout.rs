//! Verifies the scale that the service is made for: thousands of clients in one room get every broadcast
//! in order, once, for one thread, one descriptor and little memory each; and one of a hundred members
//! that never reads is cut, while the others are not held up.
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
use std::sync::Mutex;
use std::time::{Duration, Instant};

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

const MEMBERS: usize = 100;
const MESSAGES: usize = 10_000;
const MESSAGE_BYTES: usize = 6 * 1024;
/// Messages that a reader takes between two reports; four such steps are in flight at most.
const STEP: usize = 16;
const STEPS_IN_FLIGHT: usize = 4;
/// 500 ms is what a quiet machine keeps, see the printed maximum; tests share theirs.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One test at a time: each measures, and both want the whole machine.
static MACHINE: Mutex<()> = Mutex::new(());

/// The payloads that a member receives, without a copy of each.
struct Deliveries {
    stream: TcpStream,
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Deliveries {
    fn new(mut client: Client, buffer_bytes: usize) -> Self {
        // The sentinel's answer is the last that this client has been sent.
        client.assert_quiet();
        let stream = client.stream().try_clone().unwrap();
        Self { stream, buffer: vec![0; buffer_bytes].into(), from: 0, to: 0 }
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
        body.split([' ', '"']).next().unwrap().parse().unwrap()
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

fn broadcast(number: usize, body_bytes: usize) -> Vec<u8> {
    let padding = " ".repeat(body_bytes.saturating_sub(8));
    let message = json!({
        "type": "broadcast", "payload": {"room": "lobby", "body": format!("{number:08}{padding}")},
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
fn members(service: &Service, count: usize, buffer_bytes: usize) -> Vec<Deliveries> {
    let connect_some = |threads: usize| {
        let token = token("7", "");
        let connect = || {
            let mut client = Client::connect(service.addr(), &token);
            client.join("lobby");
            Deliveries::new(client, buffer_bytes)
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
    let _machine = MACHINE.lock();
    let count = clients_allowed() / BENCH_THREADS * BENCH_THREADS;
    let service = spacious();
    // What the first connections allocate once is not theirs.
    drop(members(&service, 20, 512));
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
    let mut members = members(&service, count, 512);
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
        let batch: Vec<_> =
            (first..first + IN_FLIGHT).flat_map(|number| broadcast(number, 8)).collect();
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
    publisher.write_all(&broadcast(BROADCASTS, 8)).unwrap();
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

/// Reads all messages; reports each step, and returns the longest pause between two of them.
fn read_all(mut member: Deliveries, reports: &crossbeam_channel::Sender<()>) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    for number in 0..MESSAGES {
        assert_eq!(member.next_number(), number);
        let now = Instant::now();
        // The first has no one before it to have paused after.
        if number > 0 {
            longest = longest.max(now - last);
        }
        last = now;
        if (number + 1) % STEP == 0 {
            reports.send(()).unwrap();
        }
    }
    longest
}

#[test]
fn who_never_reads_is_cut_and_holds_nobody_up() {
    let _machine = MACHINE.lock();
    let service = spacious();
    let mut stalled = service.client("stalled", "");
    stalled.join("lobby");
    let members = members(&service, MEMBERS - 1 + (MEMBERS - 1) % BENCH_THREADS, 64 * 1024);
    let members: Vec<_> = members.into_iter().take(MEMBERS - 1).collect();
    until("a hundred are in", || service.counts()["rooms"] == json!({"lobby": MEMBERS}));
    let mut publisher = publisher(&service);

    let start = Instant::now();
    let longest = std::thread::scope(|scope| {
        let readers: Vec<_> = members
            .into_iter()
            .map(|member| {
                let (report, reports) = crossbeam_channel::unbounded();
                (scope.spawn(move || read_all(member, &report)), reports)
            })
            .collect();
        for step in 0..MESSAGES / STEP {
            if step >= STEPS_IN_FLIGHT {
                for (_, reports) in &readers {
                    reports.recv_timeout(PATIENCE).expect("a step of every reader");
                }
            }
            for number in step * STEP..(step + 1) * STEP {
                publisher.write_all(&broadcast(number, MESSAGE_BYTES)).unwrap();
            }
        }
        let pauses = readers.into_iter().map(|(reader, _)| reader.join().unwrap());
        pauses.max().unwrap()
    });
    let took = start.elapsed();
    let deliveries = (MESSAGES * (MEMBERS - 1)) as f64 / took.as_secs_f64();
    println!("{MESSAGES} messages to {} in {took:?}: {deliveries:.0} deliveries/s", MEMBERS - 1);
    println!("longest pause of any reader: {longest:?}");
    assert!(longest < LONGEST_PAUSE, "{longest:?}");

    let line = service.log_line("disconnected conn=1 ");
    assert!(line.contains("user=stalled reason=\"slow consumer\""), "{line}");
    let slow = service.log().into_iter().filter(|line| line.contains("slow consumer")).count();
    assert_eq!(slow, 1, "others were cut");
    // What its kernel had taken is still there to be read, and then the end.
    let mut stream = stalled.stream().try_clone().unwrap();
    let mut sink = vec![0; 64 * 1024];
    while matches!(stream.read(&mut sink), Ok(1..)) {}
}
