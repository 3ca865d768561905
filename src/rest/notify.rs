//! `POST /api/notify`: body → notifications → counts (DESIGN section 5).

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::{MAX_BATCH, MAX_ID_BYTES};
use crate::hub::{Delivery, Target};
use crate::notification::{NotifyError, notification};
use crate::protocol::Room;

/// What a body asks for: one notification or a batch, which is answered with a list.
#[derive(Debug)]
pub struct Wanted {
    /// The notifications, checked, in order; at least one.
    pub deliveries: Vec<Delivery>,
    /// Whether the body was an array.
    pub is_batch: bool,
}

/// Why a body was refused; nothing of it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadNotify {
    /// The `error` of the answer.
    pub code: &'static str,
    /// The `message`: where and what.
    pub message: String,
}

/// The members as raw JSON: each is judged on its own, so that an error names it. Other members are
/// ignored, since publishers send more than is asked for.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    room: Option<&'a RawValue>,
    #[serde(borrow, default)]
    broadcast: Option<&'a RawValue>,
}

/// Up to [`MAX_BATCH`] elements; more are refused without being collected.
struct Batch<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if elements.len() == MAX_BATCH {
                        return Err(A::Error::custom(format!(
                            "a batch has at most {MAX_BATCH} notifications"
                        )));
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Elements).map(Self)
    }
}

