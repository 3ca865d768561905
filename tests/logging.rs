//! Verifies that logging neither blocks nor panics whatever becomes of stdout, and tells what it lost.
//!
//! Logger, panic hook and stdout belong to a whole process, so each test runs this binary again as a
//! child that executes [`child`] alone, in a role named by an environment variable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use log::LevelFilter;
use realtime_service::config::LogFormat;
use realtime_service::logging;
use serde_json::Value;
use support::{PATIENCE, until};

const ROLE: &str = "REALTIME_SERVICE_LOGGING_TEST_ROLE";
const TARGET: &str = "realtime_service::test";
/// Several times what the queue and a pipe hold.
const MANY: u64 = 20_000;

/// Not a test of its own: the child's side of those below.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (part, format) = role.split_once(' ').unwrap();
    let format = match format {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => panic!("no such format: {format}"),
    };
    let printer = logging::init(LevelFilter::Info, format).unwrap();
    match part {
        "speak" => speak(),
        "step" => {
            log::info!(target: TARGET, "ready");
            await_parent();
            log_many();
            log_on();
        }
        _ => panic!("no such part: {part}"),
    }
    let flushed = printer.flush(Duration::from_millis(500));
    report("flushed", u64::from(flushed));
    report("dropped", logging::dropped_lines());
    std::process::exit(0);
}

fn speak() {
    log::info!(target: TARGET, conn = 42, user = "u1"; "connected");
    log::warn!(target: TARGET, user = "u1\nERROR role=admin"; "two\nlines");
    log::debug!(target: TARGET, "too fine");
    log::info!(target: "tiny_http", "chatter");
    log::warn!(target: "tiny_http", "trouble");
    let panicking = thread::Builder::new()
        .name("worker-7".to_owned())
        .spawn(|| panic!("a panic of {} parts", 2));
    assert!(panicking.unwrap().join().is_err());
    assert!(logging::init(LevelFilter::Info, LogFormat::Text).is_err());
}

fn log_many() {
    let start = Instant::now();
    for n in 0..MANY {
        log::info!(target: TARGET, n = n; "one of many lines, long enough to fill the pipe soon");
    }
    report("millis", u64::try_from(start.elapsed().as_millis()).unwrap());
}

/// Logs until the parent wants no more.
fn log_on() {
    let parent = thread::spawn(await_parent);
    while !parent.is_finished() {
        log::info!(target: TARGET, "after");
        thread::sleep(Duration::from_millis(5));
    }
}

fn await_parent() {
    let mut line = String::new();
    assert_ne!(std::io::stdin().read_line(&mut line).unwrap(), 0);
}

fn report(name: &str, value: u64) {
    eprintln!("{name} {value}");
}

/// A child in a role, and its streams.
struct Speaker {
    process: Child,
    stdin: ChildStdin,
    stdout: Option<Box<dyn BufRead>>,
    reports: Receiver<String>,
}

impl Speaker {
    fn start(role: &str) -> Self {
        Self::start_with(role, Stdio::piped())
    }

