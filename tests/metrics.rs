//! Verifies that `/metrics` and `/admin/clients` tell what happened, to those who may know, and that the
//! dashboard and the alert rules ask for metrics that exist.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Client, Frame, Redis, Service, handshake, token, until};

impl Scraped {
    fn of(service: &Service) -> Self {
        let response = service.http("GET", "/metrics", Some(&token("ops", "admin")), "");
        assert_eq!(response.status, 200);
        assert!(response.headers["content-type"].starts_with("application/openmetrics-text"));
        assert!(response.body.ends_with("# EOF\n"));
        Self(response.body)
    }

    /// The value of a sample, as it is written with its labels.
    fn value(&self, sample: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    fn names(&self) -> BTreeSet<&str> {
        let samples = self.0.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect()
    }
}

struct Scraped(String);

#[test]
fn what_happened_is_counted() {
    let service = Service::start();
    let (mut a, mut b) = (service.client("1", "client"), service.client("2", "admin"));
    a.join("lobby");
    b.join("lobby");
    a.broadcast("lobby", &json!(1));
    a.send("no json");
    assert!(a.text().contains("lobby") && b.text().contains("lobby"));
    assert!(a.text().contains("invalid_json"));
    assert_eq!(service.notify(&json!({"event": "x", "broadcast": true})).status, 200);
    assert_eq!(service.notify(&json!({"event": ""})).status, 400);
    for client in [&mut a, &mut b] {
        assert_eq!(client.json()["event"], "x");
    }
    let refused = Client::try_connect(service.addr(), &handshake("/ws?token=x", "")).unwrap();
    assert!(refused.head.starts_with("HTTP/1.1 401 "));
    a.send_close(1000);
    assert_eq!(a.next(), Frame::Close(1000, String::new()));
    drop(a);
    until("the end of the connection is counted", || {
        Scraped::of(&service).value(r#"realtime_disconnects_total{reason="closed_by_peer"}"#) == 1.0
    });
    let scraped = Scraped::of(&service);
    for (sample, value) in [
        ("realtime_connections", 1.0),
        ("realtime_rooms", 2.0),
        ("realtime_connects_total", 2.0),
        (r#"realtime_handshakes_refused_total{reason="invalid_token"}"#, 1.0),
        (r#"realtime_messages_received_total{type="join"}"#, 2.0),
        (r#"realtime_messages_received_total{type="broadcast"}"#, 1.0),
        (r#"realtime_messages_received_total{type="refused"}"#, 1.0),
        ("realtime_deliveries_total", 7.0),
        ("realtime_fan_out_size_count", 2.0),
        ("realtime_fan_out_size_sum", 4.0),
        (r#"realtime_notify_requests_total{result="sent"}"#, 1.0),
        (r#"realtime_notify_requests_total{result="bad_request"}"#, 1.0),
    ] {
        assert_eq!(scraped.value(sample), value, "{sample}");
    }
    assert!(scraped.value("process_resident_memory_bytes") > 1e6);
    assert!(scraped.value("process_threads") >= 5.0);
    assert!(scraped.value("process_max_fds") > scraped.value("process_open_fds"));
}

#[test]
fn only_admins_and_services_may_look() {
    let service = Service::start();
    for path in ["/metrics", "/admin/clients"] {
        assert_eq!(service.http("GET", path, None, "").status, 401);
        assert_eq!(service.http("GET", path, Some(&token("1", "client")), "").status, 403);
        assert_eq!(service.http("GET", path, Some(&token("1", "service")), "").status, 200);
        assert_eq!(service.http("POST", path, Some(&token("1", "admin")), "").status, 405);
    }
}

#[test]
fn connections_are_listed_by_room_and_user() {
    let service = Service::with(&[("MAX_CONNECTIONS_PER_USER", "0"), ("RATE_LIMIT", "0")]);
    let clients: Vec<_> = (0..120)
        .map(|n| {
            let mut client = service.client(if n < 3 { "few" } else { "many" }, "client");
            client.join(if n % 2 == 0 { "even" } else { "odd" });
            client
        })
        .collect();
    let list = |query: &str| -> Value {
        let path = format!("/admin/clients{query}");
        service.http("GET", &path, Some(&token("ops", "admin")), "").json()
    };
    assert_eq!(list(""), json!({"clients": 120, "rooms": {"even": 60, "odd": 60}}));
    let few = list("?user=few&room=even");
    assert_eq!((&few["total"], &few["pages"]), (&json!(2), &json!(1)));
    let first = &few["connections"][0];
    assert_eq!(first["rooms"], json!(["even"]));
    assert_eq!((&first["user"], &first["role"]), (&json!("few"), &json!("client")));
    assert_eq!(
        (&first["sent"], &first["received"], &first["backlog"]),
        (&json!(1), &json!(1), &json!(0))
    );
    let second_page = list("?user=many&page=2");
    assert_eq!((&second_page["total"], &second_page["pages"]), (&json!(117), &json!(2)));
    assert_eq!(second_page["connections"].as_array().unwrap().len(), 17);
    assert_eq!(list("?room=nobody")["connections"], json!([]));
    let bad = service.http("GET", "/admin/clients?page=x", Some(&token("ops", "admin")), "");
    assert_eq!((bad.status, &bad.json()["error"]), (400, &json!("bad_request")));
    drop(clients);
}

/// Names of metrics in an expression of PromQL.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("realtime_") || word.starts_with("process_"))
        .filter(|word| *word != "realtime_service")
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let redis = Redis::start();
    let service =
        Service::with(&[("REDIS_ADDR", &redis.addr()), ("BACKEND_URL", "http://127.0.0.1:9")]);
    let scraped = Scraped::of(&service);
    // Counters with a label have no sample before the first event, only their description.
    let described = scraped.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let described: BTreeSet<_> = described.map(|rest| rest.split(' ').next().unwrap()).collect();
    let exists = |name: &str| {
        scraped.names().contains(name)
            || ["_total", "_bucket"].iter().any(|suffix| {
                name.strip_suffix(suffix).is_some_and(|base| described.contains(base))
            })
    };
    let dashboard: Value = serde_json::from_str(include_str!("../docs/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let expressions: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .chain(include_str!("../docs/alerts.yml").lines().filter(|line| line.contains("expr:")))
        .collect();
    assert!(expressions.len() > 25);
    for name in expressions.iter().flat_map(|expression| metrics_in(expression)) {
        assert!(exists(name), "no metric {name}");
    }
}
