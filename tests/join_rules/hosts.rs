//! Mode `insecure`: hosts that share a key.

use std::time::Duration;

use boundkey::join::{JoinKind, ProblemType, RecoveryMode};

use super::world::{Device, TTL, World};
use super::{joined, kind, refusal};

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
    assert!(
        world.locks[0].message.contains("generation mismatch: certificate of generation 1, expected 2"),
        "{}",
        world.locks[0].message
    );
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

/// One host that joins without end leaves the challenges of the others good: each host's is about its own instance.
#[test]
fn a_fast_host_does_not_starve_the_others() {
    let (mut world, [mut fast, mut slow, mut other]) = hosts();
    let sent = slow.send(&world);
    let recovering = other.host(40).send(&world);
    for _ in 0..30 {
        fast.join(&mut world).expect("renewed");
    }
    let mut noisy = fast.host(41);
    noisy.join(&mut world).expect("recovered");
    assert_eq!(world.join(&sent.jws).expect("granted").kind, JoinKind::Renewal);
    assert_eq!(world.join(&recovering.jws).expect("granted").kind, JoinKind::Recovery);
    assert_eq!(kind(other.join(&mut world)), JoinKind::Renewal);
}

/// A copy of one host's storage renews so fast that the challenge of that host is always stale: the host's next try tells.
#[test]
fn a_fast_copy_of_a_host_is_caught() {
    let (mut world, [mut host, ..]) = hosts();
    let mut copy = host.copy();
    assert_eq!(kind(copy.join(&mut world)), JoinKind::Renewal);
    let sent = host.send(&world);
    assert_eq!(kind(copy.join(&mut world)), JoinKind::Renewal);
    assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::JoinStateMismatch);
    assert!(world.locked());
}

/// A request of a host that is repeated late by the network locks nobody.
#[test]
fn a_late_repetition_of_a_host_locks_nobody() {
    let (mut world, [mut host, ..]) = hosts();
    let late = host.send(&world);
    let answer = world.join(&late.jws).expect("granted");
    host.receive(&late, answer);
    host.join(&mut world).expect("renewed");
    assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
    assert!(!world.locked());
}

/// The bound instance is that of the host that recovered last. A lock on it is no matter of hosts that come without a certificate.
#[test]
fn a_lock_on_one_instance_stops_that_host_alone() {
    let (mut world, [first, mut second, mut third]) = hosts();
    let bound = world.status.bound_bot_instance_id;
    assert_eq!(third.memory.step.map(|step| step.instance), bound);
    world.lock_instance(bound.expect("joined"), "maintenance");
    assert_eq!(refusal(third.join(&mut world)), ProblemType::Locked);
    assert_eq!(kind(second.join(&mut world)), JoinKind::Renewal);
    assert_eq!(kind(first.host(40).join(&mut world)), JoinKind::Recovery);
}
