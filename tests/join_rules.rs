//! The rules of bound keypair joining, one test each: real messages, real signatures, the real decision.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "join_rules/copies.rs"]
mod copies;
#[path = "join_rules/exemptions.rs"]
mod exemptions;
#[path = "join_rules/hosts.rs"]
mod hosts;
#[path = "join_rules/keys.rs"]
mod keys;
mod world;

use std::time::Duration;

use boundkey::join::message::JoinAnswer;
use boundkey::join::{JoinKind, Problem, ProblemType, RecoveryMode};
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
        world.later(Duration::from_secs(5));
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
        assert!(world.locks[0].message.contains("generation 1, expected 2"), "{}", world.locks[0].message);
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
    world.lock("secret reason");
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
    thief.join(&mut world).expect("the restored server follows the holder that comes first");
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
    world.exempt(1, None);
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
    world.exempt(1, None);
    world.later(TTL);
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

/// An old certificate, of the instance before, led around a lock on the one that is bound.
#[test]
fn a_lock_on_the_bound_instance_counts_whatever_certificate_is_shown() {
    let (mut world, mut device) = joined(5);
    let old = (device.identity.clone(), device.memory.certificate.clone());
    world.later(EXPIRY);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    world.lock_instance(world.status.bound_bot_instance_id.expect("joined"), "lost");
    (device.identity, device.memory.certificate) = old;
    assert_eq!(refusal(device.join(&mut world)), ProblemType::Locked);
}
