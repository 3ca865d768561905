//! Verifies that two hubs in one process are instances to each other over [`MemoryBroker`]: the hub's
//! side of the contract of [`PubSub`], without sockets and without Redis.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "support/memory.rs"]
mod memory;
mod support;

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use memory::{MemoryBroker, MemoryPubSub};
use realtime_service::auth::Identity;
use realtime_service::bridge::{DropReason, PubSub};
use realtime_service::config::Config;
use realtime_service::hub::socket::{Activity, Socket};
use realtime_service::hub::{
    self, Broadcast, Delivery, Event, Hub, HubHandle, Outlets, Publisher, PublisherName, Said,
    Target, WriterJob, Writers,
};
use realtime_service::protocol::{Draft, Id, Room};
use realtime_service::runtime::channel;
use realtime_service::runtime::threads::Threads;
use support::{PATIENCE, until, without_number};

/// A peer that takes everything at once, frame by frame.
struct Peer {
    frames: Sender<String>,
    activity: Activity,
}

impl Socket for Peer {
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        for slice in slices {
            // One slice may hold several frames end to end, all of them short.
            let mut rest = &slice[..];
            while let [_, length, ..] = rest {
                let (frame, behind) = rest.split_at(2 + usize::from(*length));
                let _ = self.frames.send(without_number(std::str::from_utf8(&frame[2..]).unwrap()));
                rest = behind;
            }
        }
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn shutdown(&self, _: Shutdown) {}

    fn abort(&self) {}

    fn activity(&self) -> &Activity {
        &self.activity
    }
}

/// These peers never push back.
struct NoWriters;

impl Writers for NoWriters {
    fn submit(&self, _: WriterJob) {}

    fn threads(&self) -> usize {
        0
    }

    fn waiting(&self) -> usize {
        0
    }
}

/// One hub on its own thread, and its place at the broker.
struct Instance {
    hub: HubHandle,
    bridge: Arc<MemoryPubSub>,
    threads: Threads,
    /// The hub and its channel, while it does not run.
    asleep: Option<(Hub, channel::Receiver<Event>)>,
}

impl Instance {
    fn start(broker: &MemoryBroker) -> Self {
        let mut instance = Self::asleep(broker);
        instance.wake();
        instance
    }

    /// With a hub that handles nothing yet.
    fn asleep(broker: &MemoryBroker) -> Self {
        let threads = Threads::default();
        let bridge = Arc::new(broker.connect(threads.clone()));
        let (events, queue) = channel::unbounded();
        let hub = HubHandle::new(events);
        let broker = Arc::<MemoryPubSub>::clone(&bridge);
        let outlets = Outlets { broker: Some(broker), writers: Box::new(NoWriters) };
        let receiver = hub.clone();
        bridge
            .start(Arc::new(move |incoming| match receiver.hear(incoming) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }))
            .unwrap();
        let core = Hub::new(Arc::new(Config::new("secret")), &hub, outlets);
        Self { hub, bridge, threads, asleep: Some((core, queue)) }
    }

    fn wake(&mut self) {
        let (hub, queue) = self.asleep.take().unwrap();
        self.threads.spawn("hub", move || hub::run(hub, &queue)).unwrap();
    }

    fn connect(&self, user: &str, role: &str) -> Member {
        let identity = Arc::new(Identity {
            user_id: Id::parse(user).unwrap(),
            role: role.into(),
            seller_id: None,
            client_id: None,
            expires_at: SystemTime::now() + Duration::from_secs(3600),
        });
        let publisher = self.hub.reserve(identity, 1).unwrap();
        let (frames, received) = unbounded();
        let socket = Arc::new(Peer { frames, activity: Activity::default() });
        publisher.register(socket, Bytes::new()).unwrap();
        Member { publisher, received }
    }

    fn notify(&self, target: Target, text: &str) -> usize {
        let delivery = Delivery { target, draft: object(text) };
        self.hub.notify(PublisherName::Service, vec![delivery]).unwrap()[0]
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.asleep.take());
        let _ = self.hub.send(Event::Stop);
        let _ = self.bridge.close(Instant::now() + PATIENCE);
    }
}

/// A live connection.
struct Member {
    publisher: Publisher,
    received: Receiver<String>,
}

impl Member {
    fn join(&self, name: &str) {
        self.publisher.say(Said::Join { room: room(name), since: None, id: None }, 0).unwrap();
        assert_eq!(self.next(), format!("joined {name}"));
    }

    fn broadcast(&self, name: &str, text: &str) {
        let draft = object(text);
        let broadcast = Broadcast { room: room(name), draft, permitted: false, id: None };
        self.publisher.say(Said::Broadcast(broadcast), 0).unwrap();
    }

    fn next(&self) -> String {
        self.received.recv_timeout(PATIENCE).expect("a frame arrives")
    }

    fn expect(&self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.next(), *text);
        }
    }
}

/// A message of this JSON object.
fn object(text: &str) -> Draft {
    Draft::object(&[text.strip_prefix('{').unwrap().as_bytes()])
}

