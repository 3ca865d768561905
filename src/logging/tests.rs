//! Verifies what a log line looks like, and that nothing a peer chose can break one.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use log::kv::ToValue;
use serde_json::Value as Json;

use super::*;

fn line(format: LogFormat, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
    let record = &mut Record::builder();
    record.level(Level::Info).target("realtime_service::gate");
    record.key_values(&pairs);
    Line::new(format, &record.args(format_args!("{message}")).build()).body
}

fn text(message: &str, pairs: &[(&str, Value<'_>)]) -> String {
    line(LogFormat::Text, message, pairs)
}

fn json(message: &str, pairs: &[(&str, Value<'_>)]) -> Json {
    let line = line(LogFormat::Json, message, pairs);
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Characters that break, hide or reorder what stands around them.
const HOSTILE: &[char] = &[
    '\0',
    '\n',
    '\r',
    '\t',
    '\x0b',
    '\x0c',
    '\x1b',
    '\x7f',
    '\u{85}',
    '\u{9b}',
    '\u{a0}',
    '\u{ad}',
    '\u{61c}',
    '\u{180e}',
    '\u{200b}',
    '\u{200d}',
    '\u{200e}',
    '\u{200f}',
    '\u{2028}',
    '\u{2029}',
    '\u{202a}',
    '\u{202e}',
    '\u{2060}',
    '\u{2066}',
    '\u{2069}',
    '\u{feff}',
    '\u{fff9}',
    '\u{e0001}',
    '\u{e0041}',
    '\u{301}',
];

#[test]
fn pairs_follow_the_message() {
    let pairs = [("conn", 42.to_value()), ("user", "u1".to_value())];
    assert_eq!(text("connected", &pairs), "connected conn=42 user=u1");
    let object = json("connected", &pairs);
    assert_eq!(object["msg"], "connected");
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["target"], "realtime_service::gate");
    assert_eq!(object["conn"], 42);
    assert_eq!(object["user"], "u1");
}

#[test]
fn values_keep_their_kind() {
    let pairs = [
        ("yes", true.to_value()),
        ("none", ().to_value()),
        ("ratio", 0.5.to_value()),
        ("nan", f64::NAN.to_value()),
        ("minus", (-7).to_value()),
        ("wide", u128::MAX.to_value()),
        ("letter", 'é'.to_value()),
    ];
    assert_eq!(
        text("m", &pairs),
        "m yes=true none=null ratio=0.5 nan=NaN minus=-7 \
         wide=340282366920938463463374607431768211455 letter=é"
    );
    let object = json("m", &pairs);
    assert_eq!(object["yes"], true);
    assert_eq!(object["none"], Json::Null);
    assert_eq!(object["ratio"], 0.5);
    assert_eq!(object["nan"], "NaN");
    assert_eq!(object["minus"], -7);
    assert_eq!(object["letter"], "é");
}

#[test]
fn a_value_cannot_look_like_another_pair() {
    let said = |value: &str| text("m", &[("user", value.to_value())]);
    assert_eq!(said("u1 role=admin"), r#"m user="u1 role=admin""#);
    assert_eq!(said("a=b"), r#"m user="a=b""#);
    assert_eq!(said(r#"" role="admin"#), r#"m user="\" role=\"admin""#);
    assert_eq!(said("\\"), r#"m user="\\""#);
    assert_eq!(said(""), r#"m user="""#);
    assert_eq!(said("o'neil"), "m user=o'neil");
    assert_eq!(said("Ana·Pérez"), "m user=Ana·Pérez");
}

#[test]
fn nothing_breaks_or_hides_in_a_line() {
    for &c in HOSTILE {
        let value = format!("a{c}b");
        for format in [LogFormat::Text, LogFormat::Json] {
            for line in [
                line(format, &value, &[]),
                line(format, "m", &[("user", value.as_str().to_value())]),
                line(format, "m", &[(value.as_str(), 1.to_value())]),
            ] {
                assert!(!line.contains(c), "{c:?} in {line:?}");
            }
        }
        assert_eq!(json(&value, &[])["msg"], value.as_str());
    }
}

#[test]
fn a_long_line_is_cut_and_stays_whole() {
    let long = "\u{1f600}\u{202e}\"".repeat(2_000_000);
    let pairs = [("user", long.as_str().to_value()), ("conn", 42.to_value())];
    let texts = [text(&long, &pairs), text("m", &pairs)];
    for line in texts {
        assert!(line.len() < LINE_BYTES + 64 && line.ends_with('…'));
    }
    for message in [long.as_str(), "m"] {
        assert!(line(LogFormat::Json, message, &pairs).len() < LINE_BYTES + 64);
        assert_eq!(json(message, &pairs)["cut"], true);
    }
    let fits = "x".repeat(LINE_BYTES);
    assert_eq!(text(&fits, &[]), fits);
}

#[test]
fn a_huge_message_is_not_formatted_whole() {
    let huge = "é".repeat(1 << 20);
    assert!(bounded_text(&format_args!("{huge}{huge}")).capacity() < 4 * LINE_BYTES);
}

#[test]
fn other_crates_speak_from_warn_up() {
    let backend = Backend { entries: bounded(0).0, format: LogFormat::Text };
    let passes =
        |level, target| backend.enabled(&Metadata::builder().level(level).target(target).build());
    assert!(passes(Level::Debug, "realtime_service"));
    assert!(passes(Level::Debug, "realtime_service::gate"));
    assert!(passes(Level::Warn, "tiny_http"));
    assert!(!passes(Level::Info, "tiny_http"));
    assert!(!passes(Level::Info, "realtime_service_of_another"));
}
