//! What is fuzzed: every reader of bytes that a peer, a disk or a person may have written.
//!
//! Each module has `run`: it hands one input to the code that ships, checks what must hold of whatever comes out, and says in words
//! what came of it. A panic is a finding. Bytes alone die at the first signature, hash or PEM armour, so most targets also take parts
//! that they sign, hash or wrap themselves: by a first byte, or by [`form`] in JSON.
//!
//! | module | reads | written by |
//! | --- | --- | --- |
//! | [`answer`] | challenge, answer and problem, on the device | a server |
//! | [`certificate`] | identity certificates (`x5c`), certificate requests | a device |
//! | [`code`] | recovery codes | an operator |
//! | [`config`] | the agent's configuration, and the unit made of it | a person |
//! | [`crl`] | revocation lists, on the device | a server |
//! | [`join`] | join requests up to the decision, and the token they are decided on | a device; an operator |
//! | [`jws`] | JWS in both forms, challenges | anyone |
//! | [`names`] | patterns of names, and names against them | an operator; a device |
//! | [`pem`] | key files, the identity file | the disk |
//! | [`resources`] | operators' documents in YAML, resources in JSON | an operator |
//! | [`state`] | the state file | the disk |
//! | [`trust`] | trust bundles, certificates of CAs | a server; the disk |
//! | [`tss2`] | wrapped TPM keys | the disk |
//! | [`uri`] | PKCS#11 URIs | a person |
//!
//! `tests/fuzz/bounded.rs` runs all of them for a while in `make test`; `make fuzz` runs one under libFuzzer for as long as you like.
#![forbid(unsafe_code)]
// A target says what it does in its module's first lines; `run` is the same for all.
#![allow(missing_docs, clippy::missing_panics_doc)]

pub mod answer;
pub mod certificate;
pub mod code;
pub mod config;
pub mod crl;
pub mod form;
pub mod join;
pub mod jws;
pub mod keys;
pub mod names;
pub mod pem;
pub mod resources;
pub mod state;
pub mod trust;
#[cfg(feature = "tpm")]
pub mod tss2;
#[cfg(feature = "pkcs11")]
pub mod uri;

/// What came of an input, in words: `ok` and what was found in it, or why it was refused.
pub type Told = String;

/// Takes the first byte for a choice of ways to read the rest.
pub(crate) fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// What a person is told goes to a terminal: text of the input may be shown there, but not act.
pub(crate) fn said(what: &impl std::fmt::Display, advice: &str) {
    let said = boundkey::platform::logging::failure(what, advice);
    assert!(!said.contains(|c: char| c.is_control() && !"\n\t".contains(c)), "{said:?}");
}

/// The words of a refusal.
pub(crate) fn refused(why: &impl std::fmt::Display) -> Told {
    format!("refused: {why}")
}
