//! Verifies that pings are answered within their rate, and that who sends far more is closed and delays
//! nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crowd;
mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crowd::{Echo, percentile, start};
use support::{Client, Frame, Service, frame, handshake, token};

/// Sends a ping and takes its pong.
fn ping(client: &mut Client, n: u32) {
    client.send_bytes(&frame(0x89, n.to_string().as_bytes()));
    assert_eq!(client.next(), Frame::Pong(n.to_string().into_bytes()));
}

#[test]
fn a_burst_of_a_hundred_and_ten_a_second_are_answered() {
    let service = start(&[]);
    let mut client = service.client("1", "");
    (0..100).for_each(|n| ping(&mut client, n));
    for n in 0..20 {
        // A little less than ten a second, as timers are.
        std::thread::sleep(Duration::from_millis(105));
        ping(&mut client, n);
    }
    client.assert_quiet();
}

#[test]
fn who_sends_far_more_is_closed_with_1008() {
    let service = start(&[]);
    let mut client = service.client("1", "");
    let pings = frame(0x89, b"flood").repeat(2000);
    // It may be closed before it has sent all.
    let _ = client.stream().write_all(&pings);
    let close = loop {
        match client.next() {
            Frame::Pong(_) => {}
            other => break other,
        }
    };
    assert!(matches!(close, Frame::Close(1008, _)), "{close:?}");
    // The others of the same user stay.
    service.client("1", "").assert_quiet();
}

/// Floods until it is told to stop, and connects again when it is closed.
fn flood(service: &Service, user: &str, stop: &AtomicBool) {
    let pings = frame(0x89, b"flood").repeat(500);
    let request = handshake("/ws", &format!("Authorization: Bearer {}\r\n", token(user, "")));
    while !stop.load(Ordering::Relaxed) {
        // Refused while the former ones have not ended.
        let Some(mut client) = Client::try_connect(service.addr(), &request) else { continue };
        if !client.head.starts_with("HTTP/1.1 101 ") {
            continue;
        }
        client.stream().set_nonblocking(true).unwrap();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed)
            && !client.arrived().iter().any(|got| matches!(got, Frame::End | Frame::Close(..)))
        {
            match client.stream().write(&pings[sent..]) {
                Ok(length) => sent = (sent + length) % pings.len(),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

#[test]
fn who_floods_pings_delays_nobody() {
    let service = start(&[]);
    let mut echo = Echo::new(&service, "bystander");
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (service, stop) = (&service, &stop);
            scope.spawn(move || flood(service, &format!("flooder-{n}"), stop));
        }
        // Whatever happens, the floods stop.
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            echo.take_for(Duration::from_secs(3));
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = taken {
            std::panic::resume_unwind(panic);
        }
    });
    let closed = service.log().iter().filter(|line| line.contains("(1008)")).count();
    println!(
        "echo: p50 {:?}, longest {:?}; {closed} closed in {:?}",
        percentile(&echo.times, 50),
        echo.longest(),
        begin.elapsed(),
    );
    assert!(closed >= 4, "{closed} floods were closed");
    assert!(echo.longest() < Duration::from_secs(1), "an echo took {:?}", echo.longest());
}
