//! Unmasked WebSocket frames, ready to be sent (RFC 6455 section 5.2).

use bytes::{BufMut, Bytes, BytesMut};

/// Opcode of a text frame (RFC 6455 section 5.2).
pub const OPCODE_TEXT: u8 = 0x1;
/// Opcode of a Close frame.
pub const OPCODE_CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const OPCODE_PING: u8 = 0x9;
/// Opcode of a pong.
pub const OPCODE_PONG: u8 = 0xa;

/// One unmasked, final text frame.
pub fn text_frame(text: &str) -> Bytes {
    frame(OPCODE_TEXT, &[text.as_bytes()])
}

/// One control frame. A payload over the 125 bytes of RFC 6455 section 5.5 is cut.
pub fn control_frame(opcode: u8, payload: &[u8]) -> Bytes {
    frame(opcode, &[payload.get(..125).unwrap_or(payload)])
}

/// A frame whose payload is these parts, one after the other; one allocation.
pub(super) fn frame(opcode: u8, parts: &[&[u8]]) -> Bytes {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(header_length(length) + length);
    out.put_u8(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.put_u8(short),
        (_, Ok(medium)) => {
            out.put_u8(126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

/// Length of an unmasked frame's header (RFC 6455 section 5.2).
fn header_length(payload: usize) -> usize {
    match payload {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
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
