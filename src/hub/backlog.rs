//! The hand-over of a socket between the hub and a connection's writer (DESIGN section 1, "outbox").
//!
//! While a [`Backlog`] exists, its [`Drain`] alone writes to the socket. The hub takes the socket
//! back only when the writer has finished as many frames as it was handed, and drops the backlog,
//! which ends the writer. `tests/handover_model.rs` checks this file with loom: it takes the atomics
//! and the channel from `super::sync`.

use std::sync::Arc;

use bytes::Bytes;

use super::sync::{AtomicU64, Ordering, Receiver, Sender, unbounded};
use crate::runtime::clock::{AtomicMoment, Moment};

/// The hub's side: frames handed to the writer and not yet taken back.
pub struct Backlog {
    frames: Sender<Bytes>,
    progress: Arc<Progress>,
    handed_frames: u64,
    handed_bytes: u64,
}

/// The writer's side.
pub struct Drain {
    frames: Receiver<Bytes>,
    progress: Arc<Progress>,
}

/// What the writer tells the hub.
struct Progress {
    finished_frames: AtomicU64,
    finished_bytes: AtomicU64,
    /// When the frame at the head became the head.
    head_since: AtomicMoment,
}

/// A pair for one backlog.
pub fn backlog() -> (Backlog, Drain) {
    let (sender, receiver) = unbounded();
    let progress = Arc::new(Progress {
        finished_frames: AtomicU64::new(0),
        finished_bytes: AtomicU64::new(0),
        head_since: AtomicMoment::new(Moment::now()),
    });
    let backlog = Backlog {
        frames: sender,
        progress: Arc::clone(&progress),
        handed_frames: 0,
        handed_bytes: 0,
    };
    (backlog, Drain { frames: receiver, progress })
}

impl Backlog {
    /// Hands a frame, or the rest of one, to the writer. One that has ended lets it fall: its socket
    /// is broken, and the hub hears of that by the writer's end.
    pub fn push(&mut self, frame: Bytes) {
        self.handed_frames += 1;
        self.handed_bytes += frame.len() as u64;
        let _ = self.frames.send(frame);
    }

    /// Whether everything handed over is in the kernel: then, and only then, the hub may take the
    /// socket back by dropping this.
    pub fn is_drained(&self) -> bool {
        // Pairs with the release in `Drain::run`: the writer's last send is over when this is true.
        self.progress.finished_frames.load(Ordering::Acquire) == self.handed_frames
    }

    /// Number of frames handed over so far; a position to compare with [`Backlog::has_finished`].
    pub fn position(&self) -> u64 {
        self.handed_frames
    }

    /// Whether the frame that made the backlog reach `position` is in the kernel.
    pub fn has_finished(&self, position: u64) -> bool {
        self.progress.finished_frames.load(Ordering::Acquire) >= position
    }

    /// Frames that wait.
    pub fn frames(&self) -> u64 {
        self.handed_frames.saturating_sub(self.progress.finished_frames.load(Ordering::Relaxed))
    }

    /// Bytes that wait, those of a frame that is partly sent included.
    pub fn bytes(&self) -> u64 {
        self.handed_bytes.saturating_sub(self.progress.finished_bytes.load(Ordering::Relaxed))
    }

    /// When the frame at the head became the head.
    pub fn head_since(&self) -> Moment {
        self.progress.head_since.get()
    }
}

impl Drain {
    /// Sends frame after frame until the hub drops the backlog.
    ///
    /// # Errors
    /// The first one of `send_all`; the socket is broken then.
    pub fn run<E>(self, mut send_all: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while let Ok(frame) = self.frames.recv() {
            self.progress.head_since.set(Moment::now());
            send_all(&frame)?;
            self.progress.finished_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            self.progress.finished_frames.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}
