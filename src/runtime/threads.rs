//! Named threads, and the owner that waits for them (invariant 4).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::warn;
use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, get_scheduler, set_scheduler};

/// Stack of a service thread, in bytes: room for an HTTP client, TLS or a JSON tree.
const SERVICE_STACK_BYTES: usize = 2 * 1024 * 1024;

/// Starts threads and waits for all of them; clones share one list.
#[derive(Clone)]
pub struct Threads {
    live: Arc<Live>,
    failed: Sender<String>,
    failures: Receiver<String>,
}

#[derive(Default)]
struct Live {
    names: Mutex<BTreeMap<u64, String>>,
    changed: Condvar,
}

impl Live {
    /// A thread that panicked while it held the lock has left the list whole.
    fn names(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes its thread off the list, also when the thread panics.
struct Entry {
    live: Arc<Live>,
    number: u64,
    on_panic: Option<Sender<String>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut names = self.live.names();
        let name = names.remove(&self.number);
        // Before the list says that it is gone, so that a waiter learns of the failure.
        if let (true, Some(failed), Some(name)) = (std::thread::panicking(), &self.on_panic, name) {
            let _ = failed.try_send(name);
        }
        drop(names);
        self.live.changed.notify_all();
    }
}

impl Default for Threads {
    fn default() -> Self {
        let (failed, failures) = bounded(1);
        Self { live: Arc::default(), failed, failures }
    }
}

impl Threads {
    /// Starts a thread of the service itself: its panic is a failure of the service.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.start(name.into(), SERVICE_STACK_BYTES, Some(self.failed.clone()), f)
    }

    /// Like [`Threads::spawn`], under `SCHED_BATCH`, which the threads that it starts inherit (see
    /// `use_sched_batch`).
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn_batch(
        &self,
        name: impl Into<String>,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.spawn(name, || {
            use_sched_batch();
            f();
        })
    }

    /// Starts a thread that serves one connection: its panic ends that connection only.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn_small(
        &self,
        name: impl Into<String>,
        stack_bytes: usize,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.start(name.into(), stack_bytes, None, f)
    }

    fn start(
        &self,
        name: String,
        stack_bytes: usize,
        on_panic: Option<Sender<String>>,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let entry = self.enter(name.clone(), on_panic);
        // A failed spawn drops the closure, and with it the entry.
        Builder::new().name(name).stack_size(stack_bytes).spawn(move || {
            let _entry = entry;
            f();
        })?;
        Ok(())
    }

    fn enter(&self, name: String, on_panic: Option<Sender<String>>) -> Entry {
        let mut names = self.live.names();
        let number = names.last_key_value().map_or(0, |(last, _)| last + 1);
        names.insert(number, name);
        Entry { live: Arc::clone(&self.live), number, on_panic }
    }

    /// Tells the name of a service thread that panicked; at most one is kept.
    pub fn failures(&self) -> &Receiver<String> {
        &self.failures
    }

    /// How many threads run.
    pub fn count(&self) -> usize {
        self.live.names().len()
    }

    /// Waits until every thread whose name `matches` has ended.
    ///
    /// # Errors
    /// The names of those left at the deadline.
    pub fn wait(
        &self,
        deadline: Instant,
        matches: impl Fn(&str) -> bool,
    ) -> Result<(), Vec<String>> {
        let mut names = self.live.names();
        loop {
            let left = || names.values().filter(|name| matches(name));
            if left().next().is_none() {
                return Ok(());
            }
            let time = deadline.saturating_duration_since(Instant::now());
            if time == Duration::ZERO {
                return Err(left().cloned().collect());
            }
            names = self
                .live
                .changed
                .wait_timeout(names, time)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Puts the calling thread, and those that it will start, under `SCHED_BATCH` (sched(7)): as fair a share
/// of the processors as before, but no thread is interrupted because this one wakes.
///
/// A message wakes its reader, and the reader the hub. By default each may interrupt who woke it, just
/// before that one would have gone to sleep: one more switch, and Linux then takes the processor for
/// overloaded and sends whoever is woken next to another, whose sleep it must end first. A policy that an
/// operator has chosen for the process stays as it is.
fn use_sched_batch() {
    let this = Pid::current_thread();
    if !matches!(get_scheduler(this), Ok(Scheduler::SCHED_NORMAL)) {
        return;
    }
    if let Err(error) = set_scheduler(this, Scheduler::SCHED_BATCH, SchedulerParams { priority: 0 })
    {
        warn!(error:%; "not under SCHED_BATCH; messages may take a little longer");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_last_thread_or_names_those_left() {
        let threads = Threads::default();
        let (go, gone) = bounded::<()>(0);
        threads.spawn("slow", move || _ = gone.recv()).unwrap();
        threads.spawn_small("quick", 64 * 1024, || ()).unwrap();
        let far = Instant::now() + Duration::from_secs(10);
        threads.wait(far, |name| name == "quick").unwrap();
        assert_eq!(threads.wait(Instant::now(), |_| true), Err(vec!["slow".to_owned()]));
        drop(go);
        threads.wait(far, |_| true).unwrap();
        assert_eq!(threads.count(), 0);
    }

    #[test]
    fn the_panic_of_a_service_thread_is_a_failure() {
        let threads = Threads::default();
        threads.spawn_small("conn-1", 64 * 1024, || panic!("only this connection")).unwrap();
        threads.spawn("hub", || panic!("on purpose")).unwrap();
        let name = threads.failures().recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(name, "hub");
    }
}
