//! Challenges: stateless, sealed with a key that only the servers of a cluster have, good once.
//!
//! A challenge names the token's revision. Every join that makes a step makes another revision, so that a challenge cannot serve
//! twice, on any replica, without a table of nonces. It also tells which step was current when it was made. A request that arrives
//! too late is refused; the decision then knows whether the device could have been in step when it asked, and excuses an honest
//! device without any memory of the challenge on the server.

use std::time::Duration;

use boundkey_hal::Algorithm;
use ring::hmac;

use super::record::rotation_due;
use super::view::{Anchor, StepTag, TokenView};
use crate::message::ChallengeAnswer;
use crate::{Id, Problem, ProblemType, Thumbprint, base64url};
use boundkey_platform::time::{NoRandomness, Random, Timestamp};

/// How long a challenge holds.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How far apart the clocks of a cluster's servers may be.
pub const LEEWAY: Duration = Duration::from_secs(60);

const VERSION: u8 = 2;
const TAG: usize = 32;
/// Version, rotate, revision, expiry, time and tag of the current step, and random bits.
const BODY: usize = 1 + 1 + 8 + 8 + 8 + StepTag::LENGTH + 8;

/// What a challenge promises, and what was current when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Whether the join must bring a new key.
    pub rotate: bool,
    /// Its end.
    pub expires: Timestamp,
    /// The revision and the step that the join starts from.
    pub anchor: Anchor,
}

impl Challenge {
    /// A challenge for a join with `token`, by a device that names `instance`, at `now`.
    pub fn new(token: &TokenView<'_>, instance: Option<Id>, now: Timestamp) -> Self {
        let rotate = rotation_due(token.spec, token.status, now) || token.pending_code(now).is_some();
        Self { rotate, expires: now.plus(LIFETIME), anchor: token.anchor(instance) }
    }

    /// The answer to a device that asks to join with `token` at `now`, where `sealed` is the text of this challenge.
    ///
    /// # Errors
    /// [`TokenView::incarnation`].
    pub fn answer(&self, token: &TokenView<'_>, sealed: String, now: Timestamp) -> Result<ChallengeAnswer, Problem> {
        let key = token.status.bound_public_key.as_ref().or(token.spec.onboarding.initial_public_key.as_ref());
        Ok(ChallengeAnswer {
            challenge: sealed,
            key: key.map(|key| Thumbprint::of(&key.0)),
            incarnation: token.incarnation()?,
            rotate: self.rotate,
            algorithms: algorithms(),
            expires: self.expires,
            time: now,
        })
    }

    /// When it was made.
    pub fn made(&self) -> Timestamp {
        self.expires.minus(LIFETIME)
    }
}

/// Algorithms for bound keys, the preferred one first.
pub fn algorithms() -> Vec<String> {
    [Algorithm::Ed25519, Algorithm::EcdsaP256].map(|algorithm| algorithm.jws_name().to_owned()).into()
}

/// The key that seals challenges.
pub struct SealingKey {
    key: hmac::Key,
    /// The key before it, and until when its challenges count.
    previous: Option<(hmac::Key, Timestamp)>,
}

