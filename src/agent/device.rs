//! The device as its parts stand on disk: storage directory, memory, key store. One agent at a time.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use boundkey_hal::dir::Dir;
use boundkey_hal::{Algorithm, ErrorKind, KeyId, KeyStore, PublicKey, durable};

use super::config::Keystore;
use super::error::AgentError;
use super::recovery_code::RecoveryCodeFault;
use super::rollback::{self, RollbackGuard};
use boundkey_join::device::{KEPT_KEYS, KnownKey, MAX_KEYS, Memory};
use boundkey_join::{Id, Thumbprint};
use boundkey_keystore as keystore;
use boundkey_state::{DirStorage, StateFile, Storage};

/// Held by the agent that runs on a storage directory.
pub(super) const LOCK_FILE: &str = "lock";

/// Longest that a command such as `boundkey recovery-code` takes, with a slow key store.
const COMMAND: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// So many keys of which there is a part alone are passed over: each took a power cut at the wrong moment.
const MAX_PASSED_OVER: u32 = 10;

/// A device's storage directory and key store, held by this process alone.
pub struct Device {
    /// What it remembers.
    pub state: StateFile<Box<dyn Storage>>,
    /// Its keys.
    pub keys: Box<dyn KeyStore>,
    /// Tells an old copy of the storage.
    pub guard: RollbackGuard,
    /// Whether its one key came with the configuration, and it forgets all when it ends.
    pub is_static: bool,
    /// Held while the device is.
    _lock: Option<File>,
}

/// What to do where the key store is another one than the device remembers: a TPM that was cleared or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// Refuse it.
    Keep,
    /// Remember it from now on. An operator's word is needed for that.
    Renew,
}

impl Device {
    /// Opens the storage directory `dir`, making it if missing, and the key store, which is remembered at its first use.
    pub fn open(dir: &Path, keystore: &Keystore, pinning: Pinning) -> Result<Self, AgentError> {
        let failed = |e| AgentError::Storage(dir.display().to_string(), e);
        let storage = DirStorage::create(dir).map_err(failed)?;
        let lock = Dir::open(dir).and_then(|dir| dir.write_or_make(LOCK_FILE, durable::PRIVATE_FILE)).map_err(failed)?;
        hold(&lock).map_err(|e| match e {
            TryLockError::WouldBlock => AgentError::StorageInUse(dir.display().to_string()),
            TryLockError::Error(e) => failed(e),
        })?;
        let state = StateFile::open(Box::new(storage) as Box<dyn Storage>).map_err(|e| AgentError::State(dir.into(), e))?;
        if let Some(why) = state.damaged() {
            log::warn!("one of the two slots of the state file is {why}; the other one holds, nothing is lost");
        }
        let mut memory = state.memory().clone();
        let mut replaced = false;
        if memory.keystore_pin.is_none() || pinning == Pinning::Renew {
            let found = keystore::identify(keystore, dir)?;
            if memory.keystore_pin.is_some() && memory.keystore_pin != found {
                // The counter went with the TPM.
                memory.rollback_counter = memory.rollback_counter.map(|_| rollback::BEGUN);
                replaced = found.is_some();
            }
            memory.keystore_pin = found;
        }
        let keys = keystore::open(keystore, dir, memory.keystore_pin.as_deref())?;
        if replaced {
            forget_outputs(&*keys)?;
        }
        let mut device = Self { state, keys, guard: RollbackGuard::default(), is_static: false, _lock: Some(lock) };
        device.adopt_keys(&mut memory)?;
        if memory != Memory::default() {
            device.remember(&memory)?;
        }
        Ok(device)
    }

    /// A device that has this key alone and remembers in `storage`, which is empty.
    pub fn in_memory(
        storage: Box<dyn Storage>,
        id: &KeyId,
        key: &PublicKey,
        keys: Box<dyn KeyStore>,
    ) -> Result<Self, AgentError> {
        let state = StateFile::open(storage).map_err(|e| AgentError::State("memory".into(), e))?;
        let mut device = Self { state, keys, guard: RollbackGuard::default(), is_static: true, _lock: None };
        device.remember(&Memory { keys: vec![known(id, key)], ..Memory::default() })?;
        Ok(device)
    }

