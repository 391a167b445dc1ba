//! A counter in the TPM's non-volatile memory: it never goes back, so an old copy of the storage shows.
//!
//! It takes an auth value that its maker chose, so that nobody else who may talk to the TPM can count it up. But it can be deleted by
//! anybody who has the owner's password, which often is empty, and goes with a TPM that is cleared. The value of a deleted
//! counter is not lost: a TPM starts the next one above all that were. So **a counter that was there and is missing
//! ([`ErrorKind::NotFound`]) or another's ([`ErrorKind::Exists`]) must count as tampering**, and [`Counter::define`] is for
//! enrolment only.
//!
//! Each bump wears the TPM's memory: one per join, not one per start.

use zeroize::Zeroizing;

use super::config::Config;
use super::link::converse;
use super::secret::MAX_AUTH;
use crate::{Error, ErrorKind};

/// The index of our counter, in the range that the TCG leaves to owners (0x01800000 to 0x01bfffff).
pub const DEFAULT_INDEX: u32 = 0x0180_b0cd;

/// An NV counter.
#[derive(Clone)]
pub struct Counter {
    config: Config,
    index: u32,
    auth: Zeroizing<std::vec::Vec<u8>>,
}

impl core::fmt::Debug for Counter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Counter").field("config", &self.config).field("index", &self.index).finish_non_exhaustive()
    }
}

impl Counter {
    /// The counter at `index` of the TPM in `config`, which takes the auth value `auth`; nothing is sent yet. It has to be random:
    /// a short one could be found by trying, from what was seen on the bus. Without one, every user of the TPM can count it up.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what is no NV index, or no auth value: it has 32 bytes at most, and none of zero at its end.
    pub fn new(config: Config, index: u32, auth: &[u8]) -> Result<Self, Error> {
        if index >> 24 != 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format_args!("{index:#x} is not an NV index (0x01000000 to 0x01ffffff)"),
            ));
        }
        if auth.len() > MAX_AUTH || auth.ends_with(&[0]) {
            return Err(Error::new(ErrorKind::Unsupported, "that is not an auth value for a TPM's counter"));
        }
        Ok(Self { config, index, auth: Zeroizing::new(auth.to_vec()) })
    }

    /// The same index, for a counter that takes the auth value `auth`.
    pub fn with_auth(&self, auth: &[u8]) -> Result<Self, Error> {
        Self::new(self.config.clone(), self.index, auth)
    }

    /// Makes the counter where there is none of ours, and returns its value.
    ///
    /// Safe to repeat after a power cut at any instant. One of ours that is there keeps its value; what somebody else put in its place is
    /// replaced, and the new counter starts above all that were.
    pub fn define(&self) -> Result<u64, Error> {
        match self.make() {
            Err(e) if e.kind() == ErrorKind::Exists => {
                let index = self.index;
                converse(&self.config, "remove another's NV index", move |tpm| tpm.remove_counter(index))?;
                self.make()
            }
            made => made,
        }
    }

    fn make(&self) -> Result<u64, Error> {
        let (index, auth) = (self.index, self.auth.clone());
        converse(&self.config, "make the NV counter", move |tpm| tpm.define_counter(index, &auth))?;
        match self.look()? {
            Some(value) => Ok(value),
            None => self.increment(),
        }
    }

    /// Counts one up and returns the new value, which the TPM has on its medium by then.
    pub fn increment(&self) -> Result<u64, Error> {
        let (index, auth) = (self.index, self.auth.clone());
        converse(&self.config, "bump the NV counter", move |tpm| tpm.increment_counter(index, &auth))?;
        // A conversation of its own: if it is the reading that has to be repeated, the counting is not.
        self.read()
    }

    /// The value.
    pub fn read(&self) -> Result<u64, Error> {
        let index = self.index;
        self.look()?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format_args!("the TPM's NV counter {index:#x} was never counted up: made anew, not ours"),
            )
        })
    }

    /// The value, if there is one.
    fn look(&self) -> Result<Option<u64>, Error> {
        let (index, auth) = (self.index, self.auth.clone());
        converse(&self.config, "read the NV counter", move |tpm| tpm.read_counter(index, &auth))
    }
}
