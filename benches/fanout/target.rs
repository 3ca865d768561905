//! The processes under load: the service, its floors, and a Redis; each ends with its owner.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::tokens::Tokens;
use crate::fanout::{floor, measure, memory, rest_floor, wire};

/// Names another build of the service to measure, for comparisons of before and after.
const BINARY_VARIABLE: &str = "REALTIME_SERVICE_BIN";
/// More than the largest scenario opens, so that no cap decides; the service lowers it to what the
/// system allows.
const MAX_CONNECTIONS: &str = "10100";
const START_DEADLINE: Duration = Duration::from_secs(20);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const PONG: &[u8] = b"+PONG\r\n";
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The least work that any server could do.
    Floor,
    /// The same for rooms, without a longest flush.
    UnboundedFloor,
    /// The service, or the build that `REALTIME_SERVICE_BIN` names.
    Service,
}

/// What a floor is a floor of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// WebSocket rooms: a bare epoll loop.
    Rooms,
    /// REST: tiny_http behind a bare gate.
    Rest,
}

/// Whether the service keeps the ordered log, as by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    On,
    /// `HISTORY_MESSAGES=0`.
    Off,
}

/// What is between the instances of the service.
#[derive(Clone, Copy)]
pub(crate) enum Broker<'a> {
    None,
    Redis(&'a Redis, History),
}

/// A running server process.
pub(crate) struct Target {
    process: Process,
    pub(crate) address: SocketAddr,
    /// Where the REST floor listens behind its gate.
    socket_path: Option<PathBuf>,
}

/// Killed and waited for when dropped.
struct Process(Child);

impl Process {
    /// Fails when the process has ended by itself.
    fn check_alive(&mut self) -> Fallible<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("a server ended at its start, {status}").into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after the wait.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Target {
    /// Starts the floor or the service and waits until it serves.
    pub(crate) fn start(side: Side, purpose: Purpose, tokens: &Tokens) -> Fallible<Self> {
        match (side, purpose) {
            (Side::Service, _) => Self::start_service(tokens, Broker::None),
            (Side::Floor, Purpose::Rooms) => Self::start_floor(&[floor::ARGUMENT], None),
            (Side::UnboundedFloor, Purpose::Rooms) => {
                Self::start_floor(&[floor::UNBOUNDED_ARGUMENT], None)
            }
            (Side::Floor | Side::UnboundedFloor, Purpose::Rest) => {
                let path =
                    env::temp_dir().join(format!("rest-floor-{}", uuid::Uuid::new_v4().simple()));
                let text = path.to_string_lossy().into_owned();
                Self::start_floor(&[rest_floor::ARGUMENT, &text], Some(path))
            }
        }
    }

    fn start_floor(arguments: &[&str], socket_path: Option<PathBuf>) -> Fallible<Self> {
        let mut child =
            Command::new(env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take();
        let process = Process(child);
        BufReader::new(stdout.ok_or("the floor has no standard output")?).read_line(&mut line)?;
        Ok(Self {
            process,
            address: line
                .trim()
                .parse()
                .map_err(|_| format!("the floor said {line:?} for its address"))?,
            socket_path,
        })
    }

    /// Starts an instance of the service.
    pub(crate) fn start_service(tokens: &Tokens, broker: Broker<'_>) -> Fallible<Self> {
        let binary = env::var_os(BINARY_VARIABLE)
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_realtime_service").into());
        let address = free_address()?;
        let mut command = Command::new(&binary);
        command
            // Away from any .env file, and from settings of the person who measures.
            .current_dir(env::temp_dir())
            .env_clear()
            .env("PORT", address.port().to_string())
            .env("BIND_ADDR", address.ip().to_string())
            .env("JWT_SECRET", tokens.secret())
            .env("RATE_LIMIT", "0")
            .env("RATE_BYTES", "0")
            .env("ROOM_RATE_BYTES", "0")
            .env("MAX_CONNECTIONS_PER_USER", "0")
            .env("MAX_CONNECTIONS", MAX_CONNECTIONS)
            // The generator answers no pings; no run is so long.
            .env("PING_INTERVAL", "600")
            .env("LOG_LEVEL", "warn")
            .stdout(Stdio::from(io::stderr()));
        // Unset, it would look for a Redis at the usual place.
        let redis = match broker {
            Broker::None => String::new(),
            Broker::Redis(redis, _) => redis.address.to_string(),
        };
        command.env("REDIS_ADDR", redis);
        if matches!(broker, Broker::Redis(_, History::Off)) {
            command.env("HISTORY_MESSAGES", "0");
        }
        let child =
            command.spawn().map_err(|error| format!("starting {}: {error}", binary.display()))?;
        let mut target = Self { process: Process(child), address, socket_path: None };
        let state = match broker {
            Broker::None => "",
            Broker::Redis(..) => "\"redis\":\"connected\"",
        };
        wait_until(&format!("/health to be 200 {state}"), || {
            target.process.check_alive()?;
            let answer = health(address).unwrap_or_default();
            Ok(answer.starts_with("HTTP/1.1 200") && answer.contains(state))
        })?;
        Ok(target)
    }

    pub(crate) fn cpu_time(&self) -> Fallible<Duration> {
        measure::cpu_time(self.process.0.id())
    }

    /// Memory of this process, of the server, and of the kernel, in KiB.
    pub(crate) fn taken_kib(&self) -> Fallible<f64> {
        Ok(memory::taken_kib(self.process.0.id())? as f64)
    }

    pub(crate) fn resident_kib(&self) -> Fallible<f64> {
        measure::resident_kib(self.process.0.id())
    }

    pub(crate) fn threads(&self) -> Fallible<u64> {
        measure::threads(self.process.0.id())
    }

    pub(crate) fn descriptors(&self) -> Fallible<u64> {
        measure::descriptors(self.process.0.id())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(path) = &self.socket_path {
            // Not there when the floor could not start.
            let _ = fs::remove_file(path);
        }
    }
}

/// A `redis-server` of the run's own, without persistence.
pub(crate) struct Redis {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Redis {
    /// # Errors
    /// When no `redis-server` is installed, or it does not answer.
    pub(crate) fn start() -> Fallible<Self> {
        let address = free_address()?;
        let child = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", &address.ip().to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("starting redis-server: {error}"))?;
        let mut process = Process(child);
        wait_until("redis-server to answer", || {
            process.check_alive()?;
            Ok(ask(address, b"PING\r\n", |answer| answer == PONG)
                .is_ok_and(|answer| answer.as_bytes() == PONG))
        })?;
        Ok(Self { process, address })
    }

    pub(crate) fn cpu_time(&self) -> Fallible<Duration> {
        measure::cpu_time(self.process.0.id())
    }
}

/// Waits for `is_so`, at most the time that a start may take.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> Fallible<bool>) -> Fallible<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("waited {START_DEADLINE:?} for {what}").into());
        }
        thread::sleep(RETRY_PAUSE);
    }
    Ok(())
}

/// Free at this moment; nobody else on the machine is likely to take it within the next.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn health(address: SocketAddr) -> io::Result<String> {
    let request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    ask(address, request, |answer| matches!(wire::parse_response(answer), Ok(Some(_))))
}

/// What comes in answer to `request`, until it is whole or the stream ends.
fn ask(
    address: SocketAddr,
    request: &[u8],
    is_whole: impl Fn(&[u8]) -> bool,
) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, START_DEADLINE)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !is_whole(&answer) {
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
