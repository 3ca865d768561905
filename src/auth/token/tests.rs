//! Verifies which tokens are taken, whose they are, and why the others are refused.

use super::*;
use crate::config::{CONNECTION_STACK_BYTES, Config, Secret};
use proptest::prelude::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn jwt() -> JwtConfig {
    Config::new(SECRET).jwt
}

fn message(header: &str, payload: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

fn signed(header: &str, payload: &str, alg: Algorithm) -> String {
    let message = message(header, payload);
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, alg).unwrap();
    format!("{message}.{signature}")
}

/// A token of user u that is valid at [`NOW`], with these further claims.
fn token(claims: &str) -> String {
    signed(HEADER, &format!(r#"{{"exp":{},{claims}}}"#, NOW + 60), Algorithm::HS256)
}

fn verify_with(config: &JwtConfig, token: &str) -> Result<Identity, TokenError> {
    Verifier::new(config).unwrap().verify_at(token, Duration::from_secs(NOW))
}

fn verify(token: &str) -> Result<Identity, TokenError> {
    verify_with(&jwt(), token)
}

fn id(text: &str) -> Option<Id> {
    Some(Id::parse(text).unwrap())
}

fn claims(claims: &str) -> Result<Identity, TokenError> {
    verify(&token(claims))
}

#[test]
fn all_three_algorithms_are_accepted() {
    for (name, alg) in
        [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
    {
        let payload = format!(r#"{{"sub":"u","exp":{}}}"#, NOW + 60);
        let token = signed(&format!(r#"{{"alg":"{name}"}}"#), &payload, alg);
        assert_eq!(verify(&token).unwrap().user_id, "u", "{name}");
    }
    let token = signed(
        r#"{"alg":"HS384"}"#,
        &format!(r#"{{"sub":"u","exp":{}}}"#, NOW + 60),
        Algorithm::HS256,
    );
    assert_eq!(verify(&token), Err(TokenError::BadSignature));
}

#[test]
fn other_libraries_tokens_are_accepted_at_the_real_time() {
    let exp = jsonwebtoken::get_current_timestamp() + 60;
    let token = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &serde_json::json!({ "user_id": 7, "role": "SELLER", "reference_id": 9, "exp": exp }),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap();
    let identity = Verifier::new(&jwt()).unwrap().verify(&token).unwrap();
    assert_eq!(identity.user_id, "7");
    assert_eq!(identity.role, Role::Seller);
    assert_eq!(identity.seller_id, id("9"));
    assert_eq!(identity.expires_at, UNIX_EPOCH + Duration::from_secs(exp));
}

#[test]
fn claims_fall_back_in_order() {
    let user = |text: &str| claims(text).unwrap().user_id;
    assert_eq!(user(r#""id":"c","user_id":"b","sub":"a""#), "a");
    assert_eq!(user(r#""id":"c","user_id":"b""#), "b");
    assert_eq!(user(r#""id":"c""#), "c");
    assert_eq!(user(r#""sub":null,"user_id":null,"id":5"#), "5");
    assert_eq!(claims(r#""role":"admin""#), Err(TokenError::NoUserId));
    assert_eq!(claims(r#""sub":null"#), Err(TokenError::NoUserId));

    let seller = |text: &str| claims(&format!(r#""sub":"u",{text}"#)).unwrap().seller_id;
    let all = r#""reference_id":3,"id_seller":2,"seller_id":1,"role":"Seller""#;
    assert_eq!(seller(all), id("1"));
    assert_eq!(seller(r#""reference_id":3,"id_seller":2,"role":"seller""#), id("2"));
    assert_eq!(seller(r#""reference_id":3,"role":"SELLER""#), id("3"));
    assert_eq!(seller(r#""reference_id":3,"role":"client""#), None);
    assert_eq!(seller(r#""reference_id":3"#), None);
    assert_eq!(seller(r#""seller_id":null,"role":"seller""#), None);

    let client = |text: &str| claims(&format!(r#""sub":"u",{text}"#)).unwrap().client_id;
    assert_eq!(client(r#""id_client":1,"reference_id":2,"role":"client""#), id("1"));
    assert_eq!(client(r#""reference_id":2,"role":"ClIeNt""#), id("2"));
    assert_eq!(client(r#""reference_id":2,"role":"seller""#), None);
    assert_eq!(client(r#""client_id":2,"role":"client""#), None);
}

#[test]
fn a_role_is_in_lower_case_or_empty() {
    assert!(claims(r#""sub":"u","role":"ADMIN""#).unwrap().is_admin());
    assert_eq!(claims(r#""sub":"u""#).unwrap().role, Role::None);
    assert_eq!(claims(r#""sub":"u","role":null"#).unwrap().role, Role::None);
    for role in ["5", "true", r#"["admin"]"#, &format!(r#""{}""#, "a".repeat(129))] {
        assert_eq!(claims(&format!(r#""sub":"u","role":{role}"#)), Err(TokenError::BadRole));
    }
}

#[test]
fn ids_are_visible_strings_or_integers() {
    let long = "x".repeat(128);
    for (json, id) in [
        ("5", "5"),
        ("-5", "-5"),
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        (r#""5""#, "5"),
        (r#""\u0061~!""#, "a~!"),
        (&format!(r#""{long}""#), &long),
    ] {
        assert_eq!(claims(&format!(r#""sub":{json}"#)).unwrap().user_id, id);
    }
    for json in [
        "1.0",
        "1e3",
        "0.5",
        "18446744073709551616",
        "-9223372036854775809",
        "1e999",
        "true",
        "[]",
        "{}",
        r#"["u"]"#,
        r#""""#,
        r#""a b""#,
        r#""a\u0000""#,
        r#""a\n{\"level\":\"error\"}""#,
        r#""a\r\nb""#,
        r#""\u007f""#,
        r#""ä""#,
        r#""\u202e""#,
        r#""\ud800""#,
        &format!(r#""{long}x""#),
        &format!("{}1{}", "[".repeat(100), "]".repeat(100)),
    ] {
        for claim in ["sub", "user_id", "id"] {
            let refused = claims(&format!(r#""{claim}":{json}"#)).unwrap_err();
            assert_eq!(refused, TokenError::BadId(claim), "{json}");
        }
        for claim in ["seller_id", "id_seller", "id_client"] {
            let refused = claims(&format!(r#""sub":"u","{claim}":{json}"#)).unwrap_err();
            assert_eq!(refused, TokenError::BadId(claim), "{json}");
        }
        let text = format!(r#""sub":"u","role":"client","reference_id":{json}"#);
        assert_eq!(claims(&text), Err(TokenError::BadId("reference_id")));
    }
    // A bad claim is not passed over for a good one of lower rank.
    assert_eq!(claims(r#""sub":1.5,"user_id":"u""#), Err(TokenError::BadId("sub")));
}

#[test]
fn other_algorithms_are_refused() {
    let payload = format!(r#"{{"sub":"u","exp":{}}}"#, NOW + 60);
    let unsigned = |alg: &str| format!("{}.", message(&format!(r#"{{"alg":{alg}}}"#), &payload));
    for alg in [
        r#""none""#,
        r#""None""#,
        r#""NONE""#,
        r#""""#,
        r#""hs256""#,
        r#""HS256 ""#,
        "null",
        "5",
        r#"["HS256"]"#,
    ] {
        assert_eq!(verify(&unsigned(alg)), Err(TokenError::AlgorithmNotAllowed), "{alg}");
    }
    // The secret as the key of an HMAC, under the name of an asymmetric algorithm.
    for alg in [
        "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA",
        "HS1",
    ] {
        let token = signed(&format!(r#"{{"alg":"{alg}"}}"#), &payload, Algorithm::HS256);
        assert_eq!(verify(&token), Err(TokenError::AlgorithmNotAllowed), "{alg}");
    }
    let no_alg = signed(r#"{"typ":"JWT"}"#, &payload, Algorithm::HS256);
    assert_eq!(verify(&no_alg), Err(TokenError::AlgorithmNotAllowed));
    assert_eq!(verify(&unsigned(r#""HS256""#)), Err(TokenError::BadSignature));
}

#[test]
fn the_header_chooses_no_key() {
    let payload = format!(r#"{{"sub":"u","exp":{}}}"#, NOW + 60);
    let foreign = |header: &str| {
        let message = message(header, &payload);
        let key = EncodingKey::from_secret(b"");
        let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    for extra in [
        r#""kid":"../../../../dev/null""#,
        r#""kid":"' UNION SELECT '"#,
        r#""kid":["a"]"#,
        r#""jku":"http://127.0.0.1/keys""#,
        r#""jwk":{"kty":"oct","k":""}"#,
    ] {
        let header = format!(r#"{{"alg":"HS256",{extra}}}"#);
        let refused = verify(&foreign(&header)).unwrap_err();
        assert!(matches!(refused, TokenError::BadSignature | TokenError::Malformed));
    }
    let with_kid = signed(r#"{"alg":"HS256","kid":"1"}"#, &payload, Algorithm::HS256);
    assert_eq!(verify(&with_kid).unwrap().user_id, "u");
    let critical =
        signed(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &payload, Algorithm::HS256);
    assert_eq!(verify(&critical), Err(TokenError::UnknownExtension));
}

#[test]
fn a_changed_token_is_refused() {
    let good = token(r#""sub":"u""#);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let other = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{},"sub":"v"}}"#, NOW + 60));
    assert_eq!(verify(&format!("{header}.{other}.{signature}")), Err(TokenError::BadSignature));
    assert_eq!(verify(&format!("{header}.{payload}.")), Err(TokenError::BadSignature));
    assert_eq!(verify(""), Err(TokenError::Missing));
    for bad in [
        "a",
        "a.b",
        "..",
        "...",
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}=="),
        &format!("{good}\n"),
        &format!("{good}\u{e4}"),
        &format!("{header}.{payload}.{payload}.{signature}"),
    ] {
        assert_eq!(verify(bad), Err(TokenError::Malformed), "{bad:?}");
    }
    let mut config = jwt();
    config.secret = Secret::new("another secret");
    assert_eq!(verify_with(&config, &good), Err(TokenError::BadSignature));
}

#[test]
fn a_long_token_is_not_decoded() {
    let fits = |length| {
        let filler = "x".repeat(length);
        token(&format!(r#""sub":"u","filler":"{filler}""#))
    };
    assert!(fits(6000).len() <= MAX_TOKEN_BYTES);
    assert!(verify(&fits(6000)).is_ok());
    assert_eq!(verify(&fits(6200)), Err(TokenError::TooLong));
    assert_eq!(verify(&"a".repeat(1024 * KIB)), Err(TokenError::TooLong));
}

#[test]
fn duplicates_and_other_shapes_are_refused() {
    for text in [
        r#""sub":"a","sub":"b""#,
        r#""sub":"a","s\u0075b":"b""#,
        r#""sub":"a","sub":null"#,
        r#""sub":"a","exp":1"#,
        r#""sub":"a","role":"admin","role":"client""#,
        r#""sub":"a","aud":"x","aud":"y""#,
    ] {
        assert_eq!(claims(text), Err(TokenError::Malformed), "{text}");
    }
    let exp = NOW + 60;
    for payload in [
        "",
        "x",
        "null",
        "5",
        r#""u""#,
        r#"["u",null,null,null,null,null,null,null,1900000000,null,null,null,null]"#,
        &format!(r#"{{"sub":"u","exp":{exp}"#),
        &format!(r#"{{"sub":"u","exp":{exp}}} x"#),
    ] {
        let token = signed(HEADER, payload, Algorithm::HS256);
        assert_eq!(verify(&token), Err(TokenError::Malformed), "{payload}");
    }
    let payload = format!(r#"{{"sub":"u","exp":{exp}}}"#);
    for header in ["", "null", r#"["HS256"]"#, r#"{"alg":"HS256","alg":"none"}"#] {
        let token = signed(header, &payload, Algorithm::HS256);
        assert_eq!(verify(&token), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn times_are_checked_without_leeway() {
    let at =
        |text: &str| verify(&signed(HEADER, &format!(r#"{{"sub":"u",{text}}}"#), Algorithm::HS256));
    let exp = |offset: i64| at(&format!(r#""exp":{}"#, i128::from(NOW) + i128::from(offset)));
    assert!(exp(1).is_ok());
    assert_eq!(exp(0), Err(TokenError::Expired));
    assert_eq!(exp(-1), Err(TokenError::Expired));
    assert_eq!(at(r#""exp":-1"#), Err(TokenError::Expired));
    assert_eq!(at(r#""exp":-1e300"#), Err(TokenError::Expired));
    assert!(at(&format!(r#""exp":{NOW}.5"#)).is_ok());
    assert_eq!(at(r#""iat":1"#), Err(TokenError::NoExpiry));
    assert_eq!(at(r#""exp":null"#), Err(TokenError::NoExpiry));
    for bad in [r#""1900000000""#, "true", "[]", "{}"] {
        assert_eq!(at(&format!(r#""exp":{bad}"#)), Err(TokenError::BadTime("exp")));
        assert_eq!(claims(&format!(r#""sub":"u","nbf":{bad}"#)), Err(TokenError::BadTime("nbf")));
        assert_eq!(claims(&format!(r#""sub":"u","iat":{bad}"#)), Err(TokenError::BadTime("iat")));
    }
    for claim in ["nbf", "iat"] {
        let from = |time: &str| claims(&format!(r#""sub":"u","{claim}":{time}"#));
        assert!(from(&NOW.to_string()).is_ok());
        assert!(from("null").is_ok());
        assert!(from("-5").is_ok());
        for late in [&(NOW + 1).to_string(), "18446744073709551615", "1e300", "1e999"] {
            assert_eq!(from(late), Err(TokenError::NotYetValid), "{claim} {late}");
        }
    }
}

#[test]
fn an_absurd_expiry_is_far_away() {
    for exp in ["9223372036854775807", "18446744073709551615", "1e30", "1e999"] {
        let payload = format!(r#"{{"sub":"u","exp":{exp}}}"#);
        let mut config = jwt();
        config.leeway = Duration::MAX;
        for config in [jwt(), config] {
            let token = signed(HEADER, &payload, Algorithm::HS256);
            let identity = verify_with(&config, &token).unwrap();
            assert_eq!(identity.expires_at, UNIX_EPOCH + FAR, "{exp}");
        }
    }
}

#[test]
fn leeway_is_for_all_three_times() {
    let mut config = jwt();
    config.leeway = Duration::from_secs(5);
    let at = |exp: u64, nbf: u64, iat: u64| {
        let payload = format!(r#"{{"sub":"u","exp":{exp},"nbf":{nbf},"iat":{iat}}}"#);
        verify_with(&config, &signed(HEADER, &payload, Algorithm::HS256))
    };
    let identity = at(NOW - 4, NOW + 5, NOW + 5).unwrap();
    assert_eq!(identity.expires_at, UNIX_EPOCH + Duration::from_secs(NOW + 1));
    assert_eq!(at(NOW - 5, NOW, NOW), Err(TokenError::Expired));
    assert_eq!(at(NOW + 1, NOW + 6, NOW), Err(TokenError::NotYetValid));
    assert_eq!(at(NOW + 1, NOW, NOW + 6), Err(TokenError::NotYetValid));
}

#[test]
fn issuer_and_audience_count_only_where_configured() {
    let with = |text: &str| token(&format!(r#""sub":"u"{text}"#));
    assert!(verify(&with(r#","iss":5,"aud":["x",{}]"#)).is_ok());

    let mut config = jwt();
    config.issuer = Some("shop".into());
    for text in ["", r#","iss":null"#, r#","iss":"Shop""#, r#","iss":5"#, r#","iss":["shop"]"#] {
        assert_eq!(verify_with(&config, &with(text)), Err(TokenError::WrongIssuer), "{text}");
    }
    assert!(verify_with(&config, &with(r#","iss":"shop""#)).is_ok());

    let mut config = jwt();
    config.audience = Some("5".into());
    for text in ["", r#","aud":null"#, r#","aud":5"#, r#","aud":[5]"#, r#","aud":["x",5]"#] {
        assert_eq!(verify_with(&config, &with(text)), Err(TokenError::WrongAudience), "{text}");
    }
    for text in [r#","aud":"5""#, r#","aud":["x","5"]"#] {
        assert!(verify_with(&config, &with(text)).is_ok(), "{text}");
    }
}

#[test]
fn a_verifier_needs_a_secret_and_hides_it() {
    assert_eq!(Verifier::new(&Config::new("").jwt).unwrap_err(), VerifierError::EmptySecret);
    let mut config = jwt();
    config.issuer = Some("a \" b".into());
    config.audience = Some("c".into());
    assert!(!format!("{:?}", Verifier::new(&config).unwrap()).contains(SECRET));
}

#[test]
fn the_deepest_token_fits_a_connections_stack() {
    let deep = |open: &str, close: &str| {
        let levels = 5000 / (open.len() + close.len());
        format!("{}1{}", open.repeat(levels), close.repeat(levels))
    };
    let payload = format!(r#"{{"sub":"u","exp":{}}}"#, NOW + 60);
    let mut tokens = Vec::new();
    for nested in [deep("[", "]"), deep(r#"{"a":"#, "}")] {
        for name in ["alg", "kid", "jwk", "x", "crit"] {
            tokens.push(format!("{}.", message(&format!(r#"{{"{name}":{nested}}}"#), "{}")));
        }
        let header = format!(r#"{{"alg":"HS256","x":{nested}}}"#);
        tokens.push(signed(&header, &payload, Algorithm::HS256));
        for name in ["sub", "role", "exp", "nbf", "iss", "aud", "x"] {
            tokens.push(token(&format!(r#""user_id":"u","{name}":{nested}"#)));
        }
    }
    let mut config = jwt();
    config.issuer = Some("i".into());
    config.audience = Some("a".into());
    let judge = move || {
        for token in &tokens {
            assert!(token.len() < MAX_TOKEN_BYTES);
            let _ = verify(token);
            let _ = verify_with(&config, token);
        }
    };
    std::thread::Builder::new()
        .stack_size(CONNECTION_STACK_BYTES)
        .spawn(judge)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn reasons_are_short_and_the_client_learns_less() {
    assert_eq!(TokenError::BadId("sub").to_string(), "bad id in sub");
    assert_eq!(TokenError::BadSignature.to_string(), "bad signature");
    assert_eq!(TokenError::BadSignature.client_text(), "invalid token");
    assert_eq!(TokenError::Expired.client_text(), "token expired");
    assert_eq!(TokenError::Missing.code(), "missing_token");
}

#[test]
fn a_bearer_header_holds_one_token() {
    for value in ["Bearer a.b-c_d", "bearer a.b-c_d", "BEARER   a.b-c_d", " bEaReR a.b-c_d\t "] {
        assert_eq!(bearer(value), Some("a.b-c_d"), "{value:?}");
    }
    for value in [
        "",
        "Bearer",
        "Bearer ",
        "Bearera",
        "Basic a",
        "a",
        "Bearer a b",
        "Bearer a, Bearer b",
        "Bearer a,b",
        "Bearer\ta",
        "Bearer a\n",
        "Bearer \u{e4}",
    ] {
        assert_eq!(bearer(value), None, "{value:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC{0,300}") {
        prop_assert!(verify(&text).is_err());
        let headed = format!("{}.{text}", URL_SAFE_NO_PAD.encode(HEADER));
        prop_assert!(verify(&headed).is_err());
    }

    #[test]
    fn any_signed_payload_is_judged(payload in "\\PC{0,300}") {
        let _ = verify(&signed(HEADER, &payload, Algorithm::HS256));
        let _ = claims(&format!(r#""sub":"u",{payload}"#));
    }
}
