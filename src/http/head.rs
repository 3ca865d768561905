//! Request heads: bytes in, a checked head or the refusal out (RFC 9112, sections 2 to 6).
//!
//! Stricter than the RFC where leniency invites smuggling: no bare LF, no obsolete folding, no
//! repeated `Content-Length`, no transfer coding at all.

use std::ops::Range;

use httparse::Status;

use super::response::Response;
use crate::config::{KIB, MAX_HEAD_BYTES};

/// Longest request line, in bytes; past it the response is 414.
pub const MAX_REQUEST_LINE_BYTES: usize = 8 * KIB;
/// Most headers; past them the response is 431.
pub const MAX_HEADERS: usize = 64;
/// Most characters of a peer's value that an error message repeats.
const SHOWN_CHARS: usize = 64;

// Places in the head's text are kept as u16.
const _: () = assert!(MAX_HEAD_BYTES <= u16::MAX as usize);

/// Headers that may come only once: with two of them, two readers could believe different ones.
const ONCE: [&str; 5] = ["host", "content-length", "authorization", "origin", "expect"];

/// The versions that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// A complete, checked request head; it owns its text and knows where the parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    text: Box<str>,
    method: Span,
    target: Span,
    path: Span,
    query: Option<Span>,
    version: Version,
    headers: Box<[(Span, Span)]>,
    content_length: Option<u64>,
}

/// A place in the head's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Where `part`, a slice of `whole`, lies in it.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        Self::from(start..start.wrapping_add(part.len()))
    }

    /// The part from `from` to `to`, counted from this span's start.
    fn cut(self, range: Range<usize>) -> Self {
        let start = usize::from(self.start);
        Self::from(start + range.start..start + range.end)
    }
}

impl From<Range<usize>> for Span {
    /// A head has at most 16 KiB, so its places fit.
    fn from(range: Range<usize>) -> Self {
        let place = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        Self { start: place(range.start), end: place(range.end) }
    }
}

/// Why a head was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The request line has over 8 KiB.
    #[error("request line is over {MAX_REQUEST_LINE_BYTES} bytes")]
    UriTooLong,
    /// The head has over 16 KiB.
    #[error("request head is over {MAX_HEAD_BYTES} bytes")]
    TooLarge,
    /// There are over 64 headers.
    #[error("request has over {MAX_HEADERS} headers")]
    TooManyHeaders,
    /// Not HTTP, or a form of it that is not taken; the text says what is wrong and where.
    #[error("{0}")]
    Malformed(String),
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("version is {0:?}, expected HTTP/1.1 or HTTP/1.0")]
    Version(String),
    /// `Transfer-Encoding`, whose value this is.
    #[error("Transfer-Encoding is {0:?}, which is not taken; send a Content-Length")]
    TransferEncoding(String),
    /// A method that has a body, this one, came without `Content-Length`.
    #[error("{0} needs a Content-Length")]
    LengthRequired(String),
}

impl From<&HeadError> for Response {
    fn from(error: &HeadError) -> Self {
        let (status, code) = match error {
            HeadError::UriTooLong => (414, "uri_too_long"),
            HeadError::TooLarge | HeadError::TooManyHeaders => (431, "headers_too_large"),
            HeadError::Malformed(_) => (400, "bad_request"),
            HeadError::Version(_) => (505, "version_not_supported"),
            HeadError::TransferEncoding(_) => (501, "not_implemented"),
            HeadError::LengthRequired(_) => (411, "length_required"),
        };
        Self::error(status, code, &error.to_string())
    }
}

fn malformed(what: impl Into<String>) -> HeadError {
    HeadError::Malformed(what.into())
}

/// What an error message repeats of a peer's value.
fn shown(value: &str) -> String {
    value.chars().take(SHOWN_CHARS).collect()
}

