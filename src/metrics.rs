//! `GET /metrics`: counters and gauges as Prometheus reads them (OpenMetrics text).
//!
//! The hub counts in plain numbers of its own (`hub::Stats`), since it counts on the hot path; a scrape asks
//! for a copy. Everyone else counts in families of prometheus-client, which are registered here.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use crate::auth::{Authorizer, TokenError};
use crate::bridge::{BridgeCounters, BridgeState, PubSub};
use crate::hub::history::{HistoryCounts, NotRecovered};
use crate::hub::{Buckets, CopyCounts, Event, HubHandle, Stats};
use crate::logging::dropped_lines;
use crate::runtime::count::{CountBy, Kind};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why a handshake or a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The request for `/ws` is no WebSocket handshake.
    BadRequest,
    /// All of `MAX_CONNECTIONS` are taken.
    ConnectionCap,
    /// The token is bad in any way but those below.
    InvalidToken,
    /// There is no token.
    MissingToken,
    /// The system has no thread left.
    NoThread,
    /// The browser's origin is not one of `ALLOWED_ORIGINS`.
    OriginNotAllowed,
    /// The service shuts down.
    ShuttingDown,
    /// The token's `exp` has passed.
    TokenExpired,
    /// The user has `MAX_CONNECTIONS_PER_USER` already.
    TooManyConnections,
}

impl Kind for RefusalReason {
    const ALL: &'static [Self] = &[
        Self::BadRequest,
        Self::ConnectionCap,
        Self::InvalidToken,
        Self::MissingToken,
        Self::NoThread,
        Self::OriginNotAllowed,
        Self::ShuttingDown,
        Self::TokenExpired,
        Self::TooManyConnections,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::ConnectionCap => "connection_cap",
            Self::InvalidToken => "invalid_token",
            Self::MissingToken => "missing_token",
            Self::NoThread => "no_thread",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::ShuttingDown => "shutting_down",
            Self::TokenExpired => "token_expired",
            Self::TooManyConnections => "too_many_connections",
        }
    }
}

impl From<TokenError> for RefusalReason {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Missing => Self::MissingToken,
            TokenError::Expired => Self::TokenExpired,
            _ => Self::InvalidToken,
        }
    }
}

/// What became of a request to `/api/notify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyResult {
    /// 200.
    Sent,
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// Any other status.
    Unavailable,
}

impl NotifyResult {
    /// The result that this HTTP status stands for.
    pub fn of_status(status: u16) -> Self {
        match status {
            200 => Self::Sent,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            _ => Self::Unavailable,
        }
    }
}

impl Kind for NotifyResult {
    const ALL: &'static [Self] =
        &[Self::Sent, Self::BadRequest, Self::Unauthorized, Self::Forbidden, Self::Unavailable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What is counted outside the hub; clones share the numbers.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Handshakes and connections that were refused, by reason.
    pub refused: CountBy<RefusalReason>,
    /// Requests to `/api/notify`, by result.
    pub notify_requests: CountBy<NotifyResult>,
    /// Connections without a complete request head that made room for new ones.
    pub heads_evicted: Counter,
    /// Messages of clients that were refused since their user was over its rate.
    pub rate_limited: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            refused: CountBy::new("reason"),
            notify_requests: CountBy::new("result"),
            heads_evicted: Counter::default(),
            rate_limited: Counter::default(),
        }
    }
}

