//! The rules of bound keypair joining, one test each: real messages, real signatures, the real decision.
#![cfg(all(feature = "agent", feature = "auth"))]

mod world;

use std::time::Duration;

use boundkey::join::message::JoinAnswer;
use boundkey::join::server::record::Exemption;
use boundkey::join::{JoinKind, Problem, ProblemType, RecoveryMode, SshKey, Thumbprint};
use world::{Device, TTL, World};

/// More than a certificate lasts.
const EXPIRY: Duration = Duration::from_secs(2 * 3600);

fn kind(answer: Result<JoinAnswer, Problem>) -> JoinKind {
    answer.expect("granted").kind
}

fn refusal(answer: Result<JoinAnswer, Problem>) -> ProblemType {
    answer.expect_err("refused").kind
}

/// A device that has joined a token that allows `limit` recoveries.
fn joined(limit: u32) -> (World, Device) {
    let (mut world, mut device) = (World::new(limit), Device::new(0));
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
    (world, device)
}

#[test]
fn first_join_renewal_and_recovery() {
    let (mut world, mut device) = joined(2);
    assert_eq!((world.status.recovery_count, world.status.registration_secret.clone()), (1, None));
    let first = world.status.bound_bot_instance_id;
    for generation in 2..=11 {
        let answer = device.join(&mut world).expect("renewed");
        assert_eq!((answer.kind, answer.step.generation, answer.step.recovery), (JoinKind::Renewal, generation, 1));
    }
    assert_eq!(world.status.bound_bot_instance_id, first);
    world.later(EXPIRY);
    let answer = device.join(&mut world).expect("recovered");
    assert_eq!((answer.kind, answer.step.generation, answer.step.recovery), (JoinKind::Recovery, 1, 2));
    assert_ne!(world.status.bound_bot_instance_id, first);
    world.later(EXPIRY);
    assert_eq!(refusal(device.join(&mut world)), ProblemType::NoRecoveriesLeft);
    assert!(!world.locked());
    world.spec.recovery.limit = 3;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
}

/// The reference's most frequent fault: it locks a device out whose answer was lost.
#[test]
fn a_lost_answer_is_given_again_at_no_cost() {
    let (mut world, mut device) = (World::new(1), Device::new(0));
    device.lose_answer(&mut world);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    for _ in 0..3 {
        device.lose_answer(&mut world);
        let before = world.status.clone();
        device.lose_answer(&mut world);
        assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
        assert_eq!(world.status, before);
        assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    }
    assert_eq!(world.status.recovery_count, 1);
}

#[test]
fn a_replay_ends_when_the_lost_answer_would_have_ended() {
    let (mut world, mut device) = joined(1);
    device.lose_answer(&mut world);
    let end = world.status.last_step.as_ref().expect("a step").not_after;
    world.later(TTL / 2);
    let answer = device.join(&mut world).expect("replayed");
    assert_eq!((answer.kind, answer.identity.not_after), (JoinKind::Replay, end));
}

/// The replay brings what both losses took.
#[test]
fn a_lost_answer_and_then_the_certificate_cost_nothing() {
    let (mut world, mut device) = joined(5);
    device.lose_answer(&mut world);
    device.identity = None;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    assert_eq!(world.status.recovery_count, 1);
}

/// Later than the lost certificate would have lasted, it is as if it had arrived and expired: one recovery, no more.
#[test]
fn a_lost_answer_that_expired_costs_one_recovery() {
    let (mut world, mut device) = joined(3);
    device.lose_answer(&mut world);
    world.later(EXPIRY);
    device.lose_answer(&mut world);
    assert_eq!(world.status.recovery_count, 2);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    assert_eq!(world.status.recovery_count, 2);
}

