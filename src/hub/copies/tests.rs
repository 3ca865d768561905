//! Several hubs on one ordered log of memory, in one thread: what the broker does when, and what breaks in its
//! middle, is a list of steps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::tests::{Bench, Client, config, joins, room};
use crate::bridge::{
    Answer, BridgeCounters, BridgeState, DropReason, Handler, Incoming, KeptMessage, Logged,
    NotClosed, OrderedLog, Outgoing, PubSub, Reading, Unanswered,
};
use crate::config::Config;
use crate::hub::{Broadcast, Delivery, Said, Target};
use crate::protocol::{Draft, Id, MessageId, Position};
use crate::runtime::clock::Moment;

/// A log of the broker.
struct Log {
    epoch: Arc<str>,
    seq: u64,
    messages: VecDeque<(u64, usize, u64, Draft)>,
}

/// What leads from the broker to one hub, and back.
#[derive(Default)]
struct Link {
    /// Whether the gate of appends is open.
    is_open: bool,
    is_subscribed: bool,
    ticket: u64,
    /// On their way to the broker; `None` stands for one that it has refused, and that is only passed on.
    appends: VecDeque<(Option<u64>, Outgoing)>,
    requests: VecDeque<Request>,
    /// On their way to the hub.
    stream: VecDeque<Incoming>,
    answers: VecDeque<Incoming>,
}

enum Request {
    Read(Reading),
    Renew(Option<Target>, u64),
}

/// The broker, and all links.
struct World {
    kept: usize,
    page: usize,
    epochs: u64,
    logs: BTreeMap<String, (Target, Log)>,
    links: Vec<Link>,
}

impl World {
    fn epoch(&mut self) -> Arc<str> {
        self.epochs += 1;
        format!("e{}", self.epochs).into()
    }

    fn log(&mut self, target: &Target) -> &mut Log {
        let name = format!("{target:?}");
        if !self.logs.contains_key(&name) {
            let epoch = self.epoch();
            let log = Log { epoch: Arc::clone(&epoch), seq: 0, messages: VecDeque::new() };
            self.logs.insert(name.clone(), (target.clone(), log));
            let target = target.clone();
            self.tell(&Incoming::Renewed { target, epoch, renewal: None });
        }
        &mut self.logs.get_mut(&name).unwrap().1
    }

    fn tell(&mut self, incoming: &Incoming) {
        for link in self.links.iter_mut().filter(|link| link.is_subscribed) {
            link.stream.push_back(incoming.clone());
        }
    }

    /// The broker takes the next message of this instance.
    fn append(&mut self, from: usize) {
        let Some((ticket, outgoing)) = self.links[from].appends.pop_front() else { return };
        let kept = self.kept;
        let draft = Draft::object(&[&outgoing.members]);
        let Some(ticket) = ticket else {
            let delivery = Delivery { target: outgoing.target, draft };
            let others = self.links.iter_mut().enumerate().filter(|(n, _)| *n != from);
            for (_, link) in others.filter(|(_, link)| link.is_subscribed) {
                link.stream.push_back(Incoming::Unnumbered(delivery.clone()));
            }
            return;
        };
        let log = self.log(&outgoing.target);
        log.seq += 1;
        log.messages.push_back((log.seq, from, ticket, draft.clone()));
        while log.messages.len() > kept {
            log.messages.pop_front();
        }
        let position = Position { epoch: Arc::clone(&log.epoch), seq: log.seq };
        for (n, link) in self.links.iter_mut().enumerate().filter(|(_, link)| link.is_subscribed) {
            link.stream.push_back(Incoming::Logged(Logged {
                target: outgoing.target.clone(),
                position: position.clone(),
                ticket: (n == from).then_some(ticket),
                draft: draft.clone(),
            }));
        }
    }

