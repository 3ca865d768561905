//! What comes from the peer: reads with deadlines, and the bytes that no request has taken yet.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::shutdown::{GateShutdown, ShutdownPhase};
use crate::config::{KIB, MAX_HEAD_BYTES};
use crate::http::head::{Head, HeadError, MAX_REQUEST_LINE_BYTES};
use crate::http::response::would_wait;

/// First size of the buffer, in bytes: most heads fit.
const FIRST_BUFFER_BYTES: usize = KIB;
/// Longest wait for the first byte of a further request before the phase is looked at again.
const IDLE_SLICE: Duration = Duration::from_millis(250);
/// Longest wait for anything else; longer, since thousands of slow peers may be in it.
const BUSY_SLICE: Duration = Duration::from_secs(1);

/// Why no more bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The peer ended or reset the stream, or the gate closes.
    Gone,
    /// The deadline passed.
    Late,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// Nothing to answer: the peer is gone, or sent nothing in time.
    Silent,
    /// Half a head at the deadline.
    Late,
    /// A head that is refused.
    Bad(HeadError),
}

/// What is read, which decides how soon a shutdown ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The first byte of a further request: not at all while draining.
    NextRequest,
    /// A head: until the gate closes.
    Head,
    /// A body: for a while after draining has begun.
    Body,
}

/// The reading half of a connection.
pub(super) struct Incoming<'a> {
    stream: &'a TcpStream,
    shutdown: &'a GateShutdown,
    /// The socket's read timeout; setting it only where it has to change saves a system call per read.
    armed: Duration,
    /// Zero-filled from `filled` on.
    buffer: Vec<u8>,
    filled: usize,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(stream: &'a TcpStream, shutdown: &'a GateShutdown) -> Self {
        Self { stream, shutdown, armed: Duration::MAX, buffer: Vec::new(), filled: 0 }
    }

    /// The next head, where all of it has come already.
    pub(super) fn head_at_once(&mut self) -> Result<Option<Head>, NoHead> {
        if self.filled > 0
            && let Some(head) = self.take_head()?
        {
            return Ok(Some(head));
        }
        self.grow();
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match rustix::net::recv(self.stream, room, RecvFlags::DONTWAIT) {
            Ok((_, bytes)) if bytes > 0 => {
                self.filled += bytes;
                self.take_head()
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            _ => Err(NoHead::Silent),
        }
    }

    /// The next head, of which [`Self::head_at_once`] has not found the end. It must be whole by
    /// `timeout` from its first byte, or from now for a fresh connection; a kept-alive one may also be
    /// idle for `timeout` before.
    pub(super) fn wait_for_head(&mut self, timeout: Duration, fresh: bool) -> Result<Head, NoHead> {
        let mut deadline = Instant::now() + timeout;
        if self.filled == 0 {
            self.fill(deadline, if fresh { Part::Head } else { Part::NextRequest })
                .map_err(|_| NoHead::Silent)?;
            if let Some(head) = self.take_head()? {
                return Ok(head);
            }
            if !fresh {
                deadline = Instant::now() + timeout;
            }
        }
        loop {
            let before = self.filled;
            self.fill(deadline, Part::Head).map_err(|ended| match ended {
                Ended::Gone => NoHead::Silent,
                Ended::Late => NoHead::Late,
            })?;
            if self.is_worth_parsing(before)
                && let Some(head) = self.take_head()?
            {
                return Ok(head);
            }
        }
    }

    /// A head can only have become complete with a line's end, and too long at a limit. Parsing at
    /// every byte of a slow peer would cost the square of the head's length.
    fn is_worth_parsing(&self, before: usize) -> bool {
        let fresh = self.buffer.get(before..self.filled).unwrap_or_default();
        let crosses = |limit| before <= limit && self.filled > limit;
        fresh.contains(&b'\n') || crosses(MAX_REQUEST_LINE_BYTES) || self.filled >= MAX_HEAD_BYTES
    }

    fn take_head(&mut self) -> Result<Option<Head>, NoHead> {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        let Some((head, length)) = Head::parse(bytes).map_err(NoHead::Bad)? else {
            return Ok(None);
        };
        self.consume(length);
        Ok(Some(head))
    }

    fn consume(&mut self, bytes: usize) {
        self.buffer.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }

    /// Bytes that came and belong to no request yet.
    pub(super) fn buffered(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// Moves up to `most` of the buffered bytes to `out`.
    pub(super) fn take_buffered(&mut self, most: usize, out: &mut Vec<u8>) -> usize {
        let bytes = most.min(self.filled);
        out.extend_from_slice(self.buffered().get(..bytes).unwrap_or_default());
        self.consume(bytes);
        bytes
    }

    /// Reads once, up to `most` bytes, to the end of `out`.
    pub(super) fn read_onto(
        &mut self,
        out: &mut Vec<u8>,
        most: usize,
        deadline: Instant,
    ) -> Result<usize, Ended> {
        let before = out.len();
        out.resize(before + most, 0);
        let read = self.read(out.get_mut(before..).unwrap_or_default(), deadline, Part::Body);
        out.truncate(before + read.unwrap_or(0));
        read
    }

    /// Makes room for more where the buffer is full.
    fn grow(&mut self) {
        if self.filled == self.buffer.len() {
            let size = (self.filled * 2).clamp(FIRST_BUFFER_BYTES, MAX_HEAD_BYTES);
            self.buffer.resize(size, 0);
        }
    }

    fn fill(&mut self, deadline: Instant, part: Part) -> Result<(), Ended> {
        self.grow();
        // Taken out, so that the read may borrow the rest.
        let mut buffer = std::mem::take(&mut self.buffer);
        let room = buffer.get_mut(self.filled..).unwrap_or_default();
        let read = self.read(room, deadline, part);
        self.buffer = buffer;
        self.filled += read?;
        Ok(())
    }

    /// Waits in slices, so that a shutdown is noticed.
    fn read(&mut self, room: &mut [u8], deadline: Instant, part: Part) -> Result<usize, Ended> {
        let (last, slice) = match part {
            Part::NextRequest => (ShutdownPhase::Draining, IDLE_SLICE),
            Part::Head | Part::Body => (ShutdownPhase::Closed, BUSY_SLICE),
        };
        loop {
            if self.shutdown.phase() >= last {
                return Err(Ended::Gone);
            }
            let deadline = match part {
                Part::Body => self.shutdown.body_deadline(deadline),
                _ => deadline,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Ended::Late);
            }
            self.arm(left.min(slice))?;
            match (&mut &*self.stream).read(room) {
                Ok(0) => return Err(Ended::Gone),
                Ok(bytes) => return Ok(bytes),
                Err(error) if would_wait(&error) => {}
                Err(_) => return Err(Ended::Gone),
            }
        }
    }

    /// A shorter timeout than wished only means another round; one much shorter would spin.
    fn arm(&mut self, wish: Duration) -> Result<(), Ended> {
        if self.armed > wish || self.armed < wish / 4 {
            self.stream.set_read_timeout(Some(wish)).map_err(|_| Ended::Gone)?;
            self.armed = wish;
        }
        Ok(())
    }
}
