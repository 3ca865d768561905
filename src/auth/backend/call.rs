//! One HTTP call to the authorization backend: its URL, and what the answer means.

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
/// How long an idle connection is kept for the next call. Shorter than the 5 s after which common servers
/// close it, so that no call is sent on a connection that is being closed.
const MAX_IDLE: Duration = Duration::from_secs(3);
/// Most addresses of one host name that are tried; ureq's list holds no more.
const MAX_ADDRESSES: usize = 16;

/// Encodes all but RFC 3986's unreserved characters, which is right in a path and in a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a call gave no verdict. `Display` is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No answer: refused, cut, out of time, or not HTTP.
    #[error("no answer: {0}")]
    Http(ureq::Error),
    /// A 200 whose body is not a JSON object with a boolean `allowed`.
    #[error("the answer is not {{\"allowed\":true}} or {{\"allowed\":false}}")]
    Junk,
    /// The calling thread panicked.
    #[error("the call panicked")]
    Panic,
}

/// Calls the backend. All threads use the same one, so that they share its idle connections.
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

/// Resolves host names on the calling thread. ureq's own resolver starts a thread for it, with a call that
/// panics when the system has no thread left.
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
