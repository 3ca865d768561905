//! Verifies that nobody on several instances has a hole or a repetition that it was not told of, whatever
//! happens to Redis: its end, its silence, what it forgets, whom it cuts, and replies that are lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod hopping;
mod support;

use std::time::{Duration, Instant};

use hopping::{Instances, SETTINGS, Totals, World, run};
use serde_json::{Value, json};
use support::{Client, Frame, Mode, PATIENCE, Proxy, Random, Redis, Service, full_size, until};

const SECOND: Duration = Duration::from_secs(1);
/// What the service keeps in Redis beside its logs: the door's entries, and who takes them.
const NO_LOGS: [&str; 2] = ["ws:publish", "ws:door"];

fn two(redis: &Redis) -> Instances {
    Instances::start(&[&redis.addr(), &redis.addr()], &[])
}

/// Two instances on this Redis, and a fault.
fn survive(redis: &Redis, fault: impl FnOnce(&World)) -> Totals {
    run(&two(redis), fault)
}

/// A number that `INFO` tells, such as `evicted_keys`; 0 when there is none.
fn info(redis: &Redis, section: &str, name: &str) -> u64 {
    let text: String =
        redis::cmd("INFO").arg(section).query(&mut redis.connection()).expect("an answer");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([':', '=']));
    let digits = value.map(|value| value.trim_start_matches("count=").trim());
    digits.map_or(0, |digits| digits.parse().unwrap())
}

/// The service noticed that Redis was away, and all were told what they may have missed.
fn assert_was_away(totals: &Totals) {
    assert!(totals.unnumbered > 0, "it was never away: {totals:?}");
    assert!(totals.told() > 0, "{totals:?}");
}

fn restart(mut redis: Redis) {
    let instances = Instances::start(&[&redis.addr(), &redis.addr()], &[]);
    let totals = run(&instances, |world| {
        let before = info(&redis, "server", "process_id");
        redis.kill();
        world.goes_on("without Redis", SECOND);
        redis.start_again();
        assert_ne!(info(&redis, "server", "process_id"), before);
        until("a reset", || world.resets() > 0);
    });
    assert_was_away(&totals);
}

#[test]
fn redis_is_killed_and_has_forgotten_all() {
    restart(Redis::start());
}

#[test]
fn redis_is_killed_and_has_a_file_of_what_was() {
    let redis = Redis::with(&["--appendonly", "yes"]);
    assert_eq!(info(&redis, "persistence", "aof_enabled"), 1);
    restart(redis);
}

#[test]
fn redis_is_flushed() {
    let redis = Redis::start();
    let totals = survive(&redis, |world| {
        for _ in 0..3 {
            assert!(!keys(&redis).is_empty(), "no logs in Redis");
            redis.run(&["FLUSHALL"]);
            let resets = world.resets();
            world.goes_on("after a flush", SECOND);
            until("a reset", || world.resets() > resets);
        }
    });
    assert!(totals.told() > 0, "{totals:?}");
}

#[test]
fn redis_sleeps() {
    let redis = Redis::with(&["--enable-debug-command", "yes"]);
    let totals = survive(&redis, |world| {
        world.during("it sleeps", || {
            let start = Instant::now();
            redis.run(&["DEBUG", "SLEEP", "3"]);
            assert!(start.elapsed() >= 3 * SECOND);
        });
    });
    assert_was_away(&totals);
}

#[test]
fn redis_pauses_its_clients() {
    let redis = Redis::start();
    let totals = survive(&redis, |world| {
        world.during("they pause", || {
            let start = Instant::now();
            redis.run(&["CLIENT", "PAUSE", "3000", "ALL"]);
            redis.run(&["PING"]);
            assert!(start.elapsed() >= 2 * SECOND, "it did not pause");
        });
    });
    assert_was_away(&totals);
}

#[test]
fn redis_kills_each_connection() {
    let redis = Redis::start();
    let mut killed = 0;
    survive(&redis, |world| {
        world.during("connections are killed", || {
            let end = Instant::now() + 4 * SECOND;
            while Instant::now() < end {
                killed += kill_each(&redis, world);
                world.pause(Duration::from_millis(300));
            }
        });
    });
    println!("{killed} connections were killed");
    assert!(killed >= 8, "{killed}");
}

/// One after the other, all that there are now, but for the test's own.
fn kill_each(redis: &Redis, world: &World) -> usize {
    let mut connection = redis.connection();
    let own: u64 = redis::cmd("CLIENT").arg("ID").query(&mut connection).unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
    let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next());
    let mut killed = 0;
    for id in ids.filter(|id| **id != own.to_string()) {
        let kill: u64 =
            redis::cmd("CLIENT").arg(&["KILL", "ID", id]).query(&mut connection).unwrap();
        killed += kill as usize;
        world.pause(Duration::from_millis(20));
    }
    killed
}

