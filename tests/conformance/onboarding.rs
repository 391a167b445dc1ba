//! C001 to C023, C061, C103: first joins.

use boundkey::join::{Id, JoinKind, Problem, ProblemType, SshKey};

use super::world::{Device, TTL, World};
use super::{MINUTE, by_own_key, harmless, joined, kind, own_key, preregistered, stranger};

#[test]
fn c001_the_preregistered_key_joins() {
    let (mut world, mut device) = preregistered(1);
    let answer = device.join(&mut world).expect("granted");
    assert_eq!(Some(SshKey(world.key())), world.spec.onboarding.initial_public_key);
    assert_eq!((answer.kind, world.status.recovery_count), (JoinKind::First, 1));
    assert_eq!(world.status.last_recovered_at, Some(world.now));
    assert_eq!(world.status.bound_bot_instance_id, Some(answer.step.instance));
    assert!(!answer.join_state.is_empty());
}

#[test]
fn c002_another_key_than_the_preregistered_one_is_refused() {
    let (mut world, _) = preregistered(1);
    let problem = by_own_key(&mut stranger(), &mut world);
    assert_eq!(problem, Problem::from(ProblemType::KeyNotProven), "and is told no more than that");
    assert_eq!((world.status.bound_public_key.clone(), world.status.recovery_count), (None, 0));
}

#[test]
fn c003_a_preregistered_key_leaves_a_secret_unheard() {
    let (mut world, _) = preregistered(1);
    world.status.registration_secret = Some("s".into());
    // The device has the right secret, and signs with a key of its own.
    let mut other = Device::new(50);
    own_key(&mut other, &World::new(1));
    assert_eq!(by_own_key(&mut other, &mut world).kind, ProblemType::KeyNotProven);
    assert_eq!(world.status.bound_public_key, None);
}

#[test]
fn c004_c061_a_limit_of_one_allows_the_first_join_and_a_limit_of_zero_none() {
    let (world, device) = joined(1);
    assert_eq!((world.status.recovery_count, device.memory.join_state.is_some()), (1, true));
    let (mut world, mut device) = (World::new(0), Device::new(0));
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
    assert!(world.status.registration_secret.is_some(), "the secret is kept");
}

/// Ours asks for proof of the key first, so that a stranger does not learn of the limit.
#[test]
fn c006_a_first_join_counts_as_a_recovery() {
    let (mut world, mut device) = preregistered(2);
    world.status.recovery_count = 2;
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
    assert_eq!(by_own_key(&mut stranger(), &mut world).kind, ProblemType::KeyNotProven);
}

#[test]
fn c007_a_first_join_brings_no_credentials() {
    // A token made anew in the same life, and a device that still has its certificate.
    let (mut world, mut device) = joined(1);
    let key = SshKey(world.key());
    world.status = World::new(1).status;
    world.spec.onboarding.initial_public_key = Some(key);
    device.memory.join_state = None;
    assert!(super::request(&device.send(&world)).renewal.is_some());
    assert_eq!(harmless(&mut device, &mut world), ProblemType::FirstJoinWithCredentials);
}

#[test]
fn c008_a_token_with_neither_key_nor_secret_is_of_no_use() {
    let (mut world, mut device) = (World::new(1), Device::new(0));
    world.status.registration_secret = None;
    assert_eq!(harmless(&mut device, &mut world), ProblemType::TokenUnusable);
}

#[test]
fn c009_a_bound_key_without_instance_is_of_no_use() {
    let (mut world, mut device) = joined(1);
    world.status.bound_bot_instance_id = None;
    assert_eq!(harmless(&mut device, &mut world), ProblemType::TokenUnusable);
}

/// Earlier than in the reference: such a token is not even made.
#[test]
fn c010_a_key_that_does_not_parse_is_no_key() {
    for text in ["", "ssh-ed25519", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==", "not a key"] {
        assert!(text.parse::<SshKey>().is_err(), "{text:?}");
        let spec = serde_json::json!({ "onboarding": { "initial_public_key": text } });
        assert!(serde_json::from_value::<boundkey::join::server::record::Spec>(spec).is_err());
    }
}

#[test]
fn c011_a_lock_is_told_to_the_right_key_alone() {
    let (mut world, mut device) = preregistered(1);
    world.lock("secret reason");
    assert_eq!(by_own_key(&mut stranger(), &mut world), Problem::from(ProblemType::KeyNotProven));
    assert_eq!(harmless(&mut device, &mut world), ProblemType::Locked);
}

#[test]
fn c012_a_first_join_is_no_rotation() {
    let (mut world, mut device) = preregistered(1);
    device.join(&mut world).expect("granted");
    assert_eq!(world.status.last_rotated_at, None);
}

