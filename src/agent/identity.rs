//! The identity on disk: the certificate of the last join and its private key, in one PEM file that is replaced whole. A device without
//! it cannot renew and recovers by its bound key instead.

use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Error as KeyError, Signature};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::AgentError;
use boundkey_join::device::Memory;
use boundkey_platform::pem;
use boundkey_state::Storage;

/// Name of the file in the storage.
pub const IDENTITY_FILE: &str = "identity.pem";

/// An identity certificate with its key.
pub struct StoredIdentity {
    key: PrivateKey,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

impl StoredIdentity {
    /// Reads the file. `None` where there is none, or where its content cannot be used, which is logged: the device then recovers.
    ///
    /// # Errors
    /// [`AgentError::Storage`] where the medium does not let it be read: that is not the same as there being none.
    pub fn load(storage: &dyn Storage) -> Result<Option<Self>, AgentError> {
        let read = storage.read(IDENTITY_FILE).map_err(|e| AgentError::Storage(IDENTITY_FILE.into(), e))?;
        let Some(bytes) = read.map(Zeroizing::new) else {
            return Ok(None);
        };
        let parsed = Self::parse(&bytes);
        if parsed.is_none() {
            log::warn!("{IDENTITY_FILE} is damaged and is not used");
        }
        Ok(parsed)
    }

    /// Replaces the file.
    pub fn store(storage: &mut dyn Storage, key: &[u8], certificate: &[u8]) -> Result<(), AgentError> {
        let mut text = Zeroizing::new(pem::private_key(key));
        text.push_str(&pem::certificate(certificate));
        storage.replace(IDENTITY_FILE, text.as_bytes()).map_err(|e| AgentError::Storage(IDENTITY_FILE.into(), e))
    }

    /// Whether this is the certificate that the state file records. After a power cut between the write of the certificate and that of
    /// the state, the certificate is newer. It is not used then: the device repeats its request, and the server gives the answer again.
    pub fn belongs_to(&self, memory: &Memory) -> bool {
        let fingerprint = digest(&SHA256, &self.certificate);
        memory.certificate.as_ref().is_some_and(|recorded| recorded.fingerprint == fingerprint.as_ref())
    }

    /// Signs with the identity's key.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, KeyError> {
        self.key.sign(message)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let key_der = PrivateKeyDer::from_pem_slice(bytes).ok()?;
        // `PrivateKey::from_pem` takes a file with nothing but a key in it.
        let key_pem = Zeroizing::new(pem::private_key(key_der.secret_der()));
        let key = PrivateKey::from_pem(&key_pem).ok()?;
        // The first certificate is the identity's. Earlier versions wrote the CA's certificate after it.
        let certificate = CertificateDer::from_pem_slice(bytes).ok()?.to_vec();
        Some(Self { key, certificate })
    }
}
