//! Close codes and their reasons (RFC 6455 section 7.4; the table is in `docs/PROTOCOL.md`).

use bytes::Bytes;

/// Why the service closes a connection with a Close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The peer closed first. Its code is sent back, or 1000 where it sent none.
    Echo(u16),
    /// The service shuts down.
    GoingAway,
    /// The peer broke RFC 6455.
    Protocol,
    /// A text message was not UTF-8.
    InvalidUtf8,
    /// The client stayed over its rate.
    RateLimited,
    /// A message was over `MAX_MESSAGE_SIZE`.
    TooLarge,
    /// Something failed in the service.
    ServerError,
    /// The token's `exp` passed.
    TokenExpired,
}

impl Close {
    /// The code on the wire and its reason.
    pub fn code_and_reason(self) -> (u16, &'static str) {
        match self {
            Self::Echo(code) => (code, ""),
            Self::GoingAway => (1001, "going away"),
            Self::Protocol => (1002, "protocol error"),
            Self::InvalidUtf8 => (1007, "invalid UTF-8"),
            Self::RateLimited => (1008, "rate limited"),
            Self::TooLarge => (1009, "message too large"),
            Self::ServerError => (1011, "server error"),
            Self::TokenExpired => (4001, "token expired"),
        }
    }

    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Echo(_) => "closed_by_peer",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::RateLimited => "rate_limited",
            Self::TooLarge => "message_too_large",
            Self::ServerError => "server_error",
            Self::TokenExpired => "token_expired",
        }
    }

    /// The whole Close frame, unmasked.
    pub fn frame(self) -> Bytes {
        let (code, reason) = self.code_and_reason();
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        crate::protocol::control_frame(crate::protocol::OPCODE_CLOSE, &payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_carries_code_and_reason() {
        assert_eq!(&Close::GoingAway.frame()[..], b"\x88\x0c\x03\xe9going away");
    }
}
