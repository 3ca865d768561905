//! Verifies that a client that was away gets exactly what it missed, in order, or is told that it cannot:
//! positions, `since`, `resume`, `recovered`, and what old clients see of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Backend, Client, Frame, Redis, Service, frame, until};

/// Joins with an `id`, and returns the payload of the answer.
fn join(client: &mut Client, room: &str, since: Option<&Value>) -> Value {
    ask(client, json!({"type": "join", "id": 1, "payload": {"room": room}}), since, "joined")
}

/// Resumes with an `id`, and returns the payload of the answer.
fn resume(client: &mut Client, since: Option<&Value>) -> Value {
    ask(client, json!({"type": "resume", "id": 2, "payload": {}}), since, "resumed")
}

fn ask(client: &mut Client, mut message: Value, since: Option<&Value>, kind: &str) -> Value {
    if let Some(since) = since {
        message["payload"]["since"] = since.clone();
    }
    client.send_json(&message);
    let mut answer = client.json();
    assert_eq!((&answer["type"], &answer["id"]), (&json!(kind), &message["id"]), "{answer}");
    answer["payload"].take()
}

/// `epoch` and `seq` of an answer, to come back with.
fn position(payload: &Value) -> Value {
    json!({"epoch": payload["epoch"], "seq": payload["seq"]})
}

fn at(epoch: &Value, seq: u64) -> Value {
    json!({"epoch": epoch["epoch"], "seq": seq})
}

fn to_room(room: &str, data: impl Into<Value>) -> Value {
    json!({"event": "e", "room": room, "data": data.into()})
}

fn to_user(user: &str, data: impl Into<Value>) -> Value {
    json!({"event": "e", "user_id": user, "data": data.into()})
}

/// Notifies, `0..count` one by one in batches.
fn stream(service: &Service, count: usize, notification: impl Fn(usize) -> Value) {
    let numbers: Vec<_> = (0..count).collect();
    for part in numbers.chunks(100) {
        let batch: Value = part.iter().map(|n| notification(*n)).collect();
        assert_eq!(service.notify(&batch).status, 200);
    }
}

/// The next frames, as the number and the data of each.
fn next(client: &mut Client, count: usize) -> Vec<(u64, Value)> {
    (0..count)
        .map(|_| {
            let mut frame = client.json();
            let seq = frame["seq"].as_u64().or(frame["user_seq"].as_u64());
            (seq.unwrap_or_else(|| panic!("no number: {frame}")), frame["data"].take())
        })
        .collect()
}

fn numbered(range: std::ops::Range<u64>) -> Vec<(u64, Value)> {
    range.map(|n| (n + 1, json!(n))).collect()
}

