//! What all programs stand on: time and randomness, the log, and texts that a person wrote or is to read.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod logging;
pub mod pem;
pub mod refusal;
pub mod text;
pub mod time;
pub mod yaml;
