//! A real redis-server on a free port.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{PATIENCE, free_port, signal, until};

/// A redis-server on a free port, killed when dropped.
pub struct Redis {
    child: Child,
    port: u16,
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Redis {
    /// Without persistence.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments, such as `--requirepass x`.
    pub fn with(arguments: &[&str]) -> Self {
        // Another test may have got the port meanwhile.
        for _ in 0..5 {
            let mut redis = Self::spawned(free_port(), arguments);
            if redis.wait_until_it_listens() {
                return redis;
            }
        }
        panic!("no port for a redis-server");
    }

    /// On this port, which is free.
    pub fn at(port: u16, arguments: &[&str]) -> Self {
        let mut redis = Self::spawned(port, arguments);
        assert!(redis.wait_until_it_listens(), "port {port} is taken");
        redis
    }

    fn spawned(port: u16, arguments: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("realtime_service-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = Self::spawn(port, &dir, &arguments);
        Self { child, port, dir, arguments }
    }

    fn spawn(port: u16, dir: &Path, arguments: &[String]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    /// Whether it does, rather than having ended as its port is taken.
    fn wait_until_it_listens(&mut self) -> bool {
        let mut has_ended = false;
        until("redis-server listens", || {
            has_ended = self.child.try_wait().unwrap().is_some();
            has_ended || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        // Who listens there may be another one.
        has_ended = has_ended || self.child.try_wait().unwrap().is_some();
        !has_ended
    }

    /// `host:port`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends a signal by name: `STOP` hangs it, `CONT` lets it go on.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir, &self.arguments);
        assert!(self.wait_until_it_listens(), "port {} is taken", self.port);
    }

    /// A connection of the test's own.
    pub fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        let connection = client.get_connection_with_timeout(PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// One command, on a connection of its own.
    pub fn run(&self, command: &[&str]) -> redis::Value {
        run(&mut self.connection(), command)
    }

    /// `PUBLISH`, as other systems do it.
    pub fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) {
        redis::cmd("PUBLISH")
            .arg(channel)
            .arg(payload.as_ref())
            .exec(&mut self.connection())
            .unwrap();
    }
}

/// One command, on this connection.
pub fn run(connection: &mut redis::Connection, command: &[&str]) -> redis::Value {
    redis::cmd(command[0]).arg(&command[1..]).query(connection).unwrap()
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
