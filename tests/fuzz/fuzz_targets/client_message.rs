//! Fuzzes the client message: any text is a message or an error, and what is built from a message is
//! JSON that holds its parts unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use realtime_service::protocol::{ClientMessage, Reply, Room, error_frame, frame_payload};
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|text: &str| {
    let json = |frame: &_| {
        let payload = frame_payload(frame);
        let text = std::str::from_utf8(&payload).expect("frames of text are UTF-8");
        serde_json::from_str::<&RawValue>(text).expect("frames hold JSON").to_owned()
    };
    match ClientMessage::parse(text) {
        Ok(message) => {
            serde_json::from_str::<&RawValue>(text).expect("messages are JSON");
            assert_eq!(Room::parse(message.room.as_str()).as_ref(), Ok(&message.room));
            assert!(text.contains(message.body) || message.body == "null");
            serde_json::from_str::<&RawValue>(message.body).expect("bodies are JSON");
            let answer = Reply::Joined.frame(&message.room, message.id.as_ref());
            let answer = answer.expect("a join is answered");
            // What serde_json holds as a value: neither 1e999 nor 200 levels deep.
            if let (Some(_), Ok(whole)) = (&message.id, serde_json::from_str::<Value>(text)) {
                let answer: Value = serde_json::from_str(json(&answer).get()).expect("JSON");
                assert_eq!(answer["id"], whole["id"]);
                assert_eq!(answer["payload"]["room"], whole["payload"]["room"]);
            }
        }
        Err(bad) => {
            let answer = json(&error_frame(bad.code, bad.id.as_ref()));
            assert!(answer.get().contains(bad.code.code()));
        }
    }
});
