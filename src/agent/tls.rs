//! Trust in the auth endpoint: a CA whose key is pinned, or one given as a file, and the mark of an auth endpoint in the certificate
//! ([`boundkey_join::endpoint`]): outputs of devices are certificates of TLS servers under the same CA.
//!
//! Certificates are judged by device time, with two allowances for clocks that are wrong, both only for certificates that the
//! trusted CA signed:
//! - not yet valid: the CA's own word that it is at least that late. The certificate's first moment counts as the time.
//! - expired: perhaps the system's clock is ahead. If the certificate held, or was yet to be made, at the last time known for sure,
//!   it is doubtful: a connection is made to ask for the time, and [`Trust::note_server_time`] ends the exchange if the server's own
//!   clock is past the end of the certificate. Nothing else goes over a connection with a doubtful certificate before that.

mod endpoint;
mod sessions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme, version::TLS13,
};

use sessions::Sessions;

use super::clock::DeviceClock;
use boundkey_platform::time::{Clock as _, Random as _, System, Timestamp};

/// The CAs whose certificates an auth endpoint may show.
#[derive(Clone, Debug)]
pub enum Roots {
    /// SHA-256 of the SubjectPublicKeyInfo of a CA that the server sends along.
    Pins(Vec<[u8; 32]>),
    /// CA certificates, DER.
    Certificates(Vec<CertificateDer<'static>>),
}

/// Judges the server's certificate.
pub struct Trust {
    roots: Roots,
    clock: Arc<DeviceClock>,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Seen>,
}

/// What the connections so far have shown.
#[derive(Debug, Default)]
struct Seen {
    /// Whether the next request does no more than ask for the time.
    asks_for_time: bool,
    presented: Option<(Presented, Shown)>,
    sessions: Sessions,
    /// SHA-256 of a doubtful certificate that holds by the clock of its server.
    vouched: Option<[u8; 32]>,
}

/// What a server showed in a handshake.
#[derive(Clone, Debug)]
struct Shown {
    leaf: CertificateDer<'static>,
    others: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
}

/// Most certificates behind the server's own that may begin later than the clock says: longer chains do not verify anyway.
const MAX_LATE: usize = 8;

/// The server's certificate, as a handshake judged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Its last moment.
    pub not_after: Timestamp,
    /// Whether that has passed by the system's clock, but not at the last time known for sure.
    pub is_doubtful: bool,
}

/// The first second that no certificate can name as its last (RFC 5280 section 4.1.2.5: year 9999).
pub(super) const AFTER_ALL: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(253_402_300_800));

/// The certificate is of the trusted CA and for the right name, and not an auth endpoint's: that of a device, most likely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAuthEndpoint {
    /// The common name of its subject.
    pub subject: String,
}

impl std::fmt::Display for NotAuthEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the certificate of {:?} is not an auth endpoint's", self.subject)
    }
}

impl std::error::Error for NotAuthEndpoint {}

/// No certificate that the server sent has the pinned key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinMismatch;

impl std::fmt::Display for PinMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server has another CA than the pinned one")
    }
}

impl std::error::Error for PinMismatch {}

impl Trust {
    /// Trust in `roots`, judged by `clock`.
    pub fn new(roots: Roots, clock: Arc<DeviceClock>) -> Arc<Self> {
        let provider = Arc::new(provider());
        Arc::new(Self { roots, clock, provider, seen: Mutex::default() })
    }

