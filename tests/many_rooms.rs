//! Verifies that very many rooms are listed in bounded answers, delay nobody meanwhile, and that those
//! that are gone leave their memory to the next.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::time::{Duration, Instant};

use crowd::{Crowd, Echo, start};
use serde_json::{Value, json};
use support::{Client, Service, frame, full_size, machine, token, until};

/// Rooms that one answer lists at most.
const LISTED: usize = 1000;
/// Messages on their way at a time.
const IN_FLIGHT: usize = 500;
/// Admins may join any number of rooms; a rate would make that take too long.
const NO_RATES: [(&str, &str); 2] = [("RATE_LIMIT", "0"), ("RATE_BYTES", "0")];

/// Joins or leaves these rooms, and takes the answers.
fn each_room(client: &mut Client, kind: &str, rooms: impl Iterator<Item = String>) {
    let rooms: Vec<_> = rooms.collect();
    let answer = if kind == "join" { "joined" } else { "left" };
    for part in rooms.chunks(IN_FLIGHT) {
        let message =
            |room| json!({"type": kind, "payload": {"room": room}}).to_string().into_bytes();
        let all: Vec<_> = part.iter().flat_map(|room| frame(0x81, &message(room))).collect();
        client.send_bytes(&all);
        part.iter().for_each(|room| assert_eq!(client.text(), format!("{answer} {room}")));
    }
}

/// `GET /admin/clients` with this query.
fn clients(service: &Service, query: &str) -> Value {
    let answer =
        service.http("GET", &format!("/admin/clients{query}"), Some(&token("ops", "admin")), "");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn up_to_a_thousand_rooms_are_listed_as_ever_and_then_the_largest() {
    let _machine = machine();
    let many = if full_size() { 200_000 } else { 20_000 };
    let service = start(&NO_RATES);
    let mut admin = service.client("1", "admin");
    // `admins` is one of them.
    each_room(&mut admin, "join", (1..LISTED).map(|n| format!("room-{n}")));
    let counts = clients(&service, "");
    assert_eq!(counts["rooms"].as_object().unwrap().len(), LISTED);
    assert_eq!(counts.as_object().unwrap().keys().collect::<Vec<_>>(), ["clients", "rooms"]);

    each_room(&mut admin, "join", (LISTED..many).map(|n| format!("room-{n}")));
    // One of a hundred is larger.
    let mut second = service.client("2", "admin");
    let larger = |n: usize| format!("room-{}", n * (many / 100) + 1);
    each_room(&mut second, "join", (0..100).map(larger));
    let mut echo = Echo::new(&service, "bystander");
    let start = Instant::now();
    let counts = std::thread::scope(|scope| {
        let asking = scope.spawn(|| clients(&service, ""));
        while !asking.is_finished() {
            echo.take();
        }
        asking.join().unwrap()
    });
    println!("answered in {:?}, meanwhile an echo took {:?}", start.elapsed(), echo.longest());
    // The echo's room is one more.
    assert_eq!(counts["rooms_total"], many + 1);
    let rooms = counts["rooms"].as_object().unwrap();
    assert_eq!(rooms.len(), LISTED);
    assert_eq!(rooms["admins"], 2);
    (0..100).for_each(|n| assert_eq!(rooms[&larger(n)], 2, "{}", larger(n)));
    assert!(echo.longest() < Duration::from_secs(2), "{:?}", echo.longest());

    each_room(&mut admin, "leave", (LISTED / 2..many).map(|n| format!("room-{n}")));
    drop(second);
    until("few rooms are left", || clients(&service, "")["clients"] == 2);
    let counts = clients(&service, "");
    assert_eq!(counts["rooms_total"], Value::Null);
    assert_eq!(counts["rooms"].as_object().unwrap().len(), LISTED / 2 + 1);
}

#[test]
fn connections_come_in_pages() {
    let _machine = machine();
    let service = start(&[]);
    let mut crowd = Crowd::new(&service);
    crowd.enter("member", 250, "lobby");
    let mut ids = std::collections::HashSet::new();
    for (page, length) in [(1, 100), (2, 100), (3, 50), (4, 0)] {
        let answer = clients(&service, &format!("?room=lobby&page={page}"));
        assert_eq!((&answer["total"], &answer["pages"]), (&json!(250), &json!(3)));
        let connections = answer["connections"].as_array().unwrap();
        assert_eq!(connections.len(), length, "page {page}");
        ids.extend(connections.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
    }
    assert_eq!(ids.len(), 250);
}

/// Memory that the process has written to and keeps, in KiB; its code, as it is first run, is not counted.
fn anonymous_kib(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn rooms_that_are_gone_leave_their_memory_to_the_next() {
    const ADMINS: usize = 4;
    const ROUNDS: usize = 5;
    let _machine = machine();
    let each = if full_size() { 50_000 } else { 12_500 };
    // With one arena the allocator can use again what another thread took: with several it is chance.
    let one_arena = ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1");
    let service = start(&[NO_RATES[0], NO_RATES[1], one_arena]);
    let before = anonymous_kib(&service);
    let most: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let mut admins: Vec<_> =
                (0..ADMINS).map(|n| service.client(&format!("admin-{n}"), "admin")).collect();
            let for_each = |kind: &'static str, admins: &mut [Client]| {
                std::thread::scope(|scope| {
                    for (n, admin) in admins.iter_mut().enumerate() {
                        let rooms = (0..each).map(move |room| format!("round-{round}-{n}-{room}"));
                        scope.spawn(move || each_room(admin, kind, rooms));
                    }
                });
            };
            for_each("join", &mut admins);
            let most = anonymous_kib(&service) - before;
            // Half of them by messages, the others all at once by the end of the connection.
            for_each("leave", &mut admins[..ADMINS / 2]);
            drop(admins);
            let nothing = json!({"clients": 0, "rooms": {}});
            until("nobody is here", || service.counts() == nothing);
            most
        })
        .collect();
    println!("KiB for {} rooms in each of {ROUNDS} rounds: {most:?}", ADMINS * each);
    assert!(most[ROUNDS - 1] < most[1] * 5 / 4, "{most:?}");
}
