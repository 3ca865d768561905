//! Questions to the authorization backend: an actor that keeps answers and lets equal questions share
//! a call.
//!
//! ```text
//! readers ──questions──▶ authz ──jobs──▶ authz-1 … authz-32 ──HTTP──▶ backend
//!    ▲                   │   ▲                 │
//!    └────verdicts───────┘   └────outcomes─────┘
//! ```
//!
//! The thread `authz` alone owns the answers and the table of calls in flight, so there is no lock. It
//! never blocks: the jobs that wait are at most one for each reader's question.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased, unbounded};
use log::warn;

use super::call::CallError;
use super::{BACKEND_TIMEOUT, Room, Threads, Verdict, verdict};
use prometheus_client::metrics::histogram::Histogram;

use crate::config::BACKEND_CALLS;

/// How long an allow is kept.
const ALLOW_KEPT: Duration = Duration::from_secs(30);
/// How long a deny is kept: shorter, as it stands in the way of someone just let in.
const DENY_KEPT: Duration = Duration::from_secs(5);
/// Most answers that are kept.
const MAX_ANSWERS: usize = 10_000;
/// Questions that wait for the `authz` thread; a full channel holds back the readers.
const QUESTION_QUEUE: usize = 256;
/// Shortest time between two log lines about failed calls.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// What the backend is asked; its answer depends on nothing else, so equal ones share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) user_id: Arc<str>,
    pub(super) room: Room,
}

/// One call, within the time that is left; runs on the `authz-…` threads.
pub(super) type Call = dyn Fn(&Question, Duration) -> Result<bool, CallError> + Send + Sync;

/// The numbers of DESIGN section 4.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) timeout: Duration,
    pub(super) allow_kept: Duration,
    pub(super) deny_kept: Duration,
    pub(super) max_answers: usize,
}

impl Default for Terms {
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
    /// Starts the actor and the first calling thread.
    pub(super) fn start(call: Arc<Call>, terms: Terms, threads: &Threads) -> io::Result<Self> {
        let (questions, asked) = bounded(QUESTION_QUEUE);
        let (jobs, taken) = unbounded();
        let (report, outcomes) = unbounded();
        let stats = Arc::new(BackendStats::default());
        let timeout = terms.timeout;
        let worker = Worker { jobs: taken, report, call, stats: Arc::clone(&stats) };
        let mut workers = Workers { jobs, worker, count: 0, busy: 0, threads: threads.clone() };
        workers.add()?;
        let answers = Answers::new(terms);
        let actor = Actor { answers, in_flight: HashMap::new(), workers, logged: None };
        threads.spawn("authz", move || actor.run(&asked, &outcomes))?;
        Ok(Self { questions, timeout, stats })
    }

