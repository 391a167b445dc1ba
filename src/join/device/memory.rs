//! What a device remembers between joins. Encoded with postcard in the two-slot file of `state`; see `docs/state-format.md`.

use boundkey_hal::Algorithm;
use serde::{Deserialize, Serialize};

use crate::join::{Id, Recoveries, Step, Thumbprint};
use crate::time::Timestamp;

/// Most keys remembered, the newest included.
pub const MAX_KEYS: usize = 10;

/// What a device remembers. A default one is a device that never joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Name of the token that all this belongs to; empty before the first join.
    pub token: String,
    /// The cluster joined.
    pub cluster: String,
    /// The life of the token that was joined.
    pub incarnation: Option<Id>,
    /// The step of the last join.
    pub step: Option<Step>,
    /// The join state of the last join, as the server gave it.
    pub join_state: Option<String>,
    /// The attempt in flight: written down before a request leaves, cleared by its answer.
    pub attempt: Option<Id>,
    /// What tells the key store from another one, where that can be told: written down at its first use, and compared ever after.
    pub keystore_pin: Option<Vec<u8>>,
    /// Keys, the newest first. A key that no answer has named yet is not [`KnownKey::bound`].
    pub keys: Vec<KnownKey>,
    /// The identity certificate of the last join.
    pub certificate: Option<CertificateInfo>,
    /// Recoveries used and allowed, as of the last join.
    pub recoveries: Option<Recoveries>,
    /// The latest time that an authenticated server told.
    pub last_known_time: Timestamp,
    /// Where the counter stands that tells an old copy of this memory; 0 while it is being made.
    pub rollback_counter: Option<u64>,
}

/// A key of this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownKey {
    /// Its name in the key store.
    pub id: String,
    /// Its thumbprint.
    pub thumbprint: Thumbprint,
    /// Its algorithm.
    pub algorithm: KeyAlgorithm,
    /// Whether an answer has named it as bound.
    pub bound: bool,
}

/// [`Algorithm`] as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// ECDSA with P-256.
    EcdsaP256,
    /// Ed25519.
    Ed25519,
}

impl From<Algorithm> for KeyAlgorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EcdsaP256 => Self::EcdsaP256,
            Algorithm::Ed25519 => Self::Ed25519,
        }
    }
}

impl From<KeyAlgorithm> for Algorithm {
    fn from(algorithm: KeyAlgorithm) -> Self {
        match algorithm {
            KeyAlgorithm::EcdsaP256 => Self::EcdsaP256,
            KeyAlgorithm::Ed25519 => Self::Ed25519,
        }
    }
}

/// What is told of the identity certificate without parsing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// SHA-256 of the DER: the certificate on disk is this one, or it is not presented.
    pub fingerprint: [u8; 32],
}

impl Memory {
    /// The key of the last join, or before the first one the newest key.
    pub fn current_key(&self) -> Option<&KnownKey> {
        self.keys.iter().find(|key| key.bound).or(self.keys.first())
    }

    /// The newest key, where no answer has named it yet: safe to use as a new key.
    pub fn unbound_key(&self) -> Option<&KnownKey> {
        self.keys.first().filter(|key| !key.bound)
    }

    /// The key with this thumbprint.
    pub fn key(&self, thumbprint: Thumbprint) -> Option<&KnownKey> {
        self.keys.iter().find(|key| key.thumbprint == thumbprint)
    }

    /// Puts a new key in front; returns those that fell off the end.
    pub fn add_key(&mut self, key: KnownKey) -> Vec<KnownKey> {
        self.keys.insert(0, key);
        self.keys.split_off(self.keys.len().min(MAX_KEYS))
    }

    /// Name for the next key: one higher than any so far.
    pub fn next_key_id(&self) -> String {
        let number = |key: &KnownKey| key.id.rsplit('-').next().and_then(|n| n.parse::<u32>().ok());
        let newest = self.keys.iter().filter_map(number).max().unwrap_or(0);
        format!("bound-{}", newest.saturating_add(1))
    }

    /// The same keys, key store and time, with everything of another token left out (conformance C153). An attempt in flight stays: it
    /// may be of this token, see [`Self::to_keep`].
    #[must_use]
    pub fn for_token(&self, token: &str) -> Self {
        if self.token == token {
            return self.clone();
        }
        Self {
            token: token.into(),
            attempt: self.attempt,
            keystore_pin: self.keystore_pin.clone(),
            keys: self.keys.clone(),
            last_known_time: self.last_known_time,
            rollback_counter: self.rollback_counter,
            ..Self::default()
        }
    }

    /// What to write down of this before a request leaves, where `known` is written there now. What is known of another token's join is
    /// kept until the answer: this token may be a mistake, which the server refuses, and the device is to go on with the other one.
    #[must_use]
    pub fn to_keep(&self, known: &Self) -> Self {
        if known.step.is_none() || known.token == self.token {
            return self.clone();
        }
        Self { attempt: self.attempt, keys: self.keys.clone(), ..known.clone() }
    }
}
