//! Certificates for programs on the device: a key of its own for each, made anew for each certificate, as files in a directory; or a
//! key in the device's key store, made once ([`stored`]).
//!
//! The daemon's loop uses this module so:
//! 1. [`prepare`] makes keys and requests, which go into the join request in the order of the configuration.
//! 2. [`attach`] takes the certificates out of the answer and checks each against its key.
//! 3. [`install`] writes the files and notes in [`Reloads`] which programs to tell; see [`set`] for how files change together. It is
//!    called again, with the same keys and certificates, when the revocation list changed.
//! 4. [`Reloads::run_due`], at each turn of the loop, tells them.
//!
//! One output that fails does not stop the others: all are tried, then the first error is returned.

pub mod command;
mod error;
mod pid_file;
pub mod reload;
pub mod set;
mod ssh;
#[cfg(any(feature = "pkcs11", feature = "tpm"))]
pub mod stored;

use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyStore, PublicKey, Signature};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::ParsedCertificate;
use zeroize::Zeroizing;

use super::clock::since_boot;
use super::config::{Form, KeyPlace, Output};
use super::crl;
use super::error::AgentError;
use boundkey_credential::certify::Signer;
use boundkey_join::message::{IssuedCertificate, JoinAnswer, MAX_CRL, OutputRequest};
use boundkey_join::trust::MAX_ROOTS;
use boundkey_join::{SshKey, base64url};
use boundkey_platform::pem;

pub use error::{Fault, OutputError};
pub use reload::Reloads;
use set::{File, Visibility};

const REVOCATION_FILE: &str = "ca.crl";
/// A list for each CA in PEM: four characters for three bytes, a line feed each 64, and the two lines around it.
const MAX_REVOCATION_FILE: u64 = (MAX_CRL as u64 / 3 * 4 / 64 * 65 + 256) * MAX_ROOTS as u64;

/// What [`prepare`] could do.
pub struct Prepared {
    /// Requests, in the order of the outputs.
    pub requested: Vec<Requested>,
    /// The first output that is left out, for its key cannot be used.
    pub left_out: Result<(), OutputError>,
}

/// A request for an output's certificate, with the key that it is for.
pub struct Requested {
    /// The output.
    pub output: Output,
    /// What to ask the server for.
    pub request: OutputRequest,
    public_key: Vec<u8>,
    key: KeyFile,
}

/// A certificate with its key, to be installed.
pub struct Fresh {
    /// The output.
    pub output: Output,
    /// What the server says of the certificate.
    pub issued: IssuedCertificate,
    /// Files that all may read: their names and text.
    public: Vec<(&'static str, String)>,
    key: KeyFile,
}

/// What programs get of a key: the key itself, or what they need to use it where it is.
struct KeyFile {
    name: &'static str,
    content: Zeroizing<Vec<u8>>,
    visibility: Visibility,
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
        let (csr, public_key) = request(key.public_key()?, |message: &[u8]| key.sign(message))?;
        Ok(Self { pkcs8: Zeroizing::new(key.as_pkcs8().to_vec()), csr, public_key })
    }
}

/// A certificate request (RFC 2986) for the key `key`, without names, and its SubjectPublicKeyInfo: DER both.
fn request(key: PublicKey, sign: impl Fn(&[u8]) -> Result<Signature, KeyError>) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
    let signer = Signer::new(key, sign);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&signer);
    let csr = csr.map_err(|e| signer.cause(e).unwrap_or_else(|e| KeyError::new(ErrorKind::Other, e)))?;
    Ok((csr.der().to_vec(), signer.subject_public_key_info()))
}

/// Makes a request for each output, in their order; keys too, but for those in `keys` that are there already.
///
/// An output whose key cannot be used is left out, for it must not keep the device from renewing its identity.
///
/// # Errors
/// What concerns the whole store: a join would come to nothing.
#[cfg_attr(not(any(feature = "pkcs11", feature = "tpm")), expect(unused_variables, reason = "keys are files then"))]
pub fn prepare(outputs: &[Output], keys: &dyn KeyStore) -> Result<Prepared, KeyError> {
    let mut prepared = Prepared { requested: Vec::with_capacity(outputs.len()), left_out: Ok(()) };
    for output in outputs {
        let name = if output.form == Form::X509 { "tls.key" } else { ssh::KEY };
        let made = match output.key {
            KeyPlace::File => FreshKey::generate().map(|key| {
                let content = pem::private_key(&key.pkcs8).into_bytes().into();
                (key.csr, key.public_key, KeyFile { name, content, visibility: Visibility::AsConfigured })
            }),
            #[cfg(any(feature = "pkcs11", feature = "tpm"))]
            KeyPlace::Keystore => stored::key(keys, output),
            #[cfg(not(any(feature = "pkcs11", feature = "tpm")))]
            KeyPlace::Keystore => Err(KeyError::new(ErrorKind::Unsupported, "its key cannot be in files")),
        };
        let (csr, public_key, key) = match made {
            Ok(made) => made,
            Err(e) if is_of_store(e.kind()) => return Err(e),
            Err(e) => {
                let e = Fault::Key(e).of(output);
                if prepared.left_out.is_ok() {
                    prepared.left_out = Err(e);
                } else {
                    log::error!("{e}\n{}", e.advice());
                }
                continue;
            }
        };
        let ssh_host = match &output.form {
            Form::SshHost { principals } => ssh::request(&public_key, principals),
            Form::X509 => None,
        };
        let request = OutputRequest {
            csr: if ssh_host.is_none() { base64url::encode(&csr) } else { String::new() },
            ssh_host,
            dns_names: output.dns_names.clone(),
            uris: output.uris.clone(),
            ip_addresses: output.ip_addresses.clone(),
            ttl: output.lifetime.map(|l| l.credential_ttl.as_secs()),
        };
        prepared.requested.push(Requested { output: output.clone(), request, public_key, key });
    }
    Ok(prepared)
}

