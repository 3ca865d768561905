//! Verifies with loom, over interleavings with up to three preemptions, that the hand-over of a socket between hub and writer
//! keeps one party at a time on it and loses, doubles or reorders no frame.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../src/hub/backlog.rs"]
#[allow(dead_code, reason = "the model uses the hand-over, not the limits")]
mod backlog;

/// What the hub takes from the standard library and crossbeam, here under loom's control. Loom's own
/// channel does not end when its sender is dropped, so this is one that does.
mod sync {
    use std::collections::VecDeque;
    use std::sync::Arc;

    pub use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::sync::{Condvar, Mutex};

    struct Channel<T> {
        state: Mutex<(VecDeque<T>, bool)>,
        changed: Condvar,
    }

    pub struct Sender<T>(Arc<Channel<T>>);
    pub struct Receiver<T>(Arc<Channel<T>>);

    pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let state = Mutex::new((VecDeque::new(), true));
        let channel = Arc::new(Channel { state, changed: Condvar::new() });
        (Sender(Arc::clone(&channel)), Receiver(channel))
    }

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), T> {
            self.0.state.lock().unwrap().0.push_back(message);
            self.0.changed.notify_one();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.state.lock().unwrap().1 = false;
            self.0.changed.notify_one();
        }
    }

    impl<T> Receiver<T> {
        pub fn recv(&self) -> Result<T, ()> {
            let mut state = self.0.state.lock().unwrap();
            loop {
                match state.0.pop_front() {
                    Some(message) => return Ok(message),
                    None if state.1 => state = self.0.changed.wait(state).unwrap(),
                    None => return Err(()),
                }
            }
        }
    }
}

mod runtime {
    pub use realtime_service::runtime::clock;
}

use std::convert::Infallible;
use std::sync::Arc;

use backlog::{Backlog, backlog};
use bytes::Bytes;
use loom::thread::JoinHandle;
use sync::{AtomicU64, Ordering};

/// A socket that notices two writers: it counts with separate, relaxed loads and stores, so only the
/// hand-over itself can make one party see what the other has sent.
#[derive(Default)]
struct Wire(AtomicU64);

impl Wire {
    fn send(&self, frame: u64) {
        assert_eq!(self.0.load(Ordering::Relaxed) + 1, frame, "lost, doubled, reordered or raced");
        self.0.store(frame, Ordering::Relaxed);
    }
}

/// The hub's side of one connection, as `hub::outbox` does it.
struct Hub {
    wire: Arc<Wire>,
    backlog: Option<Backlog>,
    writers: Vec<JoinHandle<()>>,
}

impl Hub {
    /// Sends, or queues behind a backlog; `full` says that the socket pushes back.
    fn send(&mut self, frame: u64, full: bool) {
        if self.backlog.as_ref().is_some_and(Backlog::is_drained) {
            self.backlog = None;
        }
        match &mut self.backlog {
            Some(backlog) => backlog.push(bytes_of(frame)),
            None if full => self.start_writer(frame),
            None => self.wire.send(frame),
        }
    }

    fn start_writer(&mut self, frame: u64) {
        let (mut backlog, drain) = backlog();
        backlog.push(bytes_of(frame));
        self.backlog = Some(backlog);
        let wire = Arc::clone(&self.wire);
        self.writers.push(loom::thread::spawn(move || {
            let sent = drain.run(|bytes| {
                wire.send(u64::from(bytes[0]));
                Ok::<_, Infallible>(())
            });
            assert!(sent.is_ok());
        }));
    }
}

fn bytes_of(frame: u64) -> Bytes {
    Bytes::from(vec![frame as u8])
}

fn check(full: &'static [bool]) {
    let mut model = loom::model::Builder::new();
    // Enough for every known kind of race, and it keeps the number of interleavings small.
    model.preemption_bound = Some(3);
    model.check(move || {
        let wire = Arc::new(Wire::default());
        let mut hub = Hub { wire: Arc::clone(&wire), backlog: None, writers: Vec::new() };
        for (n, full) in full.iter().enumerate() {
            hub.send(n as u64 + 1, *full);
        }
        hub.backlog = None;
        for writer in hub.writers {
            writer.join().unwrap();
        }
        assert_eq!(wire.0.load(Ordering::Relaxed), full.len() as u64);
    });
}

#[test]
fn a_socket_goes_to_the_writer_and_back() {
    check(&[false, true, false, false]);
}

#[test]
fn a_second_writer_may_start_while_the_first_is_on_its_way_out() {
    check(&[true, true, true]);
}
