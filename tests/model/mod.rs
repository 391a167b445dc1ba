//! The real client, state file, challenge, verification and decision as a system of states: see `explore.rs` for how it is searched.

mod copies;
pub mod explore;
pub mod faults;
pub mod holder;
mod medium;
mod moves;
mod operator;
mod rules;
pub mod server;
pub mod state;
