//! What becomes of a message that arrives: a pure function of the message and of what came before.

use std::borrow::Cow;

use serde::Deserialize;
use uuid::Uuid;

use super::DropReason;
use super::channel::{Channels, Source, is_id};
use super::origin::{ENVELOPE_BYTES, Origin, Seen};
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::hub::{Delivery, Target};
use crate::protocol::text_frame;

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Received {
    /// Hand it to the handler.
    Deliver(Delivery),
    /// Nothing: it is our own, and local connections have it.
    Own,
    /// The probe with this number has come back.
    Probe(u64),
    /// Count it, and say so now and then.
    Drop(DropReason),
}

/// Reads messages in the order in which they arrive.
#[derive(Debug)]
pub(super) struct Inbox {
    instance: Uuid,
    seen: Seen,
}

impl Inbox {
    /// The inbox of the instance that publishes under this origin.
    pub(super) fn new(instance: Uuid) -> Self {
        Self { instance, seen: Seen::default() }
    }

    /// Decides about one message.
    pub(super) fn read(&mut self, channels: &Channels, channel: &str, payload: &[u8]) -> Received {
        let read = match channels.read(channel) {
            None => Err(DropReason::BadChannel),
            Some(Source::Probe) => Ok(read_probe(payload)),
            Some(Source::Event) => read_event(payload),
            Some(Source::Target(target)) => self.read_message(target, payload),
        };
        read.unwrap_or_else(Received::Drop)
    }

    fn read_message(&mut self, target: Target, payload: &[u8]) -> Result<Received, DropReason> {
        let text = checked_text(payload, MAX_NOTIFICATION_BYTES + ENVELOPE_BYTES)?;
        let Some((origin, members)) = Origin::unwrap(text) else {
            let text = checked_text(payload, MAX_NOTIFICATION_BYTES)?;
            return Ok(deliver(target, text));
        };
        if origin.instance == self.instance {
            return Ok(Received::Own);
        }
        if !self.seen.advance(origin) {
            return Err(DropReason::Repeated);
        }
        Ok(deliver(target, &format!("{{{members}")))
    }
}

fn deliver(target: Target, text: &str) -> Received {
    Received::Deliver(Delivery { target, frame: text_frame(text) })
}

fn checked_text(payload: &[u8], most_bytes: usize) -> Result<&str, DropReason> {
    if payload.len() > most_bytes {
        return Err(DropReason::TooLarge);
    }
    std::str::from_utf8(payload).map_err(|_| DropReason::NotUtf8)
}

/// Only this instance knows the channel, so a number that is none is somebody's experiment.
fn read_probe(payload: &[u8]) -> Received {
    let number = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
    number.map_or(Received::Drop(DropReason::BadChannel), Received::Probe)
}

/// An event of the marketplace; further members are the clients' business.
#[derive(Deserialize)]
struct SystemEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    seller_id: Option<SellerId>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SellerId {
    Text(String),
    Unsigned(u64),
    Signed(i64),
}

impl SellerId {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
        }
    }
}

fn read_event(payload: &[u8]) -> Result<Received, DropReason> {
    let text = checked_text(payload, MAX_NOTIFICATION_BYTES)?;
    let event: SystemEvent = serde_json::from_str(text).map_err(|_| DropReason::BadEvent)?;
    let target = match &*event.kind {
        "ADMIN_STATS_UPDATED" => Target::Admins,
        "SELLER_STATS_UPDATED" => {
            let id = event.seller_id.map(SellerId::into_text).filter(|id| is_id(id));
            Target::Seller(id.ok_or(DropReason::BadEvent)?.into())
        }
        _ => return Err(DropReason::UnknownEvent),
    };
    Ok(deliver(target, text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::protocol::{Room, frame_payload};

    const OTHER: Uuid = Uuid::from_u128(7);

    struct Fixture(Inbox, Channels);

    impl Fixture {
        fn new() -> Self {
            let own = Uuid::from_u128(5);
            Self(Inbox::new(own), Channels::new("", own))
        }

        fn read(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> Received {
            self.0.read(&self.1, channel, payload.as_ref())
        }

        fn delivered(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> (Target, String) {
            match self.read(channel, payload) {
                Received::Deliver(d) => {
                    (d.target, String::from_utf8(frame_payload(&d.frame).to_vec()).unwrap())
                }
                other => panic!("not delivered: {other:?}"),
            }
        }

        fn dropped(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> DropReason {
            match self.read(channel, payload) {
                Received::Drop(reason) => reason,
                other => panic!("not dropped: {other:?}"),
            }
        }
    }

    fn wire(instance: Uuid, number: u64, payload: &str) -> Vec<u8> {
        Origin { instance, number }.wrap(payload.as_bytes()).unwrap()
    }

    #[test]
    fn messages_of_other_instances_are_unwrapped_once_and_in_order() {
        let mut f = Fixture::new();
        let room = Target::Room(Room::parse("order-1").unwrap());
        let (first, third) = (wire(OTHER, 1, r#"{"a":1}"#), wire(OTHER, 3, "{}"));
        assert_eq!(f.delivered("ws:room:order-1", &first), (room.clone(), r#"{"a":1}"#.into()));
        assert_eq!(f.dropped("ws:room:order-1", &first), DropReason::Repeated);
        assert_eq!(f.delivered("ws:broadcast", &third), (Target::Everyone, "{}".into()));
        assert_eq!(f.dropped("ws:user:5", wire(OTHER, 2, "{}")), DropReason::Repeated);
        let own = wire(f.0.instance, 9, "{}");
        assert!(matches!(f.read("ws:room:order-1", own), Received::Own));
    }

    #[test]
    fn foreign_messages_are_delivered_as_they_are() {
        let mut f = Fixture::new();
        let user = Target::User("5".into());
        for text in [r#"{"event":"x"}"#, r#"{"origin":"shop"}"#, "plain", "", "\u{0}ü", " [1, 2] "]
        {
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
            assert_eq!(f.delivered("events", &event), (Target::Seller(seller.into()), event));
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
            ("events", br#"{"type":"PRICE_CHANGED"}"#, UnknownEvent),
        ] {
            let text = String::from_utf8_lossy(payload);
            assert_eq!(f.dropped(channel, payload), reason, "{channel} {text}");
        }
        let probe = f.1.probe().to_owned();
        assert!(matches!(f.read(&probe, "12"), Received::Probe(12)));
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
}
