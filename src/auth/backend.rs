//! Questions to the authorization backend: an actor that keeps cache and lets equal questions share
//! a call.
//!
//! ```text
//! readers ──questions──▶ authz ──jobs──▶ authz-1 … authz-32 ──HTTP──▶ backend
//!    ▲                   │   ▲                 │
//!    └────verdicts───────┘   └────outcomes─────┘
//! ```
//!
//! The thread `authz` alone owns the cache and the table of calls in flight, so there is no lock. It
//! never blocks: the jobs that wait are at most one for each reader's question.

#[cfg(test)]
mod against_http;
mod call;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased, unbounded};
use log::warn;

use prometheus_client::metrics::histogram::Histogram;

use super::{Verdict, verdict};
use crate::config::{BACKEND_CALLS, BACKEND_TIMEOUT};
use crate::protocol::{Id, Room};
use crate::runtime::threads::Threads;
use call::{CallError, Caller};

/// How long an allow is kept.
const ALLOW_KEPT: Duration = Duration::from_secs(30);
/// How long a deny is kept: shorter, as it stands in the way of someone just let in.
const DENY_KEPT: Duration = Duration::from_secs(5);
/// Most cache that are kept.
const MAX_ANSWERS: usize = 10_000;
/// Questions that wait for the `authz` thread; a full channel holds back the readers.
const QUESTION_QUEUE: usize = 256;
/// Shortest time between two log lines about failed calls.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// What the backend is asked; its answer depends on nothing else, so equal ones share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) user_id: Id,
    pub(super) room: Room,
}

/// One call, within the time that is left; runs on the `authz-…` threads.
type Call = dyn Fn(&Question, Duration) -> Result<bool, CallError> + Send + Sync;

/// What may be shorter in a test.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) timeout: Duration,
    pub(super) allow_kept: Duration,
    pub(super) deny_kept: Duration,
    pub(super) max_answers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: BACKEND_TIMEOUT,
            allow_kept: ALLOW_KEPT,
            deny_kept: DENY_KEPT,
            max_answers: MAX_ANSWERS,
        }
    }
}

/// Upper bounds of the duration of a call, in seconds; past the last it has failed.
const CALL_SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0];

/// Calls to the backend since the start, for the metrics.
#[derive(Debug)]
pub struct BackendStats {
    allowed: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    seconds: Histogram,
}

impl Default for BackendStats {
    fn default() -> Self {
        Self {
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            seconds: Histogram::new(CALL_SECONDS),
        }
    }
}

impl BackendStats {
    /// Calls that ended so. Questions that were answered without a call are not counted.
    pub fn calls(&self, verdict: Verdict) -> u64 {
        self.counter(verdict).load(Ordering::Relaxed)
    }

    /// How long calls took, in seconds.
    pub fn seconds(&self) -> &Histogram {
        &self.seconds
    }

    fn counter(&self, verdict: Verdict) -> &AtomicU64 {
        match verdict {
            Verdict::Allowed => &self.allowed,
            Verdict::Denied => &self.denied,
            Verdict::Failed => &self.failed,
        }
    }

    fn count(&self, verdict: Verdict, took: Duration) {
        self.counter(verdict).fetch_add(1, Ordering::Relaxed);
        self.seconds.observe(took.as_secs_f64());
    }
}

/// Asks the actor; when the last clone is dropped, its threads end.
#[derive(Clone)]
pub(super) struct Backend {
    questions: Sender<Asked>,
    timeout: Duration,
    stats: Arc<BackendStats>,
}

/// A question, and who waits for the answer.
struct Asked {
    question: Question,
    asker: Asker,
}

struct Asker {
    deadline: Instant,
    reply: Sender<Verdict>,
}

/// A question on its way to a calling thread; not called when its time is over by then.
struct Job {
    question: Question,
    deadline: Instant,
}

/// What became of a job; `Err(None)` when it was too late to call.
struct Outcome {
    question: Question,
    result: Result<bool, Option<CallError>>,
}