impl Head {
    /// Parses the head at the start of `bytes`; `None` while it is incomplete, else the head and its
    /// length in bytes. Every prefix of an accepted head is incomplete.
    ///
    /// # Errors
    /// [`HeadError`]; the connection cannot go on, since where the next request starts is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeadError> {
        check_request_line_length(bytes)?;
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
            Ok(Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Ok(None),
            Ok(_) => return Err(HeadError::TooLarge),
            Err(error) => return Err(refusal(error, bytes)),
        };
        let text = check_text(bytes.get(..length).unwrap_or_default())?;
        // Complete heads have all three.
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(malformed("request line is incomplete"));
        };
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        let target_at = Span::of(target.as_bytes(), bytes);
        let (path, query) = split_target(target)?;
        let head = Self {
            text: text.into(),
            method: Span::of(method.as_bytes(), bytes),
            target: target_at,
            path: target_at.cut(path),
            query: query.map(|query| target_at.cut(query)),
            version,
            headers: request
                .headers
                .iter()
                .map(|header| {
                    (Span::of(header.name.as_bytes(), bytes), Span::of(header.value, bytes))
                })
                .collect(),
            content_length: None,
        };
        head.checked().map(|head| Some((head, length)))
    }

    fn checked(mut self) -> Result<Self, HeadError> {
        for name in ONCE {
            if self.values(name).count() > 1 {
                return Err(malformed(format!("{name} is there more than once")));
            }
        }
        self.check_host()?;
        self.content_length = self.framing()?;
        Ok(self)
    }

    fn check_host(&self) -> Result<(), HeadError> {
        let Some(host) = self.header("host") else {
            return match self.version {
                Version::Http10 => Ok(()),
                Version::Http11 => Err(malformed("HTTP/1.1 needs a Host header")),
            };
        };
        let in_authority = |b: u8| b.is_ascii_graphic() && !b",/\\?#@\"<>".contains(&b);
        if host.bytes().all(in_authority) {
            Ok(())
        } else {
            Err(malformed(format!("Host is {:?}, expected host:port", shown(host))))
        }
    }

    /// How long the body is (RFC 9112, section 6); a length past u64 counts as the largest.
    fn framing(&self) -> Result<Option<u64>, HeadError> {
        let length = self.header("content-length");
        if let Some(coding) = self.header("transfer-encoding") {
            return Err(match length {
                Some(_) => malformed("both Transfer-Encoding and Content-Length are there"),
                None => HeadError::TransferEncoding(shown(coding)),
            });
        }
        match length {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(digits.parse().unwrap_or(u64::MAX)))
            }
            Some(other) => Err(malformed(format!(
                "Content-Length is {:?}, expected digits only",
                shown(other)
            ))),
            None if matches!(self.method(), "POST" | "PUT" | "PATCH") => {
                Err(HeadError::LengthRequired(self.method().to_owned()))
            }
            None => Ok(None),
        }
    }

    /// The method, as it came: methods are case-sensitive.
    pub fn method(&self) -> &str {
        self.at(self.method)
    }

    /// The request target, as it came.
    pub fn target(&self) -> &str {
        self.at(self.target)
    }

    /// The path, as it came (percent-encoded); `/` for an absolute target without one.
    pub fn path(&self) -> &str {
        match self.at(self.path) {
            "" => "/",
            path => path,
        }
    }

    /// What stands behind the first `?`, where there is one.
    pub fn query(&self) -> Option<&str> {
        self.query.map(|query| self.at(query))
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// All headers, in order: name as it came, value without surrounding blanks. Values are UTF-8
    /// without control characters other than a tab, not necessarily ASCII.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (self.at(*name), self.at(*value)))
    }

    /// The values of all headers of this name, in any case.
    pub fn values<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.headers().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of the first header of this name, in any case. `Host`, `Content-Length`,
    /// `Authorization`, `Origin` and `Expect` come at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// Whether a comma-separated list, over all headers of this name, holds this token in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|list| list.split(','))
            .any(|item| item.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
    }

    /// `Content-Length`, where there is one; `u64::MAX` stands for anything past it.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Whether the peer expects another response on this connection: HTTP/1.1 without
    /// `Connection: close`.
    pub fn keeps_alive(&self) -> bool {
        self.version == Version::Http11 && !self.has_token("connection", "close")
    }

    fn at(&self, span: Span) -> &str {
        self.text.get(usize::from(span.start)..usize::from(span.end)).unwrap_or_default()
    }
}

fn check_request_line_length(bytes: &[u8]) -> Result<(), HeadError> {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default();
    let within = line.get(..=MAX_REQUEST_LINE_BYTES).unwrap_or(line);
    if within.len() > MAX_REQUEST_LINE_BYTES && !within.contains(&b'\n') {
        return Err(HeadError::UriTooLong);
    }
    Ok(())
}

/// A line feed alone ends a line for some readers and not for others, so it is taken by none.
fn check_text(head: &[u8]) -> Result<&str, HeadError> {
    let mut before = 0;
    for &byte in head {
        if byte == b'\n' && before != b'\r' {
            return Err(malformed("a line of the head ends with LF, expected CRLF"));
        }
        before = byte;
    }
    std::str::from_utf8(head).map_err(|error| {
        malformed(format!("request head is not UTF-8 at byte {}", error.valid_up_to()))
    })
}

fn refusal(error: httparse::Error, bytes: &[u8]) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::Version => other_version(bytes),
        httparse::Error::HeaderName => {
            malformed("a header name is not a token followed by a colon")
        }
        httparse::Error::HeaderValue => malformed("a header value holds a control character"),
        httparse::Error::NewLine => malformed("a carriage return without a line feed"),
        _ => malformed("request line is not \"METHOD /path HTTP/1.1\""),
    }
}

/// HTTP of another version gets 505, anything else 400.
fn other_version(bytes: &[u8]) -> HeadError {
    let line = bytes.split(|b| *b == b'\n').find(|line| !line.trim_ascii().is_empty());
    let word = line.and_then(|line| line.trim_ascii_end().rsplit(|b| *b == b' ').next());
    match word {
        Some([b'H', b'T', b'T', b'P', b'/', major, rest @ ..])
            if major.is_ascii_digit()
                && matches!(rest, [] | [b'.', _])
                && rest.get(1).is_none_or(u8::is_ascii_digit) =>
        {
            HeadError::Version(String::from_utf8_lossy(word.unwrap_or_default()).into_owned())
        }
        _ => malformed("request line is not \"METHOD /path HTTP/1.1\""),
    }
}

/// Places of path and query in a target: origin-form, or absolute-form, which RFC 9112, section 3.2.2,
/// has servers accept; its authority says no more than `Host` does here, and neither is used.
/// Authority-form and `*` belong to proxies and are refused.
fn split_target(target: &str) -> Result<(Range<usize>, Option<Range<usize>>), HeadError> {
    let bad = || malformed(format!("target is {:?}, expected a path", shown(target)));
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(bad());
    }
    let start = if target.starts_with('/') { 0 } else { authority_end(target).ok_or_else(bad)? };
    let rest = target.get(start..).unwrap_or_default();
    Ok(match rest.find('?') {
        Some(mark) => (start..start + mark, Some(start + mark + 1..target.len())),
        None => (start..target.len(), None),
    })
}

/// Where the path or query starts in an absolute http target.
fn authority_end(target: &str) -> Option<usize> {
    let (scheme, rest) = target.split_once("://")?;
    let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let length = rest.find(['/', '?']).unwrap_or(rest.len());
    let plain = length > 0 && !rest.get(..length)?.contains('@');
    (http && plain).then(|| scheme.len() + "://".len() + length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
