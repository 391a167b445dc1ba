//! C025 to C032, C113 to C115: renewals and their counter.

use std::time::Duration;

use boundkey::join::{JoinKind, ProblemType};

use super::{EXPIRY, by_own_key, harmless, joined, kind, locking, stranger};

#[test]
fn c025_c113_a_renewal_raises_the_generation_and_nothing_else() {
    let (mut world, mut device) = joined(1);
    let before = device.memory.step.expect("joined");
    let answer = device.join(&mut world).expect("renewed");
    assert_eq!(answer.kind, JoinKind::Renewal);
    assert_eq!((answer.step.instance, answer.step.recovery, answer.step.generation), (before.instance, before.recovery, 2));
    assert_eq!((world.status.recovery_count, world.status.step()), (1, Some(answer.step)));
    assert_eq!(world.grants.last().expect("granted").step, answer.step, "as the certificate says");
}

#[test]
fn c026_another_key_is_refused_and_locks_nobody() {
    let (mut world, _) = joined(1);
    assert_eq!(by_own_key(&mut stranger(), &mut world).kind, ProblemType::KeyNotProven);
}

#[test]
fn c028_a_certificate_that_holds_does_not_hide_an_old_join_state() {
    let (mut world, device) = joined(3);
    let mut thief = device.copy();
    thief.identity = None;
    assert_eq!(kind(thief.join(&mut world)), JoinKind::Recovery);
    let mut device = device;
    assert!(device.memory.certificate.as_ref().is_some_and(|c| c.not_after > world.now));
    assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
}

#[test]
fn c029_ten_renewals() {
    let (mut world, mut device) = joined(1);
    let instance = world.status.bound_bot_instance_id;
    for generation in 2..=11 {
        world.later(Duration::from_secs(5));
        assert_eq!(device.join(&mut world).expect("renewed").step.generation, generation);
    }
    assert_eq!((world.status.bound_bot_instance_id, world.status.recovery_count), (instance, 1));
}

#[test]
fn c032_c038_without_a_join_state_a_device_is_refused_and_not_locked() {
    for expired in [false, true] {
        let (mut world, mut device) = joined(2);
        if expired {
            world.later(EXPIRY);
        }
        device.memory.join_state = None;
        assert_eq!(harmless(&mut device, &mut world), ProblemType::JoinStateRequired);
    }
}

/// An old certificate beside the current join state: nobody but a second holder has both.
#[test]
fn c114_c115_a_certificate_of_an_earlier_generation_locks() {
    let (mut world, mut device) = joined(2);
    let old = (device.identity.clone(), device.memory.certificate.clone());
    for _ in 0..10 {
        world.later(Duration::from_secs(5));
        device.join(&mut world).expect("renewed");
    }
    let mut thief = device.copy();
    (thief.identity, thief.memory.certificate) = old;
    assert_eq!(locking(&mut thief, &mut world), ProblemType::JoinStateMismatch);
    assert_eq!(
        world.locks.last().map(|lock| &*lock.message),
        Some("generation mismatch: certificate of generation 1, expected 11")
    );
    assert_eq!(harmless(&mut device, &mut world), ProblemType::Locked, "the newest certificate does not help either");
    assert_eq!(harmless(&mut thief, &mut world), ProblemType::Locked, "and there is still one lock");
}
