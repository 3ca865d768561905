//! The backend of the `log` macros: a bounded channel to one thread, which prints lines of text through
//! simple_logger, or one JSON object per line.
//!
//! A thread that logs is never blocked and never panics. When the channel is full or stdout is closed, the
//! line is dropped and counted; when lines can be printed again, one says how many were lost.
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

use crate::config::LogFormat;
use crate::runtime::clock::Timestamp;

/// Most lines that wait for the thread. With [`LINE_BYTES`], a stalled stdout costs at most 16 MiB.
const QUEUE_LINES: usize = 4096;

/// A line is cut after so many bytes of message and key-values; only the closing characters follow.
const LINE_BYTES: usize = 4096;

/// Name of the thread. When it panics, println! found stdout closed; such panics are not reported.
const THREAD_NAME: &str = "log";

/// simple_logger writes the time of printing. A line that waited this long also says when it was logged.
const LATE: Duration = Duration::from_secs(1);

/// After stdout failed, how long nothing is printed. Each attempt is a panic of println!, which is costly and
/// would delay the end of the process.
const RETRY: Duration = Duration::from_millis(100);

/// How long the drop of a [`Printer`] waits for queued lines.
const DROP_DEADLINE: Duration = Duration::from_millis(500);

/// The log target of this crate. Other crates are only heard from [`Level::Warn`] up: their lower levels are
/// of no use here, and might contain secrets.
const OWN_TARGET: &str = env!("CARGO_CRATE_NAME");

static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The system has no thread left.
    #[error("cannot start the thread that prints the log: {0}")]
    Spawn(#[source] io::Error),
    /// The process has a logger already.
    #[error("cannot set up logging twice: {0}")]
    Taken(#[source] SetLoggerError),
}

/// Owns the thread that prints. Its drop waits up to 500 ms for queued lines.
#[derive(Debug)]
#[must_use = "dropping it ends logging"]
pub struct Printer {
    entries: Sender<Entry>,
    /// Disconnected when the thread has ended. A `JoinHandle` cannot be waited for with a deadline.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

/// Routes the `log` macros, from `level` up, and panics of all threads to stdout in `format`.
///
/// # Errors
///
/// When the thread cannot be started, or the process has a logger already.
pub fn init(level: LevelFilter, format: LogFormat) -> Result<Printer, InitError> {
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
    /// Boxed, since the channel allocates memory for all its entries at once.
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
    fn new(format: LogFormat, record: &Record<'_>) -> Self {
        let at = OffsetDateTime::now_utc();
        let target = Draft::word(record.target());
        let body = match format {
            LogFormat::Text => Draft::text(record),
            LogFormat::Json => Draft::json(record, at),
        };
        Self { level: record.level(), target, at, body }
    }
}

/// The [`Log`] that the macros call.
struct Backend {
    entries: Sender<Entry>,
    format: LogFormat,
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

    /// Does nothing, since it would have to block; use [`Printer::flush`].
    fn flush(&self) {}
}

fn is_own(target: &str) -> bool {
    target.strip_prefix(OWN_TARGET).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn count_dropped() {
    DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
}

/// The printing thread's state.
struct Stdout {
    format: LogFormat,
    simple: SimpleLogger,
    /// How many dropped lines the log has told of.
    told: u64,
    /// Lines printed since the drops were last looked at.
    since: usize,
    /// When stdout last refused a line.
    failed: Option<Instant>,
}

impl Stdout {
    fn new(format: LogFormat) -> Self {
        Self { format, simple: SimpleLogger::new(), told: 0, since: 0, failed: None }
    }

    fn print_all(mut self, waiting: &Receiver<Entry>) {
        while let Ok(Entry::Line(line)) = waiting.recv() {
            if self.is_resting() || !self.print(&line) {
                count_dropped();
                continue;
            }
            self.since += 1;
            // Queued lines are older than the dropped ones, so the notice is printed behind them. If the
            // queue never runs empty, it is printed after as many lines as the queue holds.
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
            LogFormat::Text => self.print_text(line),
            LogFormat::Json => print_json(line),
        };
        self.failed = (!printed).then(Instant::now);
        printed
    }

    fn print_text(&self, line: &Line) -> bool {
        let late = if OffsetDateTime::now_utc() - line.at >= LATE {
            format!(" logged_at={}", Timestamp::new(line.at))
        } else {
            String::new()
        };
        // println! panics when stdout is closed or the disk is full; the panic hook ignores that.
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
    format: LogFormat,
    body: String,
    cut: bool,
}

impl Draft {
    fn new(format: LogFormat) -> Self {
        Self { format, body: String::with_capacity(128), cut: false }
    }

    /// `word`, escaped as a message of the text format is.
    fn word(word: &str) -> String {
        let mut draft = Self::new(LogFormat::Text);
        draft.escape(word, false);
        draft.body
    }

    fn text(record: &Record<'_>) -> String {
        let mut draft = Self::new(LogFormat::Text);
        draft.escape(&bounded_text(record.args()), false);
        draft.pairs(record);
        if draft.cut {
            draft.body.push('…');
        }
        draft.body
    }

    fn json(record: &Record<'_>, at: OffsetDateTime) -> String {
        let mut draft = Self::new(LogFormat::Json);
        draft.body.push_str(r#"{"ts":""#);
        draft.body.push_str(Timestamp::new(at).as_str());
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
        // An error means that a value could not be formatted; the pairs before it are kept.
        let _ = record.key_values().visit(self);
    }

    /// A string value: quoted in JSON, and in text where it is not one plain word.
    fn string(&mut self, value: &str) {
        let quoted = self.format == LogFormat::Json || !is_plain_word(value);
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
                LogFormat::Text => escape_text(&mut self.body, c, quoted),
                LogFormat::Json => escape_json(&mut self.body, c),
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
            LogFormat::Text => ' ',
            LogFormat::Json => ',',
        });
        self.string(key.as_str());
        self.body.push(match self.format {
            LogFormat::Text => '=',
            LogFormat::Json => ':',
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

/// Whether `c` is a visible character: one that `{:?}` prints unchanged. It escapes control, format and
/// bidirectional characters, unusual spaces and combining marks.
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

/// Formats at most one character more than a line can hold; by this one the line is known to be cut.
fn bounded_text(value: &fmt::Arguments<'_>) -> String {
    let mut text = Bounded(String::new());
    // An error means that the limit is reached, or that formatting failed; what was written is printed.
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

#[cfg(test)]
mod tests;
