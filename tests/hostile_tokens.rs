//! Verifies that a forged, tampered or odd token is refused over every way that a token can come, and
//! that nothing of it reaches a log line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use support::{Client, Response, SECRET, Service, connect, handshake, token, unix_now};

/// A token of this header and payload, whose parts need not be JSON, signed as HS256 whatever the
/// header says.
fn forged_with(secret: &str, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn forged(header: &str, payload: &str) -> String {
    forged_with(SECRET, header, payload)
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn payload() -> String {
    json!({"sub": "1", "exp": unix_now() + 3600}).to_string()
}

/// A payload with these members in front of a good `exp`.
fn with(members: &str) -> String {
    format!(r#"{{{members},"exp":{}}}"#, unix_now() + 3600)
}

/// What each token is, and the token.
fn bad_tokens() -> Vec<(&'static str, String)> {
    let good = token("1", "");
    let (message, signature) = good.rsplit_once('.').unwrap();
    let unsigned = |alg: &str| {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload()));
        format!("{message}.")
    };
    let mut tokens = vec![
        ("no signature", format!("{message}.")),
        ("no last part", message.to_owned()),
        ("another payload", {
            let other = json!({"sub": "admin", "role": "admin", "exp": unix_now() + 3600});
            let (header, _) = message.split_once('.').unwrap();
            format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(other.to_string()))
        }),
        ("a signature of another key", forged_with("another key", HEADER, &payload())),
        ("a signature with a byte more", format!("{good}AA")),
        ("four parts", format!("{good}.{signature}")),
        ("no parts", "token".into()),
        ("dots only", "..".into()),
        ("padding", format!("{good}=")),
        ("not base64", format!("!!.??.{signature}")),
        ("a payload that is no JSON", forged(HEADER, "sub=1")),
        ("a payload that is an array", forged(HEADER, r#"["1"]"#)),
        ("a payload that is not UTF-8", {
            let message = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(HEADER),
                URL_SAFE_NO_PAD.encode(b"{\"sub\":\"\xff\",\"exp\":9999999999}")
            );
            let key = EncodingKey::from_secret(SECRET.as_bytes());
            let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
            format!("{message}.{signature}")
        }),
        ("a header without alg", forged(r#"{"typ":"JWT"}"#, &payload())),
        ("alg twice", forged(r#"{"alg":"HS256","alg":"none"}"#, &payload())),
        ("crit", forged(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &payload())),
        ("a header of deep nesting", {
            let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
            forged(&format!(r#"{{"alg":"none","x":{deep}}}"#), &payload())
        }),
        ("10 KiB", forged(HEADER, &with(&format!(r#""sub":"1","x":"{}""#, "x".repeat(7500))))),
        ("expired by a second", {
            forged(HEADER, &json!({"sub": "1", "exp": unix_now() - 1}).to_string())
        }),
        ("no exp", forged(HEADER, r#"{"sub":"1"}"#)),
        ("exp is text", forged(HEADER, r#"{"sub":"1","exp":"9999999999"}"#)),
        ("exp is null", forged(HEADER, r#"{"sub":"1","exp":null}"#)),
        ("exp is negative", forged(HEADER, r#"{"sub":"1","exp":-9999999999}"#)),
        ("exp is no number", forged(HEADER, r#"{"sub":"1","exp":NaN}"#)),
        ("nbf to come", forged(HEADER, &with(&format!(r#""sub":"1","nbf":{}"#, unix_now() + 600)))),
        ("iat to come", forged(HEADER, &with(&format!(r#""sub":"1","iat":{}"#, unix_now() + 600)))),
        ("sub twice", forged(HEADER, &with(r#""sub":"1","sub":"2""#))),
        ("exp twice", forged(HEADER, &with(r#""sub":"1","exp":1"#))),
        ("no user id", forged(HEADER, &with(r#""role":"admin""#))),
        ("a role that is a list", forged(HEADER, &with(r#""sub":"1","role":["admin"]"#))),
    ];
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        tokens.push(("alg none", unsigned(alg)));
        tokens.push(("alg none, signed", forged(&format!(r#"{{"alg":"{alg}"}}"#), &payload())));
    }
    for alg in ["RS256", "RS512", "ES256", "PS256", "EdDSA", "hs256", "HS257", "HS512"] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        tokens.push(("the secret as another algorithm's key", forged(&header, &payload())));
    }
    for kid in ["../../../../dev/null", "' UNION SELECT 'key", "http://127.0.0.1/key"] {
        let header = json!({"alg": "HS256", "kid": kid, "jku": kid, "x5u": kid}).to_string();
        tokens.push(("kid that points to an empty key", forged_with("", &header, &payload())));
        tokens.push(("kid as the key", forged_with(kid, &header, &payload())));
    }
    let jwk = r#"{"alg":"HS256","jwk":{"kty":"oct","k":"YQ"}}"#;
    tokens.push(("jwk as the key", forged_with("a", jwk, &payload())));
    for id in [
        "1.0",
        "1e3",
        "-0.0",
        "1e999",
        "18446744073709551616",
        "-9223372036854775809",
        "true",
        "{}",
        r#"["1"]"#,
        r#""""#,
        r#"" ""#,
        r#""1 ""#,
        r#""1\n""#,
        r#""1\r\nrole=admin""#,
        r#""\u0000""#,
        r#""1\u0000""#,
        r#""\u202e1""#,
        r#""é""#,
        r#""\ud800""#,
        "\"1\u{7f}\"",
    ] {
        tokens.push(("an odd id", forged(HEADER, &with(&format!(r#""sub":{id}"#)))));
        tokens.push(("an odd seller id", {
            forged(HEADER, &with(&format!(r#""sub":"1","seller_id":{id}"#)))
        }));
    }
    tokens.push(("a long id", forged(HEADER, &with(&format!(r#""sub":"{}""#, "x".repeat(129))))));
    tokens
}

/// The refusal of a handshake, read on a connection of its own.
fn refusal(service: &Service, target: &str, headers: &str) -> Response {
    service.raw(handshake(target, headers))
}

#[test]
fn every_bad_token_is_refused_on_every_way() {
    let service = Service::with(&[("LOG_LEVEL", "debug")]);
    let before = service.at_rest();
    let seen = service.log().len();
    let mut attempts = 0;
    for (what, token) in bad_tokens() {
        let ways = [
            ("/ws".to_owned(), format!("Authorization: Bearer {token}\r\n")),
            (format!("/ws?token={token}"), String::new()),
            ("/ws".to_owned(), format!("Sec-WebSocket-Protocol: bearer, {token}\r\n")),
        ];
        for (target, headers) in &ways {
            // Characters that may not stand in a target are the gate's matter.
            let answer = refusal(&service, target, headers);
            if what == "10 KiB" && target.len() > 8000 {
                assert_eq!(answer.status, 414);
                continue;
            }
            assert_eq!(answer.status, 401, "{what}, {target:.20} {headers:.40}: {answer:?}");
            let body = answer.json();
            let code = body["error"].as_str().unwrap();
            assert!(["invalid_token", "token_expired"].contains(&code), "{what}: {body}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            attempts += 1;
        }
        let answer = service.http("GET", "/admin/clients", Some(&token), "");
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        attempts += 1;
    }
    service.assert_serves();
    let log = service.log();
    let refused = log[seen..].iter().filter(|line| line.contains("] token refused ")).count();
    assert_eq!(refused, attempts, "one line for each");
    for line in &log {
        let start = line.as_bytes();
        assert!(
            start[4] == b'-' && start[10] == b'T' && line.contains("[realtime_service"),
            "{line:?}"
        );
        assert!(!line.contains("eyJ") && !line.contains("role=admin"), "{line:?}");
    }
    service.assert_recovers(before);
}

#[test]
fn a_token_of_a_mebibyte_is_the_gate_s_matter() {
    let service = Service::start();
    let long = "x".repeat(1024 * 1024);
    service.assert_unharmed_by(|service| {
        let header = format!("Authorization: Bearer {long}\r\n");
        assert_eq!(refusal(service, "/ws", &header).status, 431);
        assert_eq!(refusal(service, &format!("/ws?token={long}"), "").status, 414);
        let header = format!("Sec-WebSocket-Protocol: bearer, {long}\r\n");
        assert_eq!(refusal(service, "/ws", &header).status, 431);
    });
}

#[test]
fn a_bad_header_is_not_rescued() {
    let service = Service::start();
    let good = token("1", "");
    let query = format!("/ws?token={good}");
    for header in [
        "Authorization: Bearer x.y.z\r\n".to_owned(),
        "Authorization: \r\n".to_owned(),
        "Authorization: Bearer\r\n".to_owned(),
        format!("Authorization: Basic {good}\r\n"),
        format!("Authorization: Bearer {good} {good}\r\n"),
        format!("Authorization: Bearer {good}, Bearer {good}\r\n"),
    ] {
        assert_eq!(refusal(&service, &query, &header).status, 401, "{header:?}");
    }
    let twice = format!("Authorization: Bearer {good}\r\nAuthorization: Bearer x\r\n");
    assert_eq!(refusal(&service, &query, &twice).status, 400);
}

#[test]
fn odd_but_good_ids_are_taken_as_they_are() {
    let service = Service::start();
    let cases: [(Value, &str); 5] = [
        (json!(7), "7"),
        (json!(-7), "-7"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!("x".repeat(128)), &"x".repeat(128)),
        (json!("a:b.c-d_1"), "a:b.c-d_1"),
    ];
    for (id, text) in cases {
        let token = support::token_with(json!({"sub": id, "exp": unix_now() + 60}));
        let mut client = Client::connect(service.addr(), &token);
        let room = format!("user-{text}");
        client.send_json(&json!({"type": "join", "payload": {"room": room}}));
        let answer = client.text();
        // The room's name has its own limit.
        let expected =
            if room.len() > 128 { "invalid_room_format".into() } else { format!("joined {room}") };
        assert!(answer.contains(&expected), "{id}: {answer}");
    }
}

#[test]
fn a_socket_without_a_token_or_a_handshake_is_told_so() {
    let service = Service::start();
    let answer = refusal(&service, "/ws", "");
    assert_eq!((answer.status, &answer.json()["error"]), (401, &json!("missing_token")));
    drop(connect(service.addr()));
    service.assert_serves();
}
