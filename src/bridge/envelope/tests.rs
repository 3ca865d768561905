//! Verifies that an envelope comes off as it was put on, and that nothing else is taken for one.

use super::*;
use proptest::prelude::*;

const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

fn origin(number: u64) -> Envelope {
    Envelope { instance: Uuid::try_parse(ID).unwrap(), number }
}

fn wrapped(origin: Envelope, members: &str) -> String {
    String::from_utf8(origin.wrap(members.as_bytes())).unwrap()
}

/// Origin, epoch and number, and members.
type Parts<'a> = (Envelope, Option<(String, u64)>, &'a str);

fn unwrapped(text: &str) -> Option<Parts<'_>> {
    let Unwrapped { origin, numbering, members } = Envelope::unwrap(text)?;
    let position = match numbering {
        Numbering::None => None,
        Numbering::Position(at) => Some((at.epoch.to_string(), at.seq)),
        Numbering::Refused => Some((String::new(), 0)),
    };
    Some((origin, position, members))
}

#[test]
fn the_member_goes_in_front_and_comes_off_again() {
    let wire = format!(r#"{{"origin":"{ID}:7","a":1}}"#);
    assert_eq!(wrapped(origin(7), r#""a":1}"#), wire);
    assert_eq!(unwrapped(&wire), Some((origin(7), None, r#""a":1}"#)));
    assert!(origin(u64::MAX).wrap(b"}").len() < ENVELOPE_BYTES);
}

#[test]
fn the_place_in_a_log_comes_off_too() {
    let wire = format!(r#"{{"origin":"{ID}:7","log":"a1-2:3","a":1}}"#);
    assert_eq!(unwrapped(&wire), Some((origin(7), Some(("a1-2".to_owned(), 3)), r#""a":1}"#)));
    let later = format!(r#"{{"origin":"{ID}:7","a":1,"log":"a:1"}}"#);
    assert_eq!(unwrapped(&later), Some((origin(7), None, r#""a":1,"log":"a:1"}"#)));
    let refused = String::from_utf8(origin(7).wrap_refused(br#""a":1}"#)).unwrap();
    assert_eq!(refused, format!(r#"{{"origin":"{ID}:7","log":"","a":1}}"#));
    assert_eq!(unwrapped(&refused), Some((origin(7), Some((String::new(), 0)), r#""a":1}"#)));
    let long = "x".repeat(65);
    for log in [
        "5",
        "\"a\"",
        "\":1\"",
        "\"a:\"",
        "\"a:0\"",
        "\"a:01\"",
        "\"a:-1\"",
        "\"a:b:1\"",
        "\"a b:1\"",
        "\"a:1\" ",
        "\"a:18446744073709551616\"",
        "\"a:1",
        "\"\\u0061:1\"",
        &format!("\"{long}:1\""),
    ] {
        let wire = format!(r#"{{"origin":"{ID}:7","log":{log},"a":1}}"#);
        assert_eq!(unwrapped(&wire), None, "{log}");
    }
    for end in ["", "}", ",}"] {
        assert_eq!(unwrapped(&format!(r#"{{"origin":"{ID}:7","log":"a:1"{end}"#)), None, "{end}");
    }
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
        format!(r#"{{"origin":"{ID}:1"}}"#),
        format!(r#"{{"origin":"{ID}:1"#),
        format!(r#"{{ "origin":"{ID}:1","a":1}}"#),
        format!(r#"{{"a":1,"origin":"{ID}:1"}}"#),
        format!(r#"{{"origin":"{}:1","a":1}}"#, ID.to_uppercase()),
        format!(r#"{{"origin":"{}:1","a":1}}"#, ID.replace('-', "0")),
        format!(r#"{{"origin":"{}é:1","a":1}}"#, &ID[..35]),
    ] {
        assert_eq!(Envelope::unwrap(&text), None, "{text}");
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
    let other = |n: usize| Envelope { instance: Uuid::from_u128(n as u128), number: 9 };
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
        instance: u128, number in 1_u64.., members in "\\PC{2,80}",
    ) {
        let origin = Envelope { instance: Uuid::from_u128(instance), number };
        let wire = wrapped(origin, &members);
        prop_assert_eq!(unwrapped(&wire), Some((origin, None, &*members)));
    }

    #[test]
    fn one_wrong_character_makes_it_foreign_or_another_origin(
        instance: u128, number in 1_u64.., at in 0..70_usize, wrong in any::<char>(),
    ) {
        let origin = Envelope { instance: Uuid::from_u128(instance), number };
        let wire = wrapped(origin, r#""a":1}"#);
        let changed: String =
            wire.chars().enumerate().map(|(i, c)| if i == at { wrong } else { c }).collect();
        if let Some((origin, position, members)) = unwrapped(&changed) {
            prop_assert_eq!(position, None);
            prop_assert_eq!(wrapped(origin, members), changed);
        }
    }

    #[test]
    fn no_text_panics(text in "(\\{\"origin\":\")?\\PC{0,60}") {
        let _ = Envelope::unwrap(&text);
    }
}
