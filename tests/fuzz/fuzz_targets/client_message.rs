//! Fuzzes the client message: any text is a message or an error, and what is built from a message is
//! JSON that holds its parts unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use realtime_service::protocol::{
    ClientMessage, Reply, Request, Room, error_frame, frame_payload,
};
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
            let (room, body) = match message.request {
                Request::Join { room, .. } | Request::Leave(room) => (room, "null"),
                Request::Broadcast { room, body } => (room, body),
                Request::Resume { .. } => return,
            };
            assert_eq!(Room::parse(room.as_str()).as_ref(), Ok(&room));
            assert!(text.contains(body) || body == "null");
            serde_json::from_str::<&RawValue>(body).expect("bodies are JSON");
            let answer = Reply::Left.frame(&room, message.id.as_ref());
            let answer = answer.expect("a leave is answered");
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
