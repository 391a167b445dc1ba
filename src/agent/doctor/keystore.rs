//! The key store: reachable, with the device's key in it, and able to sign.

use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyId, KeyStore};
use nix::unistd::{AccessFlags, access};

use super::Report;
use crate::config::Config;
#[cfg(feature = "tpm")]
use crate::config::Keystore;
use crate::error::AgentError;
use boundkey_join::Thumbprint;
use boundkey_join::device::{KnownKey, Memory};
use boundkey_keystore as keystore;

const CHECK: &str = "key store";
/// Name of the throw-away key. One that a broken-off try left behind is replaced, so there is never more than one.
const THROW_AWAY: &str = "doctor-throw-away";
const MESSAGE: &[u8] = b"boundkey doctor: does this key sign?";

/// Algorithms that the store makes; none where it cannot be reached. A PIN that is refused is not tried again.
pub fn check(report: &mut Report, config: &Config, memory: Option<&Memory>) -> Vec<Algorithm> {
    let reached = open(config, memory).and_then(|store| Ok((store.capabilities()?, store)));
    let (can, store) = match reached {
        Ok(reached) => reached,
        Err(e) => {
            fail(report, CHECK, "", e);
            return Vec::new();
        }
    };
    report.ok(CHECK, format!("{}, {}", config.keystore.kind(), can.place));
    let algorithms = can.algorithms.to_vec();
    #[cfg(feature = "tpm")]
    {
        lockout(report, config);
        rollback(report, config, memory);
    }
    if let Some(key) = memory.and_then(Memory::current_key) {
        match bound_key(&*store, key) {
            Ok(()) => report.ok("key", format!("{} ({}) signs", key.id, Algorithm::from(key.algorithm))),
            Err(e) => {
                let refused = matches!(e.kind(), ErrorKind::Denied | ErrorKind::Locked);
                fail(report, "key", &format!("{}: ", key.id), e);
                if refused {
                    return algorithms;
                }
            }
        }
    }
    #[cfg(any(feature = "pkcs11", feature = "tpm"))]
    left_over(report, config, &*store);
    let in_storage = config.keystore.kind() != "pkcs11";
    if in_storage && access(&config.storage, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let advice = "mend the storage first, or run this as the user that boundkey runs as";
        report.warn(
            CHECK,
            "not tried whether it makes keys: their files go to the storage, which is not there or cannot be written",
            advice,
        );
    } else if let Some(algorithm) = algorithms.first() {
        match throw_away(&*store, *algorithm) {
            Ok(()) => report.ok(CHECK, format!("makes a key ({algorithm}), signs with it, and deletes it")),
            Err(e) => fail(report, CHECK, "a throw-away key: ", e),
        }
    }
    algorithms
}

/// The store, as it leaves no traces.
fn open(config: &Config, memory: Option<&Memory>) -> Result<Box<dyn KeyStore>, KeyError> {
    let pin = memory.and_then(|memory| memory.keystore_pin.as_deref());
    match &config.keystore {
        #[cfg(feature = "tpm")]
        Keystore::Tpm { .. } => {
            let tpm = keystore::tpm::config(&config.keystore, &config.storage, pin)?;
            let tpm = boundkey_hal::tpm::Config { persist_storage_key: false, ..tpm };
            Ok(Box::new(boundkey_hal::tpm::TpmStore::new(tpm)))
        }
        other => Ok(keystore::open(other, &config.storage, pin)?),
    }
}

/// Keys of outputs that went from the configuration.
#[cfg(any(feature = "pkcs11", feature = "tpm"))]
fn left_over(report: &mut Report, config: &Config, store: &dyn KeyStore) {
    match crate::outputs::stored::left_over(store, &config.outputs) {
        Err(e) => fail(report, CHECK, "", e),
        Ok(found) => {
            for id in found {
                let place = keystore::places(&config.keystore, &config.storage, Some(&id));
                let file = place.iter().find(|(name, _)| *name == "file").map(|(_, file)| format!("remove {file}"));
                let advice = file.unwrap_or_else(|| format!("run `boundkey hsm delete-key {id} --yes` with the token's --uri"));
                let what = format!("the key {id} is of no output of the configuration");
                report.warn(CHECK, what, format!("if no program uses it any more, {advice}"));
            }
        }
    }
}

#[cfg(feature = "tpm")]
fn lockout(report: &mut Report, config: &Config) {
    if !matches!(config.keystore, Keystore::Tpm { .. }) {
        return;
    }
    match keystore::tpm::store(&config.keystore, &config.storage, None).and_then(|store| store.lockout()) {
        Ok(lockout) if lockout.is_locked => report.warn(
            CHECK,
            format!(
                "the TPM is in dictionary-attack lockout ({} of {} failed tries); it forgets one every {} s",
                lockout.failed_tries, lockout.allowed_tries, lockout.forgets_one_in
            ),
            "keys of boundkey keep working; to end it: tpm2_dictionarylockout --clear-lockout",
        ),
        Ok(_) => {}
        Err(e) => fail(report, CHECK, "", e),
    }
}

#[cfg(feature = "tpm")]
fn rollback(report: &mut Report, config: &Config, memory: Option<&Memory>) {
    use crate::rollback::RollbackGuard;
    let Some(memory) = memory.filter(|_| config.rollback_protection) else { return };
    let guard = RollbackGuard::new(&config.keystore, &config.storage, memory);
    match guard.and_then(|guard| guard.check(memory).map(|()| guard.is_open(memory))) {
        Ok(false) => report.ok("rollback", "the state fits the TPM's counter"),
        Ok(true) => report.warn(
            "rollback",
            "the state fits the TPM's counter, which everybody who may use the TPM (group tss) can count up",
            "nothing to do: the next join makes the counter anew, with an auth value",
        ),
        Err(e) => report.fail("rollback", e.to_string(), e.advice()),
    }
}

fn bound_key(store: &dyn KeyStore, key: &KnownKey) -> Result<(), KeyError> {
    let id: KeyId = key.id.parse().map_err(|e| KeyError::new(ErrorKind::Corrupt, e))?;
    let found = Thumbprint::of(&store.public_key(&id)?);
    if found != key.thumbprint {
        let what = format_args!("it is {found}, not {} as remembered: replaced or of another device", key.thumbprint);
        return Err(KeyError::new(ErrorKind::Corrupt, what));
    }
    store.sign(&id, MESSAGE).map(drop)
}

/// Makes a key and signs with it; it is deleted whatever comes of that.
fn throw_away(store: &dyn KeyStore, algorithm: Algorithm) -> Result<(), KeyError> {
    let id: KeyId = THROW_AWAY.parse().map_err(|e| KeyError::new(ErrorKind::Other, e))?;
    match store.generate(&id, algorithm) {
        Err(e) if e.kind() == ErrorKind::Exists => {
            store.delete(&id)?;
            store.generate(&id, algorithm)?;
        }
        made => drop(made?),
    }
    let signed = store.sign(&id, MESSAGE).map(drop);
    let deleted = store.delete(&id);
    signed.and(deleted)
}

fn fail(report: &mut Report, check: &'static str, what: &str, e: KeyError) {
    let message = format!("{what}{e}");
    report.fail(check, message, AgentError::Key(e).advice());
}
