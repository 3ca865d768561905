//! Verifies that with `BACKEND_URL` a real HTTP backend decides who may join, and that one that is slow,
//! wrong or silent delays nobody's deliveries.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::json;
use support::{ALLOW, Backend, Client, DENY, hang, respond, token_with, unix_now, until};

/// Lets everyone in at once, but answers about rooms with `slow` only when the sender says so.
fn with_slow_rooms() -> (Backend, Sender<()>) {
    let (release, released): (_, Receiver<()>) = unbounded();
    let backend = Backend::deciding(move |target| {
        if target.contains("slow") {
            let _ = released.recv();
        }
        true
    });
    (backend, release)
}

fn error(code: &str, text: &str) -> String {
    format!(r#"{{"type":"error","payload":{{"code":"{code}","error":"{text}"}}}}"#)
}

fn ask_to_join(client: &mut Client, room: &str) {
    client.send_json(&json!({"type": "join", "payload": {"room": room}}));
}

fn join(client: &mut Client, room: &str) -> String {
    ask_to_join(client, room);
    client.text()
}

#[test]
fn only_a_200_that_says_so_lets_in() {
    let endless = "x".repeat(1 << 20);
    let backend = Backend::start(move |target, stream| {
        let (_, room) = target.split_once("room=").unwrap();
        let (status, body) = match room.split('&').next().unwrap() {
            "allowed" => ("200 OK", ALLOW),
            "spacious" => ("200 OK", " {\"more\" : 1, \"allowed\" : true }\n"),
            "denied" => ("200 OK", DENY),
            "created" => ("201 Created", ALLOW),
            "moved" => ("302 Found\r\nLocation: /base/ws/can_join?room=allowed", ALLOW),
            "forbidden" => ("403 Forbidden", ALLOW),
            "unknown" => ("404 Not Found", ""),
            "broken" => ("500 Internal Server Error", "oops"),
            "empty" => ("200 OK", ""),
            "text" => ("200 OK", "yes"),
            "string" => ("200 OK", r#"{"allowed":"true"}"#),
            "null" => ("200 OK", "null"),
            "array" => ("200 OK", "[true]"),
            "absent" => ("200 OK", "{}"),
            _ => ("200 OK", endless.as_str()),
        };
        respond(stream, status, body)
    });
    let service = backend.service();
    let mut client = service.client("7", "");
    for room in ["allowed", "spacious"] {
        assert_eq!(join(&mut client, room), format!("joined {room}"));
    }
    for room in ["denied", "created", "moved", "forbidden", "unknown", "broken"] {
        assert_eq!(join(&mut client, room), error("not_authorized", "not authorized"), "{room}");
    }
    for room in ["empty", "text", "string", "null", "array", "absent", "endless"] {
        assert_eq!(join(&mut client, room), error("server_error", "server error"), "{room}");
    }
    assert_eq!(service.counts()["rooms"], json!({"allowed": 1, "spacious": 1}));
    service.log_line("authorization backend: the answer is not");
}

#[test]
fn each_kind_of_room_has_its_path_and_every_part_is_encoded() {
    let backend = Backend::deciding(|_| true);
    let service = backend.service();
    let claims = json!({"sub": "a/b?c&d=e%2F+~", "exp": unix_now() + 60});
    let mut client = Client::connect(service.addr(), &token_with(claims));
    for room in ["order-5", "seller-a:b.c", "client-5", "user-5", "admins", "lobby:1", "order--"] {
        assert_eq!(join(&mut client, room), format!("joined {room}"));
    }
    let user = "user_id=a%2Fb%3Fc%26d%3De%252F%2B~";
    assert_eq!(
        backend.targets(),
        [
            format!("/base/orders/5/can_access?{user}"),
            format!("/base/sellers/a%3Ab.c/can_access?{user}"),
            format!("/base/ws/can_join?room=client-5&{user}"),
            format!("/base/ws/can_join?room=user-5&{user}"),
            format!("/base/ws/can_join?room=admins&{user}"),
            format!("/base/ws/can_join?room=lobby%3A1&{user}"),
            format!("/base/orders/-/can_access?{user}"),
        ]
    );
    // Dots would be resolved on the way, encoded or not, so no backend is asked for such an id.
    for room in ["order-..", "seller-."] {
        assert_eq!(join(&mut client, room), error("not_authorized", "not authorized"));
    }
    assert_eq!(backend.targets().len(), 7);
}

#[test]
fn a_silent_backend_is_a_server_error_and_deliveries_go_on_meanwhile() {
    let backend = Backend::start(|target, stream| match target.contains("silent") {
        true => hang(stream),
        false => respond(stream, "200 OK", ALLOW),
    });
    let service = backend.service();
    let (mut waiting, mut other) = (service.client("7", ""), service.client("8", ""));
    waiting.join("lobby");
    other.join("lobby");
    let start = Instant::now();
    ask_to_join(&mut waiting, "silent");
    backend.wait_for_calls(3);
    // While it waits: deliveries to it, joins of others, notifications.
    other.broadcast("lobby", &json!("meanwhile"));
    assert_eq!(waiting.json()["body"], "meanwhile");
    assert_eq!(other.json()["body"], "meanwhile");
    other.join("another");
    service.notify(&json!({"event": "e", "user_id": "7"}));
    assert_eq!(waiting.json()["event"], "e");
    assert_eq!(waiting.text(), error("server_error", "server error"));
    let took = start.elapsed();
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
    // The failure is not kept. A join that comes at once may still share the call that is failing.
    let calls = backend.targets().len();
    until("another call", || {
        assert_eq!(join(&mut waiting, "silent"), error("server_error", "server error"));
        backend.targets().len() > calls
    });
}

#[test]
fn a_client_s_messages_keep_their_order_while_the_backend_is_asked() {
    let (backend, release) = with_slow_rooms();
    let service = backend.service();
    let (mut client, mut other) = (service.client("7", ""), service.client("8", ""));
    client.join("lobby");
    other.join("lobby");
    ask_to_join(&mut client, "slow");
    client.broadcast("slow", &json!(1));
    client.send_json(&json!({"type": "leave", "payload": {"room": "lobby"}}));
    ask_to_join(&mut client, "third");
    backend.wait_for_calls(3);
    // It is still in the lobby: the leave waits behind the join.
    other.broadcast("lobby", &json!("still"));
    assert_eq!(client.json()["body"], "still");
    release.send(()).unwrap();
    assert_eq!(client.text(), "joined slow");
    assert_eq!(client.json()["body"], 1);
    assert_eq!(client.text(), "left lobby");
    assert_eq!(client.text(), "joined third");
}

#[test]
fn equal_questions_share_a_call_and_others_run_beside_it() {
    let (backend, release) = with_slow_rooms();
    let service = backend.service();
    let mut equal: Vec<_> = (0..8).map(|_| service.client("7", "")).collect();
    for client in &mut equal {
        ask_to_join(client, "slow");
    }
    backend.wait_for_calls(1);
    // Another user's question is another one, and neither waits for the other.
    let mut other = service.client("8", "");
    ask_to_join(&mut other, "slow");
    backend.wait_for_calls(2);
    for _ in 0..2 {
        release.send(()).unwrap();
    }
    for client in equal.iter_mut().chain([&mut other]) {
        assert_eq!(client.text(), "joined slow");
    }
    assert_eq!(backend.targets().len(), 2);
}

#[test]
fn answers_are_kept_for_a_while() {
    let backend = Backend::deciding(|target| !target.contains("order"));
    let service = backend.service();
    let mut client = service.client("7", "");
    for _ in 0..3 {
        assert_eq!(join(&mut client, "lobby"), "joined lobby");
        assert_eq!(join(&mut client, "order-8"), error("not_authorized", "not authorized"));
    }
    assert_eq!(backend.targets().len(), 2);
    // Kept per user.
    service.client("8", "").join("lobby");
    assert_eq!(backend.targets().len(), 3);
    // A deny is asked again after 5 s, an allow is kept for longer.
    until("the deny is asked again", || {
        assert_eq!(join(&mut client, "order-8"), error("not_authorized", "not authorized"));
        backend.targets().len() == 4
    });
    assert!(backend.targets()[3].contains("/orders/8/"), "{:?}", backend.targets());
    assert_eq!(join(&mut client, "lobby"), "joined lobby");
    assert_eq!(backend.targets().len(), 4);
}

#[test]
fn a_broadcast_asks_only_for_who_is_no_member() {
    let backend = Backend::deciding(|target| !target.contains("user_id=9"));
    let service = backend.service();
    let (mut member, mut permitted, mut stranger) =
        (service.client("7", ""), service.client("8", ""), service.client("9", ""));
    member.join("order-1");
    member.broadcast("order-1", &json!("own"));
    assert_eq!(member.json()["body"], "own");
    assert_eq!(backend.targets().len(), 1);
    permitted.broadcast("order-1", &json!("permitted"));
    assert_eq!(member.json()["body"], "permitted");
    assert_eq!(backend.targets().len(), 2);
    stranger.broadcast("order-1", &json!("denied"));
    assert_eq!(stranger.text(), error("not_authorized", "not authorized"));
    assert_eq!(backend.targets().len(), 3);
    member.assert_quiet();
}

#[test]
fn admins_are_in_their_room_without_a_question() {
    let backend = Backend::deciding(|_| false);
    let service = backend.service();
    let mut admin = service.client("1", "admin");
    admin.assert_quiet();
    assert_eq!(service.counts()["rooms"], json!({"admins": 1}));
    assert_eq!(join(&mut admin, "admins"), "joined admins");
    assert!(backend.targets().is_empty());
    // Elsewhere the backend's word counts for admins too.
    assert_eq!(join(&mut admin, "lobby"), error("not_authorized", "not authorized"));
}

#[test]
fn a_shutdown_does_not_wait_for_the_backend() {
    let backend = Backend::start(|_, stream| hang(stream));
    let service = backend.service();
    let mut client = service.client("7", "");
    ask_to_join(&mut client, "lobby");
    backend.wait_for_calls(1);
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0), "{log:?}");
}