#[test]
fn c013_a_secret_binds_a_new_key_once() {
    let (world, device) = joined(1);
    assert_eq!(world.status.registration_secret, None);
    assert_eq!((world.status.recovery_count, world.status.retired_keys.len()), (1, 0));
    assert_eq!(device.memory.keys.len(), 1, "one key was made, for this");
    let mut late = Device::new(50);
    let mut world = world;
    own_key(&mut late, &World::new(1));
    assert_eq!(by_own_key(&mut late, &mut world).kind, ProblemType::KeyNotProven, "the secret is used up");
}

/// What a registration with this secret is told.
fn told(secret: Option<&str>, prepare: impl FnOnce(&mut World)) -> Problem {
    let (mut world, mut device) = (World::new(1), Device::new(0));
    prepare(&mut world);
    device.secret = secret.map(Into::into);
    let before = world.status.clone();
    let problem = device.join(&mut world).expect_err("refused");
    assert_eq!(world.status, before);
    problem
}

#[test]
fn c014_a_wrong_secret_is_refused() {
    assert_eq!(told(Some("wrong"), |_| ()), Problem::from(ProblemType::RegistrationRefused));
}

#[test]
fn c015_a_guess_at_a_generated_secret_is_refused_alike() {
    assert_eq!(
        told(Some("guess"), |world| world.status.registration_secret = Some("00".repeat(16))),
        told(Some("wrong"), |_| ())
    );
}

#[test]
fn c016_an_empty_or_missing_secret_is_refused_alike() {
    for secret in [Some(""), None] {
        assert_eq!(told(secret, |_| ()), told(Some("wrong"), |_| ()));
    }
    assert_eq!(told(Some(""), |world| world.status.registration_secret = Some(String::new())), told(Some("wrong"), |_| ()));
}

#[test]
fn c017_after_the_deadline_the_right_secret_is_refused_alike() {
    let late = |world: &mut World| world.spec.onboarding.must_register_before = Some(world.now);
    assert_eq!(told(Some("s"), late), told(Some("wrong"), |_| ()));
}

#[test]
fn c019_a_deadline_that_is_moved_counts_at_the_next_try() {
    let (mut world, mut device) = (World::new(1), Device::new(0));
    world.spec.onboarding.must_register_before = Some(world.now.minus(MINUTE));
    assert_eq!(harmless(&mut device, &mut world), ProblemType::RegistrationRefused);
    world.spec.onboarding.must_register_before = Some(world.now.plus(TTL));
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
}

#[test]
fn c020_a_deadline_is_for_secrets_only() {
    let (mut world, mut device) = preregistered(1);
    world.spec.onboarding.must_register_before = Some(world.now.minus(MINUTE));
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
}

/// The server never has a secret of the device's to compare with its own: what it gets is an HMAC over the key that signs, and that
/// goes to `ring::hmac::verify`, which compares in constant time. Near misses are as good as any.
#[test]
fn c021_the_secret_stays_on_the_device_and_an_hmac_is_compared() {
    let mut world = World::new(1);
    world.status.registration_secret = Some("correct horse battery staple".into());
    let binding = |secret: &str, world: &World| {
        let mut device = Device::new(0);
        device.secret = Some(secret.into());
        let sent = device.send(world);
        let request = super::request(&sent);
        let text = serde_json::to_string(&request).expect("JSON");
        assert!(!text.contains(secret), "{text}");
        (sent, request.external_account_binding.expect("a binding"))
    };
    let (right, good) = binding("correct horse battery staple", &world);
    for near in [
        "correct horse battery stapl",
        "correct horse battery staplf",
        "dorrect horse battery staple",
        "correct horse battery staple ",
    ] {
        let (sent, other) = binding(near, &world);
        let same = good.signature.bytes().zip(other.signature.bytes()).filter(|(a, b)| a == b).count();
        assert!(same < 16, "{same} of 43 characters of the HMAC are the same");
        assert_eq!(world.join(&sent.jws).expect_err("refused"), Problem::from(ProblemType::RegistrationRefused));
    }
    world.join(&right.jws).expect("granted");
}

#[test]
fn c023_a_device_that_has_joined_does_not_send_the_secret() {
    let (world, mut device) = joined(1);
    assert_eq!(device.secret.as_deref(), Some("s"), "it still stands in the configuration");
    assert!(super::request(&device.send(&world)).external_account_binding.is_none());
}

#[test]
fn c103_the_join_state_tells_the_raised_count() {
    let (world, device) = joined(1);
    let step = device.memory.step.expect("joined");
    assert_eq!((step.recovery, Some(step)), (1, world.status.step()));
    assert_ne!(step.instance, Id([0; 16]));
}