impl SealingKey {
    /// A key from 32 secret bytes, the same on every server of a cluster.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret), previous: None }
    }

    /// A key that takes the place of this one at `now`; what this one sealed holds to its end.
    #[must_use]
    pub fn succeeded_by(&self, secret: &[u8; 32], now: Timestamp) -> Self {
        Self { previous: Some((self.key.clone(), now.plus(LIFETIME))), ..Self::new(secret) }
    }

    fn verify(&self, message: &[u8], tag: &[u8], now: Timestamp) -> bool {
        let previous = self.previous.as_ref().filter(|(_, until)| now <= *until).map(|(key, _)| key);
        std::iter::once(&self.key).chain(previous).any(|key| hmac::verify(key, message, tag).is_ok())
    }

    /// The text to sign over. It holds in this `epoch` of the database alone.
    pub fn seal(&self, token: &str, epoch: Id, challenge: Challenge, random: &dyn Random) -> Result<String, NoRandomness> {
        let mut sealed = vec![VERSION, u8::from(challenge.rotate)];
        sealed.extend(challenge.anchor.revision.to_be_bytes());
        sealed.extend(challenge.expires.millis().to_be_bytes());
        sealed.extend(challenge.anchor.step_ms.to_be_bytes());
        sealed.extend(challenge.anchor.tag.as_bytes());
        let mut salt = [0; 8];
        random.fill(&mut salt)?;
        sealed.extend(salt);
        sealed.extend(hmac::sign(&self.key, &authenticated(&sealed, epoch, token)).as_ref());
        Ok(base64url::encode(sealed))
    }

    /// What a challenge for `token` promised, if it is ours, of this `epoch`, and holds at `now`.
    pub fn open(&self, token: &str, epoch: Id, text: &str, now: Timestamp) -> Result<Challenge, Problem> {
        let expired = || Problem::from(ProblemType::ChallengeExpired);
        let sealed = base64url::decode(text).map_err(|_| expired())?;
        if sealed.len() != BODY + TAG || sealed[0] != VERSION {
            return Err(expired());
        }
        let (body, tag) = sealed.split_at(BODY);
        if !self.verify(&authenticated(body, epoch, token), tag, now) {
            return Err(expired());
        }
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| body[at + i]));
        let anchor =
            Anchor { revision: number(2), step_ms: number(18), tag: StepTag::from_bytes(std::array::from_fn(|i| body[26 + i])) };
        let challenge = Challenge { rotate: body[1] == 1, expires: Timestamp::from_millis(number(10)), anchor };
        // Too far ahead: made by a clock that has been set back since.
        let too_early = challenge.expires > now.plus(LIFETIME).plus(LEEWAY);
        if too_early || challenge.expires < now { Err(expired()) } else { Ok(challenge) }
    }
}

fn authenticated(body: &[u8], epoch: Id, token: &str) -> Vec<u8> {
    [body, &epoch.0, token.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_platform::time::System;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const EPOCH: Id = Id([1; 16]);

    #[test]
    fn challenges_of_the_key_before_hold_to_their_end() {
        let anchor = Anchor { revision: 41, step_ms: 1_799_999_999_123, tag: StepTag::from_bytes([5; 8]) };
        let challenge = Challenge { rotate: false, expires: NOW.plus(LIFETIME), anchor };
        let first = SealingKey::new(&[1; 32]);
        let before = first.seal("a", EPOCH, challenge, &System).unwrap();
        let second = first.succeeded_by(&[2; 32], NOW);
        let after = second.seal("a", EPOCH, challenge, &System).unwrap();
        assert_eq!([&before, &after].map(|text| second.open("a", EPOCH, text, NOW)), [Ok(challenge), Ok(challenge)]);
        assert!(first.open("a", EPOCH, &after, NOW).is_err());
        // One that claims to end later ends with its key.
        let later = NOW.plus(LIFETIME).plus(Duration::from_secs(1));
        let ahead = first.seal("a", EPOCH, Challenge { expires: later, ..challenge }, &System).unwrap();
        assert!(second.open("a", EPOCH, &ahead, NOW).is_ok());
        assert!(second.open("a", EPOCH, &ahead, later).is_err());
        assert!(second.succeeded_by(&[3; 32], NOW).open("a", EPOCH, &before, NOW).is_err(), "two keys back");
    }

    #[test]
    fn holds_for_its_token_epoch_and_time_only() {
        let key = SealingKey::new(&[7; 32]);
        let anchor = Anchor { revision: 41, step_ms: 1_799_999_999_123, tag: StepTag::from_bytes([5; 8]) };
        let challenge = Challenge { rotate: true, expires: NOW.plus(LIFETIME), anchor };
        let text = key.seal("a", EPOCH, challenge, &System).unwrap();
        assert_ne!(text, key.seal("a", EPOCH, challenge, &System).unwrap(), "two challenges differ");
        assert_eq!(key.open("a", EPOCH, &text, NOW), Ok(challenge));
        assert!(key.open("b", EPOCH, &text, NOW).is_err());
        assert!(key.open("a", Id([2; 16]), &text, NOW).is_err(), "another epoch of the database");
        assert!(SealingKey::new(&[8; 32]).open("a", EPOCH, &text, NOW).is_err());
        assert!(key.open("a", EPOCH, &text, NOW.plus(Duration::from_secs(600))).is_err(), "ten minutes later");
        assert!(key.open("a", EPOCH, &text, NOW.minus(Duration::from_secs(100))).is_err(), "clock set back");
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert!(key.open("a", EPOCH, &String::from_utf8(altered).unwrap(), NOW).is_err(), "altered at {at}");
        }
    }
}
