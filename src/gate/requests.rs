//! One connection: its requests one after the other, until it ends or becomes a WebSocket.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::forward::BORROW_TIMEOUT;
use super::incoming::{Ended, Incoming, NoHead};
use super::shutdown::ShutdownPhase;
use super::{Context, Permit, Upgrade, forward};
use crate::auth::Identity;
use crate::config::{KIB, MIB};
use crate::http::cors;
use crate::http::head::{Head, Version};
use crate::http::response::{Response, linger, write_within};
use crate::metrics::RefusalReason;

/// Path of the WebSocket handshake.
const WEBSOCKET_PATH: &str = "/ws";
/// Body bytes of all requests that are held at once; beyond them the response is 503.
const BODY_BUDGET_BYTES: usize = 64 * MIB;
/// Most bytes of a body read at once; the buffer grows as they arrive.
const BODY_CHUNK_BYTES: usize = 16 * KIB;
/// Deadline of a head on a reserve connection: they are few.
const RESERVE_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// An accepted connection.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) number: u64,
}

/// Serves the connection to its end. A WebSocket lives inside the call of `upgrade`, so that call is
/// made from a shallow stack and with all buffers freed.
pub(super) fn serve(context: &Context, mut permit: Permit, accepted: Accepted) {
    if let Some(upgrade) = serve_requests(context, &mut permit, accepted) {
        (context.upgrade)(upgrade);
    }
}

/// What follows a request.
enum Next {
    /// Another request.
    Request,
    /// A handshake, for which the connection is handed over.
    Upgrade(Head),
    /// The end, after a response: what the peer still sends is drained.
    Close,
    /// The end, with nothing to say.
    Gone,
}

/// Why a request was not forwarded.
enum Unserved {
    /// This is the response.
    Response(Response),
    /// The peer is gone.
    Gone,
}

impl From<Response> for Unserved {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

#[inline(never)]
fn serve_requests(context: &Context, permit: &mut Permit, accepted: Accepted) -> Option<Upgrade> {
    let Accepted { stream, peer, number } = accepted;
    // Shared with the list of connections that may be evicted, while it waits there.
    let stream = Arc::new(stream);
    let mut incoming = Incoming::new(&stream, &context.shutdown);
    let mut requests = Requests { context, permit, stream: &stream, peer, number, fresh: true };
    let end = loop {
        match requests.next(&mut incoming) {
            Next::Request => {}
            end => break end,
        }
    };
    match end {
        Next::Upgrade(head) => {
            let early = incoming.buffered().to_vec();
            drop(incoming);
            let stream = Arc::into_inner(stream)?;
            stream.set_read_timeout(None).ok()?;
            Some(Upgrade { stream, head, early, number, peer })
        }
        Next::Close => {
            permit.wait(&stream);
            linger(&stream);
            None
        }
        Next::Request | Next::Gone => None,
    }
}

/// The requests of one connection, and their responses.
struct Requests<'a> {
    context: &'a Context,
    permit: &'a mut Permit,
    stream: &'a Arc<TcpStream>,
    peer: SocketAddr,
    number: u64,
    /// Whether no head has come yet.
    fresh: bool,
}

