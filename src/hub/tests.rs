//! The hub's core, driven with channels and sockets of memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded, unbounded};
use proptest::prelude::*;

use super::socket::Activity;
use super::*;
use crate::auth::Identity;
use crate::bridge::{
    BridgeCounters, BridgeState, DropReason, Handler, Incoming, NotClosed, Outgoing, PubSub,
};
use crate::config::Config;
use crate::protocol::close::Close;
use crate::protocol::{Draft, Id, MessageId, Position, Room, frame_payload, text_frame};
use crate::runtime::channel;

/// A peer that takes `room` bytes, then pushes back.
pub(super) struct Peer {
    activity: Activity,
    state: Mutex<PeerState>,
}

struct PeerState {
    room: usize,
    taken: Vec<u8>,
    write_shut: bool,
    cut: bool,
}

impl Socket for Peer {
    fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        assert!(!state.cut && !state.write_shut, "a send after the end");
        let mut sent = 0;
        for slice in slices {
            let length = slice.len().min(state.room);
            state.taken.extend(&slice[..length]);
            state.room -= length;
            sent += length;
        }
        if sent == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(sent) }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        if state.cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.taken.extend(bytes);
        Ok(bytes.len())
    }

    fn shutdown(&self, how: Shutdown) {
        let mut state = self.state.lock().unwrap();
        state.write_shut = true;
        state.cut |= how == Shutdown::Both;
    }

    fn abort(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn activity(&self) -> &Activity {
        &self.activity
    }
}

/// Takes backlogs, and leaves it to the test to drain them.
struct JobQueue(crossbeam_channel::Sender<WriterJob>);

impl Writers for JobQueue {
    fn submit(&self, job: WriterJob) {
        self.0.send(job).unwrap();
    }

    fn threads(&self) -> usize {
        1
    }

    fn waiting(&self) -> usize {
        self.0.len()
    }
}

impl Peer {
    fn set_room(&self, bytes: usize) {
        self.state.lock().unwrap().room = bytes;
    }

    /// Texts, and the codes of Close frames, taken since the last call.
    pub(super) fn taken(&self) -> Vec<String> {
        let mut bytes: Bytes = std::mem::take(&mut self.state.lock().unwrap().taken).into();
        let mut texts = Vec::new();
        while let Some(length) = bytes.get(1) {
            let (header, length) = match length {
                126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
                length => (2, usize::from(*length)),
            };
            let frame = bytes.split_to(header + length);
            let payload = frame_payload(&frame);
            texts.push(match frame[0] & 0xf {
                0x8 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
                0x9 => "ping".into(),
                0xa => format!("pong {}", String::from_utf8_lossy(&payload)),
                _ => String::from_utf8(payload.to_vec()).unwrap(),
            });
        }
        texts
    }

    fn is_cut(&self) -> bool {
        self.state.lock().unwrap().cut
    }

    fn is_write_shut(&self) -> bool {
        self.state.lock().unwrap().write_shut
    }
}

pub(super) struct Bench {
    pub(super) hub: Hub,
    pub(super) handle: HubHandle,
    writers: Receiver<WriterJob>,
    events: channel::Receiver<Event>,
    /// Of calls whose answers nobody looks at.
    unanswered: Vec<channel::Receiver<Vec<usize>>>,
}

pub(super) struct Client {
    key: ConnectionKey,
    /// `None` when its reader has ended.
    publisher: Option<Publisher>,
    pub(super) peer: Arc<Peer>,
}

/// A broker without an ordered log, which keeps what it is handed.
struct Recorder {
    published: Mutex<Vec<Outgoing>>,
    counters: Arc<BridgeCounters>,
}

impl PubSub for Recorder {
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        self.published.lock().unwrap().push(outgoing);
        Ok(())
    }

    fn start(&self, _: Handler) -> io::Result<()> {
        Ok(())
    }

    fn state(&self) -> BridgeState {
        BridgeState::Connected
    }

    fn counters(&self) -> &Arc<BridgeCounters> {
        &self.counters
    }

    fn close(&self, _: Instant) -> Result<(), NotClosed> {
        Ok(())
    }
}

pub(super) fn config() -> Config {
    Config {
        max_connections_per_user: 3,
        max_rooms_per_client: 2,
        send_queue_frames: 4,
        send_queue_bytes: 1000,
        write_timeout: Duration::from_secs(5),
        ping_interval: Duration::from_secs(30),
        ..Config::new("secret")
    }
}

fn identity(user: &str, role: &str) -> Arc<Identity> {
    Arc::new(Identity {
        user_id: Id::parse(user).unwrap(),
        role: role.into(),
        seller_id: (role == "seller").then(|| Id::parse("5").unwrap()),
        client_id: None,
        expires_at: UNIX_EPOCH + Duration::from_secs(1000),
    })
}

