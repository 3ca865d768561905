//! Token → claims → [`Identity`] (DESIGN section 4).
//!
//! Only the signature is jsonwebtoken's matter. The parts of the token are parsed here: a connection's
//! stack is small, and nothing here recurses into what a peer has nested; one clock read serves all
//! checks; a claim is judged by its JSON text, so that a float is never taken for an id.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::{JwtConfig, KIB, MAX_ID_BYTES};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * KIB;

/// The end of year 9999, as time since 1970: later times count as this one, which every calendar can
/// still print and no addition overflows.
const FAR: Duration = Duration::from_secs(253_402_300_799);

/// Who a connection or a request belongs to; checked, so that it can be trusted from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub`, else `user_id`, else `id`.
    pub user_id: String,
    /// `role` in lower case; empty when the token has none.
    pub role: String,
    /// `seller_id`, else `id_seller`, else `reference_id` of role seller.
    pub seller_id: Option<String>,
    /// `id_client`, else `reference_id` of role client.
    pub client_id: Option<String>,
    /// `exp`, with `JWT_LEEWAY` added: when the token stops being accepted. At most the year 9999.
    pub expires_at: SystemTime,
}

impl Identity {
    /// Whether the role is admin.
    pub fn is_admin(&self) -> bool {
        self.role == "admin"
    }
}

/// Why a token was refused. `Display` is a short reason for a log line, without any of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenError {
    /// There is no token, or it is empty.
    Missing,
    /// Over [`MAX_TOKEN_BYTES`].
    TooLong,
    /// Not three parts of base64url JSON objects, or a claim is there twice.
    Malformed,
    /// `alg` is missing or not HS256, HS384 or HS512.
    AlgorithmNotAllowed,
    /// The header has `crit`: it demands an extension, and none is understood (RFC 7515 section 4.1.11).
    UnknownExtension,
    /// The signature is not that of `JWT_SECRET`.
    BadSignature,
    /// `exp` is missing.
    NoExpiry,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is still to come.
    NotYetValid,
    /// `exp`, `nbf` or `iat`, as named, is not a number.
    BadTime(&'static str),
    /// None of `sub`, `user_id` and `id` is there.
    NoUserId,
    /// The claim of this name is neither 1 to 128 visible characters nor an integer.
    BadId(&'static str),
    /// `role` is not a string of at most 128 bytes.
    BadRole,
    /// `iss` is not `JWT_ISSUER`.
    WrongIssuer,
    /// `aud` does not contain `JWT_AUDIENCE`.
    WrongAudience,
}

impl TokenError {
    /// What the client is told: less than the log, as it may not be who the token was made for.
    pub fn client_text(self) -> &'static str {
        match self {
            Self::Missing => "missing token",
            Self::Expired => "token expired",
            _ => "invalid token",
        }
    }

    /// [`Self::client_text`] as a code: `missing_token`, `token_expired` or `invalid_token`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing_token",
            Self::Expired => "token_expired",
            _ => "invalid_token",
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Missing => "missing",
            Self::TooLong => "too long",
            Self::Malformed => "malformed",
            Self::AlgorithmNotAllowed => "algorithm not allowed",
            Self::UnknownExtension => "unknown extension",
            Self::BadSignature => "bad signature",
            Self::NoExpiry => "no exp",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::BadTime(claim) => return write!(f, "bad time in {claim}"),
            Self::NoUserId => "no user id",
            Self::BadId(claim) => return write!(f, "bad id in {claim}"),
            Self::BadRole => "bad role",
            Self::WrongIssuer => "wrong issuer",
            Self::WrongAudience => "wrong audience",
        };
        f.write_str(text)
    }
}

impl std::error::Error for TokenError {}

/// Why no verifier could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifierError {
    /// The secret is empty: anyone could sign.
    EmptySecret,
    /// A token signed with the secret at start-up was refused.
    SelfTest(TokenError),
}

