//! The rates against their definition: in no window of `t` seconds passes more than rate × t + burst.

use proptest::prelude::*;
use std::thread;
use std::time::Instant;

use std::sync::Arc;

use super::*;
use crate::hub::users::{FORGOTTEN_AT_ONCE, UserTable};
use crate::protocol::Id;

const SECOND: Duration = Duration::from_secs(1);

fn limits(messages: u32, burst: u32, bytes: u64) -> UserLimits {
    UserLimits {
        messages: Pace::messages(RateLimit { per_second: messages, burst }),
        bytes: Pace::user_bytes(bytes),
    }
}

fn table_of(limits: UserLimits) -> UserTable {
    UserTable::new(limits, Arc::default())
}

fn user(number: usize) -> Id {
    Id::parse(&format!("u{number}")).unwrap()
}

/// Whether what passed (when, how much) keeps to the rate in every window. One nanosecond is for the
/// rounding of the burst.
fn keeps_to(passed: &[(u64, u64)], per_second: u64, burst: u64) -> bool {
    per_second == 0
        || passed.iter().all(|(start, _)| {
            passed.iter().filter(|(end, _)| end >= start).all(|(end, _)| {
                let window = passed.iter().filter(|(at, _)| (start..=end).contains(&at));
                let (amount, largest) = window.fold((0, burst), |(amount, largest), (_, taken)| {
                    (amount + u128::from(*taken), largest.max(*taken))
                });
                let allowed = u128::from(per_second) * u128::from(end - start + 1);
                let billion = u128::from(NANOS_PER_SECOND);
                amount * billion <= allowed + u128::from(largest) * billion
            })
        })
}

/// Messages with the time since the one before, in nanoseconds, and their sizes.
fn messages() -> impl Strategy<Value = Vec<(u64, usize)>> {
    let pause = prop_oneof![0..1000_u64, 0..50_000_000_u64, 0..3_000_000_000_u64];
    let bytes = prop_oneof![0..100_usize, 0..9000_usize];
    prop::collection::vec((pause, bytes), 0..80)
}

fn settings() -> impl Strategy<Value = (u32, u32, u64)> {
    let per_second = prop_oneof![Just(0_u32), 1..100_u32, 1..=1_000_000_u32];
    let burst = prop_oneof![1..20_u32, 1..=1_000_000_u32];
    let bytes = prop_oneof![Just(0_u64), 1..20_000_u64, 1..4_000_000_000_u64];
    (per_second, burst, bytes)
}

