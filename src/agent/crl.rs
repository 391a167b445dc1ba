//! The cluster's revocation list (RFC 5280 section 5), kept for programs on the device that verify certificates.
//!
//! It is fetched with each join and in between, and passed on only if a CA of the trust bundle signed it. The parser reads no more than
//! that takes; what is on the list is for the programs to read.

use std::time::Duration;

use boundkey_hal::der::{
    BIT_STRING, Der, GENERALIZED_TIME, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, UTC_TIME, context,
};
use rustls::pki_types::CertificateDer;

use super::transport::{Transport, TransportError};
use crate::join::message::{CRL_LIFETIME, CRL_PATH, CRL_TYPE, MAX_CRL};

/// `ecdsa-with-SHA256` (RFC 5758 section 3.2), the contents of an AlgorithmIdentifier.
const ECDSA_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// `id-ce-cRLNumber` (RFC 5280 section 5.2.3).
const CRL_NUMBER: &[u8] = b"\x55\x1d\x14";

/// The newest list.
#[derive(Debug, Default)]
pub struct RevocationList(Option<Held>);

#[derive(Debug)]
struct Held {
    der: Vec<u8>,
    number: u64,
    /// When it came, in time since boot.
    since: Duration,
}

impl RevocationList {
    /// The list, DER; `None` before the first one.
    pub fn der(&self) -> Option<&[u8]> {
        self.0.as_ref().map(|held| held.der.as_slice())
    }

    /// Asks for the list at time `now` since boot, and takes it if one of the CAs in `bundle` signed it. Whether it is another one.
    ///
    /// A lower number is a server that lags behind: ours is kept, for as long as a list holds.
    pub fn fetch(&mut self, transport: &mut dyn Transport, bundle: &[Vec<u8>], now: Duration) -> Result<bool, TransportError> {
        let der = transport.get(CRL_PATH, CRL_TYPE, MAX_CRL)?;
        if self.der() == Some(&der) {
            return Ok(false);
        }
        let number = number(&der, bundle).map_err(TransportError::RevocationList)?;
        if self.0.as_ref().is_some_and(|held| number < held.number && now < held.since + CRL_LIFETIME) {
            log::warn!("the revocation list is older than the one at hand, which is kept");
            return Ok(false);
        }
        self.0 = Some(Held { der, number, since: now });
        Ok(true)
    }
}

/// Whether `der` is a list that one of the CAs in `bundle` signed.
pub fn is_signed(der: &[u8], bundle: &[Vec<u8>]) -> bool {
    number(der, bundle).is_ok()
}

/// The number of a list that one of the CAs in `bundle` signed.
fn number(der: &[u8], bundle: &[Vec<u8>]) -> Result<u64, &'static str> {
    const FORM: &str = "it is not a revocation list, version 2";
    let (to_be_signed, signature) = outer(der).ok_or(FORM)?;
    let (issuer, number) = inner(to_be_signed).ok_or(FORM)?;
    let signed_by = |ca: &Vec<u8>| {
        let ca = CertificateDer::from(ca.as_slice());
        let Ok(ca) = webpki::anchor_from_trusted_cert(&ca) else { return false };
        let key = public_key(&ca.subject_public_key_info);
        *ca.subject == *issuer
            && key.is_some_and(|key| webpki::ring::ECDSA_P256_SHA256.verify_signature(key, to_be_signed, signature).is_ok())
    };
    if bundle.iter().any(signed_by) { Ok(number) } else { Err("the trusted CA did not sign it") }
}

/// `CertificateList`: what is signed, with tag and length, and the signature.
fn outer(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut input = Der(der);
    let mut list = Der(input.take(SEQUENCE)?);
    let start = list.0;
    list.take(SEQUENCE)?;
    let to_be_signed = &start[..start.len() - list.0.len()];
    let algorithm = list.take(SEQUENCE)?;
    let signature = list.take(BIT_STRING)?.strip_prefix(&[0])?;
    (input.is_empty() && list.is_empty() && algorithm == ECDSA_SHA256).then_some((to_be_signed, signature))
}

/// `TBSCertList`: issuer and number.
fn inner(to_be_signed: &[u8]) -> Option<(&[u8], u64)> {
    let mut fields = Der(Der(to_be_signed).take(SEQUENCE)?);
    let second_version = fields.take(INTEGER)? == [1];
    let algorithm = fields.take(SEQUENCE)?;
    let issuer = fields.take(SEQUENCE)?;
    let mut times = 0;
    while fields.take(UTC_TIME).or_else(|| fields.take(GENERALIZED_TIME)).is_some() {
        times += 1;
    }
    fields.take(SEQUENCE); // what is revoked, if anything is
    let mut extensions = Der(Der(fields.take(context(0))?).take(SEQUENCE)?);
    let whole = second_version && algorithm == ECDSA_SHA256 && times == 2 && fields.is_empty();
    while let Some(extension) = extensions.take(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.take(OBJECT_IDENTIFIER)? == CRL_NUMBER {
            let number = Der(extension.take(OCTET_STRING)?).take(INTEGER)?;
            let digits = number.strip_prefix(&[0]).unwrap_or(number);
            let known = digits.len() <= 8 && whole;
            return known.then(|| (issuer, digits.iter().fold(0, |sum, digit| sum << 8 | u64::from(*digit))));
        }
    }
    None
}

/// The point in the contents of a P-256 `SubjectPublicKeyInfo`; whether it is one is for the verifier to say.
fn public_key(info: &[u8]) -> Option<&[u8]> {
    let mut info = Der(info);
    info.take(SEQUENCE)?;
    info.take(BIT_STRING)?.strip_prefix(&[0])
}