    /// The broker answers the next request of this instance, or it fails.
    fn answer(&mut self, from: usize, fails: bool) {
        let Some(request) = self.links[from].requests.pop_front() else { return };
        match request {
            Request::Read(Reading { number, target, .. }) if fails => {
                let answer = Err(Unanswered);
                let answer = Incoming::Answer { target, reading: number, answer };
                self.links[from].answers.push_back(answer);
            }
            Request::Read(Reading { number, target, since, from_start }) => {
                let page = self.page;
                let log = self.log(&target);
                let first = match since {
                    Some(since) if since.epoch == log.epoch => since.seq + 1,
                    _ if from_start => 0,
                    _ => u64::MAX,
                };
                let wanted = log.messages.iter().filter(|(seq, ..)| *seq >= first).take(page);
                let messages = wanted
                    .map(|(seq, by, ticket, draft)| KeptMessage {
                        seq: *seq,
                        age: Duration::ZERO,
                        ticket: (*by == from).then_some(*ticket),
                        draft: draft.clone(),
                    })
                    .collect();
                let position = Position { epoch: Arc::clone(&log.epoch), seq: log.seq };
                let answer = Ok(Answer { position, messages });
                let link = &mut self.links[from];
                if link.is_subscribed {
                    let target = target.clone();
                    link.stream.push_back(Incoming::Marked { target, reading: number });
                }
                link.answers.push_back(Incoming::Answer { target, reading: number, answer });
            }
            Request::Renew(_, _) if fails => {}
            Request::Renew(target, renewal) => {
                let all: Vec<_> = match &target {
                    Some(target) => vec![target.clone()],
                    None => self.logs.values().map(|(target, _)| target.clone()).collect(),
                };
                for target in &all {
                    let epoch = self.epoch();
                    *self.log(target) =
                        Log { epoch: Arc::clone(&epoch), seq: 0, messages: VecDeque::new() };
                    for n in 0..self.links.len() {
                        let renewal = (n == from).then_some(renewal);
                        let (target, epoch) = (target.clone(), Arc::clone(&epoch));
                        if self.links[n].is_subscribed {
                            let renewed = Incoming::Renewed { target, epoch, renewal };
                            self.links[n].stream.push_back(renewed);
                        }
                    }
                }
                if target.is_none() {
                    self.links[from].answers.push_back(Incoming::AllRenewed(renewal));
                }
            }
        }
    }
}

/// One instance's way to the broker.
struct Place {
    world: Arc<Mutex<World>>,
    number: usize,
    counters: Arc<BridgeCounters>,
}

impl Place {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl PubSub for Place {
    fn publish(&self, outgoing: Outgoing) -> Result<(), DropReason> {
        let mut world = self.world();
        let link = &mut world.links[self.number];
        if !link.is_open {
            return Err(DropReason::Disconnected);
        }
        link.appends.push_back((None, outgoing));
        Ok(())
    }

    fn start(&self, _: Handler) -> io::Result<()> {
        Ok(())
    }

