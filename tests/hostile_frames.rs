//! Verifies that frames which break RFC 6455, the limits or the rate get the answer that the protocol
//! has for them, and cost others nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Client, Frame, Service, frame, full_size, until};

/// Final frames have this bit.
const FIN: u8 = 0x80;

fn service() -> Service {
    Service::with(&[("RATE_LIMIT", "0")])
}

/// Sends bytes and returns the close code, behind which nothing comes but the end.
fn close_of(service: &Service, bytes: &[u8]) -> u16 {
    let mut client = service.client("hostile", "");
    // It may be cut before all is sent.
    let _ = client.stream().write_all(bytes);
    client.end_sending();
    match client.next() {
        Frame::Close(code, _) => {
            assert_eq!(client.next(), Frame::End);
            code
        }
        other => panic!("expected a Close, got {other:?}"),
    }
}

/// A frame header that announces this payload, masked.
fn header(opcode: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![opcode, 0x80 | 127];
    bytes.extend(length.to_be_bytes());
    bytes.extend([1, 2, 3, 4]);
    bytes
}

#[test]
fn what_breaks_the_rfc_is_closed_with_its_code() {
    let service = service();
    let text = |bytes: &[u8]| frame(FIN | 1, bytes);
    let split = |first: &[u8], second: &[u8]| [frame(1, first), frame(FIN, second)].concat();
    let mut cases = vec![
        ("unmasked", b"\x81\x02hi".to_vec(), 1002),
        ("continuation without a start", frame(FIN, b"x"), 1002),
        ("start inside fragments", [frame(1, b"{"), text(b"x")].concat(), 1002),
        ("ping in fragments", frame(9, b"x"), 1002),
        ("close in fragments", frame(8, b""), 1002),
        ("ping over 125 bytes", frame(FIN | 9, &[0; 126]), 1002),
        ("close of one byte", frame(FIN | 8, b"x"), 1002),
        ("bad UTF-8", text(b"\xff"), 1007),
        ("a surrogate in UTF-8", text(b"\xed\xa0\x80"), 1007),
        ("an overlong form", text(b"\xc0\xaf"), 1007),
        ("UTF-8 cut at the end", text(b"\xe2\x82"), 1007),
        ("bad UTF-8 across fragments", split(b"\xe2\x82", b"\x41"), 1007),
        ("bad UTF-8 in a close reason", frame(FIN | 8, b"\x03\xe8\xff"), 1007),
        ("announced over the limit", header(FIN | 1, 8193), 1009),
        ("announced 2^63", header(FIN | 1, 1 << 63), 1009),
        ("announced u64::MAX", header(FIN | 2, u64::MAX), 1009),
        ("over the limit in fragments", split(&[b'x'; 8192], b"x"), 1009),
        ("close without a code", frame(FIN | 8, b""), 1000),
        ("close 1000", frame(FIN | 8, b"\x03\xe8bye"), 1000),
        ("close 4999", frame(FIN | 8, &4999_u16.to_be_bytes()), 4999),
    ];
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        cases.push((
            "close of a code that may not be sent",
            frame(FIN | 8, &code.to_be_bytes()),
            1002,
        ));
    }
    for bits in [0x40, 0x20, 0x10, 0x70] {
        cases.push(("reserved bits", frame(FIN | bits | 1, b"x"), 1002));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push(("opcode that is not defined", frame(FIN | opcode, b"x"), 1002));
    }
    service.assert_unharmed_by(|service| {
        for (what, bytes, code) in &cases {
            assert_eq!(close_of(service, bytes), *code, "{what}: {bytes:02x?}");
        }
    });
}

#[test]
fn utf8_may_be_split_anywhere() {
    let service = service();
    let mut client = service.client("1", "");
    client.join("lobby");
    let message = r#"{"type":"broadcast","payload":{"room":"lobby","body":"€ 𝄞"}}"#.as_bytes();
    for at in 1..message.len() {
        client.send_bytes(&frame(1, &message[..at]));
        client.send_bytes(&frame(FIN | 9, b"between"));
        client.send_bytes(&frame(FIN, &message[at..]));
        let mut got = vec![client.next(), client.next()];
        got.sort_by_key(|frame| matches!(frame, Frame::Text(_)));
        assert_eq!(got[0], Frame::Pong(b"between".to_vec()));
        let Frame::Text(text) = &got[1] else { panic!("{got:?}") };
        assert!(text.contains("€ 𝄞"), "{text}");
    }
}

