//! The leading member by which an instance knows its own messages and repeated ones.
//!
//! What is published is the client-visible JSON object with one member put in front,
//! `{"origin":"<uuid>:<n>",…}`. It is found and taken off by position: nothing is parsed.

use std::collections::HashMap;

use uuid::Uuid;

const OPENING: &str = r#"{"origin":""#;
/// Length of a UUID in its hyphenated form.
const UUID_BYTES: usize = 36;
/// Origins that are remembered; an instance restarts with a new one.
const ORIGINS: usize = 1024;
/// Bytes that an envelope may add to a message; it adds at most 69.
pub(super) const ENVELOPE_BYTES: usize = 1024;

/// Who publishes, and the number of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Random at each start of an instance.
    pub(super) instance: Uuid,
    /// Rises with every message, from 1.
    pub(super) number: u64,
}

impl Origin {
    /// Puts the leading member before a payload; `None` when that is not a JSON object.
    pub(super) fn wrap(self, payload: &[u8]) -> Option<Vec<u8>> {
        let members = payload.strip_prefix(b"{")?;
        let comma = if members == b"}" { "" } else { "," };
        let head = format!("{OPENING}{}:{}\"{comma}", self.instance, self.number);
        let mut out = Vec::with_capacity(head.len() + members.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(members);
        Some(out)
    }

    /// Takes the leading member off: the origin, and what followed it, without the `{`. `None` when
    /// the text does not begin with exactly that form, and so is foreign.
    pub(super) fn unwrap(text: &str) -> Option<(Self, &str)> {
        let (instance, rest) = text.strip_prefix(OPENING)?.split_at_checked(UUID_BYTES)?;
        let (number, rest) = rest.strip_prefix(':')?.split_once('"')?;
        let origin = Self { instance: parse_instance(instance)?, number: parse_number(number)? };
        let members = match rest.strip_prefix(',') {
            Some(members) if members != "}" => members,
            None if rest == "}" => rest,
            _ => return None,
        };
        Some((origin, members))
    }
}

/// Only the form that [`Origin::wrap`] writes: lower case, hyphens.
fn parse_instance(text: &str) -> Option<Uuid> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    Uuid::try_parse(text).ok()
}

/// Only the form that [`Origin::wrap`] writes: digits, from 1, no leading zero.
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
    /// Whether this message is above all that were seen of its origin; from now on it is seen.
    pub(super) fn advance(&mut self, origin: Origin) -> bool {
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

    /// Forgets the origin that was silent for longest. A walk over all is cheap enough for what
    /// happens once per restart of an instance.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn origin(number: u64) -> Origin {
        Origin { instance: Uuid::try_parse(ID).unwrap(), number }
    }

    fn unwrapped(text: &str) -> Option<(Origin, String)> {
        Origin::unwrap(text).map(|(origin, members)| (origin, format!("{{{members}")))
    }

    #[test]
    fn the_member_goes_in_front_and_comes_off_again() {
        for (payload, wire) in [
            (r#"{"a":1}"#, format!(r#"{{"origin":"{ID}:7","a":1}}"#)),
            ("{}", format!(r#"{{"origin":"{ID}:7"}}"#)),
        ] {
            assert_eq!(origin(7).wrap(payload.as_bytes()).unwrap(), wire.as_bytes());
            assert_eq!(unwrapped(&wire), Some((origin(7), payload.to_owned())));
        }
        assert_eq!(origin(1).wrap(b"[]"), None);
        assert_eq!(origin(1).wrap(b""), None);
        let longest = origin(u64::MAX).wrap(b"{}").unwrap().len();
        assert!(longest < ENVELOPE_BYTES);
    }

    #[test]
    fn other_forms_are_foreign() {
        for text in [
            "".to_owned(),
            "{}".to_owned(),
            r#"{"origin":"shop","a":1}"#.to_owned(),
            r#"{"origin":"#.to_owned(),
            r#"{"origin":{"a":1}}"#.to_owned(),
            format!(r#"{{"origin":"{ID}","a":1}}"#),
            format!(r#"{{"origin":"{ID}:","a":1}}"#),
            format!(r#"{{"origin":"{ID}:0","a":1}}"#),
            format!(r#"{{"origin":"{ID}:01","a":1}}"#),
            format!(r#"{{"origin":"{ID}:+1","a":1}}"#),
            format!(r#"{{"origin":"{ID}:-1","a":1}}"#),
            format!(r#"{{"origin":"{ID}:18446744073709551616","a":1}}"#),
            format!(r#"{{"origin":"{ID}:1" ,"a":1}}"#),
            format!(r#"{{"origin":"{ID}:1"}} "#),
            format!(r#"{{"origin":"{ID}:1",}}"#),
            format!(r#"{{"origin":"{ID}:1"#),
            format!(r#"{{ "origin":"{ID}:1","a":1}}"#),
            format!(r#"{{"a":1,"origin":"{ID}:1"}}"#),
            format!(r#"{{"origin":"{}:1","a":1}}"#, ID.to_uppercase()),
            format!(r#"{{"origin":"{}:1","a":1}}"#, ID.replace('-', "0")),
            format!(r#"{{"origin":"{}é:1","a":1}}"#, &ID[..35]),
        ] {
            assert_eq!(unwrapped(&text), None, "{text}");
        }
    }

    #[test]
    fn only_higher_numbers_are_new() {
        let mut seen = Seen::default();
        let numbers = [1, 2, 2, 1, 5, 4, 6].map(|n| seen.advance(origin(n)));
        assert_eq!(numbers, [true, true, false, false, true, false, true]);
    }

    #[test]
    fn the_origin_silent_for_longest_is_forgotten_first() {
        let mut seen = Seen::default();
        let other = |n: usize| Origin { instance: Uuid::from_u128(n as u128), number: 9 };
        assert!(seen.advance(origin(5)));
        for n in 1..ORIGINS {
            assert!(seen.advance(other(n)));
        }
        assert!(!seen.advance(origin(5)));
        assert!(seen.advance(other(ORIGINS)));
        assert_eq!(seen.origins.len(), ORIGINS);
        assert!(!seen.advance(origin(5)), "it spoke lately");
        assert!(seen.advance(other(1)), "it was forgotten");
    }

    proptest! {
        #[test]
        fn taking_off_is_the_inverse_of_putting_on(
            instance: u128, number in 1_u64.., members in "\\PC{0,80}",
        ) {
            let origin = Origin { instance: Uuid::from_u128(instance), number };
            let payload = format!("{{{members}");
            let wire = String::from_utf8(origin.wrap(payload.as_bytes()).unwrap()).unwrap();
            prop_assert_eq!(unwrapped(&wire), Some((origin, payload)));
        }

        #[test]
        fn one_wrong_character_makes_it_foreign_or_another_origin(
            instance: u128, number in 1_u64.., at in 0..70_usize, wrong in any::<char>(),
        ) {
            let origin = Origin { instance: Uuid::from_u128(instance), number };
            let wire = String::from_utf8(origin.wrap(br#"{"a":1}"#).unwrap()).unwrap();
            let changed: String =
                wire.chars().enumerate().map(|(i, c)| if i == at { wrong } else { c }).collect();
            if let Some((origin, payload)) = unwrapped(&changed) {
                prop_assert_eq!(origin.wrap(payload.as_bytes()).unwrap(), changed.into_bytes());
            }
        }

        #[test]
        fn no_text_panics(text in "(\\{\"origin\":\")?\\PC{0,60}") {
            let _ = Origin::unwrap(&text);
        }
    }
}
