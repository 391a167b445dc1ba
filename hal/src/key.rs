//! Names, public halves and signatures of keys: fixed-size, without an allocator.

use core::fmt;
use core::str::FromStr;

/// A signature algorithm, and with it the kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// ECDSA with P-256 and SHA-256: `ES256` (RFC 7518 section 3.4). The one every TPM and token has.
    EcdsaP256,
    /// Ed25519: `EdDSA` (RFC 8037 section 3.1).
    Ed25519,
}

impl Algorithm {
    /// The JWS `alg` value (RFC 7518 section 3.1, RFC 8037 section 3.1).
    pub const fn jws_name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ES256",
            Self::Ed25519 => "EdDSA",
        }
    }

    /// The algorithm of a JWS `alg` value, where it is one of ours.
    pub fn from_jws_name(name: &str) -> Option<Self> {
        [Self::EcdsaP256, Self::Ed25519].into_iter().find(|a| a.jws_name() == name)
    }

    /// Length in bytes of a public key in [`PublicKey`]'s form.
    pub const fn public_key_len(self) -> usize {
        match self {
            Self::EcdsaP256 => 65,
            Self::Ed25519 => 32,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "P-256",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// Why bytes or text are not a key, key name or signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidKey(
    /// What was wrong, in a few words.
    pub &'static str,
);

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for InvalidKey {}

/// The name of a key in its store: 1 to 32 characters of `a-z`, `0-9` and `-`, so that it is a file name, a label and a URI part as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(heapless::String<32>);

impl KeyId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = InvalidKey;

    fn from_str(name: &str) -> Result<Self, InvalidKey> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(InvalidKey("a key name has 1 to 32 characters of a-z, 0-9 and -"));
        }
        heapless::String::try_from(name).map(Self).map_err(|_| InvalidKey("a key name has at most 32 characters"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key: 32 bytes for Ed25519 (RFC 8032 section 5.1.5), the uncompressed point `04 || x || y` for P-256 (SEC 1 section 2.3.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey {
    algorithm: Algorithm,
    bytes: heapless::Vec<u8, 65>,
}

impl PublicKey {
    /// Takes a public key in the form above. The shape is checked; that the point lies on the curve shows at the first verification.
    pub fn new(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, InvalidKey> {
        if bytes.len() != algorithm.public_key_len() {
            return Err(InvalidKey("a public key of another length than its algorithm has"));
        }
        if algorithm == Algorithm::EcdsaP256 && bytes[0] != 4 {
            return Err(InvalidKey("a P-256 public key that is not an uncompressed point"));
        }
        let bytes = heapless::Vec::from_slice(bytes).map_err(|_| InvalidKey("a public key that is too long"))?;
        Ok(Self { algorithm, bytes })
    }

    /// The algorithm this key signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes, in the form above.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A signature as JWS carries it: 64 bytes, `R || S` for ECDSA (RFC 7518 section 3.4), RFC 8032's form for Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Takes the 64 bytes as they are.
    pub const fn new(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}
