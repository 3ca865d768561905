//! Names of the channels, and what each is for.

use uuid::Uuid;

use crate::hub::Target;
use crate::protocol::{Id, Room};

const ROOM: &str = "ws:room:";
const USER: &str = "ws:user:";
const EVERYONE: &str = "ws:broadcast";
const EVENTS: &str = "events";
const PROBE: &str = "ws:probe:";

/// The channels of one instance, each behind `REDIS_PREFIX`.
#[derive(Debug)]
pub(super) struct ChannelNames {
    prefix: String,
    probe: String,
}

/// What a message on a channel is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A message for these connections.
    Target(Target),
    /// An event of another system.
    Event,
    /// Our own probe.
    Probe,
}

impl ChannelNames {
    /// The channels of this instance.
    pub(super) fn new(prefix: &str, instance: Uuid) -> Self {
        Self { prefix: prefix.to_owned(), probe: format!("{prefix}{PROBE}{instance}") }
    }

    /// What to subscribe to, as glob patterns.
    pub(super) fn patterns(&self) -> [String; 5] {
        let prefix = escape_glob(&self.prefix);
        [
            format!("{prefix}{ROOM}*"),
            format!("{prefix}{USER}*"),
            format!("{prefix}{EVERYONE}"),
            format!("{prefix}{EVENTS}"),
            escape_glob(&self.probe),
        ]
    }

    /// Where the probes of this instance go.
    pub(super) fn probe(&self) -> &str {
        &self.probe
    }

    /// Where a message for `target` goes; `None` when it is not published.
    pub(super) fn of(&self, target: &Target) -> Option<String> {
        let prefix = &self.prefix;
        match target {
            Target::Room(room) => Some(format!("{prefix}{ROOM}{room}")),
            Target::User(id) => Some(format!("{prefix}{USER}{id}")),
            Target::Everyone => Some(format!("{prefix}{EVERYONE}")),
            Target::Admins | Target::Seller(_) => None,
        }
    }

    /// What a message on this channel is; `None` when the name is not one of ours, or its room or user
    /// is malformed.
    pub(super) fn read(&self, channel: &str) -> Option<Source> {
        if channel == self.probe {
            return Some(Source::Probe);
        }
        let name = channel.strip_prefix(&self.prefix)?;
        if let Some(room) = name.strip_prefix(ROOM) {
            return Room::parse(room).ok().map(|room| Source::Target(Target::Room(room)));
        }
        if let Some(id) = name.strip_prefix(USER) {
            return Id::parse(id).ok().map(|id| Source::Target(Target::User(id)));
        }
        match name {
            EVERYONE => Some(Source::Target(Target::Everyone)),
            EVENTS => Some(Source::Event),
            _ => None,
        }
    }
}

/// A glob pattern that matches only `text`.
fn escape_glob(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn channels(prefix: &str) -> ChannelNames {
        ChannelNames::new(prefix, Uuid::from_u128(5))
    }

    #[test]
    fn a_published_target_is_read_back() {
        for prefix in ["", "shop:", "a*[b]?\\", "ü "] {
            let channels = channels(prefix);
            for target in [
                Target::Everyone,
                Target::User(Id::parse("5").unwrap()),
                Target::Room(Room::parse("order-1:2").unwrap()),
            ] {
                let name = channels.of(&target).unwrap();
                assert!(name.starts_with(prefix));
                assert_eq!(channels.read(&name), Some(Source::Target(target)));
            }
            assert_eq!(channels.read(channels.probe()), Some(Source::Probe));
            assert_eq!(channels.read(&format!("{prefix}events")), Some(Source::Event));
        }
        assert_eq!(channels("").of(&Target::Admins), None);
        assert_eq!(channels("").of(&Target::Seller(Id::parse("5").unwrap())), None);
    }

    #[test]
    fn other_names_are_not_ours() {
        let long = "x".repeat(129);
        for name in [
            "",
            "ws:room:",
            "ws:room:order-",
            "ws:room:a b",
            "ws:room:ä",
            &format!("ws:room:{long}"),
            "ws:user:",
            "ws:user:a b",
            "ws:user:a\nb",
            "ws:user:josé",
            &format!("ws:user:{long}"),
            "ws:broadcast:x",
            "Events",
            "ws:probe:other",
            "?",
        ] {
            assert_eq!(channels("").read(name), None, "{name}");
        }
        assert_eq!(channels("p:").read("ws:broadcast"), None);
    }

    #[test]
    fn the_prefix_is_no_pattern() {
        assert_eq!(channels("a*[b]?\\").patterns()[0], "a\\*\\[b\\]\\?\\\\ws:room:*");
        assert_eq!(channels("").patterns()[2], "ws:broadcast");
    }
}
