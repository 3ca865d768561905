//! Verifies that docs/asyncapi.yaml is valid, and that every kind of message, in both directions, over
//! WebSocket and Redis, is one that it describes, and that it describes no other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/document.rs"]
mod document;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use document::{tool, yaml};
use jsonschema::Validator;
use realtime_service::protocol::close::Close;
use serde_json::{Value, json};
use support::{Client, Frame, Redis, Service, free_port, token_with, unix_now, until};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| yaml("docs/asyncapi.yaml"));

/// The schemas of all messages, by name.
static MESSAGES: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let components = &DOCUMENT["components"];
    components["messages"]
        .as_object()
        .unwrap()
        .keys()
        .map(|name| {
            let schema = json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$ref": format!("#/components/messages/{name}/payload"),
                "components": components,
            });
            (name.clone(), jsonschema::validator_for(&schema).unwrap())
        })
        .collect()
});

/// The names of the messages that a text fits; `foreign` fits all.
fn names(text: &str) -> BTreeSet<&'static str> {
    let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    MESSAGES
        .iter()
        .filter(|(name, schema)| *name != "foreign" && schema.is_valid(&value))
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Sends and receives only what the document describes, and keeps a list of it.
#[derive(Default)]
struct Recorder {
    seen: BTreeSet<&'static str>,
    codes: BTreeSet<String>,
}

impl Recorder {
    fn record(&mut self, name: &'static str, text: &str) {
        assert_eq!(names(text), BTreeSet::from([name]), "{text}");
        self.seen.insert(name);
    }

    fn send(&mut self, client: &mut Client, message: &Value) {
        let text = message.to_string();
        let kind = message["type"].as_str().unwrap();
        let name =
            *["join", "leave", "broadcast", "resume"].iter().find(|name| **name == kind).unwrap();
        self.record(name, &text);
        client.send(&text);
    }

    fn receive(&mut self, client: &mut Client, name: &'static str) -> String {
        let text = client.text();
        self.record(name, &text);
        text
    }

    fn refused(&mut self, client: &mut Client, message: &str, code: &str) {
        client.send(message);
        let text = self.receive(client, "error");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["payload"]["code"], json!(code), "{message}");
        self.codes.insert(code.to_owned());
    }
}

#[test]
fn the_document_is_valid() {
    let path = tool("node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(&DOCUMENT)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert_refs_resolve(&DOCUMENT);
}

fn assert_refs_resolve(value: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                let pointer = target.strip_prefix('#').unwrap();
                assert!(DOCUMENT.pointer(pointer).is_some(), "{target} leads nowhere");
            }
            members.values().for_each(assert_refs_resolve);
        }
        Value::Array(elements) => elements.iter().for_each(assert_refs_resolve),
        _ => {}
    }
}

