//! Where the cluster's keys are: in files of the data directory, in a TPM, or in a PKCS#11 token.

use std::collections::BTreeMap;
use std::path::Path;

use boundkey_hal::file::LoadedFileStore;
use boundkey_hal::{Error as KeyError, ErrorKind, KeyStore};
use serde::{Deserialize, Serialize};

use boundkey_join::base64url;
use boundkey_keystore::{self as keystore, Keystore, KeystoreOptions, OPTIONS};
use boundkey_platform::refusal::Refusal;

/// What `init` was told of the key store, as `cluster.json` keeps it. Neither PIN nor auth value: only where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    r#type: String,
    /// The TPM's storage key when `init` found it, base64url of its Name: another TPM is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tpm: Option<String>,
    /// By the names of the options.
    #[serde(flatten)]
    options: BTreeMap<String, String>,
}

impl Default for Place {
    /// In files.
    fn default() -> Self {
        Self { r#type: "file".into(), tpm: None, options: BTreeMap::new() }
    }
}

impl Place {
    /// What a command line says. `kind` is `file`, `tpm` or `pkcs11`, `option` looks up what goes with it.
    pub fn new(kind: &str, option: &dyn Fn(&str) -> Option<String>) -> Result<Self, Refusal> {
        let options = OPTIONS.iter().filter_map(|(name, _)| Some(((*name).to_owned(), option(name)?))).collect();
        let place = Self { r#type: kind.to_owned(), tpm: None, options };
        place.keystore()?;
        Ok(place)
    }

    /// Whether the keys are files, and nothing else has to be said.
    pub fn is_files(&self) -> bool {
        *self == Self::default()
    }

    /// Keeps the key store's libraries from writing to stderr: see [`keystore::quieten`].
    pub fn quieten(&self) {
        if !self.is_files() {
            keystore::quieten();
        }
    }

    /// Whether clusters could share it: a token holds keys of everybody who has its PIN, a directory those of one cluster.
    pub(crate) fn is_shared(&self) -> bool {
        self.r#type == "pkcs11"
    }

    /// The same, with the TPM that is there now.
    pub(crate) fn identified(&self, dir: &Path) -> Result<Self, KeyError> {
        let tpm = keystore::identify(&self.keystore().map_err(unusable)?, dir)?;
        Ok(Self { tpm: tpm.map(base64url::encode), ..self.clone() })
    }

    /// Opens the key store; files of keys are in `dir`.
    pub(crate) fn open(&self, dir: &Path) -> Result<Box<dyn KeyStore>, KeyError> {
        if self.is_files() {
            return Ok(Box::new(LoadedFileStore::new(dir)));
        }
        let damaged = |_| KeyError::new(ErrorKind::Corrupt, "what cluster.json says of the TPM is damaged");
        let tpm = self.tpm.as_deref().map(base64url::decode).transpose().map_err(damaged)?;
        keystore::open(&self.keystore().map_err(unusable)?, dir, tpm.as_deref())
    }

    fn keystore(&self) -> Result<Keystore, Refusal> {
        let options = KeystoreOptions::named(&self.r#type, &|name| self.options.get(name).cloned())?;
        Ok(Keystore::try_from(options)?.with_environment(&|name| std::env::var(name).ok()))
    }
}

/// Of what was taken once; by another build of this program, for one.
fn unusable(refusal: Refusal) -> KeyError {
    KeyError::new(ErrorKind::Unsupported, refusal.what)
}

/// What to do about an error of the key store.
pub fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Busy | ErrorKind::Unreachable => {
            "see that the TPM or token is there and not in use; devices try again by themselves, and lose nothing"
        }
        ErrorKind::Denied => "let the user that boundkey-auth runs as use it: group tss for a TPM; PIN or auth value",
        ErrorKind::Locked => "wait until the lockout ends, or have its owner lift it; do not try again before",
        ErrorKind::Unsupported => "choose another --ca-keystore, or install a boundkey-auth that is built for it",
        ErrorKind::Corrupt | ErrorKind::NotFound => {
            "nothing was overwritten; bring back the TPM or token that the keys were made in, and the data directory that goes with it"
        }
        _ => "mend the key store's fault and try again",
    }
}
