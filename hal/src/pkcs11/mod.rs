//! Keys in a PKCS#11 token: a smart card, a USB token, an HSM, or a TPM behind tpm2-pkcs11.
//!
//! ```no_run
//! use boundkey_hal::pkcs11::{Config, Pkcs11Store};
//! use boundkey_hal::{Algorithm, KeyStore};
//!
//! let uri = "pkcs11:token=edge?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/boundkey/pin";
//! let mut store = Pkcs11Store::new(Config::from_uri(uri)?)?;
//! store.generate(&"device".parse()?, Algorithm::EcdsaP256)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - Each call finds the token, opens a session, logs in, acts and closes. Only the module stays loaded and initialised.
//! - A wrong PIN is tried once in the life of a process; where a token says that one more locks it, none is tried.
//! - Other failures lead to a fresh start of the module within the call, a token that is not there to a few: one that came back
//!   is found again.
//! - Several programs can share a token, and several agents too, each with its own [`Config::prefix`]. Ours take turns.
//! - Nothing here has a time limit: a token that hangs in a call hangs the caller.
//!
//! Read top-down: this file, then `object` (key pairs), `token` (finding and logging in), `module` (loading, errors).

mod admin;
mod module;
mod object;
mod pin;
mod token;
mod uri;

use std::format;
use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

use cryptoki::session::Session;

use crate::{Algorithm, Capabilities, Error, ErrorKind, Fingerprint, KeyId, KeyStore, PublicKey, Reference, Signature};
pub use admin::{TokenSummary, init_token, tokens};
use module::{Failure, failed};
pub use pin::PinSource;
use token::{Access, Label, Token};
pub use uri::{InvalidUri, TokenMatch, Uri};

/// Prefix of labels and ids where the configuration names no other.
pub const DEFAULT_PREFIX: &str = "boundkey-";
/// Longest prefix: with a [`KeyId`] it makes an id of at most 64 bytes.
const MAX_PREFIX: usize = 32;

/// Which token, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The module: an absolute path to a shared library.
    pub module: PathBuf,
    /// The token.
    pub token: TokenMatch,
    /// Where the PIN is. A token that asks for none needs none.
    pub pin: Option<PinSource>,
    /// What the labels and ids of this store's keys begin with: up to 32 characters of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`.
    pub prefix: String,
}

impl Config {
    /// The token `token` of the module at `module`, without a PIN.
    pub fn new(module: impl Into<PathBuf>, token: TokenMatch) -> Self {
        Self { module: module.into(), token, pin: None, prefix: DEFAULT_PREFIX.into() }
    }

    /// What a URI (RFC 7512) says: `pkcs11:token=edge?module-path=/usr/lib/...&pin-source=file:/etc/...`.
    pub fn from_uri(uri: &str) -> Result<Self, Error> {
        let uri: Uri = uri.parse().map_err(|e| Error::new(ErrorKind::Other, e))?;
        let missing = "the PKCS#11 URI names no module: add ?module-path=/PATH";
        let module = uri.module.ok_or_else(|| Error::new(ErrorKind::Other, missing))?;
        Ok(Self { pin: uri.pin, ..Self::new(module, uri.token) })
    }
}

/// Keys in one PKCS#11 token.
#[derive(Clone, Debug)]
pub struct Pkcs11Store {
    config: Config,
}

