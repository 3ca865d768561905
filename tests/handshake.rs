//! Verifies that `GET /ws` becomes a WebSocket for a good token, wherever it may stand, and that every
//! other request is refused with a status, a JSON body and a log line that never holds the token.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::process::Command;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use support::{
    Client, Frame, Response, SECRET, Service, bearer, connect, frame, handshake, token, token_with,
    unix_now, until,
};

/// The answer to this handshake, which is to be a refusal.
fn refused(service: &Service, target: &str, headers: &str) -> Response {
    service.raw(handshake(target, headers))
}

fn assert_error(answer: &Response, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    let body = answer.json();
    assert_eq!(body["status"], "error", "{body}");
    assert_eq!(body["error"], code, "{body}");
    assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
}

fn assert_is_live(mut client: Client) {
    assert!(client.head.starts_with("HTTP/1.1 101 "), "{}", client.head);
    client.assert_quiet();
}

#[test]
fn the_token_may_stand_in_header_query_or_subprotocol() {
    let service = Service::start();
    let token = token("7", "client");
    let places = [
        ("/ws", bearer(&token)),
        ("/ws", format!("authorization: bEARER  {token} \r\n")),
        (&format!("/ws?token={token}"), String::new()),
        (&format!("/ws?v=1&token={}&x", token.replace('.', "%2E")), String::new()),
    ];
    for (target, headers) in places {
        let client = Client::try_connect(service.addr(), &handshake(target, &headers)).unwrap();
        assert!(!client.head.to_lowercase().contains("protocol:"), "{}", client.head);
        assert_is_live(client);
    }
    for headers in [
        format!("Sec-WebSocket-Protocol: bearer, {token}\r\n"),
        format!("Sec-WebSocket-Protocol: bearer\r\nSec-WebSocket-Protocol: {token}\r\n"),
    ] {
        let client = Client::try_connect(service.addr(), &handshake("/ws", &headers)).unwrap();
        assert!(client.head.contains("\r\nSec-WebSocket-Protocol: bearer\r\n"), "{}", client.head);
        assert!(!client.head.contains(&token));
        assert_is_live(client);
    }
}

#[test]
fn the_answer_is_the_rfc_s_and_frames_are_exact() {
    let service = Service::start();
    let mut client = service.client("7", "");
    assert_eq!(
        client.head,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    // "Hello", masked, as RFC 6455 section 5.7 has it; the answer is read byte by byte.
    client.send_bytes(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    let answer = br#"{"type":"error","payload":{"code":"invalid_json","error":"invalid json"}}"#;
    let mut bytes = vec![0; 2 + answer.len()];
    std::io::Read::read_exact(client.stream(), &mut bytes).unwrap();
    assert_eq!(bytes[..2], [0x81, answer.len() as u8]);
    assert_eq!(&bytes[2..], answer);
}

#[test]
fn hs384_and_hs512_are_taken_and_the_header_chooses_no_other() {
    let service = Service::start();
    let claims = json!({"sub": "7", "exp": unix_now() + 60});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap();
        Client::connect(service.addr(), &token).assert_quiet();
    }
    // {"alg":"none"} and {"alg":"RS256"}, over the payload of a good token.
    let good = token("7", "");
    let payload = good.split('.').nth(1).unwrap();
    for header in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJSUzI1NiJ9"] {
        let forged = format!("{header}.{payload}.");
        assert_error(&refused(&service, "/ws", &bearer(&forged)), 401, "invalid_token");
    }
    service.log_line("algorithm not allowed");
}

#[test]
fn issuer_and_audience_count_where_they_are_set() {
    let service = Service::with(&[("JWT_ISSUER", "shop"), ("JWT_AUDIENCE", "ws")]);
    let with = |claims: &[(&str, &str)]| {
        let mut all = json!({"sub": "7", "exp": unix_now() + 60});
        claims.iter().for_each(|(name, value)| all[*name] = json!(value));
        token_with(all)
    };
    Client::connect(service.addr(), &with(&[("iss", "shop"), ("aud", "ws")])).assert_quiet();
    for (claims, reason) in [
        (&[("iss", "other"), ("aud", "ws")][..], "wrong issuer"),
        (&[("iss", "shop")], "wrong audience"),
    ] {
        let answer = refused(&service, "/ws", &bearer(&with(claims)));
        assert_error(&answer, 401, "invalid_token");
        service.log_line(reason);
    }
}

