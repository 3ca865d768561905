//! Fuzzes the frame path: any bytes are messages, then an end that the protocol knows, however the
//! network cuts them.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use realtime_service::protocol::close::Close;
use realtime_service::protocol::ClientMessage;
use realtime_service::websocket::reader;

/// `MAX_MESSAGE_SIZE`, small, so that the fuzzer gets there.
const MESSAGE_BYTES: usize = 256;

/// Bytes that come so many at a time.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.1).min(self.0.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn follow(bytes: &[u8], at_a_time: usize) -> (Vec<Option<String>>, Option<Close>) {
    let mut messages = Vec::new();
    let close = reader::follow(Pieces(bytes, at_a_time), MESSAGE_BYTES, |message| {
        messages.push(message.map(str::to_owned));
    });
    (messages, close)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = follow(bytes, usize::MAX);
    for at_a_time in [1, 7] {
        assert_eq!(follow(bytes, at_a_time), whole);
    }
    let (messages, close) = whole;
    for text in messages.iter().flatten() {
        assert!(text.len() <= MESSAGE_BYTES);
        let _ = ClientMessage::parse(text);
    }
    match close {
        None | Some(Close::Protocol | Close::InvalidUtf8 | Close::TooLarge) => {}
        // RFC 6455, section 7.4: the codes that may be sent.
        Some(Close::Echo(code)) => {
            assert!(matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999), "{code}");
        }
        Some(other) => panic!("{other:?} is not the reader's"),
    }
});
