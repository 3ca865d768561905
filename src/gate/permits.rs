//! The permits to be connected, and who loses one when a new connection finds none free.
//!
//! A connection that has not sent a complete head, be it new, kept alive or already answered, waits in a
//! list. When all permits are taken, the one that has waited longest is shut down and the new one gets its
//! permit: silent peers hold connections only until others need them.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::config::RESERVE_CONNECTIONS;

/// Evicted connections whose threads have not ended yet, at most; they come on top of all permits.
const MAX_ENDING: usize = 8;
/// How long the accept loop waits for threads that need no peer, only a processor.
const TAKE_TIMEOUT: Duration = Duration::from_millis(250);

/// All permits of the gate: `MAX_CONNECTIONS` regular ones and the reserve.
pub(super) struct Permits {
    state: Mutex<State>,
    /// A thread that the accept loop may wait for has gone on.
    changed: Condvar,
    /// Evicted connections.
    evicted: Counter,
}

struct State {
    regular: Class,
    reserve: Class,
    /// Connections whose threads have not looked for a head yet.
    starting: usize,
    /// Evicted connections whose threads have not ended yet.
    ending: usize,
    /// Of the last connection that began to wait.
    ticket: u64,
    is_acceptor_waiting: bool,
}

/// Permits of one kind.
struct Class {
    capacity: usize,
    taken: usize,
    /// Connections without a complete head, by ticket and so by the time since when they wait.
    waiting: BTreeMap<u64, Arc<TcpStream>>,
}

impl Class {
    fn new(capacity: usize) -> Self {
        Self { capacity, taken: 0, waiting: BTreeMap::new() }
    }

    fn take_free(&mut self) -> bool {
        let is_free = self.taken < self.capacity;
        self.taken += usize::from(is_free);
        is_free
    }
}

/// A permit that was found, and whose it was.
struct Found {
    is_reserve: bool,
    evicted: Option<Arc<TcpStream>>,
}

impl State {
    fn class(&mut self, is_reserve: bool) -> &mut Class {
        if is_reserve { &mut self.reserve } else { &mut self.regular }
    }

    fn take_or_evict(&mut self, is_reserve: bool) -> Option<Found> {
        if self.class(is_reserve).take_free() {
            return Some(Found { is_reserve, evicted: None });
        }
        if self.ending >= MAX_ENDING {
            return None;
        }
        let (_, oldest) = self.class(is_reserve).waiting.pop_first()?;
        self.ending += 1;
        Some(Found { is_reserve, evicted: Some(oldest) })
    }

    /// Whether a permit may come free without any peer's doing.
    fn is_about_to_change(&self) -> bool {
        let is_any_waiting = !self.regular.waiting.is_empty() || !self.reserve.waiting.is_empty();
        self.starting > 0 || (self.ending >= MAX_ENDING && is_any_waiting)
    }
}

impl Permits {
    pub(super) fn new(max_connections: usize, evicted: Counter) -> Self {
        let state = State {
            regular: Class::new(max_connections),
            reserve: Class::new(RESERVE_CONNECTIONS),
            starting: 0,
            ending: 0,
            ticket: 0,
            is_acceptor_waiting: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), evicted }
    }

    /// A permit for a new connection, if need be that of another. `None` when all are taken by
    /// connections that are served. Only the accept loop takes permits.
    pub(super) fn take(self: &Arc<Self>) -> Option<Permit> {
        let Found { is_reserve, evicted } = self.find()?;
        if let Some(stream) = evicted {
            // Its thread is in a read, which ends so.
            let _ = stream.shutdown(Shutdown::Both);
            self.evicted.inc();
        }
        Some(Permit { permits: Arc::clone(self), is_reserve, progress: Progress::Starting })
    }

    fn find(&self) -> Option<Found> {
        let mut state = self.lock();
        let mut deadline = None;
        let found = loop {
            if let Some(found) = state.take_or_evict(false) {
                break Some(found);
            }
            // A thread that starts may find no head, and its connection be evicted then.
            let now = Instant::now();
            let deadline = *deadline.get_or_insert(now + TAKE_TIMEOUT);
            if !state.is_about_to_change() || now >= deadline {
                break state.take_or_evict(true);
            }
            state.is_acceptor_waiting = true;
            let waited = self.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_acceptor_waiting = false;
        };
        state.starting += usize::from(found.is_some());
        found
    }

    /// Connections open now, those about to end included.
    pub(super) fn open(&self) -> usize {
        let state = self.lock();
        state.regular.taken + state.reserve.taken + state.ending
    }

    /// Connections that may be evicted.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.regular.waiting.len() + state.reserve.waiting.len()
    }

    /// Nothing panics while it holds the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's permit; free again when dropped.
