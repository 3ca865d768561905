//! What an id is, in tokens, notifications and the names of Redis channels alike.

use std::fmt;
use std::sync::Arc;

use log::kv::{ToValue, Value};
use serde_json::value::RawValue;

use super::json;
use crate::config::MAX_ID_BYTES;

/// The id of a user, seller or client: 1 to 128 visible ASCII characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Arc<str>);

impl Id {
    /// Checks the form.
    ///
    /// # Errors
    /// [`BadId`] when the text has another form.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        let is_visible = text.bytes().all(|b| b.is_ascii_graphic());
        if is_visible && (1..=MAX_ID_BYTES).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(BadId)
        }
    }

    /// Reads an id out of JSON: a string, or an integer of 64 bits, which counts as its decimal digits.
    ///
    /// # Errors
    /// [`BadId`] for any other value, a number with a fraction or an exponent included.
    pub fn from_json(raw: &RawValue) -> Result<Self, BadId> {
        if let Some(text) = json::string(raw) {
            return Self::parse(&text);
        }
        let number = raw.get();
        let signed = number.parse::<i64>().map(|n| n.to_string());
        let digits = signed.or_else(|_| number.parse::<u64>().map(|n| n.to_string()));
        digits.map(|digits| Self(digits.into())).map_err(|_| BadId)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<str> for Id {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for Id {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl ToValue for Id {
    fn to_value(&self) -> Value<'_> {
        Value::from(self.as_str())
    }
}

/// Not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to {MAX_ID_BYTES} visible ASCII characters")]
pub struct BadId;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<Id, BadId> {
        Id::from_json(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn an_id_is_visible_ascii() {
        for text in ["5", "a~!", "-", &"x".repeat(128)] {
            assert_eq!(Id::parse(text).unwrap(), text);
        }
        for text in ["", "a b", "a\n", "a\u{7f}", "josé", "\u{202e}", &"x".repeat(129)] {
            assert_eq!(Id::parse(text), Err(BadId), "{text}");
        }
    }

    #[test]
    fn a_json_integer_counts_as_its_digits() {
        for (text, id) in [
            ("5", "5"),
            ("-5", "-5"),
            ("-0", "0"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            (r#""\u0061""#, "a"),
        ] {
            assert_eq!(json(text).unwrap(), id);
        }
        for text in ["1.0", "1e3", "18446744073709551616", "true", "null", "[]", "{}", r#""ä""#] {
            assert_eq!(json(text), Err(BadId), "{text}");
        }
    }
}
