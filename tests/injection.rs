//! Verifies that nothing which a peer chooses (ids, roles, rooms, origins, events) breaks out of the
//! log line, header, JSON or Redis command that it is put into.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use serde_json::{Value, json};
use support::{
    Client, Redis, Service, bearer, handshake, read_to_end, token, token_with, unix_now, until,
};

/// What looks like a line of its own, an end of a quote, or a terminal's command.
const HOSTILE: [&str; 8] = [
    "x\n2026-01-01T00:00:00.000Z ERROR [realtime_service::hub] forged",
    "x\r\nSet-Cookie: forged=1",
    "x\" role=\"admin",
    "x conn=1 user=forged",
    "x\\\" \\n forged",
    "\u{1b}[2J\u{1b}]0;forged\u{7}",
    "\u{202e}degrof\u{2066}",
    "x\0\u{85}\u{2028}\u{2029}forged",
];

/// Every line is one that the service began, and shows no character that it does not.
fn assert_lines_are_whole(service: &Service) {
    for line in service.log() {
        let date = line.split('T').next().unwrap();
        assert!(date.len() == 10 && line.contains(" [realtime_service"), "{line:?}");
        assert!(!line.starts_with("2026-01-01T00:00:00.000Z"), "{line:?}");
        let hidden =
            |c: char| c.is_control() || "\u{85}\u{2028}\u{2029}\u{202e}\u{2066}".contains(c);
        assert!(!line.contains(hidden), "{line:?}");
    }
}

#[test]
fn roles_and_ids_stay_in_their_place_in_a_line() {
    let service = Service::with(&[("LOG_LEVEL", "debug")]);
    for (n, hostile) in HOSTILE.iter().enumerate() {
        let user = format!("user{n}");
        let claims = json!({"sub": user, "role": hostile, "exp": unix_now() + 60});
        drop(Client::connect(service.addr(), &token_with(claims)));
        let line = service.log_line(&format!("user={user} role="));
        let role = line.split(" role=").nth(1).unwrap();
        assert!(role.starts_with('"') && line.contains(" peer=127.0.0.1:"), "{line}");
    }
    // Visible characters are all that an id may have, and these would look like pairs or quotes.
    for id in ["a\"b", "a=b", "a\\b", "a\\\"role=admin", "role=admin", "{\"a\":1}"] {
        drop(Client::connect(service.addr(), &token(id, "")));
        service.log_line(&format!("user={id:?} role=\"\""));
    }
    assert_lines_are_whole(&service);
}

#[test]
fn json_lines_stay_json() {
    let service = Service::with(&[("LOG_FORMAT", "json"), ("LOG_LEVEL", "debug")]);
    for hostile in HOSTILE {
        let claims = json!({"sub": "1", "role": hostile, "exp": unix_now() + 60});
        drop(Client::connect(service.addr(), &token_with(claims)));
    }
    let (_, lines) = service.stop();
    let text = lines.join("\n");
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for hostile in HOSTILE {
        let role = hostile.to_ascii_lowercase();
        let shows = |line: &Value| line["msg"] == "connected" && line["role"] == role.as_str();
        assert!(lines.iter().any(shows), "{role:?} in {text}");
    }
}

#[test]
fn origins_split_no_header_and_no_line() {
    let listed = "https://shop.example";
    let service = Service::with(&[("ALLOWED_ORIGINS", listed), ("LOG_LEVEL", "debug")]);
    let authorization = bearer(&token("1", ""));
    for origin in [
        "null",
        "https://shop.example.evil.example",
        "https://evil.example/https://shop.example",
        "https://shop.example, https://evil.example",
        "http://shop.example",
        "https://shop.example:443",
        "x\" role=\"admin",
        "https://\u{202e}elpmaxe.pohs",
        "https://ev\u{2028}il.example",
    ] {
        let headers = format!("{authorization}Origin: {origin}\r\n");
        let answer = service.raw(handshake("/ws", &headers));
        assert_eq!(answer.status, 403, "{origin:?}");
        let cors = answer.headers.get("access-control-allow-origin");
        assert!(cors.is_none_or(|allowed| allowed == listed), "{origin:?}: {answer:?}");
        let request = format!(
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: {origin}\r\n\r\n"
        );
        let answer = service.raw(request);
        let cors = answer.headers.get("access-control-allow-origin");
        assert!(cors.is_none_or(|allowed| allowed == listed), "{origin:?}: {answer:?}");
    }
    for origin in ["https://shop.example\r\nSet-Cookie: forged=1", "https://shop.example\r forged"]
    {
        let request = format!(
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: {origin}\r\n\r\n"
        );
        let mut stream = support::connect(service.addr());
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let text = read_to_end(&mut stream);
        assert!(!text.contains("forged"), "{text}");
    }
    let twice = format!("{authorization}Origin: {listed}\r\nOrigin: https://evil.example\r\n");
    assert_eq!(service.raw(handshake("/ws", &twice)).status, 400);
    assert_lines_are_whole(&service);
}

