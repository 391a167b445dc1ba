//! Certificates for programs on the device: a key of its own for each, made anew for each certificate, as files in a directory.
//!
//! The daemon's loop uses this module so:
//! 1. [`prepare`] makes keys and requests, which go into the join request in the order of the configuration.
//! 2. [`attach`] takes the certificates out of the answer and checks each against its key.
//! 3. [`install`] writes the files and notes in [`Reloads`] which programs to tell; see [`set`] for how files change together. It is
//!    called again, with the same keys and certificates, when the revocation list changed.
//! 4. [`Reloads::run_due`], at each turn of the loop, tells them.
//!
//! One output that fails does not stop the others: all are tried, then the first error is returned.

mod error;
pub mod reload;
pub mod set;

use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use zeroize::Zeroizing;

use super::clock::since_boot;
use super::config::Output;
use super::error::AgentError;
use crate::certify::{Signer, Subject};
use crate::join::base64url;
use crate::join::message::{IssuedCertificate, JoinAnswer, OutputRequest};
use crate::pem;

pub use error::{Fault, OutputError};
pub use reload::Reloads;
use set::{File, Visibility};

const REVOCATION_FILE: &str = "ca.crl";

/// A request for an output's certificate, with the key that it is for.
pub struct Requested {
    /// The output.
    pub output: Output,
    /// What to ask the server for.
    pub request: OutputRequest,
    key: FreshKey,
}

/// A certificate with its key, to be installed.
pub struct Fresh {
    /// The output.
    pub output: Output,
    /// What the server says of the certificate.
    pub issued: IssuedCertificate,
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

/// A P-256 key made for one certificate.
pub struct FreshKey {
    /// PKCS#8 DER.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// Its certificate request (RFC 2986), without names: DER.
    pub csr: Vec<u8>,
    /// Its SubjectPublicKeyInfo: DER.
    pub public_key: Vec<u8>,
}

impl FreshKey {
    /// Makes a key from the system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let key = PrivateKey::generate(Algorithm::EcdsaP256)?;
        let signer = Signer { subject: Subject(key.public_key()?), sign: |message: &[u8]| key.sign(message) };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&signer).map_err(|e| KeyError::new(ErrorKind::Other, e))?;
        let public_key = signer.subject_public_key_info();
        Ok(Self { pkcs8: Zeroizing::new(key.as_pkcs8().to_vec()), csr: csr.der().to_vec(), public_key })
    }
}

/// Makes a key and a request for each output, in their order.
pub fn prepare(outputs: &[Output]) -> Result<Vec<Requested>, OutputError> {
    let prepare = |output: &Output| {
        let key = FreshKey::generate().map_err(|e| Fault::Key(e).of(output))?;
        let request = OutputRequest {
            csr: base64url::encode(&key.csr),
            ssh_host: None,
            dns_names: output.dns_names.clone(),
            uris: output.uris.clone(),
            ip_addresses: output.ip_addresses.clone(),
            ttl: output.lifetime.map(|l| l.credential_ttl.as_secs()),
        };
        Ok(Requested { output: output.clone(), request, key })
    };
    outputs.iter().map(prepare).collect()
}

/// Pairs each request with its certificate in `answer`; a certificate for another key is refused.
pub fn attach(requested: Vec<Requested>, answer: &JoinAnswer) -> Result<Vec<Fresh>, OutputError> {
    let mut issued = answer.outputs.iter().cloned();
    let mut attach = |Requested { output, key, .. }: Requested| {
        let unusable = |why| Fault::Unusable(why).of(&output);
        let issued = issued.next().ok_or_else(|| unusable("it has no certificate"))?;
        let certificate = base64url::decode(&issued.certificate).map_err(|_| unusable("its certificate is not base64url"))?;
        let der = CertificateDer::from(&*certificate);
        let parsed = ParsedCertificate::try_from(&der).map_err(|_| unusable("its certificate cannot be read"))?;
        if *parsed.subject_public_key_info() != *key.public_key {
            return Err(unusable("its certificate is for another key"));
        }
        Ok(Fresh { output, issued, certificate, key: key.pkcs8 })
    };
    requested.into_iter().map(&mut attach).collect()
}

/// Writes each output's files and notes its reload in `reloads`. All are tried; the first error is returned, the others are logged.
pub fn install(fresh: &[Fresh], bundle: &[Vec<u8>], revoked: Option<&[u8]>, reloads: &mut Reloads) -> Result<(), AgentError> {
    let mut first = Ok(());
    for fresh in fresh {
        match fresh.install(bundle, revoked) {
            Ok(()) => reloads.add(&fresh.output, since_boot()),
            Err(e) if first.is_ok() => first = Err(e.into()),
            Err(e) => log::error!("{e}\n{}", e.advice()),
        }
    }
    first
}

impl Fresh {
    /// Writes `tls.key`, `tls.crt` (the certificate), `ca.crt` (the trust bundle, DER each) and, where the output wants it, `ca.crl`
    /// (the revocation list, DER; the one that stands there goes on where none is given): all PEM.
    ///
    /// Programs see either all of the old files or all of the new ones, also after a power cut. On an error the old ones stay.
    pub fn install(&self, bundle: &[Vec<u8>], revoked: Option<&[u8]>) -> Result<(), OutputError> {
        let key = Zeroizing::new(pem::private_key(&self.key));
        let certificate = pem::certificate(&self.certificate);
        let bundle: String = bundle.iter().map(|der| pem::certificate(der)).collect();
        let revoked = match revoked.filter(|_| self.output.crl) {
            Some(der) => Some(pem::revocation_list(der).into_bytes()),
            None if self.output.crl => std::fs::read(self.output.destination.path.join(REVOCATION_FILE)).ok(),
            None => None,
        };
        let mut files = vec![
            File { name: "ca.crt", content: bundle.as_bytes(), visibility: Visibility::Public },
            File { name: "tls.crt", content: certificate.as_bytes(), visibility: Visibility::Public },
            File { name: "tls.key", content: key.as_bytes(), visibility: Visibility::AsConfigured },
        ];
        files.extend(revoked.iter().map(|pem| File { name: REVOCATION_FILE, content: pem, visibility: Visibility::Public }));
        set::replace(&self.output.destination, &files).map_err(|fault| fault.of(&self.output))
    }
}
