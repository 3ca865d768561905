//! What the system allows, and how many connections and writers that leaves (docs/ARCHITECTURE.md).
//!
//! Past `max_map_count` a new thread can abort the whole process, so the service lowers its own limits
//! at the start instead of meeting the system's later.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::config::{BACKEND_CALLS, RESERVE_CONNECTIONS, REST_CONNECTIONS};

/// Memory maps of a Rust thread: stack, its guard, signal stack, its guard.
const MAPS_PER_THREAD: u64 = 4;
/// Threads besides those of connections: hub, gate, Redis, log, signals, main, and room for tiny_http's.
const FIXED_THREADS: u64 = 32 + (BACKEND_CALLS + 2 * REST_CONNECTIONS) as u64;
/// Descriptors besides those of connections: listener, Redis, backend calls, both ends of the REST hop.
const FIXED_DESCRIPTORS: u64 = 32 + (BACKEND_CALLS + 2 * REST_CONNECTIONS) as u64;
/// Of what the system has left, the part that is never planned for: an eighth.
const MARGIN_DIVISOR: u64 = 8;
/// Fewer connections than this are a mistake in the system's limits, unless asked for.
const FEWEST_CONNECTIONS: usize = 10;

/// A limit and what of it is used already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The limit.
    pub limit: u64,
    /// What is used of it now, by this process or by all that share it.
    pub used: u64,
}

impl Quota {
    fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    fn left_with_margin(self) -> u64 {
        let left = self.left();
        left - left / MARGIN_DIVISOR
    }
}

/// The limits of the system that bound connections; `None` for one that is absent or unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SystemLimits {
    /// `RLIMIT_NOFILE`, and the descriptors open in this process.
    pub descriptors: Option<Quota>,
    /// `vm.max_map_count`, and the maps of this process.
    pub memory_maps: Option<Quota>,
    /// `kernel.threads-max`, and all threads of the machine.
    pub threads_max: Option<Quota>,
    /// `kernel.pid_max`, and all threads of the machine.
    pub pid_max: Option<Quota>,
    /// `RLIMIT_NPROC`, and all threads of this user; it does not bind root.
    pub user_threads: Option<Quota>,
    /// The tightest `pids.max` of the cgroup and those above it, and its `pids.current`.
    pub cgroup_threads: Option<Quota>,
}

/// The limit that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decider {
    /// Its name, as an administrator knows it.
    pub name: &'static str,
    /// Its value.
    pub limit: u64,
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.name, self.limit)
    }
}

/// What the service may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Connections at once, the reserve not counted.
    pub max_connections: usize,
    /// Writer threads at once.
    pub max_writers: usize,
    /// The limit that lowered them; `None` when all that was wanted fits.
    pub decided_by: Option<Decider>,
}

impl fmt::Display for Capacity {
    /// The line to log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_connections, max_writers, .. } = self;
        match self.decided_by {
            None => write!(f, "{max_connections} connections and {max_writers} writers fit"),
            Some(limit) => write!(
                f,
                "lowered to {max_connections} connections and {max_writers} writers: {limit}"
            ),
        }
    }
}

/// The system leaves room for too few connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {max_connections} connections fit, expected at least {FEWEST_CONNECTIONS}: {decided_by}"
)]
pub struct TooFew {
    /// How many fit.
    pub max_connections: usize,
    /// The limit that decided.
    pub decided_by: Decider,
}

impl Capacity {
    /// Lowers what is wanted to what fits: threads for connections, reserve and writers, in the wanted
    /// proportion; a descriptor for each connection.
    ///
    /// # Errors
    /// [`TooFew`] when fewer connections fit than the service is of use with.
    pub fn within(
        max_connections: usize,
        max_writers: usize,
        limits: &SystemLimits,
    ) -> Result<Self, TooFew> {
        let mut capacity = Self { max_connections, max_writers, decided_by: None };
        for (decider, threads) in limits.thread_budgets() {
            let (connections, writers) = share(threads, max_connections, max_writers);
            capacity.lower(connections, writers, decider);
        }
        if let Some(quota) = limits.descriptors {
            let connections = to_usize(quota.left())
                .saturating_sub(to_usize(FIXED_DESCRIPTORS) + RESERVE_CONNECTIONS);
            let decider = Decider { name: "RLIMIT_NOFILE", limit: quota.limit };
            capacity.lower(connections, max_writers, decider);
        }
        match capacity.decided_by {
            Some(decided_by)
                if capacity.max_connections < FEWEST_CONNECTIONS.min(max_connections) =>
            {
                Err(TooFew { max_connections: capacity.max_connections, decided_by })
            }
            _ => Ok(capacity),
        }
    }