#[test]
fn two_holders_are_caught_and_locked_once() {
    for thief_first in [false, true] {
        let (mut world, mut device) = joined(5);
        let mut thief = device.copy();
        let (first, second) = if thief_first { (&mut thief, &mut device) } else { (&mut device, &mut thief) };
        assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
        assert_eq!(refusal(second.join(&mut world)), ProblemType::JoinStateMismatch);
        assert_eq!(refusal(second.join(&mut world)), ProblemType::Locked);
        assert_eq!(refusal(first.join(&mut world)), ProblemType::Locked);
        assert_eq!(world.locks.len(), 1);
        assert!(world.locks[0].contains("generation 1, expected 2"), "{}", world.locks[0]);
    }
}

/// A copy taken while an answer is outstanding knows the attempt: both may take the answer, and the next step of both ends it.
#[test]
fn a_copy_with_the_attempt_in_flight_is_caught_at_the_next_step() {
    let (mut world, mut device) = joined(5);
    device.lose_answer(&mut world);
    let mut thief = device.copy();
    assert_eq!(kind(thief.join(&mut world)), JoinKind::Replay);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    assert_eq!(kind(thief.join(&mut world)), JoinKind::Renewal);
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
}

#[test]
fn without_its_join_state_a_device_is_refused_and_not_locked() {
    let (mut world, mut device) = joined(5);
    device.memory.join_state = None;
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateRequired);
    assert!(!world.locked());
}

#[test]
fn a_stranger_learns_nothing_and_locks_nobody() {
    let (mut world, device) = joined(5);
    world.locks.push("secret reason".into());
    let mut stranger = Device::new(50);
    stranger.join(&mut World::new(1)).expect("another token's device");
    stranger.memory.join_state = device.memory.join_state.clone();
    let problem = {
        // A stranger does not hold the key it is asked for; it signs with its own all the same.
        let mut challenge = world.challenge();
        challenge.key = Some(stranger.memory.keys[0].thumbprint);
        let sent = stranger.prepare(&challenge).expect("prepared");
        world.join(&sent.jws).expect_err("refused")
    };
    assert_eq!(problem.kind, ProblemType::KeyNotProven);
    assert!(!problem.detail.contains("secret reason"));
    assert_eq!(world.locks.len(), 1);
}

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
    let public = boundkey_hal::KeyStore::public_key(&mut device.keys, &own.id.parse().expect("a name")).expect("a key");
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

/// A key that was bound before is no new key, whoever asks: a copy of it may be anywhere.
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

/// A server restored from a backup follows the device, rotated keys included.
#[test]
fn a_restored_server_follows_the_device() {
    let (mut world, mut device) = joined(3);
    let backup = world.clone();
    for _ in 0..3 {
        world.later(Duration::from_secs(60));
        device.join(&mut world).expect("renewed");
    }
    world.spec.rotate_after = Some(world.now);
    world.later(Duration::from_secs(60));
    device.join(&mut world).expect("rotated");
    let mut world = world.restored(&backup);
    world.later(Duration::from_secs(60));
    let key = device.memory.keys[0].thumbprint;
    let answer = device.join(&mut world).expect("followed");
    assert_eq!((answer.step.generation, answer.key), (6, key));
    assert!(world.grants.last().expect("a grant").rolled_forward.is_some());
}

#[test]
fn a_server_restored_to_before_the_first_join_follows_too() {
    let mut world = World::new(2);
    let backup = world.clone();
    let mut device = Device::new(0);
    device.join(&mut world).expect("joined");
    let mut world = world.restored(&backup);
    world.later(Duration::from_secs(60));
    device.join(&mut world).expect("followed");
    assert_eq!(world.status.recovery_count, 1);
}

