//! Names of the channels and keys, and what each is for.
//!
//! The names of rooms and users may hold a colon, so what is constant stands in front of them: no name makes
//! one key another.

use uuid::Uuid;

use crate::protocol::{Id, Room, Target};

const ROOM: &str = "room:";
const USER: &str = "user:";
/// Before a room or user: the channel of its messages.
const CHANNEL: &str = "ws:";
/// Before a room or user: the key of its log's numbers, and the channel of notices about them.
const LOG: &str = "ws:log:";
/// Before a room or user: the key of its log's messages.
const MESSAGES: &str = "ws:messages:";
const EVERYONE: &str = "ws:broadcast";
const EVENTS: &str = "events";
const PROBE: &str = "ws:probe:";
const MARK: &str = "ws:mark:";
const DOOR: &str = "ws:publish";
const LIFE: &str = "ws:life";
const LEASE: &str = "ws:door";

/// The channels and keys of one instance, each behind `REDIS_PREFIX`.
#[derive(Debug)]
pub(super) struct ChannelNames {
    prefix: String,
    probe: String,
    mark: String,
}

/// The names of one log.
#[derive(Debug)]
pub(super) struct LogNames {
    /// The channel of its messages.
    pub(super) channel: String,
    /// The key of its numbers, and the channel of notices about them.
    pub(super) numbers: String,
    /// The key of its messages.
    pub(super) messages: String,
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
    /// A notice: this log has begun anew.
    Notice(Target),
    /// The place of a reading of ours.
    Mark,
}

impl ChannelNames {
    /// The channels of this instance.
    pub(super) fn new(prefix: &str, instance: Uuid) -> Self {
        Self {
            prefix: prefix.to_owned(),
            probe: format!("{prefix}{PROBE}{instance}"),
            mark: format!("{prefix}{MARK}{instance}"),
        }
    }

    /// What to subscribe to, as glob patterns; with a log, also to what concerns it.
    pub(super) fn patterns(&self, has_log: bool) -> Vec<String> {
        let prefix = escape_glob(&self.prefix);
        let mut patterns = vec![
            format!("{prefix}{CHANNEL}{ROOM}*"),
            format!("{prefix}{CHANNEL}{USER}*"),
            format!("{prefix}{EVERYONE}"),
            format!("{prefix}{EVENTS}"),
            escape_glob(&self.probe),
        ];
        if has_log {
            patterns.extend([self.logs(), escape_glob(&self.mark)]);
        }
        patterns
    }

    /// The keys of all logs' numbers, and the channels of notices, as a glob pattern.
    pub(super) fn logs(&self) -> String {
        format!("{}{LOG}*", escape_glob(&self.prefix))
    }

    /// Where the probes of this instance go.
    pub(super) fn probe(&self) -> &str {
        &self.probe
    }

    /// Where the marks of this instance's readings go.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// The key of the door's entries.
    pub(super) fn door(&self) -> String {
        format!("{}{DOOR}", self.prefix)
    }

    /// The key of the server's life.
    pub(super) fn life(&self) -> String {
        format!("{}{LIFE}", self.prefix)
    }

    /// The key of the lease that says who reads the door.
    pub(super) fn lease(&self) -> String {
        format!("{}{LEASE}", self.prefix)
    }

    /// Where a message for `target` goes; `None` when it is not published.
    pub(super) fn of(&self, target: &Target) -> Option<String> {
        let prefix = &self.prefix;
        match target {
            Target::Everyone => Some(format!("{prefix}{EVERYONE}")),
            other => log_name(other).map(|name| format!("{prefix}{CHANNEL}{name}")),
        }
    }

    /// The names of this target's log; `None` when it has none.
    pub(super) fn log_of(&self, target: &Target) -> Option<LogNames> {
        let (prefix, name) = (&self.prefix, log_name(target)?);
        Some(LogNames {
            channel: format!("{prefix}{CHANNEL}{name}"),
            numbers: format!("{prefix}{LOG}{name}"),
            messages: format!("{prefix}{MESSAGES}{name}"),
        })
    }

    /// Whose log has its numbers under this key.
    pub(super) fn log_at(&self, key: &str) -> Option<Target> {
        parse_log_name(key.strip_prefix(&self.prefix)?.strip_prefix(LOG)?)
    }

    /// What a message on this channel is; `None` when the name is not one of ours, or its room or user
    /// is malformed.
    pub(super) fn read(&self, channel: &str) -> Option<Source> {
        if channel == self.probe {
            return Some(Source::Probe);
        }
        if channel == self.mark {
            return Some(Source::Mark);
        }
        match channel.strip_prefix(&self.prefix)? {
            EVERYONE => Some(Source::Target(Target::Everyone)),
            EVENTS => Some(Source::Event),
            name => match name.strip_prefix(LOG) {
                Some(name) => parse_log_name(name).map(Source::Notice),
                None => parse_log_name(name.strip_prefix(CHANNEL)?).map(Source::Target),
            },
        }
    }
}

/// `room:<room>` or `user:<id>`: what the names of a target that has a log end with.
pub(super) fn log_name(target: &Target) -> Option<String> {
    match target {
        Target::Room(room) => Some(format!("{ROOM}{room}")),
        Target::User(id) => Some(format!("{USER}{id}")),
        Target::Everyone | Target::Admins | Target::Seller(_) => None,
    }
}

/// Reads what [`log_name`] writes.
pub(super) fn parse_log_name(name: &str) -> Option<Target> {
    if let Some(room) = name.strip_prefix(ROOM) {
        return Room::parse(room).ok().map(Target::Room);
    }
    Id::parse(name.strip_prefix(USER)?).ok().map(Target::User)
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
                assert_eq!(channels.read(&name), Some(Source::Target(target.clone())));
                let Some(log) = channels.log_of(&target) else { continue };
                assert_eq!(log.channel, name);
                assert_eq!(channels.log_at(&log.numbers), Some(target.clone()));
                assert_eq!(channels.read(&log.numbers), Some(Source::Notice(target)));
                assert_eq!(channels.log_at(&log.messages), None);
            }
            assert_eq!(channels.read(channels.probe()), Some(Source::Probe));
            assert_eq!(channels.read(channels.mark()), Some(Source::Mark));
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
            "ws:mark:other",
            "ws:log:",
            "ws:log:order-1",
            "ws:log:room:a b",
            "ws:messages:room:a",
            "ws:publish",
            "ws:door",
            "?",
        ] {
            assert_eq!(channels("").read(name), None, "{name}");
        }
        assert_eq!(channels("p:").read("ws:broadcast"), None);
    }

    #[test]
    fn the_prefix_is_no_pattern() {
        let first = |prefix| channels(prefix).patterns(true).into_iter().next().unwrap();
        assert_eq!(first("a*[b]?\\"), "a\\*\\[b\\]\\?\\\\ws:room:*");
        assert!(channels("").patterns(false).contains(&"ws:broadcast".to_owned()));
        assert_eq!(channels("a*").logs(), "a\\*ws:log:*");
    }
}
