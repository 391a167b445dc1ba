//! The join protocol, version 1: bound keypair joining, without I/O, clock or randomness of its own.
//!
//! ```text
//!           device                                               server
//!  Start ── ChallengeRequest{token} ─────────────────────────▶  seal(token's revision, key, rotate)
//!  Challenged ◀───────────────── ChallengeAnswer{challenge} ──
//!     │ picks or makes the key; the attempt id is on flash
//!  Prepared ── JWS(JoinRequest) by the bound key ────────────▶  Verified ── decide() ──▶ Grant | Refusal
//!     │                                                              one transaction: token, instance, audit
//!  Issued | Refused ◀────────────────── JoinAnswer | Problem ──
//! ```
//!
//! [`device`] and [`server`] mirror each other: `challenge.rs`, `request.rs`, `answer.rs` (what the device makes of it) and
//! `decision/` (how the server came to it). Start with [`server::decision::decide`]: it is the heart.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod base64url;
#[cfg(feature = "device")]
pub mod device;
pub mod endpoint;
mod id;
pub mod identity;
pub mod jws;
mod key;
pub mod message;
mod problem;
mod recovery_code;
#[cfg(feature = "server")]
pub mod server;
mod step;
pub mod trust;

pub use id::Id;
pub use jws::Jws;
pub use key::{Jwk, SshKey, Thumbprint};
pub use message::{JoinKind, Recoveries, RecoveryMode};
pub use problem::{MAX_DETAIL, PROBLEM_JSON, Problem, ProblemType};
pub use recovery_code::{InvalidRecoveryCode, RecoveryCode};
pub use step::{Claims, MAX_JOIN_STATE, Step};
pub use trust::{TrustBundle, TrustError, Trusted};
