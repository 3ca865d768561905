//! Verifies what the binary says and how it exits: help, version, healthcheck, and one clear line for
//! every bad setting, without a secret in it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use realtime_service::config::SETTINGS;
use support::{SECRET, Service, free_port, until};

/// Runs a command that is to end by itself.
fn run(mut command: Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("its end", || child.try_wait().unwrap().is_some());
    }));
    if waited.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().unwrap();
    if let Err(panic) = std::mem::replace(&mut waited, Ok(())) {
        std::panic::resume_unwind(panic);
    }
    output
}

/// Runs the service with these arguments and settings.
fn service(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Service::command(settings);
    command.args(arguments);
    run(command)
}

/// The one line on stderr of a run that failed with this code and printed nothing else.
fn failure(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let line = stderr.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{stderr}");
    line.strip_prefix("realtime_service: ").expect(line).to_owned()
}

/// A directory with this `.env`.
fn place(name: &str, env_file: impl AsRef<[u8]>) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}"));
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join(".env"), env_file).unwrap();
    path
}

#[test]
fn help_names_every_setting_and_its_default() {
    for option in ["--help", "-h"] {
        let output = service(&[option], &[("JWT_SECRET", "")]);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        for setting in SETTINGS {
            let line = text.lines().find(|line| line.trim_start().starts_with(setting.name));
            let line = line.unwrap_or_else(|| panic!("no line for {}", setting.name));
            assert!(line.contains(setting.default) && line.contains(setting.meaning), "{line}");
        }
        assert!(text.contains("healthcheck") && text.contains("--version"), "{text}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    for option in ["--version", "-V"] {
        let output = service(&[option], &[("JWT_SECRET", "")]);
        assert_eq!(output.status.code(), Some(0));
        let expected = format!("realtime_service {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    for (arguments, named) in [
        (&["--port"][..], "--port"),
        (&["-x"], "-x"),
        (&["serve"], "serve"),
        (&["healthcheck", "--now"], "--now"),
    ] {
        let line = failure(&service(arguments, &[]), 2);
        assert!(line.contains(named) && line.ends_with("(see --help)"), "{arguments:?}: {line}");
    }
    // What a line would be split or rewritten by is not repeated.
    let line = failure(&service(&["a\nb\u{1b}[31m"], &[]), 2);
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

#[test]
fn healthcheck_is_0_for_a_healthy_service_and_1_without_one() {
    let healthy = Service::start();
    let port = healthy.addr().port().to_string();
    // It needs no secret, no proxy is asked, and a service on all addresses is asked on loopback.
    for bind in ["127.0.0.1", "0.0.0.0"] {
        let settings = [
            ("PORT", port.as_str()),
            ("BIND_ADDR", bind),
            ("JWT_SECRET", ""),
            ("http_proxy", "http://127.0.0.1:1"),
            ("ALL_PROXY", "http://127.0.0.1:1"),
        ];
        let output = service(&["healthcheck"], &settings);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let port = free_port().to_string();
    let line = failure(&service(&["healthcheck"], &[("PORT", &port)]), 1);
    assert!(line.contains(&format!("http://127.0.0.1:{port}/health")), "{line}");
    let line = failure(&service(&["healthcheck"], &[("PORT", "http")]), 1);
    assert!(line.starts_with("PORT is \"http\": expected "), "{line}");
}

#[test]
fn healthcheck_is_1_when_something_else_or_nothing_answers() {
    // Accepted by the kernel, answered by no one.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    failure(&service(&["healthcheck"], &[("PORT", &port)]), 1);
}

#[test]
fn every_bad_setting_is_named_with_its_value_and_what_is_expected() {
    let bad = [
        ("PORT", "65536"),
        ("BIND_ADDR", "localhost"),
        ("ENVIRONMENT", "prod"),
        ("REDIS_ADDR", "localhost:port"),
        ("REDIS_PREFIX", "a\nb"),
        ("BACKEND_URL", "backend:80"),
        ("ROOM_POLICY", "closed"),
        ("ALLOWED_ORIGINS", "shop.example"),
        ("API_AUTH", "no"),
        ("JWT_LEEWAY", "-1"),
        ("MAX_CONNECTIONS", "0"),
        ("MAX_CONNECTIONS_PER_USER", "-1"),
        ("MAX_ROOMS_PER_CLIENT", "0"),
        ("MAX_WRITERS", "many"),
        ("RATE_LIMIT", "1.5"),
        ("RATE_BURST", "0"),
        ("RATE_BYTES", "64kB"),
        ("ROOM_RATE_BYTES", "-1"),
        ("SEND_QUEUE_FRAMES", "0"),
        ("SEND_QUEUE_BYTES", "1GB"),
        ("HISTORY_MESSAGES", "10001"),
        ("HISTORY_TTL", "0s"),
        ("HISTORY_BYTES", "100"),
        ("WRITE_TIMEOUT", "0"),
        ("HEAD_TIMEOUT", "soon"),
        ("BODY_TIMEOUT", "1d"),
        ("PING_INTERVAL", "10ms"),
        ("SHUTDOWN_TIMEOUT", "\"5\""),
        ("MAX_MESSAGE_SIZE", "1MiB"),
        ("MAX_BODY_SIZE", "99999999999999999999"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
    ];
    for (name, value) in bad {
        let line = failure(&service(&[], &[(name, value)]), 1);
        let start = format!("{name} is \"{}\": ", value.escape_debug());
        assert!(line.starts_with(&start), "{line}");
        assert!(line.contains("expected "), "{line}");
    }
    // The others take any text.
    let free = ["JWT_SECRET", "JWT_ISSUER", "JWT_AUDIENCE", "REDIS_PASSWORD"];
    for setting in SETTINGS {
        let covered = bad.iter().any(|(name, _)| *name == setting.name);
        assert!(covered || free.contains(&setting.name), "no bad value of {}", setting.name);
    }
}

#[test]
fn a_missing_or_short_secret_stops_the_start() {
    let line = failure(&service(&[], &[("JWT_SECRET", "")]), 1);
    assert!(line.starts_with("JWT_SECRET: not set"), "{line}");
    let mut command = Service::command(&[]);
    command.env_remove("JWT_SECRET");
    assert!(failure(&run(command), 1).starts_with("JWT_SECRET: not set"));
    let settings = [("JWT_SECRET", "hunter2-hunter2"), ("ENVIRONMENT", "production")];
    let line = failure(&service(&[], &settings), 1);
    assert_eq!(line, "JWT_SECRET: has 15 bytes, expected at least 32 in production");
}

#[test]
fn a_value_that_is_not_utf_8_is_refused() {
    let mut command = Service::command(&[]);
    command.env("JWT_ISSUER", OsStr::from_bytes(b"\xff"));
    assert_eq!(failure(&run(command), 1), "JWT_ISSUER: expected UTF-8");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = service(&[], &[("PORT", &port)]);
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains(&format!("cannot listen on 127.0.0.1:{port}: ")), "{line}");
}

#[test]
fn secrets_are_never_printed() {
    for addr in ["redis://:hunter2@host:port", "redis://user:hunter2@", "redis://hunter2@h:1:2"] {
        let line = failure(&service(&[], &[("REDIS_ADDR", addr)]), 1);
        assert!(line.starts_with("REDIS_ADDR: ") && !line.contains("hunter2"), "{line}");
    }
    let redis = format!("redis://:hunter2@127.0.0.1:{}", free_port());
    let running = Service::with(&[
        ("LOG_LEVEL", "trace"),
        ("REDIS_ADDR", &redis),
        ("ENVIRONMENT", "production"),
    ]);
    running.client("1", "").assert_quiet();
    let (status, log) = running.stop();
    assert_eq!(status.code(), Some(0), "{log:?}");
    for line in log {
        assert!(!line.contains("hunter2") && !line.contains(SECRET), "{line}");
    }
}

#[test]
fn production_is_warned_about_open_rooms_once() {
    let warnings = |settings: &[(&str, &str)]| {
        let (_, log) = Service::with(settings).stop();
        log.into_iter().filter(|line| line.contains("ROOM_POLICY=open")).count()
    };
    assert_eq!(warnings(&[("ENVIRONMENT", "production")]), 1);
    assert_eq!(warnings(&[("ENVIRONMENT", "production"), ("ROOM_POLICY", "strict")]), 0);
    let backend = [("ENVIRONMENT", "production"), ("BACKEND_URL", "http://127.0.0.1:1")];
    assert_eq!(warnings(&backend), 0);
    assert_eq!(warnings(&[]), 0);
}

#[test]
fn a_dot_env_file_is_read_and_the_environment_wins() {
    let file = format!(
        "# settings\nJWT_SECRET=\"{SECRET}\"\nexport MAX_CONNECTIONS=7\n\nLOG_FORMAT='text'\nREDIS_ADDR=\n"
    );
    let start = |settings: &[(&str, &str)]| {
        let mut command = Service::command(settings);
        command.current_dir(place("good", &file)).env_remove("JWT_SECRET").env_remove("REDIS_ADDR");
        Service::spawn(command)
    };
    let service = start(&[]);
    assert!(service.log_line("listening").contains("connections=7"));
    assert!(service.http("GET", "/health", None, "").body.contains("disabled"));
    service.client("1", "").assert_quiet();
    let service = start(&[("MAX_CONNECTIONS", "8")]);
    assert!(service.log_line("listening").contains("connections=8"));
}

#[test]
fn a_broken_dot_env_file_stops_the_start_without_being_shown() {
    let cases: [(&str, &[u8]); 3] = [
        ("line", b"JWT_SECRET=hunter2 and more\n"),
        ("quote", b"JWT_SECRET='hunter2\n"),
        ("bytes", b"JWT_SECRET=hunter2\xff\n"),
    ];
    for (name, content) in cases {
        let mut command = Service::command(&[]);
        command.current_dir(place(name, content)).env_remove("JWT_SECRET");
        let line = failure(&run(command), 1);
        assert!(line.starts_with("cannot read .env: ") && !line.contains("hunter2"), "{line}");
    }
    let mut command = Service::command(&[]);
    command.current_dir(place("bad-value", "PORT=http\n")).env_remove("PORT");
    assert!(failure(&run(command), 1).starts_with("PORT is \"http\": expected "));
}