#[test]
fn redis_forgets_the_scripts() {
    let redis = Redis::start();
    let instances = two(&redis);
    let totals = run(&instances, |world| {
        world.during("scripts are forgotten", || {
            for _ in 0..150 {
                redis.run(&["SCRIPT", "FLUSH"]);
                world.pause(Duration::from_millis(20));
            }
        });
        let noscript = info(&redis, "errorstats", "errorstat_NOSCRIPT");
        println!("{noscript} times a script was not there");
        assert!(noscript > 0, "it never mattered");
    });
    // That costs a round trip, and nothing else.
    instances.assert_undisturbed(&totals);
}

/// Of all logs.
fn keys(redis: &Redis) -> Vec<String> {
    let mut keys: Vec<String> =
        redis::cmd("KEYS").arg("ws:*").query(&mut redis.connection()).unwrap();
    keys.retain(|key| !NO_LOGS.contains(&key.as_str()));
    keys
}

/// Deletes one log's key after the other for so long, of those that are wanted; how many.
fn evict(
    redis: &Redis,
    world: &World,
    time: Duration,
    mut is_wanted: impl FnMut(&str) -> bool,
) -> u64 {
    let (mut connection, mut random) = (redis.connection(), Random(5));
    let end = Instant::now() + time;
    let mut evicted = 0;
    while Instant::now() < end {
        let mut left = keys(redis);
        while !left.is_empty() {
            let key = left.swap_remove(random.below(left.len()));
            let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).unwrap();
            if is_wanted(&kind) {
                let gone: u64 = redis::cmd("UNLINK").arg(&key).query(&mut connection).unwrap();
                evicted += gone;
                break;
            }
        }
        world.pause(Duration::from_millis(60));
    }
    evicted
}

#[test]
fn redis_evicts_logs_or_their_counters_or_both() {
    let redis = Redis::start();
    let totals = survive(&redis, |world| {
        let time = 3 * SECOND / 2;
        let during = |what: &str, is_wanted: fn(&str) -> bool| {
            let evicted = world.during(what, || evict(&redis, world, time, is_wanted));
            assert!(evicted > 5, "{what}: {evicted}");
        };
        during("messages are evicted", |kind| kind == "stream");
        during("counters are evicted", |kind| kind != "stream");
        during("all is evicted", |_| true);
    });
    // A counter that is gone cannot be known again.
    assert!(totals.told() > 0, "{totals:?}");
}

#[test]
fn redis_has_too_little_memory() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-lru"]);
    let totals = survive(&redis, |world| {
        let most = |bytes: u64| {
            redis.run(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]);
        };
        world.during("memory is short", || {
            let end = Instant::now() + 4 * SECOND;
            while Instant::now() < end {
                // Something has to go, and after a while all has.
                most(info(&redis, "memory", "used_memory").saturating_sub(64 * 1024));
                world.pause(Duration::from_millis(400));
            }
        });
        most(0);
        let evicted = info(&redis, "stats", "evicted_keys");
        println!("{evicted} keys were evicted");
        assert!(evicted > 5, "{evicted}");
    });
    assert!(totals.told() > 0, "{totals:?}");
}

/// Twice: commands arrive, and nothing comes back; then all connections are cut.
fn drop_replies(world: &World, proxy: &Proxy) {
    for _ in 0..2 {
        let before = proxy.dropped();
        proxy.set(Mode::DropReplies);
        // Silence is noticed within two seconds.
        world.goes_on("replies are lost", 3 * SECOND);
        assert!(proxy.cut() > 0 && proxy.dropped() > before, "nothing was lost");
        proxy.set(Mode::Pass);
        world.instances.wait_for_redis();
        world.goes_on("replies come", SECOND);
    }
}

#[test]
fn replies_are_lost_on_the_way_to_all() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis.addr());
    let instances = Instances::start(&[&proxy.addr(), &proxy.addr()], &[]);
    let totals = run(&instances, |world| drop_replies(world, &proxy));
    assert_was_away(&totals);
}

/// The other two see with a number what this one tells its own clients without.
#[test]
fn replies_are_lost_on_the_way_to_one() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis.addr());
    let instances = Instances::start(&[&proxy.addr(), &redis.addr(), &redis.addr()], &[]);
    let totals = run(&instances, |world| drop_replies(world, &proxy));
    assert_was_away(&totals);
}

/// One instance hears late, and the others go on.
#[test]
fn the_line_of_one_stalls() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis.addr());
    let instances = Instances::start(&[&proxy.addr(), &redis.addr()], &[]);
    let totals = run(&instances, |world| {
        // Too short to be noticed: all who publish may wait for it.
        proxy.set(Mode::Stall);
        world.pause(Duration::from_millis(400));
        proxy.set(Mode::Pass);
        world.goes_on("it was a moment", SECOND);
        proxy.set(Mode::Stall);
        world.goes_on("one line stalls", 3 * SECOND);
        proxy.set(Mode::Pass);
        world.instances.wait_for_redis();
        world.goes_on("all lines are open", SECOND);
    });
    assert_was_away(&totals);
}

