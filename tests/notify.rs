//! Verifies that backends reach users, rooms and everyone over `POST /api/notify`, and that every other
//! request over HTTP gets the answer that it should.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{
    Client, Response, Service, connect, token, token_with, unix_now, until, without_number,
};

/// Posts this body as a backend.
fn post(service: &Service, body: &str) -> Response {
    service.http("POST", "/api/notify", Some(&token("backend", "service")), body)
}

fn success(delivered: &str) -> String {
    format!(r#"{{"status":"success","message":"Notification sent","delivered":{delivered}}}"#)
}

fn assert_error(answer: &Response, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json", "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["status"], &body["error"]), (&json!("error"), &json!(code)), "{body}");
    assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
}

/// A client whose registration is proved.
fn client(service: &Service, user: &str) -> Client {
    let mut client = service.client(user, "");
    client.assert_quiet();
    client
}

#[test]
fn a_user_is_reached_on_every_connection() {
    let service = Service::start();
    let (mut one, mut two, mut other) =
        (client(&service, "7"), client(&service, "7"), client(&service, "8"));
    let answer = post(&service, r#"{"event":"order_created","data":{"id":5},"user_id":"7"}"#);
    assert_eq!((answer.status, answer.body.as_str()), (200, success("2").as_str()));
    for client in [&mut one, &mut two] {
        let text = client.text();
        assert_eq!(text, r#"{"user_seq":1,"event":"order_created","data":{"id":5},"to":"7"}"#);
    }
    // An integer is the id of its digits.
    assert_eq!(post(&service, r#"{"event":"e","user_id":7}"#).body, success("2"));
    for client in [&mut one, &mut two] {
        assert_eq!(client.text(), r#"{"user_seq":2,"event":"e","data":null,"to":"7"}"#);
    }
    assert_eq!(post(&service, r#"{"event":"e","user_id":"9"}"#).body, success("0"));
    other.assert_quiet();
}

#[test]
fn a_room_is_reached_and_its_members_only() {
    let service = Service::start();
    let (mut member, mut other) = (client(&service, "7"), client(&service, "8"));
    member.join("order-7");
    let answer = post(&service, r#"{"event":"shipped","room":"order-7"}"#);
    assert_eq!((answer.status, answer.body.as_str()), (200, success("1").as_str()));
    assert_eq!(member.text(), r#"{"seq":1,"event":"shipped","data":null,"to":"order-7"}"#);
    assert_eq!(post(&service, r#"{"event":"e","room":"nobody-here"}"#).body, success("0"));
    other.assert_quiet();
}

#[test]
fn everyone_is_reached() {
    let service = Service::start();
    let mut clients = ["1", "2", "3"].map(|user| client(&service, user));
    let answer = post(&service, r#"{"event":"sale","data":[1],"broadcast":true}"#);
    assert_eq!((answer.status, answer.body.as_str()), (200, success("3").as_str()));
    for client in &mut clients {
        assert_eq!(client.text(), r#"{"event":"sale","data":[1],"to":"broadcast"}"#);
    }
}

#[test]
fn a_batch_is_delivered_in_order_and_counted_one_by_one() {
    let service = Service::start();
    let (mut one, mut two) = (client(&service, "1"), client(&service, "2"));
    one.join("order-1");
    let body = r#"[{"event":"a","user_id":"1"}, {"event":"b","room":"order-1","data":1},
        {"event":"c","broadcast":true,"data":2}, {"event":"d","user_id":"nobody"}]"#;
    assert_eq!(post(&service, body).body, success("[1,1,2,0]"));
    let events = |client: &mut Client, n: usize| -> Vec<_> {
        (0..n).map(|_| client.json()["event"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(events(&mut one, 3), ["a", "b", "c"]);
    assert_eq!(events(&mut two, 1), ["c"]);
    assert_eq!(post(&service, r#"[{"event":"a","user_id":"1"}]"#).body, success("[1]"));
    assert_eq!(one.json()["event"], "a");

    let many = |n: usize| {
        let list: Vec<_> =
            (0..n).map(|n| json!({"event": "n", "data": n, "user_id": "2"})).collect();
        Value::from(list).to_string()
    };
    assert_eq!(post(&service, &many(100)).status, 200);
    for n in 0..100 {
        assert_eq!(two.json()["data"], n);
    }
    assert_error(&post(&service, &many(101)), 400, "invalid_json");
    two.assert_quiet();
}

#[test]
fn the_caller_s_notification_is_logged_without_its_content() {
    let service = Service::start();
    let _client = client(&service, "7");
    post(&service, r#"{"event":"private","data":"letter","user_id":"7"}"#);
    let line = service.log_line("] notify ");
    assert!(line.contains("user=backend") && line.contains("delivered=1"), "{line}");
    let log = service.log().join("\n");
    assert!(!log.contains("private") && !log.contains("letter"), "{log}");
}

#[test]
fn every_bad_body_is_400_and_says_what_and_where() {
    let service = Service::start();
    let mut client = client(&service, "7");
    let long = "e".repeat(129);
    let cases: Vec<(String, &str, &str)> = vec![
        ("".into(), "invalid_json", "notification: expected a JSON object"),
        ("not json".into(), "invalid_json", "notification: expected a JSON object"),
        ("{".into(), "invalid_json", "notification: EOF"),
        (r#""e""#.into(), "invalid_json", "notification: "),
        ("[]".into(), "invalid_json", "body is an empty array"),
        ("[5]".into(), "invalid_json", "notifications[0]: expected a JSON object"),
        ("[".into(), "invalid_json", "body is not a batch: "),
        (r#"{"event":"a","event":"b","user_id":"7"}"#.into(), "invalid_json", "notification: "),
        (r#"{"user_id":"7"}"#.into(), "invalid_notification", "event: "),
        (r#"{"event":"","user_id":"7"}"#.into(), "invalid_notification", "event: "),
        (r#"{"event":5,"user_id":"7"}"#.into(), "invalid_notification", "event: "),
        (format!(r#"{{"event":"{long}","user_id":"7"}}"#), "invalid_notification", "event: "),
        (r#"{"event":"e"}"#.into(), "invalid_notification", "notification: expected exactly one"),
        (
            r#"{"event":"e","user_id":"7","room":"a"}"#.into(),
            "invalid_notification",
            "notification: expected exactly one",
        ),
        (
            r#"{"event":"e","user_id":"7","broadcast":true}"#.into(),
            "invalid_notification",
            "notification: expected exactly one",
        ),
        (r#"{"event":"e","broadcast":"true"}"#.into(), "invalid_notification", "broadcast: "),
        (r#"{"event":"e","room":"a b"}"#.into(), "invalid_notification", "room: "),
        (r#"{"event":"e","room":"order-"}"#.into(), "invalid_notification", "room: "),
        (r#"{"event":"e","room":5}"#.into(), "invalid_notification", "room: "),
        (r#"{"event":"e","user_id":""}"#.into(), "invalid_notification", "user_id: "),
        (r#"{"event":"e","user_id":"a b"}"#.into(), "invalid_notification", "user_id: "),
        (r#"{"event":"e","user_id":1.5}"#.into(), "invalid_notification", "user_id: "),
        (r#"{"event":"e","user_id":["7"]}"#.into(), "invalid_notification", "user_id: "),
        (
            r#"[{"event":"e","user_id":"7"},{"event":"e","room":"é"}]"#.into(),
            "invalid_notification",
            "notifications[1].room: ",
        ),
        (
            r#"[{"event":"e","user_id":"7"},{"event":"e"}]"#.into(),
            "invalid_notification",
            "notifications[1]: expected exactly one",
        ),
    ];
    for (body, code, place) in &cases {
        let answer = post(&service, body);
        assert_error(&answer, 400, code);
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(place), "{body}: {message}");
    }
    let mut head = format!(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Length: 3\r\n\r\n",
        token("backend", "service")
    )
    .into_bytes();
    head.extend(b"{\xff}");
    let answer = service.raw(head);
    assert_error(&answer, 400, "invalid_json");
    assert_eq!(answer.json()["message"], "body is not UTF-8 at byte 1");
    // Nothing of any of them was sent, the good parts of a bad batch included.
    client.assert_quiet();
}

#[test]
fn the_data_is_passed_on_byte_for_byte() {
    let service = Service::start();
    let mut client = client(&service, "7");
    for data in [
        "null",
        "-0",
        "1.0e+02",
        "12345678901234567890.10",
        r#""\u00e9\/\ud83d\ude00é""#,
        "{ \"b\" : 1 ,\r\n\t\"a\":[ ],\"a\":2}",
        &format!("{}{}", "[".repeat(5000), "]".repeat(5000)),
    ] {
        let body = format!(r#"{{"event":"e","data": {data} ,"user_id":"7"}}"#);
        assert_eq!(post(&service, &body).body, success("1"), "{data}");
        let expected = format!(r#"{{"event":"e","data":{data},"to":"7"}}"#);
        assert_eq!(without_number(&client.text()), expected);
    }
    // The event is a JSON string again, whatever its characters.
    let body = json!({"event": "\"é\n\u{202e}", "user_id": "7"}).to_string();
    assert_eq!(post(&service, &body).body, success("1"));
    assert_eq!(client.json()["event"], "\"é\n\u{202e}");
}

#[test]
fn a_notification_has_at_most_64_kib() {
    let service = Service::start();
    let mut client = client(&service, "7");
    let around = r#"{"event":"e","data":"","to":"7"}"#.len();
    let body = |bytes: usize| {
        let data = "x".repeat(bytes - around);
        (format!(r#"{{"event":"e","data":"{data}","user_id":"7"}}"#), data)
    };
    let (fits, data) = body(64 * 1024);
    assert_eq!(post(&service, &fits).body, success("1"));
    let expected = format!(r#"{{"user_seq":1,"event":"e","data":"{data}","to":"7"}}"#);
    assert_eq!(client.text(), expected);
    let (too_large, _) = body(64 * 1024 + 1);
    let answer = post(&service, &too_large);
    assert_error(&answer, 400, "notification_too_large");
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("65537") && message.contains("65536"), "{message}");
    let batch = format!(r#"[{{"event":"e","user_id":"7"}},{too_large}]"#);
    let answer = post(&service, &batch);
    assert_error(&answer, 400, "notification_too_large");
    assert!(answer.json()["message"].as_str().unwrap().starts_with("notifications[1]: "));
    client.assert_quiet();
}

#[test]
fn notify_and_admin_ask_for_a_token_of_the_right_role() {
    let service = Service::start();
    let requests = [
        ("POST", "/api/notify", r#"{"event":"e","broadcast":true}"#),
        ("GET", "/admin/clients", ""),
    ];
    for (method, path, body) in requests {
        for (bad, code) in
            [(None, "missing_token"), (Some("x.y.z"), "invalid_token"), (Some(""), "missing_token")]
        {
            let answer = service.http(method, path, bad, body);
            assert_error(&answer, 401, code);
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        for role in ["", "client", "seller", "administrator"] {
            let answer = service.http(method, path, Some(&token("7", role)), body);
            assert_error(&answer, 403, "forbidden");
        }
        for role in ["admin", "service", "Admin", "SERVICE"] {
            assert_eq!(service.http(method, path, Some(&token("7", role)), body).status, 200);
        }
    }
    // A token in the query is for browsers' WebSockets, not for backends.
    let path = format!("/admin/clients?token={}", token("7", "admin"));
    assert_error(&service.http("GET", &path, None, ""), 401, "missing_token");
    until("the refusals are logged", || {
        let log = service.log();
        log.iter().filter(|line| line.contains("token refused")).count() == 7
            && log.iter().filter(|line| line.contains("role refused")).count() == 8
    });
    assert!(!service.log().join("\n").contains("x.y.z"));
    for line in service.log().iter().filter(|line| line.contains(" refused ")) {
        assert!(line.contains(" conn=") && line.contains(" peer=127.0.0.1:"), "{line}");
        assert_eq!(line.contains(" user="), line.contains("role refused"), "{line}");
    }
}

#[test]
fn a_bad_token_is_told_as_the_handshake_tells_it() {
    let service = Service::start();
    let claims = |exp: u64| json!({"sub": "7", "role": "service", "exp": exp});
    let good = token_with(claims(unix_now() + 60));
    let forged = format!("{}.{}", good.rsplit_once('.').unwrap().0, "A".repeat(43));
    let mut early = claims(unix_now() + 60);
    early["nbf"] = json!(unix_now() + 30);
    for (token, reason) in [
        (forged, "bad signature"),
        (token_with(early), "not yet valid"),
        (token_with(claims(unix_now() - 1)), "expired"),
    ] {
        let answer = service.http("POST", "/api/notify", Some(&token), "{}");
        let target = format!("/ws?token={token}");
        let handshake = service.raw(support::handshake(&target, ""));
        assert_eq!((answer.status, &answer.body), (401, &handshake.body));
        // The log tells what the peer is not told.
        until(reason, || {
            let log = service.log();
            let told = format!(
                "reason={}",
                if reason.contains(' ') { format!("\"{reason}\"") } else { reason.into() }
            );
            log.iter().filter(|line| line.contains("token refused") && line.contains(&told)).count()
                == 2
        });
    }
}

#[test]
fn with_api_auth_off_no_token_is_asked_for_and_one_warning_says_so() {
    let service = Service::with(&[("API_AUTH", "off")]);
    let mut client = client(&service, "7");
    let answer = service.http("POST", "/api/notify", None, r#"{"event":"e","broadcast":true}"#);
    assert_eq!((answer.status, answer.body.as_str()), (200, success("1").as_str()));
    assert_eq!(client.json()["event"], "e");
    let answer = service.http("GET", "/admin/clients", None, "");
    assert_eq!((answer.status, answer.json()["clients"].clone()), (200, json!(1)));
    // The WebSocket still asks.
    assert_eq!(service.raw(support::handshake("/ws", "")).status, 401);
    let warnings = service.log().into_iter().filter(|line| line.contains("API_AUTH=off")).count();
    assert_eq!(warnings, 1);
    assert!(service.log_line("API_AUTH=off").contains("WARN"));
}

#[test]
fn admin_clients_counts_connections_and_rooms() {
    let service = Service::start();
    assert_eq!(service.counts(), json!({"clients": 0, "rooms": {}}));
    let (mut one, mut two) = (client(&service, "1"), client(&service, "2"));
    one.join("lobby");
    two.join("lobby");
    two.join("order-2");
    let admin = token("ops", "admin");
    let answer = service.http("GET", "/admin/clients", Some(&admin), "");
    assert_eq!(answer.body, r#"{"clients":2,"rooms":{"lobby":2,"order-2":1}}"#);
}

#[test]
fn health_and_ready_answer_anyone() {
    let service = Service::start();
    let health = service.http("GET", "/health", None, "");
    assert_eq!(health.status, 200);
    assert_eq!(
        health.body,
        r#"{"status":"healthy","service":"realtime_service","redis":"disabled"}"#
    );
    assert_eq!(health.headers["content-type"], "application/json");
    assert_eq!(service.http("GET", "/ready", None, "").status, 200);
    assert_eq!(service.http("GET", "/health?x=1", None, "").status, 200);
    // HEAD has the head of a GET and no body.
    let mut stream = connect(service.addr());
    stream.write_all(b"HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n"), "{text}");
    let length = format!("content-length: {}\r\n", health.body.len());
    assert!(text.to_lowercase().contains(&length), "{text}");
}

#[test]
fn other_paths_and_methods_are_404_and_405() {
    let service = Service::start();
    let admin = token("ops", "admin");
    for path in ["/", "/api", "/api/notify/", "/Health", "/health/x", "/..", "/%68ealth"] {
        assert_error(&service.http("GET", path, Some(&admin), ""), 404, "not_found");
    }
    for (method, path, allow) in [
        ("GET", "/api/notify", "POST, OPTIONS"),
        ("DELETE", "/api/notify", "POST, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("PUT", "/ready", "GET, HEAD, OPTIONS"),
        ("POST", "/admin/clients", "GET, HEAD, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
    ] {
        let answer = service.http(method, path, Some(&admin), "");
        assert_error(&answer, 405, "method_not_allowed");
        assert_eq!(answer.headers["allow"], allow, "{method} {path}");
    }
}

#[test]
fn bodies_of_unknown_or_too_great_length_are_refused() {
    let service = Service::with(&[("MAX_BODY_SIZE", "1KiB"), ("BODY_TIMEOUT", "1s")]);
    let admin = token("ops", "admin");
    let post = |headers: &str, body: &str| {
        service.raw(format!(
            "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {admin}\r\n{headers}\r\n{body}"
        ))
    };
    assert_error(&post("", ""), 411, "length_required");
    let chunked = "2\r\n{}\r\n0\r\n\r\n";
    assert_error(&post("Transfer-Encoding: chunked\r\n", chunked), 501, "not_implemented");
    let both = "Transfer-Encoding: chunked\r\nContent-Length: 12\r\n";
    assert_error(&post(both, chunked), 400, "bad_request");
    for bad in ["-1", "+2", "2, 2", "0x2", "2 2", "two"] {
        assert_error(&post(&format!("Content-Length: {bad}\r\n"), "{}"), 400, "bad_request");
    }
    let twice = "Content-Length: 2\r\nContent-Length: 2\r\n";
    assert_error(&post(twice, "{}"), 400, "bad_request");
    let body = format!(r#"{{"event":"e","broadcast":true,"x":"{}"}}"#, "x".repeat(1024));
    let length = format!("Content-Length: {}\r\n", body.len());
    assert_error(&post(&length, &body), 413, "payload_too_large");
    for huge in ["1025", "4611686018427387904", "99999999999999999999999"] {
        let answer = post(&format!("Content-Length: {huge}\r\n"), "");
        assert_error(&answer, 413, "payload_too_large");
    }
    assert_error(&post("Content-Length: 20\r\n", r#"{"event":"e""#), 408, "request_timeout");
    assert_eq!(service.http("GET", "/health", None, "").status, 200);
}

#[test]
fn heads_that_are_too_long_or_late_are_refused() {
    let service = Service::with(&[("HEAD_TIMEOUT", "1s")]);
    let long = |n: usize| "x".repeat(n);
    let get = |target: &str, headers: &str| {
        service.raw(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"))
    };
    assert_error(&get(&format!("/{}", long(8200)), ""), 414, "uri_too_long");
    assert_error(&get("/", &format!("X: {}\r\n", long(17_000))), 431, "headers_too_large");
    assert_error(&get("/", &"X: y\r\n".repeat(65)), 431, "headers_too_large");
    assert_error(&service.raw("GET / HTTP/1.1\r\nHost: a\r\nX: "), 408, "request_timeout");
    assert_error(&service.raw("GET / HTTP/3.0\r\nHost: a\r\n\r\n"), 505, "version_not_supported");
    assert_error(&service.raw("\x16\x03\x01\x02\0\x01\0\r\n\r\n"), 400, "bad_request");
}

#[test]
fn browsers_of_any_origin_may_call_by_default() {
    let service = Service::start();
    let preflight = service.raw(
        "OPTIONS /api/notify HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\
         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n",
    );
    assert_eq!((preflight.status, preflight.body.as_str()), (204, ""));
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
    assert_eq!(preflight.headers["access-control-allow-methods"], "POST, OPTIONS");
    let allowed = preflight.headers["access-control-allow-headers"].to_lowercase();
    assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
    // Errors are readable too, those of the gate included.
    for request in [
        "GET /health HTTP/1.1\r\nHost: a\r\nOrigin: https://a.b\r\n\r\n",
        "GET /nothing HTTP/1.1\r\nHost: a\r\nOrigin: https://a.b\r\n\r\n",
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nOrigin: https://a.b\r\nContent-Length: 99999999\r\n\r\n",
    ] {
        assert_eq!(service.raw(request).headers["access-control-allow-origin"], "*", "{request}");
    }
}

#[test]
fn listed_origins_are_told_so_and_others_are_not() {
    let service = Service::with(&[("ALLOWED_ORIGINS", "https://shop.example")]);
    let from = |origin: &str| {
        let request = "OPTIONS /admin/clients HTTP/1.1\r\nHost: a\r\nOrigin: ORIGIN\r\n\
            Access-Control-Request-Method: GET\r\n\r\n";
        service.raw(request.replace("ORIGIN", origin))
    };
    let listed = from("https://shop.example");
    assert_eq!(listed.headers["access-control-allow-origin"], "https://shop.example");
    assert_eq!(listed.headers["vary"], "Origin");
    let other = from("https://evil.example");
    assert!(!other.headers.contains_key("access-control-allow-origin"), "{other:?}");
    assert_eq!(other.headers["vary"], "Origin");
}

#[test]
fn a_connection_serves_many_requests_also_when_they_come_at_once() {
    let service = Service::start();
    let mut stream = connect(service.addr());
    let notify = format!(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Length: 30\r\n\r\n\
         {{\"event\":\"e\",\"broadcast\":true}}",
        token("backend", "service")
    );
    let health = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    for _ in 0..20 {
        stream.write_all(format!("{health}{notify}").as_bytes()).unwrap();
        assert!(Response::read(&mut stream).unwrap().body.contains("healthy"));
        assert_eq!(Response::read(&mut stream).unwrap().body, success("0"));
    }
    write!(stream, "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let last = Response::read(&mut stream).unwrap();
    assert_eq!((last.status, last.headers["connection"].as_str()), (200, "close"));
    assert!(Response::read(&mut stream).is_none());
}

#[test]
fn who_expects_100_continue_gets_it_before_the_body() {
    let service = Service::start();
    let body = r#"{"event":"e","broadcast":true}"#;
    let mut stream = service.ask_to_notify(body.len());
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(Response::read(&mut stream).unwrap().body, success("0"));
    let other = format!(
        "POST /api/notify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
         Expect: tea\r\nContent-Length: 2\r\n\r\n{{}}",
        token("backend", "service")
    );
    assert_error(&service.raw(other), 417, "expectation_failed");
}

/// Runs curl with this standard input; returns the body and the status.
fn curl(arguments: &[&str], input: &str) -> (String, String) {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(arguments)
        .env_remove("http_proxy")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), status.to_owned())
}

#[test]
fn curl_notifies_reads_health_and_sends_large_bodies() {
    let service = Service::start();
    let mut client = client(&service, "7");
    let url = |path: &str| format!("http://{}{path}", service.addr());
    let bearer = format!("Authorization: Bearer {}", token("backend", "service"));
    let (body, status) = curl(&[&url("/health")], "");
    assert_eq!(status, "200");
    assert!(body.contains("healthy"), "{body}");
    // A batch of nearly 1 MiB, for which curl expects 100 Continue first.
    let large = json!({"event": "e", "data": "x".repeat(60_000), "user_id": "7"});
    let batch = Value::from(vec![large; 17]).to_string();
    for (input, delivered) in [
        (r#"{"event":"order_created","data":{"id": 1},"user_id":"7"}"#, success("1")),
        (&batch, success(&format!("[{}]", ["1"; 17].join(",")))),
    ] {
        let arguments = ["--data-binary", "@-", "--header", &bearer, &url("/api/notify")];
        assert_eq!(curl(&arguments, input), (delivered, "200".into()));
    }
    let text = client.text();
    assert_eq!(text, r#"{"user_seq":1,"event":"order_created","data":{"id": 1},"to":"7"}"#);
    for _ in 0..17 {
        assert_eq!(client.json()["data"].as_str().unwrap().len(), 60_000);
    }
    assert_eq!(curl(&["--head", &url("/ready")], "").1, "200");
}
