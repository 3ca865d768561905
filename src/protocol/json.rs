//! Small pieces of JSON that several parsers share.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;

/// Parses a JSON object. A struct's derived `Deserialize` would accept an array too; this does not.
///
/// # Errors
/// When the text is no JSON object, or not one of this form.
pub fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(serde_json::Error::custom("expected a JSON object"));
    }
    serde_json::from_str(text)
}

/// The text of a JSON string; `None` when the value is something else, or holds half a surrogate pair.
pub fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if quoted.contains('\\') {
        serde_json::from_str(raw.get()).ok().map(Cow::Owned)
    } else {
        // Without an escape the text is what stands between the quotes.
        Some(Cow::Borrowed(quoted))
    }
}

/// This text as a JSON string, with its quotes.
pub fn quoted(text: &str) -> String {
    // A &str always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Pair<'a> {
        #[serde(borrow)]
        a: &'a RawValue,
    }

    #[test]
    fn only_an_object_is_parsed() {
        let pair: Pair<'_> = parse_object(" \n{\"a\": \"x\"}").unwrap();
        assert_eq!(string(pair.a).unwrap(), "x");
        for text in ["[\"x\"]", "", "5", "\u{c}{\"a\":1}", "{\"a\":1"] {
            assert!(parse_object::<Pair<'_>>(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_object::<Pair<'_>>("[1]").unwrap_err().to_string(),
            "expected a JSON object"
        );
    }

    #[test]
    fn a_string_is_unescaped_and_quoted() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        assert_eq!(string(&raw(r#""a\u002db""#)).unwrap(), "a-b");
        assert!(string(&raw(r#""\ud800""#)).is_none());
        assert!(string(&raw("5")).is_none());
        assert_eq!(quoted("say \"ä\"\n"), r#""say \"ä\"\n""#);
    }
}
