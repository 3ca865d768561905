//! Verifies that whatever users do at once, each member sees each sender's messages in order and once,
//! everything that was acknowledged comes, and only who does not read is cut.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crowd::{Crowd, Pace, broadcast, start};
use serde_json::{Value, json};
use support::{PATIENCE, Random, Service, frame, full_size, token};

/// Ten users with two connections each; the last four only listen, two of them slowly
/// and two not at all.
const USERS: usize = 10;
const ACTORS: Range<usize> = 0..16;
const SLOW: Range<usize> = 16..18;
const STALLED: Range<usize> = 18..20;
const ROOMS: [&str; 4] = ["red", "green", "blue", "yellow"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Membership {
    Out,
    Joining,
    In,
    Leaving,
}

/// A message that an actor broadcast; its id and its body are its place in the list of all.
struct Said {
    by: usize,
    room: usize,
    /// Members since before it was sent who did not ask to leave before it was acknowledged.
    audience: HashSet<usize>,
}

/// What the clients did and got.
struct World {
    said: Vec<Said>,
    /// Not answered yet.
    waiting: HashSet<usize>,
    refused: usize,
    members: Vec<[Membership; ROOMS.len()]>,
    /// By member, the messages that have to come and have not yet.
    missing: Vec<HashSet<usize>>,
    /// By member, what has come before it was acknowledged.
    early: Vec<HashSet<usize>>,
    /// By member, sender (`None` is the backend) and room: the latest that came.
    latest: HashMap<(usize, Option<usize>, usize), usize>,
}

fn room_named(name: &Value) -> usize {
    ROOMS.iter().position(|room| name == room).unwrap_or_else(|| panic!("{name}"))
}

impl World {
    fn new(clients: usize) -> Self {
        Self {
            said: Vec::new(),
            waiting: HashSet::new(),
            refused: 0,
            members: vec![[Membership::Out; ROOMS.len()]; clients],
            missing: vec![HashSet::new(); clients],
            early: vec![HashSet::new(); clients],
            latest: HashMap::new(),
        }
    }

    fn members_of(&self, room: usize) -> HashSet<usize> {
        let all = 0..self.members.len();
        all.filter(|client| self.members[*client][room] == Membership::In).collect()
    }

    /// An actor says some things at once.
    fn say(&mut self, crowd: &mut Crowd, by: usize, room: usize, sizes: &[usize]) {
        for size in sizes {
            let number = self.said.len();
            let body = json!([number, "x".repeat(*size)]);
            crowd.send(by, &broadcast(ROOMS[room], &body, Some(number as u64)));
            self.said.push(Said { by, room, audience: self.members_of(room) });
            self.waiting.insert(number);
        }
    }

    /// An actor joins the room if it is out of it, or leaves it if it is in.
    fn enter_or_leave(&mut self, crowd: &mut Crowd, actor: usize, room: usize) {
        let kind = match self.members[actor][room] {
            Membership::Out => "join",
            Membership::In => "leave",
            Membership::Joining | Membership::Leaving => return,
        };
        if kind == "join" {
            self.members[actor][room] = Membership::Joining;
        } else {
            self.members[actor][room] = Membership::Leaving;
            for number in &self.waiting {
                if self.said[*number].room == room {
                    self.said[*number].audience.remove(&actor);
                }
            }
        }
        // An error does not name the room, so the id does.
        let id = format!("{kind} {}", ROOMS[room]);
        let message = json!({"type": kind, "id": id, "payload": {"room": ROOMS[room]}});
        crowd.send(actor, &frame(0x81, message.to_string().as_bytes()));
    }

    /// Something came.
    fn take(&mut self, client: usize, text: &[u8]) {
        let message: Value = serde_json::from_slice(text).unwrap();
        if let Some(kind) = message["type"].as_str() {
            return self.answered(client, kind, &message);
        }
        let by_backend = message.get("event").is_some();
        let body = if by_backend { &message["data"] } else { &message["body"] };
        let room = room_named(if by_backend { &message["to"] } else { &message["room"] });
        let number = body[0].as_u64().unwrap() as usize;
        let membership = self.members[client][room];
        assert_ne!(membership, Membership::Out, "{client} got a message of {}", ROOMS[room]);
        let by = (!by_backend).then(|| self.said[number].by);
        let latest = self.latest.insert((client, by, room), number);
        assert!(latest < Some(number), "{client} got {number} of {by:?} after {latest:?}");
        if !by_backend && !self.missing[client].remove(&number) {
            self.early[client].insert(number);
        }
    }

    fn answered(&mut self, client: usize, kind: &str, message: &Value) {
        match kind {
            "joined" | "left" => {
                let room = room_named(&message["payload"]["room"]);
                let joined = kind == "joined";
                self.members[client][room] = if joined { Membership::In } else { Membership::Out };
            }
            "error" if message["id"].is_string() => {
                assert_eq!(message["payload"]["code"], "rate_limited", "{message}");
                let (kind, room) = message["id"].as_str().unwrap().split_once(' ').unwrap();
                let joined = kind == "leave";
                self.members[client][room_named(&json!(room))] =
                    if joined { Membership::In } else { Membership::Out };
            }
            "sent" | "error" => {
                let number = message["id"].as_u64().unwrap_or_else(|| panic!("no id: {message}"));
                let number = number as usize;
                assert!(self.waiting.remove(&number), "answered twice: {message}");
                if kind == "error" {
                    assert_eq!(message["payload"]["code"], "rate_limited", "{message}");
                    self.refused += 1;
                    return;
                }
                for member in &self.said[number].audience {
                    if !self.early[*member].contains(&number) {
                        self.missing[*member].insert(number);
                    }
                }
            }
            _ => panic!("{message}"),
        }
    }
}

/// Notifies random rooms in random batches until it is told to stop; the numbers of each room ascend.
fn notify(service: &Service, mut random: Random, stop: &AtomicBool) {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let room = ROOMS[random.below(ROOMS.len())];
        let batch: Value = (0..=random.below(20))
            .map(|_| {
                next += 1;
                json!({"event": "e", "room": room, "data": [next, "x".repeat(random.below(10_000))]})
            })
            .collect();
        let answer = service.notify(&batch);
        assert_eq!(answer.status, 200, "{answer:?}");
        std::thread::sleep(Duration::from_millis(random.below(100) as u64));
    }
}

