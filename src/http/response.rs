//! Responses of the gate, the handshake and the REST handlers, and how one that ends a connection is
//! written so that it arrives.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use socket2::SockRef;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::config::CLOSE_TIMEOUT;
use crate::protocol::json::quoted;

/// The `Server` header of every response.
pub(crate) const SERVER_NAME: &str = "realtime_service";
/// The form of `Date` (RFC 9110, section 5.6.7).
const DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
/// How long the peer's remaining bytes are drained after the last response: closing a socket with
/// unread input sends RST, which may destroy the response on its way.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes drained so; a peer that floods on gets the RST.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// A status, headers and a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: Vec<u8>,
}

impl Response {
    /// A response whose body is this JSON text.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// A response with a body of this media type.
    pub fn new(
        status: u16,
        content_type: impl Into<Cow<'static, str>>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
            .with_header("Content-Type", content_type)
    }

    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// `{"status":"error","error":"<code>","message":"<message>"}`; a 503 also asks to retry after a
    /// second.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            r#"{{"status":"error","error":{},"message":{}}}"#,
            quoted(code),
            quoted(message)
        );
        let response = Self::json(status, body);
        if status == 503 { response.with_header("Retry-After", "1") } else { response }
    }

    /// 503 with `Retry-After: 1`.
    pub fn unavailable(message: &str) -> Self {
        Self::error(503, "service_unavailable", message)
    }

    /// 401 that asks for a bearer token (RFC 6750 section 3).
    pub fn unauthorized(code: &str, message: &str) -> Self {
        Self::error(401, code, message).with_header("WWW-Authenticate", "Bearer")
    }

    /// Adds a header. A byte that could end the line or is not visible ASCII becomes `?`: nothing
    /// that a peer chose splits a response.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        let plain = |c: char| c == ' ' || c.is_ascii_graphic();
        let value = value.into();
        let value = if value.chars().all(plain) {
            value
        } else {
            value.chars().map(|c| if plain(c) { c } else { '?' }).collect::<String>().into()
        };
        self.headers.push((name, value));
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers, in the order in which they were added.
    pub fn headers(&self) -> &[(&'static str, Cow<'static, str>)] {
        &self.headers
    }

    /// The body.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The bytes of a response after which the connection stays open; a `HEAD` request gets no body.
    pub fn bytes(&self, to_head_request: bool) -> Vec<u8> {
        self.render(to_head_request, "")
    }

    /// The bytes of a response after which the connection closes; a `HEAD` request gets no body.
    pub fn closing_bytes(&self, to_head_request: bool) -> Vec<u8> {
        self.render(to_head_request, "Connection: close\r\n")
    }

    fn render(&self, to_head_request: bool, connection: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.body.len());
        // Neither writing to a Vec nor formatting a date fails.
        let date = OffsetDateTime::now_utc().format(DATE).unwrap_or_default();
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let _ = write!(out, "Server: {SERVER_NAME}\r\nDate: {date}\r\n");
        for (name, value) in &self.headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        // RFC 9110, section 8.6: no Content-Length in a 204.
        if self.status != 204 {
            let _ = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        let _ = write!(out, "{connection}\r\n");
        if !to_head_request {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// Reason phrases of RFC 9110, section 15, for the codes that the service uses.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// Writes all of `bytes` within `timeout`, however slowly the peer reads.
///
/// # Errors
/// `TimedOut` at the deadline, else what `send(2)` says; the stream is broken after either.
pub fn write_within(stream: &TcpStream, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    // Nearly every response fits the socket's buffer: no timeout to set, no clock to read.
    match send_now(stream, bytes) {
        Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
        Err(error) if would_wait(&error) => {}
        Err(error) => return Err(error),
    }
    let deadline = Instant::now() + timeout;
    while !bytes.is_empty() {
        // A blocking send returns at its timeout also when it made progress, so the sum is bounded.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match (&mut &*stream).write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if would_wait(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends what the socket's buffer takes at once.
pub(crate) fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Whether a call on a socket only has to be made again.
pub(crate) fn would_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Writes `response` within `timeout`, then closes the stream so that it arrives: the peer
/// sees the end, and what it still sends is drained for up to a second.
pub fn refuse(stream: &TcpStream, response: &Response, timeout: Duration) {
    if write_within(stream, &response.closing_bytes(false), timeout).is_ok() {
        linger(stream);
    }
}

/// Ends the stream's sending half and drains what the peer still sends.
pub(crate) fn linger(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(CLOSE_TIMEOUT));
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut sink = vec![0; 8 * 1024];
    let mut drained = 0;
    while drained < LINGER_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match (&mut &*stream).read(&mut sink) {
            Ok(0) => return,
            Ok(bytes) => drained += bytes,
            Err(error) if would_wait(&error) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_json_and_closes() {
        let response = Response::error(503, "service_unavailable", "say \"later\"");
        let text = String::from_utf8(response.closing_bytes(false)).unwrap();
        let (start, date_and_rest) = text.split_once("Date: ").unwrap();
        let (date, rest) = date_and_rest.split_once("\r\n").unwrap();
        assert_eq!(start, "HTTP/1.1 503 Service Unavailable\r\nServer: realtime_service\r\n");
        assert_eq!(
            rest,
            "Content-Type: application/json\r\nRetry-After: 1\r\n\
             Content-Length: 74\r\nConnection: close\r\n\r\n\
             {\"status\":\"error\",\"error\":\"service_unavailable\",\"message\":\"say \\\"later\\\"\"}"
        );
        // As in "Sun, 06 Nov 1994 08:49:37 GMT".
        assert_eq!((date.len(), &date[3..5], &date[25..]), (29, ", ", " GMT"), "{date}");
        assert!(response.closing_bytes(true).ends_with(b"\r\n\r\n"));
        let kept = String::from_utf8(Response::empty(204).bytes(false)).unwrap();
        assert!(!kept.contains("Content-Length") && !kept.contains("Connection"), "{kept}");
    }

    #[test]
    fn a_header_cannot_be_split() {
        let response = Response::empty(200).with_header("Allow", "GET\r\nSet-Cookie: a=ä");
        assert_eq!(response.headers(), &[("Allow", Cow::from("GET??Set-Cookie: a=?"))]);
    }
}
