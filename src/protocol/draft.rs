//! A message on its way to the hub: a text frame that has no head yet, since the hub writes its number there.

use bytes::Bytes;

use super::delivery::Target;
use super::frame::{MAX_HEADER_BYTES, OPCODE_TEXT, header};

/// Bytes kept free in front for the head: a frame's header, `{"user_seq":`, twenty digits and a comma.
const HEADROOM: usize = MAX_HEADER_BYTES + 12 + 20 + 1;

/// Which member a frame begins with, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// `"seq"`: the number in a room.
    Room(u64),
    /// `"user_seq"`: the number in a user's own notifications.
    User(u64),
}

impl Number {
    /// The number of a message in this target's log.
    pub fn of(target: &Target, seq: u64) -> Self {
        if matches!(target, Target::User(_)) { Self::User(seq) } else { Self::Room(seq) }
    }
}

/// A text message, built once by whoever publishes it, that still lacks its head. The hub completes it in
/// place: nothing is copied or allocated.
#[derive(Debug, Clone)]
pub struct Draft {
    /// [`HEADROOM`], then the text; of an object, without its opening brace.
    bytes: Vec<u8>,
    is_object: bool,
}

/// A draft with its head: one unmasked text frame.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// The frame, for connections.
    pub frame: Bytes,
    members_at: usize,
}

impl Draft {
    /// A JSON object, of which these are the members and the closing brace, one after the other. It has at
    /// least one member.
    pub fn object(members: &[&[u8]]) -> Self {
        Self::new(members, true)
    }

    /// Any text, which is sent as it is and takes no number.
    pub fn text(text: &str) -> Self {
        Self::new(&[text.as_bytes()], false)
    }

    fn new(parts: &[&[u8]], is_object: bool) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(HEADROOM + length);
        bytes.resize(HEADROOM, 0);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Self { bytes, is_object }
    }

    /// Bytes of the text, without a number.
    pub fn len(&self) -> usize {
        self.bytes.len() - HEADROOM + usize::from(self.is_object)
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is an object, which can begin with a number.
    pub fn takes_number(&self) -> bool {
        self.is_object
    }

    /// The members of the object and its closing brace: what the broker numbers. Nothing is copied.
    pub fn into_members(self) -> Bytes {
        Bytes::from(self.bytes).slice(HEADROOM..)
    }

    /// Writes the head.
    pub fn complete(self, number: Option<Number>) -> Numbered {
        let Self { mut bytes, is_object } = self;
        let mut digits = itoa::Buffer::new();
        let opening = match number.filter(|_| is_object) {
            None => [if is_object { "{" } else { "" }, "", ""],
            Some(Number::Room(seq)) => [r#"{"seq":"#, digits.format(seq), ","],
            Some(Number::User(seq)) => [r#"{"user_seq":"#, digits.format(seq), ","],
        };
        let opening_length: usize = opening.iter().map(|part| part.len()).sum();
        let header = header(OPCODE_TEXT, bytes.len() - HEADROOM + opening_length);
        let header = header.as_slice();
        let members_at = header.len() + opening_length;
        let start = HEADROOM - members_at;
        let mut at = start;
        for part in [header, opening[0].as_bytes(), opening[1].as_bytes(), opening[2].as_bytes()] {
            if let Some(place) = bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
            at += part.len();
        }
        Numbered { frame: Bytes::from(bytes).slice(start..), members_at }
    }
}

impl Numbered {
    /// The members of the object and its closing brace, without its number: what other instances get. Nothing is
    /// copied.
    pub fn members(&self) -> Bytes {
        self.frame.slice(self.members_at.min(self.frame.len())..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{frame_payload, text_frame};

    fn payload(draft: Draft, number: Option<Number>) -> (Bytes, Bytes) {
        let numbered = draft.complete(number);
        assert_eq!(numbered.frame.first(), Some(&0x81));
        (frame_payload(&numbered.frame), numbered.members())
    }

    #[test]
    fn a_number_comes_first_and_the_rest_is_as_it_was() {
        let draft = Draft::object(&[br#""a":"#, b"1}"]);
        assert_eq!(draft.len(), 7);
        for (number, text) in [
            (None, r#"{"a":1}"#.to_owned()),
            (Some(Number::Room(42)), r#"{"seq":42,"a":1}"#.to_owned()),
            (Some(Number::User(u64::MAX)), format!(r#"{{"user_seq":{},"a":1}}"#, u64::MAX)),
        ] {
            let (payload, members) = payload(draft.clone(), number);
            assert_eq!((&payload[..], &members[..]), (text.as_bytes(), &br#""a":1}"#[..]));
        }
    }

    #[test]
    fn a_text_takes_no_number_and_every_length_has_its_header() {
        let (text, _) = payload(Draft::text("[1]"), Some(Number::Room(1)));
        assert_eq!(text, "[1]");
        for length in [0, 100, 125, 126, 65_535, 65_536, 70_000] {
            let text = "x".repeat(length);
            assert_eq!(Draft::text(&text).complete(None).frame, text_frame(&text));
            let members = format!("\"a\":\"{text}\"}}");
            let (numbered, _) =
                payload(Draft::object(&[members.as_bytes()]), Some(Number::User(u64::MAX)));
            assert_eq!(numbered.len(), members.len() + 12 + 20 + 1);
        }
    }
}
