//! A crossbeam channel whose one receiver parks as soon as nothing waits for it.
//!
//! crossbeam's own `recv` yields the processor several times before it parks. On a loaded machine Linux
//! (EEVDF, since 6.6) puts a thread that yields behind a whole slice of every other, so a hub that had
//! gone to sleep came back milliseconds late, and paid for the calls. Parking at once costs one wake.
//!
//! `tests/channel_model.rs` checks this file with loom: it takes what threads share from `super::sync`.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};

use super::sync::{self, AtomicBool, OnceLock, Ordering, Thread, fence, thread};

/// A channel that holds `capacity` messages.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    over(sync::bounded(capacity))
}

/// A channel without a bound, for what is bounded otherwise.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    over(sync::unbounded())
}

fn over<T>((sender, messages): (sync::Sender<T>, sync::Receiver<T>)) -> (Sender<T>, Receiver<T>) {
    let sleeper = Arc::new(Sleeper::default());
    (
        Sender { messages: sender, waker: Waker(Arc::clone(&sleeper)) },
        Receiver { messages, sleeper },
    )
}

/// The sending half; clones share the channel.
pub struct Sender<T> {
    messages: sync::Sender<T>,
    /// Dropped after the sender, so that a receiver that it wakes sees the end of the channel.
    waker: Waker,
}

/// The receiving half. It stays on the thread that first waits with it.
pub struct Receiver<T> {
    messages: sync::Receiver<T>,
    sleeper: Arc<Sleeper>,
}

#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

struct Waker(Arc<Sleeper>);

impl Waker {
    /// Called behind a send. Of the fence here and that in [`Receiver::sleep`] one comes first: either
    /// the receiver sees the message, or this sees that it sleeps.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        let Self(sleeper) = self;
        if sleeper.asleep.load(Ordering::Relaxed)
            && sleeper.asleep.swap(false, Ordering::AcqRel)
            && let Some(thread) = sleeper.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.wake();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { messages: self.messages.clone(), waker: Waker(Arc::clone(&self.waker.0)) }
    }
}

impl<T> Sender<T> {
    /// Sends, waiting while the channel is full.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.messages.send(message)?;
        self.waker.wake();
        Ok(())
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// When the channel is full or the receiver is gone.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.messages.try_send(message)?;
        self.waker.wake();
        Ok(())
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl<T> Receiver<T> {
    /// Waits for a message.
    ///
    /// # Errors
    /// When all senders are gone and nothing is left.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.wait(None).map_err(|_| RecvError)
    }

    /// Waits for a message until `deadline`.
    ///
    /// # Errors
    /// At the deadline, or when all senders are gone and nothing is left.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.wait(Some(deadline))
    }

    /// Takes what waits, without waiting for more.
    pub fn try_iter(&self) -> impl Iterator<Item = T> {
        self.messages.try_iter()
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<T, RecvTimeoutError> {
        loop {
            match self.messages.try_recv() {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(RecvTimeoutError::Timeout);
            }
            if let Some(message) = self.sleep(deadline) {
                return Ok(message);
            }
        }
    }

    /// Parks until a sender wakes it, unless a message came at the last moment. Without a reason it may
    /// return early, as parking may.
    fn sleep(&self, deadline: Option<Instant>) -> Option<T> {
        let Sleeper { asleep, thread } = &*self.sleeper;
        thread.get_or_init(thread::current);
        asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let message = match self.messages.try_recv() {
            Err(TryRecvError::Empty) => {
                match deadline {
                    None => thread::park(),
                    Some(deadline) => {
                        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
                    }
                }
                None
            }
            Err(TryRecvError::Disconnected) => None,
            Ok(message) => Some(message),
        };
        asleep.store(false, Ordering::Relaxed);
        message
    }
}