#[test]
fn a_missing_token_is_401_and_a_bad_header_is_not_rescued() {
    let service = Service::start();
    let good = token("7", "");
    for (target, headers) in [
        ("/ws".to_owned(), String::new()),
        ("/ws?token=".into(), String::new()),
        ("/ws".into(), "Sec-WebSocket-Protocol: bearer\r\n".into()),
        ("/ws".into(), "Authorization: Bearer \r\n".into()),
        (format!("/ws?token={good}"), "Authorization: Basic dTpw\r\n".into()),
        (format!("/ws?token={good}"), "Authorization: Bearer\r\n".into()),
        ("/ws?token=".into(), format!("Sec-WebSocket-Protocol: bearer, {good}\r\n")),
    ] {
        assert_error(&refused(&service, &target, &headers), 401, "missing_token");
    }
    let rescued = refused(&service, &format!("/ws?token={good}"), &bearer("x.y.z"));
    assert_error(&rescued, 401, "invalid_token");
    let two = format!("{}{}", bearer(&good), bearer(&good));
    assert_error(&refused(&service, "/ws", &two), 400, "bad_request");
    assert!(service.log_line("token refused").contains("reason=missing"));
}

#[test]
fn only_listed_origins_connect() {
    let service =
        Service::with(&[("ALLOWED_ORIGINS", "https://shop.example, http://localhost:3000")]);
    let good = bearer(&token("7", ""));
    for origin in ["https://shop.example", "http://localhost:3000"] {
        let request = handshake("/ws", &format!("{good}Origin: {origin}\r\n"));
        assert_is_live(Client::try_connect(service.addr(), &request).unwrap());
    }
    assert_is_live(Client::try_connect(service.addr(), &handshake("/ws", &good)).unwrap());
    for origin in ["https://shop.example.evil", "http://shop.example", "null", "evil\u{202e}"] {
        let answer = refused(&service, "/ws", &format!("{good}Origin: {origin}\r\n"));
        assert_error(&answer, 403, "origin_not_allowed");
    }
    until("the refused origins are logged", || {
        service.log().iter().filter(|line| line.contains("origin refused")).count() == 4
    });
    assert!(!service.log().join("\n").contains('\u{202e}'));
}

#[test]
fn what_is_no_handshake_is_told_what_is_missing() {
    let service = Service::start();
    let good = bearer(&token("7", ""));
    let request = handshake("/ws", &good);
    let change = |from: &str, to: &str| {
        assert!(request.contains(from));
        service.raw(request.replace(from, to))
    };
    let plain = service.http("GET", "/ws", None, "");
    assert_error(&plain, 426, "upgrade_required");
    assert_eq!(plain.headers["upgrade"], "websocket");
    assert_error(&change("Upgrade: websocket\r\n", "Upgrade: h2c\r\n"), 426, "upgrade_required");
    assert_error(&change("Connection: Upgrade", "Connection: close"), 426, "upgrade_required");
    let version = change("Version: 13", "Version: 8");
    assert_error(&version, 426, "upgrade_required");
    assert_eq!(version.headers["sec-websocket-version"], "13");
    assert_error(&change("dGhlIHNhbXBsZSBub25jZQ==", "dG9vIHNob3J0"), 400, "bad_request");
    assert_error(&change("Host: test\r\n", ""), 400, "bad_request");
    assert_error(&change("HTTP/1.1", "HTTP/1.0"), 400, "bad_request");
    let delete = change("GET", "DELETE");
    assert_error(&delete, 405, "method_not_allowed");
    assert_eq!(delete.headers["allow"], "GET");
    // Another path is not /ws, whatever is asked for.
    assert_eq!(change("/ws", "/ws/").status, 404);
    assert_eq!(change("/ws", "/%77s").status, 404);
}

#[test]
fn a_user_s_places_are_counted_and_free_again() {
    let service = Service::with(&[("MAX_CONNECTIONS_PER_USER", "2")]);
    let (mut first, mut second) = (service.client("7", ""), service.client("7", ""));
    let request = handshake("/ws", &bearer(&token("7", "")));
    let answer = service.raw(&request);
    assert_error(&answer, 429, "too_many_connections");
    assert_eq!(answer.headers["retry-after"], "1");
    service.client("8", "").assert_quiet();
    // A refused token takes no place.
    assert_eq!(refused(&service, "/ws", &bearer("x.y.z")).status, 401);

    first.send_close(1000);
    assert_eq!(first.next(), Frame::Close(1000, String::new()));
    drop(first);
    until("the place is free", || {
        let client = Client::try_connect(service.addr(), &request).unwrap();
        client.head.starts_with("HTTP/1.1 101 ")
    });
    second.assert_quiet();
}

