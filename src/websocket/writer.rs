//! The writers: a pool of threads that drain the backlogs of sockets that pushed back, each blocking on one
//! socket at a time.
//!
//! A writer that takes a backlog while others wait starts the next writer, up to `MAX_WRITERS`; one that
//! has had nothing to do for a while ends. Once all run, a backlog that waits gets its turn all the same: a
//! writer then serves a socket for 100 ms at most. A backlog whose peer has taken nothing in its turn
//! waits behind nearly all others, so stalled peers cannot keep the writers from peers that read.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use log::debug;

use crate::config::CONNECTION_STACK_BYTES;
use crate::hub::socket::SEND_TIMEOUT;
use crate::hub::{ConnectionKey, Drained, Event, HubHandle, Step, WriterJob, Writers};
use crate::runtime::threads::Threads;

/// How long a writer serves one socket while other backlogs wait.
const TURN: Duration = SEND_TIMEOUT;
/// Every so many times a backlog whose peer took nothing comes first: while others never cease, its peer may
/// have begun to read.
const STALLED_EVERY: usize = 8;
/// How long a writer waits for a backlog before it ends; the last one stays.
const IDLE: Duration = Duration::from_secs(2);

/// The hub's end of the pool; when it is dropped, the writers end.
pub struct WriterPool {
    pool: Arc<Pool>,
    _stop: Sender<Infallible>,
}

/// What all writers share.
struct Pool {
    /// Backlogs whose peers may take something.
    ready: (Sender<WriterJob>, Receiver<WriterJob>),
    /// Backlogs whose peers took nothing in their last turn.
    stalled: (Sender<WriterJob>, Receiver<WriterJob>),
    stopped: Receiver<Infallible>,
    /// `MAX_WRITERS`.
    most: usize,
    running: AtomicUsize,
    idle: AtomicUsize,
    /// Writers started so far, for the threads' names.
    started: AtomicUsize,
    /// Times that a backlog was looked for.
    taken: AtomicUsize,
    threads: Threads,
    hub: HubHandle,
}

/// What ended a writer's wait.
enum Woken {
    Backlog(WriterJob),
    Idle,
    Stopped,
}

impl WriterPool {
    /// Starts the first writer; at most `most` run at once.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(most: usize, threads: Threads, hub: HubHandle) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let pool = Arc::new(Pool {
            ready: unbounded(),
            stalled: unbounded(),
            stopped,
            most,
            running: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            threads,
            hub,
        });
        pool.start_writer()?;
        Ok(Self { pool, _stop: stop })
    }
}

impl Writers for WriterPool {
    fn submit(&self, job: WriterJob) {
        // The pool has both ends.
        let _ = self.pool.ready.0.send(job);
    }

    fn threads(&self) -> usize {
        self.pool.running.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> usize {
        self.pool.waiting()
    }
}

impl Pool {
    fn waiting(&self) -> usize {
        self.ready.1.len() + self.stalled.1.len()
    }

    /// Starts one more, unless as many run as may.
    fn start_writer(self: &Arc<Self>) -> io::Result<()> {
        let one_more = |running| (running < self.most).then_some(running + 1);
        if self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_err() {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let pool = Arc::clone(self);
        let started = self.threads.spawn_small(
            format!("writer-{number}"),
            CONNECTION_STACK_BYTES,
            move || {
                pool.run();
            },
        );
        if started.is_err() {
            self.running.fetch_sub(1, Ordering::AcqRel);
        }
        started
    }

    fn run(self: &Arc<Self>) {
        let mut running = Running { pool: self, is_counted: true };
        loop {
            let job = match self.next() {
                Woken::Backlog(job) => job,
                Woken::Idle if self.leave_unless_last() => {
                    running.is_counted = false;
                    return;
                }
                Woken::Idle => continue,
                Woken::Stopped => return,
            };
            if self.waiting() > 0
                && self.idle.load(Ordering::Acquire) == 0
                && let Err(error) = self.start_writer()
            {
                debug!(error:%; "no thread for one more writer");
            }
            self.serve(job);
        }
    }

    /// The next backlog, or why there is none.
    fn next(&self) -> Woken {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let mut queues = [&self.ready.1, &self.stalled.1];
        if taken.is_multiple_of(STALLED_EVERY) {
            queues.reverse();
        }
        if let Some(job) = queues.iter().find_map(|queue| queue.try_recv().ok()) {
            return Woken::Backlog(job);
        }
        let backlog = |job: Result<WriterJob, _>| job.map_or(Woken::Stopped, Woken::Backlog);
        self.idle.fetch_add(1, Ordering::AcqRel);
        let woken = select! {
            recv(self.ready.1) -> job => backlog(job),
            recv(self.stalled.1) -> job => backlog(job),
            recv(self.stopped) -> _ => Woken::Stopped,
            default(IDLE) => Woken::Idle,
        };
        self.idle.fetch_sub(1, Ordering::AcqRel);
        woken
    }

    /// Of several writers that want to end at once, the last stays.
    fn leave_unless_last(&self) -> bool {
        let one_less = |running| (running > 1).then_some(running - 1);
        self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }

    /// Drains a backlog, or for a turn when others wait.
    fn serve(&self, mut job: WriterJob) {
        let began = Instant::now();
        let mut took_something = false;
        let mut report = Report { hub: &self.hub, key: job.key, broken: Some(true) };
        let drained = job.drain.run(|bytes| {
            let sent = match job.socket.send(bytes) {
                Ok(sent) => sent,
                Err(error) if is_passing(&error) => 0,
                Err(error) => return Err(error),
            };
            took_something |= sent > 0;
            let is_over = sent == 0 || began.elapsed() >= TURN;
            Ok(if is_over && self.waiting() > 0 { Step::Pause(sent) } else { Step::Sent(sent) })
        });
        report.broken = match drained {
            Ok(Drained::All | Drained::Abandoned) => Some(false),
            Ok(Drained::Paused) => {
                let queue = if took_something { &self.ready } else { &self.stalled };
                let _ = queue.0.send(job);
                None
            }
            Err(_) => Some(true),
        };
    }
}

/// Counts a writer out, also when it panics.
struct Running<'a> {
    pool: &'a Arc<Pool>,
    is_counted: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_counted {
            self.pool.running.fetch_sub(1, Ordering::AcqRel);
        }
        if std::thread::panicking() {
            // Another takes over; without one, backlogs wait until their clock cuts them.
            let _ = self.pool.start_writer();
        }
    }
}

/// Tells the hub that a writer has done with a backlog, also when it panics; `None` when it is given back.
struct Report<'a> {
    hub: &'a HubHandle,
    key: ConnectionKey,
    broken: Option<bool>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if let Some(broken) = self.broken {
            // The hub outlives its writers, except when it fails; then no one counts them.
            let _ = self.hub.send(Event::WriterEnded { key: self.key, broken });
        }
    }
}

/// The peer took nothing, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
