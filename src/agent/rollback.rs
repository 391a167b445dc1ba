//! `storage.rollback_protection: tpm`: an old copy of the storage directory is noticed by the device itself, before it presents what
//! is written there.
//!
//! A counter in the TPM goes up once a join, and the memory says where it stood when it was written:
//!
//! ```text
//!  join ──▶ memory with n + 1 ──▶ counter to n + 1
//!           durable               a cut before this one is made good before the next join
//! ```
//! | memory | counter | what it is |
//! | --- | --- | --- |
//! | n | n | as it should be |
//! | n + 1 | n | a power cut between the two: the counter follows |
//! | less | | an old copy |
//! | more | | another TPM's counter, or one made anew |
//! | n | missing, or another's | deleted, or the TPM was cleared: the same as an old copy, for that is how one would be hidden |
//!
//! The counter takes an auth value from the file [`AUTH_FILE`] in the storage directory, so that a user who may talk to the TPM, by its
//! group, cannot count it up and so make the agent refuse its own memory. Such a user can still delete it, while the TPM's owner has no
//! password. A counter from before there was this file takes none; it is made anew before the next join.
//!
//! There is one counter in a TPM, so one protected storage directory. It tells a copy that was put back, not a forged one: who can
//! write the file can write another number into it, and then meets the server, which locks out a second holder of the key.

use super::error::AgentError;
use boundkey_join::device::Memory;

/// In a memory: the counter is being made, and what it will stand at is not known yet.
pub const BEGUN: u64 = 0;
/// File in the storage directory with the counter's auth value: 32 bytes.
#[cfg(feature = "tpm")]
pub const AUTH_FILE: &str = "counter.auth";

/// The counter beside a storage directory; one that is not asked for does nothing.
#[derive(Clone, Debug, Default)]
pub struct RollbackGuard {
    #[cfg(feature = "tpm")]
    counter: Option<boundkey_hal::tpm::Counter>,
    /// Whether the counter takes no auth value.
    #[cfg(feature = "tpm")]
    is_open: bool,
    /// The storage directory.
    #[cfg(feature = "tpm")]
    dir: std::path::PathBuf,
}

#[cfg(feature = "tpm")]
mod counting {
    use std::path::Path;

    use boundkey_hal::tpm::Counter;
    use boundkey_hal::tpm::counter::DEFAULT_INDEX;
    use boundkey_hal::{ErrorKind, durable};

    use zeroize::Zeroizing;

    use super::{AUTH_FILE, AgentError, BEGUN, Memory, RollbackGuard};
    use crate::config::Keystore;
    use boundkey_keystore::tpm;
    use boundkey_platform::time::{Random as _, System};
    use boundkey_state::{DirStorage, Storage as _};

    /// Length of the auth value in bytes: what a TPM takes at most.
    const AUTH_LENGTH: usize = 32;

    /// How memory and counter go together, where they do.
    enum Verdict {
        Fits,
        /// A power cut came between the two: the counter is to follow.
        Follow,
        /// Nothing was counted yet.
        New,
    }

    /// Where the counter stands.
    #[derive(Clone, Copy)]
    enum Standing {
        At(u64),
        /// In its place is what does not take our auth value, or is no counter.
        Foreign,
        Missing,
    }

    /// The auth value in the storage directory `dir`; empty where there is none.
    fn read_auth(dir: &Path) -> Result<Zeroizing<Vec<u8>>, AgentError> {
        let failed = |e| AgentError::Storage(dir.join(AUTH_FILE).display().to_string(), e);
        let auth = Zeroizing::new(DirStorage::open(dir).read(AUTH_FILE).map_err(failed)?.unwrap_or_default());
        // The counter says of any other value that it is not its own.
        if !auth.is_empty() && auth.len() != AUTH_LENGTH {
            let what = std::io::Error::new(std::io::ErrorKind::InvalidData, format!("it is not {AUTH_LENGTH} bytes long"));
            return Err(failed(what));
        }
        Ok(auth)
    }

    impl RollbackGuard {
        /// The counter in the TPM of `keystore`.
        pub fn new(keystore: &Keystore, dir: &Path, memory: &Memory) -> Result<Self, AgentError> {
            let config = tpm::config(keystore, dir, memory.keystore_pin.as_deref())?;
            let auth = read_auth(dir)?;
            let counter = Some(Counter::new(config, DEFAULT_INDEX, &auth)?);
            Ok(Self { counter, is_open: auth.is_empty(), dir: dir.into() })
        }

        /// Whether everybody who may talk to the TPM can count it up: it was made by a version before this one.
        pub fn is_open(&self, memory: &Memory) -> bool {
            self.is_open && memory.rollback_counter.is_some_and(|at| at != BEGUN)
        }