/// A second of silence is when Redis counts as away: what comes at that moment comes late, and yet it comes.
#[test]
fn redis_hangs_for_about_as_long_as_it_takes_to_give_it_up() {
    let redis = Redis::start();
    let totals = survive(&redis, |world| {
        world.during("it hangs, over and over", || {
            for tenths in [8, 9, 10, 10, 11, 11, 12, 13] {
                redis.signal("STOP");
                world.pause(SECOND * tenths / 10);
                redis.signal("CONT");
                world.pause(SECOND * 4 / 10);
            }
        });
    });
    assert_was_away(&totals);
}

#[test]
fn the_lines_stall_for_about_as_long_as_it_takes_to_give_them_up() {
    let redis = Redis::start();
    let proxies = [Proxy::to(&redis.addr()), Proxy::to(&redis.addr())];
    let instances = Instances::start(&[&proxies[0].addr(), &proxies[1].addr()], &[]);
    let totals = run(&instances, |world| {
        world.during("lines stall in turn", || {
            for (turn, tenths) in [8, 9, 10, 10, 11, 11, 12, 13].into_iter().enumerate() {
                let proxy = &proxies[turn % 2];
                proxy.set(Mode::Stall);
                world.pause(SECOND * tenths / 10);
                proxy.set(Mode::Pass);
                world.pause(SECOND * 4 / 10);
            }
        });
    });
    assert_was_away(&totals);
}

/// A member of its own room with a position, and another user who sends to it.
struct Pair {
    member: Client,
    sender: Client,
    room: String,
    position: Value,
    said: u64,
}

impl Pair {
    fn new(service: &Service, room: &str) -> Self {
        let mut member = service.client(&format!("member-of-{room}"), "");
        let sender = service.client(&format!("sender-to-{room}"), "");
        member.send_json(&json!({"type": "join", "id": 1, "payload": {"room": room}}));
        let position = member.json()["payload"].clone();
        assert!(position["epoch"].is_string(), "{position}");
        Self { member, sender, room: room.to_owned(), position, said: 0 }
    }

    /// How long a message takes to arrive, and to be answered; whether it has a number.
    fn say(&mut self) -> (Duration, Duration, bool) {
        self.said += 1;
        let said_at = Instant::now();
        let payload = json!({"room": self.room, "body": self.said});
        self.sender.send_json(&json!({"type": "broadcast", "id": self.said, "payload": payload}));
        let message = loop {
            let message = self.member.json();
            if message["type"] != "reset" {
                break message;
            }
        };
        let arrived = said_at.elapsed();
        assert_eq!(message["body"], self.said, "{message}");
        let answer = self.sender.json();
        assert_eq!((&answer["type"], &answer["id"]), (&json!("sent"), &json!(self.said)));
        (arrived, said_at.elapsed(), message.get("seq").is_some())
    }

    /// The reset of the room into another epoch, past what comes of it before.
    fn reset(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(Frame::Text(text)) = self.member.next_before(deadline) else {
                panic!("no reset of {}", self.room)
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            let payload = &message["payload"];
            let is_reset = message["type"] == "reset" && payload["room"] == json!(self.room);
            if is_reset && payload["epoch"] != self.position["epoch"] {
                return;
            }
        }
    }
}

/// Where the room is now, past what has come of it.
fn now(member: &mut Client, room: &str) -> Value {
    member.send_json(&json!({"type": "join", "id": 2, "payload": {"room": room}}));
    loop {
        let message = member.json();
        if message["type"] == "joined" {
            return message["payload"].clone();
        }
    }
}