    fn lower(&mut self, connections: usize, writers: usize, decider: Decider) {
        if connections < self.max_connections {
            self.max_connections = connections;
            self.decided_by = Some(decider);
        }
        // A connection never has two writers.
        self.max_writers = self.max_writers.min(writers).min(self.max_connections);
    }
}

impl SystemLimits {
    /// How many threads each limit leaves the service.
    fn thread_budgets(&self) -> impl Iterator<Item = (Decider, u64)> {
        let maps = self.memory_maps.map(|quota| {
            let decider = Decider { name: "vm.max_map_count", limit: quota.limit };
            (decider, quota.left_with_margin() / MAPS_PER_THREAD)
        });
        let counted = [
            ("kernel.threads-max", self.threads_max),
            ("kernel.pid_max", self.pid_max),
            ("RLIMIT_NPROC", self.user_threads),
            ("pids.max of the cgroup", self.cgroup_threads),
        ];
        let counted = counted.into_iter().filter_map(|(name, quota)| {
            let quota = quota?;
            Some((Decider { name, limit: quota.limit }, quota.left_with_margin()))
        });
        maps.into_iter().chain(counted)
    }

    /// Raises `RLIMIT_NOFILE` to its hard limit, then reads all limits. What cannot be read counts as
    /// unlimited.
    pub fn read() -> Self {
        let machine_threads = machine_threads().unwrap_or(0);
        let of_machine = |path: &str| {
            read_number(Path::new(path)).map(|limit| Quota { limit, used: machine_threads })
        };
        Self {
            descriptors: raise_descriptors()
                .map(|limit| Quota { limit, used: count_entries("/proc/self/fd") }),
            memory_maps: read_number(Path::new("/proc/sys/vm/max_map_count"))
                .map(|limit| Quota { limit, used: count_lines("/proc/self/maps") }),
            threads_max: of_machine("/proc/sys/kernel/threads-max"),
            pid_max: of_machine("/proc/sys/kernel/pid_max"),
            user_threads: user_threads(),
            cgroup_threads: cgroup_threads(),
        }
    }
}

/// Shares threads between connections and writers in the wanted proportion, after the fixed ones and
/// the reserve.
fn share(threads: u64, connections: usize, writers: usize) -> (usize, usize) {
    let left = to_usize(threads.saturating_sub(FIXED_THREADS)).saturating_sub(RESERVE_CONNECTIONS);
    let wanted = connections.saturating_add(writers);
    if wanted <= left {
        return (connections, writers);
    }
    // At least one: without a writer every client that pushes back once would be cut.
    let writers = (to_u128(writers) * to_u128(left)).checked_div(to_u128(wanted));
    let writers = usize::try_from(writers.unwrap_or(0)).unwrap_or(0).max(1);
    (left.saturating_sub(writers), writers)
}

fn to_u128(number: usize) -> u128 {
    number as u128
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `None` when unlimited.
fn raise_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        // It may be refused (an unlimited hard limit is above fs.nr_open): the soft one then holds.
        Err(_) => current,
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn count_entries(path: &str) -> u64 {
    fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

fn count_lines(path: &str) -> u64 {
    fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64)
}

/// All threads of the machine: the fourth field of `/proc/loadavg` is "running/all".
fn machine_threads() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()
}

/// `RLIMIT_NPROC` counts threads of the real user over the whole machine, and does not bind root.
fn user_threads() -> Option<Quota> {
    let user = geteuid();
    if user.is_root() {
        return None;
    }
    let limit = getrlimit(Resource::Nproc).current?;
    let processes = fs::read_dir("/proc").ok()?;
    let used = processes
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("status")).ok())
        .filter_map(|status| threads_of(&status, user.as_raw()))
        .sum();
    Some(Quota { limit, used })
}

/// The threads of a process, from its `/proc/<pid>/status`, when it belongs to this user.
fn threads_of(status: &str, user: u32) -> Option<u64> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()
    };
    (field("Uid:")? == user.to_string()).then(|| field("Threads:")?.parse().ok()).flatten()
}

fn cgroup_threads() -> Option<Quota> {
    let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
    pids_directories(&memberships)
        .into_iter()
        .filter_map(|directory| {
            // "max" is no number: unlimited.
            let limit = read_number(&directory.join("pids.max"))?;
            let used = read_number(&directory.join("pids.current")).unwrap_or(0);
            Some(Quota { limit, used })
        })
        .min_by_key(|quota| quota.left())
}

/// The directories of the process's pids cgroup and of all above it, for version 2 (`0::/path`) and 1
/// (`4:pids:/path`).
fn pids_directories(memberships: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mount = match controllers {
            "" => "/sys/fs/cgroup",
            list if list.split(',').any(|c| c == "pids") => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        for above in Path::new(path).ancestors() {
            let relative = above.strip_prefix("/").unwrap_or(above);
            directories.push(Path::new(mount).join(relative));
        }
    }
    directories
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
