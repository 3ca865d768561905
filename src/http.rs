//! HTTP as the gate, the handshake and the REST handlers share it: request heads, responses, CORS.

pub mod cors;
pub mod head;
pub mod response;

pub use head::Head;
pub use response::Response;