/// Messages within the same instance go on: the first waits until it is sure, the others do not. `member`
/// is at another instance, and is told as well.
fn assert_delivers_alone(
    world: &World,
    pair: &mut Pair,
    time: Duration,
    come_back: impl FnOnce(),
    member: &mut Pair,
) {
    let slack = if full_size() { Duration::ZERO } else { SECOND };
    world.during("Redis is away", || {
        let start = Instant::now();
        let (arrived, answered, _) = pair.say();
        println!("the first arrived after {arrived:?}, and was answered after {answered:?}");
        assert!(arrived.max(answered) < 3 * SECOND + slack, "{arrived:?} {answered:?}");
        let mut longest = Duration::ZERO;
        while start.elapsed() < time {
            let (arrived, answered, is_numbered) = pair.say();
            assert!(!is_numbered, "a number without Redis");
            longest = longest.max(arrived).max(answered);
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("then {} took {longest:?} at most", pair.said - 1);
        assert!(longest < SECOND + slack, "{longest:?}");
        assert!(pair.said > 10);
    });
    come_back();
    pair.reset();
    member.reset();
    until("numbers again", || pair.say().2);
    assert_eq!(
        now(&mut pair.member, "shared")["epoch"],
        now(&mut member.member, "shared")["epoch"],
        "one log again"
    );
}

/// The same for a Redis that hangs and one that is dead: `away` takes it away, `back` brings it back.
fn away_for_five_seconds(redis: &mut Redis, away: fn(&mut Redis), back: fn(&mut Redis)) {
    let instances = Instances::start(&[&redis.addr(), &redis.addr()], &[]);
    let totals = run(&instances, |world| {
        let (mut pairs, mut n) = (Vec::new(), 0);
        world.instances.each(|service| {
            // The members of both are in one room.
            pairs.push(Pair::new(service, "shared"));
            n += 1;
        });
        let [mut here, mut there] = <[Pair; 2]>::try_from(pairs).ok().unwrap();
        assert_eq!(here.position["epoch"], there.position["epoch"], "one log");
        assert!(here.say().2, "a number");
        away(redis);
        assert_delivers_alone(world, &mut here, 5 * SECOND, || back(redis), &mut there);
    });
    assert_was_away(&totals);
}

#[test]
fn local_delivery_goes_on_while_redis_hangs() {
    let mut redis = Redis::start();
    away_for_five_seconds(&mut redis, |redis| redis.signal("STOP"), |redis| redis.signal("CONT"));
}

#[test]
fn local_delivery_goes_on_while_redis_is_dead() {
    let mut redis = Redis::start();
    away_for_five_seconds(&mut redis, Redis::kill, Redis::start_again);
}

/// Nobody has said anything there: its counters are known again, or it is told; it goes on either way.
#[test]
fn a_room_that_was_silent_meanwhile_goes_on() {
    let mut redis = Redis::with(&["--appendonly", "yes"]);
    let services: [Service; 2] = std::array::from_fn(|_| crowd::start_on(&redis, &SETTINGS));
    let mut pairs = services.each_ref().map(|service| Pair::new(service, "silent"));
    let first = pairs[0].say();
    assert!(first.2, "a number");
    assert_eq!(pairs[1].member.json()["body"], 1);
    redis.kill();
    services.iter().for_each(|service| service.wait_for_redis("disconnected"));
    redis.start_again();
    services.iter().for_each(|service| service.wait_for_redis("connected"));
    // What is said from now on has a number in one epoch, at the latest when all know of the return.
    let [here, there] = &mut pairs;
    let mut said = 1;
    until("one epoch, and the next message with its number at both", || {
        let [at_here, at_there] =
            [now(&mut here.member, "silent"), now(&mut there.member, "silent")];
        said += 1;
        let payload = json!({"room": "silent", "body": said});
        here.sender.send_json(&json!({"type": "broadcast", "id": said, "payload": payload}));
        assert_eq!(here.sender.json()["id"], said);
        let gets = |member: &mut Client, position: &Value| {
            let message = member.json();
            message["body"] == said
                && message["seq"].as_u64() == position["seq"].as_u64().map(|seq| seq + 1)
        };
        // Both take one.
        let [got_here, got_there] =
            [gets(&mut here.member, &at_here), gets(&mut there.member, &at_there)];
        got_here && got_there && at_here == at_there
    });
}

/// It has a number, or has none if Redis is not back for good, but nobody waits for it.
#[test]
fn what_is_said_right_after_the_return_is_answered_soon() {
    assert_answered_soon_after(4, Duration::ZERO);
}

/// All connections then wait for long between two attempts, each for itself.
#[test]
fn what_is_said_after_the_return_from_a_long_absence_is_answered_soon() {
    assert_answered_soon_after(3, 4 * SECOND);
}

fn assert_answered_soon_after(rounds: usize, absence: Duration) {
    let mut redis = Redis::start();
    let service = crowd::start_on(&redis, &SETTINGS);
    for round in 0..rounds {
        let mut pair = Pair::new(&service, &format!("room-{round}"));
        let mut newcomer = service.client("newcomer", "");
        redis.kill();
        // Has the service look for what nobody can tell it.
        let payload = json!({"room": format!("new-{round}")});
        newcomer.send_json(&json!({"type": "join", "id": 1, "payload": payload}));
        service.wait_for_redis("disconnected");
        std::thread::sleep(absence);
        redis.start_again();
        service.wait_for_redis("connected");
        let (arrived, answered, is_numbered) = pair.say();
        println!("arrived after {arrived:?}, answered after {answered:?}, number: {is_numbered}");
        assert!(arrived.max(answered) < 3 * SECOND, "{arrived:?} {answered:?}");
    }
}
