//! What is sent and received: ids, rooms, messages, frames, close codes, and the marketplace's models.

pub mod close;
mod frame;
mod id;
pub mod json;
mod message;
pub mod models;
mod room;
#[cfg(test)]
mod typescript;

pub use frame::{
    OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT, control_frame, frame_payload, text_frame,
};
pub use id::{BadId, Id};
pub use message::{
    Action, BadMessage, ClientMessage, ErrorCode, MessageId, Reply, broadcast_frame, error_frame,
    notification_frame,
};
pub use room::{BadRoom, Room, RoomKind};
