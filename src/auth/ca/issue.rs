//! What the authority issues: its own certificate, the TLS server's, and those of devices.

use std::net::IpAddr;
use std::time::Duration;

use boundkey_hal::{Error as KeyError, KeyId, PublicKey, Signature};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};

use super::set::KeyNames;
use super::{Authority, Ca, CaError, CaSet, SharedKeys, Signing, request};
use boundkey_api::names::{check_dns_name, check_uri};
use boundkey_credential::certify::{Signer, Subject};
use boundkey_join::base64url;
use boundkey_join::endpoint::AUTH_ENDPOINT;
use boundkey_join::identity::IdentitySubject;
use boundkey_join::message::IssuedCertificate;
use boundkey_platform::time::{NoRandomness, Random, Timestamp};

/// How long before its issue a certificate starts: clocks of peers may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(60);
/// Lifetime of a CA certificate.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Lifetime of the TLS server's certificate.
const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// What must be left of it, else it is renewed.
const SERVER_LEFT: Duration = Duration::from_secs(30 * 86_400);
/// `id-ce-extKeyUsage` (RFC 5280 section 4.2.1.12).
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
/// `id-kp-serverAuth`, DER.
const SERVER_AUTH: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01";

/// What a device's certificate is for.
#[derive(Clone, Debug)]
pub enum Profile {
    /// Its identity: renews, and opens client connections.
    Identity(IdentitySubject),
    /// An output: server and client, with these names.
    Output {
        /// DNS names.
        dns_names: Vec<String>,
        /// URIs.
        uris: Vec<String>,
        /// IP addresses.
        ip_addresses: Vec<IpAddr>,
    },
}

/// A certificate, and what is told of it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The DER, or the blob of an SSH certificate.
    pub bytes: Vec<u8>,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

impl From<Issued> for IssuedCertificate {
    fn from(issued: Issued) -> Self {
        Self {
            certificate: base64url::encode(issued.bytes),
            serial: issued.serial,
            not_before: issued.not_before,
            not_after: issued.not_after,
        }
    }
}

/// The TLS server's certificate and key.
pub struct ServerIdentity {
    /// Certificate, DER.
    pub certificate: Vec<u8>,
    /// Private key, PKCS#8 DER.
    pub key: zeroize::Zeroizing<Vec<u8>>,
}

impl ServerIdentity {
    /// Whether it should be replaced at `now`: it ends soon, has not begun (the clock was ahead when it was made), is for others than
    /// `server_names`, is by another CA than `authority` signs with, or is of a build that did not mark it as an auth endpoint's.
    pub fn is_outdated(&self, server_names: &[String], authority: &Authority, now: Timestamp) -> bool {
        let plain = |name: &String| name.parse::<IpAddr>().map_or_else(|_| name.clone(), |ip| ip.to_string());
        let wanted: Vec<_> = server_names.iter().map(plain).collect();
        request::validity(&self.certificate).is_ok_and(|(begin, end)| end < now.plus(SERVER_LEFT) || begin > now)
            || request::host_names(&self.certificate).is_ok_and(|names| names != wanted)
            || request::is_auth_endpoint(&self.certificate).is_ok_and(|marked| !marked)
            || !request::is_signed_by(&self.certificate, authority.certificate())
    }
}

impl Authority {
    /// The authority of a new cluster, with a CA certificate that it makes for itself.
    pub fn certify_itself(
        cluster: &str,
        keys: Box<dyn boundkey_hal::KeyStore>,
        random: &dyn Random,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let keys = SharedKeys::new(keys);
        let certificate = self_signed(cluster, 1, &keys, random, now)?;
        let set = CaSet::first(cluster, &keys, vec![certificate], now)?;
        Self::of(cluster, keys, set)
    }

