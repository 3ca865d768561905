//! Mints the tokens that the generator's connections carry.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::Fallible;

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    role: &'a str,
    exp: u64,
}

/// Signs tokens with the secret of the run, HS256.
pub(crate) struct Tokens {
    secret: String,
    key: EncodingKey,
    expires: u64,
    service: String,
    /// Clients so far.
    clients: AtomicUsize,
}

impl Tokens {
    /// A secret of this run's own.
    pub(crate) fn new() -> Fallible<Self> {
        let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let mut tokens = Self {
            key: EncodingKey::from_secret(secret.as_bytes()),
            secret,
            expires: (now + LIFETIME).as_secs(),
            service: String::new(),
            clients: AtomicUsize::new(0),
        };
        tokens.service = tokens.mint("backend", "service")?;
        Ok(tokens)
    }

    fn mint(&self, user: &str, role: &str) -> Fallible<String> {
        let claims = Claims { sub: user, role, exp: self.expires };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)?)
    }

    /// What the server checks tokens with.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// The token of one more client, a user of its own in the whole run: a server may serve what one
    /// user says in turn, over all connections.
    ///
    /// # Errors
    /// When signing fails.
    pub(crate) fn client(&self) -> Fallible<String> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        self.mint(&format!("user-{number}"), "client")
    }

    /// The token of a backend, for REST.
    pub(crate) fn backend(&self) -> &str {
        &self.service
    }
}
