//! `cargo bench --bench fanout`: the service against the least work that any server of its protocol
//! could do.
//!
//! One epoll thread opens the connections, publishes, and checks at every receiver that each
//! message came once and in order. The *floor* beside it is this binary again, as a bare epoll loop
//! (or, for REST, tiny_http behind a bare gate) with the same protocol and nothing else. Each
//! scenario runs on fresh processes, floor and service in turn, so that whatever else the machine
//! does meets both; medians are compared. See [`HELP`] for the arguments.

#![allow(
    clippy::indexing_slicing,
    reason = "numbers of the benchmark's own; a wrong one ends a measurement, not a service"
)]

mod fanout {
    pub(crate) mod callers;
    pub(crate) mod chart;
    pub(crate) mod connections;
    pub(crate) mod figures;
    pub(crate) mod floor;
    pub(crate) mod ledger;
    pub(crate) mod loads;
    pub(crate) mod measure;
    pub(crate) mod memory;
    pub(crate) mod recover;
    pub(crate) mod redis;
    pub(crate) mod redis_floor;
    pub(crate) mod report;
    pub(crate) mod rest_floor;
    pub(crate) mod rooms;
    pub(crate) mod scenarios;
    pub(crate) mod swarm;
    pub(crate) mod target;
    pub(crate) mod tokens;
    pub(crate) mod wire;
}

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, ValueExt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fanout::floor::Flush;
use crate::fanout::loads::{self, Effort, Trial};
use crate::fanout::measure::Busyness;
use crate::fanout::report::{self, Outcome};
use crate::fanout::scenarios::{self, Scenario};
use crate::fanout::target::Side;
use crate::fanout::tokens::Tokens;
use crate::fanout::{chart, floor, rest_floor};

/// A result whose error is text for the person who runs the benchmark.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const HELP: &str = "\
cargo bench --bench fanout -- [NAME…] [OPTIONS]

Runs the scenarios named, or all, and prints one table. The exit code is 1 when a bar was missed or a run failed.

  --list          lists the scenarios
  --quick         short runs, one of each: to see that it works, not to compare
  --runs N        interleaved runs of each scenario and side (default 3)
  --only SIDE     only the `floor`, the `unbounded-floor` or the `service`
  --chart PATH    also draws the throughputs, as SVG

REALTIME_SERVICE_BIN names another build of the service to measure.";

struct Arguments {
    names: Vec<String>,
    effort: Effort,
    runs: usize,
    sides: Vec<Side>,
    chart: Option<PathBuf>,
}

enum Task {
    /// What a person asks for.
    Measure(Arguments),
    List,
    Help,
    /// `cargo test --all-targets` starts benchmarks too, without `--bench`.
    Skip,
    /// What the benchmark starts itself as.
    Floor(Flush),
    RestFloor(String),
}

fn main() -> ExitCode {
    match parse().and_then(perform) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fanout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Fallible<Task> {
    let mut parser = lexopt::Parser::from_env();
    let mut arguments = Arguments {
        names: Vec::new(),
        effort: Effort::FULL,
        runs: 3,
        sides: vec![Side::Floor, Side::UnboundedFloor, Side::Service],
        chart: None,
    };
    let mut is_bench = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("floor") => return Ok(Task::Floor(Flush::Bounded)),
            Arg::Long("unbounded-floor") => return Ok(Task::Floor(Flush::Unbounded)),
            Arg::Long("rest-floor") => return Ok(Task::RestFloor(parser.value()?.string()?)),
            Arg::Long("help") | Arg::Short('h') => return Ok(Task::Help),
            Arg::Long("list") => return Ok(Task::List),
            Arg::Long("bench") => is_bench = true,
            Arg::Long("quick") => {
                arguments.effort = Effort::QUICK;
                arguments.runs = 1;
            }
            Arg::Long("runs") => arguments.runs = parser.value()?.parse()?,
            Arg::Long("only") => arguments.sides = vec![side(&parser.value()?)?],
            Arg::Long("chart") => arguments.chart = Some(parser.value()?.into()),
            Arg::Value(name) => arguments.names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(if is_bench { Task::Measure(arguments) } else { Task::Skip })
}

fn side(name: &OsString) -> Fallible<Side> {
    match name.to_str() {
        Some("floor") => Ok(Side::Floor),
        Some("unbounded-floor") => Ok(Side::UnboundedFloor),
        Some("service") => Ok(Side::Service),
        _ => {
            Err(format!("--only {}: expected floor, unbounded-floor or service", name.display())
                .into())
        }
    }
}

fn perform(task: Task) -> Fallible<ExitCode> {
    match task {
        Task::Floor(flush_when) => floor::run(flush_when)?,
        Task::RestFloor(path) => rest_floor::run(&path)?,
        Task::Help => println!("{HELP}"),
        Task::Skip => println!("nothing measured: run it as cargo bench --bench fanout"),
        Task::List => {
            for scenario in scenarios::ALL {
                println!("{:<16} {}", scenario.name, scenario.about);
            }
        }
        Task::Measure(arguments) => return measure(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(arguments: &Arguments) -> Fallible<ExitCode> {
    raise_descriptor_limit()?;
    let tokens = Tokens::new()?;
    let before = Busyness::now()?;
    let mut outcomes = Vec::new();
    for scenario in chosen(&arguments.names)? {
        eprintln!("{}: {}", scenario.name, scenario.about);
        outcomes.push(run(scenario, arguments, &tokens));
    }
    let of_others = Busyness::now()?.of_others_since(&before);
    let missed = report::print(&outcomes, arguments.runs);
    println!(
        "Other processes used {:.0} % of the machine's processors meanwhile.",
        of_others * 100.0
    );
    if let Some(path) = &arguments.chart {
        fs::write(path, chart::svg(&outcomes))
            .map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> Fallible<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(scenarios::ALL.iter().collect());
    }
    let find = |name: &String| {
        let scenario = scenarios::ALL.iter().find(|scenario| scenario.name == name);
        scenario.ok_or_else(|| format!("no scenario {name:?}; --list lists them").into())
    };
    names.iter().map(find).collect()
}

/// Runs a scenario as often as asked for, the sides in turn.
fn run(scenario: &'static Scenario, arguments: &Arguments, tokens: &Tokens) -> Outcome {
    let mut outcome = Outcome::new(scenario);
    for _ in 0..arguments.runs {
        for &side in &arguments.sides {
            if !scenario.runs_on(side) {
                continue;
            }
            match loads::run(scenario.load, Trial { side, tokens, effort: arguments.effort }) {
                Ok(figures) => outcome.add(side, figures),
                Err(error) => {
                    eprintln!("{}: {side:?}: {error}", scenario.name);
                    outcome.add_failure(side, &error.to_string());
                }
            }
        }
    }
    outcome
}

/// 10,000 connections need as many descriptors, in this process and in each server that inherits
/// the limit.
fn raise_descriptor_limit() -> Fallible<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}