    /// TLS 1.3 with this trust.
    pub fn client_config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::store(self.clone());
        Ok(Arc::new(config))
    }

    /// The certificate of the last handshake, if it was accepted.
    pub fn presented(&self) -> Option<Presented> {
        self.seen().presented.as_ref().map(|(presented, _)| *presented)
    }

    /// Says what the next request is for: only one that does no more than ask for the time may go to a server whose certificate is
    /// doubtful.
    pub fn expect_time(&self, asks_for_time: bool) {
        self.seen().asks_for_time = asks_for_time;
    }

    /// Takes note of the time that the server told over the last connection; returns how much of it is believed.
    ///
    /// Not more than the end of the certificate that it showed: if its clock is wrong, this certificate and those that follow it would
    /// have expired for this device ever after. Device time moves on to what is believed.
    ///
    /// # Errors
    /// The end of a doubtful certificate that has passed by the server's own clock.
    pub fn note_server_time(&self, time: Timestamp) -> Result<Timestamp, Timestamp> {
        let mut seen = self.seen();
        let Some((presented, shown)) = &seen.presented else { return Ok(Timestamp::default()) };
        let end = presented.not_after;
        if presented.is_doubtful {
            if time > end {
                return Err(end);
            }
            seen.vouched = Some(sha256(&shown.leaf));
        }
        let believed = time.min(end);
        self.clock.raise(believed);
        Ok(believed)
    }

    /// Whether what the server showed in the last handshake holds under `roots` too.
    pub fn holds_under(&self, roots: &Roots) -> bool {
        let shown = self.seen().presented.as_ref().map(|(_, shown)| shown.clone());
        shown.is_some_and(|shown| self.judge(roots, &shown, true).is_ok())
    }

    /// Every change of it is one assignment, so a thread that panicked left it whole.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trusted certificates among those shown and those of `roots`.
    fn trusted(roots: &Roots, Shown { leaf, others, .. }: &Shown) -> Result<RootCertStore, Error> {
        let mut store = RootCertStore::empty();
        match roots {
            Roots::Certificates(certificates) => {
                store.add_parsable_certificates(certificates.iter().cloned());
            }
            Roots::Pins(pins) => {
                for certificate in others.iter().chain([leaf]) {
                    let mut one = RootCertStore::empty();
                    one.add(certificate.clone())?;
                    if one.roots.iter().any(|root| pins.contains(&pin(&root.subject_public_key_info))) {
                        store.extend(one.roots);
                    }
                }
                if store.is_empty() {
                    return Err(CertificateError::Other(OtherError(Arc::new(PinMismatch))).into());
                }
            }
        }
        Ok(store)
    }

    /// Verifies what a server showed, by `roots` and device time. `may_be_doubtful`: whether a certificate may pass that has expired by
    /// the system's clock but not at the last time known for sure.
    fn judge(&self, roots: &Roots, shown: &Shown, may_be_doubtful: bool) -> Result<(ServerCertVerified, Presented), Error> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(Self::trusted(roots, shown)?), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        let (verified, is_doubtful) = match verify_not_before(&verifier, shown, self.clock.now()) {
            Err(Error::InvalidCertificate(expired @ CertificateError::ExpiredContext { .. })) if may_be_doubtful => {
                // The system's clock may be ahead, so the last time known for sure decides.
                let verified = verify_not_before(&verifier, shown, self.clock.floor()).map_err(|_| expired)?;
                (verified, true)
            }
            judged => (judged?, false),
        };
        endpoint::check(&shown.leaf)?;
        Ok((verified, Presented { not_after: not_after(&verifier, shown)?, is_doubtful }))
    }
}

/// Verifies at `time`, or at the start of validity of the certificate in the chain that begins last, whichever is later: the trusted CA
/// signed that it is at least that late.
fn verify_not_before(verifier: &WebPkiServerVerifier, shown: &Shown, mut time: Timestamp) -> Result<ServerCertVerified, Error> {
    // webpki names one certificate that is not valid yet at a time, so each try may move on to the next one's start.
    for _ in 0..MAX_LATE {
        match verify_at(verifier, shown, unix_time(time)) {
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
                time = time.max(Timestamp::from_secs(not_before.as_secs()));
            }
            judged => return judged,
        }
    }
    verify_at(verifier, shown, unix_time(time))
}

/// The end of validity of the chain.
fn not_after(verifier: &WebPkiServerVerifier, shown: &Shown) -> Result<Timestamp, Error> {
    // webpki reports a certificate's notAfter only when it refuses it as expired, so verify once at the end of time.
    match verify_at(verifier, shown, AFTER_ALL) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Ok(Timestamp::from_secs(not_after.as_secs()))
        }
        Err(e) => Err(e),
        Ok(_) => Err(Error::General("a certificate without an end".into())),
    }
}

fn verify_at(verifier: &WebPkiServerVerifier, shown: &Shown, time: UnixTime) -> Result<ServerCertVerified, Error> {
    verifier.verify_server_cert(&shown.leaf, &shown.others, &shown.name, &[], time)
}

fn unix_time(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.secs()))
}

/// What every TLS 1.3 must have (RFC 8446 section 9.1) short of RSA, and no more: the auth endpoint's keys are P-256. Each algorithm that
/// is not here is code that the agent does not carry.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![kx_group::SECP256R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &NoFrills,
        key_provider: &NoFrills,
    }
}

static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ECDSA_P256_SHA256],
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, &[webpki::ring::ECDSA_P256_SHA256])],
};

/// Randomness of the system; no client keys.
#[derive(Debug)]
struct NoFrills;

impl SecureRandom for NoFrills {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        System.fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for NoFrills {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn rustls::sign::SigningKey>, Error> {
        Err(Error::General("the agent authenticates by its requests, not by TLS".into()))
    }
}

/// SHA-256 of a SubjectPublicKeyInfo, given without its outer tag and length.
fn pin(contents: &[u8]) -> [u8; 32] {
    // DER lengths (X.690 section 8.1.3): one byte up to 127, else the count of bytes and the bytes.
    let length = (contents.len() as u64).to_be_bytes();
    let mut der = vec![0x30];
    match contents.len() {
        0..0x80 => der.extend(&length[7..]),
        0x80..0x100 => der.extend([&[0x81], &length[7..]].concat()),
        _ => der.extend([&[0x82], &length[6..]].concat()),
    }
    der.extend(contents);
    sha256(&der)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _system: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let may_be_doubtful = {
            let mut seen = self.seen();
            seen.presented = None;
            seen.sessions.forget();
            seen.asks_for_time || seen.vouched == Some(sha256(leaf))
        };
        let owned = |der: &CertificateDer<'_>| der.clone().into_owned();
        let shown = Shown { leaf: owned(leaf), others: others.iter().map(owned).collect(), name: name.to_owned() };
        let (verified, presented) = self.judge(&self.roots, &shown, may_be_doubtful)?;
        self.seen().presented = Some((presented, shown));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
