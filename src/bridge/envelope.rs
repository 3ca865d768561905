//! The first member of each published message, by which an instance recognises its own messages and
//! repeated ones.
//!
//! Published is the JSON object that clients get, with one member added in front:
//! `{"origin":"<uuid>:<n>",…}`. Behind it a numbered message has its place in its log:
//! `"log":"<epoch>:<seq>",`; one that should have a number and has none: `"log":"",`. They always stand at the
//! same place, so they are cut off without parsing.

use std::collections::HashMap;
use std::fmt;

use uuid::Uuid;

use crate::config::MAX_EPOCH_BYTES;
use crate::protocol::Position;

const OPENING: &str = r#"{"origin":""#;
/// How the member of a numbered message begins.
const LOG: &str = r#""log":"#;
/// Length of a UUID in its hyphenated form.
const UUID_BYTES: usize = 36;
/// Highest number of a message: the script counts with numbers of 53 bits.
pub(super) const MAX_SEQ: u64 = (1 << 53) - 1;
/// How many instances are remembered; each has a new id at every start.
const ORIGINS: usize = 1024;
/// Bytes that an envelope may add to a message; it adds at most 163.
pub(super) const ENVELOPE_BYTES: usize = 1024;

/// Who publishes, and the number of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope {
    /// Random at each start of an instance.
    pub(super) instance: Uuid,
    /// Rises with every message, from 1.
    pub(super) number: u64,
}

/// Whether a message has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbering {
    /// There is none for it.
    None,
    /// Its place in its log.
    Position(Position),
    /// The broker refused it one.
    Refused,
}

/// A message without its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unwrapped<'a> {
    /// Who published it.
    pub(super) origin: Envelope,
    /// Whether it has a number.
    pub(super) numbering: Numbering,
    /// The members and the closing brace.
    pub(super) members: &'a str,
}

impl Envelope {
    /// Puts the leading member before others, of which there is at least one, and the closing brace.
    pub(super) fn wrap(self, members: &[u8]) -> Vec<u8> {
        let head = format!("{OPENING}{self}\",");
        [head.as_bytes(), members].concat()
    }

    /// The same, of a message to which the broker refused a number.
    pub(super) fn wrap_refused(self, members: &[u8]) -> Vec<u8> {
        self.wrap(&[LOG.as_bytes(), br#""","#, members].concat())
    }

    /// Takes a message apart. `None` when the text does not begin in exactly this form: then it comes from
    /// another system.
    pub(super) fn unwrap(text: &str) -> Option<Unwrapped<'_>> {
        let (origin, rest) = text.strip_prefix(OPENING)?.split_once('"')?;
        let origin = Self::parse(origin)?;
        let rest = rest.strip_prefix(',')?;
        let (numbering, members) = match rest.strip_prefix(LOG) {
            None => (Numbering::None, rest),
            Some(rest) => {
                let (position, rest) = rest.strip_prefix('"')?.split_once('"')?;
                let numbering = match position {
                    "" => Numbering::Refused,
                    position => Numbering::Position(parse_position(position)?),
                };
                (numbering, rest.strip_prefix(',')?)
            }
        };
        (members != "}").then_some(Unwrapped { origin, numbering, members })
    }

    /// Takes a message apart that is kept in its log, and so has no place in it: its own members may look like one.
    pub(super) fn unwrap_kept(text: &str) -> Option<(Self, &str)> {
        let (origin, rest) = text.strip_prefix(OPENING)?.split_once('"')?;
        Some((Self::parse(origin)?, rest.strip_prefix(',')?))
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (instance, number) = text.split_at_checked(UUID_BYTES)?;
        let number = parse_number(number.strip_prefix(':')?)?;
        Some(Self { instance: parse_instance(instance)?, number })
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.instance, self.number)
    }
}

/// `<epoch>:<seq>`.
fn parse_position(text: &str) -> Option<Position> {
    let (epoch, seq) = text.rsplit_once(':')?;
    is_epoch(epoch).then_some(())?;
    let seq = parse_number(seq).filter(|seq| *seq <= MAX_SEQ)?;
    Some(Position { epoch: epoch.into(), seq })
}

/// Whether the broker may have given a log this epoch.
pub(super) fn is_epoch(text: &str) -> bool {
    (1..=MAX_EPOCH_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Only the form that [`Envelope::wrap`] writes: lower case, hyphens.
fn parse_instance(text: &str) -> Option<Uuid> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    Uuid::try_parse(text).ok()
}

/// Only the form that [`Envelope::wrap`] writes: digits, from 1, no leading zero.
fn parse_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if digits { text.parse().ok() } else { None }
}

/// The highest number seen of each of the last 1,024 origins.
#[derive(Debug, Default)]
pub(super) struct Seen {
    origins: HashMap<Uuid, Highest>,
    clock: u64,
}

#[derive(Debug)]
struct Highest {
    number: u64,
    used: u64,
}

impl Seen {
    /// Whether this message's number is above all that were seen of its instance. Remembers the number.
    pub(super) fn advance(&mut self, origin: Envelope) -> bool {
        self.clock += 1;
        if let Some(highest) = self.origins.get_mut(&origin.instance) {
            highest.used = self.clock;
            let new = origin.number > highest.number;
            highest.number = highest.number.max(origin.number);
            return new;
        }
        self.make_room();
        self.origins.insert(origin.instance, Highest { number: origin.number, used: self.clock });
        true
    }

    /// Forgets the instance that was silent for longest. Looking at all of them is cheap enough, since it
    /// happens only when an instance has started.
    fn make_room(&mut self) {
        if self.origins.len() < ORIGINS {
            return;
        }
        let oldest = self.origins.iter().min_by_key(|(_, h)| h.used).map(|(instance, _)| *instance);
        if let Some(instance) = oldest {
            self.origins.remove(&instance);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
