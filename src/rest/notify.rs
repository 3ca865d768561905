//! The body of `POST /api/notify` (docs/PROTOCOL.md, "Publishing over HTTP").

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::MAX_BATCH;
use crate::hub::{Delivery, Target};
use crate::notification::{NotifyError, notification};
use crate::protocol::json::{parse_object, string};
use crate::protocol::{Id, Room};

/// What a body asks for: one notification or a batch, which is answered with a list.
#[derive(Debug)]
pub struct NotifyRequest {
    /// The notifications, checked, in order; at least one.
    pub deliveries: Vec<Delivery>,
    /// Whether the body was an array.
    pub is_batch: bool,
}

/// Why a body was refused; nothing of it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest {
    /// The `error` of the response.
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
struct BoundedArray<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for BoundedArray<'a> {
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
/// [`BadRequest`], which names the first bad notification and its member.
pub fn parse(body: &[u8]) -> Result<NotifyRequest, BadRequest> {
    let text = std::str::from_utf8(body).map_err(|error| {
        invalid_json(format!("body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    let is_batch = text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('[');
    if !is_batch {
        let deliveries = vec![parse_one(text, Place(None))?];
        return Ok(NotifyRequest { deliveries, is_batch });
    }
    let BoundedArray(elements) = serde_json::from_str(text)
        .map_err(|error| invalid_json(format!("body is not a batch: {error}")))?;
    if elements.is_empty() {
        return Err(invalid_json("body is an empty array, expected 1 to 100 notifications".into()));
    }
    let deliveries = elements
        .iter()
        .enumerate()
        .map(|(index, raw)| parse_one(raw.get(), Place(Some(index))))
        .collect::<Result<_, _>>()?;
    Ok(NotifyRequest { deliveries, is_batch })
}

fn invalid_json(message: String) -> BadRequest {
    BadRequest { code: "invalid_json", message }
}

/// The place of a notification in its body, for error messages: its index in a batch, or `None` for a
/// body that is one notification.
#[derive(Clone, Copy)]
struct Place(Option<usize>);

impl Place {
    /// An error of one member of the notification.
    fn member(self, member: &str, what: impl fmt::Display) -> BadRequest {
        let message = match self.0 {
            Some(index) => format!("notifications[{index}].{member}: {what}"),
            None => format!("{member}: {what}"),
        };
        BadRequest { code: "invalid_notification", message }
    }

    /// An error of the whole notification.
    fn whole(self, code: &'static str, what: impl fmt::Display) -> BadRequest {
        let message = match self.0 {
            Some(index) => format!("notifications[{index}]: {what}"),
            None => format!("notification: {what}"),
        };
        BadRequest { code, message }
    }
}

fn parse_one(text: &str, place: Place) -> Result<Delivery, BadRequest> {
    let members: Members<'_> =
        parse_object(text).map_err(|error| place.whole("invalid_json", error))?;
    let event = members
        .event
        .and_then(string)
        .ok_or_else(|| place.member("event", "expected a non-empty string"))?;
    let target = members.target(place)?;
    let data = members.data.map_or("null", RawValue::get);
    notification(target, &event, data).map_err(|error| match error {
        NotifyError::BadEvent => place.member("event", error),
        NotifyError::TooLarge(_) => place.whole("notification_too_large", error),
        NotifyError::BadUser(_) => place.member("user_id", error),
        NotifyError::BadData(_) | NotifyError::HubGone(_) => place.member("data", error),
    })
}

impl Members<'_> {
    fn target(&self, place: Place) -> Result<Target, BadRequest> {
        let everyone = match self.broadcast.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(place.member("broadcast", "expected true")),
        };
        match (self.user_id, self.room, everyone) {
            (Some(raw), None, false) => Id::from_json(raw)
                .map(Target::User)
                .map_err(|error| place.member("user_id", format!("{error} or an integer"))),
            (None, Some(raw), false) => string(raw)
                .and_then(|name| Room::parse(&name).ok())
                .map(Target::Room)
                .ok_or_else(|| {
                    place.member(
                        "room",
                        "expected 1 to 128 of A-Z a-z 0-9 _ - . : and an id behind its prefix",
                    )
                }),
            (None, None, true) => Ok(Target::Everyone),
            _ => Err(place.whole(
                "invalid_notification",
                "expected exactly one of user_id, room and \"broadcast\":true",
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests;
