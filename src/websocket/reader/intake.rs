//! The stream under tungstenite: reads from the shared socket, keeps the reader's clocks, and lets
//! what tungstenite would write fall (invariant 3: the reader never writes).

use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::OpCode;

use crate::hub::socket::{Socket, TcpSocket};
use crate::runtime::clock::Moment;

/// What tungstenite reads from.
pub(super) struct Intake {
    socket: Arc<TcpSocket>,
    boundary: Boundary,
}

impl Intake {
    /// Over a socket from which `early` has been read already.
    pub(super) fn new(socket: Arc<TcpSocket>, early: &[u8]) -> Self {
        let mut intake = Self { socket, boundary: Boundary::default() };
        intake.note(early);
        intake
    }

    fn note(&mut self, bytes: &[u8]) {
        let activity = self.socket.activity();
        let now = Moment::now();
        activity.last_byte.set(now);
        let was_between = self.boundary.is_between_messages();
        let ended_one = self.boundary.follow(bytes);
        if self.boundary.is_between_messages() {
            activity.unfinished_since.set(Moment::NEVER);
        } else if was_between || ended_one {
            activity.unfinished_since.set(now);
        }
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.stream().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) if self.socket.is_aborted() => return Ok(0),
                Ok(length) => {
                    if let Some(bytes @ [_, ..]) = buffer.get(..length) {
                        self.note(bytes);
                    }
                    if self.boundary.fragments >= FRAGMENTS_AT_ONCE {
                        self.boundary.fragments = 0;
                        std::thread::sleep(FRAGMENTS_PAUSE);
                    }
                    return Ok(length);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Pongs and Close replies are the hub's.
impl Write for Intake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Any stream, its bytes followed as an intake follows a socket's, and nothing written to it.
#[cfg(fuzzing)]
pub(super) struct Followed<S> {
    stream: S,
    boundary: Boundary,
}

#[cfg(fuzzing)]
impl<S> Followed<S> {
    /// Over a stream from which nothing has been read.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, boundary: Boundary::default() }
    }
}

#[cfg(fuzzing)]
impl<S: Read> Read for Followed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.boundary.follow(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(fuzzing)]
impl<S> Write for Followed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Frames of one message that are read without a pause. No rate counts them, and empty ones add nothing to the
/// message's size, so a flood of them would cost the others the processor.
const FRAGMENTS_AT_ONCE: u32 = 1024;
/// How long nothing is read behind so many.
const FRAGMENTS_PAUSE: Duration = Duration::from_millis(10);
/// Longest frame header, in bytes (RFC 6455 section 5.2).
const MAX_HEADER_BYTES: usize = 14;

/// Follows the frames in a byte stream, to know whether it stands between two messages: tungstenite
/// does not tell when a message has begun.
#[derive(Default)]
struct Boundary {
    /// Start of a frame header that is not complete; an idle connection keeps no buffer.
    header: Vec<u8>,
    payload_left: u64,
    in_fragments: bool,
    /// Frames of a message that goes on, since the last pause.
    fragments: u32,
}

impl Boundary {
    fn is_between_messages(&self) -> bool {
        self.header.is_empty() && self.payload_left == 0 && !self.in_fragments
    }

    /// Goes past `bytes`; whether a data message ended in them. Of bytes that are no frames, whose
    /// connection tungstenite is about to fail, nothing is kept.
    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended_one = false;
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let length =
                    bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                self.payload_left -= length as u64;
                bytes = bytes.get(length..).unwrap_or_default();
                ended_one |= self.is_between_messages();
                continue;
            }
            // Nearly every header comes whole, and is read where it lies.
            let mut start = std::mem::take(&mut self.header);
            let begun = start.len();
            if begun > 0 {
                start.extend(bytes.iter().take(MAX_HEADER_BYTES.saturating_sub(begun)));
            }
            let mut cursor = Cursor::new(if begun > 0 { start.as_slice() } else { bytes });
            match FrameHeader::parse(&mut cursor) {
                Ok(Some((header, length))) => {
                    let end = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
                    bytes = bytes.get(end.saturating_sub(begun)..).unwrap_or_default();
                    self.payload_left = length;
                    if matches!(header.opcode, OpCode::Data(_)) {
                        self.in_fragments = !header.is_final;
                        self.fragments =
                            if header.is_final { 0 } else { self.fragments.saturating_add(1) };
                    }
                    ended_one |= self.is_between_messages();
                }
                // The rest comes later: all of `bytes` belongs to it.
                Ok(None) => {
                    self.header = cursor.into_inner().to_vec();
                    break;
                }
                Err(_) => break,
            }
        }
        ended_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `(opcode, is final, payload length)` as masked frames.
    fn frames(specs: &[(u8, bool, usize)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(opcode, fin, length) in specs {
            bytes.push(opcode | if fin { 0x80 } else { 0 });
            match length {
                0..126 => bytes.push(0x80 | length as u8),
                126..65_536 => {
                    bytes.push(0x80 | 126);
                    bytes.extend((length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(0x80 | 127);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            bytes.extend([1, 2, 3, 4]);
            bytes.extend(vec![0; length]);
        }
        bytes
    }

    #[test]
    fn a_control_frame_inside_fragments_ends_nothing() {
        let mut boundary = Boundary::default();
        assert!(!boundary.follow(&frames(&[(1, false, 3), (9, true, 2)])));
        assert!(!boundary.is_between_messages());
        assert!(boundary.follow(&frames(&[(0, true, 0)])));
        assert!(boundary.is_between_messages());
    }

    proptest! {
        #[test]
        fn the_boundary_is_found_however_the_bytes_are_cut(
            lengths in prop::collection::vec(prop_oneof![0..130_usize, 65_530..65_540_usize], 1..6),
            cut in 1..5000_usize,
        ) {
            let specs: Vec<_> = lengths.iter().map(|l| (1, true, *l)).collect();
            let bytes = frames(&specs);
            let mut boundary = Boundary::default();
            let (last, first) = bytes.split_last().unwrap_or((&0, &[]));
            for chunk in first.chunks(cut) {
                boundary.follow(chunk);
            }
            prop_assert!(!boundary.is_between_messages());
            prop_assert!(boundary.follow(&[*last]));
            prop_assert!(boundary.is_between_messages());
        }

        #[test]
        fn any_bytes_are_followed_in_bounded_memory(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut boundary = Boundary::default();
            boundary.follow(&bytes);
            prop_assert!(boundary.header.len() <= 14);
        }
    }
}
