//! Challenges: stateless, sealed with a key that only the servers of a cluster have, good once.
//!
//! A challenge names the token's revision. Every join that succeeds makes another revision, so that a challenge cannot serve
//! twice, on any replica, without a table of nonces.

use std::time::Duration;

use ring::hmac;

use crate::join::{Problem, ProblemType, base64url};
use crate::time::{NoRandomness, Random, Timestamp};

/// How long a challenge holds.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How far apart the clocks of a cluster's servers may be.
pub const LEEWAY: Duration = Duration::from_secs(60);

const VERSION: u8 = 1;
const TAG: usize = 32;
/// Version, rotate, revision, expiry and random bits.
const BODY: usize = 1 + 1 + 8 + 8 + 8;

/// What a challenge promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Revision of the token when it was made.
    pub revision: u64,
    /// Whether the join must bring a new key.
    pub rotate: bool,
    /// Its end.
    pub expires: Timestamp,
}

/// The key that seals challenges.
pub struct SealingKey(hmac::Key);

impl SealingKey {
    /// A key from 32 secret bytes, the same on every server of a cluster.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The text to sign over.
    pub fn seal(&self, token: &str, challenge: Challenge, random: &dyn Random) -> Result<String, NoRandomness> {
        let mut sealed = vec![VERSION, u8::from(challenge.rotate)];
        sealed.extend(challenge.revision.to_be_bytes());
        sealed.extend(challenge.expires.millis().to_be_bytes());
        let mut salt = [0; 8];
        random.fill(&mut salt)?;
        sealed.extend(salt);
        sealed.extend(hmac::sign(&self.0, &authenticated(&sealed, token)).as_ref());
        Ok(base64url::encode(sealed))
    }

    /// What a challenge for `token` promised, if it is ours and holds at `now`.
    pub fn open(&self, token: &str, text: &str, now: Timestamp) -> Result<Challenge, Problem> {
        let expired = || Problem::from(ProblemType::ChallengeExpired);
        let sealed = base64url::decode(text).map_err(|_| expired())?;
        if sealed.len() != BODY + TAG || sealed[0] != VERSION {
            return Err(expired());
        }
        let (body, tag) = sealed.split_at(BODY);
        hmac::verify(&self.0, &authenticated(body, token), tag).map_err(|_| expired())?;
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| body[at + i]));
        let challenge = Challenge { rotate: body[1] == 1, revision: number(2), expires: Timestamp::from_millis(number(10)) };
        // Too far ahead: made by a clock that has been set back since.
        let too_early = challenge.expires > now.plus(LIFETIME).plus(LEEWAY);
        if too_early || challenge.expires < now { Err(expired()) } else { Ok(challenge) }
    }
}

fn authenticated(body: &[u8], token: &str) -> Vec<u8> {
    [body, token.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::System;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn holds_for_its_token_and_time_only() {
        let key = SealingKey::new(&[7; 32]);
        let challenge = Challenge { revision: 41, rotate: true, expires: NOW.plus(LIFETIME) };
        let text = key.seal("a", challenge, &System).unwrap();
        assert_ne!(text, key.seal("a", challenge, &System).unwrap(), "two challenges differ");
        assert_eq!(key.open("a", &text, NOW), Ok(challenge));
        assert!(key.open("b", &text, NOW).is_err());
        assert!(SealingKey::new(&[8; 32]).open("a", &text, NOW).is_err());
        assert!(key.open("a", &text, NOW.plus(Duration::from_secs(600))).is_err(), "ten minutes later");
        assert!(key.open("a", &text, NOW.minus(Duration::from_secs(100))).is_err(), "clock set back");
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert!(key.open("a", &String::from_utf8(altered).unwrap(), NOW).is_err(), "altered at {at}");
        }
    }
}