/// Renders the text of `/metrics`.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Registers everything that is counted.
    pub fn new(
        counters: &Counters,
        hub: HubHandle,
        authorizer: &Authorizer,
        bridge: Option<Arc<dyn PubSub>>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "realtime_handshakes_refused",
            "Handshakes and connections that were refused",
            counters.refused.family(),
        );
        registry.register(
            "realtime_notify_requests",
            "Requests to /api/notify",
            counters.notify_requests.family(),
        );
        for (name, help, counter) in [
            (
                "realtime_heads_evicted",
                "Connections without a complete request head that made room for new ones",
                &counters.heads_evicted,
            ),
            (
                "realtime_rate_limited",
                "Messages refused since their user was over its rate",
                &counters.rate_limited,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        if let Some(stats) = authorizer.stats() {
            registry.register(
                "realtime_authorization_calls",
                "Calls to the authorization backend",
                stats.calls().family(),
            );
            registry.register(
                "realtime_authorization_call_seconds",
                "Duration of calls to the authorization backend",
                stats.seconds().clone(),
            );
        }
        if let Some(bridge) = &bridge {
            register_bridge(&mut registry, bridge.counters());
        }
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        started.set(since_epoch.unwrap_or(Duration::ZERO).as_secs_f64());
        registry.register("process_start_time_seconds", "Start of the process", started);
        registry.register_collector(Box::new(Scrape { hub, bridge }));
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

fn register_bridge(registry: &mut Registry, counters: &BridgeCounters) {
    let reconnects = counters.reconnects.clone();
    registry.register(
        "realtime_redis_reconnects",
        "Connections made again after a loss",
        reconnects,
    );
    let published = counters.published.clone();
    registry.register("realtime_redis_published", "Messages published", published);
    let received = counters.received.clone();
    registry.register("realtime_redis_received", "Messages received", received);
    let dropped = counters.dropped.family();
    registry.register("realtime_redis_dropped", "Messages dropped on either way", dropped);
}

/// What is read anew for each scrape.
struct Scrape {
    hub: HubHandle,
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
        if let Some(bridge) = &self.bridge {
            let connected = bridge.state() == BridgeState::Connected;
            out.gauge(
                "realtime_redis_connected",
                "1 while messages flow both ways",
                f64::from(u8::from(connected)),
            )?;
        }
        out.counter("realtime_log_lines_dropped", "Log lines lost", dropped_lines())?;
        out.process()
    }
}

/// Writes metrics that have no family, from numbers read for this scrape.
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

    fn waiting(&mut self, stats: &Stats) -> fmt::Result {
        for (name, help, value) in [
            (
                "realtime_waiting_backlogs",
                "Backlogs that wait for a writer",
                stats.waiting_backlogs,
            ),
            (
                "realtime_waiting_publishers",
                "Publishers with messages waiting",
                stats.waiting_publishers,
            ),
            ("realtime_waiting_messages", "Messages that wait for a turn", stats.waiting_messages),
            ("realtime_waiting_bytes", "Bytes that wait for the hub", stats.waiting_bytes),
        ] {
            self.gauge(name, help, value as f64)?;
        }
        self.counter(
            "realtime_publishers_held_back",
            "Times that a publisher waited since too much of it waited already",
            stats.held_back,
        )?;
        self.counter(
            "realtime_room_limited",
            "Broadcasts refused since their room was over its rate",
            stats.room_limited,
        )
    }

    fn history(&mut self, counts: &HistoryCounts) -> fmt::Result {
        self.gauge("realtime_history_logs", "Rooms and users with numbers", counts.logs as f64)?;
        self.gauge("realtime_history_bytes", "Bytes of kept messages", counts.bytes as f64)?;
        self.counters(
            "realtime_not_recovered",
            "Joins and resumes that could not get what they had missed",
            "reason",
            NotRecovered::ALL.map(|reason| {
                let count = counts.not_recovered.get(reason.label());
                (reason.label(), count.copied().unwrap_or(0))
            }),
        )?;
        for (name, help, value) in [
            (
                "realtime_recovered",
                "Joins and resumes that got all that they had missed",
                counts.recovered,
            ),
            ("realtime_replayed_frames", "Messages sent again", counts.replayed),
            ("realtime_resets", "Times that a member was told of a gap", counts.resets),
            (
                "realtime_history_evicted_messages",
                "Messages let go since all together were over HISTORY_BYTES",
                counts.evicted_messages,
            ),
            (
                "realtime_history_evicted_logs",
                "Numbers of vacant rooms and absent users forgotten since there were too many",
                counts.evicted_logs,
            ),
        ] {
            self.counter(name, help, value)?;
        }
        Ok(())
    }

    fn copies(&mut self, counts: &CopyCounts) -> fmt::Result {
        self.gauge(
            "realtime_log_pending",
            "Messages of this instance that Redis has not given back",
            counts.pending as f64,
        )?;
        for (name, help, value) in [
            (
                "realtime_unnumbered",
                "Messages delivered without a number, as Redis was away or refused them",
                counts.unnumbered,
            ),
            ("realtime_log_readings", "Rooms and users read from Redis", counts.readings),
            (
                "realtime_log_renewals",
                "Rooms and users whose numbers had to begin anew",
                counts.renewals,
            ),
        ] {
            self.counter(name, help, value)?;
        }
        Ok(())
    }

    fn stats(&mut self, stats: &Stats) -> fmt::Result {
        let by = |map: &std::collections::BTreeMap<&'static str, u64>| map.clone();
        self.gauge("realtime_connections", "Live connections", stats.connections as f64)?;
        self.gauge("realtime_rooms", "Rooms that have members", stats.rooms as f64)?;
        self.gauge("realtime_writers", "Writer threads", stats.writers as f64)?;
        self.waiting(stats)?;
        self.history(&stats.history)?;
        self.copies(&stats.copies)?;
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
