//! Keys in the shapes that rcgen asks for, whatever store holds them.

use std::cell::RefCell;

use boundkey_hal::{Algorithm, Error as KeyError, PublicKey, Signature};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};

/// A public key to be certified.
pub struct Subject(pub PublicKey);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.0.algorithm() {
            Algorithm::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::Ed25519 => &PKCS_ED25519,
        }
    }
}

/// A key that signs certificates or certificate requests, wherever its private half is.
pub struct Signer<S> {
    subject: Subject,
    sign: S,
    /// Why it did not sign: rcgen's error for foreign keys carries no cause.
    failure: RefCell<Option<KeyError>>,
}

impl<S> Signer<S> {
    /// The key with the public half `key`; `sign` signs, in the form of [`Signature`].
    pub fn new(key: PublicKey, sign: S) -> Self {
        Self { subject: Subject(key), sign, failure: RefCell::default() }
    }

    /// What was behind an error of rcgen's: the key store, where that did not sign.
    pub fn cause(&self, e: rcgen::Error) -> Result<KeyError, rcgen::Error> {
        self.failure.borrow_mut().take().ok_or(e)
    }
}

impl<S> PublicKeyData for Signer<S> {
    fn der_bytes(&self) -> &[u8] {
        self.subject.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.subject.algorithm()
    }
}

impl<S: Fn(&[u8]) -> Result<Signature, KeyError>> SigningKey for Signer<S> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = (self.sign)(message).map_err(|e| {
            *self.failure.borrow_mut() = Some(e);
            rcgen::Error::RemoteKeyError
        })?;
        Ok(match self.subject.0.algorithm() {
            Algorithm::EcdsaP256 => ecdsa_der(signature.as_bytes()),
            Algorithm::Ed25519 => signature.as_bytes().to_vec(),
        })
    }
}

/// `ECDSA-Sig-Value` (RFC 3279 section 2.2.3) of `R || S`. Both are at most 33 bytes long, so every length is one byte.
fn ecdsa_der(signature: &[u8; 64]) -> Vec<u8> {
    let mut body = Vec::with_capacity(70);
    for half in signature.chunks(32) {
        let zeros = half.iter().take_while(|byte| **byte == 0).count().min(31);
        let sign = usize::from(half[zeros] >= 0x80);
        body.extend([2, u8::try_from(32 - zeros + sign).unwrap_or(33)]);
        body.extend(std::iter::repeat_n(0, sign));
        body.extend(&half[zeros..]);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).unwrap_or(70)];
    der.extend(body);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_minimal_and_positive() {
        let mut signature = [0; 64];
        signature[0] = 0x80;
        signature[63] = 1;
        let der = ecdsa_der(&signature);
        assert_eq!(der[..6], [0x30, 38, 2, 33, 0, 0x80]);
        assert_eq!(der[37..], [2, 1, 1]);
    }
}
