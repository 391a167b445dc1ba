//! Model check: the real client steps, the real state file, and the real challenge, verification, decision and effects under every order of
//! troubles within bounds.
//!
//! Each test bounds how often each kind of trouble comes, and explores every order in which it may. `BOUNDKEY_MODEL_DEPTH=n`
//! adds `n`, which may be 0, to the steps of the token in each of them, and copies join in every way. The rules that hold in every state are in `model/rules.rs`; what they come
//! to is in `docs/model.md`.
#![forbid(unsafe_code)]

#[path = "mod.rs"]
mod system;

use boundkey::join::RecoveryMode;
use system::explore::{Explored, Explorer};
use system::faults::Fault;
use system::holder::{Client, Manner};
use system::state::{Bounds, Left};

const NOTHING: Left = Left {
    steps: 3,
    time: 0,
    ticks: 0,
    deaths: 0,
    cuts: 0,
    rotations: 0,
    restores: 0,
    exemptions: 0,
    codes: 0,
    keyed: 0,
    cancels: 0,
    locks: 0,
    unlocks: 0,
    resets: 0,
    limits: 0,
    modes: 0,
    copies: 0,
};
/// A copy, and an operator who exempts.
const EXEMPTED: Left = Left { copies: 1, exemptions: 1, ..NOTHING };
/// A copy, and an operator with a recovery code.
const CODED: Left = Left { copies: 1, codes: 1, keyed: 1, ..NOTHING };

/// Every way in which a copy joins.
const ALL: [Manner; 4] = [Manner::Honest, Manner::NewAttempt, Manner::NoCertificate, Manner::NoJoinState];

fn bounds(left: Left) -> Bounds {
    let deeper = std::env::var("BOUNDKEY_MODEL_DEPTH").ok();
    let more = deeper.as_ref().map_or(0, |more| more.parse().expect("BOUNDKEY_MODEL_DEPTH: a number"));
    Bounds {
        left: Left { steps: left.steps + more, ..left },
        limit: 9,
        mode: RecoveryMode::Standard,
        clock_back: false,
        late: false,
        late_copy: false,
        manners: if deeper.is_some() { &ALL } else { &ALL[..2] },
        pace: false,
        fault: None,
        client: Client::Real,
        states: 20_000_000,
    }
}

/// The same, where a request may arrive after one that was sent later.
fn late(left: Left) -> Bounds {
    Bounds { late: true, ..bounds(left) }
}

/// The same, where copies join in every way.
fn all_manners(bounds: Bounds) -> Bounds {
    Bounds { manners: &ALL, ..bounds }
}

/// The same, where copies join as the device would, and in no other way.
fn plain(bounds: Bounds) -> Bounds {
    if bounds.manners.len() == ALL.len() { bounds } else { Bounds { manners: &ALL[..1], ..bounds } }
}

/// Explores all that is within the bounds, which must break no rule.
fn holds(what: &str, bounds: Bounds) {
    let found = explore(what, bounds);
    assert!(found.violation.is_none(), "{what}: {:#?}", found.violation);
    assert!(found.exhausted, "{what}: not all was explored");
}

fn explore(what: &str, bounds: Bounds) -> Explored {
    let found = Explorer::new(bounds).explore();
    let Explored { states, transitions, depth, runs, .. } = found;
    println!("{what}: {states} states, {transitions} transitions, depth {depth}, {runs} runs of the real code");
    found
}

/// The shortest way to break a rule, where code is broken on purpose.
fn noticed(what: &str, bounds: Bounds, rule: &str) {
    let found = explore(what, bounds);
    let violation = found.violation.unwrap_or_else(|| panic!("{what}: not noticed in {} states", found.states));
    assert!(violation.rule.contains(rule), "{what}: {violation:#?}");
    println!("{what}: noticed after {} moves", violation.path.len());
}

/// Under `fault`, the same.
fn fault(fault: Fault, bounds: Bounds, rule: &str) {
    noticed(&format!("{fault:?}"), Bounds { fault: Some(fault), ..bounds }, rule);
}

#[test]
fn a_device_alone_always_gets_back_in() {
    holds("alone", bounds(Left { time: 2, deaths: 1, cuts: 1, rotations: 1, ..NOTHING }));
    holds("alone, late messages", late(Left { time: 2, ticks: 1, rotations: 1, ..NOTHING }));
}

