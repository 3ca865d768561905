//! `GET /metrics`: counters and gauges as Prometheus reads them (OpenMetrics text).
//!
//! What the hub knows it counts in plain numbers of its own (`hub::Stats`), which a scrape asks for like
//! any other event; counting costs it nothing else. What others count is in the families here.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use crate::auth::{Authorizer, BackendStats, Verdict};
use crate::bridge::{DropReason, PubSub};
use crate::hub::{Buckets, Event, HubHandle, Stats};
use crate::logging::dropped_lines;

/// Media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why handshakes and connections are refused.
const REFUSALS: [&str; 9] = [
    "bad_request",
    "connection_cap",
    "invalid_token",
    "missing_token",
    "no_thread",
    "origin_not_allowed",
    "shutting_down",
    "token_expired",
    "too_many_connections",
];
/// What becomes of requests to `/api/notify`.
const NOTIFY_RESULTS: [&str; 5] =
    ["bad_request", "forbidden", "sent", "unauthorized", "unavailable"];

/// A counter with one label; clones share it.
#[derive(Debug, Clone)]
pub struct CountBy {
    label: &'static str,
    family: Family<[(&'static str, &'static str); 1], Counter>,
}

impl CountBy {
    /// All kinds stand in the text from the start, so that a rate sees the first of each.
    fn new(label: &'static str, kinds: &[&'static str]) -> Self {
        let family = Family::default();
        for kind in kinds {
            family.get_or_create_owned(&[(label, *kind)]);
        }
        Self { label, family }
    }

    /// Counts one of this kind.
    pub fn count(&self, kind: &'static str) {
        self.family.get_or_create_owned(&[(self.label, kind)]).inc();
    }
}

/// What is counted outside the hub; clones share the numbers.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Handshakes and connections that were refused, by reason.
    pub refused: CountBy,
    /// Requests to `/api/notify`, by result.
    pub notify_requests: CountBy,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            refused: CountBy::new("reason", &REFUSALS),
            notify_requests: CountBy::new("result", &NOTIFY_RESULTS),
        }
    }
}

/// Renders the text.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Over these sources.
    pub fn new(
        counters: &Counters,
        hub: HubHandle,
        authorizer: Arc<Authorizer>,
        bridge: Option<Arc<dyn PubSub>>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "realtime_handshakes_refused",
            "Handshakes and connections that were refused",
            counters.refused.family.clone(),
        );
        registry.register(
            "realtime_notify_requests",
            "Requests to /api/notify",
            counters.notify_requests.family.clone(),
        );
        if let Some(stats) = authorizer.stats() {
            registry.register(
                "realtime_authorization_call_seconds",
                "Duration of calls to the authorization backend",
                stats.seconds().clone(),
            );
        }
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        started.set(since_epoch.unwrap_or(Duration::ZERO).as_secs_f64());
        registry.register("process_start_time_seconds", "Start of the process", started);
        registry.register_collector(Box::new(Scrape { hub, authorizer, bridge }));
        Self { registry }
    }

    /// The text of one scrape.
    ///
    /// # Errors
    /// When the hub has ended.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// What is read anew for each scrape.
struct Scrape {
    hub: HubHandle,
    authorizer: Arc<Authorizer>,
    bridge: Option<Arc<dyn PubSub>>,
}

impl Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let waiting = self.hub.queue_len();
        let stats = self.hub.ask(Event::Stats).map_err(|_| fmt::Error)?;
        let mut out = Out(encoder);
        out.gauge("realtime_hub_queue_depth", "Events that wait for the hub", waiting as f64)?;
        out.stats(&stats)?;
        if let Some(stats) = self.authorizer.stats() {
            out.backend(stats)?;
        }
        if let Some(bridge) = &self.bridge {
            out.bridge(&**bridge)?;
        }
        out.counter("realtime_log_lines_dropped", "Log lines lost", dropped_lines())?;
        out.process()
    }
}

/// Writes metrics whose numbers are at hand.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.metric(name, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn counters<'k>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'k str, u64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, MetricType::Counter)?;
        for (kind, value) in values {
            metric
                .encode_family(&[(label, kind)])?
                .encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: &Buckets<N>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
            values.sum(),
            values.count(),
            &values.buckets(),
            None,
        )
    }

    fn stats(&mut self, stats: &Stats) -> fmt::Result {
        let by = |map: &std::collections::BTreeMap<&'static str, u64>| map.clone();
        self.gauge("realtime_connections", "Live connections", stats.connections as f64)?;
        self.gauge("realtime_rooms", "Rooms that have members", stats.rooms as f64)?;
        self.gauge("realtime_writers", "Writer threads", stats.writers as f64)?;
        self.counter("realtime_connects", "Connections that became live", stats.connects)?;
        self.counters(
            "realtime_disconnects",
            "Connections that ended",
            "reason",
            by(&stats.disconnects),
        )?;
        let slow = stats.disconnects.get("slow_consumer").copied().unwrap_or(0);
        self.counter("realtime_slow_consumers", "Clients cut since they did not read", slow)?;
        self.counters(
            "realtime_messages_received",
            "Messages of clients",
            "type",
            stats.received.by_kind(),
        )?;
        self.counter("realtime_deliveries", "Frames for clients", stats.deliveries)?;
        self.counters(
            "realtime_deliveries_dropped",
            "Frames that a client's end kept from being sent",
            "reason",
            by(&stats.dropped),
        )?;
        self.histogram(
            "realtime_hub_batch_seconds",
            "From the first event of a batch to the end of its flush",
            &stats.batch_seconds,
        )?;
        self.histogram(
            "realtime_fan_out_size",
            "Connections that one message went to",
            &stats.fan_out,
        )
    }

    fn backend(&mut self, stats: &BackendStats) -> fmt::Result {
        let results = [
            ("allowed", Verdict::Allowed),
            ("denied", Verdict::Denied),
            ("failed", Verdict::Failed),
        ];
        self.counters(
            "realtime_authorization_calls",
            "Calls to the authorization backend",
            "result",
            results.map(|(name, verdict)| (name, stats.calls(verdict))),
        )
    }

    fn bridge(&mut self, bridge: &dyn PubSub) -> fmt::Result {
        let connected = bridge.state() == "connected";
        let counters = bridge.counters();
        self.gauge(
            "realtime_redis_connected",
            "1 while messages flow both ways",
            f64::from(u8::from(connected)),
        )?;
        self.counter(
            "realtime_redis_reconnects",
            "Connections made again after a loss",
            counters.reconnects(),
        )?;
        self.counter("realtime_redis_published", "Messages published", counters.published())?;
        self.counter("realtime_redis_received", "Messages received", counters.received())?;
        self.counters(
            "realtime_redis_dropped",
            "Messages dropped on either way",
            "reason",
            DropReason::ALL.map(|reason| (reason.as_str(), counters.dropped(reason))),
        )
    }

    fn process(&mut self) -> fmt::Result {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0.0)
        };
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let most = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64);
        self.gauge("process_resident_memory_bytes", "Resident memory", field("VmRSS:") * 1024.0)?;
        self.gauge("process_threads", "Threads", field("Threads:"))?;
        self.gauge("process_open_fds", "Open descriptors", descriptors as f64)?;
        self.gauge("process_max_fds", "Limit of open descriptors", most)
    }
}
