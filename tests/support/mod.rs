//! The harness of the integration tests: the real binary on a free port, a real redis-server, and a
//! client of raw bytes. Whatever waits has a deadline, so that a test fails and never hangs.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "each test file uses a part of it; a test fails by panicking"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

/// No test waits longer for anything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The `JWT_SECRET` of every service that the tests start.
pub const SECRET: &str = "a secret of the tests, long enough for production";

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A good token of this user, for an hour.
pub fn token(user: &str, role: &str) -> String {
    token_with(json!({"sub": user, "role": role, "exp": unix_now() + 3600}))
}

/// A token with just these claims, signed with [`SECRET`].
pub fn token_with(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()
}

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
        // Who lifts the rate of messages means that of their bytes too.
        if settings.contains(&("RATE_LIMIT", "0")) {
            command.env("RATE_BYTES", "0");
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

    /// One request on a connection of its own.
    pub fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
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
        Response::read(&mut stream).expect("an answer")
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

    /// `GET /admin/clients`.
    pub fn counts(&self) -> Value {
        self.http("GET", "/admin/clients", Some(&token("ops", "admin")), "").json()
    }

    /// Threads of the process.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Resident memory of the process, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// This file of /proc/PID/task, such as `comm`, of each thread that has not just ended.
    pub fn of_threads(&self, file: &str) -> impl Iterator<Item = String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks.filter_map(move |task| std::fs::read_to_string(task.ok()?.path().join(file)).ok())
    }

    /// How many threads have a name that starts so, such as `writer-`.
    pub fn threads_named(&self, start: &str) -> usize {
        self.of_threads("comm").filter(|name| name.starts_with(start)).count()
    }

    /// Proves that it serves: health, a join, a broadcast.
    pub fn assert_serves(&self) {
        assert_eq!(self.http("GET", "/health", None, "").status, 200);
        let mut client = self.client("bystander", "");
        client.join("bystanders");
        client.broadcast("bystanders", &json!("still there"));
        assert_eq!(client.json()["body"], "still there");
    }

    /// Threads and descriptors when nobody is connected.
    pub fn at_rest(&self) -> (usize, usize) {
        self.assert_serves();
        until("no connection is left", || self.threads_named("conn-") == 0);
        (self.threads(), self.descriptors())
    }

    /// Waits until threads and descriptors are back at `before`, and proves that it serves.
    pub fn assert_recovers(&self, before: (usize, usize)) {
        self.assert_serves();
        until(&format!("threads and descriptors back at {before:?}"), || {
            self.threads() <= before.0 && self.descriptors() <= before.1
        });
    }

    /// A hostile round, twice: after each the service is as before, and the second adds no memory.
    pub fn assert_unharmed_by(&self, mut round: impl FnMut(&Self)) {
        let before = self.at_rest();
        round(self);
        self.assert_recovers(before);
        let rss = self.rss_kib();
        round(self);
        self.assert_recovers(before);
        let grown = self.rss_kib().saturating_sub(rss);
        assert!(grown < 4096, "the second round added {grown} KiB to {rss} KiB");
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

/// Sends a signal by name to a process of the test.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}

/// Whether the tests run at the full size that the release run takes: `FULL_SIZE=1`.
pub fn full_size() -> bool {
    std::env::var_os("FULL_SIZE").is_some()
}

/// All that still comes, up to the end of the stream.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A connection of raw bytes, with read and write timeouts.
pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Response {
    /// Reads one answer; `None` when the stream ends before one has come.
    pub fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: HashMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Self { status, headers, body: String::from_utf8(body).unwrap() })
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    /// Code (0 when there is none) and reason.
    Close(u16, String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The stream ended, or was reset.
    End,
}

/// A WebSocket client of raw bytes, which answers nothing by itself.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The head of the handshake's answer.
    pub head: String,
}

