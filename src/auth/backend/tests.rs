//! Verifies that equal questions share a call, and that cache are kept as long as they may be.

use super::*;

const FAR: Duration = Duration::from_secs(60);

fn question(user_id: &str) -> Question {
    Question { user_id: Id::parse(user_id).unwrap(), room: Room::parse("lobby").unwrap() }
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
    let cache = Cache::new(Settings::default());
    (Actor { cache, in_flight: HashMap::new(), workers, logged: None }, taken)
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
    assert_eq!(stats.calls().get(Verdict::Allowed), 1);
    assert_eq!(stats.calls().get(Verdict::Failed), 0);
}

#[test]
fn an_allow_is_kept_longer_than_a_deny() {
    let mut cache = Cache::new(Settings::default());
    let now = Instant::now();
    cache.keep(question("a"), true, now);
    cache.keep(question("d"), false, now);
    let just_before = Duration::from_millis(1);
    assert_eq!(cache.get(&question("d"), now + DENY_KEPT - just_before), Some(false));
    assert_eq!(cache.get(&question("d"), now + DENY_KEPT), None);
    assert_eq!(cache.get(&question("a"), now + ALLOW_KEPT - just_before), Some(true));
    assert_eq!(cache.get(&question("a"), now + ALLOW_KEPT), None);
    assert!(cache.by_question.is_empty() && cache.by_age.is_empty());
}

#[test]
fn the_oldest_answer_makes_room() {
    let mut cache = Cache::new(Settings { max_answers: 3, ..Settings::default() });
    let now = Instant::now();
    for user in ["1", "2", "3", "1", "4"] {
        cache.keep(question(user), true, now);
    }
    let mut kept = |user| cache.get(&question(user), now).is_some();
    assert_eq!(["1", "2", "3", "4"].map(&mut kept), [true, false, true, true]);
    assert_eq!((cache.by_question.len(), cache.by_age.len()), (3, 3));
}

#[test]
fn a_panic_costs_neither_the_question_nor_the_thread() {
    let threads = Threads::default();
    let call: Arc<Call> = Arc::new(|question, _| {
        assert!(question.user_id != "bad", "on purpose");
        Ok(true)
    });
    let backend = Backend::start(call, Settings::default(), &threads).unwrap();
    let room = Room::parse("lobby").unwrap();
    // More often than there are threads.
    for _ in 0..40 {
        assert_eq!(backend.ask(&Id::parse("bad").unwrap(), &room, || false), Verdict::Failed);
    }
    assert_eq!(backend.ask(&Id::parse("good").unwrap(), &room, || false), Verdict::Allowed);
    assert!(threads.failures().is_empty());
    // One after the other, they needed one calling thread.
    assert_eq!(threads.count(), 2);
    drop(backend);
    threads.wait(Instant::now() + Duration::from_secs(10), |_| true).unwrap();
}