fn no_rooms(clients: usize) -> Counts {
    Counts { clients, rooms: BTreeMap::new(), rooms_total: 0 }
}

pub(super) fn room(name: &str) -> Room {
    Room::parse(name).unwrap()
}

pub(super) fn joins(name: &str) -> Said {
    Said::Join { room: room(name), since: None, id: None }
}

impl Bench {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: Config) -> Self {
        Self::with_broker(config, None)
    }

    pub(super) fn with_broker(config: Config, broker: Option<Arc<dyn PubSub>>) -> Self {
        let (job_sender, writers) = unbounded();
        let (sender, events) = channel::unbounded();
        let outlets = Outlets { broker, writers: Box::new(JobQueue(job_sender)) };
        let handle = HubHandle::new(sender);
        let hub = Hub::new(Arc::new(config), &handle, outlets);
        Self { hub, handle, writers, events, unanswered: Vec::new() }
    }

    /// With a broker that has no ordered log.
    fn recorded() -> (Self, Arc<Recorder>) {
        let (published, counters) = Default::default();
        let recorder = Arc::new(Recorder { published, counters });
        (Self::with_broker(config(), Some(Arc::<Recorder>::clone(&recorder))), recorder)
    }

    /// Calls that notify and have no answer yet.
    pub(super) fn waiting_notifies(&self) -> usize {
        let is_waiting =
            |answer: &&channel::Receiver<Vec<usize>>| answer.try_iter().next().is_none();
        self.unanswered.iter().filter(is_waiting).count()
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.handle.budget().bytes()
    }

    /// Without waiting for the answer.
    pub(super) fn notify_later(&mut self, target: Target, draft: Draft) {
        let (reply, answer) = channel::bounded(1);
        self.unanswered.push(answer);
        let taken = draft.len();
        let deliveries = vec![Delivery { target, draft }];
        let publisher = PublisherName::Service;
        self.handle.notifications().take(taken).unwrap();
        self.hub.accept(Event::Notify(Notify { publisher, deliveries, reply, taken }));
        self.serve();
    }

    /// What publishers have said since the last call, served to the end, and not flushed unless it must be.
    pub(super) fn serve(&mut self) {
        for event in self.events.try_iter() {
            self.hub.accept(event);
        }
        while self.hub.has_work() {
            self.hub.serve();
            if self.hub.wants_flush() {
                self.hub.flush();
            }
        }
    }

    /// Looks at what has come, as the hub does between two parts of a flush, and serves nothing.
    pub(super) fn look(&mut self) {
        for event in self.events.try_iter() {
            self.hub.accept(event);
        }
    }

    pub(super) fn flush(&mut self) {
        self.serve();
        self.hub.flush();
    }

    fn reserve(&mut self, user: &str, role: &str) -> Result<Publisher, Refusal> {
        let (handle, identity) = (self.handle.clone(), identity(user, role));
        let asking = std::thread::spawn(move || handle.reserve(identity, 1));
        while !asking.is_finished() {
            self.serve();
        }
        asking.join().unwrap()
    }

    pub(super) fn connect(&mut self, user: &str, role: &str) -> Client {
        let publisher = self.reserve(user, role).unwrap();
        let state =
            PeerState { room: usize::MAX, taken: Vec::new(), write_shut: false, cut: false };
        let activity = Activity::default();
        activity.last_byte.set(Moment::from_millis(0));
        let peer = Arc::new(Peer { activity, state: Mutex::new(state) });
        publisher.register(Arc::<Peer>::clone(&peer), Bytes::new()).unwrap();
        self.serve();
        Client { key: publisher.key, publisher: Some(publisher), peer }
    }

    fn shut_down(&mut self) {
        self.hub.accept(Event::Shutdown(bounded(0).0));
    }

    fn join(&mut self, client: &Client, name: &str) -> Vec<String> {
        client.say(joins(name));
        self.flush();
        client.peer.taken()
    }

    fn broadcast(&mut self, client: &Client, name: &str, text: &str, permitted: bool) {
        let draft = Draft::text(text);
        let broadcast = Broadcast { room: room(name), draft, permitted, id: None };
        client.say(Said::Broadcast(broadcast));
        self.serve();
    }

    fn notify(&mut self, target: Target, text: &str) -> usize {
        let (reply, counts) = channel::bounded(1);
        let deliveries = vec![Delivery { target, draft: Draft::text(text) }];
        let publisher = PublisherName::Service;
        self.handle.notifications().take(0).unwrap();
        self.serve();
        self.hub.accept(Event::Notify(Notify { publisher, deliveries, reply, taken: 0 }));
        self.flush();
        counts.recv().unwrap()[0]
    }

    fn tick(&mut self, seconds: u64) {
        let after = Duration::from_secs(seconds);
        self.hub.tick(Moment::from_millis(seconds * 1000), UNIX_EPOCH + after);
    }

    fn counts(&mut self) -> Counts {
        let (reply, counts) = channel::bounded(1);
        self.serve();
        self.hub.accept(Event::Counts(reply));
        counts.recv().unwrap()
    }

    fn slots(&self) -> usize {
        self.hub.connections.slots.len()
    }
}

