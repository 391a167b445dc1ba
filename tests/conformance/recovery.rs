//! C034 to C059, C089 to C110: recoveries, join states, modes and locks.

use boundkey::join::server::record::{Exemption, Recovery};
use boundkey::join::{Claims, Id, JoinKind, Jws, ProblemType, RecoveryMode, base64url};

use super::world::{Device, TTL, World};
use super::{EXPIRY, by_own_key, harmless, joined, kind, locking, stranger};

/// A device whose certificate has run out.
fn expired(limit: u32) -> (World, Device) {
    let (mut world, device) = joined(limit);
    world.later(EXPIRY);
    (world, device)
}

/// The join state of `device` with other claims, and a signature that does not fit them.
fn forge(device: &mut Device, change: impl FnOnce(&mut Claims)) {
    let mut jws = Jws::from_compact(device.memory.join_state.as_deref().expect("joined")).expect("our own");
    let mut claims: Claims = serde_json::from_slice(&base64url::decode(&jws.payload).expect("our own")).expect("our own");
    change(&mut claims);
    jws.payload = base64url::encode(serde_json::to_vec(&claims).expect("plain data"));
    device.memory.join_state = Some(jws.to_compact());
}

#[test]
fn c034_c055_insecure_mode_looks_at_no_join_state() {
    let (mut world, mut device) = expired(1);
    world.spec.recovery.mode = RecoveryMode::Insecure;
    let before = world.status.bound_bot_instance_id;
    for state in [None, Some("rubbish".to_owned())] {
        device.memory.join_state = state;
        world.later(EXPIRY);
        let answer = device.join(&mut world).expect("recovered");
        assert_eq!(answer.kind, JoinKind::Recovery);
        assert!(!answer.join_state.is_empty(), "it is issued all the same");
    }
    assert_eq!(world.status.recovery_count, 3);
    assert_ne!(world.status.bound_bot_instance_id, before);
}

#[test]
fn c036_c047_c053_recoveries_up_to_the_limit() {
    let (mut world, mut device) = joined(2);
    let first = device.memory.step.expect("joined").instance;
    let at = world.status.last_recovered_at;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    assert_eq!(world.status.last_recovered_at, at);
    world.later(EXPIRY);
    let answer = device.join(&mut world).expect("recovered");
    assert_eq!((answer.kind, answer.step.recovery, answer.step.generation), (JoinKind::Recovery, 2, 1));
    assert_ne!(answer.step.instance, first);
    assert!(world.status.last_recovered_at > at);
    world.later(EXPIRY);
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
}

#[test]
fn c037_the_limit_ends_recoveries_without_a_lock() {
    let (mut world, mut device) = expired(1);
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
    assert_eq!(by_own_key(&mut stranger(), &mut world).kind, ProblemType::KeyNotProven, "a stranger does not learn of it");
}

#[test]
fn c039_an_old_join_state_locks_once() {
    let (mut world, mut device) = expired(5);
    let mut thief = device.copy();
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    assert_eq!(locking(&mut thief, &mut world), ProblemType::JoinStateMismatch);
    assert_eq!(harmless(&mut thief, &mut world), ProblemType::Locked);
}

#[test]
fn c040_c091_c092_what_is_no_join_state_locks() {
    for state in ["rubbish", "a.b.c", "", "e30.e30.", &"x".repeat(2000)] {
        let (mut world, mut device) = expired(5);
        device.memory.join_state = Some(state.to_owned());
        assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch, "{state:?}");
    }
}

#[test]
fn c041_c093_a_join_state_by_an_unknown_key_locks() {
    let (mut world, mut device) = expired(5);
    device.memory.join_state = stranger().memory.join_state;
    assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
}

#[test]
fn c042_c095_a_join_state_of_another_instance_locks() {
    let (mut world, mut device) = expired(5);
    world.status.bound_bot_instance_id = Some(Id([77; 16]));
    assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
    assert!(world.locks[0].message.contains(&format!("expected {}", Id([77; 16]))), "{}", world.locks[0].message);
}

/// Key, lock, join state, limit: each is told only where all before it are well.
#[test]
fn c044_the_order_of_checks() {
    let (mut world, mut device) = expired(1);
    let own = device.memory.join_state.replace("rubbish".into());
    world.lock("by an operator");
    assert_eq!(by_own_key(&mut stranger(), &mut world).kind, ProblemType::KeyNotProven);
    assert_eq!(harmless(&mut device, &mut world), ProblemType::Locked);
    world.locks.clear();
    let mut copy = world.clone();
    assert_eq!(locking(&mut device, &mut copy), ProblemType::JoinStateMismatch);
    device.memory.join_state = own;
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
}

