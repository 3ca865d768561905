//! Verifies the logs against a plain model: what is kept, what goes first, and who is told what.

use super::*;
use crate::protocol::{Id, Room, frame_payload};
use proptest::prelude::*;

fn history(limits: Limits) -> History {
    of(Numbers::Hub, limits)
}

fn of(numbers: Numbers, limits: Limits) -> History {
    let mut history = History::new(&Config::new("secret"), numbers);
    history.limits = limits;
    history
}

fn limits() -> Limits {
    Limits { messages: 5, ttl: Duration::from_secs(10), bytes: usize::MAX, vacant_logs: 3 }
}

fn target(n: usize) -> Target {
    match n % 2 {
        0 => Target::Room(Room::parse(&format!("room-{n}")).unwrap()),
        _ => Target::User(Id::parse(&n.to_string()).unwrap()),
    }
}

fn draft(text: &str) -> Draft {
    Draft::object(&[format!("\"text\":\"{text}\"}}").as_bytes()])
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000 + 1000 * seconds)
}

impl History {
    fn say(&mut self, n: usize, text: &str, now: Moment) -> String {
        let key = self.open(&target(n), true, now).unwrap();
        payload(&self.append(key, draft(text), now).frame)
    }

    fn position_of(&mut self, n: usize, now: Moment) -> Position {
        let key = self.open(&target(n), true, now).unwrap();
        self.position(key).unwrap()
    }

    /// What a client with this position gets.
    fn missed(
        &mut self,
        n: usize,
        since: &Position,
        now: Moment,
    ) -> Result<Vec<String>, NotRecovered> {
        let key = self.open(&target(n), true, now).unwrap();
        self.recover(key, since, now)?;
        Ok(self.read(key, since.seq + 1).unwrap().map(payload).collect())
    }
}

fn payload(frame: &Bytes) -> String {
    String::from_utf8(frame_payload(frame).to_vec()).unwrap()
}

