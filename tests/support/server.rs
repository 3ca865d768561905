//! The real binary, running on a free port.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::http::with_timeouts;
use super::{Client, Redis, Response, SECRET, bearer, connect, handshake, signal, token, until};

/// The real binary, running on a free port; killed when dropped.
pub struct Service {
    child: Child,
    addr: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    printer: Option<JoinHandle<()>>,
}

impl Service {
    /// With the defaults, but without Redis.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With these settings on top: without Redis and on 127.0.0.1 unless they say otherwise.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::spawn(Self::command(settings))
    }

    /// The command that [`Service::with`] runs, for tests that wrap it.
    pub fn command(settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_realtime_service"));
        command.env_clear().current_dir(std::env::temp_dir());
        let base =
            [("JWT_SECRET", SECRET), ("PORT", "0"), ("BIND_ADDR", "127.0.0.1"), ("REDIS_ADDR", "")];
        command.envs(base);
        // Who lifts the rate of messages means those of their bytes too.
        if settings.contains(&("RATE_LIMIT", "0")) {
            command.envs([("RATE_BYTES", "0"), ("ROOM_RATE_BYTES", "0")]);
        }
        command.envs(settings.iter().copied());
        command
    }

    /// The same command behind another one that ends with `exec`, such as `sh -c 'ulimit …; exec "$0"'`.
    pub fn command_behind(wrapper: &[&str], settings: &[(&str, &str)]) -> Command {
        let service = Self::command(settings);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(service.get_program());
        command.env_clear().current_dir(std::env::temp_dir());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs a command that ends up as the service, and waits until it listens.
    pub fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let printer = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                seen.lock().unwrap().push(line);
            }
        });
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut service = Self { child, addr, lines, printer: Some(printer) };
        let line = service.log_line("listening");
        service.addr = listening_at(&line);
        service
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for the first log line that contains `part`.
    pub fn log_line(&self, part: &str) -> String {
        let mut found = None;
        until(&format!("a log line with {part:?}"), || {
            found = self.lines.lock().unwrap().iter().find(|line| line.contains(part)).cloned();
            found.is_some()
        });
        found.unwrap()
    }

    /// Connects, as this user, and checks the handshake's answer.
    pub fn client(&self, user: &str, role: &str) -> Client {
        Client::connect(self.addr, &token(user, role))
    }

    /// The same, but its kernel takes next to nothing that it does not read: it pushes back soon.
    pub fn narrow_client(&self, user: &str) -> Client {
        let mut client = self.narrow_connection(user);
        client.assert_quiet();
        client
    }

    /// The same, when something may come at once.
    pub fn narrow_connection(&self, user: &str) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Before it connects: the window that it offers first is small too.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        let mut stream = with_timeouts(TcpStream::from(socket));
        let request = handshake("/ws", &bearer(&token(user, "")));
        stream.write_all(request.as_bytes()).unwrap();
        Client::over(stream).unwrap()
    }

    /// One request on a connection of its own.
    pub fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
        let authorization = token.map(bearer).unwrap_or_default();
        let length = if body.is_empty() && method == "GET" {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        self.raw(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{authorization}{length}\r\n{body}"
        ))
    }

    /// Sends these bytes on a connection of their own and reads one answer.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> Response {
        let mut stream = connect(self.addr);
        // It may have answered and closed before all is written.
        let _ = stream.write_all(request.as_ref());
        Response::expect(&mut stream)
    }

    /// One of several instances: on this Redis, and connected to it.
    pub fn on(redis: &Redis, settings: &[(&str, &str)]) -> Self {
        let addr = redis.addr();
        let mut all = vec![("REDIS_ADDR", addr.as_str())];
        all.extend(settings);
        let service = Self::with(&all);
        service.wait_for_redis("connected");
        service
    }

    /// `redis` in `/health`: `connected`, `disconnected` or `disabled`.
    pub fn redis_state(&self) -> String {
        let health = self.http("GET", "/health", None, "");
        assert_eq!(health.status, 200, "{health:?}");
        health.json()["redis"].as_str().unwrap().to_owned()
    }

    /// Waits until `/health` says this of Redis.
    pub fn wait_for_redis(&self, state: &str) {
        until(&format!("redis {state}"), || self.redis_state() == state);
    }

    /// `POST /api/notify` as a backend.
    pub fn notify(&self, notification: &Value) -> Response {
        let token = token("backend", "service");
        self.http("POST", "/api/notify", Some(&token), &notification.to_string())
    }

    /// The head of a `POST /api/notify` that sends its body only after 100 Continue, which has come.
    pub fn ask_to_notify(&self, body_length: usize) -> TcpStream {
        let mut stream = connect(self.addr);
        write!(
            stream,
            "POST /api/notify HTTP/1.1\r\nHost: test\r\n{}Expect: 100-continue\r\n\
             Content-Length: {body_length}\r\n\r\n",
            bearer(&token("backend", "service"))
        )
        .unwrap();
        assert_eq!(Response::read(&mut stream).unwrap().status, 100);
        stream
    }

    /// What `/metrics` says now of this metric, named with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.http("GET", "/metrics", Some(&token("ops", "admin")), "").body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// `GET /admin/clients`.
    pub fn counts(&self) -> Value {
        self.http("GET", "/admin/clients", Some(&token("ops", "admin")), "").json()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; returns its exit status and all that it logged.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let mut status = None;
        until("the end of the service", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let _ = self.printer.take().unwrap().join();
        (status.unwrap(), self.log())
    }

    /// SIGTERM, and [`Service::wait`].
    pub fn stop(self) -> (ExitStatus, Vec<String>) {
        self.signal("TERM");
        self.wait()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log();
            let last = lines.len().saturating_sub(20);
            eprintln!("the service's last lines:\n{}", lines[last..].join("\n"));
        }
    }
}

/// The address in the line that tells it, plain or JSON.
fn listening_at(line: &str) -> SocketAddr {
    if let Ok(Value::Object(members)) = serde_json::from_str(line) {
        return members["addr"].as_str().unwrap().parse().unwrap();
    }
    let addr = line.split("addr=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    addr.trim_matches('"').parse().unwrap()
}
