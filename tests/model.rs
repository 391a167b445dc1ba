//! Model check: the real client steps, the real state file and the real decision under every order of troubles within bounds.
//!
//! Each test bounds how often each kind of trouble comes, and explores every order in which it may. `BOUNDKEY_MODEL_DEPTH=n`
//! adds `n` to the steps of the token in each of them. The rules that hold in every state are in `model/rules.rs`; what they come
//! to is in `docs/model.md`.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "model/mod.rs"]
mod system;

use boundkey::join::RecoveryMode;
use system::explore::{Explored, Explorer};
use system::holder::Client;
use system::server::Decision;
use system::state::{Bounds, Left};

const NOTHING: Left = Left {
    steps: 3,
    time: 0,
    deaths: 0,
    cuts: 0,
    rotations: 0,
    restores: 0,
    exemptions: 0,
    locks: 0,
    limits: 0,
    modes: 0,
    copies: 0,
};

fn bounds(left: Left) -> Bounds {
    let deeper = std::env::var("BOUNDKEY_MODEL_DEPTH").map_or(0, |more| more.parse().expect("BOUNDKEY_MODEL_DEPTH: a number"));
    let left = Left { steps: left.steps + deeper, ..left };
    Bounds {
        left,
        limit: 9,
        mode: RecoveryMode::Standard,
        clock_back: false,
        decision: Decision::Real,
        client: Client::Real,
        states: 20_000_000,
    }
}

/// Explores all that is within the bounds, which must break no rule; returns the number of states.
fn holds(what: &str, bounds: Bounds) -> usize {
    let found = explore(what, bounds);
    assert!(found.violation.is_none(), "{what}: {:#?}", found.violation);
    assert!(found.exhausted, "{what}: not all was explored");
    found.states
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

#[test]
fn a_device_alone_always_gets_back_in() {
    holds("alone", bounds(Left { steps: 3, time: 2, deaths: 1, cuts: 1, rotations: 1, ..NOTHING }));
}

#[test]
fn a_device_alone_survives_two_deaths() {
    holds("two deaths", bounds(Left { steps: 2, deaths: 2, cuts: 2, rotations: 1, ..NOTHING }));
}

#[test]
fn a_device_alone_follows_a_restored_server() {
    holds("restored", bounds(Left { steps: 3, time: 2, rotations: 1, restores: 1, ..NOTHING }));
    holds("restored, dying", bounds(Left { steps: 3, deaths: 1, cuts: 1, restores: 1, ..NOTHING }));
}

#[test]
fn a_thief_is_caught() {
    holds("thief", bounds(Left { steps: 3, time: 2, copies: 1, ..NOTHING }));
    holds("thief, rotation", bounds(Left { rotations: 1, copies: 1, ..NOTHING }));
}

#[test]
fn a_thief_is_caught_by_a_restored_server() {
    holds("thief, restored", bounds(Left { steps: 3, restores: 1, copies: 1, ..NOTHING }));
    let behind = bounds(Left { steps: 3, restores: 1, copies: 1, ..NOTHING });
    holds("thief, restored, clock behind", Bounds { clock_back: true, ..behind });
}

#[test]
fn operators_change_none_of_it() {
    let left = Left { time: 2, exemptions: 1, locks: 1, copies: 1, ..NOTHING };
    holds("operator, thief", Bounds { limit: 2, ..bounds(Left { time: 0, ..left }) });
    holds("operator", Bounds { limit: 2, ..bounds(Left { copies: 0, rotations: 1, ..left }) });
}

#[test]
fn a_limit_may_change_at_any_time() {
    holds("limits", Bounds { limit: 1, ..bounds(Left { time: 2, limits: 2, ..NOTHING }) });
    holds("limits, thief", Bounds { limit: 2, ..bounds(Left { limits: 1, copies: 1, ..NOTHING }) });
}

#[test]
fn without_a_limit_the_rules_are_the_same() {
    let relaxed = |left| Bounds { limit: 0, mode: RecoveryMode::Relaxed, ..bounds(left) };
    holds("relaxed", relaxed(Left { time: 2, deaths: 1, cuts: 1, rotations: 1, steps: 2, ..NOTHING }));
    holds("relaxed, thief", relaxed(Left { time: 2, copies: 1, ..NOTHING }));
}

#[test]
fn in_mode_insecure_holders_go_on_beside_each_other() {
    let insecure = |left| Bounds { limit: 0, mode: RecoveryMode::Insecure, ..bounds(left) };
    holds("insecure", insecure(Left { time: 2, deaths: 1, cuts: 1, rotations: 1, steps: 2, ..NOTHING }));
    holds("insecure, two holders", insecure(Left { time: 1, copies: 1, ..NOTHING }));
    holds("insecure, restored", insecure(Left { time: 1, restores: 1, ..NOTHING }));
}

#[test]
fn modes_change_back_and_forth() {
    holds("modes", bounds(Left { time: 2, modes: 2, ..NOTHING }));
    holds("modes, thief", bounds(Left { modes: 1, copies: 1, ..NOTHING }));
    let insecure = bounds(Left { modes: 1, copies: 1, ..NOTHING });
    holds("back from insecure, thief", Bounds { mode: RecoveryMode::Insecure, ..insecure });
}

#[test]
fn several_restores_and_several_copies() {
    holds("two restores", bounds(Left { time: 1, restores: 2, ..NOTHING }));
    holds("two copies", bounds(Left { copies: 2, ..NOTHING }));
}

/// The rules are worth something: each break is noticed.
#[test]
fn what_is_broken_is_noticed() {
    let (plain, dying) = (bounds(NOTHING), bounds(Left { deaths: 1, cuts: 1, ..NOTHING }));
    let restored = bounds(Left { steps: 4, copies: 1, restores: 1, ..NOTHING });
    let alone = "a device alone";
    noticed("no attempt is known again", Bounds { decision: Decision::ForgetsAttempts, ..plain }, alone);
    noticed("an attempt is not written down", Bounds { client: Client::ForgetsAttempt, ..plain }, alone);
    noticed("syncs that do nothing", Bounds { client: Client::LyingMedium, ..dying }, alone);
    let locked = bounds(Left { locks: 1, ..NOTHING });
    noticed("locks are not looked at", Bounds { decision: Decision::IgnoresLocks, ..locked }, "under a lock");
    let limited = Bounds { limit: 1, ..bounds(Left { time: 2, ..NOTHING }) };
    noticed("the limit is not looked at", Bounds { decision: Decision::IgnoresLimit, ..limited }, "beyond the limit");
    let two = "two holders go on";
    noticed("any newer state is followed", Bounds { decision: Decision::FollowsAnyNewer, ..restored }, two);
    noticed("counters alone are compared", Bounds { decision: Decision::ComparesCountersOnly, ..restored }, two);
}