#[test]
fn a_gigabyte_behind_eight_kilobytes_is_not_kept() {
    let service = service();
    let total: usize = if full_size() { 1 << 30 } else { 64 << 20 };
    let start = frame(1, &[b'x'; 8192]);
    let more = frame(0, &[b'x'; 8192]).repeat(8);
    service.assert_unharmed_by(|service| {
        let idle = service.rss_kib();
        let mut client = service.client("hostile", "");
        client.send_bytes(&start);
        let mut sent = start.len();
        // The service reads on until its deadline, so that the Close arrives, then cuts.
        while sent < total && client.stream().write_all(&more).is_ok() {
            sent += more.len();
            assert!(
                service.rss_kib() < idle + 4096,
                "{} KiB after {sent} bytes",
                service.rss_kib()
            );
        }
        assert_eq!(client.next(), Frame::Close(1009, "message too large".into()));
    });
}

#[test]
fn fragments_count_together() {
    let service = service();
    service.assert_unharmed_by(|service| {
        let mut bytes = frame(1, b"x");
        bytes.extend(frame(0, b"x").repeat(100_000));
        assert_eq!(close_of(service, &bytes), 1009);

        let mut client = service.client("patient", "");
        client.send_bytes(&frame(1, b""));
        let idle = service.rss_kib();
        let start = Instant::now();
        for _ in 0..100 {
            client.send_bytes(&frame(0, b"").repeat(1000));
        }
        client.send_bytes(&frame(FIN, b""));
        assert_eq!(client.json()["payload"]["code"], "invalid_json");
        let grown = service.rss_kib().saturating_sub(idle);
        assert!(grown < 1024, "{grown} KiB for 100,000 empty fragments");
        // No rate counts them, so nothing is read for 10 ms behind each thousand or so.
        let took = start.elapsed();
        assert!(took > Duration::from_millis(500), "a flood of fragments took {took:?}");
    });
}

#[test]
#[ignore = "takes the 30 s that an unfinished message may take; part of the full-size run"]
fn a_message_without_its_end_is_dropped() {
    let service = service();
    let mut starts = [
        ("a fragment", frame(1, b"x")),
        ("a frame's header", frame(FIN | 1, b"xyz")[..3].to_vec()),
        ("half a frame", frame(FIN | 1, b"xyz")[..7].to_vec()),
    ]
    .map(|(what, bytes)| {
        let mut client = service.client("patient", "");
        client.send_bytes(&bytes);
        (what, client)
    });
    let start = Instant::now();
    // Pings between the fragments do not prolong it.
    while start.elapsed() < Duration::from_secs(25) {
        starts[0].1.send_bytes(&frame(FIN | 9, b""));
        assert_eq!(starts[0].1.next(), Frame::Pong(Vec::new()));
        std::thread::sleep(Duration::from_millis(500));
    }
    for (what, client) in &mut starts {
        loop {
            match client.next() {
                Frame::End => break,
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(start.elapsed() < Duration::from_secs(40), "{what}: {:?}", start.elapsed());
    }
    assert!(start.elapsed() > Duration::from_secs(29));
    service.log_line("unfinished message");
}

#[test]
fn a_flood_of_pings_or_pongs_is_closed() {
    let service = service();
    for opcode in [9, 10] {
        let start = Instant::now();
        let mut client = service.client("hostile", "");
        let mut writing = client.stream().try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            let frames = frame(FIN | opcode, b"x").repeat(1000);
            while writing.write_all(&frames).is_ok() {}
        });
        let end = loop {
            match client.next() {
                Frame::Pong(_) => {}
                other => break other,
            }
        };
        assert_eq!(end, Frame::Close(1008, "rate limited".into()));
        // It goes on sending, as fast as it can, and is cut all the same.
        flood.join().unwrap();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
}

#[test]
fn pongs_are_coalesced_and_answer_the_latest_ping() {
    // As many as may come at once.
    const PINGS: u32 = 100;
    let service = service();
    service.assert_unharmed_by(|service| {
        let idle = service.rss_kib();
        let mut client = service.client("hostile", "");
        let pings: Vec<u8> = (0..PINGS).flat_map(|n| frame(FIN | 9, &n.to_be_bytes())).collect();
        client.send_bytes(&pings);
        client.send(r#"{"type":"leave","payload":{"room":"end"}}"#);
        let (mut last, mut count, mut left) = (0, 0_u32, false);
        while !left || last < PINGS - 1 {
            match client.next() {
                Frame::Pong(payload) => {
                    let number = u32::from_be_bytes(payload.try_into().unwrap());
                    assert!(count == 0 || number > last, "pong {number} after {last}");
                    last = number;
                    count += 1;
                }
                Frame::Text(text) => left = text == "left end",
                other => panic!("{other:?}"),
            }
        }
        println!("{count} pongs for {PINGS} pings");
        let grown = service.rss_kib().saturating_sub(idle);
        assert!(grown < 4096, "{grown} KiB");
    });
}

#[test]
fn pongs_nobody_asked_for_are_nothing() {
    let service = service();
    service.assert_unharmed_by(|service| {
        let mut client = service.client("hostile", "");
        client.send_bytes(&frame(FIN | 10, &[7; 125]).repeat(100));
        client.assert_quiet();
    });
}

#[test]
fn behind_a_close_nothing_counts() {
    let service = service();
    let mut witness = service.client("witness", "");
    witness.join("lobby");
    let broadcast = |body: &str| {
        let message = json!({"type": "broadcast", "payload": {"room": "lobby", "body": body}});
        frame(FIN | 1, message.to_string().as_bytes())
    };
    let mut hostile = service.client("hostile", "");
    hostile.join("lobby");
    let close = frame(FIN | 8, &1000_u16.to_be_bytes());
    let ping = frame(FIN | 9, b"still here");
    let bytes = [broadcast("before"), close.clone(), broadcast("behind"), ping, close].concat();
    hostile.send_bytes(&bytes);
    assert_eq!(hostile.json()["body"], "before");
    assert_eq!(hostile.next(), Frame::Close(1000, String::new()));
    hostile.end_sending();
    assert_eq!(hostile.next(), Frame::End);
    assert_eq!(witness.json()["body"], "before");
    witness.assert_quiet();
}

#[test]
fn rooms_are_limited_and_vanish() {
    let joins: usize = if full_size() { 50_000 } else { 10_000 };
    // The answers to a burst may wait on a loaded machine: this is not about slow consumers.
    let service = Service::with(&[("RATE_LIMIT", "0"), ("SEND_QUEUE_FRAMES", "100000")]);
    service.assert_unharmed_by(|service| {
        let idle = service.rss_kib();
        let mut client = service.client("hostile", "");
        let mut writing = client.stream().try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            for n in 0..joins {
                let message = json!({"type": "join", "payload": {"room": format!("room:{n}")}});
                writing.write_all(&frame(FIN | 1, message.to_string().as_bytes())).unwrap();
            }
        });
        for n in 0..joins {
            if n < 100 {
                assert_eq!(client.text(), format!("joined room:{n}"));
            } else {
                assert_eq!(client.json()["payload"]["code"], "too_many_rooms");
            }
        }
        writer.join().unwrap();
        assert_eq!(service.counts()["rooms"].as_object().unwrap().len(), 100);
        let grown = service.rss_kib().saturating_sub(idle);
        assert!(grown < 4096, "{grown} KiB");
        drop(client);
        until("the rooms are gone", || service.counts()["rooms"] == json!({}));
    });
}