/// Parses a body: one object, or an array of 1 to [`MAX_BATCH`].
///
/// # Errors
/// [`BadNotify`], which names the first bad notification and its member.
pub fn parse(body: &[u8]) -> Result<Wanted, BadNotify> {
    let text = std::str::from_utf8(body).map_err(|error| {
        invalid_json(format!("body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    let is_batch = text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('[');
    if !is_batch {
        let delivery = parse_one(text).map_err(|error| error.into_answer(None))?;
        return Ok(Wanted { deliveries: vec![delivery], is_batch });
    }
    let Batch(elements) = serde_json::from_str(text)
        .map_err(|error| invalid_json(format!("body is not a batch: {error}")))?;
    if elements.is_empty() {
        return Err(invalid_json("body is an empty array, expected 1 to 100 notifications".into()));
    }
    let deliveries = elements
        .iter()
        .enumerate()
        .map(|(index, raw)| parse_one(raw.get()).map_err(|error| error.into_answer(Some(index))))
        .collect::<Result<_, _>>()?;
    Ok(Wanted { deliveries, is_batch })
}

fn invalid_json(message: String) -> BadNotify {
    BadNotify { code: "invalid_json", message }
}

/// What is wrong with one notification, and with which member of it, where it is one.
struct BadMember {
    code: &'static str,
    member: Option<&'static str>,
    what: String,
}

impl BadMember {
    fn new(member: &'static str, what: impl Into<String>) -> Self {
        Self { code: "invalid_notification", member: Some(member), what: what.into() }
    }

    fn whole(code: &'static str, what: impl Into<String>) -> Self {
        Self { code, member: None, what: what.into() }
    }

    fn into_answer(self, index: Option<usize>) -> BadNotify {
        let place = match (index, self.member) {
            (Some(index), Some(member)) => format!("notifications[{index}].{member}"),
            (Some(index), None) => format!("notifications[{index}]"),
            (None, Some(member)) => member.to_owned(),
            (None, None) => "notification".to_owned(),
        };
        BadNotify { code: self.code, message: format!("{place}: {}", self.what) }
    }
}

fn parse_one(text: &str) -> Result<Delivery, BadMember> {
    // A struct also deserialises from an array; only an object is meant.
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(BadMember::whole("invalid_json", "expected a JSON object"));
    }
    let members: Members<'_> = serde_json::from_str(text)
        .map_err(|error| BadMember::whole("invalid_json", error.to_string()))?;
    let event = members
        .event
        .and_then(string)
        .ok_or_else(|| BadMember::new("event", "expected a non-empty string"))?;
    let target = members.target()?;
    let data = members.data.map_or("null", RawValue::get);
    notification(target, &event, data).map_err(|error| match error {
        NotifyError::BadEvent => BadMember::new("event", error.to_string()),
        NotifyError::TooLarge(_) => BadMember::whole("notification_too_large", error.to_string()),
        NotifyError::BadData(_) | NotifyError::HubGone => BadMember::new("data", error.to_string()),
    })
}

impl Members<'_> {
    fn target(&self) -> Result<Target, BadMember> {
        let everyone = match self.broadcast.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(BadMember::new("broadcast", "expected true")),
        };
        match (self.user_id, self.room, everyone) {
            (Some(raw), None, false) => {
                user_id(raw).map(|id| Target::User(Arc::from(id))).ok_or_else(|| {
                    BadMember::new("user_id", "expected 1 to 128 visible characters or an integer")
                })
            }
            (None, Some(raw), false) => string(raw)
                .and_then(|name| Room::parse(&name).ok())
                .map(Target::Room)
                .ok_or_else(|| {
                    BadMember::new(
                        "room",
                        "expected 1 to 128 of A-Z a-z 0-9 _ - . : and an id behind its prefix",
                    )
                }),
            (None, None, true) => Ok(Target::Everyone),
            _ => Err(BadMember::whole(
                "invalid_notification",
                "expected exactly one of user_id, room and \"broadcast\":true",
            )),
        }
    }
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// An id as tokens have it: a string, or an integer, which counts as its decimal digits.
fn user_id(raw: &RawValue) -> Option<String> {
    if let Some(id) = string(raw) {
        let visible = id.bytes().all(|b| b.is_ascii_graphic());
        return (visible && (1..=MAX_ID_BYTES).contains(&id.len())).then_some(id);
    }
    let digits = raw.get();
    let is_integer = digits.parse::<i64>().is_ok() || digits.parse::<u64>().is_ok();
    (is_integer && digits != "-0").then(|| digits.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::protocol::frame_payload;
    use proptest::prelude::*;

    fn error(body: &str) -> (&'static str, String) {
        let bad = parse(body.as_bytes()).unwrap_err();
        (bad.code, bad.message)
    }

    fn frames(body: &str) -> Vec<String> {
        let wanted = parse(body.as_bytes()).unwrap();
        let text = |d: &Delivery| String::from_utf8(frame_payload(&d.frame).to_vec()).unwrap();
        wanted.deliveries.iter().map(text).collect()
    }

    #[test]
    fn one_and_many_are_read_byte_for_byte() {
        assert_eq!(
            frames(r#" {"event":"e","data": {"a" : 1.00} ,"user_id":-7,"extra":1}"#),
            [r#"{"event":"e","data":{"a" : 1.00},"to":"-7"}"#]
        );
        let batch = r#"[{"event":"a","room":"order-1"},
            {"event":"b","data":null,"broadcast":true},
            {"event":"c","data":[],"user_id":"u","room":null,"broadcast":false}]"#;
        assert_eq!(
            frames(batch),
            [
                r#"{"event":"a","data":null,"to":"order-1"}"#,
                r#"{"event":"b","data":null,"to":"broadcast"}"#,
                r#"{"event":"c","data":[],"to":"u"}"#
            ]
        );
        assert!(parse(batch.as_bytes()).unwrap().is_batch);
        assert_eq!(
            parse(br#"{"event":"e","user_id":18446744073709551615}"#).unwrap().deliveries[0].target,
            Target::User("18446744073709551615".into())
        );
    }

    #[test]
    fn json_of_the_wrong_form_is_invalid_json() {
        for body in [
            "",
            "x",
            "null",
            "5",
            "\"a\"",
            "[]",
            "[",
            "{",
            "[5]",
            "[[]]",
            "{}x",
            r#"{"event":"a","event":"b","room":"a"}"#,
            r#"{"event":"a","room":"a"} {}"#,
        ] {
            assert_eq!(error(body).0, "invalid_json", "{body}");
        }
        assert_eq!(parse(b"{\"\xff\"}").unwrap_err().message, "body is not UTF-8 at byte 2");
        let many = format!("[{}]", vec!["{}"; MAX_BATCH + 1].join(","));
        assert!(error(&many).1.contains("at most 100 notifications"));
    }

    #[test]
    fn each_bad_member_is_named() {
        for (body, place) in [
            (r#"{"room":"a"}"#, "event: "),
            (r#"{"event":"","room":"a"}"#, "event: "),
            (r#"{"event":5,"room":"a"}"#, "event: "),
            (r#"{"event":"\ud800","room":"a"}"#, "event: "),
            (r#"{"event":"e"}"#, "notification: "),
            (r#"{"event":"e","broadcast":false}"#, "notification: "),
            (r#"{"event":"e","room":"a","user_id":"b"}"#, "notification: "),
            (r#"{"event":"e","room":"a","broadcast":true}"#, "notification: "),
            (r#"{"event":"e","broadcast":1}"#, "broadcast: "),
            (r#"{"event":"e","room":""}"#, "room: "),
            (r#"{"event":"e","room":"order-"}"#, "room: "),
            (r#"{"event":"e","room":5}"#, "room: "),
            (r#"{"event":"e","user_id":""}"#, "user_id: "),
            (r#"{"event":"e","user_id":"a b"}"#, "user_id: "),
            (r#"{"event":"e","user_id":"a\n"}"#, "user_id: "),
            (r#"{"event":"e","user_id":1.5}"#, "user_id: "),
            (r#"{"event":"e","user_id":1e3}"#, "user_id: "),
            (r#"{"event":"e","user_id":-0}"#, "user_id: "),
            (r#"{"event":"e","user_id":18446744073709551616}"#, "user_id: "),
            (r#"{"event":"e","user_id":true}"#, "user_id: "),
            (r#"[{"event":"e","room":"a"},{"event":"e","room":"ä"}]"#, "notifications[1].room: "),
            (r#"[{"event":"e","room":"a"},{"room":"a"}]"#, "notifications[1].event: "),
        ] {
            let (code, message) = error(body);
            assert_eq!(code, "invalid_notification", "{body}");
            assert!(message.starts_with(place), "{body}: {message}");
        }
        let long = format!(r#"{{"event":"{}","room":"a"}}"#, "e".repeat(129));
        assert!(error(&long).1.starts_with("event: "));
    }

    #[test]
    fn a_notification_over_64_kib_is_too_large() {
        let of = |n: usize| format!(r#"{{"event":"e","room":"a","data":"{}"}}"#, "x".repeat(n));
        assert!(parse(of(65_000).as_bytes()).is_ok());
        assert_eq!(error(&of(65_536)).0, "notification_too_large");
    }

    proptest! {
        #[test]
        fn any_body_is_judged(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
