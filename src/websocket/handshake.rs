//! Request head → token → identity → place in the hub → 101, or a refusal (RFC 6455 section 4.2).

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use log::info;
use tungstenite::handshake::derive_accept_key;

use crate::auth::Authorizer;
use crate::auth::{Identity, TokenError, Verifier, bearer};
use crate::config::Config;
use crate::gate::Upgrade;
use crate::http::head::Version;
use crate::http::response::refuse;
use crate::http::{Head, Response};
use crate::hub::socket::{Socket, TcpSocket};
use crate::hub::{HubHandle, Publisher, Refusal};
use crate::metrics::{Counters, RefusalReason};
use crate::websocket::reader::Reader;

/// The subprotocol under which a browser passes its token, which can set no header.
const TOKEN_SUBPROTOCOL: &str = "bearer";

/// Turns upgrades into connections; shared by all connection threads.
pub struct Handshake {
    /// Checks tokens.
    pub verifier: Arc<Verifier>,
    /// Who may join what, for the readers.
    pub authorizer: Arc<Authorizer>,
    /// Where places are reserved.
    pub hub: HubHandle,
    /// Counts refusals.
    pub counters: Counters,
    /// `ALLOWED_ORIGINS`, `WRITE_TIMEOUT` for refusals, `MAX_MESSAGE_SIZE` for the readers.
    pub config: Arc<Config>,
    /// Tells connections of different instances apart: the first part of their ids.
    pub instance: String,
}

impl Handshake {
    /// Answers an upgrade, and serves the WebSocket on this thread to its end.
    pub fn serve(&self, upgrade: Upgrade) {
        // The head and all that it took to judge it are gone before the long wait begins.
        if let Some((reader, early)) = self.admit(upgrade) {
            reader.run(early, self.config.max_message_bytes);
        }
    }

    #[inline(never)]
    fn admit(&self, upgrade: Upgrade) -> Option<(Reader, Vec<u8>)> {
        let Upgrade { stream, head, early, number, peer } = upgrade;
        match self.judge(&head, number, peer) {
            Ok(admission) => self.switch(stream, admission).map(|reader| (reader, early)),
            Err(response) => {
                refuse(&stream, &response, self.config.write_timeout);
                None
            }
        }
    }

    fn judge(&self, head: &Head, number: u64, peer: SocketAddr) -> Result<Admission, Response> {
        let refused = &self.counters.refused;
        let accept =
            check_request(head).inspect_err(|_| refused.count(RefusalReason::BadRequest))?;
        let origin = head.header("origin");
        if !self.config.allowed_origins.allows(origin) {
            refused.count(RefusalReason::OriginNotAllowed);
            info!(conn = number, peer:%, origin; "origin refused");
            return Err(Response::error(403, "origin_not_allowed", "this origin may not connect"));
        }
        let identity = token(head)
            .ok_or(TokenError::Missing)
            .and_then(|token| self.verifier.verify(&token))
            .map_err(|error| {
                refused.count(error.into());
                info!(conn = number, peer:%, reason:% = error; "token refused");
                Response::unauthorized(error.code(), error.client_text())
            })?;
        let identity = Arc::new(identity);
        let publisher = self.reserve(&identity, number)?;
        let subprotocol = offers(head, TOKEN_SUBPROTOCOL);
        Ok(Admission { accept, subprotocol, identity, publisher, number, peer })
    }

    fn reserve(&self, identity: &Arc<Identity>, number: u64) -> Result<Publisher, Response> {
        self.hub.reserve(Arc::clone(identity), number).map_err(|refusal| match refusal {
            Refusal::UserCap => {
                self.counters.refused.count(RefusalReason::TooManyConnections);
                info!(conn = number, user = identity.user_id; "too many connections");
                let message = "this user has too many connections";
                Response::error(429, "too_many_connections", message)
                    .with_header("Retry-After", "1")
            }
            Refusal::ShuttingDown => {
                self.counters.refused.count(RefusalReason::ShuttingDown);
                Response::unavailable("the service is shutting down")
            }
        })
    }

    /// Makes the connection live; the hub writes the 101.
    fn switch(&self, stream: TcpStream, admission: Admission) -> Option<Reader> {
        let Admission { accept, subprotocol, identity, publisher, number, peer } = admission;
        let subprotocol = if subprotocol { "Sec-WebSocket-Protocol: bearer\r\n" } else { "" };
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{subprotocol}\r\n"
        );
        let socket = Arc::new(TcpSocket::new(stream).ok()?);
        info!(conn = number, user = identity.user_id, role = identity.role, peer:%; "connected");
        let shared: Arc<dyn Socket> = Arc::<TcpSocket>::clone(&socket);
        publisher.register(shared, response.into()).ok()?;
        Some(Reader {
            publisher,
            number,
            id: format!("{}-{number}", self.instance),
            identity,
            socket,
            authorizer: Arc::clone(&self.authorizer),
            rate_limited: self.counters.rate_limited.clone(),
        })
    }
}

