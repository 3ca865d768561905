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
pub(crate) const NEAR_OFF_P50: &str = "publisher's instance p50, no history, ms";
pub(crate) const NEAR_OFF_P99: &str = "publisher's instance p99, no history, ms";
pub(crate) const FAR_OFF_P50: &str = "other instance p50, no history, ms";
pub(crate) const FAR_OFF_P99: &str = "other instance p99, no history, ms";
pub(crate) const NEAR_P50: &str = "publisher's instance p50, ms";
pub(crate) const NEAR_P99: &str = "publisher's instance p99, ms";
pub(crate) const FAR_P50: &str = "other instance p50, ms";
pub(crate) const FAR_P99: &str = "other instance p99, ms";
pub(crate) const ADDED_NEAR_P50: &str = "added at the publisher's, p50, ms";
pub(crate) const ADDED_NEAR_P99: &str = "added at the publisher's, p99, ms";
pub(crate) const ADDED_FAR_P50: &str = "added at the other, p50, ms";
pub(crate) const ADDED_FAR_P99: &str = "added at the other, p99, ms";
pub(crate) const WAY_P99: &str = "far p99 over near p99 without history, ms";
pub(crate) const THROUGH_REDIS: &str = "messages through Redis/s";
pub(crate) const REDIS_CPU: &str = "Redis CPU per message, µs";
pub(crate) const SERVICE_CPU: &str = "CPU of all instances per message, µs";
pub(crate) const REQUESTS_ALONE: &str = "requests/s without Redis";
pub(crate) const REQUESTS_OFF: &str = "requests/s with Redis, no history";
pub(crate) const REQUESTS_ON: &str = "requests/s with Redis and history";
pub(crate) const ANSWER_ALONE: &str = "answer p50 without Redis, µs";
pub(crate) const ANSWER_OFF: &str = "answer p50 with Redis, no history, µs";
pub(crate) const ANSWER_ON: &str = "answer p50 with Redis and history, µs";
pub(crate) const ANSWER_ALONE_P99: &str = "answer p99 without Redis, µs";
pub(crate) const ANSWER_OFF_P99: &str = "answer p99 with Redis, no history, µs";
pub(crate) const ANSWER_ON_P99: &str = "answer p99 with Redis and history, µs";
pub(crate) const OFF_TO_ALONE: &str = "requests, no history to no Redis";
pub(crate) const ON_TO_ALONE: &str = "requests, history to no Redis";

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
