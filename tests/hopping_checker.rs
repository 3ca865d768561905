//! Verifies that the checks of the hopping clients find what they are there to find: each kind of hole,
//! repetition and disorder, in records that were made wrong on purpose.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod crowd;
mod hopping;
mod support;

use std::time::{Duration, Instant};

use hopping::{Event, Follower, Instances, Published, Said, faults, position, run};
use support::Redis;

/// A client that joined at 0 and then got these.
fn followed(events: &[Event]) -> Result<Follower, String> {
    let mut follower = Follower::new(0, false);
    follower.take(Event::Asked, Instant::now()).unwrap();
    follower.take(answer("e", 0, None), Instant::now()).unwrap();
    events.iter().try_for_each(|event| follower.take(event.clone(), Instant::now()))?;
    Ok(follower)
}

fn answer(epoch: &str, seq: u64, recovered: Option<bool>) -> Event {
    Event::Answered { position: Some(position(epoch, seq)), recovered }
}

fn numbered(seq: u64, n: u64) -> Event {
    Event::Message(Some(seq), (1, n))
}

fn unnumbered(n: u64) -> Event {
    Event::Message(None, (1, n))
}

fn reset(epoch: &str, seq: u64) -> Event {
    Event::Reset(position(epoch, seq))
}

/// Acknowledged, and sent after everybody was told whatever it was told.
fn published(said: &[Said]) -> Vec<Vec<Published>> {
    let sent_at = Instant::now() + Duration::from_secs(60);
    vec![said.iter().map(|said| Published { said: *said, sent_at, is_answered: true }).collect()]
}

#[track_caller]
fn assert_refused(events: &[Event], part: &str) {
    let fault = followed(events).err().unwrap_or_else(|| panic!("taken: {events:?}"));
    assert!(fault.contains(part), "{fault}");
}

#[track_caller]
fn assert_found(followers: &[Follower], said: &[Said], part: &str) {
    let found = faults(followers, &published(said));
    assert!(found.iter().any(|fault| fault.contains(part)), "{found:?}");
}

#[test]
fn what_is_right_is_taken() {
    let events = [
        numbered(1, 1),
        Event::Asked,
        answer("e", 1, Some(true)),
        numbered(2, 2),
        unnumbered(3),
        unnumbered(4),
        reset("f", 1),
        numbered(2, 5),
        Event::Asked,
        answer("g", 7, Some(false)),
        numbered(8, 6),
    ];
    let follower = followed(&events).unwrap();
    assert_eq!((follower.recovered, follower.not_recovered, follower.resets), (1, 1, 1));
    assert_eq!(follower.unnumbered, 2);
    let mut all = published(&[(1, 6)]);
    // What came before it was told is not its business, but was said.
    let past = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    all[0].extend((1..6).map(|n| Published { said: (1, n), sent_at: past, is_answered: true }));
    assert_eq!(faults(&[follower], &all), [""; 0]);
}

#[test]
fn a_hole_and_a_repetition_are_found() {
    assert_refused(&[numbered(1, 1), numbered(3, 3)], "a hole");
    assert_refused(&[numbered(1, 1), numbered(1, 1)], "twice on one connection");
    assert_refused(&[numbered(1, 1), numbered(1, 2)], "a hole or a repetition");
    // Numbered twice, and seen over two connections.
    let events =
        [numbered(1, 1), Event::Asked, answer("e", 1, Some(true)), numbered(2, 2), numbered(3, 1)];
    assert_refused(&events, "twice since");
    // Locally, and out of the log.
    assert_refused(&[unnumbered(1), numbered(1, 1)], "twice on one connection");
    assert_refused(&[unnumbered(1), reset("f", 0), numbered(1, 1)], "twice on one connection");
}

#[test]
fn a_false_recovered_is_found() {
    let mut at_one = vec![numbered(1, 1), Event::Asked];
    at_one.push(answer("e", 2, Some(true)));
    assert_refused(&at_one, "not what was asked for");
    at_one[2] = answer("f", 1, Some(true));
    assert_refused(&at_one, "not what was asked for");
    at_one[2] = answer("e", 1, None);
    assert_refused(&at_one, "another question");
    assert_refused(&[Event::Asked, numbered(1, 1)], "before the join was answered");
}

#[test]
fn what_was_acknowledged_and_never_came_is_found() {
    let follower = followed(&[numbered(1, 1)]).unwrap();
    assert_found(&[follower], &[(1, 1), (1, 2)], "1 not seen and not told, (1, 2)");
    let follower = followed(&[numbered(1, 1), reset("f", 1)]).unwrap();
    assert_found(&[follower], &[(1, 2)], "not seen and not told");
}

#[test]
fn what_was_said_without_a_number_and_without_a_word_of_it_is_found() {
    let follower = followed(&[unnumbered(1)]).unwrap();
    assert_found(&[follower], &[(1, 1)], "1 without a number, and no word of it, (1, 1)");
    // Told of what was before, and not of this.
    let follower = followed(&[unnumbered(1), reset("f", 0), unnumbered(2)]).unwrap();
    assert_found(&[follower], &[(1, 1), (1, 2)], "1 without a number, and no word of it, (1, 2)");
    let without = Event::Answered { position: None, recovered: Some(false) };
    let follower = followed(&[Event::Asked, without]).unwrap();
    assert_found(&[follower], &[], "no position");
}

#[test]
fn two_orders_are_found() {
    let one = followed(&[numbered(1, 1), numbered(2, 2)]).unwrap();
    let other = followed(&[numbered(1, 2), numbered(2, 1)]).unwrap();
    assert_found(&[one, other], &[(1, 1), (1, 2)], "1 of e is (1, 1) and (1, 2)");
    let one = followed(&[numbered(1, 2), numbered(2, 1)]).unwrap();
    assert_found(&[one], &[(1, 1), (1, 2)], "overtaken");
    // Two clients, of which neither saw both.
    let one = followed(&[numbered(1, 1)]).unwrap();
    let other = followed(&[reset("e", 1), numbered(2, 1)]).unwrap();
    assert_found(&[one, other], &[(1, 1)], "two numbers");
    let stray = followed(&[numbered(1, 1)]).unwrap();
    assert_found(&[stray], &[], "never published");
}

/// Nothing fails, and there is nowhere else to hop to.
#[test]
fn one_instance_passes() {
    let redis = Redis::start();
    let instances = Instances::start(&[&redis.addr()], &[]);
    let totals = run(&instances, |_| {});
    assert!(totals.recovered > 20, "{totals:?}");
    assert_eq!((totals.told(), totals.unnumbered), (0, 0), "{totals:?}");
}
