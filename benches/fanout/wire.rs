//! The client's side of the wire: what the generator sends, prepared once, and what comes back,
//! parsed in place.

use std::error::Error;

use crate::Fallible;

/// Every upgrade offers this key, so the answer to expect is a constant (both from RFC 6455,
/// section 1.3).
const UPGRADE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const UPGRADE_ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A client must mask its frames; the service unmasks whatever the key is.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const SEQUENCE_DIGITS: usize = 10;
const BODY_START: &[u8] = b"{\"seq\":\"";
const BODY_MIDDLE: &[u8] = b"\",\"by\":\"";
const BODY_END: &[u8] = b"\",\"pad\":\"a message about as long as a small order\"}";
/// Bytes of a message body: its place in the publisher's order, its publisher, and padding.
pub(crate) const BODY_BYTES: usize =
    BODY_START.len() + SEQUENCE_DIGITS + BODY_MIDDLE.len() + 1 + BODY_END.len();

/// Bytes behind the body in a delivered broadcast: the closing brace.
pub(crate) const BROADCAST_TAIL_BYTES: usize = 1;

/// Bytes behind the body in a delivered notification.
pub(crate) fn notification_tail_bytes(room: &str) -> usize {
    format!(",\"to\":\"{room}\"}}").len()
}

/// The place of a message in its publisher's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Counts from 0.
    pub(crate) sequence: u32,
    /// Below 10.
    pub(crate) publisher: u8,
}

impl Stamp {
    /// Reads the stamp of the body that ends `tail_bytes` before the end of `text`.
    pub(crate) fn read(text: &[u8], tail_bytes: usize) -> Option<Self> {
        let end = text.len().checked_sub(tail_bytes)?;
        let body = text.get(end.checked_sub(BODY_BYTES)?..end)?;
        let digits = body.strip_prefix(BODY_START)?.get(..SEQUENCE_DIGITS)?;
        let publisher = body.get(BODY_START.len() + SEQUENCE_DIGITS + BODY_MIDDLE.len())?;
        let sequence = digits.iter().try_fold(0_u32, |sum, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
            sum.checked_mul(10)?.checked_add(u32::from(digit))
        })?;
        Some(Self { sequence, publisher: publisher.checked_sub(b'0')? })
    }
}

fn body(publisher: u8) -> Vec<u8> {
    let digits = [b'0'; SEQUENCE_DIGITS];
    let publisher = [b'0' + publisher];
    [BODY_START, &digits, BODY_MIDDLE, &publisher, BODY_END].concat()
}

/// A body as text.
pub(crate) fn sample_body() -> String {
    String::from_utf8_lossy(&body(0)).into_owned()
}

fn digits_of(mut sequence: u32) -> [u8; SEQUENCE_DIGITS] {
    let mut digits = [b'0'; SEQUENCE_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (sequence % 10) as u8;
        sequence /= 10;
    }
    digits
}

/// A frame as a client sends it: final, masked.
fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The frame that joins `room`.
pub(crate) fn join(room: &str) -> Vec<u8> {
    let text = format!("{{\"type\":\"join\",\"payload\":{{\"room\":\"{room}\"}}}}");
    client_frame(0x1, text.as_bytes())
}

/// The frame that joins `room` and asks for its position.
pub(crate) fn join_with_id(room: &str) -> Vec<u8> {
    let text = format!("{{\"type\":\"join\",\"id\":1,\"payload\":{{\"room\":\"{room}\"}}}}");
    client_frame(0x1, text.as_bytes())
}

/// The frame that joins `room` and asks for all behind a position.
pub(crate) fn join_since(room: &str, epoch: &str, seq: u64) -> Vec<u8> {
    let text = format!(
        "{{\"type\":\"join\",\"id\":1,\"payload\":{{\"room\":\"{room}\",\
         \"since\":{{\"epoch\":\"{epoch}\",\"seq\":{seq}}}}}}}"
    );
    client_frame(0x1, text.as_bytes())
}

/// The position in the answer to a join.
pub(crate) fn position(text: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (epoch, rest) = text.split_once("\"epoch\":\"")?.1.split_once("\",\"seq\":")?;
    let digits = rest.split(|character: char| !character.is_ascii_digit()).next()?;
    Some((epoch.to_owned(), digits.parse().ok()?))
}

/// Whether this answers a join with all that was missed.
pub(crate) fn is_recovered(text: &[u8]) -> bool {
    text.starts_with(b"{\"type\":\"joined\"") && text.ends_with(b"\"recovered\":true}}")
}

