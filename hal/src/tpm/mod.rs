//! Keys in a TPM 2.0: P-256 keys that never leave it, wrapped in TSS2 PRIVATE KEY files, `key-NAME.tss2.pem`, mode 0600.
//!
//! ```text
//! TpmStore ── key_file (what is on disk), public_area, secret
//!    └─ link ── watchdog (time limit)          Counter (NV counter) uses link as well
//!         └─ device::Tpm ── esys (libtss2)     fault: codes to sentences
//! ```
//!
//! - A file is useless without its TPM, and `tpm2-openssl` loads it as it stands.
//! - Keys are not under dictionary-attack protection (noDA): with it, a few power cuts after signing lock the whole TPM.
//! - All that is said to the TPM crosses a bus. Sessions are salted to the storage key, whose Name a caller pins in
//!   [`Config::storage_key`] from [`TpmStore::storage_key_name`] at enrolment. What that is good for stands in `esys.rs`.
//!
//! # For programs
//! libtss2 writes to stderr of its own accord unless `TSS2_LOG=all+none` is in the environment. A program cannot set that
//! safely for itself (`std::env::set_var` is unsafe, as other threads may be reading), so put it into the unit, or let
//! `main` start the same program again with it (`CommandExt::exec` keeps the process id) before anything else.
//!
//! libtss2 opens devices and sockets without O_CLOEXEC: a program started during a conversation inherits it, and holds
//! `/dev/tpm0` for as long as it runs. Start none from another thread while a store is at work.

mod config;
pub mod counter;
mod device;
mod esys;
mod fault;
mod key_file;
mod link;
mod public_area;
mod secret;
mod watchdog;

use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

pub use config::{Config, DEFAULT_TIME_LIMIT, Tcti};
pub use counter::Counter;
pub use device::Lockout;
use key_file::WrappedKey;
use link::converse;
pub use public_area::Name;
pub use secret::AuthSource;
use zeroize::Zeroizing;

use crate::{
    Algorithm, Capabilities, Error, ErrorKind, Fingerprint, KeyId, KeyStore, PublicKey, Reference, Signature, durable, verify,
};

const PREFIX: &str = "key-";
const SUFFIX: &str = ".tss2.pem";

/// Keys in a TPM, their wrapped halves in a directory.
#[derive(Clone, Debug)]
pub struct TpmStore {
    config: Config,
}

impl TpmStore {
    /// The store that `config` describes; nothing is sent yet.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// The file of the key `id`.
    pub fn path(&self, id: &KeyId) -> PathBuf {
        self.config.dir.join(std::format!("{PREFIX}{id}{SUFFIX}"))
    }

    /// The Name of the TPM's storage key, to be kept at enrolment and given as [`Config::storage_key`] from then on.
    ///
    /// It is the same until the TPM is cleared or replaced; with another one pinned, this is [`ErrorKind::Corrupt`].
    pub fn storage_key_name(&self) -> Result<Name, Error> {
        converse(&self.config, "name its storage key", |tpm| tpm.storage_key_name())
    }

    /// How the TPM's dictionary-attack protection stands.
    pub fn lockout(&self) -> Result<Lockout, Error> {
        converse(&self.config, "tell of its lockout", |tpm| tpm.lockout())
    }

    fn read(&self, id: &KeyId) -> Result<(Zeroizing<String>, WrappedKey, PublicKey), Error> {
        let path = self.path(id);
        let corrupt = |why| Error::new(ErrorKind::Corrupt, format_args!("{}: {why}", path.display()));
        let pem = durable::read_bounded(&path).map_err(|e| durable::explain(&path, &e))?;
        let key = WrappedKey::from_pem(&pem).map_err(corrupt)?;
        let public = public_area::signing_key(&key.public).map_err(corrupt)?;
        Ok((pem, key, public))
    }

    fn auth(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.config.auth.as_ref().map_or_else(|| Ok(Zeroizing::default()), AuthSource::read)
    }
}

impl KeyStore for TpmStore {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        let about = converse(&self.config, "tell its firmware version", |tpm| tpm.about())?;
        let [(a, b), (c, d)] = about.firmware.map(|v| (v >> 16, v & 0xffff));
        let told = std::format!(
            "TPM 2.0 {}, firmware {a}.{b}.{c}.{d}, at {}, {}",
            about.manufacturer,
            self.config.tcti,
            self.config.dir.display()
        );
        let mut place = heapless::String::new();
        // What does not fit is cut; the path stands last.
        let _cut = told.chars().try_for_each(|c| place.push(c));
        Ok(Capabilities { algorithms: heapless::Vec::from_iter([Algorithm::EcdsaP256]), hardware: true, place })
    }

    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        let path = self.path(id);
        // Before the TPM is troubled; `durable::create` looks again.
        match std::fs::symlink_metadata(&path) {
            Ok(_) => return Err(durable::explain(&path, &std::io::ErrorKind::AlreadyExists.into())),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(durable::explain(&path, &e)),
            Err(_) => {}
        }
        if algorithm != Algorithm::EcdsaP256 {
            return Err(Error::new(ErrorKind::Unsupported, format_args!("a TPM has no {algorithm} keys")));
        }
        let auth = self.auth()?;
        let key = converse(&self.config, "make a key", move |tpm| tpm.create(&auth))?;
        let public = public_area::signing_key(&key.public)
            .map_err(|why| Error::new(ErrorKind::Corrupt, format_args!("the TPM made another key than it was told: {why}")))?;
        let pem = key.to_pem().ok_or_else(|| Error::new(ErrorKind::Corrupt, "the TPM made a key of impossible size"))?;
        durable::create(&path, pem.as_bytes(), durable::PRIVATE_FILE).map_err(|e| durable::explain(&path, &e))?;
        Ok(public)
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        Ok(self.read(id)?.2)
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        let (_, key, public) = self.read(id)?;
        let auth = if key.empty_auth { Zeroizing::default() } else { self.auth()? };
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, message).as_ref());
        let signature = converse(&self.config, "sign", move |tpm| tpm.sign(&key, &auth, &digest))?;
        verify::checked(&public, message, Signature::new(signature))
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        durable::list(&self.config.dir, PREFIX, SUFFIX, each)
    }

    /// Removes the file. The TPM has nothing of the key, and nobody can load it any more but from a copy of the file.
    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        let path = self.path(id);
        durable::remove(&path).map_err(|e| durable::explain(&path, &e))
    }

    /// The text of the key's file.
    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        Reference::new(Reference::Tss2Pem, &self.read(id)?.0)
    }

    /// The Name of the storage key, see [`TpmStore::storage_key_name`].
    fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        Fingerprint::new(self.storage_key_name()?.as_bytes()).map(Some)
    }
}
