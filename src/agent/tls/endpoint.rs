//! Whether a certificate is an auth endpoint's: it has to carry the extended key usages of a TLS server and [`AUTH_ENDPOINT`].
//!
//! Only the certificate itself has to, and none between it and the trusted CA. webpki asks a usage of each certificate on the path, so
//! the extension is read here. What is read is verified before: malformed content is a fault of the CA, and refused.

use std::sync::Arc;

use boundkey_hal::der::{BOOLEAN, Der, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, context};
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};

use super::NotAuthEndpoint;
use boundkey_join::endpoint::AUTH_ENDPOINT;

/// `id-ce-extKeyUsage` (RFC 5280 section 4.2.1.12).
const EXTENDED_KEY_USAGE: &[u8] = b"\x55\x1d\x25";
/// `id-at-commonName` (RFC 5280 appendix A.1).
const COMMON_NAME: &[u8] = b"\x55\x04\x03";
/// `UTF8String`
const UTF8_STRING: u8 = 0x0c;
/// `PrintableString`
const PRINTABLE_STRING: u8 = 0x13;
/// `SET`
const SET: u8 = 0x31;
/// `id-kp-serverAuth`.
const SERVER_AUTH: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x01";

/// Refuses the certificate `leaf` unless it is an auth endpoint's.
pub(super) fn check(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    let fields = Fields::of(leaf).ok_or(CertificateError::BadEncoding)?;
    let usages = fields.extension(EXTENDED_KEY_USAGE).and_then(|extension| Der(extension).take(SEQUENCE)).unwrap_or_default();
    if has_usage(usages, SERVER_AUTH) && has_usage(usages, AUTH_ENDPOINT) {
        return Ok(());
    }
    let subject = fields.common_name().unwrap_or_default().to_owned();
    Err(CertificateError::Other(OtherError(Arc::new(NotAuthEndpoint { subject }))).into())
}

/// What is looked at of a certificate (RFC 5280 section 4.1).
struct Fields<'a> {
    subject: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(certificate: &'a [u8]) -> Option<Self> {
        let mut fields = Der(Der(Der(certificate).take(SEQUENCE)?).take(SEQUENCE)?);
        fields.take(context(0)); // version, absent in one of version 1
        fields.take(INTEGER)?; // serial number
        let [_signature, _issuer, _validity] = [fields.take(SEQUENCE)?, fields.take(SEQUENCE)?, fields.take(SEQUENCE)?];
        let [subject, _key] = [fields.take(SEQUENCE)?, fields.take(SEQUENCE)?];
        // issuerUniqueID and subjectUniqueID, implicit bit strings.
        for number in [1, 2] {
            fields.take(0x80 | number);
        }
        let extensions = fields.take(context(3)).and_then(|extensions| Der(extensions).take(SEQUENCE)).unwrap_or_default();
        fields.is_empty().then_some(Self { subject, extensions })
    }

    /// The first common name of the subject: of a device's certificate the name of its bot or token.
    fn common_name(&self) -> Option<&'a str> {
        let mut names = Der(self.subject);
        while let Some(name) = names.take(SET) {
            let mut attribute = Der(Der(name).take(SEQUENCE)?);
            if attribute.take(OBJECT_IDENTIFIER)? == COMMON_NAME {
                let text = attribute.take(UTF8_STRING).or_else(|| attribute.take(PRINTABLE_STRING))?;
                return std::str::from_utf8(text).ok();
            }
        }
        None
    }

    /// Contents of the extension with this identifier.
    fn extension(&self, identifier: &[u8]) -> Option<&'a [u8]> {
        let mut extensions = Der(self.extensions);
        while let Some(extension) = extensions.take(SEQUENCE) {
            let mut extension = Der(extension);
            let found = extension.take(OBJECT_IDENTIFIER)? == identifier;
            extension.take(BOOLEAN); // whether it is critical
            let contents = extension.take(OCTET_STRING)?;
            if found {
                return Some(contents);
            }
        }
        None
    }
}

fn has_usage(usages: &[u8], wanted: &[u8]) -> bool {
    let mut usages = Der(usages);
    std::iter::from_fn(|| usages.take(OBJECT_IDENTIFIER)).any(|usage| usage == wanted)
}
