//! What a load measures: the names of the figures, with their units, and how they are computed.

use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::measure::Histogram;
use crate::fanout::target::Target;

pub(crate) const DELIVERIES: &str = "deliveries/s";
pub(crate) const DELIVERY_CPU: &str = "server CPU per delivery, µs";
pub(crate) const NOTIFICATIONS: &str = "notifications/s";
pub(crate) const REQUESTS: &str = "requests/s";
pub(crate) const NOTIFICATION_CPU: &str = "server CPU per notification, µs";
pub(crate) const P50: &str = "latency p50, µs";
pub(crate) const P99: &str = "latency p99, µs";
pub(crate) const MAX: &str = "latency max, µs";
pub(crate) const MEMORY: &str = "all memory per connection, KiB";
pub(crate) const AVAILABLE: &str = "the same by MemAvailable, KiB";
pub(crate) const RESIDENT: &str = "server RSS per connection, KiB";
pub(crate) const THREADS: &str = "server threads per connection";
pub(crate) const IDLE_CPU: &str = "server CPU while idle, ms per s";
pub(crate) const OPENED: &str = "connections opened/s";
pub(crate) const CAME_AND_WENT: &str = "connections come and gone/s";
pub(crate) const CONNECTION_CPU: &str = "server CPU per connection, µs";
pub(crate) const LEFT_BEHIND: &str = "threads and descriptors left behind";
pub(crate) const ALONE: &str = "other room alone, ms";
pub(crate) const BEHIND: &str = "other room behind the broadcast, ms";
pub(crate) const DELAY: &str = "delay, ms";
pub(crate) const DELAY_IN_FLUSHES: &str = "delay, in flushes of 16,384 frames";
pub(crate) const PAIR_ALONE_P50: &str = "pair alone p50, ms";
pub(crate) const PAIR_ALONE_P99: &str = "pair alone p99, ms";
pub(crate) const PAIR_P50: &str = "pair beside the floods p50, ms";
pub(crate) const PAIR_P99: &str = "pair beside the floods p99, ms";
pub(crate) const PAIR_MAX: &str = "pair beside the floods max, ms";
pub(crate) const FLOOD_DELIVERIES: &str = "deliveries of the floods/s";
pub(crate) const FLOOD_CPU: &str = "server CPU per delivery of these, µs";
pub(crate) const RECOVERED: &str = "messages recovered/s";
pub(crate) const READ_LIVE: &str = "messages read live/s";
pub(crate) const RECOVERED_TO_LIVE: &str = "recovered, of those read live";
pub(crate) const RECOVERED_CPU: &str = "server CPU per message recovered, µs";
pub(crate) const READ_LIVE_CPU: &str = "server CPU per message read live, µs";
pub(crate) const NEAR_P99: &str = "p99 at the publisher's instance, ms";
pub(crate) const FAR_P99: &str = "p99 at the other instance, ms";
pub(crate) const ADDED_P99: &str = "p99 added by the way over Redis, ms";

/// A name, with its unit, and a value.
pub(crate) type Figure = (&'static str, f64);

/// Runs a measured piece of work: its elapsed time and the CPU time that the server spent on it.
pub(crate) fn measured(
    target: &Target,
    work: impl FnOnce() -> Fallible<()>,
) -> Fallible<(Duration, Duration)> {
    let cpu_before = target.cpu_time()?;
    let start = Instant::now();
    work()?;
    let elapsed = start.elapsed();
    Ok((elapsed, target.cpu_time()?.saturating_sub(cpu_before)))
}

pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

pub(crate) fn micros_each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

pub(crate) fn latencies(histogram: &Histogram) -> [Figure; 3] {
    [
        (P50, histogram.quantile_us(0.5)),
        (P99, histogram.quantile_us(0.99)),
        (MAX, histogram.max_us()),
    ]
}
