//! One call to the authorization backend: the URL, the request, what the answer means.

use std::fmt;
use std::net::ToSocketAddrs;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{StatusCode, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::Question;
use crate::config::{BACKEND_CALLS, KIB};
use crate::protocol::RoomKind;
use crate::protocol::json::parse_object;

/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * KIB as u64;
/// How long a connection is kept for the next call: shorter than the 5 s after which common servers
/// close an idle one, so that no call meets the close.
const MAX_IDLE: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried, as many as ureq's list holds.
const MAX_ADDRESSES: usize = 16;

/// Everything but RFC 3986's unreserved characters: right in a path and in a query alike.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a call gave no verdict. `Display` is for the log.
#[derive(Debug)]
pub(super) enum CallError {
    /// No answer: refused, cut, out of time, or not HTTP.
    Http(ureq::Error),
    /// A 200 whose body is not a JSON object with a boolean `allowed`.
    Junk,
    /// The calling thread panicked.
    Panic,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => write!(f, "no answer: {error}"),
            Self::Junk => {
                f.write_str("the answer is not {\"allowed\":true} or {\"allowed\":false}")
            }
            Self::Panic => f.write_str("the call panicked"),
        }
    }
}

/// Calls the backend; one for all threads, so that they share its kept connections.
pub(super) struct Caller {
    agent: Agent,
    base: String,
}

#[derive(Deserialize)]
struct AccessResponse {
    allowed: bool,
}

impl Caller {
    /// A caller of the backend at `base`, a URL without a query.
    pub(super) fn new(base: &str) -> Self {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .max_idle_connections(BACKEND_CALLS)
            .max_idle_connections_per_host(BACKEND_CALLS)
            .max_idle_age(MAX_IDLE)
            .user_agent("realtime_service")
            .accept("application/json")
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new(), ResolveHere);
        Self { agent, base: base.trim_end_matches('/').to_owned() }
    }

    /// Asks within `timeout`; says whether the join is allowed.
    pub(super) fn call(&self, question: &Question, timeout: Duration) -> Result<bool, CallError> {
        let mut response = self
            .agent
            .get(url(&self.base, question))
            .config()
            .timeout_global(Some(timeout))
            .build()
            .call()
            .map_err(CallError::Http)?;
        if response.status() != StatusCode::OK {
            return Ok(false);
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec()
            .map_err(CallError::Http)?;
        parse_answer(&body).ok_or(CallError::Junk)
    }
}

fn url(base: &str, question: &Question) -> String {
    let encode = |part| utf8_percent_encode(part, ENCODED);
    let user = encode(question.user_id.as_str());
    match question.room.kind() {
        RoomKind::Order(id) => format!("{base}/orders/{}/can_access?user_id={user}", encode(id)),
        RoomKind::Seller(id) => format!("{base}/sellers/{}/can_access?user_id={user}", encode(id)),
        _ => format!("{base}/ws/can_join?room={}&user_id={user}", encode(question.room.as_str())),
    }
}

fn parse_answer(body: &[u8]) -> Option<bool> {
    let answer: AccessResponse = parse_object(std::str::from_utf8(body).ok()?).ok()?;
    Some(answer.allowed)
}

/// Resolves names on the calling thread: ureq's own resolver spawns one with a call that panics when
/// the system has none left.
#[derive(Debug)]
struct ResolveHere;

impl Resolver for ResolveHere {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let found = (host, uri.port_u16().unwrap_or(default_port)).to_socket_addrs()?;
        let mut addresses = self.empty();
        for address in config.ip_family().keep_wanted(found).take(MAX_ADDRESSES) {
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(ureq::Error::HostNotFound);
        }
        Ok(addresses)
    }
}
