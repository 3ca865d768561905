//! Verifies with loom, over interleavings with two or three preemptions, that the hand-over of a socket
//! between hub and writers keeps one party at a time on it and loses, doubles or reorders no frame: also at
//! the end of a backlog, when it is given back, cut, or its socket breaks.

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

use std::collections::VecDeque;
use std::sync::Arc;

use backlog::{Backlog, Drain, Drained, Step, backlog};
use bytes::Bytes;
use loom::sync::{Condvar, Mutex};
use loom::thread::JoinHandle;
use sync::{AtomicU64, Ordering};

/// A socket that notices two writers: it counts with separate, relaxed loads and stores, so only the
/// hand-over itself can make one party see what the other has sent.
#[derive(Default)]
struct Wire {
    sent: AtomicU64,
    is_cut: AtomicU64,
}

impl Wire {
    fn send(&self, frame: u64) {
        let before = self.sent.load(Ordering::Relaxed);
        assert_eq!(before + 1, frame, "lost, doubled, reordered or raced");
        self.sent.store(frame, Ordering::Relaxed);
    }
}

/// What the writers take from: backlogs, and the end.
#[derive(Default)]
struct Jobs {
    queue: Mutex<(VecDeque<Drain>, bool)>,
    changed: Condvar,
}

impl Jobs {
    fn push(&self, drain: Drain) {
        self.queue.lock().unwrap().0.push_back(drain);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.queue.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Drain> {
        let mut queue = self.queue.lock().unwrap();
        loop {
            match queue.0.pop_front() {
                Some(drain) => return Some(drain),
                None if queue.1 => return None,
                None => queue = self.changed.wait(queue).unwrap(),
            }
        }
    }
}

/// How a writer of the model behaves.
#[derive(Clone, Copy)]
enum Writer {
    /// Sends all that is there.
    Drains,
    /// Gives the backlog back after each frame.
    Pauses,
    /// Finds the socket broken at this frame.
    BreaksAt(u64),
}

/// The socket broke, or the hub has cut it.
struct Broken;

fn write(jobs: &Jobs, wire: &Wire, writer: Writer) {
    while let Some(mut drain) = jobs.next() {
        let drained = drain.run(|bytes| {
            let frame = u64::from(bytes[0]);
            let breaks = matches!(writer, Writer::BreaksAt(at) if at == frame);
            if breaks || wire.is_cut.load(Ordering::Relaxed) == 1 {
                return Err(Broken);
            }
            wire.send(frame);
            let pauses = matches!(writer, Writer::Pauses);
            Ok(if pauses { Step::Pause(bytes.len()) } else { Step::Sent(bytes.len()) })
        });
        if matches!(drained, Ok(Drained::Paused)) {
            jobs.push(drain);
        }
    }
}

/// The hub's side of one connection, as `hub::outbox` does it.
struct Hub {
    wire: Arc<Wire>,
    jobs: Arc<Jobs>,
    backlog: Option<Backlog>,
}

impl Hub {
    /// Sends, or queues behind a backlog; `full` says that the socket pushes back.
    fn send(&mut self, frame: u64, full: bool) {
        if let Some(backlog) = &mut self.backlog {
            if backlog.extend(1) {
                return backlog.hand_over(bytes_of(frame));
            }
            self.backlog = None;
        }
        if full {
            let (backlog, drain) = backlog([bytes_of(frame)]);
            self.backlog = Some(backlog);
            self.jobs.push(drain);
        } else {
            self.wire.send(frame);
        }
    }

    /// Cuts the connection: what waits is dropped.
    fn cut(&mut self) {
        self.wire.is_cut.store(1, Ordering::Relaxed);
        self.backlog = None;
    }
}

fn bytes_of(frame: u64) -> Bytes {
    Bytes::from(vec![frame as u8])
}

/// Runs a hub and its writers over all interleavings; returns nothing, since the model asserts.
fn check(writers: &'static [Writer], run: impl Fn(&mut Hub) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    // Enough for every known kind of race, and it keeps the number of interleavings small.
    model.preemption_bound = Some(if writers.len() > 1 { 2 } else { 3 });
    model.check(move || {
        let (wire, jobs) = (Arc::new(Wire::default()), Arc::new(Jobs::default()));
        let running: Vec<JoinHandle<()>> = writers
            .iter()
            .map(|writer| {
                let (jobs, wire) = (Arc::clone(&jobs), Arc::clone(&wire));
                loom::thread::spawn(move || write(&jobs, &wire, *writer))
            })
            .collect();
        let mut hub = Hub { wire, jobs: Arc::clone(&jobs), backlog: None };
        run(&mut hub);
        jobs.end();
        for writer in running {
            writer.join().unwrap();
        }
    });
}

fn send_all(hub: &mut Hub, full: &[bool]) {
    for (n, full) in full.iter().enumerate() {
        hub.send(n as u64 + 1, *full);
    }
}

/// Waits until the hub has the socket back, then sends once more.
fn end_with(hub: &mut Hub, last: u64) {
    while hub.backlog.as_ref().is_some_and(|backlog| !backlog.is_drained()) {
        loom::thread::yield_now();
    }
    hub.backlog = None;
    hub.wire.send(last);
}

#[test]
fn a_socket_goes_to_a_writer_and_back() {
    check(&[Writer::Drains], |hub| {
        send_all(hub, &[false, true, false]);
        end_with(hub, 4);
    });
}

#[test]
fn a_second_backlog_may_start_while_the_first_is_on_its_way_out() {
    check(&[Writer::Drains, Writer::Drains], |hub| {
        send_all(hub, &[true, true]);
        end_with(hub, 3);
    });
}

#[test]
fn a_backlog_that_is_given_back_goes_on_with_any_writer() {
    check(&[Writer::Pauses, Writer::Drains], |hub| {
        send_all(hub, &[true, false]);
        end_with(hub, 3);
    });
}

#[test]
fn a_cut_ends_a_backlog_wherever_its_writer_is() {
    check(&[Writer::Drains], |hub| {
        send_all(hub, &[true, false]);
        hub.cut();
        assert!(hub.backlog.is_none());
    });
}

#[test]
fn a_cut_ends_a_backlog_that_is_given_back() {
    check(&[Writer::Pauses], |hub| {
        send_all(hub, &[true, false]);
        hub.cut();
    });
}

#[test]
fn a_broken_socket_never_comes_back_to_the_hub() {
    check(&[Writer::BreaksAt(1)], |hub| {
        hub.send(1, true);
        // Whether the writer has seen it or not: nothing was sent, so the hub must not think so.
        let backlog = hub.backlog.as_mut().unwrap();
        assert!(!backlog.is_drained() && backlog.extend(1));
        backlog.hand_over(bytes_of(2));
        assert_eq!(hub.wire.sent.load(Ordering::Relaxed), 0);
    });
}
