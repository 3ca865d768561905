//! Tokens that the service takes, and the header that carries one.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

/// The `JWT_SECRET` of every service that the tests start.
pub const SECRET: &str = "a secret of the tests, long enough for production";

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A good token of this user, for an hour.
pub fn token(user: &str, role: &str) -> String {
    token_with(json!({"sub": user, "role": role, "exp": unix_now() + 3600}))
}

/// A token with just these claims, signed with [`SECRET`].
pub fn token_with(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()
}

/// The header line that carries a token.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
