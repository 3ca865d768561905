//! Token → claims → [`Identity`] (JWT: RFC 7519).
//!
//! jsonwebtoken only checks the signature; header and claims are parsed here, for three reasons. A
//! connection's stack is small, and this parser does not recurse into nested JSON. All times are compared
//! with one reading of the clock. And ids are checked as JSON text, so that a float is never taken for one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::role::Role;
use crate::config::{JwtConfig, KIB, MAX_ID_BYTES};
use crate::protocol::json::{parse_object, string};
use crate::protocol::{BadId, Id};

/// Longest token that is accepted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * KIB;

/// The end of the year 9999, as time since 1970. Later times count as this one, so that no addition
/// overflows and every time can be printed.
const FAR: Duration = Duration::from_secs(253_402_300_799);

/// Whose connection or request it is, taken from a token that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub`, else `user_id`, else `id`.
    pub user_id: Id,
    /// `role`.
    pub role: Role,
    /// `seller_id`, else `id_seller`, else `reference_id` of role seller.
    pub seller_id: Option<Id>,
    /// `id_client`, else `reference_id` of role client.
    pub client_id: Option<Id>,
    /// `exp`, with `JWT_LEEWAY` added: when the token stops being accepted. At most the year 9999.
    pub expires_at: SystemTime,
}

impl Identity {
    /// Whether the role is admin.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }
}

/// Why a token was refused. `Display` is a short reason for a log line, without any of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    /// There is no token, or it is empty.
    #[error("missing")]
    Missing,
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("too long")]
    TooLong,
    /// Not three parts of base64url JSON objects, or a claim is there twice.
    #[error("malformed")]
    Malformed,
    /// `alg` is missing or not HS256, HS384 or HS512.
    #[error("algorithm not allowed")]
    AlgorithmNotAllowed,
    /// The header has `crit`: it demands an extension, and none is understood (RFC 7515 section 4.1.11).
    #[error("unknown extension")]
    UnknownExtension,
    /// The signature is not that of `JWT_SECRET`.
    #[error("bad signature")]
    BadSignature,
    /// `exp` is missing.
    #[error("no exp")]
    NoExpiry,
    /// `exp` has passed.
    #[error("expired")]
    Expired,
    /// `nbf` or `iat` is still to come.
    #[error("not yet valid")]
    NotYetValid,
    /// `exp`, `nbf` or `iat`, as named, is not a number.
    #[error("bad time in {0}")]
    BadTime(&'static str),
    /// None of `sub`, `user_id` and `id` is there.
    #[error("no user id")]
    NoUserId,
    /// The claim of this name is no id; [`Id::from_json`] says what is.
    #[error("bad id in {0}")]
    BadId(&'static str),
    /// `role` is not a string of at most 128 bytes.
    #[error("bad role")]
    BadRole,
    /// `iss` is not `JWT_ISSUER`.
    #[error("wrong issuer")]
    WrongIssuer,
    /// `aud` does not contain `JWT_AUDIENCE`.
    #[error("wrong audience")]
    WrongAudience,
}

impl TokenError {
    /// What the client is told. It is less than the log says, since the client may be an attacker.
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

/// Why no verifier could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// The secret is empty: anyone could sign.
    #[error("JWT_SECRET is empty")]
    EmptySecret,
    /// A token signed with the secret at start-up was refused.
    #[error("a token signed with JWT_SECRET is refused: {0}")]
    SelfTest(TokenError),
}

/// Checks tokens; shared by all connections through an `Arc`. Its `Debug` hides the secret.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
}

impl Verifier {
    /// Makes a verifier, and has it check a token of its own.
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

    /// A build with the wrong crypto features panics when the first token is checked. This makes it panic
    /// at the start instead.
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
        // A clock before 1970 counts as 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.verify_at(token, now)
    }

    /// [`Self::verify`] at a time since 1970.
    fn verify_at(&self, token: &str, now: Duration) -> Result<Identity, TokenError> {
        let payload = self.signed_payload(token)?;
        let claims: Claims<'_> = parse_object(&payload).map_err(|_| TokenError::Malformed)?;
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

    /// The payload, after the signature was checked.
    fn signed_payload(&self, token: &str) -> Result<String, TokenError> {
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
        let header: JoseHeader<'_> =
            parse_object(&header_json).map_err(|_| TokenError::Malformed)?;
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
        if self.issuer.is_some() && claims.iss.and_then(string).as_deref() != self.issuer.as_deref()
        {
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

/// The members of the header that are used. `kid`, `jwk` and `jku` are ignored: there is only one key.
#[derive(Deserialize)]
struct JoseHeader<'a> {
    #[serde(borrow, default)]
    alg: Option<&'a RawValue>,
    #[serde(borrow, default)]
    crit: Option<&'a RawValue>,
}

/// The claims that are used, as JSON text. `null` counts as absent; a claim that stands twice is an error.
/// Other claims are ignored.
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
    fn role(&self) -> Result<Role, TokenError> {
        let Some(raw) = self.role else { return Ok(Role::None) };
        string(raw)
            .filter(|role| role.len() <= MAX_ID_BYTES)
            .map(|role| Role::from(&*role))
            .ok_or(TokenError::BadRole)
    }

    fn user_id(&self) -> Result<Id, TokenError> {
        first_id([("sub", self.sub), ("user_id", self.user_id), ("id", self.id)])?
            .ok_or(TokenError::NoUserId)
    }

    fn seller_id(&self, role: &Role) -> Result<Option<Id>, TokenError> {
        first_id([
            ("seller_id", self.seller_id),
            ("id_seller", self.id_seller),
            ("reference_id", self.reference_of(role, Role::Seller)),
        ])
    }

    fn client_id(&self, role: &Role) -> Result<Option<Id>, TokenError> {
        first_id([
            ("id_client", self.id_client),
            ("reference_id", self.reference_of(role, Role::Client)),
        ])
    }

    fn reference_of(&self, role: &Role, wanted: Role) -> Option<&'a RawValue> {
        self.reference_id.filter(|_| *role == wanted)
    }
}

/// The id in the first claim that is present. If it is bad, the later ones are not tried.
fn first_id<const N: usize>(
    claims: [(&'static str, Option<&RawValue>); N],
) -> Result<Option<Id>, TokenError> {
    claims
        .into_iter()
        .find_map(|(name, raw)| Some((name, raw?)))
        .map(|(name, raw)| Id::from_json(raw).map_err(|BadId| TokenError::BadId(name)))
        .transpose()
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

/// A part of the token as text: JSON is UTF-8 (RFC 7519 section 7.2).
fn decode(part: &str) -> Result<String, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    String::from_utf8(bytes).map_err(|_| TokenError::Malformed)
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
mod tests;