#[test]
fn c045_c002_a_wrong_key_cannot_lock() {
    let (mut world, device) = expired(5);
    let mut stranger = stranger();
    stranger.memory.join_state = device.memory.join_state.clone();
    stranger.memory.incarnation = world.status.incarnation;
    assert_eq!(by_own_key(&mut stranger, &mut world).kind, ProblemType::KeyNotProven);
}

#[test]
fn c054_an_unknown_mode_is_refused() {
    assert!(serde_json::from_str::<Recovery>(r#"{"limit": 1, "mode": "lax"}"#).is_err());
    let modes = ["standard", "relaxed", "insecure"].map(|mode| format!(r#"{{"mode": "{mode}"}}"#));
    assert!(modes.iter().all(|text| serde_json::from_str::<Recovery>(text).is_ok()));
}

#[test]
fn c056_back_from_insecure_the_join_state_counts_again() {
    let (mut world, mut device) = expired(9);
    world.spec.recovery.mode = RecoveryMode::Insecure;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
    world.spec.recovery.mode = RecoveryMode::Standard;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal, "a device that keeps it goes on");
    device.memory.join_state = None;
    assert_eq!(harmless(&mut device, &mut world), ProblemType::JoinStateRequired, "one that does not is refused");
}

#[test]
fn c059_a_raised_limit_lets_a_waiting_device_in() {
    let (mut world, mut device) = expired(1);
    assert_eq!(harmless(&mut device, &mut world), ProblemType::NoRecoveriesLeft);
    world.spec.recovery.limit = 2;
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
}

#[test]
fn c089_a_join_state_of_ours_is_believed() {
    let (mut world, mut device) = expired(2);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
}

#[test]
fn c096_all_differences_are_told_together() {
    let (mut world, mut device) = joined(5);
    let mut thief = device.copy();
    device.join(&mut world).expect("renewed");
    world.later(EXPIRY);
    device.join(&mut world).expect("recovered");
    device.join(&mut world).expect("renewed");
    assert_eq!(locking(&mut thief, &mut world), ProblemType::JoinStateMismatch);
    let lock = &world.locks[0].message;
    assert!(lock.contains("instance ") && lock.contains("recovery sequence 1, expected 2"), "{lock}");
    assert!(lock.contains("generation 1, expected 2"), "{lock}");
}

/// Unlike the reference: a server clock that was set back must not lock a fleet.
#[test]
fn c097_a_join_state_from_the_future_is_believed() {
    let (mut world, mut device) = joined(1);
    world.now = world.now.minus(EXPIRY);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
}

#[test]
fn c099_a_join_state_of_other_claims_is_not_believed() {
    let changes: [fn(&mut Claims); 3] =
        [|claims| claims.iss = "other".into(), |claims| claims.sub = "other".into(), |claims| claims.step.recovery += 1];
    for change in changes {
        let (mut world, mut device) = expired(5);
        forge(&mut device, change);
        assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
    }
}

#[test]
fn c108_a_lock_that_is_removed_alone_comes_back() {
    let (mut world, mut device) = expired(5);
    let mut thief = device.copy();
    device.join(&mut world).expect("recovered");
    assert_eq!(locking(&mut thief, &mut world), ProblemType::JoinStateMismatch);
    world.unlock();
    assert_eq!(locking(&mut thief, &mut world), ProblemType::JoinStateMismatch);
}

/// The way of the reference works, and the exemption does it in one step.
#[test]
fn c109_c057_a_locked_device_comes_back_without_being_touched() {
    for exempt in [false, true] {
        let (mut world, mut device) = expired(1);
        let mut thief = device.copy();
        world.spec.recovery.limit = 2;
        thief.join(&mut world).expect("recovered");
        assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
        world.unlock();
        if exempt {
            let expires = world.now.plus(TTL);
            world.status.exemption = Some(Exemption { recoveries: 1, waive_join_state: true, expires, key: None, reason: None });
        } else {
            world.spec.recovery.mode = RecoveryMode::Insecure;
        }
        assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery);
        world.spec.recovery.mode = RecoveryMode::Standard;
        assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
        assert_eq!(world.status.exemption, None);
    }
}
