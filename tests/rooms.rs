//! Verifies that clients join, leave and broadcast as the protocol says, and that who may do so is
//! decided by the claims.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use serde_json::{Value, json};
use support::{Client, Service, token_with, unix_now, until};

const NOT_AUTHORIZED: &str =
    r#"{"type":"error","payload":{"code":"not_authorized","error":"not authorized"}}"#;
const TOO_MANY_ROOMS: &str =
    r#"{"type":"error","payload":{"code":"too_many_rooms","error":"too many rooms"}}"#;

/// A client with these claims beside a valid `exp`.
fn client_with(service: &Service, mut claims: Value) -> Client {
    claims["exp"] = json!(unix_now() + 600);
    Client::connect(service.addr(), &token_with(claims))
}

fn answer_to(client: &mut Client, kind: &str, room: &str) -> String {
    client.send_json(&json!({"type": kind, "payload": {"room": room}}));
    client.text()
}

fn rooms(service: &Service) -> Value {
    service.counts()["rooms"].clone()
}

fn assert_may_join(service: &Service, claims: &Value, allowed: &[&str], refused: &[&str]) {
    let mut client = client_with(service, claims.clone());
    for room in allowed {
        assert_eq!(answer_to(&mut client, "join", room), format!("joined {room}"), "{claims}");
    }
    for room in refused {
        assert_eq!(answer_to(&mut client, "join", room), NOT_AUTHORIZED, "{claims} {room}");
    }
}

#[test]
fn members_get_every_broadcast_in_order_and_others_get_none() {
    let service = Service::start();
    let (mut a, mut b, mut c) =
        (service.client("1", ""), service.client("2", ""), service.client("3", ""));
    a.join("lobby");
    b.join("lobby");
    for n in 0..50 {
        a.broadcast("lobby", &json!(n));
    }
    for n in 0..50 {
        for client in [&mut a, &mut b] {
            let message = client.json();
            assert_eq!((&message["room"], &message["body"]), (&json!("lobby"), &json!(n)));
        }
    }
    c.assert_quiet();
}

#[test]
fn who_has_left_gets_nothing_more() {
    let service = Service::start();
    let (mut a, mut b) = (service.client("1", ""), service.client("2", ""));
    a.join("lobby");
    b.join("lobby");
    assert_eq!(answer_to(&mut b, "leave", "lobby"), "left lobby");
    a.broadcast("lobby", &json!(1));
    assert_eq!(a.json()["body"], 1);
    b.assert_quiet();
    // A room that one is not in, or that does not exist, is left all the same.
    assert_eq!(answer_to(&mut b, "leave", "lobby"), "left lobby");
    assert_eq!(answer_to(&mut b, "leave", "order-99"), "left order-99");
    b.join("lobby");
    a.broadcast("lobby", &json!(2));
    assert_eq!(b.json()["body"], 2);
}

#[test]
fn joining_twice_counts_once() {
    let service = Service::start();
    let mut client = service.client("1", "");
    client.join("lobby");
    client.join("lobby");
    assert_eq!(rooms(&service), json!({"lobby": 1}));
    client.broadcast("lobby", &json!("once"));
    assert_eq!(client.json()["body"], "once");
    client.assert_quiet();
    assert_eq!(answer_to(&mut client, "leave", "lobby"), "left lobby");
    assert_eq!(rooms(&service), json!({}));
}

#[test]
fn each_of_several_rooms_is_its_own() {
    let service = Service::start();
    let (mut a, mut b) = (service.client("1", ""), service.client("2", ""));
    for room in ["one", "two"] {
        a.join(room);
    }
    b.join("two");
    a.broadcast("one", &json!(1));
    a.broadcast("two", &json!(2));
    assert_eq!(b.json()["body"], 2);
    assert_eq!((a.json()["room"].clone(), a.json()["room"].clone()), (json!("one"), json!("two")));
    b.assert_quiet();
}

#[test]
fn the_open_policy_is_the_marketplace_s_table() {
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let others = ["order-2", "user-2", "admins"];
    let with = |allowed: &[&'static str]| [allowed, &others].concat();
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "client"}),
        &["order-1", "user-1", "client-1", "client-2", "lobby", "admins-2", "x"],
        &with(&["seller-1", "seller-2"]),
    );
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "seller", "seller_id": "5"}),
        &["order-1", "user-1", "client-1", "seller-5", "seller-6", "lobby"],
        &with(&["client-2"]),
    );
    assert_may_join(
        &service,
        &json!({"sub": "1", "seller_id": 5, "id_client": 6}),
        &["order-1", "user-1", "client-1", "client-6", "seller-5", "lobby"],
        &with(&["client-2", "seller-6", "seller-1"]),
    );
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "ADMIN"}),
        &["order-2", "user-2", "client-2", "seller-2", "admins", "lobby"],
        &[],
    );
}

