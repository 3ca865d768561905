//! The backend of the `log` macros: a bounded channel to one thread, which prints lines of text through
//! simple_logger, or one JSON object per line.
//!
//! Logging never blocks, and never panics, the thread that logs: a line that finds the channel full, or
//! stdout closed, is dropped and counted, and once lines get through again one says how many were lost.
//!
//! What a peer chose belongs in a key-value, not in the message:
//! `info!(conn = 42, user = id; "connected")` prints `connected conn=42 user=u1`. Message, keys and values
//! are escaped here, in one place: no control, invisible or bidirectional character reaches a line, and
//! a value of the text format that is not one plain word is quoted, so that it cannot look like another
//! pair. Keys of the JSON format stand beside `ts`, `level`, `target`, `msg` and `cut`; do not reuse those.

use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use simple_logger::SimpleLogger;
use time::OffsetDateTime;

/// Lines that wait for the thread. With [`LINE_BYTES`] it bounds the memory of a stalled stdout: 16 MiB.
const QUEUE_LINES: usize = 4096;

/// Bytes of message and key-values after which a line is cut; what closes it comes on top.
const LINE_BYTES: usize = 4096;

/// Name of the thread; its panics are println!'s complaint about a closed stdout, and are not reported.
const THREAD_NAME: &str = "log";

/// Age from which a line of text says when it was logged, since simple_logger stamps what it prints.
const LATE: Duration = Duration::from_secs(1);

/// How long a stdout that failed is left alone: a panic of println! for each line would cost much more
/// than the lines are worth, and delay the end of the process.
const RETRY: Duration = Duration::from_millis(100);

/// How long a [`Printer`] that is dropped rather than flushed waits for the lines.
const DROP_DEADLINE: Duration = Duration::from_millis(500);

/// Where records of this crate come from; those of others pass only from [`Level::Warn`] up, since their
/// chatter is of no use here and might carry what must not be logged.
const OWN_TARGET: &str = env!("CARGO_CRATE_NAME");

static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `2026-01-02T03:04:05.678Z INFO  [realtime_service::gate] connected conn=42 user=u1`
    #[default]
    Text,
    /// `{"ts":"2026-01-02T03:04:05.678Z","level":"INFO","target":"realtime_service::gate","msg":"connected","conn":42,"user":"u1"}`
    Json,
}

/// Why logging could not be set up.
#[derive(Debug)]
pub enum InitError {
    /// The system has no thread left.
    Spawn(io::Error),
    /// The process has a logger already.
    Taken(SetLoggerError),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(error) => write!(f, "cannot start the thread that prints the log: {error}"),
            Self::Taken(error) => write!(f, "cannot set up logging twice: {error}"),
        }
    }
}

impl std::error::Error for InitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn(error) => Some(error),
            Self::Taken(error) => Some(error),
        }
    }
}

/// Owner of the thread that prints. Dropping it lets queued lines out for at most 500 ms.
#[derive(Debug)]
#[must_use = "dropping it ends logging"]
pub struct Printer {
    entries: Sender<Entry>,
    /// Disconnected when the thread has ended, which a `JoinHandle` does not tell with a deadline.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

/// Routes the `log` macros, from `level` up, and panics of all threads to stdout in `format`.
///
/// # Errors
///
/// When the thread cannot be started, or the process has a logger already.
pub fn init(level: LevelFilter, format: Format) -> Result<Printer, InitError> {
    let (entries, waiting) = bounded(QUEUE_LINES);
    let (alive, ended) = bounded(0);
    let thread = thread::Builder::new()
        .name(THREAD_NAME.to_owned())
        .spawn(move || {
            Stdout::new(format).print_all(&waiting);
            drop::<Sender<Infallible>>(alive);
        })
        .map_err(InitError::Spawn)?;
    let backend = Backend { entries: entries.clone(), format };
    log::set_boxed_logger(Box::new(backend)).map_err(InitError::Taken)?;
    log::set_max_level(level);
    panic::set_hook(Box::new(log_panic));
    Ok(Printer { entries, ended, thread: Some(thread) })
}

/// Lines lost since the process started: to a full channel, or to a stdout that took nothing.
pub fn dropped_lines() -> u64 {
    DROPPED_LINES.load(Ordering::Relaxed)
}

impl Printer {
    /// Prints what is queued and ends the thread; what is logged later is dropped. Returns whether that
    /// was done within `deadline`; if not, the thread is left to the end of the process.
    pub fn flush(mut self, deadline: Duration) -> bool {
        self.stop(deadline)
    }

