//! The certificate authority: the cluster's keys, behind the same `KeyStore` trait as the device's, and what they sign.

mod crl;
mod issue;
mod krl;
mod place;
mod request;
mod ssh;

use std::fmt::Write as _;
use std::sync::Mutex;

use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

pub use issue::{Issued, Profile, ServerIdentity};
pub use place::{Place, advice};
pub use request::subject_key;

use crate::certify::Subject;
use crate::join::server::request::{Holder, ShownCertificate};
use crate::join::{Claims, Id};
use crate::time::Timestamp;

/// Names of the cluster's keys in the key store.
const X509: &str = "ca-x509";
const SSH_USER: &str = "ca-ssh-user";
const SSH_HOST: &str = "ca-ssh-host";
const JOIN_STATE: &str = "join-state";
const ALL: [&str; 4] = [X509, SSH_USER, SSH_HOST, JOIN_STATE];
/// What each key signs before anybody relies on it.
const PROBE: &[u8] = b"boundkey-auth: does this key sign?";

/// The cluster's authority.
pub struct Authority {
    cluster: String,
    keys: Mutex<Box<dyn KeyStore + Send>>,
    x509: (KeyId, PublicKey),
    join_state: (KeyId, PublicKey),
    ssh_host: (KeyId, PublicKey),
    certificate: Vec<u8>,
}

/// Why the authority did not sign.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaError {
    /// The stored CA certificate cannot be used.
    Certificate(String),
    /// The key store failed.
    Key(KeyError),
    /// A certificate could not be put together from the names asked for.
    Names(String),
}

impl std::fmt::Display for CaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate(why) => write!(f, "CA certificate: {why}"),
            Self::Key(e) => write!(f, "CA key: {e}"),
            Self::Names(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CaError {}

impl From<KeyError> for CaError {
    fn from(e: KeyError) -> Self {
        Self::Key(e)
    }
}

/// Names of the cluster's keys that the store has.
pub fn present(keys: &mut dyn KeyStore) -> Result<Vec<KeyId>, KeyError> {
    let mut found = Vec::new();
    keys.list(&mut |id| {
        if ALL.contains(&id.as_str()) {
            found.push(id.clone());
        }
    })?;
    Ok(found)
}

/// Makes the keys that are missing: an `init` that was interrupted goes on where it stopped.
pub fn make_keys(keys: &mut dyn KeyStore) -> Result<(), KeyError> {
    let offered = keys.capabilities()?.algorithms;
    let preferred = *offered.first().ok_or_else(|| KeyError::new(ErrorKind::Unsupported, "a key store without algorithms"))?;
    // X.509 and join states are verified by many others: P-256 everywhere. SSH as the store prefers.
    let wanted = [(X509, Algorithm::EcdsaP256), (JOIN_STATE, Algorithm::EcdsaP256), (SSH_USER, preferred), (SSH_HOST, preferred)];
    for (name, algorithm) in wanted {
        let id = key_id(name)?;
        match keys.public_key(&id) {
            Err(e) if e.kind() == ErrorKind::NotFound => keys.generate(&id, algorithm)?,
            found => found?,
        };
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn key_id(name: &str) -> Result<KeyId, KeyError> {
    name.parse().map_err(|e| KeyError::new(ErrorKind::Other, e))
}

impl Authority {
    /// The authority of `cluster` with its keys and CA certificate (DER).
    pub fn new(cluster: &str, mut keys: Box<dyn KeyStore + Send>, certificate: Vec<u8>) -> Result<Self, CaError> {
        let mut open = |name| -> Result<_, KeyError> {
            let id = key_id(name)?;
            let key = keys.public_key(&id)?;
            Ok((id, key))
        };
        let (x509, join_state, ssh_host) = (open(X509)?, open(JOIN_STATE)?, open(SSH_HOST)?);
        let authority = Self { cluster: cluster.into(), keys: Mutex::new(keys), x509, join_state, ssh_host, certificate };
        request::check_ca(&authority.certificate, &authority.x509.1).map_err(CaError::Certificate)?;
        Ok(authority)
    }

    /// That the keys sign, and are those of the certificate: a TPM that was cleared still has its key files.
    pub fn probe(&self) -> Result<(), KeyError> {
        for (id, key) in [&self.x509, &self.join_state, &self.ssh_host] {
            let signature = self.sign(id, PROBE)?;
            boundkey_hal::verify::checked(key, PROBE, signature)?;
        }
        Ok(())
    }

    /// The CA certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Last moment of the CA certificate: no certificate that it signed is valid after that.
    pub fn ends(&self) -> Result<Timestamp, CaError> {
        request::validity(&self.certificate).map(|(_, end)| end).map_err(CaError::Certificate)
    }

    /// `sha256:` and the SHA-256 of the CA's SubjectPublicKeyInfo, in hexadecimal.
    pub fn pin(&self) -> String {
        let spki = rcgen::PublicKeyData::subject_public_key_info(&Subject(self.x509.1.clone()));
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        format!("sha256:{}", hex(digest.as_ref()))
    }

    /// Keys whose join states are believed.
    pub fn join_state_keys(&self) -> &[PublicKey] {
        std::slice::from_ref(&self.join_state.1)
    }

    /// Signs a join state.
    pub fn sign_join_state(&self, claims: &Claims) -> Result<String, KeyError> {
        let (id, key) = &self.join_state;
        claims.sign(key, |message| self.sign(id, message))
    }

    /// The step that an identity certificate of ours was issued for.
    pub fn identity(&self, der: &[u8]) -> Result<ShownCertificate, String> {
        let shown = request::open_identity(der, &self.certificate)?;
        let holder = Holder::from_uri(&shown.uri).ok_or("it is not an identity certificate")?;
        Ok(ShownCertificate { holder, not_after: shown.not_after, key: shown.key })
    }

    /// The instance that a certificate names, whoever signed it: good to look it up, and no more.
    pub fn named_instance(der: &[u8]) -> Option<Id> {
        Some(Holder::from_uri(&request::uri(der)?)?.step.instance)
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, KeyError> {
        // A thread that panicked while it held the store left nothing half done: every call opens and closes for itself.
        self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner).sign(id, message)
    }
}

const SCHEME: &str = "boundkey://";

impl Holder {
    /// The URI that identity certificates carry: `boundkey://CLUSTER/token/NAME/INCARNATION/instance/ID/RECOVERY/GENERATION`; of a host,
    /// `host` stands in place of `instance`.
    pub fn uri(&self) -> String {
        let Self { cluster, token, incarnation, host, step } = self;
        let kind = if *host { "host" } else { "instance" };
        let (instance, recovery, generation) = (step.instance, step.recovery, step.generation);
        format!("{SCHEME}{cluster}/token/{token}/{incarnation}/{kind}/{instance}/{recovery}/{generation}")
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let parts: Vec<_> = uri.strip_prefix(SCHEME)?.split('/').collect();
        let [cluster, "token", token, incarnation, kind @ ("instance" | "host"), instance, recovery, generation] = parts[..]
        else {
            return None;
        };
        let step = crate::join::Step {
            recovery: recovery.parse().ok()?,
            generation: generation.parse().ok()?,
            instance: instance.parse().ok()?,
        };
        let (incarnation, host) = (incarnation.parse().ok()?, kind == "host");
        Some(Self { cluster: cluster.into(), token: token.into(), incarnation, host, step })
    }
}