/// After a restore a thief may come first; the device then proves a key that only its own join state names.
#[test]
fn a_thief_that_a_restored_server_followed_is_caught_by_the_device() {
    let (mut world, mut device) = joined(3);
    let backup = world.clone();
    world.later(Duration::from_secs(60));
    device.join(&mut world).expect("renewed");
    let mut thief = device.copy();
    world.later(Duration::from_secs(60));
    world.spec.rotate_after = Some(world.now);
    device.join(&mut world).expect("rotated");
    let mut world = world.restored(&backup);
    world.later(Duration::from_secs(60));
    thief.join(&mut world).expect("the restored server follows whoever comes first");
    world.later(Duration::from_secs(60));
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
    assert!(world.locked());
}

#[test]
fn an_exemption_lets_a_device_back_in_once() {
    let (mut world, mut device) = joined(1);
    let mut thief = device.copy();
    device.join(&mut world).expect("renewed");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
    world.later(EXPIRY);
    world.locks.clear();
    world.revision += 1;
    world.status.exemption =
        Some(Exemption { recoveries: 1, waive_join_state: true, expires: world.now.plus(TTL), reason: None });
    device.memory.join_state = None;
    device.lose_answer(&mut world);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay, "also when its answer is lost");
    assert_eq!((world.status.recovery_count, world.status.exemption.clone()), (2, None));
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
}

#[test]
fn an_exemption_that_is_out_of_time_counts_for_nothing() {
    let (mut world, mut device) = joined(1);
    world.later(EXPIRY);
    world.status.exemption = Some(Exemption { recoveries: 1, waive_join_state: true, expires: world.now, reason: None });
    assert_eq!(refusal(device.join(&mut world)), ProblemType::NoRecoveriesLeft);
}

#[test]
fn modes_differ_in_limit_and_join_state() {
    let (mut world, mut device) = joined(1);
    world.later(EXPIRY);
    world.spec.recovery.mode = RecoveryMode::Relaxed;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    world.later(EXPIRY);
    device.memory.join_state = None;
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateRequired);
    world.spec.recovery.mode = RecoveryMode::Insecure;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    world.later(EXPIRY);
    world.spec.recovery.mode = RecoveryMode::Standard;
    assert_eq!(refusal(device.join(&mut world)), ProblemType::NoRecoveriesLeft);
    assert_eq!(world.status.recovery_count, 3);
}

/// A server clock that was set back must not make a good certificate look bad.
#[test]
fn a_server_clock_set_back_costs_no_recovery() {
    let (mut world, mut device) = joined(1);
    world.now = world.now.minus(Duration::from_secs(600));
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    let stamps: Vec<_> = world.grants.iter().map(|grant| grant.issued_at_ms).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
}

#[test]
fn a_challenge_is_good_once() {
    let (mut world, mut device) = joined(1);
    let sent = device.send(&world);
    world.join(&sent.jws).expect("granted");
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
}

#[test]
fn after_a_reset_the_device_registers_anew() {
    let (mut world, mut device) = joined(1);
    let old = world.key();
    world.status = World::new(1).status;
    world.status.incarnation = Some(boundkey::join::Id([10; 16]));
    world.revision += 1;
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
    assert_ne!(world.key(), old, "a new life takes a new key");
}

/// A copy and a rotation: whoever rotates first leaves the other with a retired key, and the theft is noticed all the same. Once
/// for each key: a copy is not to lock the device out for ever.
#[test]
fn a_retired_key_that_comes_back_locks_once() {
    for thief_first in [false, true] {
        let (mut world, mut device) = joined(5);
        let mut thief = device.copy();
        world.later(Duration::from_secs(60));
        world.spec.rotate_after = Some(world.now);
        let (first, second) = if thief_first { (&mut thief, &mut device) } else { (&mut device, &mut thief) };
        assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
        assert_eq!(refusal(second.join(&mut world)), ProblemType::JoinStateMismatch);
        assert_eq!(refusal(first.join(&mut world)), ProblemType::Locked);
        world.locks.clear();
        world.revision += 1;
        assert_eq!(refusal(second.join(&mut world)), ProblemType::KeyNotProven);
        assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
        assert!(!world.locked());
    }
}

