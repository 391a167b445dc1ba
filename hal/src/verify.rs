//! Verifying signatures in software: what a bus or a token hands back is believed only after this.

use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey, VerificationAlgorithm};

use crate::{Algorithm, Error, ErrorKind, PublicKey, Signature};

/// A signature that does not fit key and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSignature;

impl core::fmt::Display for BadSignature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the signature does not verify")
    }
}

impl core::error::Error for BadSignature {}

impl From<BadSignature> for Error {
    /// A store's own signature that fails: the answer was altered on its way, or another key signed.
    fn from(_: BadSignature) -> Self {
        Self::new(ErrorKind::Corrupt, "the key store returned a signature that does not fit its public key")
    }
}

/// Whether `signature` over `message` was made by the private half of `key`.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    let algorithm: &dyn VerificationAlgorithm = match key.algorithm() {
        Algorithm::EcdsaP256 => &ECDSA_P256_SHA256_FIXED,
        Algorithm::Ed25519 => &ED25519,
    };
    UnparsedPublicKey::new(algorithm, key.as_bytes()).verify(message, signature).map_err(|_| BadSignature)
}

/// Hands on a signature that hardware made, once it is known to be right.
pub fn checked(key: &PublicKey, message: &[u8], signature: Signature) -> Result<Signature, Error> {
    verify(key, message, signature.as_bytes())?;
    Ok(signature)
}
