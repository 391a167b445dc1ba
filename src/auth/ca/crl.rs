//! Certificate revocation lists, version 2 (RFC 5280 section 5).

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};

use super::issue::{BACKDATE, sign_as};
use super::set::KeyNames;
use super::{Authority, Ca, CaError, request};
use boundkey_join::message::CRL_LIFETIME;
use boundkey_platform::time::Timestamp;

impl Authority {
    /// For each CA that counts, named by its pin, a list of revoked certificates, named by their serial numbers in hexadecimal: DER.
    /// `number` rises with every list. All have the same content: which CA issued a certificate is not known, and serial numbers are random.
    ///
    /// They are on hold (RFC 5280 section 5.3.1), for a lock may be taken away again, and since the list was made: what matters is
    /// that they are on it.
    pub fn revocation_lists(&self, number: u64, serials: &[String], now: Timestamp) -> Result<Vec<(String, Vec<u8>)>, CaError> {
        self.set.trusted().map(|ca| Ok((ca.pin()?, self.revocation_list(ca, number, serials, now)?))).collect()
    }

    fn revocation_list(&self, ca: &Ca, number: u64, serials: &[String], now: Timestamp) -> Result<Vec<u8>, CaError> {
        let seconds = |time: Timestamp| Timestamp::from_secs(time.secs()).to_system().into();
        let this_update = seconds(now.minus(BACKDATE));
        let revoked = |serial: &String| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial_bytes(serial)?),
                revocation_time: this_update,
                reason_code: Some(RevocationReason::CertificateHold),
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update: seconds(now.plus(CRL_LIFETIME)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect::<Result<_, CaError>>()?,
            key_identifier_method: KeyIdMethod::PreSpecified(
                request::key_identifier(ca.certificate()).map_err(CaError::Certificate)?,
            ),
        };
        let (id, key) = (KeyNames::of(ca.number)?.x509, ca.key()?);
        sign_as((ca.certificate(), &key, &id), &self.keys, |issuer| params.signed_by(issuer).map(|list| list.der().to_vec()))
    }
}

pub(super) fn serial_bytes(hex: &str) -> Result<Vec<u8>, CaError> {
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<_> = hex.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| CaError::Names(format!("serial number {hex:?} is damaged")))
}
