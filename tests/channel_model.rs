//! Verifies with loom, over interleavings with up to three preemptions, that the channel whose receiver
//! parks loses no message and no wake, and that its end and its bound wake whom they should.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../src/runtime/channel.rs"]
#[allow(dead_code, reason = "the model waits without deadlines and counts nothing")]
mod channel;

/// What the channel takes from the standard library and crossbeam, here under loom's control.
mod sync {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use crossbeam_channel::{SendError, TryRecvError, TrySendError};
    use loom::sync::atomic::AtomicUsize;
    pub use loom::sync::atomic::{Ordering, fence};
    use loom::sync::{Condvar, Mutex};
    pub use thread::Thread;

    /// Loom lets a swap read a store that a later, plain one has already replaced, and forgets that the later
    /// one then comes behind the swap. Stores that are swaps themselves come one behind the other.
    #[derive(Default)]
    pub struct AtomicBool(loom::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub fn load(&self, order: Ordering) -> bool {
            self.0.load(order)
        }

        pub fn swap(&self, value: bool, order: Ordering) -> bool {
            self.0.swap(value, order)
        }

        pub fn store(&self, value: bool, order: Ordering) {
            self.0.swap(value, order);
        }
    }

    /// Parking as the standard library promises it. Loom's own forgets an unpark that comes while the
    /// thread waits for a lock, and takes one that comes late for the end of a join.
    pub mod thread {
        use super::{Arc, Condvar, Mutex};

        loom::thread_local! {
            static CURRENT: Thread = Thread(Arc::new((Mutex::new(false), Condvar::new())));
        }

        #[derive(Clone)]
        pub struct Thread(Arc<(Mutex<bool>, Condvar)>);

        impl Thread {
            pub fn unpark(&self) {
                let (is_unparked, changed) = &*self.0;
                *is_unparked.lock().unwrap() = true;
                changed.notify_one();
            }
        }

        pub fn current() -> Thread {
            CURRENT.with(Thread::clone)
        }

        pub fn park() {
            let current = current();
            let (is_unparked, changed) = &*current.0;
            let mut is_unparked = is_unparked.lock().unwrap();
            while !*is_unparked {
                is_unparked = changed.wait(is_unparked).unwrap();
            }
            *is_unparked = false;
        }

        pub fn park_timeout(_: std::time::Duration) {
            unreachable!("the model waits without a deadline");
        }
    }

    /// The standard library's, as far as it orders memory: whoever sees that it is set sees what is in it.
    pub struct OnceLock<T> {
        is_set: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self { is_set: AtomicBool::default(), value: std::sync::OnceLock::new() }
        }
    }

    impl<T> OnceLock<T> {
        pub fn get(&self) -> Option<&T> {
            if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
        }

        pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            let value = self.value.get_or_init(init);
            self.is_set.store(true, Ordering::Release);
            value
        }
    }

    /// A bounded channel that orders no more memory than a channel must: whoever takes a message sees what
    /// its sender did before. One with a lock around the messages would hide a missing fence.
    struct Messages<T> {
        /// A message becomes visible with `is_full`; the lock is never waited for, and loom knows nothing of it.
        slots: Vec<Slot<T>>,
        capacity: usize,
        /// Slots that senders have claimed, and how many of them are taken out again.
        claimed: Mutex<(usize, usize)>,
        has_room: Condvar,
        senders: AtomicUsize,
        /// The receiver's alone.
        taken: std::sync::Mutex<usize>,
    }

    struct Slot<T> {
        is_full: AtomicBool,
        message: std::sync::Mutex<Option<T>>,
    }

    /// More messages than any model sends: no slot is used twice.
    const SLOTS: usize = 4;

    pub struct Sender<T>(Arc<Messages<T>>);
    pub struct Receiver<T>(Arc<Messages<T>>);

    /// As far as a model goes: it never has more messages than slots.
    pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        bounded(SLOTS)
    }

    pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let slot =
            |_| Slot { is_full: AtomicBool::default(), message: std::sync::Mutex::new(None) };
        let messages = Arc::new(Messages {
            slots: (0..SLOTS).map(slot).collect(),
            capacity,
            claimed: Mutex::new((0, 0)),
            has_room: Condvar::new(),
            senders: AtomicUsize::new(1),
            taken: std::sync::Mutex::new(0),
        });
        (Sender(Arc::clone(&messages)), Receiver(messages))
    }

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            let mut claimed = self.0.claimed.lock().unwrap();
            while claimed.0 - claimed.1 == self.0.capacity {
                claimed = self.0.has_room.wait(claimed).unwrap();
            }
            let slot = &self.0.slots[claimed.0];
            claimed.0 += 1;
            drop(claimed);
            *slot.message.lock().unwrap() = Some(message);
            slot.is_full.store(true, Ordering::Release);
            Ok(())
        }

        pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            self.send(message).map_err(TrySendError::from)
        }

        pub fn len(&self) -> usize {
            let claimed = self.0.claimed.lock().unwrap();
            claimed.0 - claimed.1
        }

        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.senders.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.senders.fetch_sub(1, Ordering::Release);
        }
    }

    impl<T> Receiver<T> {
        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            if let Some(message) = self.take() {
                return Ok(message);
            }
            if self.0.senders.load(Ordering::Acquire) > 0 {
                return Err(TryRecvError::Empty);
            }
            // The last one may have sent between the two looks.
            self.take().ok_or(TryRecvError::Disconnected)
        }

        pub fn try_iter(&self) -> impl Iterator<Item = T> {
            std::iter::from_fn(|| self.try_recv().ok()).collect::<VecDeque<_>>().into_iter()
        }

        fn take(&self) -> Option<T> {
            let mut taken = self.0.taken.lock().unwrap();
            let slot = self.0.slots.get(*taken)?;
            if !slot.is_full.load(Ordering::Acquire) {
                return None;
            }
            *taken += 1;
            let message = slot.message.lock().unwrap().take();
            self.0.claimed.lock().unwrap().1 = *taken;
            self.0.has_room.notify_one();
            message
        }
    }
}

