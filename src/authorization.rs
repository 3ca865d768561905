//! May this identity join this room.
