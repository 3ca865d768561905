//! What a connection has still to be sent: appended frames, then, while the socket is full, a backlog.

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::backlog::{Backlog, Drain, backlog};
use super::batch::{FrameBatch, FrameNumber};
use super::socket::Socket;
use crate::runtime::clock::Moment;

/// Most slices that one vectored send takes (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;
/// Appended frames for which memory is kept for the next flush; more is given back.
const KEPT_FRAMES: usize = 64;

/// How far a backlog may grow.
#[derive(Debug, Clone, Copy)]
pub struct BacklogLimits {
    /// `SEND_QUEUE_FRAMES`.
    pub frames: u64,
    /// `SEND_QUEUE_BYTES`.
    pub bytes: u64,
}

impl BacklogLimits {
    /// No limit.
    pub const NONE: Self = Self { frames: u64::MAX, bytes: u64::MAX };
}

/// Frames on their way to one socket.
#[derive(Default)]
pub struct Outbox {
    /// Appended since the last flush.
    appended: Vec<FrameNumber>,
    backlog: Option<Backlog>,
    /// The latest pong that is neither appended nor in the backlog.
    pong: Option<Bytes>,
    /// Position in the backlog of the last pong there.
    pong_position: u64,
}

/// What a flush found.
pub enum Flush {
    /// All is in the kernel: the hub owns the socket.
    Sent,
    /// Writers work on a backlog that is within its limits.
    Queued,
    /// The socket is full: this is for the writers.
    Full(Drain),
    /// The backlog is over a limit.
    OverLimit,
    /// The socket is broken; what was appended still counts as unsent.
    Broken,
}

impl Outbox {
    /// Appends a frame for the next flush.
    pub fn append(&mut self, frame: FrameNumber) {
        self.appended.push(frame);
    }

    /// Keeps a pong for the next flush, in place of one that waits (RFC 6455 section 5.5.3).
    pub fn pong(&mut self, frame: Bytes) {
        self.pong = Some(frame);
    }

    /// Forgets a pong that waits: nothing comes behind a Close (RFC 6455 section 5.5.1).
    pub fn drop_pong(&mut self) {
        self.pong = None;
    }

    /// Whether a pong waits.
    pub fn has_pong(&self) -> bool {
        self.pong.is_some()
    }

    /// Frames that are not sent.
    pub fn len(&self) -> u64 {
        self.appended.len() as u64 + self.backlog.as_ref().map_or(0, Backlog::frames)
    }

    /// Whether nothing waits for a writer, and the socket is the hub's.
    pub fn is_drained(&self) -> bool {
        self.backlog.as_ref().is_none_or(Backlog::is_drained)
    }

    /// The backlog, while there is one.
    pub fn backlog(&self) -> Option<&Backlog> {
        self.backlog.as_ref()
    }

    /// Since when the frame at the head of the backlog waits.
    pub fn head_since(&self) -> Option<Moment> {
        self.backlog.as_ref().filter(|b| !b.is_drained()).map(Backlog::head_since)
    }

    /// Drops everything that is not sent; a writer ends at the frame that it is at.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Sends what is appended, or queues it behind the backlog.
    pub fn flush(
        &mut self,
        batch: &mut FrameBatch,
        socket: &dyn Socket,
        limits: BacklogLimits,
    ) -> Flush {
        let flush = match self.queue(batch, limits) {
            Some(flush) => flush,
            None => self.send(batch, socket, limits),
        };
        if !matches!(flush, Flush::Broken) {
            self.appended.clear();
            self.appended.shrink_to(KEPT_FRAMES);
        }
        flush
    }

    /// Puts what is appended behind the backlog; `None` when there is none, and the hub sends.
    fn queue(&mut self, batch: &FrameBatch, limits: BacklogLimits) -> Option<Flush> {
        let backlog = self.backlog.as_mut()?;
        let pong = self.pong.take_if(|_| backlog.has_finished(self.pong_position));
        let frames = self.appended.len() + usize::from(pong.is_some());
        let is_taken_back =
            if frames == 0 { backlog.is_drained() } else { !backlog.extend(frames as u64) };
        if is_taken_back {
            self.backlog = None;
            self.pong = pong.or(self.pong.take());
            return None;
        }
        if let Some(pong) = pong {
            backlog.hand_over(pong);
            self.pong_position = backlog.position();
        }
        for frame in batch.frames(&self.appended) {
            backlog.hand_over(frame.clone());
        }
        Some(within(backlog, limits, Flush::Queued))
    }

    fn send(
        &mut self,
        batch: &mut FrameBatch,
        socket: &dyn Socket,
        limits: BacklogLimits,
    ) -> Flush {
        self.appended.extend(self.pong.take().map(|pong| batch.add(pong)));
        self.pong_position = 0;
        match send(socket, batch, &self.appended) {
            Ok(Sent::All) => Flush::Sent,
            Ok(Sent::Part(bytes)) => {
                let (backlog, drain) = backlog(rest(batch.frames(&self.appended), bytes));
                let flush = within(&backlog, limits, Flush::Full(drain));
                self.backlog = Some(backlog);
                flush
            }
            Err(_) => Flush::Broken,
        }
    }
}

/// Checks the limits; a single frame always passes.
fn within(backlog: &Backlog, limits: BacklogLimits, fits: Flush) -> Flush {
    let frames = backlog.frames();
    if frames > 1 && (frames > limits.frames || backlog.bytes() > limits.bytes) {
        Flush::OverLimit
    } else {
        fits
    }
}

/// How much of a list is in the kernel.
enum Sent {
    All,
    /// So many bytes; the socket is full.
    Part(usize),
}

fn send(socket: &dyn Socket, batch: &mut FrameBatch, list: &[FrameNumber]) -> io::Result<Sent> {
    let mut sent = 0;
    for part in list.chunks(MAX_SLICES) {
        let (wanted, result) = send_part(socket, batch, part);
        match result {
            Ok(bytes) => sent += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Part(sent)),
            Err(error) => return Err(error),
        }
        if !matches!(result, Ok(bytes) if bytes == wanted) {
            return Ok(Sent::Part(sent));
        }
    }
    Ok(Sent::All)
}

/// Sends with one call; returns the number of bytes that should go, and the call's result.
fn send_part(
    socket: &dyn Socket,
    batch: &mut FrameBatch,
    part: &[FrameNumber],
) -> (usize, io::Result<usize>) {
    if let [_, _, ..] = part
        && let Some(joined) = batch.joined(part)
    {
        return (joined.len(), socket.try_send(&[IoSlice::new(joined)]));
    }
    let slices: Vec<_> = batch.frames(part).map(|frame| IoSlice::new(frame)).collect();
    (slices.iter().map(|slice| slice.len()).sum(), socket.try_send(&slices))
}

/// What is left of frames from whose front `sent` bytes are gone; the rest of one comes first.
fn rest<'a>(
    frames: impl Iterator<Item = &'a Bytes>,
    mut sent: usize,
) -> impl Iterator<Item = Bytes> {
    frames.filter_map(move |frame| {
        let gone = sent.min(frame.len());
        sent -= gone;
        (gone < frame.len()).then(|| frame.slice(gone..))
    })
}