pub(super) struct Permit {
    permits: Arc<Permits>,
    is_reserve: bool,
    progress: Progress,
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Its thread has not looked for a head yet.
    Starting,
    /// It waits under this ticket, and may be evicted.
    Waiting(u64),
    /// It is served, and keeps its permit.
    Serving,
    /// Its permit is another's.
    Evicted,
}

impl Permit {
    /// Whether it is one of the reserve, which serves probes only.
    pub(super) fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// From now on the connection may be evicted: reads of `stream` then end.
    pub(super) fn wait(&mut self, stream: &Arc<TcpStream>) {
        self.advance(|state, is_reserve| {
            state.ticket += 1;
            let ticket = state.ticket;
            state.class(is_reserve).waiting.insert(ticket, Arc::clone(stream));
            Progress::Waiting(ticket)
        });
    }

    /// From now on the connection keeps its permit; `false` when it was evicted before. The permit then
    /// holds no reference to the stream.
    pub(super) fn serve(&mut self) -> bool {
        if self.progress != Progress::Serving {
            self.advance(|_, _| Progress::Serving);
        }
        self.progress != Progress::Evicted
    }

    /// Ends what the connection has been doing, and begins what `next` tells unless it was evicted.
    fn advance(&mut self, next: impl FnOnce(&mut State, bool) -> Progress) {
        let mut state = self.permits.lock();
        let is_evicted = match self.progress {
            Progress::Starting => {
                state.starting -= 1;
                false
            }
            Progress::Waiting(ticket) => {
                state.class(self.is_reserve).waiting.remove(&ticket).is_none()
            }
            Progress::Serving => false,
            Progress::Evicted => true,
        };
        self.progress =
            if is_evicted { Progress::Evicted } else { next(&mut state, self.is_reserve) };
        if state.is_acceptor_waiting {
            self.permits.changed.notify_one();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.serve();
        let mut state = self.permits.lock();
        if self.progress == Progress::Evicted {
            state.ending -= 1;
        } else {
            state.class(self.is_reserve).taken -= 1;
        }
        if state.is_acceptor_waiting {
            self.permits.changed.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    fn pair() -> (TcpStream, Arc<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (peer, Arc::new(listener.accept().unwrap().0))
    }

    /// One regular permit and the reserve, all taken by connections that are served.
    fn all_served() -> (Arc<Permits>, Vec<Permit>) {
        let permits = Arc::new(Permits::new(1, Counter::default()));
        let mut taken = Vec::new();
        for n in 0..=RESERVE_CONNECTIONS {
            let mut permit = permits.take().unwrap();
            assert_eq!(permit.is_reserve(), n > 0);
            assert!(permit.serve());
            taken.push(permit);
        }
        (permits, taken)
    }

    #[test]
    fn who_is_served_keeps_the_permit_and_who_waits_longest_gives_it() {
        let (permits, mut taken) = all_served();
        assert!(permits.take().is_none());
        let streams: Vec<_> = (0..3).map(|_| pair()).collect();
        // In another order than they came in.
        for (permit, stream) in [(2, 0), (1, 1), (0, 2)] {
            taken[permit].wait(&streams[stream].1);
        }
        // A regular one is preferred.
        for (stream, is_reserve) in [(2, false), (0, true), (1, true)] {
            let mut permit = permits.take().unwrap();
            assert_eq!(permit.is_reserve(), is_reserve);
            assert!(permit.serve());
            assert_eq!((&streams[stream].0).read(&mut [0]).unwrap(), 0);
            taken.push(permit);
        }
        assert!(permits.take().is_none());
        assert!(taken[..3].iter_mut().all(|permit| !permit.serve()));
        assert_eq!(permits.evicted.get(), 3);
        assert_eq!(permits.open(), RESERVE_CONNECTIONS + 4);
        drop(taken);
        assert_eq!(permits.open(), 0);
        assert!(streams.iter().all(|(_, stream)| Arc::strong_count(stream) == 1));
    }

    #[test]
    fn few_evicted_connections_are_about_to_end_at_once() {
        let (permits, mut taken) = all_served();
        let streams: Vec<_> = taken.iter().map(|_| pair().1).collect();
        for (permit, stream) in taken.iter_mut().zip(&streams) {
            permit.wait(stream);
        }
        for _ in 0..MAX_ENDING {
            let mut permit = permits.take().unwrap();
            assert!(permit.serve());
            taken.push(permit);
        }
        assert!(permits.take().is_none());
        // The one whose regular permit was given away first.
        drop(taken.remove(0));
        assert!(permits.take().is_some());
    }

    #[test]
    fn a_thread_that_starts_is_waited_for() {
        let permits = Arc::new(Permits::new(1, Counter::default()));
        let mut starting = permits.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| starting.wait(&pair().1));
            assert!(!permits.take().unwrap().is_reserve());
        });
        assert!(!starting.serve());
    }
}
