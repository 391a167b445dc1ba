//! The key store that a configuration or a command line asks for, and no other: for the device's keys and for the server's.
#![forbid(unsafe_code)]

mod options;

use std::path::Path;

use boundkey_hal::file::FileStore;
use boundkey_hal::{Error as KeyError, KeyId, KeyStore};

#[cfg(feature = "pkcs11")]
pub use options::PIN_VARIABLE;
pub use options::{Keystore, KeystoreKind, KeystoreOptions, OPTIONS};

/// Opens the key store. `pin` is what [`identify`] told at the first use; where it is given, another one is an error.
#[cfg_attr(not(feature = "tpm"), expect(unused_variables, reason = "only a TPM is pinned"))]
pub fn open(keystore: &Keystore, dir: &Path, pin: Option<&[u8]>) -> Result<Box<dyn KeyStore>, KeyError> {
    Ok(match keystore {
        Keystore::File => Box::new(FileStore::new(dir)),
        #[cfg(feature = "pkcs11")]
        Keystore::Pkcs11(config) => Box::new(boundkey_hal::pkcs11::Pkcs11Store::new(config.clone())?),
        #[cfg(feature = "tpm")]
        Keystore::Tpm { .. } => Box::new(tpm::store(keystore, dir, pin)?),
    })
}

/// What tells this key store from another, to be remembered: the Name of a TPM's storage key. `None` where the configuration says it all.
#[cfg_attr(not(feature = "tpm"), expect(unused_variables, reason = "only a TPM is pinned"))]
pub fn identify(keystore: &Keystore, dir: &Path) -> Result<Option<Vec<u8>>, KeyError> {
    match keystore {
        #[cfg(feature = "tpm")]
        Keystore::Tpm { .. } => Ok(open(keystore, dir, None)?.fingerprint()?.map(|it| it.as_bytes().to_vec())),
        _ => Ok(None),
    }
}

/// Where to look for the store and its key `id`: names and values, for people.
pub fn places(keystore: &Keystore, dir: &Path, id: Option<&KeyId>) -> Vec<(&'static str, String)> {
    let mut places = Vec::new();
    match keystore {
        Keystore::File => places.extend(id.map(|id| ("file", FileStore::new(dir).path(id).display().to_string()))),
        #[cfg(feature = "pkcs11")]
        Keystore::Pkcs11(config) => places.push(("module", config.module.display().to_string())),
        #[cfg(feature = "tpm")]
        Keystore::Tpm { .. } => {
            if let Ok(store) = tpm::store(keystore, dir, None) {
                places.extend(id.map(|id| ("file", store.path(id).display().to_string())));
            }
        }
    }
    places
}

/// Starts this program anew, as the same process, so that libraries of a key store do not write to stderr by themselves: libtss2
/// reports each expected refusal of the TPM there unless its variable says otherwise, and a program cannot safely set one for itself.
///
/// To be called before anything else is done. Where starting anew fails, stderr is noisier, and that is all.
pub fn quieten() {
    use std::os::unix::process::CommandExt as _;
    const LIBRARY_LOG: &str = "TSS2_LOG";
    if std::env::var_os(LIBRARY_LOG).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) {
        let _failed = std::process::Command::new(program).arg0(name).args(arguments).env(LIBRARY_LOG, "all+none").exec();
    }
}

#[cfg(feature = "tpm")]
pub mod tpm {
    //! From configuration to a TPM's store.

    use std::path::Path;

    use boundkey_hal::tpm::{Config, Name, Tcti, TpmStore};
    use boundkey_hal::{Error as KeyError, ErrorKind};

    use super::Keystore;

    /// The store, its key files in `dir`.
    pub fn store(keystore: &Keystore, dir: &Path, pin: Option<&[u8]>) -> Result<TpmStore, KeyError> {
        Ok(TpmStore::new(config(keystore, dir, pin)?))
    }

    /// What the store needs to know.
    pub fn config(keystore: &Keystore, dir: &Path, pin: Option<&[u8]>) -> Result<Config, KeyError> {
        let Keystore::Tpm { tcti, auth } = keystore else {
            return Err(KeyError::new(ErrorKind::Unsupported, format_args!("{} is no TPM", keystore.kind())));
        };
        let tcti = tcti.clone().map_or_else(|| Tcti::configured(None), Ok)?;
        let unreadable = || KeyError::new(ErrorKind::Corrupt, "what is remembered of the TPM is not the Name of a key");
        let storage_key = pin.map(|pin| Name::from_bytes(pin).ok_or_else(unreadable)).transpose()?;
        Ok(Config { auth: auth.clone(), storage_key, ..Config::new(dir, tcti) })
    }
}
