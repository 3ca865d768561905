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
use support::{Client, Response, SECRET, Service, bearer, connect, handshake, token, unix_now};

/// A token of this header and payload, whose parts need not be JSON, signed as HS256 whatever the
/// header says.
fn forged_with(secret: &str, header: &str, payload: impl AsRef<[u8]>) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn forged(header: &str, payload: impl AsRef<[u8]>) -> String {
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

/// A token that is refused.
#[derive(Clone)]
struct Bad {
    what: &'static str,
    /// What the log says; the peer is told less.
    reason: &'static str,
    token: String,
}

/// Tokens that are no three parts, or whose signature is not that of what they say.
fn unsigned() -> Vec<Bad> {
    let bad = |what, reason, token| Bad { what, reason, token };
    let good = token("1", "");
    let (message, signature) = good.rsplit_once('.').unwrap();
    let other = json!({"sub": "admin", "role": "admin", "exp": unix_now() + 3600}).to_string();
    let other = URL_SAFE_NO_PAD.encode(other);
    vec![
        bad("no signature", "bad signature", format!("{message}.")),
        bad("no last part", "malformed", message.to_owned()),
        bad("another payload", "bad signature", {
            let (header, _) = message.split_once('.').unwrap();
            format!("{header}.{other}.{signature}")
        }),
        bad("another key", "bad signature", forged_with("another key", HEADER, payload())),
        bad("a signature with a byte more", "bad signature", format!("{good}A")),
        bad("four parts", "malformed", format!("{good}.{signature}")),
        bad("one part", "malformed", "token".into()),
        bad("two parts", "malformed", "only.two-parts".into()),
        bad("dots only", "malformed", "..".into()),
        bad("padding", "malformed", format!("{good}=")),
        bad("not base64", "malformed", format!("!!.??.{signature}")),
    ]
}

/// Tokens whose header would choose the algorithm or the key.
fn with_odd_headers() -> Vec<Bad> {
    let bad = |what, reason, token| Bad { what, reason, token };
    let with_header = |header: &str| forged(header, payload());
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    let no_algorithm = "algorithm not allowed";
    let mut tokens = vec![
        bad("no alg", no_algorithm, with_header(r#"{"typ":"JWT"}"#)),
        bad("alg twice", "malformed", with_header(r#"{"alg":"HS256","alg":"none"}"#)),
        bad(
            "crit",
            "unknown extension",
            with_header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#),
        ),
        bad("deep nesting", no_algorithm, with_header(&format!(r#"{{"alg":"none","x":{deep}}}"#))),
        bad(
            "jwk as the key",
            "bad signature",
            forged_with("a", r#"{"alg":"HS256","jwk":{"kty":"oct","k":"YQ"}}"#, payload()),
        ),
    ];
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        let signed = with_header(&header);
        let (message, _) = signed.rsplit_once('.').unwrap();
        tokens.push(bad("alg none", no_algorithm, format!("{message}.")));
        tokens.push(bad("alg none, signed", no_algorithm, signed));
    }
    // The secret as another algorithm's key.
    for alg in ["RS256", "RS512", "ES256", "PS256", "EdDSA", "hs256", "HS257"] {
        let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
        tokens.push(bad("another algorithm", no_algorithm, with_header(&header)));
    }
    tokens.push(bad("HS256 as HS512", "bad signature", with_header(r#"{"alg":"HS512"}"#)));
    for kid in ["../../../../dev/null", "' UNION SELECT 'key", "http://127.0.0.1/key"] {
        let header = json!({"alg": "HS256", "kid": kid, "jku": kid, "x5u": kid}).to_string();
        let keys = [("kid that points to an empty key", ""), ("kid as the key", kid)];
        tokens.extend(
            keys.map(|(what, key)| {
                bad(what, "bad signature", forged_with(key, &header, payload()))
            }),
        );
    }
    tokens
}

/// Tokens whose claims are not what they must be.
fn with_odd_claims() -> Vec<Bad> {
    let bad = |what, reason, token| Bad { what, reason, token };
    let claims = |members: &str| forged(HEADER, with(members));
    let later = unix_now() + 600;
    let mut tokens = vec![
        bad("no JSON", "malformed", forged(HEADER, "sub=1")),
        bad("an array", "malformed", forged(HEADER, r#"["1"]"#)),
        bad("not UTF-8", "malformed", forged(HEADER, b"{\"sub\":\"\xff\",\"exp\":9999999999}")),
        bad("10 KiB", "too long", claims(&format!(r#""sub":"1","x":"{}""#, "x".repeat(7500)))),
        bad("expired by a second", "expired", {
            forged(HEADER, json!({"sub": "1", "exp": unix_now() - 1}).to_string())
        }),
        bad("exp is negative", "expired", forged(HEADER, r#"{"sub":"1","exp":-9999999999}"#)),
        bad("no exp", "no exp", forged(HEADER, r#"{"sub":"1"}"#)),
        bad("exp is null", "no exp", forged(HEADER, r#"{"sub":"1","exp":null}"#)),
        bad("exp is text", "bad time in exp", forged(HEADER, r#"{"sub":"1","exp":"9999999999"}"#)),
        bad("exp is no number", "malformed", forged(HEADER, r#"{"sub":"1","exp":NaN}"#)),
        bad("nbf to come", "not yet valid", claims(&format!(r#""sub":"1","nbf":{later}"#))),
        bad("iat to come", "not yet valid", claims(&format!(r#""sub":"1","iat":{later}"#))),
        bad("sub twice", "malformed", claims(r#""sub":"1","sub":"2""#)),
        bad("exp twice", "malformed", claims(r#""sub":"1","exp":1"#)),
        bad("no user id", "no user id", claims(r#""role":"admin""#)),
        bad("a role that is a list", "bad role", claims(r#""sub":"1","role":["admin"]"#)),
        bad("a role that is a number", "bad role", claims(r#""sub":"1","role":5"#)),
        bad("a long id", "bad id in sub", claims(&format!(r#""sub":"{}""#, "x".repeat(129)))),
    ];
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
        r#""a b""#,
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
        tokens.push(bad("an odd id", "bad id in sub", claims(&format!(r#""sub":{id}"#))));
        let of_seller = claims(&format!(r#""sub":"1","seller_id":{id}"#));
        tokens.push(bad("an odd seller id", "bad id in seller_id", of_seller));
    }
    tokens
}

/// The refusal of a handshake, read on a connection of its own.
fn refusal(service: &Service, target: &str, headers: &str) -> Response {
    service.raw(handshake(target, headers))
}

/// Whether a part of the token stands in the text; a short part may be a word.
fn tells(text: &str, token: &str) -> bool {
    token.split('.').any(|part| part.len() >= 20 && text.contains(part))
}

/// The refusal says no more than its code, and repeats nothing of the token.
fn assert_refused(answer: &Response, bad: &Bad) {
    assert_eq!(answer.status, 401, "{}: {answer:?}", bad.what);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    let body = answer.json();
    let code = if bad.reason == "expired" { "token_expired" } else { "invalid_token" };
    assert_eq!((&body["status"], &body["error"]), (&json!("error"), &json!(code)), "{}", bad.what);
    assert!(!tells(&answer.body, &bad.token), "{}: {body}", bad.what);
}

#[test]
fn every_bad_token_is_refused_on_every_way_and_the_log_says_why_without_it() {
    let service = Service::with(&[("LOG_LEVEL", "trace")]);
    let before = service.at_rest();
    let seen = service.log().len();
    let mut reasons = Vec::new();
    let tokens = [unsigned(), with_odd_headers(), with_odd_claims()].concat();
    for bad in &tokens {
        let token = &bad.token;
        let ways = [
            ("/ws".to_owned(), bearer(token)),
            (format!("/ws?token={token}"), String::new()),
            ("/ws".to_owned(), format!("Sec-WebSocket-Protocol: bearer, {token}\r\n")),
        ];
        for (target, headers) in &ways {
            let answer = refusal(&service, target, headers);
            // A target that is too long is the gate's matter.
            if target.len() > 8000 {
                assert_eq!(answer.status, 414);
                continue;
            }
            assert_refused(&answer, bad);
            reasons.push(bad.reason);
        }
        let answer = service.http("GET", "/admin/clients", Some(token), "");
        assert_eq!(answer.status, 401, "{}: {answer:?}", bad.what);
        reasons.push(bad.reason);
    }
    service.assert_serves();
    let log = service.log();
    let lines: Vec<_> = log[seen..].iter().filter(|l| l.contains("] token refused ")).collect();
    assert_eq!(lines.len(), reasons.len(), "one line for each");
    for (line, reason) in lines.iter().zip(&reasons) {
        assert!(line.contains(reason) && line.contains("peer=127.0.0.1:"), "{reason}: {line}");
    }
    for line in &log {
        let start = line.as_bytes();
        assert!(
            start[4] == b'-' && start[10] == b'T' && line.contains("[realtime_service"),
            "{line:?}"
        );
        assert!(!line.contains("role=admin") && !line.contains("token="), "{line:?}");
    }
    let log = log.join("\n");
    for bad in tokens {
        assert!(!tells(&log, &bad.token), "{}", bad.what);
    }
    service.assert_recovers(before);
}

#[test]
fn a_token_of_a_mebibyte_is_the_gate_s_matter() {
    let service = Service::start();
    let long = "x".repeat(1024 * 1024);
    service.assert_unharmed_by(|service| {
        let header = bearer(&long);
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
