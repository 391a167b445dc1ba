//! Whether the identity in an answer was issued by a CA that the device trusts, for this very join.
//!
//! TLS tells which server the device speaks to. That is not enough to store what is said: the key of a TLS server can be stolen
//! without the key of the CA. An identity certificate for the fresh key of this request, which left the device inside this
//! request alone, is something that only the CA can make, and makes only for a request that was signed by a key that the token
//! trusts.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::tls::{AFTER_ALL, Roots};
use super::transport::TransportError;
use boundkey_join::TrustBundle;
use boundkey_join::identity::{IdentitySubject, InstanceKind};
use boundkey_join::message::JoinAnswer;
use boundkey_platform::time::Timestamp;

/// Before the first moment that any certificate of ours names.
const BEFORE_ALL: UnixTime = UnixTime::since_unix_epoch(Duration::ZERO);

/// Refuses an answer whose identity certificate, given as `certificate` (DER), no CA of `bundle` issued for the key of this request, whose
/// SubjectPublicKeyInfo is `key` (DER).
pub fn verify(
    answer: &JoinAnswer,
    token: &str,
    certificate: &[u8],
    bundle: &TrustBundle,
    key: &[u8],
) -> Result<(), TransportError> {
    let Roots::Certificates(cas) = Roots::of(bundle) else {
        return Err(TransportError::NotTrusted("its trust bundle has no certificate".into()));
    };
    let anchors: Vec<_> = cas.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
    if is_identity(answer, token, certificate, &anchors, key) {
        return Ok(());
    }
    Err(TransportError::NotTrusted("the trusted CA did not issue the identity certificate in its answer".into()))
}

fn is_identity(answer: &JoinAnswer, token: &str, certificate: &[u8], anchors: &[TrustAnchor<'_>], key: &[u8]) -> bool {
    let der = CertificateDer::from(certificate);
    let Ok(certificate) = EndEntityCert::try_from(&der) else { return false };
    let is_named = |uri: &str| {
        let of_kind = |kind| IdentitySubject {
            cluster: answer.cluster.clone(),
            token: token.to_owned(),
            incarnation: answer.incarnation,
            kind,
            step: answer.step,
        };
        [InstanceKind::Bot, InstanceKind::Host].into_iter().any(|kind| of_kind(kind).uri() == uri)
    };
    let verify = |time| {
        certificate.verify_for_usage(&[webpki::ring::ECDSA_P256_SHA256], anchors, &[], time, KeyUsage::client_auth(), None, None)
    };
    // webpki tells a certificate's first and last moment only when it rejects it for them, before it looks at the signature.
    let Err(webpki::Error::CertNotValidYet { not_before: begin, .. }) = verify(BEFORE_ALL) else { return false };
    let Err(webpki::Error::CertExpired { not_after: end, .. }) = verify(AFTER_ALL) else { return false };
    let moment = |time: UnixTime| Timestamp::from_secs(time.as_secs());
    certificate.subject_public_key_info().as_ref() == key
        && certificate.valid_uri_names().any(is_named)
        && (moment(begin), moment(end)) == (answer.identity.not_before, answer.identity.not_after)
        && verify(begin).is_ok()
}
