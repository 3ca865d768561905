//! The hand-over of a socket between the hub and the writers.
//!
//! While frames of a [`Backlog`] wait, its [`Drain`] alone writes to the socket; it is with one writer, or
//! in the writers' queue. The count of waiting frames says whose the socket is: the hub adds to it only
//! while it is above zero, and the writer that takes it to zero has left the socket for good. Then the hub
//! takes the socket back.
//!
//! `tests/handover_model.rs` checks this file with loom: it takes the atomics and the channel from
//! `super::sync`.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::sync::{AtomicU64, Ordering, Receiver, Sender, unbounded};
use crate::runtime::clock::{AtomicMoment, Moment};

/// The hub's side.
pub struct Backlog {
    frames: Sender<Bytes>,
    waiting: Arc<Waiting>,
    /// Frames handed over in all.
    handed_frames: u64,
}

/// The writers' side: what is left of the frame at the head, and the frames behind it.
pub struct Drain {
    head: Bytes,
    frames: Receiver<Bytes>,
    waiting: Arc<Waiting>,
}

/// What is handed over and not yet in the kernel.
struct Waiting {
    /// Whose the socket is: the writers' while this is above zero, else the hub's.
    frames: AtomicU64,
    bytes: AtomicU64,
    /// When the frame at the head became the head.
    head_since: AtomicMoment,
}

/// What a call of [`Drain::run`] may do with the bytes that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many of them are in the kernel; go on.
    Sent(usize),
    /// So many of them are in the kernel; others wait for this writer.
    Pause(usize),
}

/// Why [`Drain::run`] has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing waits: the socket is the hub's again.
    All,
    /// [`Step::Pause`]: the rest waits for another turn.
    Paused,
    /// The hub has dropped the backlog, since it has cut the connection.
    Abandoned,
}

/// A pair for one backlog of at least one frame.
pub fn backlog(frames: impl IntoIterator<Item = Bytes>) -> (Backlog, Drain) {
    let (sender, receiver) = unbounded();
    let waiting = Arc::new(Waiting {
        frames: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        head_since: AtomicMoment::new(Moment::now()),
    });
    let mut backlog = Backlog { frames: sender, waiting: Arc::clone(&waiting), handed_frames: 0 };
    for frame in frames {
        waiting.frames.fetch_add(1, Ordering::Relaxed);
        backlog.hand_over(frame);
    }
    (backlog, Drain { head: Bytes::new(), frames: receiver, waiting })
}

impl Backlog {
    /// Announces further frames, to be handed over by [`Self::hand_over`] at once; false when the writer
    /// has left, and so the socket is the hub's again.
    pub fn extend(&mut self, frames: u64) -> bool {
        // Acquire pairs with the release in `Drain::run`: the writer's last send is over.
        self.waiting
            .frames
            .fetch_update(Ordering::Acquire, Ordering::Acquire, |waiting| {
                (waiting > 0).then(|| waiting.saturating_add(frames))
            })
            .is_ok()
    }

    /// Hands over an announced frame. A writer that has ended lets it fall: its socket is broken, and the
    /// hub hears of that by the writer's end.
    pub fn hand_over(&mut self, frame: Bytes) {
        self.handed_frames += 1;
        self.waiting.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let _ = self.frames.send(frame);
    }

    /// Whether everything handed over is in the kernel, and the socket the hub's.
    pub fn is_drained(&self) -> bool {
        self.waiting.frames.load(Ordering::Acquire) == 0
    }

    /// Number of frames handed over so far; a position to compare with [`Self::has_finished`].
    pub fn position(&self) -> u64 {
        self.handed_frames
    }

    /// Whether the frame that made the backlog reach `position` is in the kernel.
    pub fn has_finished(&self, position: u64) -> bool {
        self.handed_frames.saturating_sub(self.frames()) >= position
    }

    /// Frames that wait.
    pub fn frames(&self) -> u64 {
        self.waiting.frames.load(Ordering::Relaxed)
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.waiting.bytes.load(Ordering::Relaxed)
    }

    /// When the frame at the head became the head.
    pub fn head_since(&self) -> Moment {
        self.waiting.head_since.get()
    }
}

impl Drain {
    /// Sends frame after frame until none waits, `send` pauses, or the hub has dropped the backlog. After
    /// [`Drained::Paused`] it may be called again, by any writer.
    ///
    /// # Errors
    /// The first one of `send`; the socket is broken then, and stays the writers'.
    pub fn run<E>(&mut self, mut send: impl FnMut(&[u8]) -> Result<Step, E>) -> Result<Drained, E> {
        loop {
            if self.head.is_empty() {
                // An announced frame is here, or about to be.
                let Ok(frame) = self.frames.recv() else { return Ok(Drained::Abandoned) };
                self.head = frame;
                self.waiting.head_since.set(Moment::now());
            }
            let step = send(&self.head)?;
            let (Step::Sent(bytes) | Step::Pause(bytes)) = step;
            self.head.advance(bytes.min(self.head.len()));
            self.waiting.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
            if self.head.is_empty() && self.waiting.frames.fetch_sub(1, Ordering::Release) == 1 {
                return Ok(Drained::All);
            }
            if matches!(step, Step::Pause(_)) {
                return Ok(Drained::Paused);
            }
        }
    }
}
