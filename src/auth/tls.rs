//! TLS 1.3 with a certificate that renews itself while the server runs.

use std::sync::{Arc, RwLock};

use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version::TLS13};

use super::ca::ServerIdentity;

/// The certificate that is presented now.
#[derive(Debug)]
pub struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    /// Presents `server`, followed by the certificates of `chain`, in which devices look for their pin.
    pub fn new(server: &ServerIdentity, chain: &[Vec<u8>]) -> Result<Self, rustls::Error> {
        Ok(Self(RwLock::new(certified(server, chain)?)))
    }

    /// Presents another from the next connection on.
    pub fn replace(&self, server: &ServerIdentity, chain: &[Vec<u8>]) -> Result<(), rustls::Error> {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = certified(server, chain)?;
        Ok(())
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

/// TLS 1.3 only, HTTP/1.1 only.
pub fn config(certificate: Arc<CurrentCertificate>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A device comes back in 20 minutes, most often by a new process: one ticket is enough.
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

fn certified(server: &ServerIdentity, chain: &[Vec<u8>]) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server.key.as_slice()));
    let key = any_supported_type(&key)?;
    let chain = std::iter::once(&server.certificate).chain(chain).map(|der| CertificateDer::from(der.clone())).collect();
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(Arc::new(certified))
}