#[test]
fn a_frame_begins_with_its_number_and_is_else_as_it_was() {
    let service = Service::start();
    let mut client = service.client("7", "");
    let start = join(&mut client, "lobby", None);
    assert_eq!((&start["room"], &start["seq"]), (&json!("lobby"), &json!(0)));
    assert!(start["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()));
    assert_eq!(start.as_object().unwrap().len(), 3, "{start}");
    service.notify(&to_room("lobby", 1));
    assert_eq!(client.text(), r#"{"seq":1,"event":"e","data":1,"to":"lobby"}"#);
    client.broadcast("lobby", &json!("hi"));
    let frame = client.text();
    assert!(frame.starts_with(r#"{"seq":2,"from":""#) && frame.ends_with(r#","body":"hi"}"#));
    service.notify(&to_user("7", 1));
    assert_eq!(client.text(), r#"{"user_seq":1,"event":"e","data":1,"to":"7"}"#);
    service.notify(&json!({"event": "e", "broadcast": true}));
    assert_eq!(client.text(), r#"{"event":"e","data":null,"to":"broadcast"}"#);
    // Counted on without a gap, whether anybody was there or not.
    client.send_json(&json!({"type": "leave", "id": 1, "payload": {"room": "lobby"}}));
    client.json();
    service.notify(&to_room("lobby", 2));
    assert_eq!(
        join(&mut client, "lobby", None),
        json!({"room": "lobby", "epoch": start["epoch"], "seq": 3})
    );
}

#[test]
fn who_was_away_gets_what_it_missed_then_what_is_new() {
    let service = Service::start();
    let mut client = service.client("7", "");
    let start = join(&mut client, "lobby", None);
    stream(&service, 3, |n| to_room("lobby", n));
    assert_eq!(next(&mut client, 3), numbered(0..3));
    drop(client);
    stream(&service, 40, |n| to_room("lobby", n + 3));
    let mut client = service.client("7", "");
    let since = at(&start, 3);
    let answer = join(&mut client, "lobby", Some(&since));
    assert_eq!(
        answer,
        json!({"room": "lobby", "epoch": start["epoch"], "seq": 3, "recovered": true})
    );
    assert_eq!(next(&mut client, 40), numbered(3..43));
    stream(&service, 1, |_| to_room("lobby", 43));
    assert_eq!(next(&mut client, 1), numbered(43..44));
    // Who missed nothing gets nothing; one that is a member already is answered like any other.
    let answer = join(&mut client, "lobby", Some(&at(&start, 44)));
    assert_eq!(answer["recovered"], true);
    client.assert_quiet();
    let answer = join(&mut client, "lobby", Some(&at(&start, 42)));
    assert_eq!((&answer["recovered"], &answer["seq"]), (&json!(true), &json!(42)));
    assert_eq!(next(&mut client, 2), numbered(42..44));
    client.assert_quiet();
    assert_eq!(service.metric("realtime_recovered_total"), 3.0);
    assert_eq!(service.metric("realtime_replayed_frames_total"), 42.0);
}

/// Each client has read another number of messages of several publishers when its socket ends, also within a
/// frame. (Sockets that end while the service is sending: `recovery_random`.)
#[test]
fn a_kill_at_every_point_of_a_stream_loses_and_repeats_nothing() {
    const MESSAGES: usize = 60;
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let mut clients: Vec<_> = (0..=MESSAGES).map(|n| service.client(&n.to_string(), "")).collect();
    let starts: Vec<_> = clients.iter_mut().map(|client| join(client, "lobby", None)).collect();
    std::thread::scope(|scope| {
        for publisher in 0..3 {
            let service = &service;
            scope.spawn(move || {
                let mut client = service.client("publisher", "");
                for n in 0..MESSAGES / 3 {
                    if publisher == 0 {
                        service.notify(&to_room("lobby", n));
                    } else {
                        client.broadcast("lobby", &json!([publisher, n]));
                    }
                }
                client.assert_quiet();
            });
        }
    });
    // What the room's log is: that of the last client, who stays to the end.
    let frame = |client: &mut Client| {
        let text = client.text();
        let seq = serde_json::from_str::<Value>(&text).unwrap()["seq"].as_u64().unwrap();
        (seq, text)
    };
    let mut whole = clients.pop().unwrap();
    let log: Vec<_> = (0..MESSAGES).map(|_| frame(&mut whole)).collect();
    assert!(log.iter().map(|(seq, _)| *seq).eq(1..=MESSAGES as u64));
    for (point, mut client) in clients.into_iter().enumerate() {
        let mut seen: Vec<_> = (0..point).map(|_| frame(&mut client)).collect();
        match point % 3 {
            0 => drop(client),
            1 => client.end_sending(),
            _ => client.send_bytes(&[0x81, 0xff]),
        }
        let mut client = service.client("7", "");
        let answer = join(&mut client, "lobby", Some(&at(&starts[point], point as u64)));
        assert_eq!(answer["recovered"], true, "{answer}");
        seen.extend((point..MESSAGES).map(|_| frame(&mut client)));
        client.assert_quiet();
        assert_eq!(seen, log, "killed at {point}");
    }
}

/// Nothing of the past comes, the answer has the position of now, and what is said next follows it.
fn assert_not_recovered(service: &Service, since: &Value, seq: u64, reason: &str) {
    let name = format!("realtime_not_recovered_total{{reason=\"{reason}\"}}");
    let before = service.metric("realtime_recovered_total");
    let mut client = service.client("back", "");
    let answer = join(&mut client, "lobby", Some(since));
    assert_eq!((&answer["recovered"], &answer["seq"]), (&json!(false), &json!(seq)), "{answer}");
    client.assert_quiet();
    service.notify(&to_room("lobby", "next"));
    assert_eq!(next(&mut client, 1), [(seq + 1, json!("next"))]);
    assert!(service.metric(&name) >= 1.0);
    assert_eq!(service.metric("realtime_recovered_total"), before);
    // The position of the answer is good.
    let answer = join(&mut client, "lobby", Some(&position(&answer)));
    assert_eq!(answer["recovered"], true);
    assert_eq!(next(&mut client, 1), [(seq + 1, json!("next"))]);
}

#[test]
fn who_missed_more_than_is_kept_is_told_so() {
    let service = Service::with(&[("HISTORY_MESSAGES", "10")]);
    let start = join(&mut service.client("7", ""), "lobby", None);
    stream(&service, 11, |n| to_room("lobby", n));
    assert_not_recovered(&service, &start, 11, "too_old");
    // Now ten are missed at most: all or nothing.
    let mut client = service.client("7", "");
    assert_eq!(join(&mut client, "lobby", Some(&at(&start, 1)))["recovered"], false);
    assert_eq!(join(&mut client, "lobby", Some(&at(&start, 2)))["recovered"], true);
    assert_eq!(next(&mut client, 10).first().unwrap(), &(3, json!(2)));
}

#[test]
fn who_was_away_for_too_long_is_told_so_unless_it_missed_nothing() {
    let service = Service::with(&[("HISTORY_TTL", "2s")]);
    let mut client = service.client("7", "");
    let start = join(&mut client, "lobby", None);
    stream(&service, 5, |n| to_room("lobby", n));
    drop(client);
    assert!(service.metric("realtime_history_bytes") > 0.0);
    until("the messages go", || service.metric("realtime_history_bytes") == 0.0);
    let mut client = service.client("7", "");
    assert_eq!(join(&mut client, "lobby", Some(&at(&start, 5)))["recovered"], true);
    client.assert_quiet();
    drop(client);
    assert_not_recovered(&service, &at(&start, 4), 5, "too_old");
}

#[test]
fn the_room_that_was_silent_for_longest_loses_its_messages_first_but_not_its_numbers() {
    let service = Service::with(&[("HISTORY_BYTES", "64KiB"), ("MAX_ROOMS_PER_CLIENT", "1000")]);
    let mut client = service.client("7", "");
    let lobby = join(&mut client, "lobby", None);
    let late = join(&mut client, "late", None);
    let text = "x".repeat(4000);
    stream(&service, 3, |n| to_room("lobby", n));
    stream(&service, 3, |n| to_room("late", n));
    drop(client);
    // Fits beside what both have, then does not.
    stream(&service, 14, |n| to_room(&format!("r{n}"), text.as_str()));
    let mut client = service.client("8", "");
    assert_eq!(join(&mut client, "lobby", Some(&lobby))["recovered"], true);
    next(&mut client, 3);
    stream(&service, 1, |_| to_room("late", 3));
    stream(&service, 2, |_| to_room("more", text.as_str()));
    assert!(service.metric("realtime_history_bytes") <= 65_536.0);
    assert!(service.metric("realtime_history_evicted_messages_total") >= 3.0);
    assert_eq!(join(&mut client, "late", Some(&late))["recovered"], true);
    assert_eq!(next(&mut client, 4), numbered(0..4));
    drop(client);
    assert_not_recovered(&service, &at(&lobby, 2), 3, "too_old");
    // One that alone is over the limit loses its oldest messages only.
    let mut client = service.client("9", "");
    let huge = join(&mut client, "huge", None);
    stream(&service, 20, |_| to_room("huge", text.as_str()));
    next(&mut client, 20);
    assert_eq!(join(&mut client, "huge", Some(&huge))["recovered"], false);
    assert_eq!(join(&mut client, "huge", Some(&at(&huge, 10)))["recovered"], true);
    next(&mut client, 10);
}

#[test]
fn a_restart_begins_a_new_epoch_and_nobody_is_told_recovered_falsely() {
    let service = Service::start();
    let mut client = service.client("7", "");
    let lobby = join(&mut client, "lobby", None);
    let own = resume(&mut client, None);
    stream(&service, 3, |n| to_room("lobby", n));
    drop(service);
    let service = Service::start();
    stream(&service, 3, |n| to_room("lobby", n));
    assert_not_recovered(&service, &at(&lobby, 3), 3, "other_epoch");
    let answer = resume(&mut service.client("7", ""), Some(&own));
    assert_eq!((&answer["recovered"], &answer["seq"]), (&json!(false), &json!(0)));
}

#[test]
fn positions_that_never_were_do_not_recover() {
    let service = Service::start();
    let start = join(&mut service.client("7", ""), "lobby", None);
    stream(&service, 3, |n| to_room("lobby", n));
    assert_not_recovered(&service, &at(&start, 4), 3, "future");
    assert_not_recovered(&service, &at(&start, u64::MAX), 4, "future");
    assert_not_recovered(&service, &json!({"epoch": "forged", "seq": 1}), 5, "other_epoch");
}

#[test]
fn a_since_of_a_wrong_form_is_refused_and_joins_nothing() {
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let mut client = service.client("7", "");
    let epoch = join(&mut client, "other", None)["epoch"].clone();
    for since in [
        json!(5),
        json!([]),
        json!({}),
        json!("x"),
        json!({"epoch": epoch}),
        json!({"epoch": epoch, "seq": -1}),
        json!({"epoch": epoch, "seq": 1.5}),
        json!({"epoch": epoch, "seq": "1"}),
        json!({"epoch": 7, "seq": 1}),
        json!({"epoch": "", "seq": 1}),
        json!({"epoch": "x".repeat(65), "seq": 1}),
    ] {
        let payload = json!({"room": "lobby", "since": since});
        for (kind, payload) in [("join", &payload), ("resume", &payload)] {
            client.send_json(&json!({"type": kind, "id": "i", "payload": payload}));
            let answer = client.json();
            assert_eq!(answer["id"], "i");
            assert_eq!(answer["payload"]["code"], "invalid_since", "{kind} {since}: {answer}");
        }
    }
    service.notify(&to_room("lobby", "unheard"));
    client.assert_quiet();
}

#[test]
fn only_who_may_join_gets_the_past_of_a_room() {
    let allowed = Arc::new(AtomicBool::new(true));
    let decision = Arc::clone(&allowed);
    let backend = Backend::deciding(move |_| decision.load(SeqCst));
    for service in [Service::start(), backend.service()] {
        allowed.store(true, SeqCst);
        let mut owner = service.client("7", "");
        let start = join(&mut owner, "order-7", None);
        stream(&service, 3, |n| to_room("order-7", n));
        allowed.store(false, SeqCst);
        let mut stranger = service.client("8", "");
        let since = json!({"room": "order-7", "since": position(&start)});
        stranger.send_json(&json!({"type": "join", "id": 1, "payload": since}));
        assert_eq!(stranger.json()["payload"]["code"], "not_authorized");
        service.notify(&to_room("order-7", 3));
        stranger.assert_quiet();
        assert_eq!(next(&mut owner, 4), numbered(0..4));
    }
}

#[test]
fn without_history_everything_is_as_if_there_were_none() {
    let service = Service::with(&[("HISTORY_MESSAGES", "0")]);
    let mut client = service.client("7", "");
    client.send(r#"{"type":"join","id":1,"payload":{"room":"lobby"}}"#);
    assert_eq!(client.text(), r#"{"type":"joined","id":1,"payload":{"room":"lobby"}}"#);
    client
        .send(r#"{"type":"join","id":1,"payload":{"room":"lobby","since":{"epoch":"e","seq":0}}}"#);
    assert_eq!(
        client.text(),
        r#"{"type":"joined","id":1,"payload":{"room":"lobby","recovered":false}}"#
    );
    client.send(r#"{"type":"resume","id":1,"payload":{}}"#);
    assert_eq!(client.text(), r#"{"type":"resumed","id":1,"payload":{"recovered":false}}"#);
    service.notify(&to_room("lobby", 1));
    service.notify(&to_user("7", 2));
    assert_eq!(client.text(), r#"{"event":"e","data":1,"to":"lobby"}"#);
    assert_eq!(client.text(), r#"{"event":"e","data":2,"to":"7"}"#);
    client.broadcast("lobby", &json!(3));
    assert!(client.text().starts_with(r#"{"from":""#));
    assert_eq!(service.metric("realtime_history_logs"), 0.0);
    assert_eq!(service.metric(r#"realtime_not_recovered_total{reason="off"}"#), 2.0);
}

#[test]
fn without_an_id_the_answer_is_the_plain_text_and_since_is_ignored() {
    let service = Service::start();
    let start = join(&mut service.client("7", ""), "lobby", None);
    stream(&service, 3, |n| to_room("lobby", n));
    let mut client = service.client("7", "");
    let since = position(&start);
    client.send_json(&json!({"type": "join", "payload": {"room": "lobby", "since": since}}));
    assert_eq!(client.text(), "joined lobby");
    client.send(r#"{"type":"join","payload":{"room":"lobby","since":"wrong"}}"#);
    assert_eq!(client.text(), "joined lobby");
    client.assert_quiet();
    // A resume is new: it has an answer in JSON, with or without an id.
    client.send(r#"{"type":"resume"}"#);
    let answer = client.json();
    assert_eq!((&answer["type"], &answer["payload"]["seq"]), (&json!("resumed"), &json!(0)));
    assert!(answer.get("id").is_none());
}

#[test]
fn each_connection_of_a_user_resumes_by_itself() {
    let service = Service::start();
    // Said before the user ever came: kept for when it does.
    stream(&service, 2, |n| to_user("7", n));
    let (mut phone, mut desk) = (service.client("7", ""), service.client("7", ""));
    let start = resume(&mut phone, None);
    assert_eq!(start["seq"], 2);
    assert!(start.get("recovered").is_none() && start.get("room").is_none(), "{start}");
    assert_eq!(resume(&mut desk, Some(&at(&start, 0)))["recovered"], true);
    assert_eq!(next(&mut desk, 2), numbered(0..2));
    stream(&service, 3, |n| to_user("7", n + 2));
    assert_eq!(next(&mut phone, 3), numbered(2..5));
    assert_eq!(next(&mut desk, 3), numbered(2..5));
    drop(phone);
    stream(&service, 3, |n| to_user("7", n + 5));
    let mut phone = service.client("7", "");
    let answer = resume(&mut phone, Some(&at(&start, 5)));
    assert_eq!((&answer["recovered"], &answer["seq"]), (&json!(true), &json!(5)));
    assert_eq!(next(&mut phone, 3), numbered(5..8));
    assert_eq!(next(&mut desk, 3), numbered(5..8));
    // Another user has a log of its own.
    let other = resume(&mut service.client("8", ""), Some(&at(&start, 5)));
    assert_eq!((&other["recovered"], &other["seq"]), (&json!(false), &json!(0)));
}

/// Reads up to the answer to a leave; returns the numbers that came before it.
fn leave(client: &mut Client, room: &str) -> Vec<u64> {
    client.send_json(&json!({"type": "leave", "id": "l", "payload": {"room": room}}));
    let mut numbers = Vec::new();
    loop {
        let frame = client.json();
        if frame["type"] == "left" {
            return numbers;
        }
        numbers.push(frame["seq"].as_u64().unwrap());
    }
}

#[test]
fn a_room_that_is_left_during_its_replay_gives_no_more_of_it_and_can_be_joined_again() {
    let service = Service::with(&[("RATE_LIMIT", "0"), ("HISTORY_MESSAGES", "400")]);
    let start = join(&mut service.client("7", ""), "lobby", None);
    let text = "x".repeat(8000);
    stream(&service, 300, |_| to_room("lobby", text.as_str()));
    let mut client = service.narrow_client("7");
    assert_eq!(join(&mut client, "lobby", Some(&start))["recovered"], true);
    let mut seen = vec![client.json()["seq"].as_u64().unwrap()];
    seen.extend(leave(&mut client, "lobby"));
    let last = *seen.last().unwrap();
    assert!(seen.iter().copied().eq(1..=last) && last < 300, "{last}");
    service.notify(&to_room("lobby", "unheard"));
    client.assert_quiet();
    // Join, leave, join at once: each answer stands, and the last join counts.
    let since = json!({"room": "lobby", "since": at(&start, last)});
    let room = json!({"room": "lobby"});
    for (id, kind, payload) in [(1, "join", &since), (2, "leave", &room), (3, "join", &since)] {
        client.send_json(&json!({"type": kind, "id": id, "payload": payload}));
    }
    let mut seen = vec![];
    let mut kinds = vec![];
    while seen.last() != Some(&301) {
        let frame = client.json();
        match frame["type"].as_str() {
            Some(kind) => {
                kinds.push(kind.to_owned());
                seen.clear();
            }
            None => seen.push(frame["seq"].as_u64().unwrap()),
        }
    }
    assert_eq!(kinds, ["joined", "left", "joined"]);
    assert!(seen.into_iter().eq(last + 1..=301));
    client.assert_quiet();
    // A join without a position in the middle of a replay wants no more of the past.
    client.send_json(&json!({"type": "join", "id": 4, "payload": since}));
    let answer = client.json();
    assert_eq!(answer["payload"]["recovered"], true);
    client.send_json(&json!({"type": "join", "id": 5, "payload": room}));
    let answer = loop {
        let frame = client.json();
        if frame["id"] == 5 {
            break frame;
        }
    };
    assert_eq!(answer["payload"]["seq"], 301);
    service.notify(&to_room("lobby", "next"));
    assert_eq!(client.json()["seq"], 302);
}

/// The next frame that has a number of the room; the others are counted.
fn next_of_room(client: &mut Client, others: &mut usize) -> u64 {
    loop {
        let frame = client.json();
        match frame["seq"].as_u64() {
            Some(seq) => return seq,
            None => *others += 1,
        }
    }
}

/// It is no backlog either: the queue holds a twelfth of it.
#[test]
fn a_long_replay_is_fed_as_a_slow_reader_takes_it_and_what_is_new_waits_behind_it() {
    let service = Service::with(&[
        ("SEND_QUEUE_BYTES", "64KiB"),
        ("SEND_QUEUE_FRAMES", "4"),
        ("WRITE_TIMEOUT", "2s"),
    ]);
    let start = join(&mut service.client("7", ""), "lobby", None);
    let text = "x".repeat(8000);
    stream(&service, 100, |_| to_room("lobby", text.as_str()));
    let mut client = service.narrow_client("7");
    assert_eq!(join(&mut client, "lobby", Some(&start))["recovered"], true);
    let begin = Instant::now();
    let mut others = 0;
    for seq in 1..=100 {
        assert_eq!(next_of_room(&mut client, &mut others), seq);
        // 64 KiB a second.
        let due = Duration::from_millis(125 * seq);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        if seq == 50 {
            service.notify(&to_user("7", "to the user"));
            service.notify(&json!({"event": "e", "broadcast": true}));
        }
    }
    // Its place in the log is long free.
    service.notify(&to_room("lobby", "next"));
    assert_eq!(next_of_room(&mut client, &mut others), 101);
    assert_eq!(others, 2);
    client.assert_quiet();
}

#[test]
fn a_replay_to_a_peer_that_takes_nothing_is_cut_by_the_write_timeout() {
    let service = Service::with(&[("WRITE_TIMEOUT", "1s")]);
    let start = join(&mut service.client("7", ""), "lobby", None);
    let text = "x".repeat(8000);
    stream(&service, 100, |_| to_room("lobby", text.as_str()));
    let mut client = service.narrow_client("7");
    client
        .send_json(&json!({"type": "join", "id": 1, "payload": {"room": "lobby", "since": start}}));
    let line = service.log_line("slow consumer");
    assert!(line.contains("user=7"), "{line}");
    // What was on its way is read, then the reset.
    while client.next() != Frame::End {}
}

#[test]
fn who_is_too_slow_for_what_comes_meanwhile_is_told_by_a_reset() {
    let service = Service::with(&[("HISTORY_MESSAGES", "50")]);
    let start = join(&mut service.client("7", ""), "lobby", None);
    let text = "x".repeat(8000);
    stream(&service, 50, |_| to_room("lobby", text.as_str()));
    let mut client = service.narrow_client("7");
    assert_eq!(join(&mut client, "lobby", Some(&start))["recovered"], true);
    // It reads nothing, and the log goes on without it.
    stream(&service, 60, |_| to_room("lobby", text.as_str()));
    let mut expected = 1;
    let reset = loop {
        let frame = client.json();
        if frame["type"] == "reset" {
            break frame;
        }
        assert_eq!(frame["seq"], expected);
        expected += 1;
    };
    assert!(expected < 50);
    let payload = json!({"room": "lobby", "epoch": start["epoch"], "seq": 110});
    assert_eq!(reset["payload"], payload);
    service.notify(&to_room("lobby", "next"));
    assert_eq!(next(&mut client, 1), [(111, json!("next"))]);
    assert_eq!(service.metric("realtime_resets_total"), 1.0);
    // The position of the reset is good.
    assert_eq!(join(&mut client, "lobby", Some(&position(&payload)))["recovered"], true);
    assert_eq!(next(&mut client, 1), [(111, json!("next"))]);
}

/// With the default limits: what it missed is six times what may be queued for it.
#[test]
fn who_comes_back_into_many_rooms_at_once_gets_all_and_is_not_cut() {
    const ROOMS: usize = 60;
    let service = Service::start();
    let room = |n: usize| format!("r{n}");
    let mut client = service.client("7", "");
    let starts: Vec<_> = (0..ROOMS).map(|n| join(&mut client, &room(n), None)).collect();
    client.send_close(1000);
    drop(client);
    let text = "x".repeat(1000);
    (0..ROOMS).for_each(|n| stream(&service, 100, |_| to_room(&room(n), text.as_str())));
    let mut client = service.narrow_connection("8");
    let joins = starts.iter().map(|start| {
        let payload = json!({"room": start["room"], "since": position(start)});
        let join = json!({"type": "join", "id": start["room"], "payload": payload});
        frame(0x81, join.to_string().as_bytes())
    });
    client.send_bytes(&joins.collect::<Vec<_>>().concat());
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < ROOMS || seen.values().any(|seq| *seq < 100) {
        let message = client.json();
        if message["type"] == "joined" {
            assert_eq!(message["payload"]["recovered"], true, "{message}");
            seen.insert(message["id"].as_str().unwrap().to_owned(), 0);
        } else {
            let seq = seen.get_mut(message["to"].as_str().unwrap()).unwrap();
            *seq += 1;
            assert_eq!(message["seq"], *seq);
        }
    }
    client.assert_quiet();
}

#[test]
fn ten_thousand_rooms_have_a_past_each() {
    const ROOMS: usize = 10_000;
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let room = |n: usize| format!("r{n}");
    let mut client = service.client("7", "admin");
    let starts: Vec<_> = (0..ROOMS).map(|n| join(&mut client, &room(n), None)).collect();
    stream(&service, ROOMS, |n| to_room(&room(n), n));
    next(&mut client, ROOMS);
    drop(client);
    stream(&service, ROOMS, |n| to_room(&room(n), n));
    assert_eq!(service.metric("realtime_history_logs"), ROOMS as f64);
    let mut client = service.client("7", "admin");
    for (n, start) in starts.iter().enumerate() {
        let answer = join(&mut client, &room(n), Some(&at(start, 1)));
        assert_eq!(answer["recovered"], true, "{n}: {answer}");
        assert_eq!(next(&mut client, 1), [(2, json!(n))]);
    }
    client.assert_quiet();
}

/// A tunnel's end: all come back at the same moment, while the room goes on.
#[test]
fn a_thousand_clients_recover_at_once() {
    const CLIENTS: usize = 1000;
    let service = Service::start();
    let start = join(&mut service.client("7", ""), "lobby", None);
    stream(&service, 100, |n| to_room("lobby", n));
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|n| service.client(&(n / 20).to_string(), "")).collect();
    let payload = json!({"room": "lobby", "since": position(&start)});
    for client in &mut clients {
        client.send_json(&json!({"type": "join", "id": 1, "payload": payload}));
    }
    for client in &mut clients {
        assert_eq!(client.json()["payload"]["recovered"], true);
    }
    service.notify(&to_room("lobby", 100));
    for client in &mut clients {
        assert_eq!(next(client, 101), numbered(0..101));
    }
    assert_eq!(service.metric("realtime_replayed_frames_total"), 100_000.0);
}

/// Several instances: they have one order and the same numbers.
#[test]
fn instances_share_positions_and_a_short_loss_of_the_subscription_loses_nothing() {
    let redis = Redis::start();
    let (a, b) = (Service::on(&redis, &[]), Service::on(&redis, &[]));
    let mut client = a.client("7", "");
    let start = join(&mut client, "lobby", None);
    let own = resume(&mut client, None);
    assert_eq!(b.notify(&to_room("lobby", 0)).json()["delivered"], 0);
    assert_eq!(next(&mut client, 1), numbered(0..1));
    // What other systems publish has no number.
    redis.publish("ws:room:lobby", r#"{"event":"foreign"}"#);
    assert_eq!(client.text(), r#"{"event":"foreign"}"#);
    b.notify(&to_user("7", 1));
    assert_eq!(client.json()["user_seq"], 1);
    for service in [&a, &b] {
        let mut other = service.client("7", "");
        assert_eq!(join(&mut other, "lobby", Some(&start))["recovered"], true);
        assert_eq!(next(&mut other, 1), numbered(0..1));
        assert_eq!(resume(&mut other, Some(&own))["recovered"], true);
        assert_eq!(other.json()["user_seq"], 1);
    }
    let epoch = || join(&mut a.client("8", ""), "lobby", None)["epoch"].clone();
    redis.run(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for n in 1..20 {
        b.notify(&to_room("lobby", n));
    }
    assert_eq!(next(&mut client, 19), numbered(1..20));
    assert_eq!(epoch(), start["epoch"]);
    // A Redis that has forgotten all begins anew, and says so.
    redis.run(&["FLUSHALL"]);
    b.notify(&to_room("lobby", 20));
    let reset = client.json();
    assert_eq!((&reset["type"], &reset["payload"]["seq"]), (&json!("reset"), &json!(0)));
    assert_ne!(reset["payload"]["epoch"], start["epoch"]);
    assert_eq!(next(&mut client, 1), [(1, json!(20))]);
    assert_eq!(join(&mut b.client("7", ""), "lobby", Some(&at(&start, 20)))["recovered"], false);
}
