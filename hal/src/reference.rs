//! What another program needs to use a key where it is, and what tells one key store from another.

use crate::{Error, ErrorKind};

/// Longest text of a [`Reference`], in bytes.
pub const MAX_REFERENCE: usize = 1024;
/// Longest [`Fingerprint`], in bytes: a TPM's Name by SHA-256.
pub const MAX_FINGERPRINT: usize = 34;

/// The text of a [`Reference`].
pub type ReferenceText = heapless::String<MAX_REFERENCE>;

/// What another program needs to use a key where it is. It holds no PIN, no auth value and no private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Absolute path of a PKCS#8 PEM file (RFC 5958), which the program must be allowed to read.
    Path(ReferenceText),
    /// URI (RFC 7512) of the private key on its token, without module and PIN: the program has those of its own.
    Pkcs11Uri(ReferenceText),
    /// Text of a TSS2 PRIVATE KEY file: the key, wrapped by the TPM that made it and of use with that one alone.
    Tss2Pem(ReferenceText),
}

impl Reference {
    /// A reference made by `kind` of `text`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a text of more than [`MAX_REFERENCE`] bytes.
    pub fn new(kind: fn(ReferenceText) -> Self, text: &str) -> Result<Self, Error> {
        let too_long = format_args!("what names the key to other programs has more than {MAX_REFERENCE} bytes: {}", text.len());
        ReferenceText::try_from(text).map(kind).map_err(|_| Error::new(ErrorKind::Unsupported, too_long))
    }

    /// The text, whatever it is.
    pub fn as_str(&self) -> &str {
        let (Self::Path(text) | Self::Pkcs11Uri(text) | Self::Tss2Pem(text)) = self;
        text
    }
}

/// What tells a key store from another one that answers to the same configuration. It is not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(heapless::Vec<u8, MAX_FINGERPRINT>);

impl Fingerprint {
    /// The fingerprint of these bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] for more than [`MAX_FINGERPRINT`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let bytes = heapless::Vec::from_slice(bytes);
        bytes.map(Self).map_err(|_| Error::new(ErrorKind::Other, "a key store's fingerprint is too long"))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
