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
//! | n | missing | deleted, or the TPM was cleared: the same as an old copy, for that is how one would be hidden |
//!
//! There is one counter in a TPM, so one protected storage directory. It tells a copy that was put back, not a forged one: who can
//! write the file can write another number into it, and then meets the server, which locks out a second holder of the key.

use super::error::AgentError;
use crate::join::device::Memory;

/// In a memory: the counter is being made, and what it will stand at is not known yet.
pub const BEGUN: u64 = 0;

/// The counter beside a storage directory; one that is not asked for does nothing.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    #[cfg(feature = "tpm")]
    counter: Option<boundkey_hal::tpm::Counter>,
}

#[cfg(feature = "tpm")]
mod counting {
    use std::path::Path;

    use boundkey_hal::ErrorKind;
    use boundkey_hal::tpm::Counter;
    use boundkey_hal::tpm::counter::DEFAULT_INDEX;

    use super::{AgentError, BEGUN, Guard, Memory};
    use crate::agent::config::Keystore;
    use crate::keystore::tpm;

    /// How memory and counter go together, where they do.
    enum Verdict {
        Fits,
        /// A power cut came between the two: the counter is to follow.
        Follow,
        /// Nothing was counted yet.
        New,
    }

    impl Guard {
        /// The counter in the TPM of `keystore`.
        pub fn new(keystore: &Keystore, dir: &Path, memory: &Memory) -> Result<Self, AgentError> {
            let config = tpm::config(keystore, dir, memory.keystore_pin.as_deref())?;
            Ok(Self { counter: Some(Counter::new(config, DEFAULT_INDEX)?) })
        }

        /// Refuses an old copy. `remember` writes a memory down.
        pub fn verify(
            &self,
            memory: &Memory,
            remember: &mut dyn FnMut(&Memory) -> Result<(), AgentError>,
        ) -> Result<(), AgentError> {
            let Some(counter) = &self.counter else { return Ok(()) };
            match self.judge(memory)? {
                Verdict::Fits => Ok(()),
                Verdict::Follow => {
                    counter.increment()?;
                    Ok(())
                }
                Verdict::New => {
                    // Written down first: from then on a memory without a mark is one from before.
                    let mut memory = Memory { rollback_counter: Some(BEGUN), ..memory.clone() };
                    remember(&memory)?;
                    memory.rollback_counter = Some(counter.define()?);
                    remember(&memory)
                }
            }
        }

        /// The same without changing anything.
        pub fn look(&self, memory: &Memory) -> Result<(), AgentError> {
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
                Ok(value) => Some(value),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(e.into()),
            };
            let rolled_back = |why: String| Err(AgentError::RolledBack(why));
            match (memory.rollback_counter, stands_at) {
                (Some(BEGUN), _) | (None, None) => Ok(Verdict::New),
                // A device that never joined has nothing that could be old.
                (None, Some(_)) if memory.step.is_none() => Ok(Verdict::New),
                (None, Some(_)) => rolled_back("it is from before the TPM's counter was made".into()),
                (Some(_), None) => rolled_back("the TPM's counter is gone: deleted, or the TPM was cleared".into()),
                (Some(at), Some(value)) if at == value => Ok(Verdict::Fits),
                (Some(at), Some(value)) if at == value.saturating_add(1) => Ok(Verdict::Follow),
                (Some(at), Some(value)) if at < value => {
                    rolled_back(format!("it is {} joins old by the TPM's counter", value - at))
                }
                (Some(_), Some(_)) => {
                    rolled_back("the TPM's counter is behind it, so it is not the one it was written with".into())
                }
            }
        }
    }
}

#[cfg(not(feature = "tpm"))]
impl Guard {
    /// Nothing to verify.
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with the feature")]
    pub fn verify(&self, _: &Memory, _: &mut dyn FnMut(&Memory) -> Result<(), AgentError>) -> Result<(), AgentError> {
        Ok(())
    }

    /// Nothing to mark.
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    pub fn mark(&self, _: &mut Memory) {}

    /// Nothing to count.
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    pub fn follow(&self) {}
}
