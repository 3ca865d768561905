//! Placeholder: the crate doc comes with the merge.

pub mod logging;
pub mod models;