    /// Without [`Self::stdout`], unless `stdout` is [`Stdio::piped`].
    fn start_with(role: &str, stdout: Stdio) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--quiet"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = process.stdout.take();
        let stdout = stdout.map(|pipe| Box::new(BufReader::new(pipe)) as Box<dyn BufRead>);
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { process, stdin, stdout, reports }
    }

    /// The next number that the child reports, which must be `name`.
    fn reported(&self, name: &str) -> u64 {
        let line = self.reports.recv_timeout(PATIENCE).expect(name);
        let value = line.strip_prefix(name).unwrap_or_else(|| panic!("{line}"));
        value.trim().parse().unwrap()
    }

    fn await_line(&mut self, wanted: &str) -> String {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let read = self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
            assert_ne!(read, 0, "stdout ended before {wanted:?}");
        }
        line
    }

    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    fn remaining_output(&mut self) -> String {
        let mut text = String::new();
        let stdout = self.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        text
    }

    fn wait(&mut self) -> ExitStatus {
        until("the end of the child", || self.process.try_wait().unwrap().is_some());
        self.process.wait().unwrap()
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn text_lines() {
    let mut speaker = Speaker::start("speak text");
    let output = speaker.remaining_output();
    let lines: Vec<&str> = output.lines().filter(|line| line.contains('[')).collect();
    assert_eq!(lines.len(), 4, "{output}");
    let (stamp, rest) = lines[0].split_once(' ').unwrap();
    assert!(stamp.len() == 24 && stamp.ends_with('Z'), "{stamp}");
    assert_eq!(rest, "INFO  [realtime_service::test] connected conn=42 user=u1");
    assert!(lines[1].ends_with(r#"two\nlines user="u1\nERROR role=admin""#), "{output}");
    assert!(lines[2].ends_with("WARN  [tiny_http] trouble"), "{output}");
    assert!(lines[3].contains("ERROR [realtime_service::logging] panicked: a panic of 2 parts"));
    assert!(lines[3].contains("thread=worker-7 location=tests/logging.rs:"));
    assert_eq!(speaker.reported("flushed"), 1);
    assert_eq!(speaker.reported("dropped"), 0);
    assert!(speaker.wait().success());
}

#[test]
fn json_lines() {
    let mut speaker = Speaker::start("speak json");
    let output = speaker.remaining_output();
    let lines: Vec<Value> = output
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert_eq!(lines[0]["msg"], "connected");
    assert_eq!(lines[0]["conn"], 42);
    assert_eq!(lines[1]["msg"], "two\nlines");
    assert_eq!(lines[1]["user"], "u1\nERROR role=admin");
    assert_eq!(lines[2]["target"], "tiny_http");
    assert_eq!(lines[3]["level"], "ERROR");
    assert_eq!(lines[3]["msg"], "panicked: a panic of 2 parts");
    assert_eq!(lines[3]["thread"], "worker-7");
    assert!(speaker.wait().success());
}

#[test]
fn a_stalled_stdout_drops_lines_and_later_says_how_many() {
    let mut speaker = Speaker::start("step text");
    speaker.await_line("ready");
    speaker.go_on();
    // Nobody reads, yet the child logs on without waiting.
    assert!(speaker.reported("millis") < 10_000);
    // All that got through is read, then the notice.
    let notice = speaker.await_line("log lines dropped");
    let count = notice.trim().rsplit_once("lines=").unwrap().1;
    let told: u64 = count.split(' ').next().unwrap().parse().unwrap();
    assert!(told > 0 && told < MANY, "{notice}");
    speaker.await_line("after");
    speaker.go_on();
    assert_eq!(
        speaker.remaining_output().lines().filter(|line| line.contains("dropped")).count(),
        0
    );
    assert_eq!(speaker.reported("flushed"), 1);
    assert!(speaker.reported("dropped") >= told);
    assert!(speaker.wait().success());
}

#[test]
fn a_stdout_that_stays_stalled_does_not_keep_the_process() {
    let mut speaker = Speaker::start("step text");
    speaker.await_line("ready");
    speaker.go_on();
    speaker.reported("millis");
    speaker.go_on();
    assert_eq!(speaker.reported("flushed"), 0);
    assert!(speaker.reported("dropped") > 0);
    assert!(speaker.wait().success());
}

#[test]
fn a_closed_stdout_drops_lines_in_silence() {
    let mut speaker = Speaker::start("step text");
    speaker.await_line("ready");
    speaker.stdout = None;
    speaker.go_on();
    speaker.reported("millis");
    speaker.go_on();
    // Nothing stands on stderr between the reports: no panic was told there.
    assert_eq!(speaker.reported("flushed"), 1);
    // Perhaps not all: a process that is just being started may hold the pipe open for a moment.
    assert!(speaker.reported("dropped") > 0);
    assert!(speaker.wait().success());
}

/// A named pipe loses its reader and gets another, as the log of a supervisor that restarts does.
fn reopened_stdout(format: &str) {
    let fifo = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("logging-{format}.fifo"));
    let _ = fs::remove_file(&fifo);
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    // Opening either end alone would wait for the other.
    let both = || fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let first = both();
    let writing = fs::File::options().write(true).open(&fifo).unwrap();
    let reading = fs::File::open(&fifo).unwrap();
    drop(first);
    let mut speaker = Speaker::start_with(&format!("step {format}"), writing.into());
    speaker.stdout = Some(Box::new(BufReader::new(reading)));
    speaker.await_line("ready");
    speaker.stdout = None;
    speaker.go_on();
    speaker.reported("millis");

    let reading = fs::File::open(&fifo).unwrap();
    speaker.stdout = Some(Box::new(BufReader::new(reading)));
    let mut output = speaker.await_line("log lines dropped");
    output += &speaker.await_line("after");
    speaker.go_on();
    output += &speaker.remaining_output();
    for line in output.lines() {
        match format {
            "json" => assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}"),
            _ => assert_eq!(line.matches(" [realtime_service::").count(), 1, "{line}"),
        }
    }
    assert_eq!(speaker.reported("flushed"), 1);
    assert!(speaker.reported("dropped") > 0);
    assert!(speaker.wait().success());
}

#[test]
fn a_reopened_stdout_gets_whole_lines_of_text() {
    reopened_stdout("text");
}

#[test]
fn a_reopened_stdout_gets_whole_objects() {
    reopened_stdout("json");
}