/// The device of a thief who rotated first comes back by an exemption; the thief's key is retired by it.
#[test]
fn an_exemption_brings_back_a_device_whose_key_a_thief_rotated_away() {
    let (mut world, mut device) = joined(1);
    let (mut thief, own) = (device.copy(), world.key());
    world.later(Duration::from_secs(60));
    world.spec.rotate_after = Some(world.now);
    thief.join(&mut world).expect("renewed");
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
    world.locks.clear();
    world.revision += 1;
    world.status.exemption =
        Some(Exemption { recoveries: 1, waive_join_state: true, expires: world.now.plus(TTL), reason: None });
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    assert_eq!((world.key(), world.status.caught_keys.clone()), (own, vec![]));
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
}

/// Insecure mode looks at no join state: a key that was rotated away is a stranger's, however long ago that was.
#[test]
fn insecure_mode_takes_no_retired_key() {
    let (mut world, mut device) = joined(1);
    world.spec.recovery.mode = RecoveryMode::Insecure;
    let mut thief = device.copy();
    for _ in 0..40 {
        world.later(Duration::from_secs(60));
        world.spec.rotate_after = Some(world.now);
        device.join(&mut world).expect("rotated");
    }
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
}

/// A restored server with its clock behind may stamp a step as the lost one was stamped; it is another step all the same.
#[test]
fn the_same_stamp_on_another_line_of_steps_is_noticed() {
    let (mut world, mut device) = joined(3);
    world.now = world.now.minus(Duration::from_secs(3600));
    let backup = world.clone();
    let mut thief = device.copy();
    device.join(&mut world).expect("renewed");
    let mut world = world.restored(&backup);
    thief.join(&mut world).expect("first after the restore");
    let stamps: Vec<_> = [&device, &thief].map(|holder| holder.memory.step).to_vec();
    assert_eq!(stamps[0], stamps[1], "the same counters");
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
}

/// The cure for a stolen key: an exemption, then a rotation. The key was caught, so its copies are strangers once it is retired.
#[test]
fn after_exemption_and_rotation_a_copy_is_a_stranger() {
    let (mut world, mut device) = joined(5);
    let mut thief = device.copy();
    device.join(&mut world).expect("renewed");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
    world.locks.clear();
    world.revision += 1;
    device.join(&mut world).expect("renewed");
    world.later(Duration::from_secs(60));
    world.spec.rotate_after = Some(world.now);
    device.join(&mut world).expect("rotated");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
    assert!(!world.locked());
}

/// A token with a static key in mode `insecure`, and three hosts that have joined with it.
fn hosts() -> (World, [Device; 3]) {
    let (mut world, device) = joined(1);
    world.spec.recovery.mode = RecoveryMode::Insecure;
    let mut hosts = [1, 60, 120].map(|seed| device.host(seed));
    for host in &mut hosts {
        assert_eq!(kind(host.join(&mut world)), JoinKind::Recovery);
    }
    (world, hosts)
}

#[test]
fn hosts_with_one_key_renew_each_its_own_instance() {
    let (mut world, mut hosts) = hosts();
    let (count, bound) = (world.status.recovery_count, world.status.bound_bot_instance_id);
    for generation in 2..=5 {
        for host in &mut hosts {
            let before = host.memory.step.expect("joined").instance;
            let answer = host.join(&mut world).expect("renewed");
            assert_eq!((answer.kind, answer.step.generation, answer.step.instance), (JoinKind::Renewal, generation, before));
        }
    }
    assert_eq!((world.status.recovery_count, world.status.bound_bot_instance_id), (count, bound), "renewals use up nothing");
    assert!(!world.locked());

    // One that was off for long is another instance, and does not disturb the others.
    world.later(TTL / 2);
    hosts[1].join(&mut world).expect("renewed");
    hosts[2].join(&mut world).expect("renewed");
    world.later(TTL * 3 / 4);
    let before = hosts.each_ref().map(|host| host.memory.step.expect("joined").instance);
    assert_eq!(
        hosts.each_mut().map(|host| kind(host.join(&mut world))),
        [JoinKind::Recovery, JoinKind::Renewal, JoinKind::Renewal]
    );
    let after = hosts.each_ref().map(|host| host.memory.step.expect("joined").instance);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..]);
}

