//! Verifies the ordered log over a real redis-server: one order for all instances, numbers without a gap, no
//! append left hanging, and a new epoch whenever something may be missing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use realtime_service::bridge::{
    Answer, DropReason, Incoming, LogLimits, OrderedLog, Outgoing, PubSub, Reading, RedisPubSub,
    Unanswered,
};
use realtime_service::config::{RedisConfig, Secret};
use realtime_service::hub::Target;
use realtime_service::protocol::{Draft, Id, Position, Room, frame_payload};
use realtime_service::runtime::threads::Threads;
use support::{PATIENCE, Redis, run, until};

const LIMITS: LogLimits = LogLimits { messages: 100, ttl: Duration::from_secs(120) };
const MANY: LogLimits = LogLimits { messages: 10_000, ..LIMITS };
/// A broker that hangs or is gone is away within this, on a busy machine too.
const NOTICED: Duration = Duration::from_secs(5);

/// One instance, and all that its bridge gave to its hub.
struct Instance {
    bridge: RedisPubSub,
    told: Arc<Mutex<Vec<Incoming>>>,
    reading: AtomicU64,
}

/// A numbered message, as a test compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    target: Target,
    epoch: String,
    seq: u64,
    ticket: Option<u64>,
    text: String,
}

impl Instance {
    fn start(redis: &Redis, limits: LogLimits) -> Self {
        Self::start_at(&redis.addr(), "", limits)
    }

    fn start_at(addr: &str, prefix: &str, limits: LogLimits) -> Self {
        let config =
            RedisConfig { addr: Secret::new(addr), password: None, prefix: prefix.to_owned() };
        let bridge = RedisPubSub::new(&config, limits, Threads::default()).unwrap();
        let told: Arc<Mutex<Vec<_>>> = Arc::default();
        let into = Arc::clone(&told);
        bridge
            .start(Arc::new(move |incoming| {
                into.lock().unwrap().push(incoming);
                ControlFlow::Continue(())
            }))
            .unwrap();
        Self { bridge, told, reading: AtomicU64::new(0) }
    }

    /// Messages flow.
    fn back(redis: &Redis, limits: LogLimits) -> Self {
        let instance = Self::start(redis, limits);
        instance.wait_for_back(1);
        instance
    }

    fn wait_for_back(&self, times: usize) {
        until("it is back", || self.backs() >= times);
    }

    fn backs(&self) -> usize {
        self.count(|incoming| matches!(incoming, Incoming::Back))
    }

    fn aways(&self) -> usize {
        self.count(|incoming| matches!(incoming, Incoming::Away(_)))
    }

    fn breaks(&self) -> usize {
        self.count(|incoming| matches!(incoming, Incoming::BrokenOff))
    }

    fn count(&self, matches: impl Fn(&Incoming) -> bool) -> usize {
        self.told.lock().unwrap().iter().filter(|incoming| matches(incoming)).count()
    }

    fn log(&self) -> &dyn OrderedLog {
        self.bridge.ordered_log().unwrap()
    }

    fn append(&self, target: &Target, text: &str) -> Result<u64, DropReason> {
        let members = text.strip_prefix('{').unwrap().to_owned().into();
        self.log().append(Outgoing { target: target.clone(), members })
    }

    /// Numbered messages, in the order of the stream.
    fn lines(&self) -> Vec<Line> {
        self.told.lock().unwrap().iter().filter_map(line).collect()
    }

    fn wait_for_lines(&self, number: usize) -> Vec<Line> {
        until(&format!("{number} lines"), || {
            self.count(|incoming| matches!(incoming, Incoming::Logged(_))) >= number
        });
        self.lines()
    }

    /// Asks, and waits for the answer and, if there is one, for the mark.
    fn read(&self, target: &Target, since: Option<Position>) -> Result<Answer, Unanswered> {
        let number = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        let from_start = since.is_none();
        self.log().read(Reading { number, target: target.clone(), since, from_start });
        let mut found = None;
        until("an answer", || {
            found = self.told.lock().unwrap().iter().find_map(|incoming| match incoming {
                Incoming::Answer { target: of, reading, answer } if *reading == number => {
                    assert_eq!(of, target);
                    Some(answer.clone())
                }
                _ => None,
            });
            found.is_some()
        });
        found.unwrap()
    }

    fn renewals(&self) -> Vec<(Target, String, Option<u64>)> {
        let told = self.told.lock().unwrap();
        let renewed = |incoming: &Incoming| match incoming {
            Incoming::Renewed { target, epoch, renewal } => {
                Some((target.clone(), epoch.to_string(), *renewal))
            }
            _ => None,
        };
        told.iter().filter_map(renewed).collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.bridge.counters().dropped(reason)
    }

