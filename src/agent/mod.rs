//! The device program.

pub mod config;
pub mod logging;