#[test]
fn rooms_and_bodies_stay_in_their_place() {
    let service = Service::with(&[("LOG_LEVEL", "debug"), ("RATE_LIMIT", "0")]);
    let mut client = service.client("1", "");
    for hostile in HOSTILE {
        for kind in ["join", "leave", "broadcast"] {
            client.send_json(&json!({"type": kind, "payload": {"room": hostile}}));
            assert_eq!(client.json()["payload"]["code"], "invalid_room_format");
        }
        client.send_json(&json!({"type": hostile, "id": hostile, "payload": {"room": "x"}}));
        let answer = client.json();
        assert_eq!(
            (&answer["payload"]["code"], &answer["id"]),
            (&json!("unsupported_type"), &json!(hostile))
        );
    }
    // A refused room is logged, and only its format lets it be one.
    client.send_json(&json!({"type": "join", "payload": {"room": "order-2"}}));
    assert_eq!(client.json()["payload"]["code"], "not_authorized");
    service.log_line("room refused");
    client.join("lobby");
    let bodies = [
        r#"{"a":1}"#,
        r#""},\"from\":\"forged\"""#,
        r#""\u0000\n""#,
        "[1,2]",
        "1.000e5",
        r#"{"from":"forged","from":"forged"}"#,
    ];
    for body in bodies {
        client
            .send(&format!(r#"{{"type":"broadcast","payload":{{"room":"lobby","body":{body}}}}}"#));
        let text = client.text();
        assert!(
            text.starts_with(r#"{"seq":"#) && text.ends_with(&format!(r#","body":{body}}}"#)),
            "{text}"
        );
        assert_ne!(serde_json::from_str::<Value>(&text).unwrap()["from"], "forged");
    }
    for bad in [r#"1},"from":"forged""#, "1}", "]", "nul", "\"\n\"", "'x'", "1 // forged"] {
        client
            .send(&format!(r#"{{"type":"broadcast","payload":{{"room":"lobby","body":{bad}}}}}"#));
        assert_eq!(client.json()["payload"]["code"], "invalid_json", "{bad}");
    }
    assert_lines_are_whole(&service);
}

#[test]
fn events_are_json_strings_whatever_they_hold() {
    let service = Service::with(&[("LOG_LEVEL", "debug")]);
    let mut client = service.client("1", "");
    client.join("lobby");
    for hostile in HOSTILE {
        let answer = service.notify(&json!({"event": hostile, "data": hostile, "room": "lobby"}));
        assert_eq!(answer.json()["delivered"], 1, "{answer:?}");
        let got = client.json();
        assert_eq!((&got["event"], &got["data"]), (&json!(hostile), &json!(hostile)));
        assert_eq!(got["to"], "lobby");
        for target in ["user_id", "room"] {
            let answer = service.notify(&json!({"event": "e", target: hostile}));
            assert_eq!(answer.status, 400, "{target} {hostile:?}: {answer:?}");
        }
    }
    assert_lines_are_whole(&service);
}

#[test]
fn redis_gets_one_publish_on_one_channel() {
    let redis = Redis::start();
    let addr = redis.addr();
    let service = Service::with(&[
        ("REDIS_ADDR", &addr),
        ("REDIS_PREFIX", "shop[1]*?\\:"),
        ("LOG_LEVEL", "debug"),
    ]);
    until("Redis is connected", || {
        service.http("GET", "/health", None, "").json()["redis"] == "connected"
    });
    let mut connection = redis.connection();
    let mut messages = connection.as_pubsub();
    messages.psubscribe("*").unwrap();
    // Ids that are globs, look like commands, or like other channels.
    let ids = ["*", "?", "[a-z]", "\\*", "a:b", "ws:room:lobby", "\"x\"", "$6", "{FLUSHALL}"];
    for id in ids {
        let mut client = service.client(id, "");
        let answer = service.notify(&json!({"event": "e\r\nFLUSHALL\r\n", "user_id": id}));
        assert_eq!(answer.json()["delivered"], 1, "{id}: {answer:?}");
        assert_eq!(client.json()["to"], id);
        let channel = format!("shop[1]*?\\:ws:user:{id}");
        let message = loop {
            let message = messages.get_message().unwrap();
            if !message.get_channel_name().contains("ws:probe:") {
                break message;
            }
        };
        assert_eq!(message.get_channel_name(), channel);
        let payload: Value = serde_json::from_slice(message.get_payload_bytes()).unwrap();
        assert_eq!(payload["event"], "e\r\nFLUSHALL\r\n");
    }
    drop(messages);
    // What others publish beside the prefix, though its glob would match, is not delivered.
    let mut client = service.client("1", "");
    client.join("lobby");
    redis.publish("shop1xx:ws:room:lobby", r#"{"forged":1}"#);
    redis.publish("shop[1]*?\\:ws:room:lo*", r#"{"forged":1}"#);
    redis.publish("shop[1]*?\\:ws:room:lobby", r#"{"sentinel":1}"#);
    assert_eq!(client.text(), r#"{"sentinel":1}"#);
    assert_lines_are_whole(&service);
}
