//! The environment of the tests: programs, tokens, faults.
#![allow(dead_code)] // each test file uses a part

pub(crate) mod abrmd;
#[cfg(feature = "pkcs11")]
pub(crate) mod faulty;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod softhsm;
pub(crate) mod swtpm;
pub(crate) mod tpm2_pkcs11;
