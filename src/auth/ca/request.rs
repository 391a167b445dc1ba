//! Reading X.509 that a peer or the disk hands in.

use std::net::IpAddr;

use boundkey_hal::{Algorithm, PublicKey};
use rcgen::{DistinguishedName, DnType, DnValue};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::*;

use boundkey_join::base64url;
use boundkey_join::endpoint::AUTH_ENDPOINT;
use boundkey_platform::time::Timestamp;

/// The key that a PKCS#10 request (base64url of DER) proves to hold. Its names are not looked at.
pub fn subject_key(csr: &str) -> Result<PublicKey, String> {
    let der = base64url::decode(csr).map_err(|_| "a certificate request that is not base64url")?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|e| format!("a certificate request that cannot be read: {e}"))?;
    if !rest.is_empty() {
        return Err("a certificate request with something behind it".into());
    }
    request.verify_signature().map_err(|_| "a certificate request whose signature does not verify")?;
    public_key(&request.certification_request_info.subject_pki)
}

/// What an identity certificate says.
pub(super) struct Identity {
    pub(super) uri: String,
    pub(super) not_after: Timestamp,
    pub(super) key: PublicKey,
}

/// Opens a certificate that the holder of one of the certificates `cas` (DER) signed; its time is not judged here.
pub(super) fn open_identity<'a>(der: &[u8], cas: impl Iterator<Item = &'a [u8]>) -> Result<Identity, String> {
    let certificate = parse(der)?;
    let signed_by = |ca: &[u8]| Ok::<_, String>(certificate.verify_signature(Some(parse(ca)?.public_key())).is_ok());
    let mut signed = false;
    for ca in cas {
        signed = signed || signed_by(ca)?;
    }
    if !signed {
        return Err("the certificate is not signed by this cluster's CA".into());
    }
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Identity {
        uri: first_uri(&certificate).ok_or("the certificate has no URI")?,
        not_after: Timestamp::from_secs(end),
        key: public_key(certificate.public_key())?,
    })
}

/// Whether the holder of the certificate `ca` signed the certificate `der`.
pub(super) fn is_signed_by(der: &[u8], ca: &[u8]) -> bool {
    let (Ok(certificate), Ok(ca)) = (parse(der), parse(ca)) else { return false };
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

/// The first URI of a certificate that anyone may have made.
pub(super) fn uri(der: &[u8]) -> Option<String> {
    first_uri(&parse(der).ok()?)
}

fn first_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

/// The subject key identifier (RFC 5280 section 4.2.1.2) of a certificate.
pub(super) fn key_identifier(der: &[u8]) -> Result<Vec<u8>, String> {
    let certificate = parse(der)?;
    let extensions = certificate.extensions().iter();
    let mut found = extensions.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.next().ok_or_else(|| "a CA certificate without a subject key identifier".into())
}

/// The subject of a certificate. It has to be plain: one attribute in each part, as text.
pub(super) fn subject_name(der: &[u8]) -> Result<DistinguishedName, String> {
    let certificate = parse(der)?;
    let mut name = DistinguishedName::new();
    for part in certificate.subject().iter() {
        let attributes: Vec<_> = part.iter().collect();
        let [attribute] = attributes[..] else { return Err("a subject with several attributes in one part".into()) };
        let oid = attribute.attr_type().iter().map(Iterator::collect::<Vec<u64>>).ok_or("a subject with an unknown attribute")?;
        let text = attribute.as_str().map_err(|_| "a subject with an attribute that is no text")?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| "a subject that cannot be written")?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| "a subject that cannot be written")?),
            Tag::Utf8String => DnValue::Utf8String(text.into()),
            _ => return Err("a subject with an attribute that is neither UTF8String nor PrintableString".into()),
        };
        name.push(DnType::from_oid(&oid), value);
    }
    Ok(name)
}

/// DNS names and IP addresses of a certificate, in its order.
pub(super) fn host_names(der: &[u8]) -> Result<Vec<String>, String> {
    let certificate = parse(der)?;
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let host = |name: &GeneralName<'_>| match *name {
        GeneralName::DNSName(name) => Some(name.to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
        },
        _ => None,
    };
    Ok(names.into_iter().flat_map(|names| names.value.general_names.iter().filter_map(host)).collect())
}

/// Whether a certificate is marked as an auth endpoint's.
pub(super) fn is_auth_endpoint(der: &[u8]) -> Result<bool, String> {
    let certificate = parse(der)?;
    let usages = certificate.extended_key_usage().map_err(|e| e.to_string())?;
    Ok(usages.is_some_and(|usages| usages.value.other.iter().any(|usage| usage.as_bytes() == AUTH_ENDPOINT)))
}

/// First and last moment of a certificate.
pub(super) fn validity(der: &[u8]) -> Result<(Timestamp, Timestamp), String> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    let moment = |time: ASN1Time| Timestamp::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
    Ok((moment(validity.not_before), moment(validity.not_after)))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("a certificate with something behind it".into()),
        Err(e) => Err(format!("a certificate that cannot be read: {e}")),
    }
}

fn public_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, String> {
    let bytes = &spki.subject_public_key.data;
    let found = match spki.parsed() {
        Ok(x509_parser::public_key::PublicKey::EC(_)) => PublicKey::new(Algorithm::EcdsaP256, bytes),
        _ if spki.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => PublicKey::new(Algorithm::Ed25519, bytes),
        _ => return Err("a key that is neither P-256 nor Ed25519".into()),
    };
    found.map_err(|e| e.0.into())
}
