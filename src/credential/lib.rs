//! Keys in the shapes that certificates ask for, of X.509 and of SSH.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod certify;
pub mod ssh;
