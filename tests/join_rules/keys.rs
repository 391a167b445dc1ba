//! Registration, rotation, and keys that were bound once.

use std::time::Duration;

use boundkey::join::{JoinKind, ProblemType, SshKey, Thumbprint};

use super::world::{Device, TTL, World};
use super::{joined, kind, refusal};

#[test]
fn one_answer_for_every_fault_of_a_registration() {
    let details: Vec<_> = [Some("wrong"), Some(""), None]
        .into_iter()
        .map(|secret| {
            let (mut world, mut device) = (World::new(1), Device::new(0));
            device.secret = secret.map(Into::into);
            let problem = device.join(&mut world).expect_err("refused");
            assert_eq!(world.status.registration_secret.as_deref(), Some("s"), "the secret is kept");
            problem
        })
        .chain([{
            let (mut world, mut device) = (World::new(1), Device::new(0));
            world.spec.onboarding.must_register_before = Some(world.now);
            let problem = device.join(&mut world).expect_err("refused");
            world.spec.onboarding.must_register_before = Some(world.now.plus(TTL));
            assert_eq!(kind(device.join(&mut world)), JoinKind::First, "the deadline is read at each try");
            problem
        }])
        .collect();
    assert!(
        details.iter().all(|problem| *problem == details[0] && problem.kind == ProblemType::RegistrationRefused),
        "{details:?}"
    );
}

#[test]
fn a_preregistered_key_needs_no_secret_and_takes_no_other() {
    let (mut world, mut device) = (World::new(1), Device::new(0));
    world.status.registration_secret = None;
    let mut stranger = Device::new(50);
    stranger.join(&mut World::new(1)).expect("another token");
    device.prepare(&world.challenge()).expect("makes a key");
    let own = &device.memory.keys[0];
    let public = boundkey_hal::KeyStore::public_key(&device.keys, &own.id.parse().expect("a name")).expect("a key");
    world.spec.onboarding.initial_public_key = Some(SshKey(public));
    let mut challenge = world.challenge();
    challenge.key = Some(stranger.memory.keys[0].thumbprint);
    let sent = stranger.prepare(&challenge).expect("prepared");
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::KeyNotProven);
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
    assert_eq!(world.status.last_rotated_at, None);
}

#[test]
fn rotation_replaces_the_key_and_survives_a_lost_answer() {
    let (mut world, mut device) = joined(1);
    for round in 1..=12 {
        let old = world.key();
        world.later(Duration::from_secs(60));
        world.spec.rotate_after = Some(world.now);
        if round % 2 == 0 {
            device.lose_answer(&mut world);
            assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
        } else {
            assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
        }
        assert_ne!(world.key(), old);
        assert!(world.status.retired_keys.contains(&Thumbprint::of(&old)));
        let generation = world.status.last_step.as_ref().expect("a step").generation;
        assert_eq!((generation, world.status.recovery_count), (round + 1, 1));
    }
    assert_eq!(device.memory.keys.len(), 10, "the history is bounded");
}

/// A key that was bound before is no new key, whatever holder asks: a copy of it may be anywhere.
#[test]
fn a_rotation_to_a_key_bound_before_is_refused() {
    let (mut world, mut device) = joined(1);
    for _ in 0..2 {
        world.later(Duration::from_secs(60));
        world.spec.rotate_after = Some(world.now);
        device.join(&mut world).expect("rotated");
    }
    world.later(Duration::from_secs(60));
    world.spec.rotate_after = Some(world.now);
    let before = world.clone();
    for nth in 1..3 {
        let mut wrong = device.clone();
        let mut key = wrong.memory.keys.remove(nth);
        key.bound = false;
        wrong.memory.keys.insert(0, key);
        assert_eq!(refusal(wrong.join(&mut world)), ProblemType::KeyReused, "key {nth}");
    }
    assert!(!world.locked() && world.status == before.status);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    assert_ne!(world.key(), before.key());
}

/// A copy and a rotation: the holder that rotates first leaves the other with a retired key, and the theft is noticed all the
/// same, each time that the other comes back.
#[test]
fn a_retired_key_that_comes_back_locks() {
    for thief_first in [false, true] {
        let (mut world, mut device) = joined(5);
        let mut thief = device.copy();
        world.later(Duration::from_secs(60));
        world.spec.rotate_after = Some(world.now);
        let (first, second) = if thief_first { (&mut thief, &mut device) } else { (&mut device, &mut thief) };
        assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
        for _ in 0..2 {
            assert_eq!(refusal(second.join(&mut world)), ProblemType::JoinStateMismatch);
            assert_eq!(refusal(first.join(&mut world)), ProblemType::Locked);
            world.unlock();
            assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
        }
    }
}

/// The device of an attacker who rotated first comes back by an exemption, with a new key; the attacker's key is retired by it.
#[test]
fn an_exemption_brings_back_a_device_whose_key_was_rotated_away() {
    let (mut world, mut device) = joined(1);
    let (mut thief, own) = (device.copy(), world.key());
    world.later(Duration::from_secs(60));
    world.spec.rotate_after = Some(world.now);
    thief.join(&mut world).expect("renewed");
    let stolen = world.key();
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
    world.later(Duration::from_secs(60));
    world.exempt(1, None);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    assert!(![own, stolen].contains(&world.key()), "the exemption orders a rotation");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
    assert!(world.locked());
}