    fn ordered_log(&self) -> Option<&dyn OrderedLog> {
        Some(self)
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

impl OrderedLog for Place {
    fn append(&self, outgoing: Outgoing) -> Result<u64, DropReason> {
        let mut world = self.world();
        let link = &mut world.links[self.number];
        if !link.is_open {
            return Err(DropReason::Disconnected);
        }
        link.ticket += 1;
        let ticket = link.ticket;
        link.appends.push_back((Some(ticket), outgoing));
        Ok(ticket)
    }

    fn read(&self, reading: Reading) {
        self.world().links[self.number].requests.push_back(Request::Read(reading));
    }

    fn renew(&self, target: Option<Target>, renewal: u64) {
        self.world().links[self.number].requests.push_back(Request::Renew(target, renewal));
    }
}

const HUBS: usize = 2;
/// Two rooms, and the notifications of the first client.
const LOGS: usize = 3;
const OWN: usize = 2;
const CLIENTS: usize = 3;
/// In place of a publisher: that of a message whose order with others is not promised.
const OVERTAKES: usize = usize::MAX;

fn target(log: usize) -> Target {
    match log {
        OWN => Target::User(Id::parse("0").unwrap()),
        n => Target::Room(room(&n.to_string())),
    }
}

fn id() -> Option<MessageId> {
    MessageId::of(r#"{"id":1}"#)
}

/// What a client has of a log, over all its connections.
#[derive(Default)]
struct Followed {
    position: Option<(String, u64)>,
    asked: VecDeque<Option<(String, u64)>>,
    is_live: bool,
    /// The step in which it was told last that something may be missing, or where it is.
    told: usize,
    resets: usize,
    /// It has got a message without a number, and was not told since.
    is_to_be_told: bool,
    seen: BTreeMap<usize, usize>,
    /// The last message of each publisher without a number, and with one, since it was told.
    last: [BTreeMap<usize, usize>; 2],
}

#[derive(Default)]
struct Follower {
    client: Option<(usize, Client)>,
    /// Number of its connection; those below are backends.
    connection: usize,
    logs: [Followed; LOGS],
    /// Of all that it broadcast with an id.
    answered: usize,
    broadcasts: usize,
}

/// Which message has a position, as anybody saw it.
type Order = BTreeMap<(usize, String, u64), usize>;

impl Follower {
    fn logs_of(who: usize) -> std::ops::Range<usize> {
        if who == 0 { 0..LOGS } else { 0..OWN }
    }

    fn come(&mut self, who: usize, hub: usize, bench: &mut Bench) {
        self.connection += CLIENTS;
        self.client = Some((hub, bench.connect(&who.to_string(), "")));
        for log in Self::logs_of(who) {
            self.logs[log].asked.clear();
            self.logs[log].is_live = false;
            self.ask(log);
        }
    }

    fn ask(&mut self, log: usize) {
        let Some((_, client)) = &self.client else { return };
        let followed = &mut self.logs[log];
        followed.asked.push_back(followed.position.clone());
        let since = followed.position.as_ref();
        let since = since.map(|(epoch, seq)| Position { epoch: epoch.as_str().into(), seq: *seq });
        client.say(match log {
            OWN => Said::Resume { since, id: id() },
            n => Said::Join { room: room(&n.to_string()), since, id: id() },
        });
    }

    fn read(&mut self, step: usize, order: &mut Order, said: &[(usize, usize, usize)]) {
        let Some((_, client)) = &self.client else { return };
        for text in client.peer.taken() {
            self.take(step, &text, order, said);
        }
    }

    fn take(&mut self, step: usize, text: &str, order: &mut Order, said: &[(usize, usize, usize)]) {
        let message: serde_json::Value = serde_json::from_str(text).unwrap();
        let payload = &message["payload"];
        let log_of = |name: &serde_json::Value| name.as_str().map_or(OWN, |n| n.parse().unwrap());
        match message["type"].as_str() {
            Some("sent") => {
                self.answered += 1;
                return;
            }
            Some("left") => {
                self.logs[log_of(&payload["room"])].is_live = false;
                return;
            }
            Some(kind) => {
                let followed = &mut self.logs[log_of(&payload["room"])];
                let epoch = payload["epoch"].as_str();
                let now = epoch.map(|epoch| (epoch.to_owned(), payload["seq"].as_u64().unwrap()));
                if kind == "reset" {
                    // Own notifications come before the answer to `resume` too.
                    if !followed.is_live && payload["room"].is_null() {
                        return;
                    }
                    assert!(followed.is_live, "{text}");
                    followed.resets += 1;
                } else {
                    let asked = followed.asked.pop_front().unwrap();
                    if payload["recovered"] == true {
                        // What came since it asked comes again.
                        assert!(asked.is_some() && asked == now, "{text}");
                        followed.position = now;
                        followed.is_live = true;
                        followed.last = Default::default();
                        return;
                    }
                    let expected = asked.is_some().then_some(false);
                    assert_eq!(payload["recovered"].as_bool(), expected, "{text}");
                    if followed.is_live && asked.is_none() && followed.position.is_some() {
                        assert_eq!(followed.position, now, "{text}");
                        return;
                    }
                }
                followed.is_live = true;
                followed.position = now;
                followed.told = step;
                followed.is_to_be_told = false;
                followed.last = Default::default();
                return;
            }
            None => {}
        }
        let log = log_of(&message["room"]);
        let followed = &mut self.logs[log];
        let n = usize::try_from(message["n"].as_u64().unwrap()).unwrap();
        if !followed.is_live {
            return;
        }
        let seq = message["seq"].as_u64().or(message["user_seq"].as_u64());
        if said[n].2 != OVERTAKES {
            let last = followed.last[usize::from(seq.is_some())].insert(said[n].2, n);
            assert!(last < Some(n), "a publisher's messages out of order: {text} behind {last:?}");
        }
        let Some(seq) = seq else {
            followed.is_to_be_told = true;
            followed.seen.entry(n).or_insert(step);
            return;
        };
        let (epoch, position) = followed.position.as_mut().expect("a number before a position");
        assert_eq!(seq, *position + 1, "a hole or a repetition: {text}");
        *position = seq;
        let same = *order.entry((log, epoch.clone(), seq)).or_insert(n);
        assert_eq!(same, n, "two messages in one place");
        followed.seen.insert(n, step);
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A client broadcasts in a room, or a backend notifies the user, at a hub.
    Say(usize, usize),
    Come(usize, usize),
    Go(usize),
    Leave(usize, usize),
    Again(usize, usize),
    /// Leaves, and joins again.
    Around(usize, usize),
    /// The broker takes messages of a hub.
    Append(usize, usize),
    /// It answers requests of a hub.
    Answer(usize, usize),
    Fail(usize),
    /// A hub takes what the stream, or the answers, bring.
    Stream(usize, usize),
    Answers(usize),
    /// The subscription breaks, with what it had; it comes again.
    Break(usize),
    Subscribe(usize),
    /// The connection for appends breaks behind so many that the broker takes all the same.
    Away(usize, usize),
    Back(usize),
    /// The broker refuses the next message.
    Refuse(usize),
    /// The broker loses a log, or its messages.
    Lose(usize),
    LoseMessages(usize),
    /// The whole broker restarts, empty.
    Restart,
    Tick(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hub = || 0..HUBS;
    let who = || 0..CLIENTS;
    let step = prop_oneof![
        20 => (hub(), 0..LOGS).prop_map(|(hub, log)| Step::Say(hub, log)),
        6 => (who(), hub()).prop_map(|(who, hub)| Step::Come(who, hub)),
        4 => who().prop_map(Step::Go),
        2 => (who(), 0..2_usize).prop_map(|(who, log)| Step::Leave(who, log)),
        3 => (who(), 0..LOGS).prop_map(|(who, log)| Step::Again(who, log)),
        2 => (who(), 0..2_usize).prop_map(|(who, log)| Step::Around(who, log)),
        12 => (hub(), 1..5_usize).prop_map(|(hub, n)| Step::Append(hub, n)),
        12 => (hub(), 1..5_usize).prop_map(|(hub, n)| Step::Answer(hub, n)),
        2 => hub().prop_map(Step::Fail),
        16 => (hub(), 1..6_usize).prop_map(|(hub, n)| Step::Stream(hub, n)),
        8 => hub().prop_map(Step::Answers),
        2 => hub().prop_map(Step::Break),
        5 => hub().prop_map(Step::Subscribe),
        2 => (hub(), 0..3_usize).prop_map(|(hub, n)| Step::Away(hub, n)),
        5 => hub().prop_map(Step::Back),
        1 => hub().prop_map(Step::Refuse),
        1 => (0..LOGS).prop_map(Step::Lose),
        1 => (0..LOGS).prop_map(Step::LoseMessages),
        1 => Just(Step::Restart),
        1 => hub().prop_map(Step::Tick),
    ];
    prop::collection::vec(step, 0..250)
}

struct Game {
    world: Arc<Mutex<World>>,
    benches: Vec<Bench>,
    followers: [Follower; CLIENTS],
    /// Of each message: its log, the step in which it was said, and by which backend or
    /// connection.
    said: Vec<(usize, usize, usize)>,
    order: Order,
}

impl Game {
    fn new(kept: usize, page: usize) -> Self {
        let links = (0..HUBS).map(|_| Link::default()).collect();
        let world = World { kept, page, epochs: 0, logs: BTreeMap::new(), links };
        let world = Arc::new(Mutex::new(world));
        let benches = (0..HUBS).map(|number| {
            let world = Arc::clone(&world);
            let config = Config {
                max_connections_per_user: 0,
                history_messages: kept,
                send_queue_frames: 1000,
                send_queue_bytes: 1_000_000,
                ..config()
            };
            let place = Place { world, number, counters: Arc::default() };
            Bench::with_broker(config, Some(Arc::new(place)))
        });
        let benches = benches.collect();
        let followers =
            std::array::from_fn(|who| Follower { connection: HUBS + who, ..Follower::default() });
        Self { world, benches, followers, said: Vec::new(), order: Order::new() }
    }

    fn hear(&mut self, hub: usize, incoming: Incoming) {
        self.benches[hub].handle.hear(incoming).unwrap();
        self.benches[hub].serve();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn play(&mut self, now: usize, step: Step) {
        match step {
            Step::Say(hub, log) => self.say(now, hub, log),
            Step::Come(who, hub) if self.followers[who].client.is_none() => {
                self.followers[who].come(who, hub, &mut self.benches[hub]);
            }
            Step::Go(who) => {
                self.followers[who].read(now, &mut self.order, &self.said);
                if let Some((_, mut client)) = self.followers[who].client.take() {
                    client.end();
                }
            }
            Step::Leave(who, log) => self.leave(who, log),
            Step::Around(who, log) => {
                self.leave(who, log);
                self.followers[who].ask(log);
            }
            Step::Again(who, log) if Follower::logs_of(who).contains(&log) => {
                self.followers[who].ask(log);
            }
            Step::Append(hub, n) => (0..n).for_each(|_| self.world().append(hub)),
            Step::Answer(hub, n) => (0..n).for_each(|_| self.world().answer(hub, false)),
            Step::Fail(hub) => self.world().answer(hub, true),
            Step::Stream(hub, n) => {
                for _ in 0..n {
                    let next = self.world().links[hub].stream.pop_front();
                    next.into_iter().for_each(|incoming| self.hear(hub, incoming));
                }
            }
            Step::Answers(hub) => {
                let next = self.world().links[hub].answers.pop_front();
                next.into_iter().for_each(|incoming| self.hear(hub, incoming));
            }
            Step::Break(hub) => self.unsubscribe(hub),
            Step::Subscribe(hub) => {
                let mut world = self.world();
                if !world.links[hub].is_subscribed {
                    world.links[hub].is_subscribed = true;
                    world.links[hub].stream.push_back(Incoming::BrokenOff);
                }
            }
            Step::Away(hub, taken) => self.go_away(hub, taken),
            Step::Back(hub) => {
                let mut world = self.world();
                let link = &mut world.links[hub];
                if link.is_subscribed && !link.is_open {
                    link.is_open = true;
                    link.stream.push_back(Incoming::Back);
                }
            }
            Step::Refuse(hub) => {
                let mut world = self.world();
                let appends = &mut world.links[hub].appends;
                let is_append = appends.front().is_some_and(|(ticket, _)| ticket.is_some());
                let refused = if is_append { appends.pop_front() } else { None };
                drop(world);
                if let Some((Some(ticket), outgoing)) = refused {
                    let members = String::from_utf8(outgoing.members.to_vec()).unwrap();
                    let n = members.rsplit(':').next().unwrap().trim_end_matches('}');
                    // It does not wait for those that are on their way.
                    self.said[n.parse::<usize>().unwrap()].2 = OVERTAKES;
                    self.hear(hub, Incoming::Refused(ticket));
                }
            }
            Step::Lose(log) => _ = self.world().logs.remove(&format!("{:?}", target(log))),
            Step::LoseMessages(log) => {
                if let Some((_, log)) = self.world().logs.get_mut(&format!("{:?}", target(log))) {
                    log.messages.clear();
                }
            }
            Step::Restart => {
                for hub in 0..HUBS {
                    self.unsubscribe(hub);
                    self.go_away(hub, 0);
                }
                self.world().logs.clear();
            }
            Step::Tick(hub) => {
                let bench = &mut self.benches[hub];
                // What waits now has waited for long.
                let later = Moment::now().uptime() + Duration::from_secs(10);
                let later = Moment::from_millis(later.as_millis().try_into().unwrap());
                bench.hub.tick_copies(later);
                bench.serve();
            }
            Step::Come(..) | Step::Again(..) => {}
        }
        self.benches.iter_mut().for_each(Bench::flush);
        for follower in &mut self.followers {
            follower.read(now, &mut self.order, &self.said);
        }
    }

    fn play_without_flush(&mut self, step: Step) {
        if let Step::Append(hub, n) = step {
            (0..n).for_each(|_| self.world().append(hub));
        }
    }

    fn say(&mut self, now: usize, hub: usize, log: usize) {
        let n = self.said.len();
        let members = match log {
            OWN => format!(r#""n":{n}}}"#),
            room => format!(r#""room":"{room}","n":{n}}}"#),
        };
        let draft = Draft::object(&[members.as_bytes()]);
        let sender = self.followers.iter_mut().find(|follower| {
            log != OWN
                && n.is_multiple_of(2)
                && follower.client.as_ref().is_some_and(|(at, _)| *at == hub)
        });
        let connection = sender.as_ref().map(|follower| follower.connection);
        self.said.push((log, now, connection.unwrap_or(hub)));
        if let Some(follower) = sender {
            follower.broadcasts += 1;
            let room = room(&log.to_string());
            let broadcast = Broadcast { room, draft, permitted: true, id: id() };
            follower.client.as_ref().unwrap().1.say(Said::Broadcast(broadcast));
            self.benches[hub].serve();
        } else {
            self.benches[hub].notify_later(target(log), draft);
        }
    }

    fn leave(&mut self, who: usize, log: usize) {
        if let Some((_, client)) = &self.followers[who].client {
            client.say(Said::Leave(room(&log.to_string()), id()));
        }
    }

    fn unsubscribe(&mut self, hub: usize) {
        let mut world = self.world();
        world.links[hub].is_subscribed = false;
        // What the subscriber has not read is gone, but for what it says itself.
        let is_own = |incoming: &Incoming| matches!(incoming, Incoming::BrokenOff | Incoming::Back);
        world.links[hub].stream.retain(is_own);
    }

    fn go_away(&mut self, hub: usize, taken: usize) {
        let last = {
            let mut world = self.world();
            if !world.links[hub].is_open {
                return;
            }
            (0..taken).for_each(|_| world.append(hub));
            let link = &mut world.links[hub];
            link.is_open = false;
            link.appends.clear();
            link.stream.retain(|incoming| !matches!(incoming, Incoming::Back));
            link.ticket
        };
        self.hear(hub, Incoming::Away(last));
    }

    /// The faults are over: all that is on its way comes.
    fn settle(&mut self, now: usize) {
        for hub in 0..HUBS {
            self.play(now, Step::Subscribe(hub));
        }
        for round in 0..60 {
            for hub in 0..HUBS {
                if round == 30 {
                    self.play(now, Step::Tick(hub));
                }
                self.play(now, Step::Append(hub, 100));
                self.play(now, Step::Answer(hub, 100));
                self.play(now, Step::Stream(hub, 100));
                self.play(now, Step::Back(hub));
                self.play(now, Step::Answers(hub));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Over all its connections, to any hub, a client sees each log in the broker's order, without a hole or a
    /// repetition, or is told; whatever breaks when.
    #[test]
    fn nobody_has_a_hole_that_it_was_not_told_of(
        steps in steps(), kept in 1..12_usize, page in 1..5_usize,
    ) {
        let mut game = Game::new(kept, page);
        for hub in 0..HUBS {
            game.play(0, Step::Subscribe(hub));
            game.play(0, Step::Back(hub));
            game.play(0, Step::Stream(hub, 2));
        }
        let end = steps.len() + 1;
        for (now, step) in steps.into_iter().enumerate() {
            game.play(now + 1, step);
        }
        game.settle(end);
        for who in 0..CLIENTS {
            match game.followers[who].client {
                None => game.play(end, Step::Come(who, who % HUBS)),
                Some(_) => Follower::logs_of(who).for_each(|log| game.followers[who].ask(log)),
            }
        }
        game.settle(end);
        let unanswered: usize = game.benches.iter().map(|bench| bench.waiting_notifies()).sum();
        prop_assert_eq!(unanswered, 0);
        for (who, follower) in game.followers.iter().enumerate() {
            for log in Follower::logs_of(who) {
                let followed = &follower.logs[log];
                prop_assert!(followed.is_live, "{} is not answered in {}", who, log);
                prop_assert!(!followed.is_to_be_told, "{} was not told in {}", who, log);
                // A log that the broker has lost since, and nobody has used, is nobody's loss.
                if let Some((_, at)) = game.world().logs.get(&format!("{:?}", target(log))) {
                    let at = (at.epoch.to_string(), at.seq);
                    prop_assert_eq!(followed.position.as_ref(), Some(&at));
                }
                // What was said since it was told last, it has.
                let all: BTreeSet<_> = (0..game.said.len())
                    .filter(|n| game.said[*n].0 == log && game.said[*n].1 > followed.told)
                    .collect();
                let lacks: Vec<_> =
                    all.iter().filter(|n| !followed.seen.contains_key(n)).collect();
                prop_assert!(lacks.is_empty(), "{} lacks {:?} of {}", who, lacks, log);
            }
        }
        for bench in &game.benches {
            prop_assert_eq!(bench.hub.history.readers(), 0);
            prop_assert_eq!(bench.hub.copy_counts().pending, 0);
            prop_assert_eq!(bench.waiting_bytes(), 0);
        }
    }
}

/// `PROPTEST_CASES` for a long run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

/// Two hubs that are connected, and a client at the first.
fn connected() -> (Game, Client) {
    let mut game = Game::new(100, 100);
    for hub in 0..HUBS {
        game.play(0, Step::Subscribe(hub));
        game.play(0, Step::Back(hub));
        game.play(0, Step::Stream(hub, 2));
    }
    let client = game.benches[0].connect("7", "");
    (game, client)
}

#[test]
fn answers_wait_for_the_broker_and_keep_their_order() {
    let (mut game, client) = connected();
    client.say(joins("1"));
    game.settle(0);
    assert_eq!(client.peer.taken(), ["joined 1"]);
    for text in [r#""n":1}"#, r#""n":2}"#] {
        let draft = Draft::object(&[text.as_bytes()]);
        let broadcast = Broadcast { room: room("1"), draft, permitted: true, id: id() };
        client.say(Said::Broadcast(broadcast));
    }
    client.say(Said::Leave(room("1"), id()));
    client.say(Said::Ping("x".into()));
    game.benches[0].flush();
    // Both are on their way at once; what was said behind them waits, but for a ping.
    assert_eq!(game.world().links[0].appends.len(), 2);
    assert_eq!(client.peer.taken(), ["pong x"]);
    game.settle(0);
    let texts = [
        r#"{"seq":1,"n":1}"#,
        r#"{"type":"sent","id":1,"payload":{"room":"1"}}"#,
        r#"{"seq":2,"n":2}"#,
        r#"{"type":"sent","id":1,"payload":{"room":"1"}}"#,
        r#"{"type":"left","id":1,"payload":{"room":"1"}}"#,
    ];
    assert_eq!(client.peer.taken(), texts);
}

/// It comes from an instance whose stream is ahead of this one's.
#[test]
fn who_is_ahead_of_a_copy_waits_until_it_is_even() {
    let (mut game, client) = connected();
    client.say(Said::Join { room: room("1"), since: None, id: id() });
    game.settle(0);
    game.benches[1].notify_later(Target::Room(room("1")), Draft::object(&[br#""n":1}"#]));
    game.play(0, Step::Append(1, 1));
    client.peer.taken();
    let epoch = game.world().log(&target(1)).epoch.clone();
    for (seq, recovered) in [(1, true), (7, false)] {
        let since = Some(Position { epoch: Arc::clone(&epoch), seq });
        client.say(Said::Join { room: room("1"), since, id: id() });
        game.settle(0);
        let texts = client.peer.taken();
        let answer = texts.iter().find(|text| text.contains("joined")).unwrap();
        assert!(answer.contains(&format!(r#""recovered":{recovered}"#)), "{texts:?}");
    }
    assert!(game.benches[0].hub.copy_counts().readings < 5);
}

/// Redis has begun anew, and only the connection that reads the log does not get through.
#[test]
fn a_message_that_came_back_does_not_wait_for_a_reading_that_fails() {
    let (mut game, client) = connected();
    client.say(Said::Join { room: room("1"), since: None, id: id() });
    game.settle(0);
    game.unsubscribe(0);
    game.world().logs.clear();
    game.play(0, Step::Subscribe(0));
    // The copy is stale, and is to be read; before that the broker numbers a message.
    game.play(0, Step::Stream(0, 1));
    client.peer.taken();
    game.benches[0].notify_later(target(1), Draft::object(&[br#""room":"1","n":1}"#]));
    game.play(0, Step::Append(0, 1));
    game.play(0, Step::Stream(0, 2));
    assert!(client.peer.taken().is_empty());
    game.play(0, Step::Fail(0));
    game.play(0, Step::Answers(0));
    let texts = client.peer.taken();
    assert_eq!(texts.last().unwrap(), r#"{"seq":1,"room":"1","n":1}"#, "{texts:?}");
    assert!(texts[0].contains(r#""type":"reset""#), "{texts:?}");
    assert_eq!(game.benches[0].waiting_notifies(), 0);
}

#[test]
fn nobody_waits_for_a_broker_that_is_away() {
    let (mut game, client) = connected();
    client.say(Said::Join { room: room("1"), since: None, id: id() });
    let draft = Draft::object(&[br#""n":1}"#]);
    let broadcast = Broadcast { room: room("1"), draft, permitted: true, id: id() };
    client.say(Said::Broadcast(broadcast));
    game.benches[0].flush();
    assert!(client.peer.taken().is_empty());
    game.go_away(0, 0);
    game.benches[0].flush();
    let texts = [
        r#"{"type":"joined","id":1,"payload":{"room":"1"}}"#,
        r#"{"n":1}"#,
        r#"{"type":"sent","id":1,"payload":{"room":"1"}}"#,
    ];
    assert_eq!(client.peer.taken(), texts);
    game.settle(0);
    // Who was answered without a position gets one, and what was said without a number is told.
    let texts = client.peer.taken();
    assert!(!texts.is_empty() && texts.iter().all(|text| text.contains(r#""type":"reset""#)));
}

#[test]
fn a_message_that_the_broker_took_and_did_not_confirm_is_delivered_once() {
    let (mut game, client) = connected();
    client.say(joins("1"));
    game.settle(0);
    client.peer.taken();
    let draft = Draft::object(&[br#""n":1}"#]);
    game.benches[0].notify_later(Target::Room(room("1")), draft);
    game.go_away(0, 1);
    game.settle(0);
    assert_eq!(client.peer.taken(), [r#"{"n":1}"#]);
}

fn notify(game: &mut Game, hub: usize, log: usize, text: &str) {
    let draft = Draft::object(&[text.as_bytes()]);
    game.benches[hub].notify_later(target(log), draft);
}

/// Of several pages, the messages go between the first and the second (eviction), or the last of them is no
/// message of ours: what was collected does not end where the log does.
#[test]
fn what_was_read_from_the_start_keeps_its_numbers() {
    let mut game = Game::new(100, 2);
    for hub in 0..HUBS {
        game.play(0, Step::Subscribe(hub));
        game.play(0, Step::Back(hub));
    }
    game.play(0, Step::Stream(1, 2));
    (1..=5).for_each(|n| notify(&mut game, 1, 0, &format!("\"n\":{n}}}")));
    game.world().links[0].is_subscribed = false;
    game.play(0, Step::Append(1, 5));
    game.world().links[0].is_subscribed = true;
    game.play(0, Step::Stream(0, 2));
    let epoch = game.world().log(&target(0)).epoch.clone();
    let client = game.benches[0].connect("7", "");
    client.say(Said::Join { room: room("0"), since: Some(Position { epoch, seq: 3 }), id: id() });
    game.benches[0].flush();
    game.play(0, Step::Answer(0, 1));
    game.play(0, Step::Stream(0, 5));
    game.play(0, Step::Answers(0));
    game.play(0, Step::LoseMessages(0));
    for _ in 0..4 {
        game.play(0, Step::Answer(0, 1));
        game.play(0, Step::Stream(0, 5));
        game.play(0, Step::Answers(0));
    }
    let taken = client.peer.taken();
    assert!(taken[0].contains(r#""recovered":false"#), "{taken:?}");
}

/// The hub is behind when the subscription breaks: what it has still to serve of the old stream does not make a
/// copy current in the new one.
#[test]
fn a_message_of_the_old_stream_does_not_make_a_copy_current() {
    let (mut game, client) = connected();
    for name in ["0", "1"] {
        client.say(Said::Join { room: room(name), since: None, id: id() });
    }
    game.settle(0);
    client.peer.taken();
    let big = format!("\"n\":\"{}\"}}", "x".repeat(60_000));
    (0..6).for_each(|_| notify(&mut game, 1, 0, &big));
    notify(&mut game, 1, 1, "\"n\":100}");
    game.play_without_flush(Step::Append(1, 7));
    // The subscriber hands over faster than the hub serves: the last ones wait.
    let stream: Vec<_> = game.world().links[0].stream.drain(..).collect();
    for incoming in stream {
        game.benches[0].handle.hear(incoming).unwrap();
    }
    game.benches[0].look();
    let (_, waiting) = game.benches[0].hub.waiting();
    assert!(waiting > 0);
    // The connections break; a message is missed; the subscription comes again.
    game.unsubscribe(0);
    game.world().links[0].is_open = false;
    game.benches[0].handle.hear(Incoming::Away(0)).unwrap();
    game.benches[0].look();
    notify(&mut game, 1, 1, "\"n\":101}");
    game.world().append(1);
    game.world().links[0].is_subscribed = true;
    game.benches[0].handle.hear(Incoming::BrokenOff).unwrap();
    game.benches[0].look();
    game.benches[0].flush();
    game.settle(0);
    let taken = client.peer.taken();
    let small: Vec<_> = taken.iter().filter(|text| text.len() < 1000).collect();
    assert!(small.iter().any(|text| text.contains("\"n\":101") || text.contains("reset")));
}

#[test]
fn a_broker_that_refuses_readings_is_not_asked_again_at_once() {
    let (mut game, client) = connected();
    client.say(Said::Join { room: room("0"), since: None, id: id() });
    game.benches[0].flush();
    for _ in 0..1000 {
        game.play(0, Step::Fail(0));
        game.play(0, Step::Answers(0));
    }
    let readings = game.benches[0].hub.copy_counts().readings;
    assert!(readings < 10);
}

#[test]
fn who_waited_for_a_log_is_served_in_turns() {
    let clients = 4000;
    let mut game = Game::new(100, 100);
    for hub in 0..HUBS {
        game.play(0, Step::Subscribe(hub));
        game.play(0, Step::Back(hub));
    }
    game.play(0, Step::Stream(1, 2));
    let text = format!("\"n\":\"{}\"}}", "x".repeat(500));
    (0..100).for_each(|_| notify(&mut game, 1, 0, &text));
    game.world().links[0].is_subscribed = false;
    game.play(0, Step::Append(1, 100));
    game.world().links[0].is_subscribed = true;
    game.play(0, Step::Stream(0, 2));
    let epoch = game.world().log(&target(0)).epoch.clone();
    let all: Vec<_> = (0..clients).map(|n| game.benches[0].connect(&format!("u{n}"), "")).collect();
    for client in &all {
        let since = Some(Position { epoch: epoch.clone(), seq: 1 });
        client.say(Said::Join { room: room("0"), since, id: id() });
    }
    game.benches[0].flush();
    game.world().answer(0, false);
    let marked = game.world().links[0].stream.pop_front().unwrap();
    let answer = game.world().links[0].answers.pop_front().unwrap();
    game.benches[0].handle.hear(marked).unwrap();
    game.benches[0].look();
    game.benches[0].handle.hear(answer).unwrap();
    game.benches[0].look();
    let appended = game.benches[0].hub.connections.appended;
    assert!(appended <= 70_000);
}

#[test]
fn who_was_answered_without_a_position_gets_one_when_the_broker_is_back() {
    let (mut game, client) = connected();
    client.say(Said::Join { room: room("0"), since: None, id: id() });
    game.settle(0);
    client.peer.taken();
    // Only the connection for appends is lost.
    game.go_away(0, 0);
    client.say(Said::Join { room: room("1"), since: None, id: id() });
    game.benches[0].flush();
    assert_eq!(client.peer.taken(), [r#"{"type":"joined","id":1,"payload":{"room":"1"}}"#]);
    game.settle(0);
    let taken = client.peer.taken();
    assert!(taken.len() == 1 && taken[0].contains("reset"));
}
