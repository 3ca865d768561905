//! The floor of what goes through Redis: the command alone that the service has it run, by Redis's own
//! `redis-benchmark`, beside as many subscribers as there would be instances.
//!
//! It has one room: `redis-benchmark` cannot name the same random room in several arguments.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use realtime_service::config::NUMBERS_TTL;
use redis::{Client, Connection, cmd};

use crate::Fallible;
use crate::fanout::figures::{self, Figure};
use crate::fanout::loads::Effort;
use crate::fanout::redis::Passage;
use crate::fanout::target::{History, Redis, wait_until};
use crate::fanout::wire;

/// The script that the service uses.
const SCRIPT: &str = include_str!("../../src/bridge/redis/log.lua");
/// As many as the service sends at once.
const MOST_IN_PIPELINE: usize = 512;
/// Enough to know how many take the measured time.
const FIRST_COUNT: usize = 10_000;

const CHANNEL: &str = "ws:room:room-0";
const NUMBERS: &str = "ws:log:room:room-0";
const MESSAGES: &str = "ws:messages:room:room-0";
const LIFE: &str = "ws:life";
const INSTANCE: &str = "6f1c1f7e-8f4e-4f0e-9a3b-0d3c5f1a2b4c";
/// `HISTORY_MESSAGES` and `HISTORY_TTL` by default, the latter in milliseconds.
const KEPT_MESSAGES: &str = "100";
const KEPT_MS: &str = "120000";

/// What an instance subscribes to: all that it does with history.
const PATTERNS: [&str; 7] = [
    "ws:room:*",
    "ws:user:*",
    "ws:broadcast",
    "events",
    "ws:probe:6f1c1f7e-8f4e-4f0e-9a3b-0d3c5f1a2b4c",
    "ws:log:*",
    "ws:mark:6f1c1f7e-8f4e-4f0e-9a3b-0d3c5f1a2b4c",
];
/// Those of them without history.
const PLAIN_PATTERNS: usize = 5;

/// Runs the command as fast as Redis does, with as many on their way as in the service's run.
pub(crate) fn run(passage: Passage, effort: Effort) -> Fallible<Vec<Figure>> {
    let redis = Redis::start()?;
    let mut connection = Client::open(format!("redis://{}", redis.address))?.get_connection()?;
    let patterns = match passage.history {
        History::On => PATTERNS.as_slice(),
        History::Off => &PATTERNS[..PLAIN_PATTERNS],
    };
    for _ in 0..passage.instances {
        listen(redis.address, patterns)?;
    }
    wait_until("the subscriptions", || {
        let count: usize = cmd("PUBSUB").arg("NUMPAT").query(&mut connection)?;
        Ok(count == patterns.len())
    })?;
    let command = match passage.history {
        History::On => append(&mut connection)?,
        History::Off => publish(),
    };
    let tool = |count| run_tool(redis.address, passage, &command, count);
    let per_second = |time: Duration, count| figures::per_second(count as u64, time);
    let first = tool(FIRST_COUNT)?;
    let count = (per_second(first, FIRST_COUNT) * effort.span.as_secs_f64()) as usize;
    let before = redis.cpu_time()?;
    let elapsed = tool(count)?;
    let cpu = redis.cpu_time()?.saturating_sub(before);
    if passage.history == History::On {
        let numbered: usize = cmd("HGET").arg(NUMBERS).arg("seq").query(&mut connection)?;
        if numbered < FIRST_COUNT + count {
            return Err(format!("redis-benchmark had {numbered} messages numbered").into());
        }
    }
    Ok(vec![
        (figures::THROUGH_REDIS, per_second(elapsed, count)),
        (figures::REDIS_CPU, figures::micros_each(cpu, count as u64)),
    ])
}

/// The call that numbers a message, as in `src/bridge/redis/script.rs`.
fn append(connection: &mut Connection) -> Fallible<Vec<String>> {
    let hash: String = cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query(connection)?;
    let info: String = cmd("INFO").arg("server").query(connection)?;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).ok_or("no run_id")?;
    let origin = format!("{INSTANCE}:123456");
    let ttl = NUMBERS_TTL.as_secs().to_string();
    let members = members();
    let arguments: [&str; 15] = [
        "EVALSHA",
        &hash,
        "3",
        NUMBERS,
        MESSAGES,
        LIFE,
        "append",
        run_id.trim(),
        "0123456789abcdef-123456",
        &ttl,
        KEPT_MS,
        KEPT_MESSAGES,
        CHANNEL,
        &origin,
        &members,
    ];
    Ok(arguments.map(str::to_owned).into())
}

/// The same message, published without a number.
fn publish() -> Vec<String> {
    let message = format!("{{\"origin\":\"{INSTANCE}:123456\",{}", members());
    vec!["PUBLISH".to_owned(), CHANNEL.to_owned(), message]
}

/// What the service publishes of a broadcast of the benchmark.
fn members() -> String {
    format!(
        "\"from\":\"3f7d4c61-2\",\"room\":\"room-0\",\"ts\":\"2026-01-01T00:00:00.000Z\",\"body\":{}}}",
        wire::sample_body()
    )
}

/// How long `redis-benchmark` takes for `count` commands.
fn run_tool(
    address: SocketAddr,
    passage: Passage,
    command: &[String],
    count: usize,
) -> Fallible<Duration> {
    let in_flight = passage.rooms * passage.in_flight / passage.instances;
    let start = Instant::now();
    let output = Command::new("redis-benchmark")
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-q"])
        .args(["-c", &passage.instances.to_string()])
        .args(["-P", &in_flight.min(MOST_IN_PIPELINE).to_string()])
        .args(["-n", &count.to_string()])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("starting redis-benchmark: {error}"))?;
    let elapsed = start.elapsed();
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        return Err(format!("redis-benchmark: {}", text.escape_ascii()).into());
    }
    Ok(elapsed)
}

/// Subscribes, and from then on reads what comes until Redis ends.
fn listen(address: SocketAddr, patterns: &[&str]) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("PSUBSCRIBE {}\r\n", patterns.join(" ")).as_bytes())?;
    thread::spawn(move || {
        let mut chunk = vec![0; 64 * 1024];
        while stream.read(&mut chunk).is_ok_and(|count| count > 0) {}
    });
    Ok(())
}
