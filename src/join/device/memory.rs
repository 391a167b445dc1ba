//! What a device remembers between joins. Encoded with postcard in the two-slot file of `state`; see `docs/state-format.md`.

use boundkey_hal::Algorithm;
use serde::{Deserialize, Serialize};

use crate::{Id, Recoveries, RecoveryCode, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Most keys that stay once the server has confirmed one of them, that one included.
pub const KEPT_KEYS: usize = 10;
/// Most keys remembered. None that was ever bound is given up for a new one: only a confirmed key makes room.
pub const MAX_KEYS: usize = 20;

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
    /// Those of [`Self::keys`] that were made for recovery codes.
    pub recovery_keys: Vec<RecoveryKey>,
}

/// A key that was made for a recovery code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryKey {
    /// Its thumbprint.
    pub thumbprint: Thumbprint,
    /// The request that it was made for: it answers no other one, which may be younger than the key.
    pub request: Id,
}

/// [`MAX_KEYS`] are remembered, and none of them may be given up yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyKeys;

impl std::fmt::Display for TooManyKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this device has {MAX_KEYS} keys and no room for another one before the server has confirmed one of them")
    }
}

impl std::error::Error for TooManyKeys {}

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

    /// Whether [`Self::add_key`] will have room.
    pub fn check_room(&self) -> Result<(), TooManyKeys> {
        if self.keys.len() < MAX_KEYS { Ok(()) } else { Err(TooManyKeys) }
    }

    /// Puts a new key in front.
    pub fn add_key(&mut self, key: KnownKey) -> Result<(), TooManyKeys> {
        self.check_room()?;
        self.keys.insert(0, key);
        self.tidy_recovery_keys();
        Ok(())
    }

    /// Takes the oldest keys out, beyond [`KEPT_KEYS`], that are older than the confirmed key `signer`: the server took a request that
    /// this key signed, so it does not wait for an older one.
    pub(super) fn take_superseded(&mut self, signer: Thumbprint) -> Vec<KnownKey> {
        let Some(place) = self.keys.iter().position(|key| key.thumbprint == signer) else { return vec![] };
        let superseded = self.keys.split_off(self.keys.len().min(KEPT_KEYS.max(place + 1)));
        self.tidy_recovery_keys();
        superseded
    }

    /// Puts a new key in front, which a recovery code is to name. Where there are [`KEPT_KEYS`] already, the oldest key of an earlier
    /// code that was never used makes room, and is returned. No other key is forgotten.
    pub fn add_recovery_key(&mut self, key: KnownKey, request: Id) -> Result<Option<KnownKey>, TooManyKeys> {
        let is_unused = |known: &KnownKey| !known.bound && self.recovery_key(known).is_some();
        let oldest_unused = self.keys.iter().rposition(is_unused);
        let replaced = oldest_unused.filter(|_| self.keys.len() >= KEPT_KEYS).map(|place| self.keys.remove(place));
        self.check_room()?;
        self.recovery_keys.insert(0, RecoveryKey { thumbprint: key.thumbprint, request });
        self.keys.insert(0, key);
        self.tidy_recovery_keys();
        Ok(replaced)
    }

    fn tidy_recovery_keys(&mut self) {
        let keys = &self.keys;
        self.recovery_keys.retain(|made| keys.iter().any(|key| key.thumbprint == made.thumbprint));
    }

    fn recovery_key(&self, key: &KnownKey) -> Option<RecoveryKey> {
        self.recovery_keys.iter().find(|made| made.thumbprint == key.thumbprint).copied()
    }

    /// The key that was made for this request of a recovery code.
    pub fn made_for(&self, request: Id) -> Option<&KnownKey> {
        self.recovery_keys.iter().find(|made| made.request == request).and_then(|made| self.key(made.thumbprint))
    }

    /// The code by which this device waits to be let in: of the newest key, where that was made for a code and no answer has named it yet.
    pub fn recovery_code(&self) -> Option<RecoveryCode> {
        let newest = self.unbound_key()?;
        self.recovery_key(newest).map(|key| RecoveryCode::of(&key.thumbprint))
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
            recovery_keys: self.recovery_keys.clone(),
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
        Self { attempt: self.attempt, keys: self.keys.clone(), recovery_keys: self.recovery_keys.clone(), ..known.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize, bound: bool) -> KnownKey {
        let public = boundkey_hal::PublicKey::new(Algorithm::Ed25519, &[u8::try_from(number).unwrap(); 32]).unwrap();
        KnownKey { id: format!("bound-{number}"), thumbprint: Thumbprint::of(&public), algorithm: KeyAlgorithm::Ed25519, bound }
    }

    /// A device that has so many keys, all of which were bound.
    fn device(keys: usize) -> Memory {
        Memory { token: "t".into(), keys: (1..=keys).rev().map(|number| key(number, true)).collect(), ..Memory::default() }
    }

    fn ids(memory: &Memory) -> Vec<&str> {
        memory.keys.iter().map(|key| key.id.as_str()).collect()
    }

    #[test]
    fn a_code_is_pending_until_its_key_is_bound_or_is_not_the_newest() {
        let mut memory = device(1);
        assert_eq!(memory.recovery_code(), None);
        memory.add_key(key(2, false)).unwrap();
        assert_eq!(memory.recovery_code(), None, "not every new key was made for a code");
        memory.add_recovery_key(key(3, false), Id([3; 16])).unwrap();
        let code = memory.recovery_code().unwrap();
        assert!(code.matches(key(3, false).thumbprint));
        assert_eq!(memory.for_token("other").recovery_code(), Some(code.clone()));
        assert_eq!(memory.for_token("other").to_keep(&memory).recovery_code(), Some(code));

        let mut overtaken = memory.clone();
        overtaken.add_key(key(4, false)).unwrap();
        assert_eq!(overtaken.recovery_code(), None);

        memory.keys[0].bound = true;
        assert_eq!(memory.recovery_code(), None);
        assert_eq!(memory.made_for(Id([3; 16])), Some(&key(3, true)), "the attempt that asked for it is told");
    }

    /// A technician calls again and again: no key that was ever bound goes, nor one that is in flight, and there is an end to it.
    #[test]
    fn only_unused_keys_of_earlier_codes_make_room() {
        let mut memory = device(3);
        memory.add_key(key(4, false)).unwrap();
        let kept: Vec<_> = memory.keys.clone();
        for number in 5..100 {
            let replaced = memory.add_recovery_key(key(number, false), Id([1; 16])).unwrap();
            assert_eq!(replaced.map(|key| key.id), (number > 10).then(|| format!("bound-{}", number - 6)));
            assert_eq!(memory.keys[0].id, format!("bound-{number}"));
            assert!(kept.iter().all(|key| memory.keys.contains(key)), "{:?}", ids(&memory));
            assert!(memory.keys.len() <= KEPT_KEYS && memory.recovery_keys.len() <= KEPT_KEYS);
        }
    }

    #[test]
    fn a_full_list_of_bound_keys_grows_by_codes_to_its_bound() {
        let mut memory = device(KEPT_KEYS);
        for number in KEPT_KEYS + 1..=MAX_KEYS {
            assert_eq!(memory.add_recovery_key(key(number, false), Id([1; 16])), Ok(None));
            memory.keys[0].bound = true;
        }
        let full = memory.clone();
        assert_eq!(memory.add_recovery_key(key(50, false), Id([1; 16])), Err(TooManyKeys));
        assert_eq!(memory, full, "nothing has changed");
        assert_eq!(memory.add_key(key(51, false)), Err(TooManyKeys), "a rotation gives up no key either");
        // A join that the newest key signed makes room again.
        let superseded = memory.take_superseded(memory.keys[0].thumbprint);
        assert_eq!((memory.keys.len(), superseded.len()), (KEPT_KEYS, MAX_KEYS - KEPT_KEYS));
    }
}