    /// Appends until a message has come back, and returns its line.
    fn flows(&self, target: &Target) -> Line {
        let mut found = None;
        until("a message comes back", || {
            let Ok(ticket) = self.append(target, r#"{"flows":1}"#) else { return false };
            let start = Instant::now();
            while found.is_none() && start.elapsed() < Duration::from_secs(1) {
                found = self.lines().into_iter().find(|line| line.ticket == Some(ticket));
                thread::sleep(Duration::from_millis(1));
            }
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.bridge.close(Instant::now() + PATIENCE);
    }
}

fn line(incoming: &Incoming) -> Option<Line> {
    let Incoming::Logged(logged) = incoming else { return None };
    Some(Line {
        target: logged.target.clone(),
        epoch: logged.position.epoch.to_string(),
        seq: logged.position.seq,
        ticket: logged.ticket,
        text: text(&logged.draft),
    })
}

fn text(draft: &Draft) -> String {
    String::from_utf8(frame_payload(&draft.clone().complete(None).frame).to_vec()).unwrap()
}

/// Ends the threads of a scope also when the test fails there.
struct EndsAtDrop<'a>(&'a AtomicBool);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn room(name: &str) -> Target {
    Target::Room(Room::parse(name).unwrap())
}

fn user(id: &str) -> Target {
    Target::User(Id::parse(id).unwrap())
}

fn numbered(n: usize) -> String {
    format!(r#"{{"n":{n}}}"#)
}

/// Within each epoch of each log the numbers rise by one.
fn assert_contiguous(lines: &[Line]) {
    let mut last: HashMap<(&Target, &str), u64> = HashMap::new();
    for line in lines {
        let last = last.entry((&line.target, &line.epoch)).or_insert(0);
        assert_eq!(line.seq, *last + 1, "{line:?}");
        *last = line.seq;
    }
}

fn without_tickets(lines: &[Line]) -> Vec<Line> {
    lines.iter().map(|line| Line { ticket: None, ..line.clone() }).collect()
}

/// The connections whose line in `CLIENT LIST` holds this.
fn clients(redis: &Redis, holds: &str) -> Vec<String> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap();
    let id = |line: &str| line.split_once("id=").unwrap().1.split_once(' ').unwrap().0.to_owned();
    list.lines().filter(|line| line.contains(holds)).map(id).collect()
}

/// Kills the connections whose line in `CLIENT LIST` holds this.
fn kill(redis: &Redis, holds: &str) {
    let mut ids = Vec::new();
    until(holds, || {
        ids = clients(redis, holds);
        !ids.is_empty()
    });
    for id in ids {
        redis.run(&["CLIENT", "KILL", "ID", &id]);
    }
}

#[test]
fn all_instances_get_one_order_and_each_its_tickets() {
    const EACH: usize = 2000;
    let redis = Redis::start();
    let (a, b) = (Instance::back(&redis, LIMITS), Instance::back(&redis, LIMITS));
    let targets = [room("order-1"), user("order-1"), room("room:x:messages")];
    let tickets = thread::scope(|scope| {
        [&a, &b]
            .map(|instance| {
                let targets = &targets;
                scope.spawn(move || {
                    let append = |n: usize| instance.append(&targets[n % 3], &numbered(n)).unwrap();
                    (0..EACH).map(append).collect::<Vec<_>>()
                })
            })
            .map(|thread| thread.join().unwrap())
    });
    let lines = [&a, &b].map(|instance| instance.wait_for_lines(2 * EACH));
    assert_eq!(lines[0].len(), 2 * EACH);
    assert_eq!(without_tickets(&lines[0]), without_tickets(&lines[1]));
    for (lines, given) in lines.iter().zip(tickets) {
        assert_contiguous(lines);
        let own: Vec<_> = lines.iter().filter(|line| line.ticket.is_some()).collect();
        assert_eq!(own.iter().map(|line| line.ticket.unwrap()).collect::<Vec<_>>(), given);
        for (n, line) in own.iter().enumerate() {
            assert_eq!((&line.target, &line.text), (&targets[n % 3], &numbered(n)));
        }
    }
    assert_eq!(a.bridge.counters().received(), EACH as u64, "those of others");
    assert_eq!((a.breaks(), a.backs(), a.aways()), (1, 1, 0));
}

#[test]
fn a_reading_has_its_place_in_the_stream() {
    let redis = Redis::start();
    let (a, b) = (Instance::back(&redis, LIMITS), Instance::back(&redis, LIMITS));
    let target = room("order-1");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndsAtDrop(&done);
        for instance in [&a, &b] {
            scope.spawn(|| {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let _ = instance.append(&target, &numbered(n));
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        for n in 0..300_u64 {
            let since = Position { epoch: "other".into(), seq: 7 };
            let since = (n % 2 == 0).then_some(since);
            let target = target.clone();
            a.log().read(Reading { number: n, target, since, from_start: true });
            thread::sleep(Duration::from_millis(1));
        }
        until("all readings have their place", || {
            a.count(|i| matches!(i, Incoming::Marked { .. })) == 300
                && a.count(|i| matches!(i, Incoming::Answer { .. })) == 300
        });
        drop(end);
    });
    let told = a.told.lock().unwrap();
    let answers: HashMap<u64, Answer> = told
        .iter()
        .filter_map(|incoming| match incoming {
            Incoming::Answer { reading, answer, .. } => Some((*reading, answer.clone().unwrap())),
            _ => None,
        })
        .collect();
    let mut before = Vec::new();
    let mut next = 0;
    for incoming in &*told {
        before.extend(line(incoming));
        let Incoming::Marked { target: of, reading } = incoming else { continue };
        assert_eq!((of, *reading), (&target, next));
        next += 1;
        let answer = &answers[reading];
        let last = before.last().map_or(0, |line: &Line| line.seq);
        assert_eq!(answer.position.seq, last, "reading {reading}");
        let kept = &before[before.len().saturating_sub(100)..];
        let expected: Vec<_> = kept.iter().map(|l| (l.seq, l.ticket, l.text.clone())).collect();
        let got: Vec<_> =
            answer.messages.iter().map(|m| (m.seq, m.ticket, text(&m.draft))).collect();
        assert_eq!(got, expected, "reading {reading}");
    }
    assert_contiguous(&before);
}

#[test]
fn readings_come_in_pages_behind_a_position() {
    let redis = Redis::start();
    let a = Instance::back(&redis, MANY);
    let (small, large) = (room("small"), user("large"));
    let empty = a.read(&small, None).unwrap();
    assert_eq!((empty.position.seq, empty.messages.len()), (0, 0));
    for n in 1..=300 {
        a.append(&small, &numbered(n)).unwrap();
    }
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(65_000));
    for _ in 0..40 {
        a.append(&large, &body).unwrap();
    }
    let epoch = a.wait_for_lines(340)[0].epoch.clone();
    let seqs = |answer: &Answer| answer.messages.iter().map(|m| m.seq).collect::<Vec<_>>();
    let at = |seq| Some(Position { epoch: epoch.as_str().into(), seq });
    assert_eq!(epoch, &*empty.position.epoch, "a reading begins a log");
    for (since, expected) in [
        (None, 1..=128),
        (at(0), 1..=128),
        (at(128), 129..=256),
        (at(256), 257..=300),
        (at(299), 300..=300),
    ] {
        let answer = a.read(&small, since).unwrap();
        assert_eq!(answer.position, at(300).unwrap());
        assert_eq!(seqs(&answer), expected.collect::<Vec<_>>());
        assert!(answer.messages.iter().all(|m| m.age < PATIENCE && m.ticket.is_some()));
    }
    let other = Some(Position { epoch: "other".into(), seq: 3 });
    for since in [at(300), at(301), at(u64::MAX), other] {
        assert_eq!(seqs(&a.read(&small, since).unwrap()), Vec::<u64>::new());
    }
    assert_eq!(seqs(&a.read(&large, None).unwrap()), (1..=5).collect::<Vec<_>>());
    // Only what is kept, and only numbers outlive the messages.
    let mut connection = redis.connection();
    let ttl: i64 = redis::cmd("PTTL").arg("ws:messages:room:small").query(&mut connection).unwrap();
    assert!((60_000..=120_000).contains(&ttl), "{ttl}");
    let ttl: i64 = redis::cmd("TTL").arg("ws:log:room:small").query(&mut connection).unwrap();
    assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    run(&mut connection, &["DEL", "ws:messages:room:small"]);
    let answer = a.read(&small, at(299)).unwrap();
    assert_eq!((answer.position.seq, seqs(&answer)), (300, vec![]));
}

#[test]
fn what_is_older_than_the_ttl_is_not_read() {
    let redis = Redis::start();
    let limits = LogLimits { messages: 1000, ttl: Duration::from_secs(2) };
    let a = Instance::back(&redis, limits);
    for n in 1..=200 {
        a.append(&room("x"), &numbered(n)).unwrap();
    }
    a.wait_for_lines(200);
    let mut fresh = 0;
    until("the first are too old", || {
        fresh += 1;
        a.append(&room("x"), r#"{"fresh":1}"#).unwrap();
        thread::sleep(Duration::from_millis(50));
        let answer = a.read(&room("x"), None).unwrap();
        let first = answer.messages[0].seq;
        let last = answer.messages.last().unwrap().seq;
        assert_eq!(answer.messages.len() as u64, last + 1 - first, "only at the front");
        assert!(answer.messages.iter().all(|m| m.age <= limits.ttl));
        first > 200
    });
}

#[test]
fn a_forgotten_script_loses_and_doubles_nothing() {
    const EACH: usize = 3000;
    let redis = Redis::start();
    let (a, b) = (Instance::back(&redis, MANY), Instance::back(&redis, MANY));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndsAtDrop(&done);
        scope.spawn(|| {
            let mut connection = redis.connection();
            while !done.load(Ordering::Relaxed) {
                run(&mut connection, &["SCRIPT", "FLUSH"]);
            }
        });
        for instance in [&a, &b] {
            scope.spawn(move || {
                for n in 0..EACH {
                    instance.append(&room("x"), &numbered(n)).unwrap();
                    if n % 10 == 0 {
                        instance.read(&room("x"), None).unwrap();
                    }
                }
            });
        }
        until("all is there", || a.lines().len() >= 2 * EACH);
        drop(end);
    });
    let lines = [&a, &b].map(|instance| instance.wait_for_lines(2 * EACH));
    assert_eq!(without_tickets(&lines[0]), without_tickets(&lines[1]));
    for lines in lines {
        assert_contiguous(&lines);
        let mut own: Vec<_> = lines.iter().filter_map(|line| line.ticket).collect();
        own.sort_unstable();
        assert_eq!(own, (1..=EACH as u64).collect::<Vec<_>>());
    }
}

#[test]
fn a_log_that_may_have_lost_something_has_a_new_epoch() {
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b) = (Instance::back(&redis, LIMITS), Instance::back(&redis, LIMITS));
    let target = room("x");
    let first = a.flows(&target);
    // The keys come back with it, and so would the numbers.
    redis.kill();
    until("both notice", || a.aways() == 1 && b.aways() == 1);
    assert_eq!(a.append(&target, r#"{"a":1}"#), Err(DropReason::Disconnected));
    redis.start_again();
    a.wait_for_back(2);
    b.wait_for_back(2);
    let answer = b.read(&target, Some(Position { epoch: first.epoch.as_str().into(), seq: 0 }));
    let answer = answer.unwrap();
    assert_ne!(&*answer.position.epoch, first.epoch);
    assert_eq!((answer.position.seq, answer.messages.len()), (0, 0));
    let told = (target.clone(), answer.position.epoch.to_string(), None);
    until("others are told", || a.renewals() == [told.clone()] && b.renewals() == [told.clone()]);
    let second = a.flows(&target);
    assert_eq!((second.seq, &*second.epoch), (1, &*answer.position.epoch));
    redis.run(&["FLUSHALL"]);
    let third = b.flows(&target);
    assert_eq!(third.seq, 1);
    assert_ne!(third.epoch, second.epoch);
    // The numbers were evicted, the messages were not.
    redis.run(&["DEL", "ws:log:room:x"]);
    let fourth = a.flows(&target);
    assert_eq!(fourth.seq, 1);
    assert_eq!(a.read(&target, None).unwrap().messages.len(), 1);
}

#[test]
fn a_renewal_reaches_all_and_only_who_asked_knows_its_number() {
    let redis = Redis::start();
    let prefix = "a*[b]?\\:";
    let [a, b] = [(), ()].map(|()| Instance::start_at(&redis.addr(), prefix, LIMITS));
    let stranger = Instance::back(&redis, LIMITS);
    a.wait_for_back(1);
    b.wait_for_back(1);
    let before = a.flows(&room("x"));
    a.log().renew(Some(room("x")), 7);
    until("both are told", || a.renewals().len() == 1 && b.renewals().len() == 1);
    let (target, epoch, renewal) = a.renewals().remove(0);
    assert_eq!((&target, renewal), (&room("x"), Some(7)));
    assert_ne!(epoch, before.epoch);
    assert_eq!(b.renewals(), [(target, epoch.clone(), None)]);
    let after = b.flows(&room("x"));
    assert_eq!((&after.epoch, after.seq), (&epoch, 1));
    assert_eq!(a.read(&room("x"), None).unwrap().messages.len(), 1);

    let kept = stranger.flows(&room("x"));
    let targets: Vec<_> = (0..600).map(|n| room(&format!("r-{n}"))).collect();
    targets.iter().for_each(|target| _ = a.append(target, r#"{"a":1}"#).unwrap());
    until("all logs are there", || a.lines().len() >= 602);
    redis.run(&["SCRIPT", "FLUSH"]);
    b.log().renew(None, 8);
    b.log().renew(None, 9);
    let all = |n: u64| b.count(|incoming| matches!(incoming, Incoming::AllRenewed(m) if *m == n));
    until("all are renewed", || all(8) == 1 && all(9) == 1);
    for target in &targets {
        let answer = a.read(target, None).unwrap();
        assert_eq!((answer.position.seq, answer.messages.len()), (0, 0));
    }
    assert!(b.renewals().len() > 601);
    assert!(b.renewals().iter().skip(1).all(|(_, _, renewal)| renewal.is_some()));
    assert!(stranger.renewals().is_empty());
    assert_eq!(stranger.flows(&room("x")).epoch, kept.epoch);
}

#[test]
fn a_redis_without_memory_refuses_whole_messages() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    let first = a.flows(&room("x"));
    redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused: Vec<_> = [room("x"), room("y"), user("z")]
        .map(|target| a.append(&target, r#"{"a":1}"#).unwrap())
        .into();
    until("they are refused", || {
        a.count(|i| matches!(i, Incoming::Refused(ticket) if refused.contains(ticket))) == 3
    });
    assert_eq!(a.dropped(DropReason::Refused), 3);
    assert_eq!(a.read(&room("x"), None).unwrap().position.seq, 1, "nothing was numbered");
    assert_eq!(a.read(&room("y"), None).err(), Some(Unanswered), "it cannot begin");
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    let second = a.flows(&room("x"));
    assert_eq!((second.seq, second.epoch), (2, first.epoch));
    assert_eq!(a.flows(&room("y")).seq, 1);
    assert_eq!((a.aways(), a.lines().len()), (0, 3));
}

#[test]
fn a_user_who_may_not_publish_numbers_nothing() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all"]);
    let a = Instance::start_at(&format!("redis://bob:x@{}", redis.addr()), "", LIMITS);
    a.wait_for_back(1);
    let first = a.flows(&room("x"));
    redis.run(&["ACL", "SETUSER", "bob", "resetchannels", "&ws:probe:*", "&ws:mark:*"]);
    until("it is refused", || {
        let _ = a.append(&room("x"), r#"{"a":1}"#);
        a.count(|incoming| matches!(incoming, Incoming::Refused(_) | Incoming::Away(_))) > 0
    });
    redis.run(&["ACL", "SETUSER", "bob", "allchannels"]);
    let second = a.flows(&room("x"));
    assert_eq!(second.epoch, first.epoch);
    let answer = a.read(&room("x"), None).unwrap();
    let seqs: Vec<_> = answer.messages.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (1..=answer.position.seq).collect::<Vec<_>>());
}

#[test]
fn a_hung_redis_is_away_and_comes_back() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    a.flows(&room("x"));
    redis.signal("STOP");
    let ticket = a.append(&room("x"), r#"{"hung":1}"#).unwrap();
    let start = Instant::now();
    until("it is away", || a.aways() == 1);
    let noticed = start.elapsed();
    eprintln!("away after {noticed:?}");
    assert!(noticed < NOTICED, "{noticed:?}");
    assert_eq!(a.append(&room("x"), r#"{"a":1}"#), Err(DropReason::Disconnected));
    assert_eq!(a.count(|i| matches!(i, Incoming::Away(last) if *last >= ticket)), 1);
    let start = Instant::now();
    assert_eq!(a.read(&room("x"), None).err(), Some(Unanswered));
    assert!(start.elapsed() < NOTICED);
    redis.signal("CONT");
    a.wait_for_back(2);
    a.flows(&room("x"));
    let answer = a.read(&room("x"), None).unwrap();
    let hung = answer.messages.iter().filter(|m| text(&m.draft).contains("hung")).count();
    assert!(hung <= 1, "never twice");
    assert_eq!(a.dropped(DropReason::Lost), 1);
}

#[test]
fn a_lost_publisher_is_away_and_comes_back() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    kill(&redis, "cmd=publish");
    until("it is away", || a.aways() == 1);
    a.wait_for_back(2);
    a.flows(&room("x"));
    assert_eq!(a.breaks(), 1);
}

#[test]
fn what_a_lost_subscription_missed_is_in_the_log() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    let mut expected = Vec::new();
    for n in 0..3000 {
        expected.push((a.append(&room("x"), &numbered(n)).unwrap(), numbered(n)));
        if n % 1000 == 500 {
            redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            until("it is subscribed again", || a.breaks() == 2 + n / 1000);
        }
        if n % 90 == 0 {
            until("the log holds what came late", || a.bridge.counters().published() > n as u64);
            let answer = a.read(&room("x"), None).unwrap();
            assert_eq!(answer.position.seq, n as u64 + 1);
            let kept = &expected[expected.len().saturating_sub(100)..];
            let got: Vec<_> =
                answer.messages.iter().map(|m| (m.ticket.unwrap(), text(&m.draft))).collect();
            assert_eq!(got, kept);
        }
    }
    assert_eq!((a.aways(), a.backs()), (0, 1), "each time it came back soon enough");
}

#[test]
fn a_subscription_that_stays_lost_is_away() {
    let redis = Redis::start();
    redis.run(&["ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all"]);
    let a = Instance::start_at(&format!("redis://bob:x@{}", redis.addr()), "", LIMITS);
    a.wait_for_back(1);
    a.flows(&room("x"));
    redis.run(&["ACL", "SETUSER", "bob", "-psubscribe"]);
    redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let start = Instant::now();
    let ticket = a.append(&room("x"), r#"{"a":1}"#).unwrap();
    until("it is away", || a.count(|i| matches!(i, Incoming::Away(last) if *last >= ticket)) == 1);
    eprintln!("away after {:?}", start.elapsed());
    assert!(start.elapsed() < NOTICED);
    assert_eq!(a.append(&room("x"), r#"{"a":1}"#), Err(DropReason::Disconnected));
    redis.run(&["ACL", "SETUSER", "bob", "+psubscribe"]);
    a.wait_for_back(2);
    let told = a.told.lock().unwrap();
    let place = |matches: fn(&Incoming) -> bool| told.iter().rposition(matches).unwrap();
    assert!(place(|i| matches!(i, Incoming::Back)) > place(|i| matches!(i, Incoming::BrokenOff)));
}

#[test]
fn a_lost_history_connection_leaves_no_reading_hanging() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    a.flows(&room("x"));
    let mut unanswered = 0;
    for n in 0..200 {
        unanswered += u32::from(a.read(&room("x"), None).is_err());
        if n % 20 == 10 {
            // The last command of the publisher is its probe, of the door another one.
            kill(&redis, "cmd=evalsha");
        }
    }
    eprintln!("{unanswered} unanswered");
    assert!(unanswered <= 10, "only what was on its way");
    until("it answers again", || a.read(&room("x"), None).is_ok());
}

#[test]
fn no_append_hangs_whatever_is_lost() {
    let redis = Redis::start();
    let instances = [Instance::back(&redis, MANY), Instance::back(&redis, MANY)];
    let done = AtomicBool::new(false);
    let tickets = thread::scope(|scope| {
        let end = EndsAtDrop(&done);
        let appending = instances.each_ref().map(|instance| {
            let done = &done;
            scope.spawn(move || {
                let mut tickets = HashMap::new();
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Ok(ticket) = instance.append(&room("x"), &numbered(n)) {
                        tickets.insert(ticket, numbered(n));
                    }
                    if n % 20 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                tickets
            })
        });
        // It ends with a hang, after which nothing is lost, so that later tickets must have come back.
        for round in 0..12 {
            thread::sleep(Duration::from_millis(150));
            match round % 4 {
                0 => _ = redis.run(&["CLIENT", "KILL", "TYPE", "normal"]),
                1 => _ = redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]),
                2 => {
                    redis.signal("STOP");
                    thread::sleep(Duration::from_millis(1500));
                    redis.signal("CONT");
                }
                _ => _ = redis.run(&["SCRIPT", "FLUSH"]),
            }
            until("both are back", || instances.iter().all(|i| i.backs() == 1 + i.aways()));
        }
        drop(end);
        appending.map(|thread| thread.join().unwrap())
    });
    for (instance, tickets) in instances.iter().zip(tickets) {
        // What was appended before this has come, if it comes.
        instance.flows(&room("x"));
        let lines = instance.lines();
        let mut came: HashMap<u64, &str> = HashMap::new();
        for line in &lines {
            if let Some(ticket) = line.ticket {
                assert_eq!(came.insert(ticket, &line.text), None, "twice: {line:?}");
            }
        }
        let told = instance.told.lock().unwrap();
        let away = told.iter().filter_map(|i| match i {
            Incoming::Away(last) => Some(*last),
            _ => None,
        });
        let given_up = away.max().unwrap();
        let refused: Vec<_> = told
            .iter()
            .filter_map(|i| if let Incoming::Refused(ticket) = i { Some(*ticket) } else { None })
            .collect();
        for (ticket, text) in &tickets {
            let ended = came.get(ticket).is_some_and(|came| came == text)
                || *ticket <= given_up
                || refused.contains(ticket);
            assert!(ended, "ticket {ticket} hangs");
        }
        eprintln!("{} appended, {} came, given up to {given_up}", tickets.len(), came.len());
        drop(told);
        let mut last: HashMap<&str, u64> = HashMap::new();
        for line in &lines {
            let last = last.entry(&line.epoch).or_insert(0);
            assert!(line.seq > *last, "the order is kept: {line:?}");
            *last = line.seq;
        }
    }
}

#[test]
fn closing_waits_for_what_was_appended() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    let tickets: Vec<_> = (0..5000).map(|n| a.append(&room("x"), &numbered(n)).unwrap()).collect();
    a.bridge.close(Instant::now() + PATIENCE).unwrap();
    let came: Vec<_> = a.lines().iter().filter_map(|line| line.ticket).collect();
    assert_eq!(came, tickets);
    assert_eq!(a.append(&room("x"), r#"{"a":1}"#), Err(DropReason::Closed));
    let start = Instant::now();
    const INSTANCES: u32 = 10;
    let instances: Vec<_> = (0..INSTANCES).map(|_| Instance::back(&redis, LIMITS)).collect();
    let ready = start.elapsed();
    drop(instances);
    let took = start.elapsed() - ready;
    eprintln!("{INSTANCES} closed after {took:?}");
    assert!(took < INSTANCES * Duration::from_millis(350), "{took:?}");
    let lease: Option<String> =
        redis::cmd("GET").arg("ws:door").query(&mut redis.connection()).unwrap();
    assert_eq!(lease, None, "who stops gives the lease back");
}

#[test]
fn an_instance_without_a_log_gets_plain_messages_and_keeps_no_keys() {
    let redis = Redis::start();
    let off = LogLimits { messages: 0, ..LIMITS };
    let a = Instance::start(&redis, off);
    assert!(a.bridge.ordered_log().is_none());
    until("it is connected", || a.bridge.state().as_str() == "connected");
    let members = r#""a":1}"#.into();
    a.bridge.publish(Outgoing { target: room("x"), members }).unwrap();
    until("it is published", || a.bridge.counters().published() == 1);
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis.connection()).unwrap();
    assert!(keys.is_empty(), "{keys:?}");
    assert_eq!(clients(&redis, "psub=5").len(), 1);
    let b = Instance::back(&redis, LIMITS);
    b.append(&room("x"), &numbered(5)).unwrap();
    until("it comes as a message", || {
        a.count(|i| matches!(i, Incoming::Message(d) if text(&d.draft) == numbered(5))) == 1
    });
    assert_eq!(a.count(|i| !matches!(i, Incoming::Message(_) | Incoming::BrokenOff)), 0);
}

#[test]
fn the_wire_is_json_with_two_leading_members() {
    let redis = Redis::start();
    let mut listener = redis.connection();
    let mut listener = listener.as_pubsub();
    listener.psubscribe("ws:*").unwrap();
    let a = Instance::back(&redis, LIMITS);
    a.append(&room("x"), r#"{"n":1}"#).unwrap();
    let mut next = |channel: &str| -> String {
        loop {
            let message = listener.get_message().unwrap();
            if message.get_channel_name() == channel {
                return message.get_payload().unwrap();
            }
        }
    };
    let json: serde_json::Value = serde_json::from_str(&next("ws:room:x")).unwrap();
    let (epoch, seq) = json["log"].as_str().unwrap().split_once(':').unwrap();
    assert_eq!((seq, json["n"].as_u64()), ("1", Some(1)));
    assert!(json["origin"].as_str().unwrap().ends_with(":1"));
    a.log().renew(Some(room("x")), 3);
    let notice = next("ws:log:room:x");
    assert_ne!(notice.split(' ').next(), Some(epoch));
    assert!(notice.ends_with(":3"), "{notice}");
}

/// Adds `count` numbered entries for two rooms and a user in turn.
fn add_entries(redis: &Redis, from: usize, count: usize) {
    let mut connection = redis.connection();
    let channels = ["ws:room:a", "ws:user:5", "ws:room:b"];
    for start in (from..from + count).step_by(500) {
        let mut pipe = redis::pipe();
        for n in start..(start + 500).min(from + count) {
            pipe.cmd("XADD").arg("ws:publish").arg("*").arg("channel").arg(channels[n % 3]);
            pipe.arg("message").arg(numbered(n)).ignore();
        }
        pipe.exec(&mut connection).unwrap();
    }
}

fn door_length(redis: &Redis) -> usize {
    redis::cmd("XLEN").arg("ws:publish").query(&mut redis.connection()).unwrap()
}

#[test]
fn what_was_added_at_the_door_is_numbered_once_and_in_order() {
    const ENTRIES: usize = 10_000;
    let redis = Redis::start();
    let witness = Instance::start_at(&redis.addr(), "", LIMITS);
    witness.wait_for_back(1);
    drop(witness);
    add_entries(&redis, 0, ENTRIES);
    assert_eq!(door_length(&redis), ENTRIES, "nobody is there");
    // Holds the lease, so that the instances begin together, after all have subscribed.
    redis.run(&["SET", "ws:door", "nobody"]);
    let mut instances: Vec<_> = (0..3).map(|_| Instance::back(&redis, MANY)).collect();
    redis.run(&["DEL", "ws:door"]);
    until("it has begun", || door_length(&redis) < ENTRIES - 1000);
    let lease: String = redis::cmd("GET").arg("ws:door").query(&mut redis.connection()).unwrap();
    let holder = instances.iter().position(|i| i.bridge.counters().published() > 0).unwrap();
    // Its connections die in the middle, then it does; and the lease is given to another while it reads.
    kill(&redis, "cmd=evalsha");
    drop(instances.remove(holder));
    redis.run(&["SET", "ws:door", &lease, "PX", "300"]);
    until("all is taken", || door_length(&redis) == 0);
    for instance in &instances {
        let lines = instance.wait_for_lines(ENTRIES);
        assert_eq!(lines.len(), ENTRIES);
        assert_contiguous(&lines);
        assert!(lines.iter().all(|line| line.ticket.is_none()));
        let texts: Vec<_> = lines.iter().map(|line| line.text.clone()).collect();
        assert_eq!(texts, (0..ENTRIES).map(numbered).collect::<Vec<_>>());
    }
}

#[test]
fn two_readers_of_the_door_number_each_entry_once() {
    const ENTRIES: usize = 6000;
    let redis = Redis::start();
    let instances = [(); 2].map(|()| Instance::back(&redis, MANY));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndsAtDrop(&done);
        // Without the lease both read.
        scope.spawn(|| {
            let mut connection = redis.connection();
            while !done.load(Ordering::Relaxed) {
                run(&mut connection, &["DEL", "ws:door"]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        until("both read", || clients(&redis, "cmd=xread").len() == 2);
        add_entries(&redis, 0, ENTRIES);
        until("all is taken", || door_length(&redis) == 0);
        drop(end);
    });
    for instance in &instances {
        let texts: Vec<_> =
            instance.wait_for_lines(ENTRIES).into_iter().map(|line| line.text).collect();
        assert_eq!(texts, (0..ENTRIES).map(numbered).collect::<Vec<_>>());
    }
    let published = instances.each_ref().map(|i| i.bridge.counters().published());
    eprintln!("{published:?} by each");
    assert_eq!(published.iter().sum::<u64>(), ENTRIES as u64);
}

#[test]
fn the_door_sorts_out_what_is_bad_or_too_old() {
    let redis = Redis::start();
    let a = Instance::back(&redis, LIMITS);
    let add = |id: &str, fields: &[&str]| {
        redis.run(&[&["XADD", "ws:publish", id], fields].concat());
    };
    // A key of the wrong type, under a log that there is.
    a.flows(&room("wrong"));
    redis.run(&["SET", "ws:messages:room:wrong", "x"]);
    redis.run(&["SET", "ws:door", "nobody"]);
    add("1000-1", &["channel", "ws:room:x", "message", r#"{"old":1}"#]);
    for message in ["plain", "[1]", "{}", "{", "\u{1}"] {
        add("*", &["channel", "ws:room:x", "message", message]);
    }
    add("*", &["channel", "ws:log:room:x", "message", r#"{"a":1}"#]);
    add("*", &["chanel", "ws:room:x", "message", r#"{"a":1}"#]);
    add("*", &["channel", "ws:room:x", "message", " { \"good\" : 1 } "]);
    add("*", &["channel", "ws:broadcast", "message", r#"{"all":1}"#]);
    add("*", &["channel", "events", "message", r#"{"type":"ADMIN_STATS_UPDATED"}"#]);
    // Redis refuses this one for now, and those behind it wait.
    add("*", &["channel", "ws:room:wrong", "message", r#"{"wrong":1}"#]);
    add("*", &["channel", "ws:room:x", "message", r#"{"last":1}"#]);
    redis.run(&["DEL", "ws:door"]);
    until("the events came", || a.count(|i| matches!(i, Incoming::Message(_))) == 2);
    until("the last wait", || door_length(&redis) == 2);
    redis.run(&["DEL", "ws:messages:room:wrong"]);
    until("all is taken", || door_length(&redis) == 0);
    let texts: Vec<_> = a.wait_for_lines(4).into_iter().skip(1).map(|line| line.text).collect();
    assert_eq!(texts, ["{\"good\" : 1 }", r#"{"wrong":1}"#, r#"{"last":1}"#]);
    assert_eq!(a.dropped(DropReason::DoorTooOld), 1);
    assert_eq!(a.dropped(DropReason::DoorBadEntry), 7);
    assert_eq!(a.dropped(DropReason::DoorFull), 0);
    redis.run(&["SCRIPT", "FLUSH"]);
    add("*", &["channel", "ws:room:x", "message", r#"{"again":1}"#]);
    a.wait_for_lines(5);
}

/// The rights that docs/OPERATIONS.md names.
const RIGHTS: &str = "+role +info +script|load +eval +evalsha +publish +psubscribe +punsubscribe +unsubscribe +ping \
                      +scan +time +hmget +hset +get +set +del +expire +pexpire +xadd +xdel +xrange \
                      +xread +xtrim";

#[test]
fn the_named_rights_are_enough() {
    let redis = Redis::start();
    let rules = ["ACL", "SETUSER", "bob", "on", "nopass", "~shop:ws:*", "allchannels", "-@all"];
    redis.run(&[&rules[..], &RIGHTS.split_whitespace().collect::<Vec<_>>()].concat());
    let at = format!("redis://bob:x@{}", redis.addr());
    let a = Instance::start_at(&at, "shop:", LIMITS);
    a.wait_for_back(1);
    a.flows(&room("x"));
    redis.run(&["SCRIPT", "FLUSH"]);
    a.flows(&user("5"));
    assert_eq!(a.read(&room("x"), None).unwrap().messages.len(), 1);
    a.log().renew(None, 1);
    until("all are renewed", || a.count(|i| matches!(i, Incoming::AllRenewed(1))) == 1);
    let channels = ["shop:ws:room:x", "shop:ws:broadcast", "shop:ws:room:"];
    for channel in channels {
        let entry = ["channel", channel, "message", r#"{"a":1}"#];
        redis.run(&[&["XADD", "shop:ws:publish", "*"], &entry[..]].concat());
    }
    a.wait_for_lines(3);
    until("all came", || {
        a.count(|i| matches!(i, Incoming::Message(_))) == 1
            && a.dropped(DropReason::DoorBadEntry) == 1
    });
    drop(a);
    let log: Vec<Vec<String>> =
        redis::cmd("ACL").arg("LOG").query(&mut redis.connection()).unwrap_or_default();
    assert!(log.is_empty(), "{log:?}");
    let lease: Option<String> =
        redis::cmd("GET").arg("shop:ws:door").query(&mut redis.connection()).unwrap();
    assert_eq!(lease, None);
}