    /// Issues a certificate for `key`.
    pub fn issue(
        &self,
        key: &PublicKey,
        common_name: &str,
        profile: &Profile,
        (now, not_after): (Timestamp, Timestamp),
        random: &dyn Random,
    ) -> Result<Issued, CaError> {
        let (sans, usages) = match profile {
            Profile::Identity(subject) => {
                let uri = Ia5String::try_from(subject.uri()).map(SanType::URI).map_err(names)?;
                (vec![uri], Usages::Device(vec![ExtendedKeyUsagePurpose::ClientAuth]))
            }
            Profile::Output { dns_names, uris, ip_addresses } => {
                let mut sans = dns_names.iter().map(|name| dns(name)).collect::<Result<Vec<_>, _>>()?;
                sans.extend(uris.iter().map(|name| uri(name)).collect::<Result<Vec<_>, _>>()?);
                sans.extend(ip_addresses.iter().map(|ip| SanType::IpAddress(*ip)));
                (sans, Usages::Device(vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]))
            }
        };
        self.leaf(&Subject(key.clone()), common_name, sans, usages, (now, not_after), random)
    }

    /// Issues a certificate for this cluster's TLS server, with a key of its own.
    ///
    /// It ends no sooner than `replaced`, the one before it: a device may have been told any time up to that end, if the server's clock
    /// was ahead for a while, and never goes back before it.
    pub fn issue_server(
        &self,
        server_names: &[String],
        replaced: Option<&ServerIdentity>,
        now: Timestamp,
        random: &dyn Random,
    ) -> Result<ServerIdentity, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(names)?;
        let san = |name: &String| name.parse().map_or_else(|_| dns(name), |ip| Ok(SanType::IpAddress(ip)));
        let sans = server_names.iter().map(san).collect::<Result<Vec<_>, _>>()?;
        let earliest = replaced.and_then(|replaced| Some(request::validity(&replaced.certificate).ok()?.1)).unwrap_or_default();
        let times = (now, now.plus(SERVER_LIFETIME).max(earliest));
        let issued = self.leaf(&key, "boundkey-auth", sans, Usages::AuthEndpoint, times, random)?;
        Ok(ServerIdentity { certificate: issued.bytes, key: key.serialize_der().into() })
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        sans: Vec<SanType>,
        usages: Usages,
        (now, not_after): (Timestamp, Timestamp),
        random: &dyn Random,
    ) -> Result<Issued, CaError> {
        let (number, serial) = serial(random)?;
        // X.509 counts whole seconds.
        let not_before = Timestamp::from_secs(now.minus(BACKDATE).secs());
        let not_after = Timestamp::from_secs(not_after.secs());
        let mut params = CertificateParams::default();
        params.serial_number = Some(number);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match usages {
            Usages::AuthEndpoint => params.custom_extensions = vec![auth_endpoint_usages()],
            Usages::Device(usages) => params.extended_key_usages = usages,
        }
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.to_system().into();
        params.not_after = not_after.to_system().into();
        self.sign_with(|issuer| params.signed_by(key, issuer).map(|certificate| certificate.der().to_vec())).map(|bytes| Issued {
            bytes,
            serial,
            not_before,
            not_after,
        })
    }

    /// Has `work` sign as the CA that is active.
    pub(super) fn sign_with<T>(&self, work: impl FnOnce(&CaIssuer<'_>) -> Result<T, rcgen::Error>) -> Result<T, CaError> {
        let Signing { certificate, x509: (id, key), .. } = &self.active;
        sign_as((certificate, key, id), &self.keys, work)
    }
}

/// A CA as rcgen takes it.
pub(super) type CaIssuer<'a> = Issuer<'static, Signer<Box<dyn Fn(&[u8]) -> Result<Signature, KeyError> + 'a>>>;