/// Sets the flag whatever happens, so that a thread that looks at it ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets the actors do things for `time`, and takes all that comes.
fn act(world: &mut World, crowd: &mut Crowd, random: &mut Random, time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        let (actor, room) = (random.below(ACTORS.end), random.below(ROOMS.len()));
        if random.below(5) == 0 {
            world.enter_or_leave(crowd, actor, room);
        } else {
            let sizes: Vec<_> = (0..=random.below(20)).map(|_| random.below(2000)).collect();
            world.say(crowd, actor, room, &sizes);
        }
        let next = Instant::now() + Duration::from_millis(random.below(12) as u64);
        while Instant::now() < next {
            crowd.pump(Duration::from_millis(2), |client, text| world.take(client, text));
        }
    }
}

#[test]
fn order_and_completeness_hold_at_random() {
    let seed = std::env::var("SEED").map_or(20, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let time = Duration::from_secs(if full_size() { 60 } else { 6 });
    let service = start(&[]);
    let mut random = Random(seed);
    let mut crowd = Crowd::new(&service);
    let clients = crowd.connect((0..2 * USERS).map(|n| token(&format!("u{}", n % USERS), "")));
    let mut world = World::new(clients.len());
    for client in SLOW.start..STALLED.end {
        (0..ROOMS.len()).for_each(|room| world.enter_or_leave(&mut crowd, client, room));
    }
    let all_in = |members: &[[Membership; 4]]| {
        members[SLOW.start..].iter().flatten().all(|room| *room == Membership::In)
    };
    let deadline = Instant::now() + PATIENCE;
    while !all_in(&world.members) {
        assert!(Instant::now() < deadline, "the listeners do not get in");
        crowd.pump(Duration::from_millis(5), |client, text| world.take(client, text));
    }
    SLOW.for_each(|client| crowd.set_pace(client, Pace::BytesPerSecond(5_000_000)));
    STALLED.for_each(|client| crowd.set_pace(client, Pace::Stalled));

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| notify(&service, Random(seed + 1), &stop));
        act(&mut world, &mut crowd, &mut random, time);
    });
    // Who was only slow catches up.
    SLOW.for_each(|client| crowd.set_pace(client, Pace::Eager));
    let deadline = Instant::now() + PATIENCE;
    let is_done = |world: &World| {
        world.waiting.is_empty() && world.missing[..STALLED.start].iter().all(HashSet::is_empty)
    };
    while !is_done(&world) {
        let cut = crowd.ended(ACTORS.start..SLOW.end);
        assert_eq!(cut, 0, "who reads was cut: {:?}", service.log().last());
        let missing: Vec<_> = world.missing[..STALLED.start].iter().map(HashSet::len).collect();
        assert!(
            Instant::now() < deadline,
            "{} not answered, missing at each: {missing:?}",
            world.waiting.len()
        );
        crowd.pump(Duration::from_millis(5), |client, text| world.take(client, text));
    }
    println!(
        "{} said, {} of them refused; of the stalled {} were cut",
        world.said.len(),
        world.refused,
        crowd.ended(STALLED),
    );
    assert!(world.refused < world.said.len());
}
