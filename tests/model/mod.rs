//! The real client, state file and decision as a system of states: see `explore.rs` for how it is searched.

pub mod explore;
pub mod holder;
mod medium;
mod moves;
mod rules;
pub mod server;
pub mod state;
