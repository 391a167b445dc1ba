//! C078 to C088: challenges and the signatures over them.

use std::time::Duration;

use boundkey::join::device::Start;
use boundkey::join::device::challenge::GiveUp;
use boundkey::join::server::challenge::{Challenge, LIFETIME, SealingKey};
use boundkey::join::server::view::{Anchor, StepTag};
use boundkey::join::{Id, JoinKind, Jws, ProblemType, Thumbprint, base64url};
use boundkey::platform::time::System;
use boundkey_hal::{Algorithm, PublicKey};

use super::world::{Device, NOW, World};
use super::{by_own_key, joined, kind, stranger};

const EPOCH: Id = Id([3; 16]);

fn sealed(key: &SealingKey, token: &str) -> (Challenge, String) {
    let anchor = Anchor { revision: 7, step_ms: NOW.millis(), tag: StepTag::from_bytes([9; 8]) };
    let challenge = Challenge { rotate: false, expires: NOW.plus(LIFETIME), anchor };
    (challenge, key.seal(token, EPOCH, challenge, &System).expect("randomness"))
}

/// Ours is an opaque text, and names token, revision, current step and end in place of issuer, subject and times.
#[test]
fn c078_a_challenge_is_for_one_token_and_a_minute_and_never_the_same() {
    let key = SealingKey::new(&[1; 32]);
    let ((challenge, first), (_, second)) = (sealed(&key, "a"), sealed(&key, "a"));
    assert_ne!(first, second);
    assert_eq!(LIFETIME, Duration::from_secs(60));
    assert_eq!(key.open("a", EPOCH, &first, NOW), Ok(challenge));
}

#[test]
fn c079_the_right_key_is_accepted() {
    let (mut world, mut device) = joined(1);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
}

#[test]
fn c080_another_key_is_refused() {
    let (mut world, _) = joined(1);
    assert_eq!(by_own_key(&mut stranger(), &mut world).kind, ProblemType::KeyNotProven);
}

/// What a join is told that arrives when the server's clock has moved.
fn after(change: impl FnOnce(&mut World)) -> ProblemType {
    let (mut world, mut device) = joined(1);
    let sent = device.send(&world);
    change(&mut world);
    world.join(&sent.jws).expect_err("refused").kind
}

#[test]
fn c081_a_challenge_runs_out() {
    assert_eq!(after(|world| world.later(Duration::from_secs(600))), ProblemType::ChallengeExpired);
}

#[test]
fn c082_a_challenge_from_the_future_is_refused() {
    assert_eq!(after(|world| world.now = world.now.minus(Duration::from_secs(100))), ProblemType::ChallengeExpired);
}

#[test]
fn c084_another_challenge_than_the_one_given_is_refused() {
    let (mut world, mut device) = joined(1);
    let mut challenge = world.challenge();
    challenge.challenge = base64url::encode(vec![1; 58]);
    let sent = device.prepare(&challenge).expect("prepared");
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::ChallengeExpired);
}

#[test]
fn c085_a_challenge_of_another_token_or_cluster_is_refused() {
    let key = SealingKey::new(&[1; 32]);
    let (_, text) = sealed(&key, "a");
    assert!(key.open("b", EPOCH, &text, NOW).is_err());
    assert!(SealingKey::new(&[2; 32]).open("a", EPOCH, &text, NOW).is_err());
}

#[test]
fn c086_a_challenge_is_good_once() {
    let (mut world, mut device) = joined(1);
    let sent = device.send(&world);
    world.join(&sent.jws).expect("granted");
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
}

#[test]
fn c087_a_device_gives_up_on_a_key_that_it_does_not_have() {
    let other = Thumbprint::of(&PublicKey::new(Algorithm::Ed25519, &[7; 32]).expect("32 bytes"));
    let mut challenge = World::new(1).challenge();
    challenge.key = Some(other);
    let device = Device::new(0);
    let given_up = Start::new(&device.memory, "gateway").challenged(challenge).expect_err("gives up");
    assert_eq!(given_up, GiveUp::UnknownKey(other));
}

/// Ours is a flattened JWS as in ACME; the algorithm follows from the key.
#[test]
fn c088_a_signature_names_its_algorithm_key_challenge_and_place() {
    let (world, mut device) = joined(1);
    let sent = device.send(&world);
    let header = sent.jws.header().expect("our own");
    assert_eq!((header.alg.as_str(), header.kid), ("EdDSA", Some(Thumbprint::of(&world.key()).to_string())));
    assert_eq!(header.nonce, Some(sent.challenge.challenge));
    let state = Jws::from_compact(device.memory.join_state.as_deref().expect("joined")).expect("compact");
    assert_eq!(state.header().expect("our own").typ.as_deref(), Some("JWT"));
}
