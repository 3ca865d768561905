//! Where a client is in a log: what it has of the past of a room, or of its own notifications.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{parse_object, string};
use crate::config::MAX_EPOCH_BYTES;

/// A place in a log, as clients are told it and bring it back: `{"epoch":"…","seq":41}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Names one unbroken life of the numbers; compared, never ordered.
    pub epoch: Arc<str>,
    /// Number of the last message that the client has; 0 when it has none.
    pub seq: u64,
}

/// The value has another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPosition;

#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    epoch: &'a RawValue,
    seq: u64,
}

impl Position {
    /// Reads a position out of JSON: an `epoch` of 1 to 64 bytes and a `seq` that is a whole number. Other
    /// members are ignored.
    ///
    /// # Errors
    /// [`BadPosition`] when the value has another form.
    pub fn from_json(raw: &RawValue) -> Result<Self, BadPosition> {
        let members: Members<'_> = parse_object(raw.get()).map_err(|_| BadPosition)?;
        let epoch = string(members.epoch).ok_or(BadPosition)?;
        if !(1..=MAX_EPOCH_BYTES).contains(&epoch.len()) {
            return Err(BadPosition);
        }
        Ok(Self { epoch: epoch.into(), seq: members.seq })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Position, BadPosition> {
        Position::from_json(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn a_position_has_an_epoch_and_a_whole_number() {
        let expected = Position { epoch: "a-1".into(), seq: 41 };
        for json in [r#"{"epoch":"a-1","seq":41}"#, r#"{"seq":41,"more":[1],"epoch":"a\u002d1"}"#] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
        assert_eq!(read(r#"{"epoch":"a","seq":18446744073709551615}"#).unwrap().seq, u64::MAX);
        let long = format!(r#"{{"epoch":"{}","seq":1}}"#, "x".repeat(65));
        for json in [
            "5",
            "\"a-1\"",
            "[\"a-1\",41]",
            "{}",
            r#"{"epoch":"a"}"#,
            r#"{"seq":1}"#,
            r#"{"epoch":"","seq":1}"#,
            r#"{"epoch":5,"seq":1}"#,
            r#"{"epoch":null,"seq":1}"#,
            r#"{"epoch":"a","seq":-1}"#,
            r#"{"epoch":"a","seq":1.0}"#,
            r#"{"epoch":"a","seq":"1"}"#,
            r#"{"epoch":"a","seq":null}"#,
            r#"{"epoch":"a","seq":18446744073709551616}"#,
            r#"{"epoch":"a","epoch":"a","seq":1}"#,
            &long,
        ] {
            assert_eq!(read(json), Err(BadPosition), "{json}");
        }
    }
}
