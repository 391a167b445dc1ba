//! Keys in files: one PKCS#8 PEM (RFC 5958, RFC 7468 section 10) per key, `key-NAME.pem`, mode 0600.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::vec::Vec;

use ed25519_dalek::Signer as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Algorithm, Capabilities, Error, ErrorKind, KeyId, KeyStore, PublicKey, Reference, Signature, durable};

const LABEL: &str = "PRIVATE KEY";
const PREFIX: &str = "key-";
const SUFFIX: &str = ".pem";
/// DER before the 32-byte seed of an Ed25519 key in PKCS#8 version 1 (RFC 8410 section 7).
const ED25519_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Keys in a directory of the file system. A user who can read the directory has the keys: prefer hardware where there is some.
#[derive(Clone, Debug)]
pub struct FileStore {
    dir: PathBuf,
}

impl FileStore {
    /// Keys in `dir`, which must exist by the time a key is made.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of the key `id`.
    pub fn path(&self, id: &KeyId) -> PathBuf {
        self.dir.join(std::format!("{PREFIX}{id}{SUFFIX}"))
    }

    fn load(&self, id: &KeyId) -> Result<PrivateKey, Error> {
        let path = self.path(id);
        let pem = durable::read_bounded(&path).map_err(|e| durable::explain(&path, &e))?;
        PrivateKey::from_pem(&pem).map_err(|why| Error::new(ErrorKind::Corrupt, format_args!("{}: {why}", path.display())))
    }
}

/// Keys in files, each read and parsed once and kept in memory from then on: for a process that signs often and from several threads,
/// and that must sign also when it cannot open a file.
///
/// A key file that is exchanged meanwhile is not noticed. Ed25519 keys are wiped when dropped; `ring` does not wipe P-256 keys.
pub struct LoadedFileStore {
    files: FileStore,
    /// Locked to find a key and not while it signs.
    loaded: RwLock<BTreeMap<KeyId, Arc<Signer>>>,
}

impl LoadedFileStore {
    /// Keys in `dir`, as of [`FileStore::new`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { files: FileStore::new(dir), loaded: RwLock::default() }
    }

    fn loaded(&self, id: &KeyId) -> Result<Arc<Signer>, Error> {
        // A thread that panicked left the map whole: it is changed by single calls.
        if let Some(key) = self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(key.clone());
        }
        // Read under the lock, so that a key which is deleted meanwhile is not put back.
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::new(self.files.load(id)?.signer()?);
        loaded.insert(id.clone(), key.clone());
        Ok(key)
    }
}

impl KeyStore for LoadedFileStore {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        self.files.capabilities()
    }

    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        self.files.generate(id, algorithm)
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        self.loaded(id)?.public_key()
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.loaded(id)?.sign(message)
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        self.files.list(each)
    }

    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.remove(id);
        self.files.delete(id)
    }

    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        self.files.reference(id)
    }
}

impl KeyStore for FileStore {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        Ok(Capabilities {
            algorithms: heapless::Vec::from_iter([Algorithm::Ed25519, Algorithm::EcdsaP256]),
            hardware: false,
            place: self.dir.display().to_text(),
        })
    }

    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        let path = self.path(id);
        let key = PrivateKey::generate(algorithm)?;
        durable::create(&path, key.to_pem()?.as_bytes(), durable::PRIVATE_FILE).map_err(|e| durable::explain(&path, &e))?;
        key.public_key()
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        self.load(id)?.public_key()
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.load(id)?.sign(message)
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        durable::list(&self.dir, PREFIX, SUFFIX, each)
    }

    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        let path = self.path(id);
        durable::remove(&path).map_err(|e| durable::explain(&path, &e))
    }

    /// The path of the file, which has to hold a key.
    fn reference(&self, id: &KeyId) -> Result<Reference, Error> {
        self.load(id)?;
        let path = self.path(id);
        let path = std::path::absolute(&path).map_err(|e| durable::explain(&path, &e))?;
        let not_text = || Error::new(ErrorKind::Unsupported, format_args!("the path {} is not UTF-8", path.display()));
        Reference::new(Reference::Path, path.to_str().ok_or_else(not_text)?)
    }
}