    fn stop(&mut self, deadline: Duration) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        let start = Instant::now();
        if self.entries.send_timeout(Entry::Stop, deadline).is_err() {
            return false;
        }
        let left = deadline.saturating_sub(start.elapsed());
        match self.ended.recv_timeout(left) {
            Err(RecvTimeoutError::Disconnected) => thread.join().is_ok(),
            Err(RecvTimeoutError::Timeout) => false,
            Ok(never) => match never {},
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.stop(DROP_DEADLINE);
    }
}

/// What travels to the thread.
#[derive(Debug)]
enum Entry {
    /// Boxed, since the channel allocates all its places at once.
    Line(Box<Line>),
    Stop,
}

/// A record, escaped and bounded.
#[derive(Debug)]
struct Line {
    level: Level,
    target: String,
    at: OffsetDateTime,
    /// Message and pairs, or the whole JSON object.
    body: String,
}

impl Line {
    fn new(format: Format, record: &Record<'_>) -> Self {
        let at = OffsetDateTime::now_utc();
        let target = Draft::word(record.target());
        let body = match format {
            Format::Text => Draft::text(record),
            Format::Json => Draft::json(record, at),
        };
        Self { level: record.level(), target, at, body }
    }
}

/// The [`Log`] that the macros call.
struct Backend {
    entries: Sender<Entry>,
    format: Format,
}

impl Log for Backend {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || is_own(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = Box::new(Line::new(self.format, record));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.entries.try_send(Entry::Line(line))
        {
            count_dropped();
        }
    }

    /// Does nothing: it would have to block. [`Printer::flush`] lets the lines out.
    fn flush(&self) {}
}

fn is_own(target: &str) -> bool {
    target.strip_prefix(OWN_TARGET).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn count_dropped() {
    DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
}

/// The thread's side: prints, and tells what could not be printed.
struct Stdout {
    format: Format,
    simple: SimpleLogger,
    /// How many of [`DROPPED_LINES`] have been told.
    told: u64,
    /// Lines printed since the drops were last looked at.
    since: usize,
    /// When stdout last refused a line.
    failed: Option<Instant>,
}

impl Stdout {
    fn new(format: Format) -> Self {
        Self { format, simple: SimpleLogger::new(), told: 0, since: 0, failed: None }
    }

    fn print_all(mut self, waiting: &Receiver<Entry>) {
        while let Ok(Entry::Line(line)) = waiting.recv() {
            if self.is_resting() || !self.print(&line) {
                count_dropped();
                continue;
            }
            self.since += 1;
            // The queued lines are older than the dropped ones, so the notice goes behind them; under
            // a load that never lets the queue run dry, behind as many as it holds.
            if waiting.is_empty() || self.since >= QUEUE_LINES {
                self.tell_drops();
            }
        }
        self.tell_drops();
    }

    fn is_resting(&self) -> bool {
        self.failed.is_some_and(|failed| failed.elapsed() < RETRY)
    }

    fn tell_drops(&mut self) {
        self.since = 0;
        let dropped = dropped_lines();
        if dropped == self.told {
            return;
        }
        let pairs = [("lines", dropped.saturating_sub(self.told))];
        let notice = Line::new(
            self.format,
            &Record::builder()
                .level(Level::Warn)
                .target(module_path!())
                .args(format_args!("log lines dropped"))
                .key_values(&pairs)
                .build(),
        );
        if self.print(&notice) {
            self.told = dropped;
        }
    }

    /// Returns whether stdout took the line. Waits while it is stalled.
    fn print(&mut self, line: &Line) -> bool {
        let printed = match self.format {
            Format::Text => self.print_text(line),
            Format::Json => print_json(line),
        };
        self.failed = (!printed).then(Instant::now);
        printed
    }

    fn print_text(&self, line: &Line) -> bool {
        let late = if OffsetDateTime::now_utc() - line.at >= LATE {
            format!(" logged_at={}", timestamp(line.at))
        } else {
            String::new()
        };
        // println! panics when stdout is closed or its disk is full. The hook is silent about it.
        panic::catch_unwind(AssertUnwindSafe(|| {
            self.simple.log(
                &Record::builder()
                    .level(line.level)
                    .target(&line.target)
                    .args(format_args!("{}{late}", line.body))
                    .build(),
            );
        }))
        .is_ok()
    }
}

fn print_json(line: &Line) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.body.as_bytes()).and_then(|()| stdout.write_all(b"\n")).is_ok()
}

/// Logs a panic as one line, instead of the default hook's several on stderr.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let current = thread::current();
    let thread = current.name().unwrap_or("unnamed");
    if thread == THREAD_NAME {
        return;
    }
    let payload = panic.payload();
    let said = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    log::error!(
        target: module_path!(),
        thread = thread, location = location.as_deref().unwrap_or("unknown");
        "panicked: {said}"
    );
}

/// A line in the making.
struct Draft {
    format: Format,
    body: String,
    cut: bool,
}

impl Draft {
    fn new(format: Format) -> Self {
        Self { format, body: String::with_capacity(128), cut: false }
    }

    /// `word`, escaped as a message of the text format is.
    fn word(word: &str) -> String {
        let mut draft = Self::new(Format::Text);
        draft.escape(word, false);
        draft.body
    }

    fn text(record: &Record<'_>) -> String {
        let mut draft = Self::new(Format::Text);
        draft.escape(&bounded_text(record.args()), false);
        draft.pairs(record);
        if draft.cut {
            draft.body.push('…');
        }
        draft.body
    }

