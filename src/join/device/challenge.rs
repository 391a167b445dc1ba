//! From a device that wants to join to one that knows which key to prove.

use boundkey_hal::Algorithm;

use super::{KnownKey, Memory};
use crate::Thumbprint;
use crate::message::{ChallengeAnswer, ChallengeRequest};

/// A device that wants to join.
#[derive(Debug)]
pub struct Start<'a> {
    memory: &'a Memory,
    token: &'a str,
}

/// A device that was asked to prove a key.
#[derive(Debug)]
pub struct Challenged<'a> {
    pub(super) memory: &'a Memory,
    pub(super) answer: ChallengeAnswer,
    /// The key to sign with; `None`: one that is yet to be made.
    pub(super) signer: Option<&'a KnownKey>,
    /// Whether join state and certificate belong to the life of the token that the server is in.
    pub(super) same_life: bool,
}

/// Why a device gives up on a challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// The server asks for proof of a key that this device never had, or has forgotten.
    UnknownKey(Thumbprint),
    /// The server takes no algorithm that the key store makes.
    NoCommonAlgorithm(Vec<String>),
}

impl<'a> Start<'a> {
    /// A join of `token` by a device with `memory`, which must be [`Memory::for_token`] of it.
    pub fn new(memory: &'a Memory, token: &'a str) -> Self {
        Self { memory, token }
    }

    /// What to send to [`crate::message::CHALLENGE_PATH`].
    pub fn request(&self) -> ChallengeRequest {
        ChallengeRequest { token: self.token.into(), instance: self.memory.step.map(|step| step.instance) }
    }

    /// Picks the key to prove.
    ///
    /// In the life of the token that this device knows, the newest key that it and the server agree on signs: the named key, be it
    /// the current one or one whose answer was lost. Where the server names an older one it was restored from a backup, and the
    /// current key signs, with the join state that names it. In another life the server's word alone counts.
    pub fn challenged(self, answer: ChallengeAnswer) -> Result<Challenged<'a>, GiveUp> {
        let memory = self.memory;
        let same_life = memory.incarnation == Some(answer.incarnation);
        let named = answer.key.and_then(|print| memory.key(print));
        let current = memory.keys.iter().find(|key| key.bound);
        let signer = match (answer.key, named, current.filter(|_| same_life)) {
            // Not older than the current key: the current one itself, or one whose answer was lost.
            (Some(_), Some(named), current) if current.is_none_or(|c| !is_older(memory, named, c)) => Some(named),
            // The server was restored from a backup, and has forgotten the current key, or this device altogether.
            (_, _, Some(current)) => Some(current),
            (Some(print), ..) => return Err(GiveUp::UnknownKey(print)),
            (None, ..) => memory.unbound_key(),
        };
        Ok(Challenged { memory, answer, signer, same_life })
    }
}

/// Whether `a` was made before `b`.
fn is_older(memory: &Memory, a: &KnownKey, b: &KnownKey) -> bool {
    let place = |key| memory.keys.iter().position(|k| k == key);
    place(a) > place(b)
}

impl Challenged<'_> {
    /// The algorithm of the key that must be made before [`Self::prepare`]; `None` if none must. `offered` is what the key
    /// store makes.
    pub fn new_key(&self, offered: &[Algorithm]) -> Result<Option<Algorithm>, GiveUp> {
        if !self.lacks_key() {
            return Ok(None);
        }
        let known = self.answer.algorithms.iter().filter_map(|name| Algorithm::from_jws_name(name));
        let common = known.into_iter().find(|algorithm| offered.contains(algorithm));
        common.map(Some).ok_or_else(|| GiveUp::NoCommonAlgorithm(self.answer.algorithms.clone()))
    }

    /// Whether a key must be made before [`Self::prepare`].
    pub fn lacks_key(&self) -> bool {
        self.signer.is_none() || (self.answer.rotate && self.successor().is_none())
    }

    /// Whether this join binds its key for the first time, which takes the registration secret.
    pub fn is_registration(&self) -> bool {
        self.answer.key.is_none() && !self.same_life
    }

    /// The newest key, where it can replace the signer.
    pub(super) fn successor(&self) -> Option<&KnownKey> {
        self.memory.unbound_key().filter(|key| Some(*key) != self.signer)
    }
}

#[cfg(test)]
mod tests {
    use boundkey_hal::PublicKey;

    use super::*;
    use crate::Id;
    use boundkey_platform::time::Timestamp;

    const LIFE: Id = Id([9; 16]);

    fn key(number: u8, bound: bool) -> KnownKey {
        let public = PublicKey::new(Algorithm::Ed25519, &[number; 32]).unwrap();
        let thumbprint = Thumbprint::of(&public);
        KnownKey { id: format!("bound-{number}"), thumbprint, algorithm: Algorithm::Ed25519.into(), bound }
    }

    /// A device with the keys of `numbers`, the newest first, and a pending recovery code of another one in front.
    fn with_code(keys: Vec<KnownKey>) -> Memory {
        let mut memory = Memory { token: "t".into(), incarnation: Some(LIFE), keys, ..Memory::default() };
        memory.add_recovery_key(key(100, false), Id([1; 16])).unwrap();
        memory
    }

    /// The key that signs, and the one that may replace it, where the server names `named`.
    fn chosen(memory: &Memory, named: &KnownKey, rotate: bool) -> (String, Option<String>) {
        let answer = ChallengeAnswer {
            challenge: "c".into(),
            key: Some(named.thumbprint),
            incarnation: LIFE,
            rotate,
            algorithms: vec!["EdDSA".into()],
            expires: Timestamp::default(),
            time: Timestamp::default(),
        };
        let challenged = Start::new(memory, "t").challenged(answer).unwrap();
        assert!(!challenged.lacks_key(), "no other key is made");
        (challenged.signer.unwrap().id.clone(), challenged.successor().map(|key| key.id.clone()))
    }

    #[test]
    fn a_rotation_takes_the_key_of_the_pending_code() {
        let code = Some("bound-100".to_owned());
        // In step.
        let memory = with_code(vec![key(2, true), key(1, true)]);
        assert_eq!(chosen(&memory, &key(2, true), true), ("bound-2".into(), code.clone()));
        // The copy has rotated: the server names a key that the device never had.
        assert_eq!(chosen(&memory, &key(66, true), true), ("bound-2".into(), code.clone()));
        // A rotation was in flight when the storage was copied, and the server has carried it out or not.
        let memory = with_code(vec![key(3, false), key(2, true), key(1, true)]);
        assert_eq!(chosen(&memory, &key(3, false), true), ("bound-3".into(), code.clone()));
        assert_eq!(chosen(&memory, &key(2, true), true), ("bound-2".into(), code));
        // Another code, whose key was never used, is older.
        let mut memory = with_code(vec![key(1, true)]);
        memory.add_recovery_key(key(101, false), Id([2; 16])).unwrap();
        assert_eq!(chosen(&memory, &key(1, true), true), ("bound-1".into(), Some("bound-101".into())));
    }

    #[test]
    fn the_key_of_a_code_signs_once_the_server_names_it() {
        let memory = with_code(vec![key(2, true)]);
        let answer_lost = chosen(&memory, &key(100, false), false);
        assert_eq!(answer_lost, ("bound-100".into(), None));
    }
}
