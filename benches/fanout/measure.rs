//! Numbers: latencies in a histogram, medians, and what /proc says about a process and the machine.

use std::fs;
use std::time::Duration;

use crate::Fallible;

/// Buckets per doubling: a bucket is 1.6 % wide.
const SUB_BUCKETS: u64 = 64;
const SUB_BUCKET_BITS: u32 = SUB_BUCKETS.trailing_zeros();

/// Counts durations in buckets of 1.6 %, so that ten million samples take no memory.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    samples: u64,
    max_ns: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let doublings = u64::from(u64::BITS - SUB_BUCKET_BITS + 1);
        Self { counts: vec![0; (doublings * SUB_BUCKETS) as usize], samples: 0, max_ns: 0 }
    }

    /// Nanoseconds below `SUB_BUCKETS` have a bucket each; above, the leading bits name the bucket.
    fn bucket(ns: u64) -> usize {
        let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(SUB_BUCKET_BITS + 1);
        (u64::from(shift) * SUB_BUCKETS + (ns >> shift)) as usize
    }

    fn lower_bound(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        let shift = (bucket / SUB_BUCKETS).saturating_sub(1);
        (bucket - shift * SUB_BUCKETS) << shift
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.counts[Self::bucket(ns)] += 1;
        self.samples += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// The duration that a share `of_samples` (0 to 1) stays below, in microseconds; 0 without
    /// samples.
    pub(crate) fn quantile_us(&self, of_samples: f64) -> f64 {
        let rank = (self.samples as f64 * of_samples).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Self::lower_bound(bucket) as f64 / 1000.0;
            }
        }
        0.0
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.max_ns as f64 / 1000.0
    }
}

/// The middle value, `NaN` of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Kernel ticks per second in /proc: the same on every Linux that Rust's std supports with these
/// files.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that all threads of process `pid` have used, ended ones too, in steps of 10 ms (proc(5),
/// `stat`).
pub(crate) fn cpu_time(pid: u32) -> Fallible<Duration> {
    let ticks: u64 = process_times(&pid.to_string())?.iter().take(2).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

/// `utime`, `stime`, `cutime` and `cstime` of a process, in ticks.
fn process_times(pid: &str) -> Fallible<Vec<u64>> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path)?;
    // The name before it may hold spaces and parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields.split_ascii_whitespace().skip(11).take(4).map(str::parse);
    let times: Vec<u64> = times.collect::<Result<_, _>>()?;
    if times.len() < 4 {
        return Err(format!("{path} is not as proc(5) says: {stat}").into());
    }
    Ok(times)
}

/// How busy the machine has been since its start, in ticks of all processors.
pub(crate) struct Busyness {
    total: u64,
    idle: u64,
    /// By this process and those that it has started and waited for.
    own: u64,
}

impl Busyness {
    pub(crate) fn now() -> Fallible<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let first = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; guest times are in user's already.
        let times = first.split_ascii_whitespace().skip(1).take(8).map(str::parse);
        let times: Vec<u64> = times.collect::<Result<_, _>>()?;
        let own = process_times("self")?.iter().sum();
        Ok(Self { total: times.iter().sum(), idle: times.iter().skip(3).take(2).sum(), own })
    }

    /// The share of the machine's processors that others have used since `before`, 0 to 1.
    pub(crate) fn of_others_since(&self, before: &Self) -> f64 {
        let total = self.total.saturating_sub(before.total);
        let idle = self.idle.saturating_sub(before.idle);
        let own = self.own.saturating_sub(before.own);
        total.saturating_sub(idle).saturating_sub(own) as f64 / total.max(1) as f64
    }
}

/// One line of a `name: value` file under /proc, as a number.
fn proc_number(path: &str, name: &str) -> Fallible<u64> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| format!("{path} has no number {name}").into())
}

/// Resident memory of process `pid`, in KiB.
pub(crate) fn resident_kib(pid: u32) -> Fallible<f64> {
    Ok(proc_number(&format!("/proc/{pid}/status"), "VmRSS")? as f64)
}

/// Threads of process `pid`.
pub(crate) fn threads(pid: u32) -> Fallible<u64> {
    proc_number(&format!("/proc/{pid}/status"), "Threads")
}

/// Open descriptors of process `pid`.
pub(crate) fn descriptors(pid: u32) -> Fallible<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// What the whole machine can still hand out, kernel memory counted, in KiB.
pub(crate) fn available_kib() -> Fallible<f64> {
    Ok(proc_number("/proc/meminfo", "MemAvailable")? as f64)
}