impl fmt::Display for VerifierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptySecret => f.write_str("JWT_SECRET is empty"),
            Self::SelfTest(error) => {
                write!(f, "a token signed with JWT_SECRET is refused: {error}")
            }
        }
    }
}

impl std::error::Error for VerifierError {}

/// Checks tokens; shared by all connections through an `Arc`. Its `Debug` hides the secret.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
}

impl Verifier {
    /// A verifier that has proved itself on a token of its own.
    ///
    /// # Errors
    /// When the secret is empty, or the crypto of this build does not work.
    pub fn new(config: &JwtConfig) -> Result<Self, VerifierError> {
        if config.secret.expose().is_empty() {
            return Err(VerifierError::EmptySecret);
        }
        let verifier = Self {
            key: DecodingKey::from_secret(config.secret.expose().as_bytes()),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway: config.leeway,
        };
        verifier.test_itself(config).map_err(VerifierError::SelfTest)?;
        Ok(verifier)
    }

    /// A wrong choice of crypto features panics at the first use: it shall be here, not at a client's.
    fn test_itself(&self, config: &JwtConfig) -> Result<(), TokenError> {
        let claims = serde_json::json!({
            "sub": "self-test", "exp": 1, "iss": config.issuer, "aud": config.audience,
        });
        let key = EncodingKey::from_secret(config.secret.expose().as_bytes());
        for alg in ["HS256", "HS384", "HS512"] {
            let message = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#)),
                URL_SAFE_NO_PAD.encode(claims.to_string())
            );
            let signature = crypto::sign(message.as_bytes(), &key, algorithm(alg)?)
                .map_err(|_| TokenError::AlgorithmNotAllowed)?;
            self.verify_at(&format!("{message}.{signature}"), Duration::ZERO)?;
        }
        Ok(())
    }

    /// Checks a token and says whose it is.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        // A clock before 1970 expires nothing, but then nothing else works either.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.verify_at(token, now)
    }

    /// [`Self::verify`] at a time since 1970.
    fn verify_at(&self, token: &str, now: Duration) -> Result<Identity, TokenError> {
        let payload = self.signed_payload(token)?;
        let claims: Claims<'_> = parse_object(&payload)?;
        let expires = self.check_times(&claims, now)?;
        self.check_parties(&claims)?;
        let role = claims.role()?;
        Ok(Identity {
            user_id: claims.user_id()?,
            seller_id: claims.seller_id(&role)?,
            client_id: claims.client_id(&role)?,
            role,
            expires_at: UNIX_EPOCH.checked_add(expires).unwrap_or(UNIX_EPOCH),
        })
    }

    /// The payload, once the signature over it has proved right.
    fn signed_payload(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        match token.len() {
            0 => return Err(TokenError::Missing),
            length if length > MAX_TOKEN_BYTES => return Err(TokenError::TooLong),
            _ => {}
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message
            .split_once('.')
            .filter(|(_, payload)| !payload.contains('.'))
            .ok_or(TokenError::Malformed)?;
        let header_json = decode(header)?;
        let header: JoseHeader<'_> = parse_object(&header_json)?;
        if header.crit.is_some() {
            return Err(TokenError::UnknownExtension);
        }
        let alg = header.alg.and_then(string).ok_or(TokenError::AlgorithmNotAllowed)?;
        match crypto::verify(signature, message.as_bytes(), &self.key, algorithm(&alg)?) {
            Ok(true) => decode(payload),
            Ok(false) => Err(TokenError::BadSignature),
            Err(_) => Err(TokenError::Malformed),
        }
    }

    /// Returns when the token stops being accepted.
    fn check_times(&self, claims: &Claims<'_>, now: Duration) -> Result<Duration, TokenError> {
        let exp = claims.exp.ok_or(TokenError::NoExpiry).and_then(|raw| time("exp", raw))?;
        let expires = exp.saturating_add(self.leeway).min(FAR);
        if expires <= now {
            return Err(TokenError::Expired);
        }
        let latest = now.saturating_add(self.leeway);
        for (claim, raw) in [("nbf", claims.nbf), ("iat", claims.iat)] {
            if raw.map(|raw| time(claim, raw)).transpose()?.is_some_and(|from| from > latest) {
                return Err(TokenError::NotYetValid);
            }
        }
        Ok(expires)
    }

    fn check_parties(&self, claims: &Claims<'_>) -> Result<(), TokenError> {
        if self.issuer.is_some() && claims.iss.and_then(string) != self.issuer {
            return Err(TokenError::WrongIssuer);
        }
        let is_meant = |audience: &String| {
            claims.aud.is_some_and(|raw| match string(raw) {
                Some(single) => single == *audience,
                None => serde_json::from_str(raw.get())
                    .is_ok_and(|several: Vec<String>| several.contains(audience)),
            })
        };
        if self.audience.as_ref().is_some_and(|audience| !is_meant(audience)) {
            return Err(TokenError::WrongAudience);
        }
        Ok(())
    }
}

