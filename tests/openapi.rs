//! Verifies that docs/openapi.yaml is valid and that the running service does what it says:
//! schemathesis plays it through, and each refusal of a request's form is provoked by hand.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/document.rs"]
mod document;
mod support;

use document::{assert_success, project, python_tool, yaml};
use serde_json::json;
use support::{Service, handshake, token, until};

const DOCUMENT: &str = "docs/openapi.yaml";

#[test]
fn the_document_is_valid() {
    let output = python_tool("python3")
        .args(["-m", "openapi_spec_validator"])
        .arg(project(DOCUMENT))
        .output()
        .unwrap();
    assert_success("openapi-spec-validator", &output);
}

#[test]
fn the_service_does_what_the_document_says() {
    let service = Service::start();
    // Someone is there to be notified and listed.
    let mut client = service.client("7", "admin");
    client.join("order-123");
    let authorization = format!("Authorization: Bearer {}", token("backend", "service"));
    let tests = project("tests/openapi");
    let output = python_tool("schemathesis")
        .env("SCHEMATHESIS_HOOKS", tests.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HOME", std::env::temp_dir())
        .arg("--config-file")
        .arg(tests.join("schemathesis.toml"))
        .arg("run")
        .arg(project(DOCUMENT))
        .args(["--url", &format!("http://{}", service.addr()), "-H", &authorization])
        // The same requests every time; and a loaded machine is no fault of theirs.
        .args(["--seed", "1", "--suppress-health-check", "all", "--no-color"])
        .output()
        .unwrap();
    assert_success("schemathesis", &output);
}

/// What a request is answered with that has a mistake in its form.
struct Refusal {
    request: String,
    status: u16,
    code: &'static str,
}

fn refusals(service_token: &str) -> Vec<Refusal> {
    let client_token = token("7", "client");
    let notify = |headers: &str, body: &str| {
        format!(
            "POST /api/notify HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {service_token}\r\n{headers}\r\n{body}"
        )
    };
    let health = |line: &str, headers: &str| format!("{line}\r\nHost: test\r\n{headers}\r\n");
    let get = "GET /health HTTP/1.1";
    let clients = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let of = |request, status, code| Refusal { request, status, code };
    vec![
        of(notify("Content-Length: 1\r\nContent-Length: 2\r\n", "x"), 400, "bad_request"),
        of(notify("Content-Length: 1\r\n", "x"), 400, "invalid_json"),
        of(notify("Content-Length: 13\r\n", r#"{"event":"e"}"#), 400, "invalid_notification"),
        of(health("GET /admin/clients HTTP/1.1", ""), 401, "missing_token"),
        of(health("GET /admin/clients HTTP/1.1", &clients("x")), 401, "invalid_token"),
        of(health("GET /metrics HTTP/1.1", &clients(&client_token)), 403, "forbidden"),
        of(health("GET /nowhere HTTP/1.1", ""), 404, "not_found"),
        of(health("DELETE /health HTTP/1.1", ""), 405, "method_not_allowed"),
        of(health(get, "Content-Length: 9\r\n"), 400, "bad_request"),
        of(notify("Content-Length: 9\r\n", ""), 408, "request_timeout"),
        of(notify("", ""), 411, "length_required"),
        of(notify("Content-Length: 1048577\r\n", ""), 413, "payload_too_large"),
        of(health(&format!("GET /{} HTTP/1.1", "x".repeat(9000)), ""), 414, "uri_too_long"),
        of(notify("Expect: x\r\nContent-Length: 1\r\n", ""), 417, "expectation_failed"),
        of(handshake("/ws", "").replace("Upgrade: websocket", "X: y"), 426, "upgrade_required"),
        of(health(get, &"X: y\r\n".repeat(70)), 431, "headers_too_large"),
        of(notify("Transfer-Encoding: chunked\r\n", ""), 501, "not_implemented"),
        of(health("GET /health HTTP/3.0", ""), 505, "version_not_supported"),
        of(handshake("/ws", ""), 401, "missing_token"),
        of(handshake("/ws?token=x", ""), 401, "invalid_token"),
        of(
            handshake("/ws", &format!("{}Origin: http://evil\r\n", clients(&client_token))),
            403,
            "origin_not_allowed",
        ),
    ]
}

#[test]
fn refusals_have_the_documented_status_code_and_form() {
    let settings = [("BODY_TIMEOUT", "1"), ("ALLOWED_ORIGINS", "http://shop")];
    let service = Service::with(&settings);
    let document = yaml(DOCUMENT);
    let mut error = document["components"]["schemas"]["Error"].clone();
    error["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    let form = jsonschema::validator_for(&error).unwrap();
    let text = std::fs::read_to_string(project(DOCUMENT)).unwrap();
    for Refusal { request, status, code } in refusals(&token("backend", "service")) {
        let shown: String = request.chars().take(80).collect();
        let response = service.raw(&request);
        assert_eq!((response.status, &response.json()["error"]), (status, &json!(code)), "{shown}");
        assert!(form.is_valid(&response.json()), "{shown}: {}", response.body);
        // 404 and 405 belong to no path, or to every one.
        let documented = text.contains(&format!("'{status}':")) && text.contains(code);
        assert!(documented || status == 404, "{status} {code} is not in the document");
    }
}

#[test]
fn a_service_that_shuts_down_says_so() {
    let service = Service::start();
    // Holds the shutdown: the hub waits for this client's end of the Close.
    let mut client = service.client("7", "client");
    client.join("lobby");
    service.signal("TERM");
    until("503 from /ready", || {
        let response = service.http("GET", "/ready", None, "");
        let refused = response.status == 503;
        if refused {
            assert_eq!(response.headers["retry-after"], "1");
            assert_eq!(response.json()["error"], json!("service_unavailable"));
        }
        refused
    });
    drop(client);
    let (status, _) = service.wait();
    assert!(status.success(), "{status}");
}