proptest! {
    /// At any times in any order: threads read the clock before they take.
    #[test]
    fn no_window_holds_more_than_rate_and_burst(
        (per_second, burst, bytes) in settings(),
        takes in prop::collection::vec((0..5_000_000_000_u64, 0..9000_usize), 0..80),
    ) {
        let rates = UserRates::new(limits(per_second, burst, bytes));
        let passed: Vec<_> = takes
            .into_iter()
            .filter(|(now, size)| {
                let before = (rates.messages.full_at(), rates.bytes.full_at());
                let passes = rates.take(Duration::from_nanos(*now), *size);
                // Refused by one, it takes from none.
                assert!(passes || before == (rates.messages.full_at(), rates.bytes.full_at()));
                passes
            })
            .map(|(now, size)| (now, size as u64))
            .collect();
        let counted: Vec<_> = passed.iter().map(|(now, _)| (*now, 1)).collect();
        prop_assert!(keeps_to(&counted, per_second.into(), burst.into()));
        prop_assert!(keeps_to(&passed, bytes, BYTES_BURST_SECONDS * bytes));
    }

    /// Over connections that come and go, and a table that forgets.
    #[test]
    fn a_new_connection_is_no_new_burst(
        (per_second, burst, bytes) in settings(),
        messages in messages(),
        reconnects in prop::collection::vec(any::<bool>(), 80),
    ) {
        let mut table = table_of(limits(per_second, burst, bytes));
        let name = user(1);
        let mut share = table.enter(&name);
        let (mut now, mut passed) = (0, Vec::new());
        for ((pause, size), reconnect) in messages.into_iter().zip(reconnects) {
            now += pause;
            let at = Duration::from_nanos(now);
            if reconnect {
                table.leave(&name, at);
                table.forget_full(at);
                share = table.enter(&name);
            }
            if share.rates.take(at, size) {
                passed.push((now, size as u64));
            }
            prop_assert!(table.leaving.len() <= 1);
        }
        let counted: Vec<_> = passed.iter().map(|(now, _)| (*now, 1)).collect();
        prop_assert!(keeps_to(&counted, per_second.into(), burst.into()));
        prop_assert!(keeps_to(&passed, bytes, BYTES_BURST_SECONDS * bytes));
        table.leave(&name, Duration::from_nanos(now));
        table.forget_full(Duration::MAX);
        prop_assert!(table.users.is_empty() && table.leaving.is_empty());
    }

    #[test]
    fn who_stays_within_the_rate_is_never_refused(
        (per_second, burst, bytes) in settings(),
        messages in messages(),
    ) {
        let rates = UserRates::new(limits(per_second, burst, bytes));
        let mut now = 0;
        for (pause, size) in messages {
            prop_assert!(rates.take(Duration::from_nanos(now), size));
            // As long as this message takes at either rate, or longer.
            now += cost(1, per_second.into()).max(cost(size as u64, bytes)).max(pause);
        }
    }

    #[test]
    fn a_cost_is_never_less_than_the_rate_asks(amount in any::<u32>(), per_second in 1..=u64::MAX) {
        let regained = u128::from(cost(amount.into(), per_second)) * u128::from(per_second);
        prop_assert!(regained >= u128::from(amount) * u128::from(NANOS_PER_SECOND));
    }

    /// What comes at once, up to the burst, passes; one more does not.
    #[test]
    fn a_burst_passes_whole(per_second in 1..=1_000_000_u32, burst in 1..2000_u32, at in any::<u32>()) {
        let rates = UserRates::new(limits(per_second, burst, 0));
        let now = Duration::from_nanos(at.into());
        prop_assert!((0..burst).all(|_| rates.take(now, 9)));
        prop_assert!(!rates.take(now, 9));
    }

    /// And the largest message, if that is more; all of it is back when the rate has had the time.
    #[test]
    fn a_room_takes_a_second_s_worth_at_once(per_second in 1..3_000_000_u64, largest in 1..70_000_u64) {
        let pace = Pace::room_bytes(per_second, largest);
        let (mut room, burst) = (OwnedRate::default(), largest.max(per_second));
        let back = Duration::from_nanos(cost(burst, per_second));
        prop_assert!(room.take(pace, SECOND, burst));
        prop_assert!(!room.take(pace, SECOND + back - Duration::from_nanos(1), burst));
        prop_assert!(room.take(pace, SECOND + back, burst));
    }
}

#[test]
fn zero_is_off() {
    let rates = UserRates::new(limits(0, 1, 0));
    assert!((0..10_000).all(|_| rates.take(SECOND, 1 << 40)));
    let mut room = OwnedRate::default();
    assert!((0..10_000).all(|_| room.take(Pace::room_bytes(0, 100), SECOND, u64::MAX)));
}

#[test]
fn a_message_over_the_whole_burst_passes_when_the_rate_is_full() {
    let rates = UserRates::new(limits(0, 1, 100));
    assert!(rates.take(SECOND, 1000));
    assert!(!rates.take(SECOND, 1), "it is paid off first");
    assert!(!rates.take(SECOND * 10, 1000), "not full yet");
    assert!(rates.take(SECOND * 11, 1000));
    assert!(!rates.take(SECOND * 12, 1000));
}

#[test]
fn numbers_at_their_end_are_no_overflow() {
    let rates = UserRates::new(limits(1, u32::MAX, u64::MAX));
    assert!(rates.take(Duration::MAX, usize::MAX));
    let mut room = OwnedRate::default();
    assert!(room.take(Pace::room_bytes(1, u64::MAX), Duration::MAX, u64::MAX));
}

