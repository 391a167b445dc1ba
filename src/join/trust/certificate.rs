//! What of a CA certificate (RFC 5280 section 4.1) trust is decided by.

use boundkey_hal::der::{BIT_STRING, BOOLEAN, Der, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, context};
use boundkey_hal::{Algorithm, PublicKey};
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::Pin;

/// `ecdsa-with-SHA256` (RFC 5758 section 3.2), the contents of an AlgorithmIdentifier.
const ECDSA_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// `id-ecPublicKey` with `secp256r1` (RFC 5480 section 2.1), the contents of an AlgorithmIdentifier.
const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// `id-ce-basicConstraints` (RFC 5280 section 4.2.1.9).
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
/// `id-ce-keyUsage` (RFC 5280 section 4.2.1.3).
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
/// `keyCertSign`, in the first byte of a KeyUsage.
const KEY_CERT_SIGN: u8 = 0x04;

/// A CA certificate, taken apart. Its time is not judged, nor whether what it names critical is known.
#[derive(Clone, Copy, Debug)]
pub struct CaCertificate<'a> {
    /// Contents of the issuer's name.
    pub issuer: &'a [u8],
    /// Contents of the subject's name.
    pub subject: &'a [u8],
    /// Whether its basic constraints say that it is a CA, and no key usage forbids it to sign certificates.
    pub is_ca: bool,
    to_be_signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    key_info: &'a [u8],
}

impl<'a> CaCertificate<'a> {
    /// Takes a certificate apart, DER; `None` where it is none of version 3.
    pub fn read(der: &'a [u8]) -> Option<Self> {
        let mut input = Der(der);
        let mut certificate = Der(input.take(SEQUENCE)?);
        let to_be_signed = element(&mut certificate, SEQUENCE)?;
        let algorithm = certificate.take(SEQUENCE)?;
        let signature = certificate.take(BIT_STRING)?.strip_prefix(&[0])?;
        if !input.is_empty() || !certificate.is_empty() {
            return None;
        }
        let mut fields = Der(Der(to_be_signed).take(SEQUENCE)?);
        fields.take(context(0))?;
        fields.take(INTEGER)?;
        if fields.take(SEQUENCE)? != algorithm {
            return None;
        }
        let issuer = fields.take(SEQUENCE)?;
        fields.take(SEQUENCE)?; // validity
        let subject = fields.take(SEQUENCE)?;
        let key_info = element(&mut fields, SEQUENCE)?;
        let is_ca = match fields.take(context(3)) {
            Some(extensions) => is_ca(Der(extensions).take(SEQUENCE)?)?,
            None => false,
        };
        Some(Self { issuer, subject, is_ca, to_be_signed, algorithm, signature, key_info })
    }

    /// Its key, if that is one of P-256.
    pub fn key(&self) -> Option<PublicKey> {
        let mut info = Der(Der(self.key_info).take(SEQUENCE)?);
        if info.take(SEQUENCE)? != P256 {
            return None;
        }
        PublicKey::new(Algorithm::EcdsaP256, info.take(BIT_STRING)?.strip_prefix(&[0])?).ok()
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn pin(&self) -> Pin {
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, self.key_info).as_ref());
        pin
    }

    /// Whether the holder of `issuer` issued it, by name and signature.
    pub fn is_issued_by(&self, issuer: &CaCertificate<'_>) -> bool {
        let Some(key) = issuer.key().filter(|_| self.issuer == issuer.subject && self.algorithm == ECDSA_SHA256) else {
            return false;
        };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.as_bytes()).verify(self.to_be_signed, self.signature).is_ok()
    }
}

/// The next element, with tag and length.
fn element<'a>(input: &mut Der<'a>, tag: u8) -> Option<&'a [u8]> {
    let start = input.0;
    input.take(tag)?;
    Some(&start[..start.len() - input.0.len()])
}

/// What the extensions say; `None` where they cannot be read.
fn is_ca(extensions: &[u8]) -> Option<bool> {
    let (mut extensions, mut is_ca, mut may_sign) = (Der(extensions), false, true);
    while !extensions.is_empty() {
        let mut extension = Der(extensions.take(SEQUENCE)?);
        let name = extension.take(OBJECT_IDENTIFIER)?;
        extension.take(BOOLEAN); // critical
        let mut value = Der(extension.take(OCTET_STRING)?);
        match name {
            BASIC_CONSTRAINTS => is_ca = Der(value.take(SEQUENCE)?).take(BOOLEAN).is_some_and(|ca| ca == [0xff]),
            // The first byte counts unused bits.
            KEY_USAGE => may_sign = value.take(BIT_STRING)?.get(1).is_some_and(|bits| bits & KEY_CERT_SIGN != 0),
            _ => {}
        }
    }
    Some(is_ca && may_sign)
}