    /// Takes up keys that the store has and a lost state file does not name: without it they are all that is left of the device.
    fn adopt_keys(&mut self, memory: &mut Memory) -> Result<(), AgentError> {
        if self.state.exists() {
            return Ok(());
        }
        let mut found = Vec::new();
        self.keys.list(&mut |id| found.extend(number(id.as_str()).map(|n| (n, id.clone()))))?;
        found.sort();
        let alone = found.len() == 1;
        // More than can be remembered: the newest of them.
        found.drain(..found.len().saturating_sub(MAX_KEYS));
        for (_, id) in found {
            let key = match self.keys.public_key(&id) {
                // The first key, of which a power cut left a part; or the device's, and then the server will ask for it.
                Err(e) if alone && e.kind() == ErrorKind::Corrupt => {
                    log::warn!("there is no state file, and the one key in the key store cannot be used: {e}");
                    continue;
                }
                public => known(&id, &public?),
            };
            log::warn!("there is no state file, but the key store has key {id} ({}): taken up", key.thumbprint);
            memory.add_key(key)?;
        }
        Ok(())
    }

    /// Refuses what it remembers, where that is an old copy.
    pub fn verify(&mut self) -> Result<(), AgentError> {
        let (mut guard, memory) = (std::mem::take(&mut self.guard), self.state.memory().clone());
        let verified = guard.verify(&memory, &mut |memory| self.remember(memory));
        self.guard = guard;
        verified
    }

    /// Writes down what the device is to remember.
    pub fn remember(&mut self, memory: &Memory) -> Result<(), AgentError> {
        self.state.store(memory).map_err(|e| AgentError::Storage(boundkey_state::STATE_FILE.into(), e))
    }

    /// Makes the next key, durable in its store, and names it in `memory`, which the caller writes down.
    pub fn make_key(&mut self, memory: &mut Memory, algorithm: Algorithm) -> Result<PublicKey, AgentError> {
        memory.check_room()?;
        let (id, public) = self.generate(memory, algorithm, Interrupted::TakeUp)?;
        memory.add_key(known(&id, &public))?;
        Ok(public)
    }

    /// Deletes keys that a confirmed one has superseded.
    pub fn delete_keys(&mut self, superseded: &[KnownKey]) {
        for old in superseded {
            self.forget(old);
        }
    }

    /// Makes a key for a recovery code that `request` asks for, durable in its store, and writes it down in front of all others. It is made now, whatever else is
    /// there: an older one may have been copied.
    pub fn make_recovery_key(&mut self, algorithm: Algorithm, request: Id) -> Result<KnownKey, AgentError> {
        let mut memory = self.state.memory().clone();
        let (id, public) = self.generate(&memory, algorithm, Interrupted::PassOver)?;
        let key = known(&id, &public);
        let Ok(replaced) = memory.add_recovery_key(key.clone(), request) else {
            self.forget(&key);
            return Err(AgentError::RecoveryCode(RecoveryCodeFault::TooManyKeys));
        };
        self.remember(&memory)?;
        if let Some(old) = replaced {
            self.forget(&old);
        }
        Ok(key)
    }

    /// Makes a key of the next name that is free. A key of that name whose making was interrupted before it was written down never left
    /// the device. Where only a part of it is there (FAT, some tokens), it is left alone, and the next name is taken.
    fn generate(
        &mut self,
        memory: &Memory,
        algorithm: Algorithm,
        interrupted: Interrupted,
    ) -> Result<(KeyId, PublicKey), AgentError> {
        let mut name = memory.next_key_id();
        let mut passed_over = 0;
        loop {
            let id: KeyId = name.parse().map_err(|e| AgentError::Other(format!("key name {name}: {e}")))?;
            let exists = match self.keys.generate(&id, algorithm) {
                Err(e) if e.kind() == ErrorKind::Exists => e,
                made => return Ok((id, made?)),
            };
            let why = match (interrupted, self.keys.public_key(&id)) {
                (Interrupted::PassOver, _) => exists,
                (Interrupted::TakeUp, Err(e)) if e.kind() == ErrorKind::Corrupt => e,
                (Interrupted::TakeUp, found) => return Ok((id, found?)),
            };
            if passed_over == MAX_PASSED_OVER {
                return Err(why.into());
            }
            let state = match interrupted {
                Interrupted::PassOver => "may be older than it must be",
                Interrupted::TakeUp => "was not made whole",
            };
            log::warn!("key {id} {state}, and is passed over: {why}");
            name = number(&name).map_or(name, |n| format!("bound-{}", n.saturating_add(1)));
            passed_over += 1;
        }
    }