/// A private key in memory, as PKCS#8 DER, wiped when dropped.
pub struct PrivateKey {
    algorithm: Algorithm,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A fresh key from the system's randomness.
    pub fn generate(algorithm: Algorithm) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let no_randomness = |_| Error::new(ErrorKind::Unreachable, "the system gave no randomness");
        let pkcs8 = match algorithm {
            Algorithm::EcdsaP256 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(no_randomness)?.as_ref().to_vec()
            }
            Algorithm::Ed25519 => {
                let mut seed = [0; 32];
                random.fill(&mut seed).map_err(no_randomness)?;
                let der = [&ED25519_PREFIX[..], &seed[..]].concat();
                seed.zeroize();
                der
            }
        };
        Ok(Self { algorithm, pkcs8: Zeroizing::new(pkcs8) })
    }

    /// Reads a PKCS#8 PEM; the error says what is wrong with it.
    pub fn from_pem(pem: &str) -> Result<Self, &'static str> {
        let (label, der) = pem_rfc7468::decode_vec(pem.as_bytes()).map_err(|_| "not a whole PEM file")?;
        let pkcs8 = Zeroizing::new(der);
        if label != LABEL {
            return Err("not a PKCS#8 private key (PEM label PRIVATE KEY)");
        }
        let algorithm = if ed25519_seed(&pkcs8).is_some() {
            Algorithm::Ed25519
        } else if ecdsa(&pkcs8).is_some() {
            Algorithm::EcdsaP256
        } else {
            return Err("not an Ed25519 or P-256 private key");
        };
        Ok(Self { algorithm, pkcs8 })
    }

    /// The key as PKCS#8 DER.
    pub fn as_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key as PKCS#8 PEM.
    pub fn to_pem(&self) -> Result<Zeroizing<std::string::String>, Error> {
        pem_rfc7468::encode_string(LABEL, pem_rfc7468::LineEnding::LF, &self.pkcs8)
            .map(Zeroizing::new)
            .map_err(|e| Error::new(ErrorKind::Other, e))
    }

    /// The public half.
    pub fn public_key(&self) -> Result<PublicKey, Error> {
        self.signer()?.public_key()
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, Error> {
        self.signer()?.sign(message)
    }

    fn signer(&self) -> Result<Signer, Error> {
        match self.algorithm {
            Algorithm::EcdsaP256 => ecdsa(&self.pkcs8).map(Signer::EcdsaP256).ok_or_else(unusable),
            Algorithm::Ed25519 => {
                let seed = ed25519_seed(&self.pkcs8).ok_or_else(unusable)?;
                Ok(Signer::Ed25519(ed25519_dalek::SigningKey::from_bytes(&seed)))
            }
        }
    }
}

/// A private key that is parsed and checked, which for P-256 takes as long as a signature.
enum Signer {
    EcdsaP256(EcdsaKeyPair),
    Ed25519(ed25519_dalek::SigningKey),
}

impl Signer {
    fn public_key(&self) -> Result<PublicKey, Error> {
        let key = match self {
            Self::EcdsaP256(pair) => PublicKey::new(Algorithm::EcdsaP256, pair.public_key().as_ref()),
            Self::Ed25519(key) => PublicKey::new(Algorithm::Ed25519, key.verifying_key().as_bytes()),
        };
        key.map_err(|e| Error::new(ErrorKind::Corrupt, e))
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, Error> {
        match self {
            Self::EcdsaP256(pair) => {
                let signature = pair
                    .sign(&SystemRandom::new(), message)
                    .map_err(|_| Error::new(ErrorKind::Unreachable, "the system gave no randomness"))?;
                <[u8; 64]>::try_from(signature.as_ref()).map(Signature::new).map_err(|_| unusable())
            }
            Self::Ed25519(key) => Ok(Signature::new(key.sign(message).to_bytes())),
        }
    }
}

fn ed25519_seed(pkcs8: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let seed = pkcs8.strip_prefix(&ED25519_PREFIX)?;
    Some(Zeroizing::new(seed.try_into().ok()?))
}

fn ecdsa(pkcs8: &[u8]) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new()).ok()
}

fn unusable() -> Error {
    Error::new(ErrorKind::Corrupt, "the private key in memory cannot be used")
}

/// Cuts a displayable value to a bounded text.
trait ToText {
    fn to_text<const N: usize>(&self) -> heapless::String<N>;
}

impl<T: core::fmt::Display> ToText for T {
    fn to_text<const N: usize>(&self) -> heapless::String<N> {
        let mut text = heapless::String::new();
        for c in std::format!("{self}").chars() {
            if text.push(c).is_err() {
                break;
            }
        }
        text
    }
}
