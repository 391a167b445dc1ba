//! What the store needs of a TPM. [`super::esys`] is the one way to get it today; one that needs no libtss2 would be the second.

use super::fault::Fault;
use super::key_file::WrappedKey;
use super::public_area::Name;

/// One conversation with a TPM. What it loads and opens, it flushes and closes when it is dropped, after errors too.
///
/// Parameters that hold a secret cross the bus encrypted, and answers that matter are authenticated, by a session salted
/// to the storage key.
pub(super) trait Tpm {
    /// Manufacturer and firmware.
    fn about(&mut self) -> Result<About, Fault>;

    /// The Name of the storage key: of a TPM's identities the one that needs no certificate.
    fn storage_key_name(&mut self) -> Result<Name, Fault>;

    /// Makes a signing key under the storage key.
    fn create(&mut self, auth: &[u8]) -> Result<WrappedKey, Fault>;

    /// Signs a SHA-256 digest; `r || s`.
    fn sign(&mut self, key: &WrappedKey, auth: &[u8], digest: &[u8; 32]) -> Result<[u8; 64], Fault>;

    /// Makes the NV counter `index`, which takes this auth value; what is there is left as it is.
    fn define_counter(&mut self, index: u32, auth: &[u8]) -> Result<(), Fault>;

    /// Removes the NV index `index`, whatever it is, by the owner's right; one that is gone is no error.
    fn remove_counter(&mut self, index: u32) -> Result<(), Fault>;

    /// Counts one up.
    fn increment_counter(&mut self, index: u32, auth: &[u8]) -> Result<(), Fault>;

    /// The value, `None` where it was never counted up.
    fn read_counter(&mut self, index: u32, auth: &[u8]) -> Result<Option<u64>, Fault>;

    /// How dictionary-attack protection stands.
    fn lockout(&mut self) -> Result<Lockout, Fault>;

    /// In how many seconds at most a TPM in dictionary-attack lockout forgets one failed try.
    fn lockout_interval(&mut self) -> Option<u32>;

    /// Handles of the objects and sessions that are loaded, those of others included.
    fn loaded(&mut self) -> Result<std::vec::Vec<u32>, Fault>;

    /// Flushes what others left behind; what is gone already is no error.
    fn flush(&mut self, handles: &[u32]);
}

/// What a TPM says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) manufacturer: std::string::String,
    pub(super) firmware: [u32; 2],
}

/// Dictionary-attack protection of a TPM as it stands. Keys made here are not under it; those of other programs can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// Whether keys under protection are refused now.
    pub is_locked: bool,
    /// Failed tries that it remembers.
    pub failed_tries: u32,
    /// How many lock it.
    pub allowed_tries: u32,
    /// In how many seconds it forgets one.
    pub forgets_one_in: u32,
}