/// The members of the header that matter; a `kid`, `jwk` or `jku` chooses no key here.
#[derive(Deserialize)]
struct JoseHeader<'a> {
    #[serde(borrow, default)]
    alg: Option<&'a RawValue>,
    #[serde(borrow, default)]
    crit: Option<&'a RawValue>,
}

/// The claims that matter, as JSON text; `null` counts as absent, and one that is there twice as an
/// error. Others are skipped.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow, default)]
    sub: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    role: Option<&'a RawValue>,
    #[serde(borrow, default)]
    seller_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id_seller: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id_client: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reference_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    exp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    nbf: Option<&'a RawValue>,
    #[serde(borrow, default)]
    iat: Option<&'a RawValue>,
    #[serde(borrow, default)]
    iss: Option<&'a RawValue>,
    #[serde(borrow, default)]
    aud: Option<&'a RawValue>,
}

impl<'a> Claims<'a> {
    fn role(&self) -> Result<String, TokenError> {
        let Some(raw) = self.role else { return Ok(String::new()) };
        string(raw)
            .filter(|role| role.len() <= MAX_ID_BYTES)
            .map(|role| role.to_ascii_lowercase())
            .ok_or(TokenError::BadRole)
    }

    fn user_id(&self) -> Result<String, TokenError> {
        first_id([("sub", self.sub), ("user_id", self.user_id), ("id", self.id)])?
            .ok_or(TokenError::NoUserId)
    }

    fn seller_id(&self, role: &str) -> Result<Option<String>, TokenError> {
        first_id([
            ("seller_id", self.seller_id),
            ("id_seller", self.id_seller),
            ("reference_id", self.reference_of(role, "seller")),
        ])
    }

    fn client_id(&self, role: &str) -> Result<Option<String>, TokenError> {
        first_id([
            ("id_client", self.id_client),
            ("reference_id", self.reference_of(role, "client")),
        ])
    }

    fn reference_of(&self, role: &str, wanted: &str) -> Option<&'a RawValue> {
        self.reference_id.filter(|_| role == wanted)
    }
}

/// The first claim that is there decides: a bad one is not passed over for the next.
fn first_id<const N: usize>(
    claims: [(&'static str, Option<&RawValue>); N],
) -> Result<Option<String>, TokenError> {
    claims
        .into_iter()
        .find_map(|(name, raw)| Some((name, raw?)))
        .map(|(name, raw)| id(raw).ok_or(TokenError::BadId(name)))
        .transpose()
}

/// 1 to 128 visible ASCII characters, or an integer of 64 bits.
fn id(raw: &RawValue) -> Option<String> {
    if let Some(text) = string(raw) {
        let visible = text.bytes().all(|b| b.is_ascii_graphic());
        return ((1..=MAX_ID_BYTES).contains(&text.len()) && visible).then_some(text);
    }
    let number = raw.get();
    let signed = number.parse::<i64>().map(|n| n.to_string());
    signed.or_else(|_| number.parse::<u64>().map(|n| n.to_string())).ok()
}

/// A NumericDate (RFC 7519 section 2): seconds since 1970, fractions allowed; one before 1970 counts
/// as 1970, one past [`FAR`] as that.
fn time(claim: &'static str, raw: &RawValue) -> Result<Duration, TokenError> {
    let text = raw.get();
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds).min(FAR));
    }
    let is_number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let seconds: f64 =
        is_number.then(|| text.parse().ok()).flatten().ok_or(TokenError::BadTime(claim))?;
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).map_or(FAR, |time| time.min(FAR)))
}

