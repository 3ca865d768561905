//! Questions to the authorization backend. An actor caches the answers, and makes one call for equal
//! questions that come at the same time.
//!
//! ```text
//! readers ──questions──▶ authz ──jobs──▶ authz-1 … authz-32 ──HTTP──▶ backend
//!    ▲                   │   ▲                 │
//!    └────verdicts───────┘   └────outcomes─────┘
//! ```
//!
//! Only the thread `authz` touches the cache and the table of calls in flight, so no lock is needed. It
//! never blocks: the queue of jobs is unbounded, but holds at most one job for each waiting reader.

#[cfg(test)]
mod against_http;
mod call;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased, unbounded};
use log::warn;
use prometheus_client::metrics::histogram::Histogram;

use super::{Verdict, verdict};
use crate::config::{BACKEND_CALLS, BACKEND_TIMEOUT};
use crate::protocol::{Id, Room};
use crate::runtime::count::{CountBy, Kind};
use crate::runtime::threads::Threads;
use call::{CallError, Caller};

/// How long the answer "allowed" is cached.
const ALLOW_KEPT: Duration = Duration::from_secs(30);
/// How long the answer "denied" is cached: shorter, since it keeps out a user who has just been given
/// access.
const DENY_KEPT: Duration = Duration::from_secs(5);
/// Most answers in the cache.
const MAX_ANSWERS: usize = 10_000;
/// Questions that wait for the `authz` thread; when so many wait, readers block.
const QUESTION_QUEUE: usize = 256;
/// How often who waits for an answer looks whether it is still wanted.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest time between two log lines about failed calls.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// What the backend is asked. Its answer depends on nothing else, so equal questions share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) user_id: Id,
    pub(super) room: Room,
}

/// Makes one call within the given time; runs on the `authz-…` threads.
type Call = dyn Fn(&Question, Duration) -> Result<bool, CallError> + Send + Sync;

/// Times and sizes of the cache; tests use smaller ones.
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

/// Histogram bounds of the duration of a call, in seconds. A call that takes longer than the last has
/// failed.
const CALL_SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0];

impl Kind for Verdict {
    const ALL: &'static [Self] = &[Self::Allowed, Self::Denied, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// Calls to the backend since the start, for the metrics.
#[derive(Debug)]
pub struct BackendStats {
    calls: CountBy<Verdict>,
    seconds: Histogram,
}

impl Default for BackendStats {
    fn default() -> Self {
        Self { calls: CountBy::new("result"), seconds: Histogram::new(CALL_SECONDS) }
    }
}

impl BackendStats {
    /// Calls by how they ended. Questions that were answered without a call are not counted.
    pub fn calls(&self) -> &CountBy<Verdict> {
        &self.calls
    }

    /// How long calls took, in seconds.
    pub fn seconds(&self) -> &Histogram {
        &self.seconds
    }

    fn count(&self, verdict: Verdict, took: Duration) {
        self.calls.count(verdict);
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

/// A question for a calling thread, which makes no call once the deadline has passed.
struct Job {
    question: Question,
    deadline: Instant,
}

/// The result of a job; `Err(None)` when its deadline had passed before the call.
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

    /// Asks, and waits for the answer up to the timeout, or until `give_up` says so.
    pub(super) fn ask(&self, user_id: &Id, room: &Room, give_up: impl Fn() -> bool) -> Verdict {
        let deadline = Instant::now() + self.timeout;
        let (reply, answer) = bounded(1);
        let question = Question { user_id: user_id.clone(), room: room.clone() };
        let asked = Asked { question, asker: Asker { deadline, reply } };
        if self.questions.send_deadline(asked, deadline).is_err() {
            return Verdict::Failed;
        }
        loop {
            let look_again = deadline.min(Instant::now() + GIVE_UP_INTERVAL);
            match answer.recv_deadline(look_again) {
                Ok(verdict) => return verdict,
                Err(RecvTimeoutError::Timeout) if look_again < deadline && !give_up() => {}
                Err(_) => return Verdict::Failed,
            }
        }
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
            // Outcomes first: they fill the cache, and a flood of questions is then answered from it.
            select_biased! {
                recv(outcomes) -> outcome => {
                    // Never disconnected: `self.workers` holds a sender too.
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

    /// The first asker's deadline passed before a thread was free; those who asked later may still wait.
    fn ask_again(&mut self, question: Question, mut askers: Vec<Asker>, now: Instant) {
        askers.retain(|asker| asker.deadline > now);
        if let Some(deadline) = askers.iter().map(|asker| asker.deadline).min() {
            self.workers.hand_over(Job { question: question.clone(), deadline });
            self.in_flight.insert(question, askers);
        }
    }

    /// Logs at most once per [`LOG_PAUSE`]: a backend that is down must not fill the log.
    fn log(&mut self, error: &CallError, now: Instant) {
        if self.logged.is_none_or(|last| now.duration_since(last) >= LOG_PAUSE) {
            self.logged = Some(now);
            warn!("authorization backend: {error}");
        }
    }
}

/// An asker whose deadline has passed no longer waits; then the answer is dropped.
fn answer(asker: &Asker, verdict: Verdict) {
    let _ = asker.reply.try_send(verdict);
}

/// Answers by question. Each expires after its time; the oldest is dropped when there are too many.
struct Cache {
    settings: Settings,
    by_question: HashMap<Question, CachedAnswer>,
    /// Questions by the number of their answer, so the oldest comes first.
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

/// The calling threads: started when needed, then kept.
struct Workers {
    jobs: Sender<Job>,
    worker: Worker,
    count: usize,
    /// Jobs handed over and not settled.
    busy: usize,
    threads: Threads,
}

impl Workers {
    /// When no further thread can be started, the job waits for a running one; there is always at least one.
    fn hand_over(&mut self, job: Job) {
        if self.busy >= self.count
            && self.count < BACKEND_CALLS
            && let Err(error) = self.add()
        {
            warn!("authorization backend: no thread authz-{}: {error}", self.count + 1);
        }
        self.busy += 1;
        // Cannot fail: `worker` holds a receiver.
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

    /// Catches a panic inside the HTTP client, so that the question is answered and the thread lives on.
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