impl Client {
    pub(super) fn say(&self, said: Said) {
        if let Some(publisher) = &self.publisher {
            publisher.say(said, 0).unwrap();
        }
    }

    pub(super) fn end(&mut self) {
        self.publisher = None;
    }
}

/// Runs a writer to the end of what it was handed; it must have been dropped by the hub.
fn finish(bench: &mut Bench, job: WriterJob) {
    let WriterJob { key, socket, mut drain } = job;
    let broken = drain.run(|bytes| socket.send(bytes).map(super::Step::Sent)).is_err();
    bench.hub.accept(Event::WriterEnded { key, broken });
}

#[test]
fn a_broadcast_reaches_every_member_in_order_and_the_broker() {
    let (mut bench, recorder) = Bench::recorded();
    let (a, b, c) = (bench.connect("a", ""), bench.connect("b", ""), bench.connect("c", ""));
    assert_eq!(bench.join(&a, "r"), ["joined r"]);
    bench.join(&b, "r");
    for text in ["1", "2", "3"] {
        bench.broadcast(&a, "r", text, false);
    }
    bench.flush();
    assert_eq!(a.peer.taken(), ["1", "2", "3"]);
    assert_eq!(b.peer.taken(), ["1", "2", "3"]);
    assert!(c.peer.taken().is_empty());
    assert_eq!(recorder.published.lock().unwrap().len(), 3);
}

#[test]
fn a_broadcast_needs_membership_or_permission() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connect("a", ""), bench.connect("b", ""));
    bench.join(&b, "r");
    bench.broadcast(&a, "r", "no", false);
    bench.broadcast(&a, "r", "yes", true);
    bench.flush();
    assert_eq!(
        a.peer.taken(),
        [r#"{"type":"error","payload":{"code":"not_authorized","error":"not authorized"}}"#]
    );
    assert_eq!(b.peer.taken(), ["yes"]);
}

#[test]
fn a_leave_answers_also_where_nothing_was_joined_and_a_second_join_is_no_second_copy() {
    let mut bench = Bench::new();
    let a = bench.connect("a", "");
    bench.join(&a, "r");
    assert_eq!(bench.join(&a, "r"), ["joined r"]);
    bench.broadcast(&a, "r", "once", false);
    a.say(Said::Leave(room("r"), None));
    a.say(Said::Leave(room("other"), None));
    bench.flush();
    assert_eq!(a.peer.taken(), ["once", "left r", "left other"]);
    assert_eq!(bench.counts(), no_rooms(1));
}