impl Pkcs11Store {
    /// A store on the token that `config` names. Nothing is opened yet; only the configuration is checked.
    pub fn new(config: Config) -> Result<Self, Error> {
        let refuse = |why| Err(Error::new(ErrorKind::Other, why));
        if !config.module.is_absolute() {
            return refuse("the path of a PKCS#11 module must be absolute");
        }
        if config.token.label.is_none() && config.token.serial.is_none() {
            return refuse("no PKCS#11 token is named: give its label or its serial number");
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if config.prefix.len() > MAX_PREFIX || !config.prefix.bytes().all(plain) {
            return refuse("the prefix of PKCS#11 labels has up to 32 letters, digits, full stops, - and _");
        }
        Ok(Self { config })
    }

    /// The id and label of the key `id` on the token.
    fn name(&self, id: &KeyId) -> String {
        format!("{}{id}", self.config.prefix)
    }

    fn key_ids(&self, session: &Session) -> Result<Vec<KeyId>, Failure> {
        let ours = |id: &[u8]| core::str::from_utf8(id).ok()?.strip_prefix(&self.config.prefix)?.parse().ok();
        let mut ids: Vec<KeyId> = object::ids(session)?.iter().filter_map(|id| ours(id)).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Runs `op` in a session that ends with it.
    fn with_session<T>(&self, access: Access, op: &dyn Fn(&Session, &Token) -> Result<T, Failure>) -> Result<T, Error> {
        module::run(&self.config.module, &|library| {
            let token = token::find(library, &self.config.token)?;
            let session = token::open(library, &token, self.config.pin.as_ref(), access)?;
            op(&session, &token)
        })
    }

    /// What the token can sign with, the preferred one first.
    fn algorithms(library: &cryptoki::context::Pkcs11, token: &Token) -> Result<Vec<Algorithm>, Failure> {
        let offered = library
            .get_mechanism_list(token.slot)
            .map_err(|e| failed(format_args!("ask {} what it can do", Label(token)), &e))?;
        let can = |a: &Algorithm| object::mechanisms(*a).iter().all(|m| offered.contains(m));
        Ok([Algorithm::EcdsaP256, Algorithm::Ed25519].into_iter().filter(can).collect())
    }
}

impl KeyStore for Pkcs11Store {
    /// Needs no PIN. `hardware` is the module's own word (`CKF_HW_SLOT`): SoftHSM, which keeps keys in files, says no.
    fn capabilities(&self) -> Result<Capabilities, Error> {
        module::run(&self.config.module, &|library| {
            let token = token::find(library, &self.config.token)?;
            let mut place = heapless::String::new();
            for c in format!("PKCS#11 {}", token.name()).chars() {
                if place.push(c).is_err() {
                    break;
                }
            }
            let algorithms = heapless::Vec::from_iter(Self::algorithms(library, &token)?);
            Ok(Capabilities { algorithms, hardware: token.hardware, place })
        })
    }

    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        module::run(&self.config.module, &|library| {
            let token = token::find(library, &self.config.token)?;
            if !Self::algorithms(library, &token)?.contains(&algorithm) {
                return Err(
                    Error::new(ErrorKind::Unsupported, format_args!("{} makes no {algorithm} keys", Label(&token))).into()
                );
            }
            let session = token::open(library, &token, self.config.pin.as_ref(), Access::Write)?;
            object::generate(&session, &self.name(id), algorithm).map(|pair| pair.public_key)
        })
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        // Logged in though public halves are public: private ones are only seen then, and without one there is no key.
        self.with_session(Access::Read, &|session, _| object::find(session, &self.name(id)).map(|pair| pair.public_key))
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.with_session(Access::Read, &|session, _| {
            let pair = object::find(session, &self.name(id))?;
            object::sign(session, &pair, message)
        })
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        // Called once the session is closed: `each` may use another store on the same module.
        self.with_session(Access::Read, &|session, _| self.key_ids(session))?.iter().for_each(each);
        Ok(())
    }

    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        self.with_session(Access::Write, &|session, _| object::destroy(session, &object::find(session, &self.name(id))?))
    }

    /// The key's URI (RFC 7512): `p11tool`, `pkcs11-tool` and an OpenSSL provider find exactly the one key by it.
    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        let uri = self.with_session(Access::Read, &|session, token| {
            let name = self.name(id);
            object::find(session, &name)?;
            Ok(uri::object_uri(&token.name(), &name, name.as_bytes(), "private"))
        })?;
        Reference::new(Reference::Pkcs11Uri, &uri)
    }

    /// SHA-256 of what the token says that it is: label, serial number, manufacturer and model. Needs no PIN.
    fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        let name = module::run(&self.config.module, &|library| Ok(token::find(library, &self.config.token)?.name()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{name}").as_bytes());
        Fingerprint::new(digest.as_ref()).map(Some)
    }
}