/// The answer is lost, and other hosts join before the host asks again.
#[test]
fn a_host_whose_answer_was_lost_gets_it_again_whoever_joined_meanwhile() {
    let (mut world, mut hosts) = hosts();
    for _ in 0..2 {
        let [first, others @ ..] = &mut hosts;
        first.lose_answer(&mut world);
        for host in others.iter_mut() {
            assert_eq!(kind(host.join(&mut world)), JoinKind::Renewal);
        }
        let status = world.status.clone();
        assert_eq!(kind(first.join(&mut world)), JoinKind::Replay);
        assert_eq!(world.status, status);
        assert_eq!(kind(first.join(&mut world)), JoinKind::Renewal);
    }
    assert!(!world.locked());
}

/// The model checker found this one: the host still shows the certificate of the instance that it recovered from, and so was taken to
/// stand there; each lost answer cost another recovery.
#[test]
fn a_host_whose_recovery_was_lost_gets_it_again() {
    let (mut world, mut hosts) = hosts();
    world.later(TTL * 2);
    hosts[0].lose_answer(&mut world);
    let status = world.status.clone();
    assert_eq!(kind(hosts[0].join(&mut world)), JoinKind::Replay);
    assert_eq!(world.status, status);
    assert_eq!(kind(hosts[0].join(&mut world)), JoinKind::Renewal);
}

#[test]
fn a_copy_of_a_hosts_certificate_is_caught() {
    let (mut world, mut hosts) = hosts();
    let mut copy = hosts[0].copy();
    assert_eq!(kind(hosts[0].join(&mut world)), JoinKind::Renewal);
    assert_eq!(refusal(copy.join(&mut world)), ProblemType::JoinStateMismatch);
    assert!(world.locks[0].contains("generation mismatch: certificate of generation 1, expected 2"), "{}", world.locks[0]);
    assert_eq!(world.locks.len(), 1);
    for host in &mut hosts {
        assert_eq!(refusal(host.join(&mut world)), ProblemType::Locked);
    }
}

#[test]
fn a_restored_server_follows_each_host() {
    let (mut world, mut hosts) = hosts();
    let backup = world.clone();
    let mut late = hosts[0].host(200);
    late.join(&mut world).expect("joined");
    for host in &mut hosts {
        for _ in 0..3 {
            host.join(&mut world).expect("renewed");
        }
    }
    let mut world = world.restored(&backup);
    assert_eq!(kind(late.join(&mut world)), JoinKind::Recovery, "nothing is known of its instance");
    for host in &mut hosts {
        let answer = host.join(&mut world).expect("followed");
        let grant = world.grants.last().expect("a grant");
        assert_eq!((answer.kind, answer.step.generation), (JoinKind::Renewal, 5));
        assert!(grant.rolled_forward.is_some(), "audited");
    }
    assert!(!world.locked());
}

/// An operator that goes over to a mode with join states: the host of the last recovery goes on, a second one is a second holder.
#[test]
fn from_insecure_to_standard_one_host_goes_on() {
    let (mut world, mut hosts) = hosts();
    hosts[0].join(&mut world).expect("renewed");
    world.spec.recovery.mode = RecoveryMode::Standard;
    assert_eq!(kind(hosts[2].join(&mut world)), JoinKind::Renewal);
    assert_eq!(refusal(hosts[0].host(200).join(&mut world)), ProblemType::JoinStateRequired);
    assert_eq!(refusal(hosts[0].join(&mut world)), ProblemType::JoinStateMismatch);
}