    /// Asks, and waits for the answer up to the timeout.
    pub(super) fn ask(&self, user_id: &str, room: &Room) -> Verdict {
        let deadline = Instant::now() + self.timeout;
        let (reply, answer) = bounded(1);
        let question = Question { user_id: user_id.into(), room: room.clone() };
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
    answers: Answers,
    in_flight: HashMap<Question, Vec<Asker>>,
    workers: Workers,
    logged: Option<Instant>,
}

impl Actor {
    /// Ends when the last [`Backend`] is dropped; that drops `jobs`, which ends the calling threads.
    fn run(mut self, questions: &Receiver<Asked>, outcomes: &Receiver<Outcome>) {
        loop {
            // Answers first, so that a flood of questions finds them kept.
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
        if let Some(allowed) = self.answers.get(&question, Instant::now()) {
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
                self.answers.keep(question, allowed, now);
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

/// Answers by question, each until its time, the oldest dropped when there are too many.
struct Answers {
    terms: Terms,
    by_question: HashMap<Question, Answer>,
    /// Questions by the number of their answer: in the order in which they came.
    by_age: BTreeMap<u64, Question>,
    next: u64,
}

struct Answer {
    allowed: bool,
    until: Instant,
    number: u64,
}

impl Answers {
    fn new(terms: Terms) -> Self {
        Self { terms, by_question: HashMap::new(), by_age: BTreeMap::new(), next: 0 }
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
        let kept = if allowed { self.terms.allow_kept } else { self.terms.deny_kept };
        let number = self.next;
        self.next += 1;
        let answer = Answer { allowed, until: now + kept, number };
        if let Some(old) = self.by_question.insert(question.clone(), answer) {
            self.by_age.remove(&old.number);
        }
        self.by_age.insert(number, question);
        while self.by_age.len() > self.terms.max_answers {
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
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_secs(60);

    fn question(user_id: &str) -> Question {
        Question { user_id: user_id.into(), room: Room::parse("lobby").unwrap() }
    }

    /// An actor all of whose threads seem to run, so that jobs stay where the test finds them.
    fn actor() -> (Actor, Receiver<Job>) {
        let (jobs, taken) = unbounded();
        let worker = Worker {
            jobs: taken.clone(),
            report: unbounded().0,
            call: Arc::new(|_, _| Err(CallError::Junk)),
            stats: Arc::default(),
        };
        let threads = Threads::default();
        let workers = Workers { jobs, worker, count: BACKEND_CALLS, busy: 0, threads };
        let answers = Answers::new(Terms::default());
        (Actor { answers, in_flight: HashMap::new(), workers, logged: None }, taken)
    }

    fn ask(actor: &mut Actor, user_id: &str, deadline: Instant) -> Receiver<Verdict> {
        let (reply, verdict) = bounded(1);
        actor.ask(Asked { question: question(user_id), asker: Asker { deadline, reply } });
        verdict
    }

    #[test]
    fn equal_questions_share_a_call_and_later_ones_its_answer() {
        let (mut actor, jobs) = actor();
        let deadline = Instant::now() + FAR;
        let askers: Vec<_> = (0..50).map(|_| ask(&mut actor, "a", deadline)).collect();
        let other = ask(&mut actor, "b", deadline);
        assert_eq!(jobs.len(), 2);
        actor.settle(Outcome { question: question("a"), result: Ok(true) });
        assert!(askers.iter().all(|asker| asker.try_recv() == Ok(Verdict::Allowed)));
        assert!(other.try_recv().is_err());
        assert_eq!(ask(&mut actor, "a", deadline).try_recv(), Ok(Verdict::Allowed));
        assert_eq!(jobs.len(), 2);
        assert_eq!((actor.workers.busy, actor.in_flight.len()), (1, 1));
    }

    #[test]
    fn a_failure_is_told_to_all_and_not_kept() {
        let (mut actor, jobs) = actor();
        let deadline = Instant::now() + FAR;
        let (first, second) = (ask(&mut actor, "a", deadline), ask(&mut actor, "a", deadline));
        let failure = || Err(Some(CallError::Junk));
        actor.settle(Outcome { question: question("a"), result: failure() });
        assert_eq!(first.try_recv(), Ok(Verdict::Failed));
        assert_eq!(second.try_recv(), Ok(Verdict::Failed));
        assert!(ask(&mut actor, "a", deadline).try_recv().is_err());
        assert_eq!(jobs.len(), 2);
    }

    #[test]
    fn a_late_job_is_asked_again_for_those_who_have_time() {
        let (mut actor, jobs) = actor();
        let now = Instant::now();
        let early = ask(&mut actor, "a", now);
        let late = ask(&mut actor, "a", now + FAR);
        assert_eq!(jobs.try_recv().unwrap().deadline, now);
        actor.settle(Outcome { question: question("a"), result: Err(None) });
        assert_eq!(jobs.try_recv().unwrap().deadline, now + FAR);
        actor.settle(Outcome { question: question("a"), result: Ok(false) });
        assert_eq!(late.try_recv(), Ok(Verdict::Denied));
        assert!(early.try_recv().is_err());

        ask(&mut actor, "b", now);
        assert!(jobs.try_recv().is_ok());
        actor.settle(Outcome { question: question("b"), result: Err(None) });
        assert!(jobs.is_empty() && actor.in_flight.is_empty());
        assert_eq!(actor.workers.busy, 0);
    }

    #[test]
    fn a_job_whose_time_is_over_is_not_called() {
        let (jobs, taken) = unbounded();
        let (report, outcomes) = unbounded();
        let stats = Arc::new(BackendStats::default());
        let call: Arc<Call> = Arc::new(|_, _| Ok(true));
        jobs.send(Job { question: question("late"), deadline: Instant::now() }).unwrap();
        jobs.send(Job { question: question("early"), deadline: Instant::now() + FAR }).unwrap();
        drop(jobs);
        Worker { jobs: taken, report, call, stats: Arc::clone(&stats) }.run();
        assert!(matches!(outcomes.recv().unwrap().result, Err(None)));
        assert!(matches!(outcomes.recv().unwrap().result, Ok(true)));
        assert_eq!(stats.calls(Verdict::Allowed), 1);
        assert_eq!(stats.calls(Verdict::Failed), 0);
    }

    #[test]
    fn an_allow_is_kept_longer_than_a_deny() {
        let mut answers = Answers::new(Terms::default());
        let now = Instant::now();
        answers.keep(question("a"), true, now);
        answers.keep(question("d"), false, now);
        let just_before = Duration::from_millis(1);
        assert_eq!(answers.get(&question("d"), now + DENY_KEPT - just_before), Some(false));
        assert_eq!(answers.get(&question("d"), now + DENY_KEPT), None);
        assert_eq!(answers.get(&question("a"), now + ALLOW_KEPT - just_before), Some(true));
        assert_eq!(answers.get(&question("a"), now + ALLOW_KEPT), None);
        assert!(answers.by_question.is_empty() && answers.by_age.is_empty());
    }

    #[test]
    fn the_oldest_answer_makes_room() {
        let mut answers = Answers::new(Terms { max_answers: 3, ..Terms::default() });
        let now = Instant::now();
        for user in ["1", "2", "3", "1", "4"] {
            answers.keep(question(user), true, now);
        }
        let mut kept = |user| answers.get(&question(user), now).is_some();
        assert_eq!(["1", "2", "3", "4"].map(&mut kept), [true, false, true, true]);
        assert_eq!((answers.by_question.len(), answers.by_age.len()), (3, 3));
    }

    #[test]
    fn a_panic_costs_neither_the_question_nor_the_thread() {
        let threads = Threads::default();
        let call: Arc<Call> = Arc::new(|question, _| {
            assert!(&*question.user_id != "bad", "on purpose");
            Ok(true)
        });
        let backend = Backend::start(call, Terms::default(), &threads).unwrap();
        let room = Room::parse("lobby").unwrap();
        // More often than there are threads.
        for _ in 0..40 {
            assert_eq!(backend.ask("bad", &room), Verdict::Failed);
        }
        assert_eq!(backend.ask("good", &room), Verdict::Allowed);
        assert!(threads.failures().is_empty());
        // One after the other, they needed one calling thread.
        assert_eq!(threads.count(), 2);
        drop(backend);
        threads.wait(Instant::now() + Duration::from_secs(10), |_| true).unwrap();
    }
}
