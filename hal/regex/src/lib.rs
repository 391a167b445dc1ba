//! In place of `regex`, for `tss-esapi` alone: it matches the name of a TCTI, and needs neither Unicode tables nor speed for that.
//! The agent is some hundred kilobytes smaller. See `docs/decisions`.
#![no_std]
#![forbid(unsafe_code)]

pub use regex_lite::*;
