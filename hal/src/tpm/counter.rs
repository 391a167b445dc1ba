//! A counter in the TPM's non-volatile memory: it never goes back, so an old copy of the storage shows.
//!
//! The value of a counter that was deleted is not lost: a TPM starts the next one above all that were. But it can be deleted
//! by whoever has the owner's password (often empty), and goes with a TPM that is cleared; so **a counter that was there
//! and is missing ([`ErrorKind::NotFound`]) must count as tampering**, and [`Counter::define`] is for enrolment only.
//!
//! Each bump wears the TPM's memory: one per join, not one per start.

use super::config::Config;
use super::link::converse;
use crate::{Error, ErrorKind};

/// The index of our counter, in the range that the TCG leaves to owners (0x01800000 to 0x01bfffff).
pub const DEFAULT_INDEX: u32 = 0x0180_b0cd;

/// An NV counter.
#[derive(Clone, Debug)]
pub struct Counter {
    config: Config,
    index: u32,
}

impl Counter {
    /// The counter at `index` of the TPM in `config`; nothing is sent yet.
    pub fn new(config: Config, index: u32) -> Result<Self, Error> {
        if index >> 24 != 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format_args!("{index:#x} is not an NV index (0x01000000 to 0x01ffffff)"),
            ));
        }
        Ok(Self { config, index })
    }

    /// Makes the counter where there is none, and returns its value.
    ///
    /// Safe to repeat after a power cut at any instant. One that is there keeps its value.
    pub fn define(&self) -> Result<u64, Error> {
        let index = self.index;
        converse(&self.config, "make the NV counter", move |tpm| tpm.define_counter(index))?;
        match converse(&self.config, "read the NV counter", move |tpm| tpm.read_counter(index))? {
            Some(value) => Ok(value),
            None => self.increment(),
        }
    }

    /// Counts one up and returns the new value, which the TPM has on its medium by then.
    pub fn increment(&self) -> Result<u64, Error> {
        let index = self.index;
        converse(&self.config, "bump the NV counter", move |tpm| tpm.increment_counter(index))?;
        // A conversation of its own: if it is the reading that has to be repeated, the counting is not.
        self.read()
    }

    /// The value.
    pub fn read(&self) -> Result<u64, Error> {
        let index = self.index;
        converse(&self.config, "read the NV counter", move |tpm| tpm.read_counter(index))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format_args!("the TPM's NV counter {index:#x} was never counted up: made anew, not ours"),
            )
        })
    }
}
