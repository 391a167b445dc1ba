//! C122 to C135, C150, C153: rotation, the key history and the device's memory.

use boundkey::join::device::answer::AnswerError;
use boundkey::join::device::challenge::GiveUp;
use boundkey::join::device::{KnownKey, MAX_KEYS, Memory, Start, TooManyKeys};
use boundkey::join::{Id, JoinKind, ProblemType, Thumbprint};
use boundkey_hal::{Algorithm, PublicKey};

use super::world::{Device, World};
use super::{EXPIRY, MINUTE, joined, kind, request};

/// A joined device, and a rotation that is due.
fn due() -> (World, Device) {
    let (mut world, device) = joined(3);
    world.later(MINUTE);
    world.spec.rotate_after = Some(world.now);
    (world, device)
}

#[test]
fn c122_a_rotation_replaces_the_key() {
    let (mut world, mut device) = due();
    let old = world.key();
    let answer = device.join(&mut world).expect("rotated");
    assert_ne!(world.key(), old);
    assert_eq!((answer.key, world.status.last_rotated_at), (Thumbprint::of(&world.key()), Some(world.now)));
    assert_eq!(device.memory.keys[0].thumbprint, answer.key);
}

#[test]
fn c123_a_rotation_in_the_future_is_not_due() {
    let (mut world, mut device) = joined(1);
    world.spec.rotate_after = Some(world.now.plus(MINUTE));
    let key = world.key();
    assert!(request(&device.send(&world)).rotation.is_none());
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    assert_eq!((world.key(), device.memory.keys.len()), (key, 1));
}

#[test]
fn c124_an_order_after_the_last_rotation_counts_and_an_older_one_does_not() {
    let (mut world, mut device) = due();
    device.join(&mut world).expect("rotated");
    let key = world.key();
    device.join(&mut world).expect("renewed");
    assert_eq!(world.key(), key, "the order is carried out");
    world.later(MINUTE);
    world.spec.rotate_after = Some(world.now);
    world.later(MINUTE);
    device.join(&mut world).expect("rotated");
    assert_ne!(world.key(), key);
}

#[test]
fn c126_without_a_new_key_nothing_is_issued() {
    let (mut world, mut device) = due();
    let challenge = world.challenge();
    let challenged = Start::new(&device.memory, "gateway").challenged(challenge.clone()).expect("knows the key");
    let cannot = challenged.new_key(&[]).expect_err("gives up");
    assert!(matches!(cannot, GiveUp::NoCommonAlgorithm(_)));
    // One that goes on all the same.
    let before = world.status.clone();
    let mut unasked = challenge;
    unasked.rotate = false;
    let sent = device.prepare(&unasked).expect("prepared");
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::RotationRequired);
    assert_eq!((world.status.clone(), world.locked()), (before, false));
}

#[test]
fn c128_a_rotation_in_a_renewal_is_a_renewal() {
    let (mut world, mut device) = due();
    let before = device.memory.step.expect("joined");
    let answer = device.join(&mut world).expect("rotated");
    assert_eq!((answer.kind, world.status.recovery_count), (JoinKind::Renewal, 1));
    assert_eq!((answer.step.instance, answer.step.generation), (before.instance, 2));
}

#[test]
fn c131_the_servers_order_of_algorithms_counts() {
    let (world, device) = due();
    let asked = |algorithms: &[&str]| {
        let mut challenge = world.challenge();
        challenge.algorithms = algorithms.iter().map(ToString::to_string).collect();
        let challenged = Start::new(&device.memory, "gateway").challenged(challenge).expect("knows the key");
        challenged.new_key(&[Algorithm::Ed25519, Algorithm::EcdsaP256]).expect("one in common")
    };
    assert_eq!(asked(&["ES256", "EdDSA"]), Some(Algorithm::EcdsaP256));
    assert_eq!(asked(&["EdDSA", "ES256"]), Some(Algorithm::Ed25519));
    assert_eq!(asked(&["ML-DSA-44", "ES256"]), Some(Algorithm::EcdsaP256));
}

