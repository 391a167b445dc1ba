//! The server program: decide and commit, CA, store, HTTP API, operator's API.

pub mod audit;
pub mod resource;
pub mod store;