#[test]
fn rooms_are_limited_but_not_for_admins() {
    let mut bench = Bench::new();
    let (a, admin) = (bench.connect("a", ""), bench.connect("b", "admin"));
    for name in ["1", "2"] {
        bench.join(&a, name);
    }
    assert_eq!(
        bench.join(&a, "3"),
        [r#"{"type":"error","payload":{"code":"too_many_rooms","error":"too many rooms"}}"#]
    );
    assert_eq!(bench.join(&a, "2"), ["joined 2"]);
    for name in ["1", "2", "3"] {
        assert_eq!(bench.join(&admin, name), [format!("joined {name}")]);
    }
}

#[test]
fn notifications_reach_whom_they_are_for_and_count_them() {
    let (mut bench, recorder) = Bench::recorded();
    let (a1, a2) = (bench.connect("a", ""), bench.connect("a", "seller"));
    let admin = bench.connect("b", "admin");
    assert_eq!(bench.notify(Target::User(Id::parse("a").unwrap()), "user"), 2);
    assert_eq!(bench.notify(Target::User(Id::parse("nobody").unwrap()), "user"), 0);
    assert_eq!(bench.notify(Target::Room(Room::admins()), "room"), 1);
    assert_eq!(bench.notify(Target::Everyone, "all"), 3);
    for (target, text) in
        [(Target::Admins, "admins"), (Target::Seller(Id::parse("5").unwrap()), "seller")]
    {
        let delivery = Delivery { target, draft: Draft::text(text) };
        bench.handle.hear(Incoming::Message(delivery)).unwrap();
        bench.serve();
    }
    bench.flush();
    assert_eq!(a1.peer.taken(), ["user", "all"]);
    assert_eq!(a2.peer.taken(), ["user", "all", "seller"]);
    assert_eq!(admin.peer.taken(), ["room", "all", "admins"]);
    // What came from the broker does not go back to it.
    assert_eq!(recorder.published.lock().unwrap().len(), 4);
}

#[test]
fn a_user_has_so_many_connections_and_no_more() {
    let mut bench = Bench::new();
    let mut publishers: Vec<_> = (0..3).map(|_| bench.reserve("a", "").unwrap()).collect();
    assert_eq!(bench.reserve("a", "").err(), Some(Refusal::UserCap));
    assert!(bench.reserve("b", "").is_ok());
    publishers.pop();
    assert!(bench.reserve("a", "").is_ok());
    bench.shut_down();
    assert_eq!(bench.reserve("c", "").err(), Some(Refusal::ShuttingDown));
}

#[test]
fn a_socket_that_pushes_back_gets_a_writer_and_loses_nothing() {
    let mut bench = Bench::new();
    let a = bench.connect("a", "");
    bench.join(&a, "r");
    a.peer.set_room(5);
    for text in ["first", "second"] {
        bench.broadcast(&a, "r", text, false);
    }
    bench.flush();
    let job = bench.writers.try_recv().unwrap();
    // Behind the backlog, although the socket could take it now.
    a.peer.set_room(usize::MAX);
    bench.broadcast(&a, "r", "third", false);
    bench.flush();
    assert!(bench.writers.try_recv().is_err());
    // The writer drains all; only then does the hub take the socket back.
    let WriterJob { key, socket, mut drain } = job;
    let send = move |bytes: &[u8]| socket.send(bytes).map(super::Step::Sent);
    let writer = std::thread::spawn(move || drain.run(send).is_err());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !bench.hub.connections.slots[a.key].outbox.backlog().unwrap().is_drained() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    bench.broadcast(&a, "r", "fourth", false);
    bench.flush();
    assert!(!writer.join().unwrap());
    bench.hub.accept(Event::WriterEnded { key, broken: false });
    assert_eq!(a.peer.taken(), ["first", "second", "third", "fourth"]);
    assert!(!a.peer.is_cut());
}

#[test]
fn a_slow_consumer_is_cut_by_frames_by_bytes_and_by_time_while_others_go_on() {
    let mut bench = Bench::new();
    let clients: Vec<_> = ["a", "b", "c", "ok"].map(|user| bench.connect(user, "")).into();
    let [frames, bytes, time, ok] = clients.as_slice() else { unreachable!() };
    for (client, name) in [(frames, "f"), (bytes, "b"), (time, "t"), (ok, "f")] {
        bench.join(client, name);
    }
    for client in [frames, bytes, time] {
        client.peer.set_room(0);
    }
    // One frame always fits, however large; the limit of frames may be reached, not passed.
    bench.broadcast(bytes, "b", &"x".repeat(5000), false);
    bench.broadcast(time, "t", "head", false);
    for n in 0..4 {
        bench.broadcast(frames, "f", &n.to_string(), false);
    }
    bench.flush();
    assert!(![frames, bytes, time].iter().any(|client| client.peer.is_cut()));
    bench.broadcast(bytes, "b", "y", false);
    bench.broadcast(ok, "f", "4", false);
    bench.flush();
    assert!(frames.peer.is_cut() && bytes.peer.is_cut() && !time.peer.is_cut());
    assert_eq!(ok.peer.taken(), ["0", "1", "2", "3", "4"]);
    let late = Moment::now().since(Moment::from_millis(0)) + Duration::from_secs(6);
    bench.hub.tick(Moment::from_millis(late.as_millis() as u64), UNIX_EPOCH);
    assert!(time.peer.is_cut() && !ok.peer.is_cut());
    assert_eq!(bench.counts().rooms, BTreeMap::from([(room("f"), 1)]));
}

#[test]
fn a_place_is_freed_when_reader_and_writer_have_ended() {
    let mut bench = Bench::new();
    let mut a = bench.connect("a", "");
    a.peer.set_room(0);
    bench.notify(Target::Everyone, "x");
    a.end();
    bench.serve();
    assert!(a.peer.is_cut());
    assert_eq!((bench.slots(), bench.counts().clients), (1, 0));
    let job = bench.writers.recv().unwrap();
    finish(&mut bench, job);
    assert_eq!(bench.slots(), 0);
    assert_eq!(bench.hub.audiences.len(), 0);
}

#[test]
fn a_close_comes_behind_what_is_queued_and_is_the_last_frame() {
    let mut bench = Bench::new();
    let (mut a, b) = (bench.connect("a", "admin"), bench.connect("b", ""));
    bench.join(&a, "r");
    bench.broadcast(&a, "r", "queued", false);
    a.say(Said::Close(Close::RateLimited));
    a.say(Said::Close(Close::Echo(1000)));
    a.say(Said::Ping(Bytes::from_static(b"late")));
    a.say(joins("late"));
    bench.notify(Target::Everyone, "late");
    assert_eq!(a.peer.taken(), ["queued", "close 1008"]);
    assert!(a.peer.is_write_shut() && !a.peer.is_cut());
    assert_eq!(b.peer.taken(), ["late"]);
    assert_eq!(bench.counts(), no_rooms(1));
    a.end();
    bench.serve();
    assert_eq!(bench.slots(), 1);
}

#[test]
fn a_close_behind_a_backlog_waits_for_the_writer() {
    let mut bench = Bench::new();
    let a = bench.connect("a", "");
    a.peer.set_room(0);
    for n in 0..4 {
        bench.notify(Target::Everyone, &n.to_string());
    }
    bench.shut_down();
    bench.flush();
    assert!(!a.peer.is_write_shut());
    let job = bench.writers.recv().unwrap();
    finish(&mut bench, job);
    assert_eq!(a.peer.taken(), ["0", "1", "2", "3", "close 1001"]);
    assert!(a.peer.is_write_shut() && !a.peer.is_cut());
}

#[test]
fn a_peer_that_does_not_end_after_a_close_is_cut_at_the_deadline() {
    let mut bench = Bench::new();
    let a = bench.connect("a", "");
    a.say(Said::Close(Close::Protocol));
    bench.flush();
    let now = Moment::now().since(Moment::from_millis(0)).as_millis() as u64;
    bench.hub.tick(Moment::from_millis(now + 4000), UNIX_EPOCH);
    assert!(!a.peer.is_cut());
    bench.hub.tick(Moment::from_millis(now + 6000), UNIX_EPOCH);
    assert!(a.peer.is_cut());
}

#[test]
fn a_connection_that_registers_during_the_shutdown_is_closed() {
    let mut bench = Bench::new();
    let publisher = bench.reserve("a", "").unwrap();
    bench.shut_down();
    let state = PeerState { room: 100, taken: Vec::new(), write_shut: false, cut: false };
    let peer = Arc::new(Peer { activity: Activity::default(), state: Mutex::new(state) });
    publisher.register(Arc::<Peer>::clone(&peer), text_frame("101")).unwrap();
    bench.flush();
    assert_eq!(peer.taken(), ["101", "close 1001"]);
}

#[test]
fn silence_is_pinged_then_cut_and_rests_while_the_backend_is_asked() {
    let mut bench = Bench::new();
    let (dead, alive, asking) =
        (bench.connect("a", ""), bench.connect("b", ""), bench.connect("c", ""));
    asking.peer.activity.last_byte.set(Moment::NEVER);
    bench.tick(29);
    assert!(dead.peer.taken().is_empty());
    bench.tick(30);
    bench.tick(31);
    assert_eq!((dead.peer.taken(), alive.peer.taken()), (vec!["ping".into()], vec!["ping".into()]));
    alive.peer.activity.last_byte.set(Moment::from_millis(31_500));
    bench.tick(59);
    assert!(!dead.peer.is_cut());
    bench.tick(60);
    assert!(dead.peer.is_cut() && !alive.peer.is_cut());
    bench.tick(62);
    assert_eq!(alive.peer.taken(), ["ping"]);
    assert!(asking.peer.taken().is_empty() && !asking.peer.is_cut());
}

#[test]
fn an_answer_within_the_millisecond_of_the_ping_counts() {
    let mut bench = Bench::new();
    let quick = bench.connect("a", "");
    for seconds in [30, 60, 90] {
        bench.tick(seconds);
        assert_eq!(quick.peer.taken(), ["ping"]);
        quick.peer.activity.last_byte.set(Moment::from_millis(seconds * 1000));
    }
    assert!(!quick.peer.is_cut());
}

#[test]
fn an_expired_token_closes_and_an_unfinished_message_cuts() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connect("a", ""), bench.connect("b", ""));
    for client in [&a, &b] {
        client.peer.activity.last_byte.set(Moment::from_millis(990_000));
    }
    b.peer.activity.unfinished_since.set(Moment::from_millis(960_000));
    bench.tick(990);
    assert!(!b.peer.is_cut());
    bench.tick(991);
    assert!(b.peer.is_cut());
    bench.tick(999);
    assert!(a.peer.taken().is_empty());
    bench.tick(1000);
    assert_eq!(a.peer.taken(), ["close 4001"]);
}