/// Has `work` sign as the CA of this certificate, whose key is `id` in the key store. Its name is the one in the certificate.
pub(super) fn sign_as<T>(
    (certificate, key, id): (&[u8], &PublicKey, &KeyId),
    keys: &SharedKeys,
    work: impl FnOnce(&CaIssuer<'_>) -> Result<T, rcgen::Error>,
) -> Result<T, CaError> {
    let sign = Box::new(|message: &[u8]| keys.sign(id, message)) as Box<dyn Fn(&[u8]) -> _>;
    let signer = Signer::new(key.clone(), sign);
    let issuer = Issuer::from_ca_cert_der(&certificate.into(), signer).map_err(|e| CaError::Certificate(e.to_string()))?;
    work(&issuer).map_err(|e| unsigned(issuer.key(), e))
}

/// Makes a certificate for CA `number` of a cluster, signed by itself.
pub(super) fn self_signed(
    cluster: &str,
    number: u32,
    keys: &SharedKeys,
    random: &dyn Random,
    now: Timestamp,
) -> Result<Vec<u8>, CaError> {
    let id = KeyNames::of(number)?.x509;
    let mut params = ca_params(cluster, number);
    params.serial_number = Some(serial(random)?.0);
    // A day early, for peers whose clocks are behind.
    params.not_before = now.minus(Duration::from_secs(86_400)).to_system().into();
    params.not_after = now.plus(CA_LIFETIME).to_system().into();
    let key = Signer::new(keys.public_key(&id)?, |message: &[u8]| keys.sign(&id, message));
    Ok(params.self_signed(&key).map_err(|e| unsigned(&key, e))?.der().to_vec())
}

/// A certificate for the key of `subject` by `issuer`, another CA of the cluster (RFC 4210 section 4.4). It holds while both hold.
pub(super) fn cross_certify(subject: &Ca, issuer: &Ca, keys: &SharedKeys, random: &dyn Random) -> Result<Vec<u8>, CaError> {
    let validity = |ca: &Ca| request::validity(ca.certificate()).map_err(CaError::Certificate);
    let ((begin, end), (issuer_begin, issuer_end)) = (validity(subject)?, validity(issuer)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = request::subject_name(subject.certificate()).map_err(CaError::Certificate)?;
    params.serial_number = Some(serial(random)?.0);
    params.not_before = begin.max(issuer_begin).to_system().into();
    params.not_after = end.min(issuer_end).to_system().into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let identifier = request::key_identifier(subject.certificate()).map_err(CaError::Certificate)?;
    params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
    let (id, key) = (KeyNames::of(issuer.number)?.x509, issuer.key()?);
    let subject = Subject(subject.key()?);
    sign_as((issuer.certificate(), &key, &id), keys, |issuer| {
        params.signed_by(&subject, issuer).map(|certificate| certificate.der().to_vec())
    })
}

/// Name and usages of CA `number`. Without a limit to the length of paths: the CA that follows is certified by it
/// (RFC 4210 section 4.4).
pub(super) fn ca_params(cluster: &str, number: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = if number == 1 { cluster.to_owned() } else { format!("{cluster} CA {number}") };
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Extended key usages of a certificate.
enum Usages {
    /// TLS server, and [`AUTH_ENDPOINT`], which no device is ever given.
    AuthEndpoint,
    /// Those of an identity or an output.
    Device(Vec<ExtendedKeyUsagePurpose>),
}

/// The extension by hand: rcgen's list of usages has no place for a usage that is given as its encoding.
#[expect(
    clippy::cast_possible_truncation,
    reason = "less than 128 bytes each, so a length is one byte (ITU-T X.690 section 8.1.3.4)"
)]
fn auth_endpoint_usages() -> CustomExtension {
    const OID: [u8; 2] = [0x06, AUTH_ENDPOINT.len() as u8];
    const SEQUENCE: [u8; 2] = [0x30, (SERVER_AUTH.len() + OID.len() + AUTH_ENDPOINT.len()) as u8];
    CustomExtension::from_oid_content(EXTENDED_KEY_USAGE, [&SEQUENCE, SERVER_AUTH, &OID, AUTH_ENDPOINT].concat())
}

/// 16 random bytes, positive (RFC 5280 section 4.1.2.2 allows 20), and their hexadecimal form.
fn serial(random: &dyn Random) -> Result<(SerialNumber, String), CaError> {
    let mut bytes = [0; 16];
    random.fill(&mut bytes).map_err(|e: NoRandomness| CaError::Names(e.to_string()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok((SerialNumber::from_slice(&bytes), super::hex(&bytes)))
}

fn dns(name: &str) -> Result<SanType, CaError> {
    check_dns_name(name).map_err(CaError::Names)?;
    Ia5String::try_from(name).map(SanType::DnsName).map_err(names)
}

fn uri(name: &str) -> Result<SanType, CaError> {
    check_uri(name).map_err(CaError::Names)?;
    Ia5String::try_from(name).map(SanType::URI).map_err(names)
}

/// Why `key` signed nothing: its store, or names that make no certificate.
pub(super) fn unsigned<S>(key: &Signer<S>, e: rcgen::Error) -> CaError {
    key.cause(e).map_or_else(names, CaError::Key)
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn names(e: rcgen::Error) -> CaError {
    CaError::Names(format!("certificate: {e}"))
}
