//! Verifies that a user who floods, and a channel that does, do not make the others wait.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::time::{Duration, Instant};

use crowd::{Background, Crowd, Echo, Flood, broadcast, flooded, percentile, start, start_on};
use serde_json::json;
use support::{Redis, Service, full_size, machine, token};

/// Nobody waits so long for an echo or an answer, whatever the machine is.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

#[test]
fn one_user_who_floods_a_large_room_delays_nobody_in_another() {
    let _machine = machine();
    assert_nobody_waits_for_a_flood(start(&[]));
}

/// There each message comes back through Redis, and waits in the queue of its room.
#[test]
fn nor_where_messages_go_through_redis() {
    let _machine = machine();
    let redis = Redis::start();
    assert_nobody_waits_for_a_flood(start_on(&redis, &[]));
}

fn assert_nobody_waits_for_a_flood(service: Service) {
    let members = if full_size() { 5000 } else { 2000 };
    let mut crowd = Crowd::new(&service);
    let members = crowd.enter("member", members, "large");
    let flooders = crowd.connect((0..20).map(|_| token("flooder", "")));
    let mut echo = Echo::new(&service, "bystander");
    let flood = flooded(crowd, vec![Flood::new(flooders.clone(), "large", 50)]);
    std::thread::sleep(Duration::from_secs(1));

    let mut answered = Vec::new();
    for _ in 0..3 {
        echo.take_for(Duration::from_secs(1));
        for path in ["/health", "/metrics", "/admin/clients"] {
            let start = Instant::now();
            assert_eq!(service.http("GET", path, Some(&token("ops", "admin")), "").status, 200);
            answered.push((path, start.elapsed()));
        }
    }
    println!("echo: p50 {:?}, longest {:?}", percentile(&echo.times, 50), echo.longest());
    println!("answered: {answered:?}");
    assert!(echo.longest() < LONGEST_WAIT, "an echo took {:?}", echo.longest());
    assert!(answered.iter().all(|(_, took)| *took < LONGEST_WAIT), "{answered:?}");

    // It would not answer its Close, for which the service waits.
    drop(echo);
    let signalled = Instant::now();
    let (status, log) = service.stop();
    println!("ended {:?} after SIGTERM", signalled.elapsed());
    assert_eq!(status.code(), Some(0), "{:?}", log.last());
    let mut crowd = flood.stop();
    let all = members.start..flooders.end;
    crowd.pump_until("the end of all", |_, _| {}, |crowd| crowd.ended(all.clone()) == all.len());
    let closed = members.clone().filter(|link| crowd.close_code(*link) == Some(1001)).count();
    assert_eq!(closed, members.len(), "members that got a Close 1001");
    // Who has been over its rate for long was closed before.
    assert!(flooders.clone().all(|link| matches!(crowd.close_code(link), Some(1001 | 1008))));
}

