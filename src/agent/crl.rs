//! The cluster's revocation list (RFC 5280 section 5), kept for programs on the device that verify certificates.
//!
//! There is one for each CA of the trust bundle. It is fetched with each join and in between, and passed on only if that CA signed it. The parser reads no more than
//! that takes; what is on the list is for the programs to read.

use std::time::Duration;

use boundkey_hal::der::{
    BIT_STRING, Der, GENERALIZED_TIME, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, UTC_TIME, context,
};

use super::transport::{Transport, TransportError};
use boundkey_join::ProblemType;
use boundkey_join::message::{CRL_LIFETIME, CRL_PATH, CRL_TYPE, MAX_CRL};
use boundkey_join::trust::{CaCertificate, PIN, Pin, pin_text};

/// `ecdsa-with-SHA256` (RFC 5758 section 3.2), the contents of an AlgorithmIdentifier.
const ECDSA_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// `id-ce-cRLNumber` (RFC 5280 section 5.2.3).
const CRL_NUMBER: &[u8] = b"\x55\x1d\x14";

/// The newest list of each CA.
#[derive(Debug, Default)]
pub struct RevocationLists {
    held: Vec<Held>,
    /// Whether a list changed of which the caller was not told, for that of another CA failed.
    untold: bool,
}

#[derive(Debug)]
struct Held {
    /// The pin of the CA.
    ca: Pin,
    der: Vec<u8>,
    number: u64,
    /// When it came, in time since boot.
    since: Duration,
}

impl RevocationLists {
    /// The lists, DER; none before the first one.
    pub fn ders(&self) -> Vec<&[u8]> {
        self.held.iter().map(|held| held.der.as_slice()).collect()
    }

    /// Asks for the list of each of `cas`, certificates in DER, at time `now` since boot. A list is taken if its CA signed it. Whether any is
    /// another one. What is at hand of CAs that are not among them goes.
    ///
    /// A lower number is a server that lags behind: ours is kept, for as long as a list holds.
    pub fn fetch(&mut self, transport: &mut dyn Transport, cas: &[Vec<u8>], now: Duration) -> Result<bool, TransportError> {
        let unreadable = TransportError::RevocationList("a CA certificate cannot be read");
        let pins = cas.iter().map(|der| Some(CaCertificate::read(der)?.pin())).collect::<Option<Vec<_>>>().ok_or(unreadable)?;
        let before = self.held.len();
        self.held.retain(|held| pins.contains(&held.ca));
        self.untold |= self.held.len() != before;
        let mut failed = None;
        for (certificate, ca) in cas.iter().zip(pins) {
            match self.fetch_of(transport, certificate, ca, now) {
                Ok(changed) => self.untold |= changed,
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        failed.map_or_else(|| Ok(std::mem::take(&mut self.untold)), Err)
    }

    fn fetch_of(&mut self, transport: &mut dyn Transport, ca: &[u8], pin: Pin, now: Duration) -> Result<bool, TransportError> {
        let path = format!("{CRL_PATH}/{}", pin_text(&pin).trim_start_matches(PIN));
        let der = match transport.get(&path, CRL_TYPE, MAX_CRL) {
            Err(TransportError::Refused(problem)) if problem.kind == ProblemType::NotFound => {
                log::info!("a CA of the trust bundle does not count any more; the next join brings another bundle");
                return Ok(false);
            }
            answer => answer?,
        };
        let held = self.held.iter_mut().find(|held| held.ca == pin);
        if held.as_ref().is_some_and(|held| held.der == der) {
            return Ok(false);
        }
        let number = number(&der, ca).map_err(TransportError::RevocationList)?;
        let fresh = Held { ca: pin, der, number, since: now };
        match held {
            Some(held) if number < held.number && now < held.since + CRL_LIFETIME => {
                log::warn!("the revocation list is older than the one at hand, which is kept");
                return Ok(false);
            }
            Some(held) => *held = fresh,
            None => self.held.push(fresh),
        }
        Ok(true)
    }
}

/// Whether `der` is a list that one of the CAs in `bundle` signed.
pub fn is_signed(der: &[u8], bundle: &[Vec<u8>]) -> bool {
    bundle.iter().any(|ca| number(der, ca).is_ok())
}

/// The number of a list that the CA of this certificate signed.
fn number(der: &[u8], ca: &[u8]) -> Result<u64, &'static str> {
    const FORM: &str = "it is not a revocation list, version 2";
    let (to_be_signed, signature) = outer(der).ok_or(FORM)?;
    let (issuer, number) = inner(to_be_signed).ok_or(FORM)?;
    let ca = CaCertificate::read(ca).filter(|ca| ca.subject == issuer);
    let key = ca.and_then(|ca| ca.key());
    let signed =
        key.is_some_and(|key| webpki::ring::ECDSA_P256_SHA256.verify_signature(key.as_bytes(), to_be_signed, signature).is_ok());
    if signed { Ok(number) } else { Err("the trusted CA did not sign it") }
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
