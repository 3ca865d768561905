//! What is sent and received: ids, rooms, messages, frames, close codes, and the marketplace's models.

pub mod close;
mod delivery;
mod draft;
mod frame;
mod id;
pub mod json;
mod message;
pub mod models;
mod position;
mod room;
#[cfg(test)]
mod typescript;

pub use delivery::{Delivery, Target};
pub use draft::{Draft, Number, Numbered};
pub use frame::{
    OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT, control_frame, frame_payload, text_frame,
};
pub use id::{BadId, Id};
pub use message::{
    Action, BadMessage, ClientMessage, ErrorCode, MessageId, Reply, Request, Standing, broadcast,
    error_frame, notification, reset_frame, resumed_frame,
};
pub use position::{BadPosition, Position};
pub use room::{BadRoom, Room, RoomKind};