/// Four threads take 100,000 messages each as fast as they can; how many passed, and their bytes.
fn race(rates: &UserRates, start: Instant) -> (u64, u64) {
    let take_all = |thread: usize| {
        let mut passed = (0, 0);
        for n in 0..100_000 {
            let size = 20 * (1 + (thread + n) % 5);
            if rates.take(start.elapsed(), size) {
                passed = (passed.0 + 1, passed.1 + size as u64);
            }
        }
        passed
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || take_all(n))).collect();
        let passed = threads.into_iter().map(|thread| thread.join().unwrap());
        passed.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    })
}

#[test]
fn threads_share_the_messages() {
    let start = Instant::now();
    let (messages, _) = race(&UserRates::new(limits(1, 300_000, 0)), start);
    let seconds = start.elapsed().as_secs() + 1;
    assert!((300_000..=300_000 + seconds).contains(&messages), "{messages} in {seconds} s");
}

#[test]
fn threads_share_the_bytes() {
    let start = Instant::now();
    let rates = UserRates::new(limits(1, 300_000, 2_000_000));
    let (messages, bytes) = race(&rates, start);
    let seconds = start.elapsed().as_secs_f64();
    assert!(bytes >= 8_000_000 - 100, "{bytes}");
    assert!(bytes as f64 <= 2_000_000.0 * (4.0 + seconds) + 100.0, "{bytes} in {seconds} s");
    // What did not pass for its bytes cost no message, but for the few that raced for the last ones.
    let cost_messages = rates.messages.full_at() / NANOS_PER_SECOND;
    let refused = 400_000 - messages;
    assert!(cost_messages >= messages, "{cost_messages} of {messages}");
    assert!(cost_messages <= messages + refused / 100, "{cost_messages} of {messages}");
}

#[test]
fn undone_is_what_nobody_took_after() {
    let rate = SharedRate::new(limits(1, 10, 0).messages);
    let first = rate.take(5, 1).unwrap();
    rate.undo(&first);
    assert_eq!(rate.full_at(), 0);
    let first = rate.take(5, 1).unwrap();
    let second = rate.take(5, 1).unwrap();
    rate.undo(&first);
    assert_eq!(rate.full_at(), 5 + 2 * NANOS_PER_SECOND);
    rate.undo(&second);
    rate.undo(&first);
    assert_eq!(rate.full_at(), 0);
}

#[test]
fn users_are_forgotten_in_order_and_a_bounded_number_at_once() {
    let mut table = table_of(limits(1, 10, 0));
    let names: Vec<_> = (0..3).map(user).collect();
    for (n, name) in names.iter().enumerate() {
        let share = table.enter(name);
        assert!((0..3 - n).all(|_| share.rates.take(SECOND, 1)));
        table.leave(name, SECOND);
    }
    for left in (0..=3).rev() {
        assert_eq!(table.users.len(), left);
        table.forget_full(SECOND * (5 - u32::try_from(left).unwrap()));
    }
    let idle = table.enter(&names[0]);
    table.leave(&names[0], SECOND * 9);
    assert!(table.users.is_empty(), "one with full rates is forgotten at once");
    drop(idle);

    for n in 0..FORGOTTEN_AT_ONCE + 5 {
        let name = user(n);
        assert!(table.enter(&name).rates.take(SECOND * 9, 1));
        table.leave(&name, SECOND * 9);
    }
    table.forget_full(SECOND * 20);
    assert_eq!(table.users.len(), 5);
    table.forget_full(SECOND * 20);
    assert!(table.users.is_empty() && table.users.capacity() < 2048);
}

#[test]
fn who_is_here_again_is_not_forgotten() {
    let mut table = table_of(limits(1, 10, 0));
    let name = user(1);
    let first = table.enter(&name);
    assert!(first.rates.take(SECOND, 1));
    table.leave(&name, SECOND);
    let second = table.enter(&name);
    assert!(Arc::ptr_eq(&first, &second));
    table.forget_full(SECOND * 9);
    assert!(Arc::ptr_eq(&first, &table.enter(&name)));
    table.leave(&name, SECOND * 9);
    assert_eq!(table.users.len(), 1, "it has one place left");
    table.leave(&name, SECOND * 9);
    assert!(table.users.is_empty());
}
