//! Verifies what becomes of each kind of message from the broker.

use super::*;
use crate::protocol::{Room, frame_payload};

const OTHER: Uuid = Uuid::from_u128(7);

struct Fixture(Inbox, ChannelNames);

impl Fixture {
    fn new() -> Self {
        let own = Uuid::from_u128(5);
        Self(Inbox::new(own, true), ChannelNames::new("", own))
    }

    fn read(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> Inbound {
        self.0.read(&self.1, channel, payload.as_ref())
    }

    fn delivered(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> (Target, String) {
        match self.read(channel, payload) {
            Inbound::Deliver(Incoming::Message(d)) => (
                d.target,
                String::from_utf8(frame_payload(&d.draft.complete(None).frame).to_vec()).unwrap(),
            ),
            other => panic!("not delivered: {other:?}"),
        }
    }

    fn dropped(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> DropReason {
        match self.read(channel, payload) {
            Inbound::Drop(reason) => reason,
            other => panic!("not dropped: {other:?}"),
        }
    }
}

fn wire(instance: Uuid, number: u64, payload: &str) -> Vec<u8> {
    Envelope { instance, number }.wrap(payload.strip_prefix('{').unwrap().as_bytes())
}

#[test]
fn messages_of_other_instances_are_unwrapped_once_and_in_order() {
    let mut f = Fixture::new();
    let room = Target::Room(Room::parse("order-1").unwrap());
    let (first, third) = (wire(OTHER, 1, r#"{"a":1}"#), wire(OTHER, 3, r#"{"a":3}"#));
    assert_eq!(f.delivered("ws:room:order-1", &first), (room.clone(), r#"{"a":1}"#.into()));
    assert_eq!(f.dropped("ws:room:order-1", &first), DropReason::Repeated);
    assert_eq!(f.delivered("ws:broadcast", &third), (Target::Everyone, r#"{"a":3}"#.into()));
    assert_eq!(f.dropped("ws:user:5", wire(OTHER, 2, r#"{"a":2}"#)), DropReason::Repeated);
    // Our own is back, unless nobody waits for it.
    let own = wire(f.0.instance, 9, r#"{"a":9}"#);
    let Inbound::Deliver(Incoming::Returned { target, ticket }) = f.read("ws:broadcast", &own)
    else {
        panic!("not returned")
    };
    assert_eq!((target, ticket), (Target::Everyone, 9));
    f.0 = Inbox::new(f.0.instance, false);
    assert!(matches!(f.read("ws:broadcast", own), Inbound::Own));
}

#[test]
fn numbered_messages_are_handed_on_whoever_published_them() {
    let mut f = Fixture::new();
    let own = f.0.instance;
    for (instance, ticket) in [(OTHER, None), (own, Some(4)), (OTHER, None)] {
        let wire = format!(r#"{{"origin":"{instance}:4","log":"e-1:7","a":1}}"#);
        let Inbound::Deliver(Incoming::Logged(logged)) = f.read("ws:user:5", &wire) else {
            panic!("not logged")
        };
        assert_eq!(logged.target, Target::User(Id::parse("5").unwrap()));
        assert_eq!((&*logged.position.epoch, logged.position.seq), ("e-1", 7));
        assert_eq!(logged.ticket, ticket);
        assert_eq!(frame_payload(&logged.draft.complete(None).frame), r#"{"a":1}"#);
    }
    // An instance without a log takes them as messages like any other.
    f.0 = Inbox::new(own, false);
    let wire = format!(r#"{{"origin":"{OTHER}:4","log":"e-1:7","a":1}}"#);
    assert_eq!(f.delivered("ws:user:5", &wire).1, r#"{"a":1}"#);
    assert_eq!(f.dropped("ws:user:5", &wire), DropReason::Repeated);
}

#[test]
fn notices_and_marks_are_read() {
    let mut f = Fixture::new();
    let own = f.0.instance;
    let room = Target::Room(Room::parse("a:b").unwrap());
    for (text, expected) in [
        ("e-1".to_owned(), None),
        (format!("e-1 {OTHER}:3"), None),
        (format!("e-1 {own}:3"), Some(3)),
    ] {
        match f.read("ws:log:room:a:b", &text) {
            Inbound::Deliver(Incoming::Renewed { target, epoch, renewal }) => {
                assert_eq!((target, &*epoch, renewal), (room.clone(), "e-1", expected));
            }
            other => panic!("not renewed: {other:?}"),
        }
    }
    for text in ["", " x", "e:1", "e\n", "é"] {
        assert_eq!(f.dropped("ws:log:room:a", text), DropReason::BadChannel, "{text}");
    }
    let mark = f.1.mark().to_owned();
    match f.read(&mark, "12 room:a:b") {
        Inbound::Deliver(Incoming::Marked { target, reading }) => {
            assert_eq!((target, reading), (room, 12));
        }
        other => panic!("no mark: {other:?}"),
    }
    for text in ["", "12", "x room:a", "12 room:", "12 a", "-1 room:a"] {
        assert_eq!(f.dropped(&mark, text), DropReason::BadChannel, "{text}");
    }
}

#[test]
fn foreign_messages_are_delivered_as_they_are() {
    let mut f = Fixture::new();
    let user = Target::User(Id::parse("5").unwrap());
    for text in [r#"{"event":"x"}"#, r#"{"origin":"shop"}"#, "plain", "", "\u{0}ü", " [1, 2] "] {
        assert_eq!(f.delivered("ws:user:5", text), (user.clone(), text.to_owned()));
    }
}

#[test]
fn sizes_are_counted_without_the_envelope() {
    let mut f = Fixture::new();
    let full = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_NOTIFICATION_BYTES - 8));
    assert_eq!(full.len(), MAX_NOTIFICATION_BYTES);
    assert_eq!(f.delivered("ws:broadcast", &full).1.len(), MAX_NOTIFICATION_BYTES);
    assert_eq!(f.delivered("ws:broadcast", wire(OTHER, 1, &full)).1, full);
    assert_eq!(f.dropped("ws:broadcast", full.clone() + " "), DropReason::TooLarge);
    let huge = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_NOTIFICATION_BYTES + 1024));
    assert_eq!(f.dropped("ws:broadcast", wire(OTHER, 2, &huge)), DropReason::TooLarge);
    let event = format!(r#"{{"type":"ADMIN_STATS_UPDATED","a":"{}"}}"#, "x".repeat(65_536));
    assert_eq!(f.dropped("events", event), DropReason::TooLarge);
}

#[test]
fn events_reach_their_role_as_they_are() {
    let mut f = Fixture::new();
    let admin = r#" {"x":[1.0],"type":"ADMIN_STATS_UPDATED"}"#;
    assert_eq!(f.delivered("events", admin), (Target::Admins, admin.to_owned()));
    for (id, seller) in [(r#""5""#, "5"), ("5", "5"), ("-7", "-7"), (r#""a\u002db""#, "a-b")] {
        let event = format!(r#"{{"type":"SELLER_STATS_\u0055PDATED","seller_id":{id}}}"#);
        assert_eq!(
            f.delivered("events", &event),
            (Target::Seller(Id::parse(seller).unwrap()), event)
        );
    }
}

#[test]
fn junk_is_dropped_for_its_reason() {
    use DropReason::{BadChannel, BadEvent, NotUtf8, UnknownEvent};
    let mut f = Fixture::new();
    for (channel, payload, reason) in [
        ("ws:room:a", &b"\xff"[..], NotUtf8),
        ("ws:user:5", b"\xc3", NotUtf8),
        ("ws:room:", b"{}", BadChannel),
        ("ws:room:a b", b"{}", BadChannel),
        ("ws:room:order-", b"{}", BadChannel),
        ("ws:user:", b"{}", BadChannel),
        ("elsewhere", b"{}", BadChannel),
        ("events", b"\xff", NotUtf8),
        ("events", b"", BadEvent),
        ("events", b"x", BadEvent),
        ("events", b"5", BadEvent),
        ("events", b"{}", BadEvent),
        ("events", br#"{"type":5}"#, BadEvent),
        ("events", br#"{"type":"ADMIN_STATS_UPDATED""#, BadEvent),
        ("events", br#"{"type":"A","type":"ADMIN_STATS_UPDATED"}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED"}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED","seller_id":null}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED","seller_id":""}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED","seller_id":1.5}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED","seller_id":"a b"}"#, BadEvent),
        ("events", br#"{"type":"SELLER_STATS_UPDATED","seller_id":[5]}"#, BadEvent),
        ("ws:user:jos\u{e9}", b"{}", BadChannel),
        (
            "events",
            "{\"type\":\"SELLER_STATS_UPDATED\",\"seller_id\":\"jos\u{e9}\"}".as_bytes(),
            BadEvent,
        ),
        ("events", br#"["ADMIN_STATS_UPDATED",null]"#, BadEvent),
        ("events", br#"{"type":"PRICE_CHANGED"}"#, UnknownEvent),
    ] {
        let text = String::from_utf8_lossy(payload);
        assert_eq!(f.dropped(channel, payload), reason, "{channel} {text}");
    }
    let probe = f.1.probe().to_owned();
    assert!(matches!(f.read(&probe, "12"), Inbound::Probe(12)));
    assert_eq!(f.dropped(&probe, "x"), BadChannel);
}

#[test]
fn deep_events_do_not_overflow_the_stack() {
    let mut f = Fixture::new();
    let deep = format!(r#"{{"type":"X","a":{}"#, "[".repeat(60_000));
    assert_eq!(f.dropped("events", deep), DropReason::BadEvent);
    let deep = format!(r#"{{"type":"X","seller_id":{}"#, "[".repeat(60_000));
    assert_eq!(f.dropped("events", deep), DropReason::BadEvent);
}