#[test]
fn only_the_latest_unsent_pong_is_kept() {
    let mut bench = Bench::new();
    let a = bench.connect("a", "");
    for n in 0..100 {
        a.say(Said::Ping(Bytes::from(n.to_string())));
    }
    bench.flush();
    assert_eq!(a.peer.taken(), ["pong 99"]);
    a.peer.set_room(0);
    for n in 0..100 {
        a.say(Said::Ping(Bytes::from(n.to_string())));
        bench.flush();
    }
    assert!(!a.peer.is_cut());
    assert!(bench.hub.connections.slots[a.key].outbox.backlog().unwrap().frames() <= 2);
}

#[derive(Debug, Clone)]
enum Step {
    Join(usize, u8),
    Leave(usize, u8),
    Broadcast(usize, u8),
    End(usize),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..5_usize, 0..3_u8).prop_map(|(c, r)| Step::Join(c, r)),
        2 => (0..5_usize, 0..3_u8).prop_map(|(c, r)| Step::Leave(c, r)),
        6 => (0..5_usize, 0..3_u8).prop_map(|(c, r)| Step::Broadcast(c, r)),
        1 => (0..5_usize).prop_map(Step::End),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Against a plain model: who gets what, in order, exactly once.
    #[test]
    fn deliveries_are_those_of_a_plain_model(steps in steps()) {
        let mut bench = Bench::with(Config { max_rooms_per_client: 3, ..config() });
        let mut clients: Vec<_> = (0..5).map(|n| bench.connect(&n.to_string(), "")).collect();
        let mut members: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
        let mut ended = BTreeSet::new();
        let mut expected = vec![Vec::<String>::new(); 5];
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Join(c, r) => {
                    clients[c].say(joins(&r.to_string()));
                    if !ended.contains(&c) {
                        members.entry(r).or_default().insert(c);
                        expected[c].push(format!("joined {r}"));
                    }
                }
                Step::Leave(c, r) => {
                    clients[c].say(Said::Leave(room(&r.to_string()), None));
                    if !ended.contains(&c) {
                        members.entry(r).or_default().remove(&c);
                        expected[c].push(format!("left {r}"));
                    }
                }
                Step::Broadcast(c, r) => {
                    bench.broadcast(&clients[c], &r.to_string(), &n.to_string(), true);
                    if !ended.contains(&c) {
                        for member in members.entry(r).or_default().iter() {
                            expected[*member].push(n.to_string());
                        }
                    }
                }
                Step::End(c) => {
                    bench.flush();
                    clients[c].end();
                    bench.serve();
                    members.values_mut().for_each(|set| { set.remove(&c); });
                    ended.insert(c);
                }
                Step::Flush => bench.hub.flush(),
            }
        }
        bench.flush();
        for (client, expected) in clients.iter().zip(expected) {
            prop_assert_eq!(client.peer.taken(), expected);
        }
        let rooms: BTreeMap<_, _> = members
            .into_iter()
            .filter(|(_, set)| !set.is_empty())
            .map(|(name, set)| (room(&name.to_string()), set.len()))
            .collect();
        let rooms_total = rooms.len();
        prop_assert_eq!(bench.counts(), Counts { clients: 5 - ended.len(), rooms, rooms_total });
    }
}

