//! Unmasked WebSocket frames, ready to be sent (RFC 6455 section 5.2).

use bytes::Bytes;

/// Opcode of a text frame (RFC 6455 section 5.2).
pub const OPCODE_TEXT: u8 = 0x1;
/// Opcode of a Close frame.
pub const OPCODE_CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const OPCODE_PING: u8 = 0x9;
/// Opcode of a pong.
pub const OPCODE_PONG: u8 = 0xa;

/// Longest header of an unmasked frame, in bytes.
pub(super) const MAX_HEADER_BYTES: usize = 10;

/// One unmasked, final text frame.
pub fn text_frame(text: &str) -> Bytes {
    frame(OPCODE_TEXT, text.as_bytes())
}

/// One control frame. A payload over the 125 bytes of RFC 6455 section 5.5 is cut.
pub fn control_frame(opcode: u8, payload: &[u8]) -> Bytes {
    frame(opcode, payload.get(..125).unwrap_or(payload))
}

fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    let header = header(opcode, payload.len());
    [header.as_slice(), payload].concat().into()
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    bytes: [u8; MAX_HEADER_BYTES],
    length: usize,
}

impl Header {
    /// Its bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The header of an unmasked, final frame with a payload of so many bytes.
pub(super) fn header(opcode: u8, payload: usize) -> Header {
    let opening = 0x80 | opcode;
    let [.., high, low] = payload.to_be_bytes();
    let (bytes, length) = match payload {
        0..126 => ([opening, low, 0, 0, 0, 0, 0, 0, 0, 0], 2),
        126..=0xffff => ([opening, 126, high, low, 0, 0, 0, 0, 0, 0], 4),
        _ => {
            let [a, b, c, d, e, f, g, h] = (payload as u64).to_be_bytes();
            ([opening, 127, a, b, c, d, e, f, g, h], 10)
        }
    };
    Header { bytes, length }
}

/// The payload of a frame that this module made; nothing is copied.
pub fn frame_payload(frame: &Bytes) -> Bytes {
    let header = match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    };
    frame.slice(header.min(frame.len())..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_lengths_follow_the_rfc() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let frame = text_frame(&"x".repeat(length));
            assert_eq!(frame_payload(&frame).len(), length);
        }
        assert_eq!(control_frame(OPCODE_PONG, &[0; 200]).len(), 127);
    }
}
