//! The harness of the integration tests: the real binary on a free port, a real redis-server, a client of
//! raw bytes, a backend that misbehaves. Whatever waits has a deadline, so that a test fails and never hangs.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "each test file uses a part of it; a test fails by panicking"
)]

mod backend;
mod client;
mod health;
mod http;
mod proxy;
mod random;
mod redis;
mod server;
mod tokens;

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use backend::{ALLOW, Backend, DENY, hang, respond};
pub use client::{Client, Frame, frame, handshake, without_number};
pub use http::{Response, connect, read_to_end};
pub use proxy::{Mode, Proxy};
pub use random::Random;
pub use redis::{Redis, run};
pub use server::Service;
pub use tokens::{SECRET, bearer, token, token_with, unix_now};

/// No test waits longer for anything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds; panics with `what` at the deadline.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that was free a moment ago, for programs that cannot take port 0.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal by name to a process of the test.
pub fn signal(pid: u32, name: &str) {
    // A shell has it built in; the program is not on every machine.
    let kill = [r#"kill -s "$0" "$1""#, name, &pid.to_string()];
    let status = Command::new("sh").arg("-c").args(kill).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}

/// One test of a file at a time: for those that measure, or count what is the whole machine's.
pub fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the tests run at the full size that the release run takes: `FULL_SIZE=1`.
pub fn full_size() -> bool {
    std::env::var_os("FULL_SIZE").is_some()
}
