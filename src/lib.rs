//! boundkey: device identity that lives in the device's own key, and comes back by itself.
//!
//! # Where to start reading
//! - [`join`]: the protocol, without I/O. [`join::server::decision`] is the heart.
//! - `state`: what the device remembers, in a file that survives a power cut at any byte.
//! - `agent`: the device program. `agent::join` is one join from end to end.
//! - `auth`: the server program. `auth::joins` is the same join from the other side.
//! - `api`: what `ctl` and `auth` say to each other, data alone.
//! - `ctl`: the operator's program.
//! - `boundkey_hal`: the `KeyStore` trait and its backends.
//!
//! Time, randomness, transport and storage are handed in from `main`, so that tests run the real code on simulated ones.
#![forbid(unsafe_code)]

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "auth")]
pub mod api;
#[cfg(feature = "auth")]
pub mod auth;
pub mod certify;
#[cfg(feature = "auth")]
pub mod ctl;
pub mod join;
pub mod keystore;
pub mod logging;
pub mod pem;
pub mod refusal;
pub mod ssh;
#[cfg(feature = "agent")]
pub mod state;
pub mod text;
pub mod time;