fn room(name: &str) -> Room {
    Room::parse(name).unwrap()
}

fn numbered(publisher: &str, n: usize) -> String {
    format!(r#"{{"by":"{publisher}","n":{n}}}"#)
}

#[test]
fn members_of_both_hubs_get_every_broadcast_once_and_in_one_order() {
    let broker = MemoryBroker::default();
    let (first, second) = (Instance::start(&broker), Instance::start(&broker));
    let (a, b) = (first.connect("a", ""), second.connect("b", ""));
    for member in [&a, &b] {
        member.join("r");
    }
    const MESSAGES: usize = 500;
    for n in 0..MESSAGES {
        a.broadcast("r", &numbered("a", n));
        b.broadcast("r", &numbered("b", n));
    }
    // Whatever is repeated, or comes back to the hub that published it, stands before the ends.
    a.broadcast("r", &numbered("a", MESSAGES));
    b.broadcast("r", &numbered("b", MESSAGES));
    let [of_a, of_b] = [&a, &b].map(|member| {
        let mut next = [0, 0];
        let mut texts = Vec::new();
        while next != [MESSAGES + 1; 2] {
            let text = member.next();
            let publisher = usize::from(text.contains(r#""b""#));
            assert_eq!(text, numbered(["a", "b"][publisher], next[publisher]));
            next[publisher] += 1;
            texts.push(text);
        }
        texts
    });
    assert_eq!(of_a, of_b);
    assert!(a.received.is_empty() && b.received.is_empty());
    for instance in [&first, &second] {
        assert_eq!(instance.bridge.counters().published(), MESSAGES as u64 + 1);
        // Its own too.
        assert_eq!(instance.bridge.counters().received(), 2 * (MESSAGES as u64 + 1));
    }
}

#[test]
fn users_rooms_and_everyone_are_reached_at_both_and_counted_where_they_are_notified() {
    let broker = MemoryBroker::default();
    let (first, second) = (Instance::start(&broker), Instance::start(&broker));
    let (here, there, admin) =
        (first.connect("u", ""), second.connect("u", ""), second.connect("other", "admin"));
    there.join("r");
    assert_eq!(first.notify(Target::User(Id::parse("u").unwrap()), r#"{"to":"u"}"#), 1);
    assert_eq!(first.notify(Target::Room(room("r")), r#"{"to":"r"}"#), 0);
    assert_eq!(first.notify(Target::Room(Room::admins()), r#"{"to":"admins"}"#), 0);
    assert_eq!(first.notify(Target::Everyone, r#"{"to":"broadcast"}"#), 1);
    here.expect(&[r#"{"to":"u"}"#, r#"{"to":"broadcast"}"#]);
    there.expect(&[r#"{"to":"u"}"#, r#"{"to":"r"}"#, r#"{"to":"broadcast"}"#]);
    admin.expect(&[r#"{"to":"admins"}"#, r#"{"to":"broadcast"}"#]);
    // The other way round, and nothing of the above is still on its way.
    assert_eq!(second.notify(Target::Everyone, r#"{"end":1}"#), 2);
    for member in [&here, &there, &admin] {
        member.expect(&[r#"{"end":1}"#]);
    }
}

#[test]
fn what_has_local_meaning_stays_local() {
    let broker = MemoryBroker::default();
    let (first, second) = (Instance::start(&broker), Instance::start(&broker));
    let (here, there) = (first.connect("a", "admin"), second.connect("b", "admin"));
    assert_eq!(first.notify(Target::Admins, r#"{"local":1}"#), 1);
    first.notify(Target::Everyone, r#"{"end":1}"#);
    here.expect(&[r#"{"local":1}"#, r#"{"end":1}"#]);
    there.expect(&[r#"{"end":1}"#]);
    assert_eq!(first.bridge.counters().dropped(DropReason::NotPublishable), 1);
}

#[test]
fn a_hub_that_stands_still_holds_up_its_subscription_and_no_publisher() {
    let broker = MemoryBroker::default();
    let first = Instance::start(&broker);
    let mut second = Instance::asleep(&broker);
    let here = first.connect("a", "");
    // More than the hub lets wait: the rest waits at the broker, and the publisher is answered all the same.
    const MESSAGES: usize = 20_000;
    for n in 0..MESSAGES {
        let text = numbered("a", n);
        assert_eq!(first.notify(Target::Everyone, &text), 1);
        assert_eq!(here.next(), text);
    }
    second.wake();
    until("the subscription goes on", || second.bridge.counters().received() == MESSAGES as u64);
    let there = second.connect("b", "");
    first.notify(Target::Everyone, r#"{"end":1}"#);
    // It may have connected before the last of the old ones was handled; they are in order then.
    let mut last = None;
    loop {
        let text = there.next();
        if text == r#"{"end":1}"# {
            break;
        }
        let n = text.trim_start_matches(r#"{"by":"a","n":"#).trim_end_matches('}').parse::<usize>();
        assert!(last < Some(n.clone().unwrap()), "{text} after {last:?}");
        last = n.ok();
    }
}