/// How long each message took from the one to the other of a pair, of several pairs, for `time`.
fn talk_in_pairs(service: &Service, pairs: usize, time: Duration) -> Vec<Duration> {
    let mut crowd = Crowd::new(service);
    let talkers: Vec<_> = (0..pairs)
        .map(|pair| {
            let both = crowd.connect(["a", "b"].map(|who| token(&format!("{who}{pair}"), "")));
            crowd.join(both.clone(), &format!("pair-{pair}"));
            both.start
        })
        .collect();
    let mut times = Vec::new();
    let mut sent = vec![Instant::now(); pairs];
    let begin = Instant::now();
    // Each pair has one message under way at a time, and at most 20 a second.
    while begin.elapsed() < time {
        let round = Instant::now();
        for (pair, talker) in talkers.iter().enumerate() {
            sent[pair] = Instant::now();
            crowd.send(*talker, &broadcast(&format!("pair-{pair}"), &json!("hello"), None));
        }
        let until = times.len() + pairs;
        let mut copies = 0;
        while times.len() < until || copies < pairs {
            assert!(round.elapsed() < support::PATIENCE, "a pair waits");
            crowd.pump(Duration::from_millis(100), |link, _| {
                match talkers.iter().position(|talker| *talker == link) {
                    Some(_) => copies += 1,
                    None => {
                        let pair = talkers.iter().position(|talker| talker + 1 == link).unwrap();
                        times.push(sent[pair].elapsed());
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(50).saturating_sub(round.elapsed()));
    }
    times
}

#[test]
fn pairs_talk_as_before_while_ten_users_flood_rooms() {
    let _machine = machine();
    assert_pairs_talk_beside_floods(&start(&[]));
}

#[test]
fn and_so_they_do_through_redis() {
    let _machine = machine();
    let redis = Redis::start();
    assert_pairs_talk_beside_floods(&start_on(&redis, &[]));
}

fn assert_pairs_talk_beside_floods(service: &Service) {
    let (members, time) = if full_size() { (500, 20) } else { (200, 6) };
    let mut crowd = Crowd::new(service);
    let mut floods = Vec::new();
    for n in 0..10 {
        let room = format!("room-{n}");
        crowd.enter(&format!("member-{n}"), members, &room);
        // What the service may hold back, each user sends: 20 times what it is allowed.
        let flooders = crowd.connect((0..20).map(|_| token(&format!("flooder-{n}"), "")));
        floods.push(Flood::new(flooders, &room, 50));
    }
    let idle = Background::run(crowd, |crowd| crowd.pump(Duration::from_millis(2), |_, _| {}));
    let alone = percentile(&talk_in_pairs(service, 5, Duration::from_secs(time / 2)), 99);
    let flood = flooded(idle.stop(), floods);
    std::thread::sleep(Duration::from_secs(1));
    let times = talk_in_pairs(service, 5, Duration::from_secs(time));
    drop(flood);
    let p99 = percentile(&times, 99);
    println!("p99 of a pair: alone {alone:?}, beside the floods {p99:?}, of {}", times.len());
    // A debug build that shares two cores with its clients and with other tests is no quiet place: there
    // the bound only tells who waits for a turn from who waits for all that is queued, which is seconds.
    let most = if full_size() {
        Duration::from_millis(100).min(alone * 2 + Duration::from_millis(20))
    } else {
        Duration::from_millis(500)
    };
    assert!(p99 < most, "{p99:?}, alone {alone:?}");
}

/// Processor time of the hub's thread so far.
fn hub_time(service: &Service) -> Duration {
    let stat = service.of_threads("stat").find(|stat| stat.contains("(hub)")).unwrap();
    // Behind the name: the state is the third field of proc_pid_stat(5), the two times are 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn events_for_a_seller_who_is_not_there_cost_the_same_however_many_others_are() {
    const EVENTS: usize = 10_000;
    let _machine = machine();
    let others = if full_size() { 5000 } else { 2000 };
    let redis = Redis::start();
    let service = start_on(&redis, &[]);
    let mut events = redis::pipe();
    let event = json!({"type": "SELLER_STATS_UPDATED", "seller_id": "nobody"}).to_string();
    (0..EVENTS).for_each(|_| {
        events.cmd("PUBLISH").arg("events").arg(&event).ignore();
    });
    let mut echo = Echo::new(&service, "bystander");
    // Once without, and once with the others; what the bridge does for an event is the same.
    let mut round = |events: &redis::Pipeline| {
        let before = hub_time(&service);
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| {
                events.exec(&mut redis.connection()).unwrap();
                // Behind the events, as the order of one connection to Redis tells.
                redis.publish("ws:user:last", "{}");
            });
            while !publishing.is_finished() {
                echo.take_for(Duration::from_millis(50));
            }
        });
        echo.take_for(Duration::from_millis(500));
        hub_time(&service) - before
    };
    let few = round(&events);
    let mut crowd = Crowd::new(&service);
    crowd.connect((0..others).map(|n| token(&format!("other-{}", n / 20), "")));
    let idle = Background::run(crowd, |crowd| crowd.pump(Duration::from_millis(2), |_, _| {}));
    let many = round(&events);
    drop(idle);
    println!("hub's time for {EVENTS} events: {few:?} with one connection, {many:?} with {others}");
    println!("echo: p50 {:?}, longest {:?}", percentile(&echo.times, 50), echo.longest());
    assert!(many < few * 2 + Duration::from_millis(100), "{many:?} after {few:?}");
    assert!(echo.longest() < LONGEST_WAIT, "an echo took {:?}", echo.longest());
}
