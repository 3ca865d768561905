//! One connection: its requests one after the other, until it ends or becomes a WebSocket.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::incoming::{Ended, Incoming, NoHead, ShutdownPhase};
use super::{Context, Permit, Upgrade, forward};
use crate::config::{KIB, MIB};
use crate::http::cors;
use crate::http::head::{Head, Version};
use crate::http::response::{Response, linger, write_within};
use crate::metrics::RefusalReason;

/// Path of the WebSocket handshake.
const WEBSOCKET_PATH: &str = "/ws";
/// Body bytes of all requests that are held at once; beyond them the answer is 503.
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
pub(super) fn serve(permit: Permit, accepted: Accepted) {
    if let Some(upgrade) = serve_requests(&permit, accepted) {
        (permit.context.upgrade)(upgrade);
    }
}

/// What follows a request.
enum Next {
    /// Another request.
    Request,
    /// The end, after an answer: what the peer still sends is drained.
    Close,
    /// The end, with nothing to say.
    Gone,
}

/// Why a request was not forwarded.
enum Unserved {
    /// This is the answer.
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
fn serve_requests(permit: &Permit, accepted: Accepted) -> Option<Upgrade> {
    let Accepted { stream, peer, number } = accepted;
    let mut incoming = Incoming::new(&stream, &permit.context.phase);
    let mut requests = Requests { permit, stream: &stream, peer, number };
    let mut fresh = true;
    let next = loop {
        let head = match incoming.head(permit.head_timeout(), fresh) {
            Ok(head) => head,
            Err(NoHead::Silent) => break Next::Gone,
            Err(NoHead::Late) => {
                break requests.refuse(
                    None,
                    &Response::error(408, "request_timeout", "request head is late"),
                );
            }
            Err(NoHead::Bad(error)) => break requests.refuse(None, &Response::from(&error)),
        };
        fresh = false;
        if let Some(response) = requests.turned_away(&head) {
            break requests.refuse(Some(&head), &response);
        }
        if head.path() == WEBSOCKET_PATH {
            let early = incoming.buffered().to_vec();
            drop(incoming);
            return stream.set_read_timeout(None).is_ok().then_some(Upgrade {
                stream,
                head,
                early,
                number,
                peer,
            });
        }
        match requests.request(&head, &mut incoming) {
            Next::Request => {}
            end => break end,
        }
    };
    if matches!(next, Next::Close) {
        linger(&stream);
    }
    None
}

impl Permit {
    fn head_timeout(&self) -> Duration {
        let timeout = self.context.config.head_timeout;
        if self.reserve { timeout.min(RESERVE_HEAD_TIMEOUT) } else { timeout }
    }
}

/// The answering side of a connection.
struct Requests<'a> {
    permit: &'a Permit,
    stream: &'a TcpStream,
    peer: SocketAddr,
    number: u64,
}

impl Requests<'_> {
    fn context(&self) -> &Context {
        &self.permit.context
    }

    fn is_draining(&self) -> bool {
        self.context().phase.get() >= ShutdownPhase::Draining
    }

    /// 503 for what a reserve connection or a service that shuts down does not serve.
    fn turned_away(&self, head: &Head) -> Option<Response> {
        let probe = matches!(head.method(), "GET" | "HEAD");
        let path = head.path();
        if self.is_draining() && !(probe && matches!(path, "/health" | "/ready")) {
            return Some(Response::unavailable("the service is shutting down"));
        }
        if self.permit.reserve && !(probe && matches!(path, "/health" | "/ready" | "/metrics")) {
            self.context().refused.count(RefusalReason::ConnectionCap);
            return Some(Response::unavailable("all connections are taken"));
        }
        None
    }

    /// Answers with an error, after which the connection ends.
    fn refuse(&mut self, head: Option<&Head>, response: &Response) -> Next {
        let mut response = response.clone();
        for (name, value) in cors::headers(
            &self.context().config.allowed_origins,
            head.and_then(|h| h.header("origin")),
        ) {
            response = response.with_header(name, value);
        }
        let to_head_request = head.is_some_and(|head| head.method() == "HEAD");
        self.write(&response.closing_bytes(to_head_request), true)
    }

    fn write(&self, bytes: &[u8], close: bool) -> Next {
        match write_within(self.stream, bytes, self.context().config.write_timeout) {
            Err(_) => Next::Gone,
            Ok(()) if close => Next::Close,
            Ok(()) => Next::Request,
        }
    }

    /// Reads the body, has tiny_http answer, and passes the answer on.
    fn request(&mut self, head: &Head, incoming: &mut Incoming<'_>) -> Next {
        match self.forward(head, incoming) {
            Ok(mut response) => {
                let close = !head.keeps_alive() || self.permit.reserve || self.is_draining();
                if close {
                    response.close();
                }
                self.write(response.bytes(), close)
            }
            Err(Unserved::Response(response)) => self.refuse(Some(head), &response),
            Err(Unserved::Gone) => Next::Gone,
        }
    }

    fn forward(
        &mut self,
        head: &Head,
        incoming: &mut Incoming<'_>,
    ) -> Result<forward::RestResponse, Unserved> {
        let length = self.body_length(head)?;
        let mut request = forward::request(head, self.peer, self.number)?;
        let mut held = HeldBody::new(&self.context().body_bytes);
        if length > 0 {
            self.continue_if_expected(head, incoming)?;
            self.read_body(incoming, length, &mut request, &mut held)?;
        }
        Ok(self.context().pool.exchange(request, head.method() == "HEAD")?)
    }

    fn body_length(&self, head: &Head) -> Result<usize, Response> {
        let most = self.context().config.max_body_bytes;
        let announced = head.content_length().unwrap_or(0);
        usize::try_from(announced).ok().filter(|length| *length <= most).ok_or_else(|| {
            let message = format!("body has {announced} bytes, at most {most} are taken");
            Response::error(413, "payload_too_large", &message)
        })
    }

    /// `Expect: 100-continue` (RFC 9110, section 10.1.1); HTTP/1.0 has no interim answers.
    fn continue_if_expected(&self, head: &Head, incoming: &Incoming<'_>) -> Result<(), Unserved> {
        match head.header("expect") {
            None => Ok(()),
            Some(expect) if !expect.eq_ignore_ascii_case("100-continue") => {
                let message = "Expect is not 100-continue";
                Err(Response::error(417, "expectation_failed", message).into())
            }
            Some(_) if head.version() == Version::Http10 || !incoming.buffered().is_empty() => {
                Ok(())
            }
            Some(_) => match self.write(b"HTTP/1.1 100 Continue\r\n\r\n", false) {
                Next::Request => Ok(()),
                _ => Err(Unserved::Gone),
            },
        }
    }

    fn read_body(
        &self,
        incoming: &mut Incoming<'_>,
        length: usize,
        request: &mut Vec<u8>,
        held: &mut HeldBody<'_>,
    ) -> Result<(), Unserved> {
        let deadline = Instant::now() + self.context().config.body_timeout;
        let mut missing = length;
        while missing > 0 {
            let chunk = missing.min(BODY_CHUNK_BYTES);
            held.grow(chunk)?;
            let read = match incoming.take_buffered(chunk, request) {
                0 => incoming.read_onto(request, chunk, deadline).map_err(|ended| match ended {
                    Ended::Gone => Unserved::Gone,
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
