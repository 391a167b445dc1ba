//! What the authority issues: its own certificate, the TLS server's, and those of devices.

use std::net::IpAddr;
use std::time::Duration;

use boundkey_hal::{Error as KeyError, PublicKey, Signature};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};

use super::{Authority, CaError, request};
use crate::auth::names::{check_dns_name, check_uri};
use crate::certify::{Signer, Subject};
use crate::join::base64url;
use crate::join::message::IssuedCertificate;
use crate::join::server::request::Holder;
use crate::time::{NoRandomness, Random, Timestamp};

/// How long before its issue a certificate starts: clocks of peers may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(60);
/// Lifetime of the CA certificate. Devices pin its key, so its end is the cluster's.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Lifetime of the TLS server's certificate.
const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// What must be left of it, else it is renewed.
const SERVER_LEFT: Duration = Duration::from_secs(30 * 86_400);

/// What a device's certificate is for.
#[derive(Clone, Debug)]
pub enum Profile {
    /// Its identity: renews, and opens client connections.
    Identity(Holder),
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
    /// Whether it should be replaced at `now`: it ends soon, has not begun (the clock was ahead when it was made), or is for others than
    /// `server_names`.
    pub fn is_outdated(&self, server_names: &[String], now: Timestamp) -> bool {
        let plain = |name: &String| name.parse::<IpAddr>().map_or_else(|_| name.clone(), |ip| ip.to_string());
        let wanted: Vec<_> = server_names.iter().map(plain).collect();
        request::validity(&self.certificate).is_ok_and(|(begin, end)| end < now.plus(SERVER_LEFT) || begin > now)
            || request::host_names(&self.certificate).is_ok_and(|names| names != wanted)
    }
}

impl Authority {
    /// Makes the CA certificate of a new cluster and puts it in place of the one given so far.
    pub fn certify_itself(
        cluster: &str,
        mut keys: Box<dyn boundkey_hal::KeyStore + Send>,
        random: &dyn Random,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let id = super::key_id(super::X509)?;
        let key = keys.public_key(&id)?;
        let join_id = super::key_id(super::JOIN_STATE)?;
        let join_key = keys.public_key(&join_id)?;
        let ssh_id = super::key_id(super::SSH_HOST)?;
        let ssh_key = keys.public_key(&ssh_id)?;
        let mut authority = Self {
            cluster: cluster.into(),
            keys: keys.into(),
            x509: (id, key),
            join_state: (join_id, join_key),
            ssh_host: (ssh_id, ssh_key),
            certificate: Vec::new(),
        };
        let mut params = authority.ca_params();
        params.serial_number = Some(serial(random)?.0);
        // A day early, for peers whose clocks are behind.
        params.not_before = now.minus(Duration::from_secs(86_400)).to_system().into();
        params.not_after = now.plus(CA_LIFETIME).to_system().into();
        let key = authority.issuer_key();
        let certificate = params.self_signed(&key).map_err(|e| unsigned(&key, e))?.der().to_vec();
        drop(key);
        authority.certificate = certificate;
        Ok(authority)
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
            Profile::Identity(holder) => {
                let uri = Ia5String::try_from(holder.uri()).map(SanType::URI).map_err(names)?;
                (vec![uri], vec![ExtendedKeyUsagePurpose::ClientAuth])
            }
            Profile::Output { dns_names, uris, ip_addresses } => {
                let mut sans = dns_names.iter().map(|name| dns(name)).collect::<Result<Vec<_>, _>>()?;
                sans.extend(uris.iter().map(|name| uri(name)).collect::<Result<Vec<_>, _>>()?);
                sans.extend(ip_addresses.iter().map(|ip| SanType::IpAddress(*ip)));
                (sans, vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
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
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let earliest = replaced.and_then(|replaced| Some(request::validity(&replaced.certificate).ok()?.1)).unwrap_or_default();
        let times = (now, now.plus(SERVER_LIFETIME).max(earliest));
        let issued = self.leaf(&key, "boundkey-auth", sans, usages, times, random)?;
        Ok(ServerIdentity { certificate: issued.bytes, key: key.serialize_der().into() })
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        sans: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
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
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.to_system().into();
        params.not_after = not_after.to_system().into();
        let ca = self.issuer_key();
        let issuer = rcgen::Issuer::new(self.ca_params(), &ca);
        let certificate = params.signed_by(key, &issuer).map_err(|e| unsigned(&ca, e))?;
        Ok(Issued { bytes: certificate.der().to_vec(), serial, not_before, not_after })
    }

    /// Name, key identifier and usages of the CA: the same at every call, for `AuthorityKeyIdentifier` and issuer to match.
    pub(super) fn ca_params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.cluster.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub(super) fn issuer_key(&self) -> Signer<impl Fn(&[u8]) -> Result<Signature, KeyError>> {
        let (id, key) = &self.x509;
        Signer::new(key.clone(), move |message: &[u8]| self.sign(id, message))
    }
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