#[test]
fn past_the_global_cap_the_answer_is_503_and_probes_still_work() {
    let service = Service::with(&[("MAX_CONNECTIONS", "2")]);
    let clients = [service.client("1", ""), service.client("2", "")];
    let request = handshake("/ws", &bearer(&token("3", "")));
    let answer = service.raw(&request);
    assert_error(&answer, 503, "service_unavailable");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(service.http("GET", "/health", None, "").status, 200);
    drop(clients);
    until("a place is free", || {
        let client = Client::try_connect(service.addr(), &request).unwrap();
        client.head.starts_with("HTTP/1.1 101 ")
    });
}

#[test]
fn a_connection_that_was_used_for_rest_may_become_a_websocket() {
    let service = Service::start();
    let mut stream = connect(service.addr());
    for path in ["/health", "/ready", "/nothing"] {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let status = if path == "/nothing" { 404 } else { 200 };
        assert_eq!(Response::read(&mut stream).unwrap().status, status, "{path}");
    }
    stream.write_all(handshake("/ws", &bearer(&token("7", ""))).as_bytes()).unwrap();
    let mut client = Client::over(stream).unwrap();
    assert!(client.head.starts_with("HTTP/1.1 101 "), "{}", client.head);
    client.join("lobby");
}

#[test]
fn frames_that_come_with_the_head_are_not_lost() {
    let service = Service::start();
    let join = |room: &str| {
        let text = json!({"type": "join", "payload": {"room": room}}).to_string();
        frame(0x81, text.as_bytes())
    };
    let mut bytes = handshake("/ws", &bearer(&token("7", ""))).into_bytes();
    bytes.extend(join("a"));
    bytes.extend(join("b"));
    let third = join("c");
    let (half, rest) = third.split_at(third.len() / 2);
    bytes.extend(half);
    let mut stream = connect(service.addr());
    stream.write_all(&bytes).unwrap();
    let mut client = Client::over(stream).unwrap();
    assert_eq!((client.text(), client.text()), ("joined a".into(), "joined b".into()));
    client.send_bytes(rest);
    assert_eq!(client.text(), "joined c");
}

#[test]
fn a_head_may_come_in_pieces_and_frames_too() {
    let service = Service::start();
    let mut stream = connect(service.addr());
    for piece in handshake("/ws", &bearer(&token("7", ""))).as_bytes().chunks(11) {
        stream.write_all(piece).unwrap();
        std::thread::yield_now();
    }
    let mut client = Client::over(stream).unwrap();
    for byte in frame(0x81, br#"{"type":"join","payload":{"room":"a"}}"#) {
        client.send_bytes(&[byte]);
    }
    assert_eq!(client.text(), "joined a");
}

#[test]
fn frames_behind_a_refused_handshake_do_not_destroy_the_answer() {
    let service = Service::start();
    let mut bytes = handshake("/ws", "").into_bytes();
    bytes.extend(frame(0x81, &[b'x'; 4000]).repeat(20));
    assert_error(&service.raw(bytes), 401, "missing_token");
}

#[test]
fn curl_is_told_that_ws_needs_an_upgrade() {
    let service = Service::start();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .arg(format!("http://{}/ws", service.addr()))
        .env_remove("http_proxy")
        .output()
        .expect("curl is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    assert_eq!(status, "426");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["error"], "upgrade_required");
}

#[test]
fn connects_and_disconnects_are_logged_with_who_and_why() {
    let service = Service::start();
    let mut client = service.client("user-7", "Seller");
    client.join("lobby");
    client.send_close(1000);
    assert_eq!(client.next(), Frame::Close(1000, String::new()));
    drop(client);
    let line = service.log_line("connected conn=1 ");
    assert!(line.contains("user=user-7 role=seller peer=127.0.0.1:"), "{line}");
    let line = service.log_line("disconnected conn=1 ");
    assert!(line.contains("user=user-7 reason=\"closed by the peer with 1000\""), "{line}");
    assert!(line.contains("received=1 sent=1"), "{line}");
}
