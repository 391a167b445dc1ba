//! The server's side of a join: sealing challenges, verifying requests, deciding.

pub mod challenge;
pub mod decision;
pub mod record;
pub mod request;