#[test]
fn the_close_codes_are_those_of_the_service() {
    let closes = [
        Close::GoingAway,
        Close::Protocol,
        Close::InvalidUtf8,
        Close::RateLimited,
        Close::TooLarge,
        Close::ServerError,
        Close::TokenExpired,
    ];
    let listed: Vec<_> = DOCUMENT["channels"]["connection"]["x-close-codes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["code"].as_u64().unwrap(), row["reason"].as_str().unwrap()))
        .collect();
    let expected: Vec<_> = closes
        .iter()
        .map(|close| close.code_and_reason())
        .map(|(code, reason)| (u64::from(code), reason))
        .collect();
    assert_eq!(listed, expected);
}

/// Everything that needs neither Redis nor a backend.
fn converse(recorder: &mut Recorder) {
    let service = Service::with(&[("MAX_ROOMS_PER_CLIENT", "1")]);
    let mut client = service.client("7", "client");
    let room = || json!({"room": "order-7"});
    for (kind, name, plain) in [("join", "joined", "joinedText"), ("leave", "left", "leftText")] {
        for id in [json!("r1"), json!(-1.5)] {
            recorder.send(&mut client, &json!({"type": kind, "id": id, "payload": room()}));
            recorder.receive(&mut client, name);
        }
        recorder.send(&mut client, &json!({"type": kind, "payload": room()}));
        recorder.receive(&mut client, plain);
    }
    for since in [None, Some(json!({"epoch": "e-1", "seq": 3}))] {
        let mut payload = room();
        if let Some(since) = &since {
            payload["since"] = since.clone();
        }
        recorder.send(&mut client, &json!({"type": "join", "id": 1, "payload": payload}));
        recorder.receive(&mut client, "joined");
        let payload = since.map_or(json!({}), |since| json!({"since": since}));
        recorder.send(&mut client, &json!({"type": "resume", "id": 1, "payload": payload}));
        recorder.receive(&mut client, "resumed");
    }
    recorder.send(&mut client, &json!({"type": "resume"}));
    recorder.receive(&mut client, "resumed");
    client.join("order-7");
    for payload in [json!({"room": "order-7", "body": {"any": 1}}), room()] {
        recorder.send(&mut client, &json!({"type": "broadcast", "id": 1, "payload": payload}));
        recorder.receive(&mut client, "roomMessage");
        recorder.receive(&mut client, "sent");
    }
    for target in [json!({"user_id": 7}), json!({"room": "order-7"}), json!({"broadcast": true})] {
        let mut notification = json!({"event": "order_created", "data": [1]});
        notification.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        assert_eq!(service.notify(&notification).status, 200);
        recorder.receive(&mut client, "notification");
    }
    for (message, code) in [
        ("no json", "invalid_json"),
        (r#"{"type":"join","id":true}"#, "invalid_json"),
        (r#"{"type":"shout","id":2}"#, "unsupported_type"),
        (r#"{"type":"leave"}"#, "invalid_room"),
        (r#"{"type":"join","id":"x","payload":{"room":"order-"}}"#, "invalid_room_format"),
        (r#"{"type":"resume","payload":{"since":7}}"#, "invalid_since"),
        (r#"{"type":"join","payload":{"room":"order-8"}}"#, "not_authorized"),
        (r#"{"type":"join","payload":{"room":"lobby"}}"#, "too_many_rooms"),
    ] {
        recorder.refused(&mut client, message, code);
    }
}

fn exceed_the_rate(recorder: &mut Recorder) {
    let service = Service::with(&[("RATE_LIMIT", "1"), ("RATE_BURST", "1")]);
    let mut client = service.client("7", "client");
    client.join("lobby");
    recorder.refused(&mut client, r#"{"type":"leave","payload":{"room":"lobby"}}"#, "rate_limited");
}

fn lose_the_backend(recorder: &mut Recorder) {
    let backend = format!("http://127.0.0.1:{}", free_port());
    let service = Service::with(&[("BACKEND_URL", &backend)]);
    let mut client = service.client("7", "client");
    recorder.refused(&mut client, r#"{"type":"join","payload":{"room":"a"}}"#, "server_error");
}

/// What a subscriber sees on Redis, up to the first message of this name.
fn overheard(
    recorder: &mut Recorder,
    pubsub: &mut redis::PubSub<'_>,
    name: &'static str,
    prefix: &str,
) {
    loop {
        let message = pubsub.get_message().unwrap();
        if message.get_channel_name().starts_with(prefix) {
            let text: String = message.get_payload().unwrap();
            // A probe is a number in a text; JSON would make a number of it.
            if name == "probe" {
                assert!(MESSAGES[name].is_valid(&json!(text)), "{text}");
                recorder.seen.insert(name);
            } else {
                recorder.record(name, &text);
            }
            return;
        }
    }
}

fn go_through_redis(recorder: &mut Recorder) {
    let redis = Redis::start();
    let service = Service::with(&[("REDIS_ADDR", &redis.addr())]);
    let health = || service.http("GET", "/health", None, "").json()["redis"].clone();
    until("Redis is connected", || health() == json!("connected"));
    let mut connection = redis.connection();
    let mut pubsub = connection.as_pubsub();
    pubsub.psubscribe("*").unwrap();
    overheard(recorder, &mut pubsub, "probe", "ws:probe:");

    let seller = json!({"sub": "5", "role": "seller", "seller_id": 5, "exp": unix_now() + 600});
    let mut seller = Client::connect(service.addr(), &token_with(seller));
    let mut admin = service.client("1", "admin");
    seller.join("seller-5");
    seller.broadcast("seller-5", &json!(1));
    recorder.receive(&mut seller, "roomMessage");
    overheard(recorder, &mut pubsub, "relayed", "ws:room:seller-5");
    for (target, channel) in [
        (json!({"event": "e", "user_id": 5}), "ws:user:5"),
        (json!({"event": "e", "broadcast": true}), "ws:broadcast"),
    ] {
        assert_eq!(service.notify(&target).status, 200);
        recorder.receive(&mut seller, "notification");
        overheard(recorder, &mut pubsub, "relayed", channel);
    }
    recorder.receive(&mut admin, "notification");

    redis.publish("events", r#"{"type":"ADMIN_STATS_UPDATED","orders":3}"#);
    recorder.receive(&mut admin, "adminStats");
    redis.publish("events", r#"{"type":"SELLER_STATS_UPDATED","seller_id":"5"}"#);
    recorder.receive(&mut seller, "sellerStats");
    for channel in ["ws:room:seller-5", "ws:user:5", "ws:broadcast"] {
        redis.publish(channel, "as it is");
        assert_eq!(seller.next(), Frame::Text("as it is".into()));
        recorder.seen.insert("foreign");
    }

    let message = r#"{"event":"e","data":1,"to":"seller-5"}"#;
    let entry = json!({"channel": "ws:room:seller-5", "message": message});
    recorder.record("entry", &entry.to_string());
    redis.run(&["XADD", "ws:publish", "*", "channel", "ws:room:seller-5", "message", message]);
    recorder.receive(&mut seller, "notification");

    // A room that nobody has used: its log is looked up, and begins.
    recorder.send(&mut seller, &json!({"type": "join", "id": 1, "payload": {"room": "seller-6"}}));
    recorder.receive(&mut seller, "joined");
    overheard(recorder, &mut pubsub, "notice", "ws:log:room:seller-6");
    overheard(recorder, &mut pubsub, "mark", "ws:mark:");

    // The seller knows where it is in a room and in its own notifications: of both it is told that something
    // may be missing now.
    recorder.send(&mut seller, &json!({"type": "join", "id": 1, "payload": {"room": "seller-5"}}));
    recorder.receive(&mut seller, "joined");
    recorder.send(&mut seller, &json!({"type": "resume", "id": 2, "payload": {}}));
    recorder.receive(&mut seller, "resumed");
    for (log, target) in [
        ("ws:log:room:seller-5", json!({"event": "e", "room": "seller-5"})),
        ("ws:log:user:5", json!({"event": "e", "user_id": 5})),
    ] {
        redis.run(&["DEL", log]);
        assert_eq!(service.notify(&target).status, 200);
        recorder.receive(&mut seller, "reset");
        recorder.receive(&mut seller, "notification");
    }
}

#[test]
fn every_message_is_described_and_every_description_is_met() {
    let mut recorder = Recorder::default();
    converse(&mut recorder);
    exceed_the_rate(&mut recorder);
    lose_the_backend(&mut recorder);
    go_through_redis(&mut recorder);
    let described: BTreeSet<_> = MESSAGES.keys().map(String::as_str).collect();
    assert_eq!(recorder.seen, described);

    let refusals = DOCUMENT["components"]["messages"]["error"]["payload"]["properties"]["payload"]
        ["oneOf"]
        .as_array()
        .unwrap();
    assert_eq!(recorder.codes.len(), refusals.len(), "{:?}", recorder.codes);
}