/// What a client has of a log, over all its connections.
#[derive(Default)]
struct Followed {
    position: Option<Position>,
    /// What it has asked for and was not answered yet.
    asked: VecDeque<Option<Position>>,
    /// An answer has come on this connection, and it has not left since.
    is_live: bool,
}

/// A client that comes and goes, over a socket that takes what the test lets it: two rooms, and its own
/// notifications.
#[derive(Default)]
struct Follower {
    client: Option<Client>,
    logs: [Followed; 3],
    /// How often it was told that something may be missing.
    told: usize,
}

/// The last of a follower's logs: its own notifications.
const OWN: usize = 2;

impl Follower {
    fn come(&mut self, bench: &mut Bench, user: usize, takes: usize) {
        let client = bench.connect(&user.to_string(), "");
        client.peer.set_room(takes);
        self.client = Some(client);
        for log in 0..3 {
            let Followed { asked, is_live, .. } = &mut self.logs[log];
            asked.clear();
            *is_live = false;
            self.ask(log);
        }
    }

    fn ask(&mut self, log: usize) {
        let followed = &mut self.logs[log];
        let (id, since) = (MessageId::of(r#"{"id":1}"#), followed.position.clone());
        followed.asked.push_back(since.clone());
        self.client.as_ref().unwrap().say(match log {
            OWN => Said::Resume { since, id },
            n => Said::Join { room: room(&n.to_string()), since, id },
        });
    }

    fn leave(&mut self, n: usize) {
        let id = MessageId::of(r#"{"id":1}"#);
        self.client.as_ref().unwrap().say(Said::Leave(room(&n.to_string()), id));
    }

    /// Reads what has come whole; a part of a frame stays for later.
    fn read(&mut self) {
        let Some(client) = &self.client else { return };
        let mut state = client.peer.state.lock().unwrap();
        let mut at = 0;
        let mut texts = Vec::new();
        while let Some([_, length, rest @ ..]) = state.taken.get(at..) {
            let (header, length) = match (length, rest) {
                (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                (126, _) => break,
                (length, _) => (2, usize::from(*length)),
            };
            let Some(payload) = state.taken.get(at + header..at + header + length) else { break };
            texts.push(String::from_utf8(payload.to_vec()).unwrap());
            at += header + length;
        }
        state.taken.drain(..at);
        drop(state);
        texts.iter().for_each(|text| self.take(text));
    }

    fn take(&mut self, text: &str) {
        let message: serde_json::Value = serde_json::from_str(text).unwrap();
        let payload = &message["payload"];
        let log_of = |name: &serde_json::Value| name.as_str().map_or(OWN, |n| n.parse().unwrap());
        if message["type"] == "left" {
            self.logs[log_of(&payload["room"])].is_live = false;
            return;
        }
        if let Some(epoch) = payload["epoch"].as_str() {
            let followed = &mut self.logs[log_of(&payload["room"])];
            let now = Position { epoch: epoch.into(), seq: payload["seq"].as_u64().unwrap() };
            if message["type"] == "reset" {
                assert!(followed.is_live, "{text}");
                self.told += 1;
            } else {
                match (followed.asked.pop_front().unwrap(), payload["recovered"].as_bool()) {
                    // What came since it asked comes again.
                    (Some(since), Some(true)) => assert_eq!(since, now),
                    (Some(_), Some(false)) => self.told += 1,
                    // Who is there already is told where it is.
                    (None, None) if followed.is_live => {
                        assert_eq!(followed.position, Some(now.clone()))
                    }
                    (None, None) => {}
                    _ => panic!("{text}"),
                }
            }
            followed.is_live = true;
            followed.position = Some(now);
            return;
        }
        let log = log_of(&message["room"]);
        let followed = &mut self.logs[log];
        let seq = message["seq"].as_u64().or(message["user_seq"].as_u64()).unwrap();
        // The message says itself which one it is.
        assert_eq!(message["n"].as_u64(), Some(seq));
        if followed.is_live {
            let position = followed.position.as_mut().unwrap();
            assert_eq!(seq, position.seq + 1, "{text}");
            position.seq = seq;
        }
    }
}

#[derive(Debug, Clone)]
enum Coming {
    /// In a room, or to the user behind it.
    Say(usize, usize),
    /// Over a socket that takes so many bytes.
    Come(usize, usize),
    Go(usize),
    Leave(usize, usize),
    /// Join again, or resume again.
    Again(usize, usize),
    /// The socket of a client takes so many bytes from now on.
    Takes(usize, usize),
    /// The writers send all that they have.
    Write,
    Flush,
}

fn comings_and_goings() -> impl Strategy<Value = Vec<Coming>> {
    let step = prop_oneof![
        8 => (0..5_usize, 0..400_usize).prop_map(|(log, size)| Coming::Say(log, size)),
        // Three of these are more than one turn of a replay.
        6 => (0..5_usize, 20_000..40_000_usize).prop_map(|(log, size)| Coming::Say(log, size)),
        4 => (0..3_usize, 0..40_000_usize).prop_map(|(who, bytes)| Coming::Come(who, bytes)),
        2 => (0..3_usize).prop_map(|who| Coming::Come(who, usize::MAX)),
        3 => (0..3_usize).prop_map(Coming::Go),
        2 => (0..3_usize, 0..2_usize).prop_map(|(who, log)| Coming::Leave(who, log)),
        2 => (0..3_usize, 0..3_usize).prop_map(|(who, log)| Coming::Again(who, log)),
        4 => (0..3_usize, 0..80_000_usize).prop_map(|(who, bytes)| Coming::Takes(who, bytes)),
        4 => Just(Coming::Write),
        6 => Just(Coming::Flush),
    ];
    prop::collection::vec(step, 0..150)
}

/// All that writers have been handed, sent.
fn write_all(bench: &mut Bench) {
    let jobs: Vec<_> = bench.writers.try_iter().collect();
    jobs.into_iter().for_each(|job| finish(bench, job));
}

proptest! {
    /// Over all its connections a client sees each log without a hole or a repetition, or is told: whenever
    /// it comes and goes, joins and leaves, and however slowly its socket takes what it is sent.
    #[test]
    fn nobody_has_a_hole_that_it_was_not_told_of(
        steps in comings_and_goings(), kept in 1..9_usize, bytes in 30_000..400_000_usize,
    ) {
        let mut bench = Bench::with(Config {
            max_connections_per_user: 0,
            history_messages: kept,
            history_bytes: bytes,
            send_queue_frames: 1000,
            send_queue_bytes: 10_000_000,
            ..config()
        });
        let mut followers: [Follower; 3] = Default::default();
        let mut said = [0_usize; 5];
        for step in steps {
            match step {
                Coming::Say(log, size) => {
                    said[log] += 1;
                    let (n, pad) = (said[log], "x".repeat(size));
                    let (target, text) = match log.checked_sub(2) {
                        None => (
                            Target::Room(room(&log.to_string())),
                            format!(r#""room":"{log}","n":{n},"pad":"{pad}"}}"#),
                        ),
                        Some(user) => (
                            Target::User(Id::parse(&user.to_string()).unwrap()),
                            format!(r#""n":{n},"pad":"{pad}"}}"#),
                        ),
                    };
                    let draft = Draft::object(&[text.as_bytes()]);
                    bench.handle.hear(Incoming::Message(Delivery { target, draft })).unwrap();
                }
                Coming::Come(who, takes) if followers[who].client.is_none() => {
                    followers[who].come(&mut bench, who, takes);
                }
                Coming::Go(who) => {
                    followers[who].read();
                    if let Some(mut client) = followers[who].client.take() {
                        client.end();
                    }
                }
                Coming::Leave(who, log) if followers[who].client.is_some() => {
                    followers[who].leave(log);
                }
                Coming::Again(who, log) if followers[who].client.is_some() => {
                    followers[who].ask(log);
                }
                Coming::Takes(who, bytes) => {
                    if let Some(client) = &followers[who].client {
                        client.peer.set_room(bytes);
                    }
                }
                Coming::Write => write_all(&mut bench),
                Coming::Flush => bench.flush(),
                Coming::Come(..) | Coming::Leave(..) | Coming::Again(..) => {}
            }
            bench.serve();
            followers.iter_mut().for_each(Follower::read);
        }
        // In the end all are here, take everything, and have caught up.
        for (who, follower) in followers.iter_mut().enumerate() {
            match &follower.client {
                Some(client) => client.peer.set_room(usize::MAX),
                None => follower.come(&mut bench, who, usize::MAX),
            }
        }
        for round in 0..200 {
            bench.flush();
            write_all(&mut bench);
            followers.iter_mut().for_each(Follower::read);
            if round == 100 {
                followers.iter_mut().for_each(|follower| (0..3).for_each(|log| follower.ask(log)));
            }
        }
        for (who, follower) in followers.iter().enumerate() {
            let at = follower.logs.each_ref().map(|log| log.position.clone().unwrap().seq);
            prop_assert_eq!(at, [said[0], said[1], said[2 + who]].map(|n| n as u64));
        }
        let history = &bench.hub.history;
        prop_assert_eq!(history.readers(), 0);
        prop_assert!(!history.counts().not_recovered.contains_key("future"));
        prop_assert!(history.counts().bytes <= bytes as u64);
    }
}

#[test]
fn who_rejoins_many_rooms_at_once_gets_all_of_them_in_turns_and_is_not_cut() {
    let mut bench = Bench::with(Config {
        max_rooms_per_client: 50,
        send_queue_frames: 4,
        send_queue_bytes: 1000,
        ..config()
    });
    let names: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    for name in &names {
        for n in 0..3 {
            let text = format!(r#""room":"{name}","n":{n},"pad":"{}"}}"#, "x".repeat(40_000));
            let draft = Draft::object(&[text.as_bytes()]);
            let target = Target::Room(room(name));
            bench.handle.hear(Incoming::Message(Delivery { target, draft })).unwrap();
        }
    }
    bench.flush();
    let a = bench.connect("a", "");
    a.peer.set_room(1);
    let log = bench.hub.history.find(&Target::Room(room("0"))).unwrap();
    let epoch = bench.hub.history.position(log).unwrap().epoch;
    for name in &names {
        let since = Some(Position { epoch: Arc::clone(&epoch), seq: 0 });
        let id = MessageId::of(r#"{"id":1}"#);
        a.say(Said::Join { room: room(name), since, id });
    }
    // All in one flush, and no more than one turn of it is appended, besides the answers.
    bench.serve();
    assert!(bench.hub.connections.batch.bytes() < 2 * 64 * 1024 + 50 * 200);
    // Once it is past its own answers, a socket that takes a byte at a time is fed all the same.
    bench.hub.config = Arc::new(Config { send_queue_frames: 100, ..(*bench.hub.config).clone() });
    bench.hub.config = Arc::new(Config { send_queue_bytes: 10_000, ..(*bench.hub.config).clone() });
    for _ in 0..300 {
        bench.flush();
        write_all(&mut bench);
    }
    assert!(!a.peer.is_cut());
    let texts = a.peer.taken();
    assert_eq!(texts.iter().filter(|text| text.contains("\"recovered\":true")).count(), 50);
    assert_eq!(texts.len(), 50 * 4);
    // In turns: no room waits until another one is through.
    let first_of_last = texts.iter().position(|text| text.starts_with(r#"{"seq":1,"room":"49""#));
    let last_of_second = texts.iter().position(|text| text.starts_with(r#"{"seq":3,"room":"1""#));
    assert!(first_of_last < last_of_second, "{first_of_last:?} {last_of_second:?}");
}
