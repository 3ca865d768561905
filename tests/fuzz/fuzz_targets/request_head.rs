//! Fuzzes the request head: any bytes are a head, a refusal or incomplete, and what is accepted is
//! accepted for what its bytes say.

#![no_main]

use libfuzzer_sys::fuzz_target;
use realtime_service::config::MAX_HEAD_BYTES;
use realtime_service::http::{Response, Head};

fuzz_target!(|bytes: &[u8]| {
    match Head::parse(bytes) {
        Ok(None) => assert!(bytes.len() < MAX_HEAD_BYTES, "a head may not wait for ever"),
        Ok(Some((head, length))) => {
            assert!(length <= bytes.len().min(MAX_HEAD_BYTES));
            let text = std::str::from_utf8(&bytes[..length]).expect("heads are UTF-8");
            assert!(text.ends_with("\r\n\r\n"));
            // Nothing behind the head may change what it says, and no shorter head is in it.
            assert_eq!(Head::parse(&bytes[..length]).unwrap().unwrap().0, head);
            assert!(Head::parse(&bytes[..length - 1]).unwrap().is_none());
            assert!(head.values("content-length").count() <= 1);
            assert_eq!(head.values("transfer-encoding").count(), 0);
            for (name, value) in head.headers() {
                assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
                assert!(!value.contains(['\r', '\n', '\0']));
            }
            assert!(head.target().bytes().all(|b| b.is_ascii_graphic()));
        }
        Err(error) => {
            let answer = Response::from(&error);
            assert!([400, 411, 414, 431, 501, 505].contains(&answer.status()));
            let text = String::from_utf8(answer.closing_bytes(false)).expect("answers are UTF-8");
            let (_, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            serde_json::from_str::<serde_json::Value>(body).expect("bodies are JSON");
        }
    }
});