#[test]
fn c132_of_two_rotations_at_once_one_holds() {
    let (mut world, mut device) = due();
    let mut other = device.copy();
    let (first, second) = (device.send(&world), other.send(&world));
    world.join(&first.jws).expect("rotated");
    let key = world.key();
    assert_eq!(world.join(&second.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
    assert_eq!(world.key(), key);
}

/// That it is durable before its public half leaves is proven by `tests/model/model.rs` and `tests/power_cuts.rs`.
#[test]
fn c133_a_new_key_waits_in_front_until_it_is_bound() {
    let (mut world, mut device) = due();
    let old = device.memory.keys[0].clone();
    let sent = device.send(&world);
    assert_eq!((device.memory.keys.len(), &device.memory.keys[1]), (2, &old));
    assert_eq!((device.memory.keys[0].bound, device.memory.current_key()), (false, Some(&old)));
    let answer = world.join(&sent.jws).expect("rotated");
    device.receive(&sent, answer);
    assert_ne!(device.memory.current_key(), Some(&old));
}

/// So many bound keys.
fn with_keys(count: usize) -> Memory {
    let mut memory = Memory::default();
    for n in 1..=count {
        let key = PublicKey::new(Algorithm::Ed25519, &[u8::try_from(n).expect("few"); 32]).expect("32 bytes");
        let algorithm = Algorithm::Ed25519.into();
        let key = KnownKey { id: memory.next_key_id(), thumbprint: Thumbprint::of(&key), algorithm, bound: true };
        memory.add_key(key).expect("room");
    }
    memory
}

/// A device that has so many keys beside the one that the server trusts: `newer` that no answer has named, `older` that were bound once.
fn among_keys(newer: usize, older: usize) -> (World, Device) {
    let (world, mut device) = joined(1);
    let bound = device.memory.keys[0].clone();
    let mut keys = with_keys(newer + older).keys;
    keys[..newer].iter_mut().for_each(|key| key.bound = false);
    keys.insert(newer, bound);
    device.memory.keys = keys;
    (world, device)
}

#[test]
fn c134_ten_keys_are_kept() {
    let memory = with_keys(10);
    assert_eq!(memory.keys.len(), 10);
    assert!(memory.keys.iter().all(|key| memory.key(key.thumbprint) == Some(key)));
    let (mut world, mut device) = among_keys(0, 9);
    let sent = device.send(&world);
    let answer = world.join(&sent.jws).expect("renewed");
    assert!(device.judge(&sent, answer).expect("taken").superseded.is_empty());
}

#[test]
fn c135_the_eleventh_key_drops_the_first_once_a_newer_one_is_confirmed() {
    let mut memory = with_keys(MAX_KEYS);
    let key = KnownKey { id: "bound-17".into(), ..memory.keys[0].clone() };
    assert_eq!(memory.add_key(key), Err(TooManyKeys), "no key is given up before that");
    let (mut world, mut device) = among_keys(0, 10);
    let sent = device.send(&world);
    let issued = world.join(&sent.jws).map(|answer| device.judge(&sent, answer).expect("taken")).expect("renewed");
    assert_eq!((issued.memory.keys.len(), issued.superseded.len()), (10, 1));
    assert_eq!(issued.superseded[0].id, "bound-1");
    // Keys that are newer than the confirmed one stay, and so does this one.
    for (newer, older, left) in [(12, 3, 13), (9, 2, 10), (8, 2, 10), (15, 0, 16)] {
        let (mut world, mut device) = among_keys(newer, older);
        let sent = device.send(&world);
        let issued = world.join(&sent.jws).map(|answer| device.judge(&sent, answer).expect("taken")).expect("renewed");
        assert_eq!(issued.memory.keys.len(), left, "{newer} {older}");
        assert_eq!(issued.superseded.len(), newer + 1 + older - left, "{newer} {older}");
        assert!(issued.memory.key(issued.answer.key).is_some());
    }
}

/// The server's own word is not enough: the key has to have signed the request, or to have agreed in it to replace the one that did.
#[test]
fn c135_a_key_that_had_no_part_in_the_join_is_not_taken_for_the_bound_one() {
    let (mut world, mut device) = among_keys(1, 1);
    for other in [0, 2] {
        let sent = device.send(&world);
        let mut answer = world.join(&sent.jws).expect("renewed");
        answer.key = device.memory.keys[other].thumbprint;
        let key = answer.key;
        assert_eq!(device.judge(&sent, answer).expect_err("refused"), AnswerError::OtherKey(key));
    }
}

#[test]
fn c150_an_answer_that_names_an_unknown_key_is_not_stored() {
    let (mut world, mut device) = joined(1);
    let sent = device.send(&world);
    let mut answer = world.join(&sent.jws).expect("renewed");
    answer.key = Thumbprint::of(&PublicKey::new(Algorithm::Ed25519, &[7; 32]).expect("32 bytes"));
    let key = answer.key;
    assert_eq!(device.judge(&sent, answer).expect_err("refused"), AnswerError::UnknownKey(key));
}

#[test]
fn c153_what_belongs_to_another_token_is_left_out() {
    let (_, device) = joined(1);
    let memory = device.memory.for_token("another");
    assert_eq!((memory.join_state.clone(), memory.certificate.clone(), memory.attempt), (None, None, None));
    assert_eq!(memory.keys, device.memory.keys, "keys are the device's, not the token's");
    // In another life of the same token too: neither state nor certificate is shown.
    let (mut world, mut device) = joined(1);
    world.later(EXPIRY);
    world.status.incarnation = Some(Id([42; 16]));
    let sent = request(&device.send(&world));
    assert!(sent.join_state.is_none() && sent.renewal.is_none());
}