/// What an accepted upgrade comes to.
struct Admission {
    accept: String,
    subprotocol: bool,
    identity: Arc<Identity>,
    publisher: Publisher,
    number: u64,
    peer: SocketAddr,
}

/// Checks that the request is a WebSocket handshake; returns the key that the answer accepts it with.
fn check_request(head: &Head) -> Result<String, Response> {
    let bad = |message| Err(Response::error(400, "bad_request", message));
    if head.method() != "GET" {
        let message = "/ws takes GET";
        return Err(Response::error(405, "method_not_allowed", message).with_header("Allow", "GET"));
    }
    if head.version() != Version::Http11 {
        return bad("a WebSocket handshake needs HTTP/1.1");
    }
    if head.content_length().is_some_and(|length| length > 0) {
        return bad("a WebSocket handshake has no body");
    }
    if !head.has_token("upgrade", "websocket") || !head.has_token("connection", "upgrade") {
        let message = "expected the headers Upgrade: websocket and Connection: Upgrade";
        return Err(
            Response::error(426, "upgrade_required", message).with_header("Upgrade", "websocket")
        );
    }
    if only(head, "sec-websocket-version") != Some("13") {
        let message = "expected one header Sec-WebSocket-Version: 13";
        return Err(Response::error(426, "upgrade_required", message)
            .with_header("Sec-WebSocket-Version", "13"));
    }
    match only(head, "sec-websocket-key") {
        Some(key) if STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) => {
            Ok(derive_accept_key(key.as_bytes()))
        }
        _ => bad("expected one header Sec-WebSocket-Key with 16 bytes in base64"),
    }
}

/// The value of a header that must come once.
fn only<'a>(head: &'a Head, name: &'a str) -> Option<&'a str> {
    let mut values = head.values(name);
    values.next().filter(|_| values.next().is_none())
}

/// The token: from `Authorization`, which a good query does not rescue; without that header from
/// `?token=`; else from the subprotocol pair `bearer, <token>`.
fn token(head: &Head) -> Option<String> {
    if let Some(value) = head.header("authorization") {
        return bearer(value).map(str::to_owned);
    }
    let query = head.query().unwrap_or_default();
    if let Some((_, token)) = form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == "token") {
        return Some(token.into_owned()).filter(|token| !token.is_empty());
    }
    let mut subprotocols = subprotocols(head).skip_while(|name| *name != TOKEN_SUBPROTOCOL);
    subprotocols.nth(1).map(str::to_owned)
}

fn subprotocols(head: &Head) -> impl Iterator<Item = &str> {
    head.values("sec-websocket-protocol").flat_map(|value| value.split(',')).map(str::trim)
}

/// A browser that offered subprotocols fails the connection unless one of them is chosen.
fn offers(head: &Head, subprotocol: &str) -> bool {
    subprotocols(head).any(|name| name == subprotocol)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn head(text: &str) -> Head {
        Head::parse(format!("{text}\r\n").as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn the_rfc_s_own_handshake_is_accepted() {
        assert_eq!(check_request(&head(GOOD)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_is_no_handshake_is_told_why() {
        let cases = [
            ("GET /ws", "POST /ws", 411),
            ("GET /ws", "DELETE /ws", 405),
            ("HTTP/1.1", "HTTP/1.0", 400),
            ("Host: a", "Host: a\r\nContent-Length: 1", 400),
            ("Upgrade: WebSocket\r\n", "", 426),
            ("keep-alive, Upgrade", "keep-alive", 426),
            ("Version: 13", "Version: 8", 426),
            ("Version: 13\r\n", "Version: 13\r\nSec-WebSocket-Version: 13\r\n", 426),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400),
        ];
        for (from, to, status) in cases {
            let text = GOOD.replace(from, to);
            let response = match Head::parse(format!("{text}\r\n").as_bytes()) {
                Ok(parsed) => check_request(&parsed.unwrap().0).unwrap_err(),
                Err(error) => Response::from(&error),
            };
            assert_eq!(response.status(), status, "{from} → {to}");
        }
    }

    #[test]
    fn the_token_is_taken_from_one_place_only() {
        let with = |query: &str, headers: &str| {
            token(&head(&format!("GET /ws{query} HTTP/1.1\r\nHost: a\r\n{headers}")))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with("?token=q", "Authorization: bEaReR h\r\n"), some("h"));
        assert_eq!(with("?token=q", "Authorization: Basic h\r\n"), None);
        assert_eq!(with("?a=b&token=q%2E1", "Sec-WebSocket-Protocol: bearer, s\r\n"), some("q.1"));
        assert_eq!(with("?token=", "Sec-WebSocket-Protocol: bearer, s\r\n"), None);
        assert_eq!(with("", "Sec-WebSocket-Protocol: chat, bearer, s\r\n"), some("s"));
        assert_eq!(
            with("", "Sec-WebSocket-Protocol: bearer\r\nSec-WebSocket-Protocol: s\r\n"),
            some("s")
        );
        assert_eq!(with("", "Sec-WebSocket-Protocol: bearer\r\n"), None);
        assert_eq!(with("", ""), None);
    }
}