fn algorithm(name: &str) -> Result<Algorithm, TokenError> {
    match name {
        "HS256" => Ok(Algorithm::HS256),
        "HS384" => Ok(Algorithm::HS384),
        "HS512" => Ok(Algorithm::HS512),
        _ => Err(TokenError::AlgorithmNotAllowed),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)
}

/// A struct also deserialises from an array; only an object is meant.
fn parse_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, TokenError> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| serde_json::from_slice(json).ok()).flatten().ok_or(TokenError::Malformed)
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// The token in the value of an `Authorization` header: the scheme `Bearer` in any case, spaces, and
/// exactly one token (RFC 6750 section 2.1).
pub fn bearer(header_value: &str) -> Option<&str> {
    let (scheme, token) = header_value.trim_matches([' ', '\t']).split_once(' ')?;
    let token = token.trim_start_matches(' ');
    let is_one = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    (scheme.eq_ignore_ascii_case("bearer") && is_one).then_some(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
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
        assert_eq!(identity.role, "seller");
        assert_eq!(identity.seller_id.as_deref(), Some("9"));
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
        assert_eq!(seller(all).as_deref(), Some("1"));
        assert_eq!(
            seller(r#""reference_id":3,"id_seller":2,"role":"seller""#).as_deref(),
            Some("2")
        );
        assert_eq!(seller(r#""reference_id":3,"role":"SELLER""#).as_deref(), Some("3"));
        assert_eq!(seller(r#""reference_id":3,"role":"client""#), None);
        assert_eq!(seller(r#""reference_id":3"#), None);
        assert_eq!(seller(r#""seller_id":null,"role":"seller""#), None);

        let client = |text: &str| claims(&format!(r#""sub":"u",{text}"#)).unwrap().client_id;
        assert_eq!(
            client(r#""id_client":1,"reference_id":2,"role":"client""#).as_deref(),
            Some("1")
        );
        assert_eq!(client(r#""reference_id":2,"role":"ClIeNt""#).as_deref(), Some("2"));
        assert_eq!(client(r#""reference_id":2,"role":"seller""#), None);
        assert_eq!(client(r#""client_id":2,"role":"client""#), None);
    }

    #[test]
    fn a_role_is_in_lower_case_or_empty() {
        assert!(claims(r#""sub":"u","role":"ADMIN""#).unwrap().is_admin());
        assert_eq!(claims(r#""sub":"u""#).unwrap().role, "");
        assert_eq!(claims(r#""sub":"u","role":null"#).unwrap().role, "");
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
        let unsigned =
            |alg: &str| format!("{}.", message(&format!(r#"{{"alg":{alg}}}"#), &payload));
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
            "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
            "EdDSA", "HS1",
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
        let at = |text: &str| {
            verify(&signed(HEADER, &format!(r#"{{"sub":"u",{text}}}"#), Algorithm::HS256))
        };
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
            assert_eq!(
                claims(&format!(r#""sub":"u","nbf":{bad}"#)),
                Err(TokenError::BadTime("nbf"))
            );
            assert_eq!(
                claims(&format!(r#""sub":"u","iat":{bad}"#)),
                Err(TokenError::BadTime("iat"))
            );
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
        for text in ["", r#","iss":null"#, r#","iss":"Shop""#, r#","iss":5"#, r#","iss":["shop"]"#]
        {
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
        for value in ["Bearer a.b-c_d", "bearer a.b-c_d", "BEARER   a.b-c_d", " bEaReR a.b-c_d\t "]
        {
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
}
