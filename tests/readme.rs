//! Verifies that the README is true: its commands do what it shows, and its settings are those of the
//! service.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/document.rs"]
mod document;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use document::project;
use realtime_service::config::SETTINGS;
use serde_json::{Value, json};
use support::{PATIENCE, Service, until};

/// The README's `cargo run`, without a second build: the binaries are those of this one.
const CARGO: &str = r#"
cargo() {
    case "$*" in
        "run --release") exec "$SERVICE" ;;
        "run -q --release --bin token_gen -- "*) "$TOKEN_GEN" "${@:7}" ;;
        *) echo "tests/readme.rs does not know: cargo $*" >&2; return 1 ;;
    esac
}
"#;

fn readme() -> String {
    fs::read_to_string(project("README.md")).unwrap()
}

/// The fenced blocks of these languages, in order, but for those behind `<!-- not run: … -->`.
fn blocks(text: &str, languages: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut block, mut before) = (None, "");
    for line in text.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let wanted = languages.contains(&language) && !before.starts_with("<!-- not run:");
                block = Some((wanted, String::new()));
            }
            (Some(_), Some(_)) => found.extend(block.take()),
            (Some((_, body)), None) => *body += &format!("{line}\n"),
            (None, None) => {}
        }
        before = line;
    }
    found.into_iter().filter_map(|(wanted, body)| wanted.then_some(body)).collect()
}

/// Runs a block of the README as a person would, against the service at `addr`.
fn shell(block: &str, addr: Option<SocketAddr>) -> Command {
    let port = addr.map_or(0, |addr| addr.port());
    let block = block.replace("localhost:8080", &format!("127.0.0.1:{port}"));
    let tools = project("target/tools/venv/bin");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &format!("{CARGO}\n{block}")])
        .current_dir(std::env::temp_dir())
        .env_clear()
        .env("PATH", path)
        .env("SERVICE", env!("CARGO_BIN_EXE_realtime_service"))
        .env("TOKEN_GEN", env!("CARGO_BIN_EXE_token_gen"))
        // No fixed port, and no Redis that happens to be there.
        .envs([("PORT", "0"), ("BIND_ADDR", "127.0.0.1"), ("REDIS_ADDR", "")]);
    command
}

/// The README's interactive WebSocket client: lines go in, and those behind `<` come out.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    received: Receiver<String>,
}

impl Session {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, received) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Before it come the escapes that place the line above the prompt.
                if let Some((_, message)) = line.split_once("< ") {
                    let _ = sender.send(message.to_owned());
                }
            }
        });
        Self { input: child.stdin.take(), child, received }
    }

    /// Plays a transcript: sends what stands behind `>`, expects what stands behind `<`.
    fn play(&mut self, transcript: &str) {
        for line in transcript.lines() {
            match line.split_at(2) {
                ("> ", message) => writeln!(self.input.as_ref().unwrap(), "{message}").unwrap(),
                ("< ", message) => {
                    let received = self.received.recv_timeout(PATIENCE);
                    let received = received.unwrap_or_else(|_| panic!("never came: {message}"));
                    assert_eq!(comparable(&received), comparable(message));
                }
                _ => panic!("neither > nor <: {line}"),
            }
        }
    }

    fn end(mut self) {
        // The end of its input ends it.
        self.input = None;
        until("the end of the client", || self.child.try_wait().unwrap().is_some());
    }
}

/// A message without what differs from run to run: connection id and time.
fn comparable(message: &str) -> Value {
    let Ok(mut value) = serde_json::from_str::<Value>(message) else {
        return json!(message);
    };
    for member in ["from", "ts"] {
        if let Some(text) = value.get_mut(member) {
            assert!(text.is_string(), "{message}");
            *text = json!("…");
        }
    }
    value
}

#[test]
fn what_the_readme_shows_happens() {
    let readme = readme();
    let commands = blocks(&readme, &["sh"]);
    let [run, connect, notify] = commands.as_slice() else {
        panic!("the README has other commands than this test knows: {commands:#?}");
    };
    let shown = blocks(&readme, &["text", "json"]);
    let (conversation, answer, notification) = (&shown[0], &shown[1], &shown[2]);

    let service = Service::spawn(shell(run, None));
    let mut session = Session::start(shell(connect, Some(service.addr())));
    session.play(conversation);

    let output = shell(notify, Some(service.addr())).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), answer.trim());
    session.play(notification);
    session.end();
    let (status, _) = service.stop();
    assert!(status.success(), "{status}");
}

#[test]
fn the_browser_s_script_is_well_formed() {
    let scripts = blocks(&readme(), &["js"]);
    assert_eq!(scripts.len(), 1);
    let file = std::env::temp_dir().join(format!("readme-{}.js", std::process::id()));
    fs::write(&file, &scripts[0]).unwrap();
    let status = Command::new("node").arg("--check").arg(&file).status().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(status.success());
}

#[test]
fn the_settings_are_those_of_the_service() {
    let readme = readme();
    let section = readme.split("\n## Settings\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<_> = SETTINGS
        .iter()
        .map(|setting| {
            let default = match setting.default {
                word @ ("none" | "required") => word.to_owned(),
                value => format!("`{value}`"),
            };
            format!("| `{}` | {default} | {} |", setting.name, setting.meaning)
        })
        .collect();
    assert_eq!(rows, expected);
}
