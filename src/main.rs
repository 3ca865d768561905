//! The service's binary: environment → `Server::start` → wait for a signal → `shutdown`.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use lexopt::{Arg, Parser};
use log::{error, info};
use realtime_service::config::{Config, SETTINGS, Variables, bind_address};
use realtime_service::logging;
use realtime_service::server::Server;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long queued log lines may take to get out at the end.
const LOG_FLUSH: Duration = Duration::from_millis(500);
/// How long `healthcheck` may take.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What the command line asks for.
enum Command {
    Serve,
    Healthcheck,
    Print(String),
}

/// Why the process ends with another code than 0, in one line.
enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
    Other(String),
}

impl Failure {
    fn other(error: impl fmt::Display) -> Self {
        Self::Other(error.to_string())
    }
}

fn main() -> ExitCode {
    let done = command(Parser::from_env()).and_then(|command| match command {
        Command::Serve => serve(),
        Command::Healthcheck => healthcheck(),
        Command::Print(text) => io::stdout().write_all(text.as_bytes()).map_err(Failure::other),
    });
    let (code, line) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => (2, format!("{line} (see --help)")),
        Err(Failure::Other(line)) => (1, line),
    };
    // If stderr is closed, the exit code is all that tells.
    let _ = writeln!(io::stderr(), "realtime_service: {line}");
    ExitCode::from(code)
}

fn command(mut arguments: Parser) -> Result<Command, Failure> {
    let usage = |error: lexopt::Error| {
        Failure::Usage(error.to_string().replace(|c: char| c.is_control(), "?"))
    };
    let mut command = Command::Serve;
    while let Some(argument) = arguments.next().map_err(usage)? {
        command = match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Command::Print(
                    concat!("realtime_service ", env!("CARGO_PKG_VERSION"), "\n").into(),
                ));
            }
            Arg::Value(word) if word == "healthcheck" => Command::Healthcheck,
            other => return Err(usage(other.unexpected())),
        };
    }
    Ok(command)
}

fn help() -> String {
    let mut text = String::from(
        "Realtime server of a marketplace: WebSocket rooms, broadcasts, notifications.\n\n\
         Usage: realtime_service              serve until SIGTERM or SIGINT\n\
         \x20      realtime_service healthcheck  ask the service on this machine: exit code 0 or 1\n\
         \x20      realtime_service --help | --version\n\n\
         Settings come from the environment, and from .env where it does not have them:\n\n",
    );
    for setting in SETTINGS {
        text += &format!("  {:<26}{:<16}{}\n", setting.name, setting.default, setting.meaning);
    }
    text
}

fn serve() -> Result<(), Failure> {
    let variables = Variables::load().map_err(Failure::Other)?;
    let config = Config::from_lookup(|name| variables.get(name)).map_err(Failure::other)?;
    let printer = logging::init(config.log_level, config.log_format).map_err(Failure::other)?;
    // From here on a signal is never lost.
    let signals = watch_signals().map_err(Failure::other)?;
    let ended =
        Server::start(config).map_err(Failure::other).and_then(|server| run(server, &signals));
    printer.flush(LOG_FLUSH);
    ended
}

fn run(server: Server, signals: &Receiver<i32>) -> Result<(), Failure> {
    select! {
        recv(signals) -> signal => {
            let name = signal.map_or("the end of the signal thread", name_of);
            info!(signal = name; "shutting down");
        }
        recv(server.failures()) -> thread => {
            let thread = thread.unwrap_or_default();
            error!(thread; "a thread failed that the service cannot do without");
            return Err(Failure::Other(format!("thread {thread} failed")));
        }
    }
    let (ended, shutdown) = bounded(1);
    std::thread::Builder::new()
        .name("shutdown".into())
        .spawn(move || ended.send(server.shutdown()))
        .map_err(Failure::other)?;
    select! {
        recv(shutdown) -> result => match result {
            Ok(Ok(())) => {
                info!("shut down");
                Ok(())
            }
            Ok(Err(unfinished)) => {
                error!(left:% = unfinished; "shutdown took too long");
                Err(Failure::other(unfinished))
            }
            Err(_) => Err(Failure::Other("the shutdown failed".into())),
        },
        recv(signals) -> _ => Err(Failure::Other("ended by a second signal".into())),
    }
}

/// SIGTERM and SIGINT as messages.
fn watch_signals() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, receiver): (Sender<i32>, _) = bounded(2);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            // The second is for whoever does not want to wait for the shutdown.
            let _ = sender.try_send(signal);
        }
    })?;
    Ok(receiver)
}

fn name_of(signal: i32) -> &'static str {
    if signal == SIGINT { "SIGINT" } else { "SIGTERM" }
}

/// Asks `GET /health` of the service that these settings start on this machine.
fn healthcheck() -> Result<(), Failure> {
    let variables = Variables::load().map_err(Failure::Other)?;
    let bind = bind_address(|name| variables.get(name)).map_err(Failure::other)?;
    let url = format!("http://{}/health", reachable(bind));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(None)
        .timeout_global(Some(HEALTHCHECK_TIMEOUT))
        .build()
        .into();
    agent.get(&url).call().map(drop).map_err(|error| Failure::Other(format!("{url}: {error}")))
}

/// A service that listens on all addresses is asked on loopback.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}
