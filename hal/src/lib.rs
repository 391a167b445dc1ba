//! A small hardware abstraction for the one secret a device must never lose or leak: its identity key.
//!
//! [`KeyStore`] is the trait; a backend holds keys in a file, in a TPM 2.0 or in a PKCS#11 token, each a cargo feature.
//! The trait and its types need neither `std` nor an allocator, so that a microcontroller port has somewhere to stand.
//!
//! | feature | backend | algorithms |
//! | --- | --- | --- |
//! | `file` | [`file::FileStore`]: PKCS#8 PEM, 0600, durable | Ed25519, P-256 |
//! | `pkcs11` | [`pkcs11::Pkcs11Store`]: one token of a PKCS#11 module, not extractable | P-256, Ed25519 where the token has it |
//! | `tpm` | [`tpm::TpmStore`]: TPM 2.0, wrapped in TSS2 PRIVATE KEY files | P-256 |
//!
//! # For callers
//! - Name a key with a [`KeyId`]; keep nothing else. A backend opens, acts and lets go in each call, so no handle outlives one.
//! - Share one store between threads, without a lock. Another program gets at a key by its [`Reference`]; no second store is needed.
//! - Remember [`KeyStore::fingerprint`] at the first use where a store can be exchanged unseen: a TPM, or a token of the same label.
//! - Branch on [`Error::kind`]; show [`Error`]'s text to a person. Retry [`ErrorKind::Busy`] and [`ErrorKind::Unreachable`]
//!   with backoff, never [`ErrorKind::Denied`] (a wrong PIN tried again locks a token).
//! - Unreadable is not absent: make a new key only on [`ErrorKind::NotFound`], and never in another store than the one asked for.
//!
//! # For implementers
//! - [`KeyStore::generate`] returns only once the key would survive a power cut, and never replaces a key.
//! - [`KeyStore::sign`] returns only what [`verify::verify`] accepts for the key's public half: hardware answers cross a bus.
//! - Calls come from several threads at once. Order them where the device serves one at a time.
//! - On every path, errors included, flush what was loaded and close what was opened.
//! - Exactly one match, or an error: never pick the first of several.
//! - Run the conformance suite in `tests/conformance/` on the new backend.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![allow(clippy::result_large_err)] // an error holds its text inline: there may be no allocator to box it with

#[cfg(feature = "verify")]
extern crate std;

pub mod der;
#[cfg(any(feature = "file", feature = "tpm"))]
pub mod dir;
#[cfg(any(feature = "file", feature = "tpm"))]
pub mod durable;
mod error;
#[cfg(feature = "file")]
pub mod file;
mod key;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
mod reference;
#[cfg(feature = "tpm")]
pub mod tpm;
#[cfg(feature = "verify")]
pub mod verify;

pub use error::{Error, ErrorKind, MAX_DETAIL};
pub use key::{Algorithm, InvalidKey, KeyId, PublicKey, Signature};
pub use reference::{Fingerprint, MAX_FINGERPRINT, MAX_REFERENCE, Reference, ReferenceText};

/// Longest list of algorithms a backend names.
pub const MAX_ALGORITHMS: usize = 4;

/// What a key store can do, and what kind of place it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Algorithms that [`KeyStore::generate`] accepts, the preferred one first.
    pub algorithms: heapless::Vec<Algorithm, MAX_ALGORITHMS>,
    /// Whether private keys stay inside a device of their own (TPM, token): a copy of the storage is then not a copy of the key.
    pub hardware: bool,
    /// Where keys live, in words for a technician: `TPM 2.0 SW, firmware 1.2`, `/var/lib/boundkey`. No secret.
    pub place: heapless::String<160>,
}

/// A place that makes and holds private keys and signs with them.
///
/// Methods take `&self`, and threads share one store without a lock of their own. A backend whose device serves one caller at a time
/// orders the calls itself; one that has no need to (keys in files) signs in parallel.
pub trait KeyStore: Send + Sync {
    /// What this store can do. Talks to the hardware, so it can fail.
    fn capabilities(&self) -> Result<Capabilities, Error>;

    /// Makes a new key named `id` and returns its public half, once the key is durable.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where `id` is taken, [`ErrorKind::Unsupported`] for an algorithm not among [`Capabilities::algorithms`].
    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error>;

    /// The public half of the key `id`.
    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error>;

    /// Signs `message` (not a digest: the backend hashes) and returns the signature in JWS form, see [`Signature`].
    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error>;

    /// Calls `each` for every key of this store, in no order.
    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error>;

    /// Destroys the key `id`. A key that is already gone is [`ErrorKind::NotFound`].
    fn delete(&self, id: &KeyId) -> Result<(), Error>;

    /// What another program needs to use the key `id` where it is.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where no other program can use it, which is the default.
    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        Err(Error::new(ErrorKind::Unsupported, format_args!("no other program can use the key {id}")))
    }

    /// What tells this store from another one that answers to the same configuration, to be compared with what was remembered at the first
    /// use. It stays the same for as long as the store's keys can be used. `None`, the default, where the configuration says it all.
    fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        Ok(None)
    }
}

impl<K: KeyStore + ?Sized> KeyStore for &K {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        (**self).capabilities()
    }
    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        (**self).generate(id, algorithm)
    }
    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        (**self).public_key(id)
    }
    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        (**self).sign(id, message)
    }
    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        (**self).list(each)
    }
    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        (**self).delete(id)
    }
    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        (**self).reference(id)
    }
    fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        (**self).fingerprint()
    }
}