#[test]
fn a_device_alone_survives_two_deaths() {
    holds("two deaths", bounds(Left { steps: 2, deaths: 2, cuts: 2, rotations: 1, ..NOTHING }));
}

#[test]
fn a_device_alone_follows_a_restored_server() {
    holds("restored", late(Left { time: 1, rotations: 1, restores: 1, ..NOTHING }));
    holds("restored, dying", bounds(Left { deaths: 1, cuts: 1, restores: 1, ..NOTHING }));
    let behind = late(Left { rotations: 1, restores: 1, ..NOTHING });
    holds("restored, clock behind", Bounds { clock_back: true, ..behind });
}

#[test]
fn a_copy_is_caught_whatever_its_speed() {
    holds("copy", all_manners(bounds(Left { time: 1, copies: 1, ..NOTHING })));
    holds("copy, late messages", plain(late(Left { copies: 1, ..NOTHING })));
    holds("copy, certificates run out", plain(bounds(Left { time: 2, ticks: 1, copies: 1, ..NOTHING })));
    holds("copy, rotation", bounds(Left { rotations: 1, copies: 1, ..NOTHING }));
    holds("copy, late too", Bounds { late_copy: true, ..plain(bounds(Left { copies: 1, ..NOTHING })) });
}

#[test]
fn a_copy_is_caught_by_a_restored_server() {
    let restored = bounds(Left { restores: 1, copies: 1, ..NOTHING });
    holds("copy, restored", restored);
    holds("copy, restored, clock behind", Bounds { clock_back: true, ..plain(restored) });
}

#[test]
fn the_pace_starves_no_device_and_hides_no_copy() {
    let paced = |left| Bounds { pace: true, ..bounds(left) };
    holds("pace", paced(Left { steps: 5, time: 1, ticks: 3, ..NOTHING }));
    holds("pace, copy", plain(paced(Left { steps: 4, ticks: 1, copies: 1, ..NOTHING })));
}

#[test]
fn operators_change_none_of_it() {
    holds("operator", Bounds { limit: 2, ..bounds(Left { time: 2, exemptions: 1, locks: 1, ..NOTHING }) });
    holds("operator, copy", Bounds { limit: 2, ..plain(bounds(Left { locks: 1, ..EXEMPTED })) });
}

/// In every order of an operator's commands, whatever holder comes next: never is the copy in and the device out without a lock.
#[test]
fn no_order_of_commands_lets_the_copy_in_and_the_device_out() {
    holds("exempted", bounds(EXEMPTED));
    holds("exempted, late messages", plain(late(EXEMPTED)));
    holds("exempted, rotated, unlocked", plain(bounds(Left { rotations: 1, unlocks: 1, steps: 2, ..EXEMPTED })));
    holds("exempted, cancelled, unlocked", plain(bounds(Left { cancels: 1, unlocks: 1, ..EXEMPTED })));
    holds("reset", plain(bounds(Left { resets: 1, unlocks: 1, copies: 1, ..NOTHING })));
}

#[test]
fn a_recovery_code_lets_in_the_device_that_made_it_alone() {
    holds("code, alone", late(Left { copies: 0, time: 2, ..CODED }));
    holds("code", plain(bounds(CODED)));
    holds("code, exempted", plain(bounds(Left { exemptions: 1, ..CODED })));
    holds("code, unlocked", plain(bounds(Left { unlocks: 1, cancels: 1, ..CODED })));
}

#[test]
fn a_limit_may_change_at_any_time() {
    holds("limits", Bounds { limit: 1, ..bounds(Left { time: 2, limits: 2, ..NOTHING }) });
    holds("limits, copy", Bounds { limit: 2, ..plain(bounds(Left { limits: 1, copies: 1, ..NOTHING })) });
}

#[test]
fn without_a_limit_the_rules_are_the_same() {
    let relaxed = |left| Bounds { limit: 0, mode: RecoveryMode::Relaxed, ..bounds(left) };
    holds("relaxed", relaxed(Left { time: 2, deaths: 1, cuts: 1, rotations: 1, steps: 2, ..NOTHING }));
    holds("relaxed, copy", plain(relaxed(Left { time: 1, copies: 1, ..NOTHING })));
}