    /// Deletes a key that is no longer remembered. One that cannot be deleted is in nobody's way.
    fn forget(&mut self, key: &KnownKey) {
        let id = key.id.parse::<KeyId>().map_err(|e| e.to_string());
        let deleted = id.and_then(|id| match self.keys.delete(&id) {
            // A power cut came between this and the memory that no longer names it.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            deleted => deleted.map_err(|e| e.to_string()),
        });
        match deleted {
            Ok(()) => log::info!("deleted key {}: the newest {KEPT_KEYS} are kept", key.id),
            Err(e) => log::warn!("key {} could not be deleted: {e}", key.id),
        }
    }
}

/// What to do with a key that the store has under the next name, although it was never written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupted {
    /// Make another one: this one may be older than it must be.
    PassOver,
    /// Use it.
    TakeUp,
}

/// Deletes the keys of outputs: they were of a TPM that is gone, and are made anew.
#[cfg(any(feature = "pkcs11", feature = "tpm"))]
fn forget_outputs(keys: &dyn KeyStore) -> Result<(), AgentError> {
    Ok(super::outputs::stored::left_over(keys, &[])?.iter().try_for_each(|id| keys.delete(id))?)
}

/// Only hardware is ever another one.
#[cfg(not(any(feature = "pkcs11", feature = "tpm")))]
#[expect(clippy::unnecessary_wraps, reason = "as the one with hardware")]
fn forget_outputs(_: &dyn KeyStore) -> Result<(), AgentError> {
    Ok(())
}

/// Takes the lock of a storage directory. An agent that starts while a command makes a key there waits for it.
fn hold(lock: &File) -> Result<(), TryLockError> {
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if start.elapsed() < COMMAND => std::thread::sleep(LOOK),
            held => return held,
        }
    }
}

/// Whether an agent holds the storage directory `dir`.
pub(super) fn is_in_use(dir: &Path) -> Result<bool, AgentError> {
    let failed = |e| AgentError::Storage(dir.display().to_string(), e);
    let lock = match Dir::to_read(dir).and_then(|dir| dir.read(LOCK_FILE, 0)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        found => match found.map_err(failed)? {
            Some(found) => found.file,
            None => return Ok(false),
        },
    };
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Which agent holds the storage directory `dir`, from the kernel's list: to try the lock would keep an agent from starting in that
/// moment.
pub(super) fn holder(dir: &Path) -> Option<u32> {
    let lock = std::fs::metadata(dir.join(LOCK_FILE)).ok()?;
    let inode = lock.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 1234 fe:01:56789 0 EOF` (proc_locks(5)); the device is not always that of stat(2).
    let pids = locks.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let flock = fields.next()? == "FLOCK";
        let pid: u32 = fields.nth(2)?.parse().ok()?;
        let same = fields.next()?.rsplit(':').next()?.parse() == Ok(inode);
        (flock && same).then_some(pid)
    });
    // A file on another file system may have the same number, and be locked by anybody.
    let is_agent = |pid: &u32| {
        let owned = std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| [0, lock.uid()].contains(&process.uid()));
        owned && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("boundkey"))
    };
    pids.into_iter().find(is_agent)
}

/// The name of a key and what is remembered of it.
fn known(id: &KeyId, public: &PublicKey) -> KnownKey {
    KnownKey { id: id.to_string(), thumbprint: Thumbprint::of(public), algorithm: public.algorithm().into(), bound: false }
}

/// The number in `bound-N`.
fn number(id: &str) -> Option<u32> {
    id.strip_prefix("bound-")?.parse().ok()
}
