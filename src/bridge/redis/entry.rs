//! What an entry of the door asks for. No I/O.

use serde::de::IgnoredAny;

use crate::bridge::channel_names::{ChannelNames, Source};
use crate::bridge::envelope::Envelope;
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::protocol::Target;
use crate::protocol::json::parse_object;

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    /// Into the log of this room or user: the members of its message, and the closing brace.
    Append(Target, &'a str),
    /// To everyone, or to who takes events: published as it is.
    Publish {
        /// The channel.
        channel: &'a str,
        /// The message.
        message: &'a str,
    },
}

/// An entry that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadEntry;

impl<'a> Entry<'a> {
    /// Reads `channel` and `message`, in either order and nothing else. The message is a JSON object with at
    /// least one member, of at most 64 KiB.
    pub(super) fn read(channels: &ChannelNames, fields: &'a [Vec<u8>]) -> Result<Self, BadEntry> {
        let (channel, message) = match fields {
            [a, channel, b, message] if a == b"channel" && b == b"message" => (channel, message),
            [a, message, b, channel] if a == b"message" && b == b"channel" => (channel, message),
            _ => return Err(BadEntry),
        };
        if message.len() > MAX_NOTIFICATION_BYTES {
            return Err(BadEntry);
        }
        let channel = std::str::from_utf8(channel).map_err(|_| BadEntry)?;
        let message = std::str::from_utf8(message).map_err(|_| BadEntry)?;
        let members = members(message).ok_or(BadEntry)?;
        match channels.read(channel) {
            // Published as it is, it would be taken for a message of an instance.
            _ if Envelope::unwrap(message).is_some() => Err(BadEntry),
            Some(Source::Target(Target::Everyone) | Source::Event) => {
                Ok(Self::Publish { channel, message })
            }
            Some(Source::Target(target)) => Ok(Self::Append(target, members)),
            _ => Err(BadEntry),
        }
    }
}

/// What stands behind the opening brace of a JSON object that has members.
fn members(message: &str) -> Option<&str> {
    let blank = [' ', '\t', '\r', '\n'];
    parse_object::<IgnoredAny>(message).ok()?;
    let members = message.trim_matches(blank).strip_prefix('{')?.trim_start_matches(blank);
    (members != "}").then_some(members)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::protocol::{Id, Room};
    use uuid::Uuid;

    fn names() -> ChannelNames {
        ChannelNames::new("shop:", Uuid::from_u128(5))
    }

    fn fields(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn rooms_and_users_are_numbered_and_the_rest_is_published() {
        let room = Target::Room(Room::parse("a:b").unwrap());
        let user = Target::User(Id::parse("5").unwrap());
        for (channel, message, target, members) in [
            ("shop:ws:room:a:b", r#"{"a":1}"#, &room, r#""a":1}"#),
            ("shop:ws:user:5", " { \"a\" : [1] }\n", &user, "\"a\" : [1] }"),
        ] {
            for order in [
                fields(&["channel", channel, "message", message]),
                fields(&["message", message, "channel", channel]),
            ] {
                let entry = Entry::read(&names(), &order);
                assert_eq!(entry, Ok(Entry::Append(target.clone(), members)));
            }
        }
        for channel in ["shop:ws:broadcast", "shop:events"] {
            let fields = fields(&["channel", channel, "message", r#" {"a":1}"#]);
            let entry = Entry::read(&names(), &fields);
            assert_eq!(entry, Ok(Entry::Publish { channel, message: r#" {"a":1}"# }));
        }
    }

    #[test]
    fn other_entries_are_bad() {
        let channel = "shop:ws:room:a";
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_NOTIFICATION_BYTES));
        let deep = format!(r#"{{"a":{}"#, "[".repeat(60_000));
        for message in
            ["", "5", "[1]", "{}", " { } ", "{", r#"{"a":1}x"#, r#"{"a":1,}"#, &long, &deep]
        {
            let fields = fields(&["channel", channel, "message", message]);
            assert_eq!(Entry::read(&names(), &fields), Err(BadEntry), "{message}");
        }
        for channel in ["", "ws:room:a", "shop:ws:room:", "shop:ws:log:room:a", "shop:ws:publish"] {
            let fields = fields(&["channel", channel, "message", r#"{"a":1}"#]);
            assert_eq!(Entry::read(&names(), &fields), Err(BadEntry), "{channel}");
        }
        for texts in [
            &["channel", channel][..],
            &["channel", channel, "channel", channel],
            &["channel", channel, "message", r#"{"a":1}"#, "more", ""],
            &["Channel", channel, "message", r#"{"a":1}"#],
        ] {
            assert_eq!(Entry::read(&names(), &fields(texts)), Err(BadEntry), "{texts:?}");
        }
        let mut bytes = fields(&["channel", channel, "message"]);
        bytes.push(b"{\"a\":\"\xff\"}".to_vec());
        assert_eq!(Entry::read(&names(), &bytes), Err(BadEntry));
    }
}
