//! Verifies which threads wait for a processor in turn (`SCHED_BATCH`), and that an operator's policy stands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeMap;

use support::Service;

const NORMAL: &str = "0";
const BATCH: &str = "3";
const IDLE: &str = "5";
/// `policy` of proc_pid_stat(5), counted from the field behind the name.
const POLICY: usize = 41 - 3;

/// The policies of the threads, by their names.
fn policies(service: &Service) -> BTreeMap<String, String> {
    let named = |stat: String| {
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        (name.to_owned(), rest.split(' ').nth(POLICY).unwrap().to_owned())
    };
    service.of_threads("stat").map(named).collect()
}

#[test]
fn what_every_message_passes_waits_in_turn_and_rest_does_not() {
    let service = Service::start();
    let mut client = service.client("1", "admin");
    client.join("order-1");
    let policies = policies(&service);
    for (name, policy) in [
        ("hub", BATCH),
        ("gate", BATCH),
        ("conn-1", BATCH),
        ("rest-1", NORMAL),
        ("rest-4", NORMAL),
        ("signals", NORMAL),
    ] {
        let found = policies.get(name).map(String::as_str);
        assert_eq!(found, Some(policy), "{name} of {policies:?}");
    }
}

#[test]
fn the_policy_of_an_operator_stands() {
    let command = Service::command_behind(&["chrt", "--idle", "0"], &[]);
    let service = Service::spawn(command);
    let _client = service.client("1", "admin");
    let policies = policies(&service);
    assert!(policies.contains_key("hub"), "{policies:?}");
    assert!(policies.values().all(|policy| policy == IDLE), "{policies:?}");
}