        /// Refuses an old copy. `remember` writes a memory down.
        pub fn verify(
            &mut self,
            memory: &Memory,
            remember: &mut dyn FnMut(&Memory) -> Result<(), AgentError>,
        ) -> Result<(), AgentError> {
            let Some(counter) = &self.counter else { return Ok(()) };
            match self.judge(memory)? {
                Verdict::Fits => {}
                Verdict::Follow => {
                    counter.increment()?;
                }
                Verdict::New => return self.begin(memory, remember),
            }
            if !self.is_open {
                return Ok(());
            }
            log::info!("the TPM's counter takes no auth value: it is made anew, with one");
            self.begin(memory, remember)
        }

        /// Makes the counter, with an auth value of its own.
        fn begin(
            &mut self,
            memory: &Memory,
            remember: &mut dyn FnMut(&Memory) -> Result<(), AgentError>,
        ) -> Result<(), AgentError> {
            let Some(counter) = &mut self.counter else { return Ok(()) };
            // Written down first: from then on a memory without a mark is one from before.
            let mut memory = Memory { rollback_counter: Some(BEGUN), ..memory.clone() };
            remember(&memory)?;
            if self.is_open {
                let mut auth = Zeroizing::new([0; AUTH_LENGTH]);
                System.fill(&mut auth[..])?;
                // A TPM drops zero bytes at the end.
                auth[AUTH_LENGTH - 1] |= 1;
                let path = self.dir.join(AUTH_FILE);
                let written = durable::replace(&path, &auth[..], durable::PRIVATE_FILE);
                written.map_err(|e| AgentError::Storage(path.display().to_string(), e))?;
                *counter = counter.with_auth(&auth[..])?;
                self.is_open = false;
            }
            memory.rollback_counter = Some(counter.define()?);
            remember(&memory)
        }

        /// The same without changing anything.
        pub fn check(&self, memory: &Memory) -> Result<(), AgentError> {
            self.judge(memory).map(drop)
        }

        /// Notes in a memory that is yet to be written that the counter goes up with it.
        pub fn mark(&self, memory: &mut Memory) {
            if self.counter.is_some() {
                memory.rollback_counter = memory.rollback_counter.map(|at| at.saturating_add(1));
            }
        }

        /// Counts up, once the memory is durable. Where that fails, the next join does it.
        pub fn follow(&self) {
            if let Some(Err(e)) = self.counter.as_ref().map(Counter::increment) {
                log::warn!("the TPM's counter did not follow, and will before the next join: {e}");
            }
        }

        fn judge(&self, memory: &Memory) -> Result<Verdict, AgentError> {
            let Some(counter) = &self.counter else { return Ok(Verdict::Fits) };
            let stands_at = match counter.read() {
                Ok(value) => Standing::At(value),
                Err(e) if e.kind() == ErrorKind::Exists => Standing::Foreign,
                Err(e) if e.kind() == ErrorKind::NotFound => Standing::Missing,
                Err(e) => return Err(e.into()),
            };
            let rolled_back = |why: String| Err(AgentError::RolledBack(why));
            match (memory.rollback_counter, stands_at) {
                (Some(BEGUN), _) | (None, Standing::Missing) => Ok(Verdict::New),
                // A device that never joined has nothing that could be old.
                (None, _) if memory.step.is_none() => Ok(Verdict::New),
                (None, _) => rolled_back("it is from before the TPM's counter was made".into()),
                (Some(_), Standing::Missing) => rolled_back("the TPM's counter is gone: deleted, or the TPM was cleared".into()),
                (Some(_), Standing::Foreign) => rolled_back(format!(
                    "in the place of the TPM's counter is another, which somebody who may use the TPM made, or {AUTH_FILE} is not the \
                     file that goes with it"
                )),
                (Some(at), Standing::At(value)) if at == value => Ok(Verdict::Fits),
                (Some(at), Standing::At(value)) if at == value.saturating_add(1) => Ok(Verdict::Follow),
                (Some(at), Standing::At(value)) if at < value => rolled_back(format!(
                    "it is {} joins old by the TPM's counter{}",
                    value - at,
                    if self.is_open { ", which anybody who may use the TPM can count up" } else { "" }
                )),
                (Some(_), Standing::At(_)) => {
                    rolled_back("the TPM's counter is behind it, so it is not the one it was written with".into())
                }
            }
        }
    }
}

#[cfg(not(feature = "tpm"))]
impl RollbackGuard {
    /// Nothing to verify.
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with the feature")]
    pub fn verify(&mut self, _: &Memory, _: &mut dyn FnMut(&Memory) -> Result<(), AgentError>) -> Result<(), AgentError> {
        Ok(())
    }

    /// Nothing to mark.
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    pub fn mark(&self, _: &mut Memory) {}

    /// Nothing to count.
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    pub fn follow(&self) {}
}
