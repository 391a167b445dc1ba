//! Copies, whatever their speed: a stale challenge withholds the grant and never the detection, and excuses late messages of an honest
//! device.

use std::time::Duration;

use boundkey::join::server::decision::pace;
use boundkey::join::{JoinKind, ProblemType, RecoveryMode};

use super::world::{Device, TTL};
use super::{joined, kind, refusal};

/// A copy that makes a step between every challenge of the device and its request was never caught: each request of the device was
/// answered with `challenge-stale`, and nothing else was looked at.
#[test]
fn a_copy_that_is_faster_than_the_device_is_caught() {
    for rotates in [false, true] {
        let (mut world, mut device) = joined(5);
        let mut copy = device.copy();
        if rotates {
            world.later(Duration::from_secs(60));
            world.spec.rotate_after = Some(world.now);
        }
        // The device may miss once, as its challenge may be older than the first step of the copy. Its next try locks.
        let sent = device.send(&world);
        copy.join(&mut world).expect("renewed");
        assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
        assert!(!world.locked());
        let sent = device.send(&world);
        copy.join(&mut world).expect("renewed");
        assert_eq!(world.join(&sent.jws).expect_err("refused").kind, ProblemType::JoinStateMismatch, "rotates: {rotates}");
        assert!(world.locked());
        assert_eq!(refusal(copy.join(&mut world)), ProblemType::Locked);
    }
}

/// The pace comes after the join state: a copy that has used it up is caught all the same, and starves nobody.
#[test]
fn a_copy_that_spends_the_pace_is_caught() {
    let (mut world, mut device) = joined(5);
    let mut copy = device.copy();
    world.later(TTL / 2);
    for _ in 0..pace::BURST {
        copy.join(&mut world).expect("renewed");
    }
    let problem = copy.join(&mut world).expect_err("too fast");
    assert_eq!((problem.kind, problem.retry_after), (ProblemType::PaceExceeded, Some(5)));
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
}

#[test]
fn a_token_has_a_burst_of_steps_and_then_one_in_a_while() {
    let (mut world, mut device) = joined(5);
    for _ in 1..pace::BURST {
        device.join(&mut world).expect("within the burst");
    }
    for _ in 0..3 {
        let before = world.status.clone();
        assert_eq!(refusal(device.join(&mut world)), ProblemType::PaceExceeded);
        assert_eq!(world.status, before, "a refusal changes nothing");
        world.later(Duration::from_millis(pace::INTERVAL_MS));
        assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
    }
}

/// Replays are no steps: a device whose answers are lost again and again gets its answer.
#[test]
fn replays_spend_no_steps() {
    let (mut world, mut device) = joined(5);
    for _ in 2..pace::BURST {
        device.lose_answer(&mut world);
        assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
    }
    device.join(&mut world).expect("the burst is not spent by replays");
}

/// The network delivers a request twice, the second time after the device has gone on.
#[test]
fn a_late_repetition_of_the_request_locks_nobody() {
    let (mut world, mut device) = joined(5);
    let late = device.send(&world);
    let answer = world.join(&late.jws).expect("granted");
    device.receive(&late, answer);
    device.join(&mut world).expect("renewed");
    assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
    assert!(!world.locked());
}

/// The answer is lost, the device asks again shortly before the certificate ends, and the network delivers this second request twice,
/// the second time after the end. It made a step, of which the device knew nothing: a replay leaves the revision as it is.
#[test]
fn a_repetition_across_the_end_of_the_certificate_makes_no_step() {
    for insecure in [false, true] {
        let (mut world, mut device) = joined(5);
        if insecure {
            world.spec.recovery.mode = RecoveryMode::Insecure;
        }
        device.lose_answer(&mut world);
        world.later(TTL.saturating_sub(Duration::from_secs(3)));
        let late = device.send(&world);
        let answer = world.join(&late.jws).expect("the last answer once more");
        assert_eq!(answer.kind, JoinKind::Replay);
        device.receive(&late, answer);
        world.later(Duration::from_secs(5));
        let before = world.status.clone();
        assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
        assert_eq!(world.status, before);
        assert_eq!(kind(device.join(&mut world)), JoinKind::Recovery, "the certificate has run out");
        assert!(!world.locked());
    }
}

/// The answer is lost, the device asks again, and this second request arrives after a third one and the device's next step.
#[test]
fn a_late_retry_locks_nobody() {
    for rotates in [false, true] {
        let (mut world, mut device) = joined(5);
        if rotates {
            world.later(Duration::from_secs(60));
            world.spec.rotate_after = Some(world.now);
        }
        device.lose_answer(&mut world);
        let late = device.send(&world);
        assert_eq!(kind(device.join(&mut world)), JoinKind::Replay);
        device.join(&mut world).expect("renewed");
        assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeStale, "rotates: {rotates}");
        assert!(!world.locked());
    }
}

/// The request that an exemption let in is repeated by the network.
#[test]
fn a_late_repetition_of_the_exempted_join_locks_nobody() {
    let (mut world, mut device) = joined(5);
    let mut thief = device.copy();
    thief.join(&mut world).expect("renewed");
    assert_eq!(refusal(device.join(&mut world)), ProblemType::JoinStateMismatch);
    world.later(Duration::from_secs(60));
    world.exempt(1, None);
    let late = device.send(&world);
    let answer = world.join(&late.jws).expect("let in");
    device.receive(&late, answer);
    device.join(&mut world).expect("renewed");
    assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeStale);
    assert!(!world.locked());
}

/// A request that was under way when the server was restored is judged by nobody: its challenge is of another epoch.
#[test]
fn a_request_from_before_a_restore_is_not_taken() {
    let (world, mut device) = joined(5);
    let backup = world.clone();
    let late = device.send(&world);
    let mut world = world.restored(&backup);
    assert_eq!(world.join(&late.jws).expect_err("refused").kind, ProblemType::ChallengeExpired);
    assert_eq!(kind(device.join(&mut world)), JoinKind::Renewal);
}

/// Documents that operators wrote by hand: counters and an instance, and no key.
#[test]
fn a_token_without_a_bound_key_takes_its_first_join() {
    let (mut world, _) = joined(5);
    world.status.bound_public_key = None;
    world.status.registration_secret = Some("s".into());
    world.revision += 1;
    assert_eq!(kind(Device::new(70).join(&mut world)), JoinKind::First);
    assert_eq!(world.status.recovery_count, 2, "the count that the document gave goes on");
}