    fn json(record: &Record<'_>, at: OffsetDateTime) -> String {
        let mut draft = Self::new(Format::Json);
        draft.body.push_str(r#"{"ts":""#);
        draft.body.push_str(&timestamp(at));
        draft.body.push_str(r#"","level":""#);
        draft.body.push_str(record.level().as_str());
        draft.body.push_str(r#"","target":"#);
        draft.string(record.target());
        draft.body.push_str(r#","msg":"#);
        draft.string(&bounded_text(record.args()));
        draft.pairs(record);
        if draft.cut {
            draft.body.push_str(r#","cut":true"#);
        }
        draft.body.push('}');
        draft.body
    }

    fn pairs(&mut self, record: &Record<'_>) {
        // Fails only where a value's own formatting does; the pairs before it stand.
        let _ = record.key_values().visit(self);
    }

    /// A string value: quoted in JSON, and in text where it is not one plain word.
    fn string(&mut self, value: &str) {
        let quoted = self.format == Format::Json || !is_plain_word(value);
        if quoted {
            self.body.push('"');
        }
        self.escape(value, quoted);
        if quoted {
            self.body.push('"');
        }
    }

    /// A value that is the same in both formats and needs no escaping: a number, `true`, `null`.
    fn literal(&mut self, value: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.body.write_fmt(value);
    }

    fn escape(&mut self, value: &str, quoted: bool) {
        for c in value.chars() {
            if self.body.len() >= LINE_BYTES {
                self.cut = true;
                return;
            }
            match self.format {
                Format::Text => escape_text(&mut self.body, c, quoted),
                Format::Json => escape_json(&mut self.body, c),
            }
        }
    }
}

impl<'kvs> VisitSource<'kvs> for Draft {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        if self.cut {
            return Ok(());
        }
        self.body.push(match self.format {
            Format::Text => ' ',
            Format::Json => ',',
        });
        self.string(key.as_str());
        self.body.push(match self.format {
            Format::Text => '=',
            Format::Json => ':',
        });
        value.visit(self)
    }
}

impl<'v> VisitValue<'v> for Draft {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.string(&bounded_text(&format_args!("{value}")));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.literal(format_args!("null"));
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.literal(format_args!("{value}"));
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.literal(format_args!("{value}"));
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() {
            self.literal(format_args!("{value}"));
        } else {
            // JSON has no number for these.
            self.string(&value.to_string());
        }
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.literal(format_args!("{value}"));
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.string(value);
        Ok(())
    }
}

/// Whether a value of the text format may stand without quotes.
fn is_plain_word(value: &str) -> bool {
    !value.is_empty()
        && value.chars().all(|c| is_visible(c) && !matches!(c, ' ' | '"' | '=' | '\\'))
}

/// Whether `c` shows, as itself, where it stands: std's table of what `{:?}` prints unchanged, which
/// leaves out controls, format and bidirectional characters, odd spaces and combining marks.
fn is_visible(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

fn escape_text(body: &mut String, c: char, quoted: bool) {
    match c {
        '\'' => body.push(c),
        '"' if !quoted => body.push(c),
        _ => body.extend(c.escape_debug()),
    }
}

fn escape_json(body: &mut String, c: char) {
    match c {
        '"' | '\\' => body.extend(['\\', c]),
        '\n' => body.push_str("\\n"),
        _ if is_visible(c) => body.push(c),
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(body, "\\u{unit:04x}");
            }
        }
    }
}

/// Formats no more of `value` than a line can hold, plus one character, by which the line knows it was cut.
fn bounded_text(value: &fmt::Arguments<'_>) -> String {
    let mut text = Bounded(String::new());
    // An error is the bound's, or the value's own; what there is until then is printed.
    let _ = text.write_fmt(*value);
    text.0
}

struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        for c in piece.chars() {
            if self.0.len() > LINE_BYTES {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

/// RFC 3339 in UTC with milliseconds, as simple_logger prints it.
fn timestamp(at: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

    use log::kv::ToValue;
    use serde_json::Value as Json;

    use super::*;

    fn line(format: Format, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        let record = &mut Record::builder();
        record.level(Level::Info).target("realtime_service::gate");
        record.key_values(&pairs);
        Line::new(format, &record.args(format_args!("{message}")).build()).body
    }

    fn text(message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        line(Format::Text, message, pairs)
    }

    fn json(message: &str, pairs: &[(&str, Value<'_>)]) -> Json {
        let line = line(Format::Json, message, pairs);
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
            for format in [Format::Text, Format::Json] {
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
            assert!(line(Format::Json, message, &pairs).len() < LINE_BYTES + 64);
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
        let backend = Backend { entries: bounded(0).0, format: Format::Text };
        let passes = |level, target| {
            backend.enabled(&Metadata::builder().level(level).target(target).build())
        };
        assert!(passes(Level::Debug, "realtime_service"));
        assert!(passes(Level::Debug, "realtime_service::gate"));
        assert!(passes(Level::Warn, "tiny_http"));
        assert!(!passes(Level::Info, "tiny_http"));
        assert!(!passes(Level::Info, "realtime_service_of_another"));
    }

    #[test]
    fn timestamps_have_milliseconds() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_767_323_045_070_000_000).unwrap();
        assert_eq!(timestamp(at), "2026-01-02T03:04:05.070Z");
    }
}