impl Backend {
    /// Asks the backend at `url` over HTTP.
    pub(super) fn over_http(url: &str, threads: &Threads) -> io::Result<Self> {
        let caller = Caller::new(url);
        let call = Arc::new(move |question: &_, left: Duration| caller.call(question, left));
        Self::start(call, Settings::default(), threads)
    }

    /// Starts the actor and the first calling thread.
    fn start(call: Arc<Call>, settings: Settings, threads: &Threads) -> io::Result<Self> {
        let (questions, asked) = bounded(QUESTION_QUEUE);
        let (jobs, taken) = unbounded();
        let (report, outcomes) = unbounded();
        let stats = Arc::new(BackendStats::default());
        let timeout = settings.timeout;
        let worker = Worker { jobs: taken, report, call, stats: Arc::clone(&stats) };
        let mut workers = Workers { jobs, worker, count: 0, busy: 0, threads: threads.clone() };
        workers.add()?;
        let cache = Cache::new(settings);
        let actor = Actor { cache, in_flight: HashMap::new(), workers, logged: None };
        threads.spawn("authz", move || actor.run(&asked, &outcomes))?;
        Ok(Self { questions, timeout, stats })
    }

    /// Asks, and waits for the answer up to the timeout.
    pub(super) fn ask(&self, user_id: &Id, room: &Room) -> Verdict {
        let deadline = Instant::now() + self.timeout;
        let (reply, answer) = bounded(1);
        let question = Question { user_id: user_id.clone(), room: room.clone() };
        let asked = Asked { question, asker: Asker { deadline, reply } };
        if self.questions.send_deadline(asked, deadline).is_err() {
            return Verdict::Failed;
        }
        answer.recv_deadline(deadline).unwrap_or(Verdict::Failed)
    }

    pub(super) fn stats(&self) -> &BackendStats {
        &self.stats
    }
}

/// The state of the `authz` thread.
struct Actor {
    cache: Cache,
    in_flight: HashMap<Question, Vec<Asker>>,
    workers: Workers,
    logged: Option<Instant>,
}

impl Actor {
    /// Ends when the last [`Backend`] is dropped; that drops `jobs`, which ends the calling threads.
    fn run(mut self, questions: &Receiver<Asked>, outcomes: &Receiver<Outcome>) {
        loop {
            // Cache first, so that a flood of questions finds them kept.
            select_biased! {
                recv(outcomes) -> outcome => {
                    // The workers' end is held here too, so it never disconnects.
                    if let Ok(outcome) = outcome {
                        self.settle(outcome);
                    }
                }
                recv(questions) -> asked => match asked {
                    Ok(asked) => self.ask(asked),
                    Err(_) => return,
                }
            }
        }
    }

    fn ask(&mut self, Asked { question, asker }: Asked) {
        if let Some(allowed) = self.cache.get(&question, Instant::now()) {
            return answer(&asker, verdict(allowed));
        }
        match self.in_flight.entry(question) {
            Entry::Occupied(mut flying) => flying.get_mut().push(asker),
            Entry::Vacant(place) => {
                let job = Job { question: place.key().clone(), deadline: asker.deadline };
                place.insert(vec![asker]);
                self.workers.hand_over(job);
            }
        }
    }

    fn settle(&mut self, Outcome { question, result }: Outcome) {
        self.workers.busy -= 1;
        let Some(askers) = self.in_flight.remove(&question) else { return };
        let now = Instant::now();
        let verdict = match result {
            Ok(allowed) => {
                self.cache.keep(question, allowed, now);
                verdict(allowed)
            }
            Err(None) => return self.ask_again(question, askers, now),
            Err(Some(error)) => {
                self.log(&error, now);
                Verdict::Failed
            }
        };
        askers.iter().for_each(|asker| answer(asker, verdict));
    }

    /// The oldest asker's time was over before a thread was free; one who joined later may have some.
    fn ask_again(&mut self, question: Question, mut askers: Vec<Asker>, now: Instant) {
        askers.retain(|asker| asker.deadline > now);
        if let Some(deadline) = askers.iter().map(|asker| asker.deadline).min() {
            self.workers.hand_over(Job { question: question.clone(), deadline });
            self.in_flight.insert(question, askers);
        }
    }

