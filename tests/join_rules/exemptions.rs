//! Exemptions and recovery codes: after the operator's commands, in whatever order both holders come, the copy is never in and the
//! device out without a lock.

use std::time::Duration;

use boundkey::join::{JoinKind, ProblemType};

use super::world::{Device, TTL, World};
use super::{EXPIRY, joined, kind, refusal};

/// A token that is locked, its device, and the copy that was caught.
fn caught(thief_first: bool) -> (World, Device, Device) {
    let (mut world, mut device) = joined(5);
    let mut thief = device.copy();
    let (first, second) = if thief_first { (&mut thief, &mut device) } else { (&mut device, &mut thief) };
    first.join(&mut world).expect("renewed");
    assert_eq!(refusal(second.join(&mut world)), ProblemType::JoinStateMismatch);
    world.later(Duration::from_secs(60));
    (world, device, thief)
}

/// The runbook let the copy in where the device was in step: its renewal left the exemption to the copy.
#[test]
fn the_first_grant_ends_the_waiver_whatever_it_is() {
    let (mut world, mut device, mut thief) = caught(false);
    world.exempt(1, None);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
    assert!(world.locked());
    // What is left of the exemption pays for a recovery beyond the limit, and for nothing else.
    assert_eq!(world.status.exemption.as_ref().map(|left| (left.recoveries, left.waive_join_state)), Some((1, false)));
}

#[test]
fn a_replay_ends_the_waiver_too() {
    let (mut world, mut device) = joined(5);
    let mut thief = device.copy();
    device.lose_answer(&mut world);
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
    world.later(Duration::from_secs(60));
    world.exempt(1, None);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
}

/// An exemption orders a new key, and the order stays due until it is followed.
#[test]
fn an_exempted_device_has_a_new_key() {
    let (mut world, mut device, mut thief) = caught(true);
    let before = world.key();
    world.exempt(1, None);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    assert_ne!(world.key(), before);
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::JoinStateMismatch);
}

#[test]
fn a_code_lets_in_the_device_that_made_it_and_makes_a_stranger_of_every_copy() {
    for thief_first in [false, true] {
        for expired in [false, true] {
            let (mut world, mut device, mut thief) = caught(thief_first);
            let code = device.recovery_code();
            world.exempt(1, Some(code));
            if expired {
                world.later(EXPIRY);
                world.exempt(1, Some(device.recovery_code()));
            }
            assert_eq!(refusal(thief.join(&mut world)), ProblemType::Locked, "the copy has no such key");
            let renews = !thief_first && !expired;
            assert_eq!(kind(device.join(&mut world)), if renews { JoinKind::Renewal } else { JoinKind::Recovery });
            assert!(!world.locked() && world.status.exemption.is_none());
            for _ in 0..2 {
                assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
            }
            assert!(!world.locked(), "a stranger locks nobody");
            assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
            // No later exemption lets the copy in.
            world.exempt(1, None);
            assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
        }
    }
}

#[test]
fn a_lost_answer_to_the_join_by_code_costs_nothing() {
    let (mut world, mut device, mut thief) = caught(true);
    world.exempt(1, Some(device.recovery_code()));
    device.lose_answer(&mut world);
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
}

/// The attempt was in flight when the storage was copied: the copy knows it, and not the key that was made later.
#[test]
fn a_copy_with_the_attempt_in_flight_does_not_pass_by_code() {
    let (mut world, mut device) = joined(5);
    device.lose_answer(&mut world);
    let mut thief = device.copy();
    world.later(Duration::from_secs(60));
    world.exempt(1, Some(device.recovery_code()));
    assert!(world.locked(), "a code locks the token until it is used");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::Locked);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery, "a step, though its answer was lost");
    assert_eq!(refusal(thief.join(&mut world)), ProblemType::KeyNotProven);
    assert!(!world.locked());
}

#[test]
fn a_code_that_is_not_used_ends_and_the_lock_stays() {
    let (mut world, mut device, mut thief) = caught(false);
    world.exempt(1, Some(device.recovery_code()));
    world.later(TTL);
    for holder in [&mut device, &mut thief] {
        assert_eq!(refusal(holder.join(&mut world)), ProblemType::Locked);
    }
}

/// The server's own locks give way to the code, an operator's do not.
#[test]
fn a_lock_of_an_operator_stops_the_device_with_the_code() {
    let (mut world, mut device, _) = caught(false);
    world.lock("out of service");
    world.exempt(1, Some(device.recovery_code()));
    let problem = device.join(&mut world).expect_err("locked");
    assert_eq!((problem.kind, &*problem.detail), (ProblemType::Locked, "out of service"));
}

/// While a code is pending the device may have asked for its challenge before: it misses once.
#[test]
fn a_challenge_from_before_the_code_is_asked_for_anew() {
    let (mut world, mut device) = joined(5);
    let late = device.send(&world);
    world.exempt(1, Some(device.recovery_code()));
    assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::Locked);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
}