/// The request of a handshake; `headers` come with their line ends.
pub fn handshake(target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// One masked client frame; `opcode` holds the FIN bit and the reserved bits too.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x1f, 0x2e, 0x3d, 0x4c];
    let mut bytes = vec![opcode];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

impl Client {
    /// Connects with a token in the `Authorization` header.
    pub fn connect(addr: SocketAddr, token: &str) -> Self {
        let request = handshake("/ws", &format!("Authorization: Bearer {token}\r\n"));
        let client = Self::try_connect(addr, &request).expect("an answer");
        assert!(client.head.starts_with("HTTP/1.1 101 "), "{}", client.head);
        client
    }

    /// Sends a handshake's request; `None` when the stream ends before an answer.
    pub fn try_connect(addr: SocketAddr, request: &str) -> Option<Self> {
        let mut stream = connect(addr);
        stream.write_all(request.as_bytes()).ok()?;
        Self::over(stream)
    }

    /// Reads the answer to a handshake that was sent already.
    pub fn over(stream: TcpStream) -> Option<Self> {
        let mut client = Self { stream, buffer: Vec::new(), head: String::new() };
        loop {
            if let Some(end) = client.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<_> = client.buffer.drain(..end + 4).collect();
                client.head = String::from_utf8(head).unwrap();
                return Some(client);
            }
            if !client.fill() {
                return None;
            }
        }
    }

    /// Reads more; whether the stream goes on. Panics when nothing comes for too long.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend(&chunk[..length]);
                true
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                panic!("nothing came within {PATIENCE:?}")
            }
            Err(_) => false,
        }
    }

    /// The raw stream.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends raw bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends one text message.
    pub fn send(&mut self, text: &str) {
        self.send_bytes(&frame(0x81, text.as_bytes()));
    }

    /// Sends one JSON message.
    pub fn send_json(&mut self, message: &Value) {
        self.send(&message.to_string());
    }

    /// Sends a Close frame with this code.
    pub fn send_close(&mut self, code: u16) {
        self.send_bytes(&frame(0x88, &code.to_be_bytes()));
    }

    /// Ends the sending half.
    pub fn end_sending(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next frame.
    pub fn next(&mut self) -> Frame {
        loop {
            if let Some((frame, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return frame;
            }
            if !self.fill() {
                return Frame::End;
            }
        }
    }

    /// The frames that have come so far, without waiting for more: the stream does not block from now
    /// on. An end counts as a frame.
    pub fn arrived(&mut self) -> Vec<Frame> {
        self.stream.set_nonblocking(true).unwrap();
        let mut chunk = [0; 16 * 1024];
        let ended = match self.stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(length) => {
                self.buffer.extend(&chunk[..length]);
                false
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        let mut frames = Vec::new();
        let mut taken = 0;
        while let Some((frame, length)) = parse(&self.buffer[taken..]) {
            frames.push(frame);
            taken += length;
        }
        self.buffer.drain(..taken);
        if ended {
            frames.push(Frame::End);
        }
        frames
    }

    /// The next frame, which is to be a text.
    pub fn text(&mut self) -> String {
        match self.next() {
            Frame::Text(text) => text,
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// The next frame, which is to be a text of JSON.
    pub fn json(&mut self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
    }

    /// Joins a room and takes the answer.
    pub fn join(&mut self, room: &str) {
        self.send_json(&json!({"type": "join", "payload": {"room": room}}));
        assert_eq!(self.text(), format!("joined {room}"));
    }

    /// Broadcasts without an id, which is not answered.
    pub fn broadcast(&mut self, room: &str, body: &Value) {
        self.send_json(&json!({"type": "broadcast", "payload": {"room": room, "body": body}}));
    }

    /// Proves that nothing else is on its way: what was sent before has been handled, and its answers
    /// would have come before this one.
    pub fn assert_quiet(&mut self) {
        self.send(r#"{"type":"leave","payload":{"room":"sentinel"}}"#);
        assert_eq!(self.text(), "left sentinel");
    }
}

/// The first whole frame in `bytes`, and its length.
fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (header, length) = match *bytes.get(1)? {
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize),
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(header..header + length)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let frame = match bytes[0] {
        0x81 => Frame::Text(text(payload)),
        0x88 if payload.len() < 2 => Frame::Close(0, String::new()),
        0x88 => Frame::Close(u16::from_be_bytes([payload[0], payload[1]]), text(&payload[2..])),
        0x89 => Frame::Ping(payload.to_vec()),
        0x8a => Frame::Pong(payload.to_vec()),
        other => panic!("a frame that the service never sends: {other:#x}"),
    };
    Some((frame, header + length))
}

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
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("realtime_service-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let port = free_port();
        let child = Self::spawn(port, &dir, &arguments);
        let redis = Self { child, port, dir, arguments };
        redis.wait_until_it_listens();
        redis
    }

    fn spawn(port: u16, dir: &std::path::Path, arguments: &[String]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    fn wait_until_it_listens(&self) {
        until("redis-server listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// `host:port`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id, for signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.dir, &self.arguments);
        self.wait_until_it_listens();
    }

    /// A connection of the test's own.
    pub fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        let connection = client.get_connection_with_timeout(PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
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

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