#[test]
fn messages_are_numbered_for_rooms_and_users_and_those_since_a_position_are_kept() {
    let mut history = history(limits());
    let start = history.position_of(0, at(0));
    assert_eq!(start.seq, 0);
    assert_eq!(history.say(0, "a", at(0)), r#"{"seq":1,"text":"a"}"#);
    assert_eq!(history.say(1, "b", at(0)), r#"{"user_seq":1,"text":"b"}"#);
    assert_eq!(history.say(0, "c", at(1)), r#"{"seq":2,"text":"c"}"#);
    let all = [r#"{"seq":1,"text":"a"}"#, r#"{"seq":2,"text":"c"}"#];
    assert_eq!(history.missed(0, &start, at(1)).unwrap(), all);
    let now = history.position_of(0, at(1));
    assert_eq!(now, Position { seq: 2, ..start.clone() });
    assert!(history.missed(0, &now, at(1)).unwrap().is_empty());
    let future = Position { seq: 3, ..start };
    assert_eq!(history.missed(0, &future, at(1)), Err(NotRecovered::Future));
    let forged = Position { epoch: "forged".into(), seq: 1 };
    assert_eq!(history.missed(0, &forged, at(1)), Err(NotRecovered::OtherEpoch));
    let counts = history.counts();
    assert_eq!((counts.recovered, counts.logs), (2, 2));
    assert_eq!(
        counts.not_recovered.into_iter().collect::<Vec<_>>(),
        [("future", 1), ("other_epoch", 1)]
    );
}

#[test]
fn only_rooms_and_users_have_logs_and_nobody_when_it_is_off() {
    let mut history = history(limits());
    for target in [Target::Everyone, Target::Admins, Target::Seller(Id::parse("5").unwrap())] {
        assert_eq!(history.open(&target, true, at(0)), None);
    }
    history.limits.messages = 0;
    assert_eq!(history.open(&target(0), true, at(0)), None);
    assert_eq!(history.counts().logs, 0);
}

#[test]
fn the_number_outlives_the_messages_and_goes_a_day_after_the_last_use() {
    let mut history = history(limits());
    let start = history.position_of(0, at(0));
    history.say(0, "a", at(0));
    let last = history.position_of(0, at(0));
    history.vacate(&target(0), at(5));
    history.forget_old(at(11));
    assert_eq!(history.counts().bytes, 0);
    assert_eq!(history.missed(0, &start, at(11)), Err(NotRecovered::TooOld));
    assert!(history.missed(0, &last, at(11)).unwrap().is_empty());
    // In use again: it does not age.
    history.forget_old(at(3 * 86_400));
    assert!(history.missed(0, &last, at(3 * 86_400)).unwrap().is_empty());
    history.vacate(&target(0), at(3 * 86_400));
    history.forget_old(at(4 * 86_400 + 1));
    assert_eq!(history.counts().logs, 0);
    assert_eq!(history.missed(0, &last, at(4 * 86_400 + 1)), Err(NotRecovered::OtherEpoch));
}

#[test]
fn what_a_replay_reads_does_not_go_for_its_age_but_for_everything_else() {
    let mut history = history(limits());
    let start = history.position_of(0, at(0));
    history.say(0, "a", at(0));
    let key = history.open(&target(0), true, at(0)).unwrap();
    history.begin_reading(key);
    history.forget_old(at(100));
    history.say(0, "b", at(100));
    assert_eq!(history.read(key, 1).unwrap().count(), 2);
    // Others get nothing that is over its time.
    assert_eq!(history.missed(0, &start, at(100)), Err(NotRecovered::TooOld));
    let second = Position { seq: 1, ..start.clone() };
    assert_eq!(history.missed(0, &second, at(100)).unwrap().len(), 1);
    (0..5).for_each(|_| _ = history.say(0, "c", at(100)));
    assert!(history.read(key, 1).is_none() && history.read(key, 3).is_some());
    history.end_reading(key);
    history.forget_old(at(200));
    assert!(history.read(key, 7).is_none());
    assert_eq!(history.missed(0, &start, at(200)), Err(NotRecovered::TooOld));
}

#[test]
fn a_copy_is_stale_until_it_is_known_to_be_the_end() {
    let mut history = of(Numbers::Broker, limits());
    let position = |epoch: &str, seq| Position { epoch: epoch.into(), seq };
    let key = history.open(&target(0), true, at(0)).unwrap();
    assert!(history.position(key).is_none() && !history.answers(key, None));
    assert_eq!(history.place(key, &position("a", 7)), Place::Next);
    assert!(!history.adopt(key, &position("a", 6)));
    history.freshen(key, at(0));
    history.keep(key, Bytes::from("7"), at(0));
    assert!(history.answers(key, None) && history.next_stale(at(0)).is_none());
    // What came before is only the broker's.
    assert!(history.answers(key, Some(&position("a", 6))));
    assert!(!history.answers(key, Some(&position("a", 5))));
    assert!(history.answers(key, Some(&position("b", 5))));
    let all = (5..8).map(|n: u32| (Bytes::from(n.to_string()), at(0))).collect();
    history.fill(key, all, at(0));
    assert!(history.answers(key, Some(&position("a", 1))));
    assert_eq!(history.read(key, 5).unwrap().count(), 3);
    for (epoch, seq, place) in [
        ("a", 7, Place::Before),
        ("a", 8, Place::Next),
        ("a", 9, Place::Ahead),
        ("b", 8, Place::OtherEpoch),
    ] {
        assert_eq!(history.place(key, &position(epoch, seq)), place);
    }
    // It has the broker remember its number before that is forgotten.
    assert!(history.next_stale(at(1800)).is_none());
    assert_eq!(history.next_stale(at(1801)), Some(key));
    history.break_off();
    assert!(!history.answers(key, None) && history.next_stale(at(0)) == Some(key));
    history.freshen(key, at(0));
    history.doubt(key);
    assert!(!history.answers(key, None) && history.next_stale(at(0)).is_none());
    history.ask_again(key);
    assert_eq!(history.next_stale(at(0)), Some(key));
    assert!(!history.forget_vacant(key));
    history.vacate(&target(0), at(0));
    assert!(history.forget_vacant(key) && history.next_stale(at(0)).is_none());
}

#[test]
fn who_was_answered_without_a_position_is_told_when_there_is_one() {
    let mut history = of(Numbers::Broker, limits());
    let position = Position { epoch: "a".into(), seq: 7 };
    let key = history.open(&target(0), true, at(0)).unwrap();
    history.owe_position(key);
    assert_eq!(history.place(key, &position), Place::OtherEpoch);
    assert!(history.adopt(key, &position));
    assert_eq!(history.missed(0, &position, at(0)).unwrap().len(), 0);
    let other = Position { epoch: "b".into(), seq: 1 };
    assert!(history.adopt(key, &other));
}

/// One log of the model, with all that was ever said in it.
#[derive(Debug, Clone)]
struct Plain {
    epoch: usize,
    said: Vec<(String, u64)>,
    /// How many of them are gone.
    gone: usize,
    is_vacant: bool,
}

/// What [`History`] is to do, said plainly: everything is looked at each time.
#[derive(Debug, Default)]
struct Model {
    logs: BTreeMap<usize, Plain>,
    /// Logs in the order of their last message, and of their last use.
    spoken: Vec<usize>,
    used: Vec<usize>,
    epochs: usize,
}

impl Model {
    fn open(&mut self, n: usize) -> &mut Plain {
        let epochs = &mut self.epochs;
        self.logs.entry(n).or_insert_with(|| {
            *epochs += 1;
            Plain { epoch: *epochs, said: Vec::new(), gone: 0, is_vacant: false }
        })
    }

    fn vacate(&mut self, n: usize, limits: Limits) {
        let Some(log) = self.logs.get_mut(&n) else { return };
        log.is_vacant = true;
        last(&mut self.used, n);
        let vacant: Vec<_> = self.used.iter().copied().filter(|n| self.logs[n].is_vacant).collect();
        if vacant.len() > limits.vacant_logs {
            self.logs.remove(&vacant[0]);
            self.used.retain(|n| *n != vacant[0]);
        }
    }

    fn say(&mut self, n: usize, message: String, now: u64, limits: Limits) {
        let log = self.open(n);
        log.said.push((message, now));
        log.gone = log.gone.max(log.said.len().saturating_sub(limits.messages));
        log.expire(now, limits);
        last(&mut self.spoken, n);
        while self.bytes() > limits.bytes {
            let mut silent = self.spoken.iter().copied();
            let first = silent.find(|n| self.logs.get(n).is_some_and(Plain::has_any));
            let log = self.logs.get_mut(&first.unwrap()).unwrap();
            log.gone = if first == Some(n) { log.gone + 1 } else { log.said.len() };
        }
    }

    fn bytes(&self) -> usize {
        let frame = |text: &String| text.len() + if text.len() < 126 { 2 } else { 4 };
        let kept = self.logs.values().flat_map(|log| &log.said[log.gone..]);
        kept.map(|(text, _)| frame(text) + MESSAGE_BYTES).sum()
    }
}

impl Plain {
    fn has_any(&self) -> bool {
        self.gone < self.said.len()
    }

    fn expire(&mut self, now: u64, limits: Limits) {
        let old = |(_, at): &&(String, u64)| now - at > limits.ttl.as_secs();
        self.gone = self.gone.max(self.said.iter().take_while(old).count());
    }
}

fn last(order: &mut Vec<usize>, n: usize) {
    order.retain(|other| *other != n);
    order.push(n);
}

#[derive(Debug, Clone)]
enum Step {
    Say(usize, usize),
    /// Ask for a position, to come back with later.
    Ask(usize),
    Recover(usize),
    Vacate(usize),
    Wait(u64),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..6_usize, 0..300_usize).prop_map(|(n, bytes)| Step::Say(n, bytes)),
        3 => (0..6_usize).prop_map(Step::Ask),
        4 => (0..64_usize).prop_map(Step::Recover),
        3 => (0..6_usize).prop_map(Step::Vacate),
        2 => (0..8_u64).prop_map(Step::Wait),
        1 => Just(Step::Tick),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    /// Whoever comes back gets exactly what was said since, or is told that it cannot; what is kept, and
    /// what goes first, is as in the model.
    #[test]
    fn logs_are_those_of_a_plain_model(steps in steps(), bytes in 500..4000_usize) {
        let limits = Limits { bytes, ..limits() };
        let (mut history, mut model) = (history(limits), Model::default());
        let mut asked: Vec<(usize, usize, Position)> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Say(n, length) => {
                    let text = history.say(n, &"x".repeat(length), at(now));
                    model.open(n).is_vacant = false;
                    model.say(n, text, now, limits);
                }
                Step::Ask(n) => {
                    model.open(n).is_vacant = false;
                    let position = history.position_of(n, at(now));
                    prop_assert_eq!(position.seq, model.open(n).said.len() as u64);
                    asked.push((n, model.open(n).epoch, position));
                }
                Step::Recover(which) => {
                    let Some((n, epoch, since)) = asked.get(which % asked.len().max(1)) else {
                        continue;
                    };
                    let log = model.open(*n);
                    log.is_vacant = false;
                    log.expire(now, limits);
                    let seq = since.seq as usize;
                    let expected = if log.epoch != *epoch {
                        Err(NotRecovered::OtherEpoch)
                    } else if seq < log.gone {
                        Err(NotRecovered::TooOld)
                    } else {
                        Ok(log.said[seq..].iter().map(|(text, _)| text.clone()).collect())
                    };
                    prop_assert_eq!(history.missed(*n, since, at(now)), expected);
                }
                Step::Vacate(n) => {
                    history.vacate(&target(n), at(now));
                    model.vacate(n, limits);
                }
                Step::Wait(seconds) => now += seconds,
                Step::Tick => {
                    history.forget_old(at(now));
                    for log in model.logs.values_mut() {
                        // A log goes as a whole here, when its last message is too old.
                        if log.said.last().is_some_and(|(_, at)| now - at > limits.ttl.as_secs()) {
                            log.gone = log.said.len();
                        }
                    }
                }
            }
            let counts = history.counts();
            prop_assert_eq!(counts.logs, model.logs.len() as u64);
            prop_assert_eq!(counts.bytes, model.bytes() as u64);
            prop_assert!(history.bytes <= bytes);
        }
    }
}