impl Requests<'_> {
    /// Reads a head, and answers it unless it asks for an upgrade.
    fn next(&mut self, incoming: &mut Incoming<'_>) -> Next {
        let head = match self.head(incoming) {
            Ok(head) => head,
            Err(NoHead::Silent) => return Next::Gone,
            Err(NoHead::Late) => {
                let late = Response::error(408, "request_timeout", "request head is late");
                return self.refuse(None, late);
            }
            Err(NoHead::Bad(error)) => return self.refuse(None, Response::from(&error)),
        };
        self.fresh = false;
        if let Some(response) = self.turned_away(&head) {
            return self.refuse(Some(&head), response);
        }
        if head.path() == WEBSOCKET_PATH {
            return Next::Upgrade(head);
        }
        self.request(&head, incoming)
    }

    /// The next head. While it is waited for, the connection may be evicted; then there is none.
    fn head(&mut self, incoming: &mut Incoming<'_>) -> Result<Head, NoHead> {
        let head = match incoming.head_at_once()? {
            Some(head) => head,
            None => {
                self.permit.wait(self.stream);
                incoming.wait_for_head(self.head_timeout(), self.fresh)?
            }
        };
        if self.permit.serve() { Ok(head) } else { Err(NoHead::Silent) }
    }

    fn head_timeout(&self) -> Duration {
        let timeout = self.context.config.head_timeout;
        if self.permit.is_reserve() { timeout.min(RESERVE_HEAD_TIMEOUT) } else { timeout }
    }

    fn is_draining(&self) -> bool {
        self.context.shutdown.phase() >= ShutdownPhase::Draining
    }

    /// 503 for what a service that shuts down or a reserve connection does not serve.
    fn turned_away(&self, head: &Head) -> Option<Response> {
        let path = if matches!(head.method(), "GET" | "HEAD") { head.path() } else { "" };
        if self.is_draining() && path != "/health" {
            return Some(shutting_down());
        }
        if self.permit.is_reserve() && !matches!(path, "/health" | "/ready" | "/metrics") {
            self.context.counters.refused.count(RefusalReason::ConnectionCap);
            return Some(Response::unavailable("all connections are taken"));
        }
        None
    }

    /// Whether the connection closes after the response to this request.
    fn closes(&self, head: &Head) -> bool {
        !head.keeps_alive() || self.permit.is_reserve() || self.is_draining()
    }

    /// Responds with an error, after which the connection ends.
    fn refuse(&self, head: Option<&Head>, response: Response) -> Next {
        self.respond(head, response, true)
    }

    fn respond(&self, head: Option<&Head>, response: Response, close: bool) -> Next {
        let response = self
            .cors_headers(head)
            .into_iter()
            .fold(response, |response, (name, value)| response.with_header(name, value));
        let to_head_request = head.is_some_and(|head| head.method() == "HEAD");
        let bytes = if close {
            response.closing_bytes(to_head_request)
        } else {
            response.bytes(to_head_request)
        };
        self.write(&bytes, close)
    }

    fn cors_headers(&self, head: Option<&Head>) -> Vec<cors::Header> {
        let origin = head.and_then(|head| head.header("origin"));
        cors::headers(&self.context.config.allowed_origins, origin)
    }

    fn write(&self, bytes: &[u8], close: bool) -> Next {
        match write_within(self.stream, bytes, self.context.config.write_timeout) {
            Err(_) => {
                // The peer did not take the response: the kernel need not keep it either.
                let _ = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
                Next::Gone
            }
            Ok(()) if close => Next::Close,
            Ok(()) => Next::Request,
        }
    }

    /// Responds by the head alone, or reads the body, has tiny_http answer, and passes that on.
    fn request(&self, head: &Head, incoming: &mut Incoming<'_>) -> Next {
        let caller = match self.context.guard.check(head, self.number, self.peer) {
            Ok(caller) => caller,
            Err(response) => {
                // A body that was announced is not read: behind it no other request is found.
                let has_body = head.content_length().is_some_and(|length| length > 0);
                return self.respond(Some(head), response, has_body || self.closes(head));
            }
        };
        let request = forward::request(head, self.peer, self.number, caller.as_ref());
        match self.forward(head, incoming, request, caller.as_ref()) {
            Ok(mut response) => {
                for (name, value) in self.cors_headers(Some(head)) {
                    response.add_header(name, &value);
                }
                let close = self.closes(head);
                if close {
                    response.add_header("Connection", "close");
                }
                self.write(response.bytes(), close)
            }
            Err(Unserved::Response(response)) => self.refuse(Some(head), response),
            Err(Unserved::Gone) => Next::Gone,
        }
    }

    /// Completes `request` by its body, and has it answered.
    fn forward(
        &self,
        head: &Head,
        incoming: &mut Incoming<'_>,
        mut request: Vec<u8>,
        caller: Option<&Identity>,
    ) -> Result<forward::RestResponse, Unserved> {
        // The guard has checked that it is at most MAX_BODY_SIZE.
        let length = head.content_length().and_then(|length| usize::try_from(length).ok());
        let running = self.context.shutdown.begin_request();
        // `/health` is served all the same, and nobody waits for it.
        if running.is_none() && self.turned_away(head).is_some() {
            return Err(shutting_down().into());
        }
        let mut held = HeldBody::new(&self.context.body_bytes);
        let mut turn = None;
        if let Some(length) = length.filter(|length| *length > 0) {
            self.continue_if_expected(head, incoming)?;
            self.read_body(incoming, length, &mut request, &mut held)?;
            let caller = caller.map(|caller| caller.user_id.clone());
            turn = Some(self.context.turns.take(caller, BORROW_TIMEOUT).ok_or_else(forward::busy)?);
        }
        let response = self.context.pool.exchange(request, head.method() == "HEAD");
        drop(turn);
        Ok(response?)
    }

    /// `100 Continue` (RFC 9110, section 10.1.1), where it is expected and the body is not there
    /// already; HTTP/1.0 has no interim responses.
    fn continue_if_expected(&self, head: &Head, incoming: &Incoming<'_>) -> Result<(), Unserved> {
        let is_expected = head.header("expect").is_some()
            && head.version() == Version::Http11
            && incoming.buffered().is_empty();
        if !is_expected {
            return Ok(());
        }
        match self.write(b"HTTP/1.1 100 Continue\r\n\r\n", false) {
            Next::Request => Ok(()),
            _ => Err(Unserved::Gone),
        }
    }

    fn read_body(
        &self,
        incoming: &mut Incoming<'_>,
        length: usize,
        request: &mut Vec<u8>,
        held: &mut HeldBody<'_>,
    ) -> Result<(), Unserved> {
        let deadline = Instant::now() + self.context.config.body_timeout;
        let mut missing = length;
        while missing > 0 {
            let chunk = missing.min(BODY_CHUNK_BYTES);
            held.grow(chunk)?;
            let read = match incoming.take_buffered(chunk, request) {
                0 => incoming.read_onto(request, chunk, deadline).map_err(|ended| match ended {
                    Ended::Gone => Unserved::Gone,
                    Ended::Late if self.is_draining() => shutting_down().into(),
                    Ended::Late => Unserved::Response(Response::error(
                        408,
                        "request_timeout",
                        &format!("request body is late: {missing} of {length} bytes are missing"),
                    )),
                })?,
                buffered => buffered,
            };
            held.shrink(chunk - read);
            missing -= read;
        }
        Ok(())
    }
}

fn shutting_down() -> Response {
    Response::unavailable("the service is shutting down")
}

/// A request's part of the budget for bodies; given back at the end.
struct HeldBody<'a> {
    total: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> HeldBody<'a> {
    fn new(total: &'a AtomicUsize) -> Self {
        Self { total, bytes: 0 }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Response> {
        self.bytes += bytes;
        if self.total.fetch_add(bytes, Ordering::Relaxed) + bytes > BODY_BUDGET_BYTES {
            return Err(Response::unavailable("too many request bodies are in flight"));
        }
        Ok(())
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for HeldBody<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_a_budget_and_give_it_back() {
        let total = AtomicUsize::new(0);
        let mut first = HeldBody::new(&total);
        assert_eq!(first.grow(BODY_BUDGET_BYTES), Ok(()));
        let mut second = HeldBody::new(&total);
        assert_eq!(second.grow(1).map_err(|response| response.status()), Err(503));
        drop(second);
        first.shrink(1);
        assert_eq!(HeldBody::new(&total).grow(1), Ok(()));
        drop(first);
        assert_eq!(total.into_inner(), 0);
    }
}
