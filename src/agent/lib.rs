//! The device program: config, transport, one join from end to end, the renewal loop, outputs.
//!
//! `run` is `boundkey start`; `join` is one join; [`device`] is what stands on disk.
#![forbid(unsafe_code)]

mod backoff;
pub mod clock;
pub mod config;
mod contention;
pub mod crl;
mod crl_refresh;
pub mod device;
pub mod doctor;
pub mod error;
mod failure_log;
pub mod hsm;
pub mod identity;
mod issuer;
pub mod join;
pub mod keypair;
pub mod outputs;
pub mod program;
mod proxy;
mod recovery_code;
mod report;
pub mod rollback;
pub mod run;
mod static_key;
pub mod status;
pub mod systemd;
pub mod tls;
pub mod transport;
pub mod trust;
mod wait;