#[test]
fn over_the_rate_is_told_then_closed_while_others_go_on() {
    let service = Service::with(&[("RATE_LIMIT", "20"), ("RATE_BURST", "20")]);
    let before = service.at_rest();
    let mut hostile = service.client("hostile", "");
    // Before the flood: the service's ten seconds cannot have begun.
    let start = Instant::now();
    let mut writing = hostile.stream().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let message = frame(FIN | 1, br#"{"type":"leave","payload":{"room":"x"}}"#);
        // Far over the rate, until the connection ends.
        while writing.write_all(&message).is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let mut pair = (service.client("a", ""), service.client("b", ""));
    pair.0.join("lobby");
    pair.1.join("lobby");
    let hostile = std::thread::spawn(move || until_closed(&mut hostile));
    let mut longest = Duration::ZERO;
    let mut n = 0;
    while !hostile.is_finished() {
        let start = Instant::now();
        pair.0.broadcast("lobby", &json!(n));
        for client in [&mut pair.0, &mut pair.1] {
            assert_eq!(client.json()["body"], n);
        }
        longest = longest.max(start.elapsed());
        n += 1;
        // Within the rate itself.
        std::thread::sleep(Duration::from_millis(100));
    }
    let (passed, told) = hostile.join().unwrap();
    let took = start.elapsed();
    flood.join().unwrap();
    println!(
        "{passed} passed and told {told} times in {took:?}; others waited {longest:?} at most"
    );
    assert!(took >= Duration::from_secs(10), "closed after {took:?}");
    let seconds = took.as_secs() + 1;
    assert!((20..=20 + 20 * seconds).contains(&passed), "{passed} passed in {took:?}");
    assert!((5..=seconds + 1).contains(&told), "told {told} times in {took:?}");
    service.log_line("rate limited (1008)");
    assert!(longest < Duration::from_millis(if full_size() { 100 } else { 2000 }), "{longest:?}");
    drop(pair);
    service.assert_recovers(before);
}

/// How many messages passed, and how often the client was told of its rate, before it was closed for it.
fn until_closed(client: &mut Client) -> (u64, u64) {
    let (mut passed, mut told) = (0, 0);
    loop {
        match client.next() {
            Frame::Text(text) if text == "left x" => passed += 1,
            Frame::Text(text) if text.contains(r#""code":"rate_limited""#) => told += 1,
            end => {
                assert_eq!(end, Frame::Close(1008, "rate limited".into()));
                return (passed, told);
            }
        }
    }
}
