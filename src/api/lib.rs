//! The operators' API as data: resources, calls and their answers, events of the audit log, CAs.
//!
//! No I/O happens here, and nothing here depends on the server: `auth` answers the calls, `ctl` makes them. Refusals are those of the
//! protocol ([`Problem`]).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod actor;
pub mod ca;
pub mod call;
pub mod event;
pub mod names;
pub mod resource;
pub mod view;

pub use boundkey_join::{Problem, ProblemType};

/// Version of the programs that speak this API.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The operators' socket in a server's data directory.
pub const SOCKET: &str = "operator.sock";