    /// A backend that is down must not fill the log.
    fn log(&mut self, error: &CallError, now: Instant) {
        if self.logged.is_none_or(|last| now.duration_since(last) >= LOG_PAUSE) {
            self.logged = Some(now);
            warn!("authorization backend: {error}");
        }
    }
}

/// An asker whose time is over has left.
fn answer(asker: &Asker, verdict: Verdict) {
    let _ = asker.reply.try_send(verdict);
}

/// Cache by question, each until its time, the oldest dropped when there are too many.
struct Cache {
    settings: Settings,
    by_question: HashMap<Question, CachedAnswer>,
    /// Questions by the number of their answer: in the order in which they came.
    by_age: BTreeMap<u64, Question>,
    next: u64,
}

struct CachedAnswer {
    allowed: bool,
    until: Instant,
    number: u64,
}

impl Cache {
    fn new(settings: Settings) -> Self {
        Self { settings, by_question: HashMap::new(), by_age: BTreeMap::new(), next: 0 }
    }

    fn get(&mut self, question: &Question, now: Instant) -> Option<bool> {
        let answer = self.by_question.get(question)?;
        if answer.until > now {
            return Some(answer.allowed);
        }
        self.by_age.remove(&answer.number);
        self.by_question.remove(question);
        None
    }

    fn keep(&mut self, question: Question, allowed: bool, now: Instant) {
        let kept = if allowed { self.settings.allow_kept } else { self.settings.deny_kept };
        let number = self.next;
        self.next += 1;
        let answer = CachedAnswer { allowed, until: now + kept, number };
        if let Some(old) = self.by_question.insert(question.clone(), answer) {
            self.by_age.remove(&old.number);
        }
        self.by_age.insert(number, question);
        while self.by_age.len() > self.settings.max_answers {
            let Some((_, oldest)) = self.by_age.pop_first() else { return };
            self.by_question.remove(&oldest);
        }
    }
}

/// The calling threads, started as they are needed and kept.
struct Workers {
    jobs: Sender<Job>,
    worker: Worker,
    count: usize,
    /// Jobs handed over and not settled.
    busy: usize,
    threads: Threads,
}

impl Workers {
    /// When no further thread can be started the job waits for one that runs: there is always one.
    fn hand_over(&mut self, job: Job) {
        if self.busy >= self.count
            && self.count < BACKEND_CALLS
            && let Err(error) = self.add()
        {
            warn!("authorization backend: no thread authz-{}: {error}", self.count + 1);
        }
        self.busy += 1;
        // The receiver is held in `worker`.
        let _ = self.jobs.send(job);
    }

    fn add(&mut self) -> io::Result<()> {
        let worker = self.worker.clone();
        self.threads.spawn(format!("authz-{}", self.count + 1), move || worker.run())?;
        self.count += 1;
        Ok(())
    }
}

/// What a calling thread has.
#[derive(Clone)]
struct Worker {
    jobs: Receiver<Job>,
    report: Sender<Outcome>,
    call: Arc<Call>,
    stats: Arc<BackendStats>,
}

impl Worker {
    fn run(self) {
        for Job { question, deadline } in &self.jobs {
            let left = deadline.saturating_duration_since(Instant::now());
            let result =
                if left.is_zero() { Err(None) } else { self.call(&question, left).map_err(Some) };
            if self.report.send(Outcome { question, result }).is_err() {
                return;
            }
        }
    }

    /// A panic inside the HTTP client loses neither the question nor the thread.
    fn call(&self, question: &Question, left: Duration) -> Result<bool, CallError> {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.call)(question, left)))
            .unwrap_or(Err(CallError::Panic));
        let verdict = result.as_ref().map_or(Verdict::Failed, |&allowed| verdict(allowed));
        self.stats.count(verdict, started.elapsed());
        result
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