#[test]
fn the_strict_policy_lets_only_ids_match() {
    let service = Service::with(&[("ROOM_POLICY", "strict"), ("RATE_LIMIT", "0")]);
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "client"}),
        &["order-1", "user-1", "client-1"],
        &["order-2", "user-2", "client-2", "seller-1", "admins", "lobby"],
    );
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "seller", "seller_id": "5"}),
        &["order-1", "user-1", "client-1", "seller-5"],
        &["seller-6", "seller-1", "client-2", "admins", "lobby"],
    );
    assert_may_join(
        &service,
        &json!({"sub": "1", "role": "admin"}),
        &["order-2", "user-2", "client-2", "seller-2", "admins", "lobby"],
        &[],
    );
}

#[test]
fn ids_are_read_from_tokens_of_either_generation() {
    let service = Service::start();
    assert_may_join(
        &service,
        &json!({"user_id": 1, "role": "seller", "id_seller": "5", "reference_id": 9}),
        &["order-1", "seller-5"],
        &["order-9"],
    );
    assert_may_join(
        &service,
        &json!({"sub": null, "id": "1", "reference_id": 9, "role": "Client"}),
        &["user-1", "client-9"],
        &["seller-9"],
    );
    let strict = Service::with(&[("ROOM_POLICY", "strict")]);
    let claims = json!({"sub": "1", "user_id": "2", "role": "seller", "reference_id": 9});
    assert_may_join(&strict, &claims, &["seller-9", "order-1"], &["order-2", "client-9"]);
}

#[test]
fn a_refused_room_is_logged_with_who_asked() {
    let service = Service::start();
    let mut client = service.client("7", "client");
    assert_eq!(answer_to(&mut client, "join", "order-8"), NOT_AUTHORIZED);
    assert!(service.log_line("room refused").contains("conn=1 user=7 room=order-8"));
}

#[test]
fn admins_are_in_their_room_from_the_connect_on() {
    let service = Service::with(&[("ROOM_POLICY", "strict")]);
    let (mut admin, mut client) = (service.client("1", "Admin"), service.client("2", "client"));
    // The first frame of each is the answer to its first message: the membership is not told.
    admin.assert_quiet();
    client.assert_quiet();
    assert_eq!(rooms(&service), json!({"admins": 1}));
    assert_eq!(service.notify(&json!({"event": "e", "room": "admins"})).json()["delivered"], 1);
    assert_eq!(admin.json()["to"], "admins");
    client.assert_quiet();
    assert_eq!(answer_to(&mut admin, "leave", "admins"), "left admins");
    assert_eq!(rooms(&service), json!({}));
}

#[test]
fn the_rooms_of_a_client_are_limited_and_those_of_an_admin_are_not() {
    let service = Service::with(&[("MAX_ROOMS_PER_CLIENT", "2")]);
    let mut client = service.client("1", "");
    client.join("a");
    client.join("b");
    assert_eq!(answer_to(&mut client, "join", "c"), TOO_MANY_ROOMS);
    client.send(r#"{"type":"join","id":7,"payload":{"room":"c"}}"#);
    let with_id = TOO_MANY_ROOMS.replace(r#""payload""#, r#""id":7,"payload""#);
    assert_eq!(client.text(), with_id);
    // A room that one is in already costs nothing, and a left one is free again.
    client.join("a");
    assert_eq!(answer_to(&mut client, "leave", "a"), "left a");
    client.join("c");
    let mut admin = service.client("2", "admin");
    for room in ["a", "b", "c", "d"] {
        admin.join(room);
    }
}

#[test]
fn rooms_vanish_with_their_last_member() {
    let service = Service::start();
    let (mut a, mut b) = (service.client("1", ""), service.client("2", ""));
    a.join("lobby");
    b.join("lobby");
    b.join("order-2");
    assert_eq!(service.counts(), json!({"clients": 2, "rooms": {"lobby": 2, "order-2": 1}}));
    drop(b);
    until("b is gone", || service.counts() == json!({"clients": 1, "rooms": {"lobby": 1}}));
    a.broadcast("lobby", &json!("still"));
    assert_eq!(a.json()["body"], "still");
    drop(a);
    until("a is gone", || service.counts() == json!({"clients": 0, "rooms": {}}));
}

#[test]
fn many_members_come_and_go_and_the_rest_still_get_everything() {
    let service = Service::with(&[("MAX_CONNECTIONS_PER_USER", "0")]);
    let mut members: Vec<_> = (0..30).map(|_| service.client("1", "")).collect();
    for member in &mut members {
        member.join("lobby");
        member.join("other");
    }
    // From the front, the middle and the end, by leaving and by going away.
    for position in [29, 14, 0, 7, 3] {
        let mut gone = members.swap_remove(position);
        if position % 2 == 0 {
            assert_eq!(answer_to(&mut gone, "leave", "lobby"), "left lobby");
        }
        drop(gone);
    }
    until("five are gone", || rooms(&service) == json!({"lobby": 25, "other": 25}));
    members[3].broadcast("lobby", &json!("all"));
    for member in &mut members {
        assert_eq!(member.json()["body"], "all");
        member.assert_quiet();
    }
}