use channel::{Receiver, bounded};

/// With three preemptions: enough for every known kind of race, and few interleavings.
fn check(model: impl Fn() + Sync + Send + 'static) {
    check_with(3, model);
}

fn check_with(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What comes, to the end of the channel. A lost wake is a deadlock, which loom reports.
fn all<T>(receiver: &Receiver<T>) -> Vec<T> {
    std::iter::from_fn(|| receiver.recv().ok()).collect()
}

#[test]
fn one_sender_s_messages_come_in_order_and_the_end_behind_them() {
    check(|| {
        let (sender, receiver) = bounded(4);
        let sending = loom::thread::spawn(move || (1..=2).for_each(|n| sender.send(n).unwrap()));
        assert_eq!(all(&receiver), [1, 2]);
        sending.join().unwrap();
    });
}

/// The sender lives on: nothing but the wake of its message can end the wait.
#[test]
fn a_message_alone_wakes_the_receiver() {
    check(|| {
        let (sender, receiver) = bounded(4);
        let other = sender.clone();
        let sending = loom::thread::spawn(move || sender.send(1).unwrap());
        assert_eq!(receiver.recv(), Ok(1));
        sending.join().unwrap();
        drop(other);
    });
}

#[test]
fn two_senders_wake_one_receiver() {
    // Three threads have many interleavings: with three preemptions this alone takes as long as all others.
    check_with(2, || {
        let (sender, receiver) = bounded(4);
        let senders: Vec<_> = [sender.clone(), sender.clone()]
            .into_iter()
            .zip(1..)
            .map(|(sender, n)| {
                loom::thread::spawn(move || {
                    sender.send(n).unwrap();
                    // Kept to the end: its drop would wake the receiver too.
                    sender
                })
            })
            .collect();
        let mut received = [receiver.recv().unwrap(), receiver.recv().unwrap()];
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        for sending in senders {
            drop(sending.join().unwrap());
        }
        drop(sender);
        assert!(receiver.recv().is_err());
    });
}

#[test]
fn the_end_of_the_last_sender_wakes_the_receiver() {
    check(|| {
        let (sender, receiver) = bounded::<()>(4);
        let other = sender.clone();
        let ends = [sender, other].map(|sender| loom::thread::spawn(move || drop(sender)));
        assert!(receiver.recv().is_err());
        ends.into_iter().for_each(|end| end.join().unwrap());
    });
}

#[test]
fn a_full_channel_s_sender_goes_on() {
    check(|| {
        let (sender, receiver) = bounded(1);
        let sending = loom::thread::spawn(move || {
            (1..=2).for_each(|n| sender.send(n).unwrap());
            sender
        });
        assert_eq!([(); 2].map(|()| receiver.recv().unwrap()), [1, 2]);
        drop(sending.join().unwrap());
    });
}

/// The hub's loop: wait for one, take what else is there, and wait again.
#[test]
fn taking_without_waiting_misses_no_wake() {
    check(|| {
        let (sender, receiver) = bounded(4);
        let sending = loom::thread::spawn(move || {
            (1..=2).for_each(|n| sender.send(n).unwrap());
            sender
        });
        let mut received = Vec::new();
        while received.len() < 2 {
            received.push(receiver.recv().unwrap());
            received.extend(receiver.try_iter());
        }
        assert_eq!(received, [1, 2]);
        drop(sending.join().unwrap());
    });
}
