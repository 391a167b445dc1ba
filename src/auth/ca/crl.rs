//! Certificate revocation lists, version 2 (RFC 5280 section 5).

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};

use super::issue::BACKDATE;
use super::{Authority, CaError, request};
use crate::join::message::CRL_LIFETIME;
use crate::time::Timestamp;

impl Authority {
    /// The list of revoked certificates, named by their serial numbers in hexadecimal: DER. `number` rises with every list.
    ///
    /// They are on hold (RFC 5280 section 5.3.1), for a lock may be taken away again, and since the list was made: what matters is
    /// that they are on it.
    pub fn revocation_list(&self, number: u64, serials: &[String], now: Timestamp) -> Result<Vec<u8>, CaError> {
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
                request::key_identifier(self.certificate()).map_err(CaError::Certificate)?,
            ),
        };
        self.sign_with(|issuer| params.signed_by(issuer).map(|list| list.der().to_vec()))
    }
}

pub(super) fn serial_bytes(hex: &str) -> Result<Vec<u8>, CaError> {
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<_> = hex.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| CaError::Names(format!("serial number {hex:?} is damaged")))
}