#[test]
fn in_mode_insecure_holders_go_on_beside_each_other() {
    let insecure = |left| Bounds { limit: 0, mode: RecoveryMode::Insecure, ..bounds(left) };
    holds("insecure", insecure(Left { time: 2, deaths: 1, cuts: 1, rotations: 1, steps: 2, ..NOTHING }));
    holds("insecure, late messages", Bounds { late: true, ..insecure(Left { time: 1, ..NOTHING }) });
    holds("insecure, two holders", insecure(Left { time: 1, copies: 1, ..NOTHING }));
    holds("insecure, two copies at once", plain(insecure(Left { copies: 2, ..NOTHING })));
    holds("insecure, restored", insecure(Left { time: 1, restores: 1, ..NOTHING }));
}

#[test]
fn modes_change_back_and_forth() {
    holds("modes", bounds(Left { time: 2, modes: 2, ..NOTHING }));
    let copied = plain(bounds(Left { modes: 1, copies: 1, ..NOTHING }));
    holds("modes, copy", copied);
    holds("back from insecure, copy", Bounds { mode: RecoveryMode::Insecure, ..copied });
}

#[test]
fn several_restores_and_several_copies() {
    holds("two restores", bounds(Left { time: 1, restores: 2, ..NOTHING }));
    holds("two copies at once", plain(bounds(Left { copies: 2, ..NOTHING })));
}

/// The rules are worth something: each break is noticed.
#[test]
fn what_is_broken_is_noticed() {
    let (plain, dying) = (bounds(NOTHING), bounds(Left { deaths: 1, cuts: 1, ..NOTHING }));
    let restored = bounds(Left { copies: 1, restores: 1, steps: 4, ..NOTHING });
    let alone = "a device alone";
    fault(Fault::AttemptsForgotten, plain, alone);
    noticed("an attempt is not written down", Bounds { client: Client::ForgetsAttempt, ..plain }, alone);
    noticed("syncs that do nothing", Bounds { client: Client::LyingMedium, ..dying }, alone);
    fault(Fault::LocksIgnored, bounds(Left { locks: 1, ..NOTHING }), "under a lock");
    fault(Fault::LimitIgnored, Bounds { limit: 1, ..bounds(Left { time: 2, ..NOTHING }) }, "beyond the limit");
    fault(Fault::AnyNewerFollowed, restored, "two holders go on");
    fault(Fault::CountersAlone, restored, "two holders go on");
}

/// Each rule that catches a copy whatever its speed, and excuses a device whose messages are late, left out.
#[test]
fn every_rule_about_late_requests_is_needed() {
    let copy = Left { copies: 1, ..NOTHING };
    fault(Fault::StaleAnsweredFirst, bounds(copy), "two holders, and no lock");
    fault(Fault::NoStepTime, late(NOTHING), "a device alone is locked");
    fault(Fault::NoStepTag, late(NOTHING), "a device alone is locked");
    fault(Fault::TagWithoutKey, bounds(Left { rotations: 1, ..copy }), "two holders, and no lock");
    fault(Fault::NoLine, plain(bounds(Left { rotations: 1, ..EXEMPTED })), "a holder in step is locked");
    fault(Fault::NoEpoch, late(Left { restores: 1, ..NOTHING }), "a device alone");
}

/// Each rule about exemptions, codes and the pace left out.
#[test]
fn every_rule_about_exemptions_and_pace_is_needed() {
    fault(Fault::NoTrustedFrom, plain(bounds(CODED)), "a stranger locks");
    fault(Fault::WaiverOutlivesGrant, bounds(EXEMPTED), "two holders go on");
    let old_key = Bounds { client: Client::OldKeyForCode, ..plain(bounds(Left { rotations: 1, ..CODED })) };
    noticed("a code of an older key", old_key, "by a recovery code that it never had");
    // A new key is for a token whose key two may hold. The join state alone tells them apart, so that no rule here needs it.
    holds("NoRotationOrdered", Bounds { fault: Some(Fault::NoRotationOrdered), ..plain(late(EXEMPTED)) });
    let paced = |left| Bounds { pace: true, ..bounds(left) };
    fault(Fault::PaceFirst, paced(Left { steps: 4, copies: 1, ..NOTHING }), "two holders, and no lock");
    fault(Fault::ReplaysPaced, paced(NOTHING), "a device alone is refused: PaceExceeded");
}
