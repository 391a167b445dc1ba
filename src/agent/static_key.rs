//! A host without writable storage: its key comes with the configuration, and many hosts may share it. All that it remembers it forgets
//! when it ends; it then joins anew, which a token allows in recovery mode `insecure` alone.

use std::collections::BTreeMap;
use std::io;

use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Capabilities, Error as KeyError, ErrorKind, KeyId, KeyStore, PublicKey, Signature};
use zeroize::Zeroizing;

use super::config::Config;
use super::device::Device;
use super::error::{AgentError, StaticKeyFault};
use super::transport::TransportError;
use boundkey_join::device::challenge::GiveUp;
use boundkey_join::message::JoinAnswer;
use boundkey_join::{ProblemType, RecoveryMode};
use boundkey_state::Storage;

/// Name of the one key.
const NAME: &str = "static";

/// The device of a configuration with a static key.
pub fn open(config: &Config) -> Result<Option<Device>, AgentError> {
    let Some(source) = &config.onboarding.static_key else { return Ok(None) };
    let key = source.read_static_key()?;
    let id = NAME.parse().map_err(|e| AgentError::Other(format!("key name {NAME}: {e}")))?;
    let public = key.public_key()?;
    let store = StaticStore { id, public, key };
    Ok(Some(Device::in_memory(Box::new(Volatile::default()), &store.id.clone(), &store.public.clone(), Box::new(store))?))
}

/// What an error means for a host with a static key, where that is more than it says.
pub fn explain(e: AgentError) -> AgentError {
    AgentError::StaticKey(match e {
        AgentError::GaveUp(GiveUp::UnknownKey(key)) => StaticKeyFault::OtherKey(key),
        AgentError::Key(e) if e.kind() == ErrorKind::Unsupported => StaticKeyFault::Rotation,
        AgentError::Transport(TransportError::Refused(problem)) if problem.kind == ProblemType::JoinStateRequired => {
            StaticKeyFault::NotInsecure
        }
        other => return other,
    })
}

/// What to say of a join that succeeded, where the next start will not.
pub fn warning(answer: &JoinAnswer) -> Option<&'static str> {
    (answer.recoveries.mode != RecoveryMode::Insecure).then_some(
        "the token is not in recovery mode insecure: this host cannot join again once the agent has ended; set recovery.mode: insecure",
    )
}

/// A key store with one key, which stays as it is.
struct StaticStore {
    id: KeyId,
    public: PublicKey,
    key: PrivateKey,
}

impl StaticStore {
    fn open(&self, id: &KeyId) -> Result<&PrivateKey, KeyError> {
        if *id == self.id { Ok(&self.key) } else { Err(KeyError::new(ErrorKind::NotFound, "there is a static key alone")) }
    }
}

impl KeyStore for StaticStore {
    fn capabilities(&self) -> Result<Capabilities, KeyError> {
        let algorithms = [self.public.algorithm()].into_iter().collect();
        Ok(Capabilities { algorithms, hardware: false, place: NAME.parse().unwrap_or_default() })
    }

    fn generate(&self, _: &KeyId, _: Algorithm) -> Result<PublicKey, KeyError> {
        Err(KeyError::new(ErrorKind::Unsupported, "a static key is not replaced"))
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, KeyError> {
        self.open(id).map(|_| self.public.clone())
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, KeyError> {
        self.open(id)?.sign(message)
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), KeyError> {
        each(&self.id);
        Ok(())
    }

    fn delete(&self, _: &KeyId) -> Result<(), KeyError> {
        Err(KeyError::new(ErrorKind::Unsupported, "a static key is not deleted"))
    }
}

/// Files that end with the process. The identity's key is among them.
#[derive(Default)]
struct Volatile(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl Storage for Volatile {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(name).map(|bytes| bytes.to_vec()))
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let file = self.0.get_mut(name).and_then(|file| file.get_mut(start..start.checked_add(bytes.len())?));
        file.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(name.into(), Zeroizing::new(bytes.to_vec()));
        Ok(())
    }
}