/// The number that a message of a room begins with.
pub(crate) fn room_number(text: &[u8]) -> Option<u64> {
    let rest = text.strip_prefix(b"{\"seq\":")?;
    let digits = rest.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The Close frame of a client that leaves, code 1000.
pub(crate) fn close() -> Vec<u8> {
    client_frame(0x8, &1000_u16.to_be_bytes())
}

/// The request that opens a WebSocket connection.
pub(crate) fn upgrade(token: &str) -> Vec<u8> {
    format!(
        "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {UPGRADE_KEY}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

/// What a publisher sends again and again: complete but for the sequence numbers.
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Where the digits of each message start, and how they are masked.
    digits_at: Vec<usize>,
    mask: [u8; 4],
}

impl Template {
    /// One broadcast to `room`, as a masked frame.
    pub(crate) fn broadcast(room: &str, publisher: u8) -> Self {
        let start = format!("{{\"type\":\"broadcast\",\"payload\":{{\"room\":\"{room}\",\"body\":");
        let payload = [start.as_bytes(), &body(publisher), b"}}"].concat();
        let bytes = client_frame(0x1, &payload);
        let digits_in_payload = start.len() + BODY_START.len();
        let mut mask = MASK;
        mask.rotate_left(digits_in_payload % MASK.len());
        Self { digits_at: vec![bytes.len() - payload.len() + digits_in_payload], bytes, mask }
    }

    /// One REST request that notifies `room`: of one message as an object, of more as an array.
    pub(crate) fn notify(room: &str, messages: usize, token: &str) -> Self {
        let one = [
            b"{\"event\":\"order_created\",\"data\":".as_slice(),
            &body(0),
            format!(",\"room\":\"{room}\"}}").as_bytes(),
        ]
        .concat();
        let content = if messages == 1 {
            one
        } else {
            [b"[".as_slice(), &vec![one; messages].join(b",".as_slice()), b"]"].concat()
        };
        let head = format!(
            "POST /api/notify HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            content.len()
        );
        let bytes = [head.as_bytes(), &content].concat();
        let digits_at = bytes
            .windows(BODY_START.len())
            .enumerate()
            .filter(|(_, window)| *window == BODY_START)
            .map(|(at, _)| at + BODY_START.len())
            .collect();
        Self { bytes, digits_at, mask: [0; 4] }
    }

    /// Appends the bytes to `out`, with sequence numbers from `first` on.
    pub(crate) fn append(&mut self, first: u32, out: &mut Vec<u8>) {
        for (at, sequence) in self.digits_at.iter().zip(first..) {
            let digits = digits_of(sequence);
            for (offset, (digit, mask)) in digits.iter().zip(self.mask.iter().cycle()).enumerate() {
                self.bytes[at + offset] = digit ^ mask;
            }
        }
        out.extend_from_slice(&self.bytes);
    }
}

/// One thing that came from a server.
#[derive(Debug)]
pub(crate) enum Unit<'a> {
    /// The upgrade was accepted, with the right key.
    Upgraded,
    /// A whole text message.
    Text(&'a [u8]),
    /// A Close frame.
    Close,
    /// An HTTP response other than 101.
    Response { status: u16, body: &'a [u8] },
    /// The end of the stream.
    End,
}

type Parsed<'a> = Option<(Unit<'a>, usize)>;

/// The frame at the front of `bytes` and its length there, `None` while it is incomplete.
pub(crate) fn parse_frame(bytes: &[u8]) -> Fallible<Parsed<'_>> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    let (head, length) = match (second, rest) {
        (0..=125, _) => (2, usize::from(*second)),
        (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        (126, _) => return Ok(None),
        _ => {
            return Err(format!(
                "the server sent a masked or huge frame: {first:#04x} {second:#04x}"
            )
            .into());
        }
    };
    let Some(payload) = bytes.get(head..head + length) else {
        return Ok(None);
    };
    let unit = match first {
        0x81 => Unit::Text(payload),
        0x88 => Unit::Close,
        other => {
            return Err(format!("the server sent a frame that starts with {other:#04x}").into());
        }
    };
    Ok(Some((unit, head + length)))
}

/// The HTTP response at the front of `bytes` and its length there, `None` while it is incomplete.
pub(crate) fn parse_response(bytes: &[u8]) -> Fallible<Parsed<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let malformed = |error: httparse::Error| -> Box<dyn Error + Send + Sync> {
        format!("malformed response: {error}: {}", bytes.escape_ascii()).into()
    };
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(malformed)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let named = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    };
    let status = response.code.unwrap_or(0);
    if status == 101 {
        if header("Sec-WebSocket-Accept") != Some(UPGRADE_ACCEPT) {
            return Err(format!("wrong Sec-WebSocket-Accept: {}", bytes.escape_ascii()).into());
        }
        return Ok(Some((Unit::Upgraded, head)));
    }
    let length = header("Content-Length")
        .and_then(|value| std::str::from_utf8(value).ok()?.parse::<usize>().ok())
        .ok_or_else(|| format!("response without a length: {}", bytes.escape_ascii()))?;
    let end = head + length;
    Ok(bytes.get(head..end).map(|body| (Unit::Response { status, body }, end)))
}
