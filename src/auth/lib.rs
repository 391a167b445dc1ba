//! The server program: decide and commit, CA, store, HTTP API, operator's API.
#![forbid(unsafe_code)]

pub mod authorize;
mod backup;
pub mod ca;
pub mod data_dir;
mod descriptors;
pub mod http;
pub mod joins;
pub mod operator;
mod pace;
pub mod program;
pub mod revocation;
pub mod rotation;
pub mod sealing;
pub mod serve;
pub mod store;
mod throttle;
pub mod tls;
mod upkeep;