/// Whether an error speaks of the whole store, not of one key.
fn is_of_store(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Busy | ErrorKind::Denied | ErrorKind::Locked | ErrorKind::Unreachable)
}

/// Pairs each request with its certificate in `answer`; a certificate for another key is refused.
pub fn attach(requested: Vec<Requested>, answer: &JoinAnswer) -> Result<Vec<Fresh>, OutputError> {
    let mut issued = answer.outputs.iter().cloned();
    let mut attach = |Requested { output, public_key, key, .. }: Requested| {
        let unusable = |why| Fault::Unusable(why).of(&output);
        let issued = issued.next().ok_or_else(|| unusable("it has no certificate"))?;
        let certificate = base64url::decode(&issued.certificate).map_err(|_| unusable("its certificate is not base64url"))?;
        let public = match output.form {
            Form::SshHost { .. } => ssh::public(&public_key, &certificate).ok_or("it is no SSH host certificate for its key"),
            Form::X509 => public(&public_key, &certificate),
        };
        let public = public.map_err(unusable)?;
        Ok(Fresh { output, issued, public, key })
    };
    requested.into_iter().map(&mut attach).collect()
}

/// What stands beside the private key, if the certificate `der` is one for it: names of files, and their text.
fn public(public_key: &[u8], der: &[u8]) -> Result<Vec<(&'static str, String)>, &'static str> {
    let certificate = CertificateDer::from(der);
    let parsed = ParsedCertificate::try_from(&certificate).map_err(|_| "its certificate cannot be read")?;
    if *parsed.subject_public_key_info() != *public_key {
        return Err("its certificate is for another key");
    }
    Ok(vec![("tls.crt", pem::certificate(der))])
}

/// Writes each output's files and notes its reload in `reloads`. All are tried; the first error is returned, the others are logged.
pub fn install(fresh: &[Fresh], bundle: &[Vec<u8>], revoked: &[&[u8]], reloads: &mut Reloads) -> Result<(), AgentError> {
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
    /// Names all of `keys` to clients of this host, where it is one for SSH: while the CA is replaced, there are two.
    pub fn trust_hosts_of(&mut self, keys: &[SshKey]) {
        let lines: Vec<_> = keys.iter().map(|key| format!("{key}\n")).collect();
        for (_, text) in self.public.iter_mut().filter(|(name, _)| *name == ssh::AUTHORITIES && !lines.is_empty()) {
            *text = lines.concat();
        }
    }

    /// Writes `tls.key` (or `tls.key.uri`, see [`stored`]), `tls.crt` (the certificate), `ca.crt` (the trust bundle, DER each) and,
    /// where the output wants it, `ca.crl` (the revocation lists, DER; what stands there goes on where none is given): all PEM.
    /// For sshd: the host key in PEM, its certificate, and the key that clients trust for it.
    ///
    /// Programs see either all of the old files or all of the new ones, also after a power cut. On an error the old ones stay.
    pub fn install(&self, bundle: &[Vec<u8>], revoked: &[&[u8]]) -> Result<(), OutputError> {
        let roots: String = bundle.iter().map(|der| pem::certificate(der)).collect();
        let revoked = match revoked {
            _ if !self.output.crl => None,
            [] => self.kept_lists(bundle),
            lists => Some(lists.iter().map(|der| pem::revocation_list(der)).collect::<String>().into_bytes()),
        };
        let public = |name, content| File { name, content, visibility: Visibility::Public };
        let KeyFile { name, content, visibility } = &self.key;
        let mut files = vec![File { name, content, visibility: *visibility }];
        files.extend(self.public.iter().map(|(name, text)| public(name, text.as_bytes())));
        if self.output.form == Form::X509 {
            files.push(public("ca.crt", roots.as_bytes()));
        }
        files.extend(revoked.iter().map(|pem| public(REVOCATION_FILE, pem)));
        set::replace(&self.output.destination, &files).map_err(|fault| fault.of(&self.output))
    }

    /// The revocation lists of the set that is current, to go on with. Only a list that a CA of the bundle signed is one.
    fn kept_lists(&self, bundle: &[Vec<u8>]) -> Option<Vec<u8>> {
        let why = match set::read(&self.output.destination, REVOCATION_FILE, MAX_REVOCATION_FILE) {
            Ok(None) => return None,
            Ok(Some(pem)) => {
                let lists = CertificateRevocationListDer::pem_slice_iter(&pem).filter_map(Result::ok);
                let signed = lists.filter(|der| crl::is_signed(der, bundle));
                let kept: String = signed.map(|der| pem::revocation_list(&der)).collect();
                if !kept.is_empty() {
                    return Some(kept.into_bytes());
                }
                "it is not a list of the trusted CA".to_owned()
            }
            Err(fault) => fault.of(&self.output).to_string(),
        };
        log::warn!("output {}: the {REVOCATION_FILE} that is there is left out: {why}", self.output.name);
        None
    }
}
