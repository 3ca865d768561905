//! The channel on real threads. Its tests are not in its file, which the model check takes in whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::channel::bounded;

#[test]
fn no_message_and_no_wake_is_lost() {
    let (ping, pings) = bounded(8);
    let (pong, pongs) = bounded(8);
    let echo = thread::spawn(move || {
        while let Ok(number) = pings.recv() {
            pong.send(number).unwrap();
        }
    });
    let far = Instant::now() + Duration::from_secs(60);
    for number in 0..50_000_u32 {
        ping.send(number).unwrap();
        assert_eq!(pongs.recv_deadline(far), Ok(number));
    }
    drop(ping);
    echo.join().unwrap();
    assert_eq!(pongs.recv_deadline(far), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn many_senders_wake_one_receiver() {
    let (sender, receiver) = bounded(4);
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let sender = sender.clone();
            thread::spawn(move || (0..5_000).for_each(|_| sender.send(1_u64).unwrap()))
        })
        .collect();
    drop(sender);
    let mut sum = 0;
    while let Ok(one) = receiver.recv() {
        sum += one;
    }
    assert_eq!(sum, 40_000);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn a_deadline_ends_the_wait() {
    let (sender, receiver) = bounded::<()>(1);
    let soon = Instant::now() + Duration::from_millis(5);
    assert_eq!(receiver.recv_deadline(soon), Err(RecvTimeoutError::Timeout));
    sender.try_send(()).unwrap();
    assert!(sender.try_send(()).is_err());
    assert_eq!(receiver.recv(), Ok(()));
}
