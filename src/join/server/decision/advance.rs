//! Steps 4 and 5: what the join costs, rotation, and what the token becomes.

use boundkey_hal::PublicKey;

use super::key::is_bound;
use super::prior::PriorState;
use super::transition::Transition;
use super::{ExemptionUse, Fresh, Grant, Refusal};
use crate::join::identity::InstanceKind;
use crate::join::server::record::{LastStep, MAX_RETIRED, Status};
use crate::join::server::request::Verified;
use crate::join::server::view::TokenView;
use crate::join::{JoinKind, Problem, ProblemType, SshKey, Step, Thumbprint};
use crate::time::Timestamp;

/// Steps 4 and 5: the limit, rotation, and what the token becomes.
pub(super) fn advance(
    token: &TokenView<'_>,
    request: &Verified,
    transition: Transition,
    by_code: bool,
    fresh: Fresh,
) -> Result<Grant, Refusal> {
    let mut status = token.status.clone();
    if let Some(prior) = transition.prior() {
        if prior.rolled_forward.is_some() {
            status.recovery_count = status.recovery_count.max(prior.step.recovery);
        }
        bind(&mut status, &request.key);
    }
    let (kind, prior, waived) = match transition {
        Transition::Replay { prior, last } => return Ok(replay(&prior, &last, token, request, status, fresh.now)),
        Transition::First => (JoinKind::First, None, false),
        Transition::Renewal(prior) => (JoinKind::Renewal, Some(prior), false),
        Transition::Recovery { prior, waived } => (JoinKind::Recovery, Some(prior), waived),
    };
    let mut paid = false;
    let step = match &prior {
        Some(prior) if kind == JoinKind::Renewal => Step { generation: prior.step.generation.saturating_add(1), ..prior.step },
        _ => {
            paid = take_recovery(token, &mut status, waived, fresh.now)?;
            Step { recovery: status.recovery_count, generation: 1, instance: fresh.instance }
        }
    };
    let exemption = use_exemption(token, &mut status, paid, by_code, fresh.now);
    let (key, rotated_from) = rotate(token.status, &mut status, request, kind, fresh.now)?;
    status.registration_secret = None;
    status.bound_public_key = Some(SshKey(key.clone()));
    let issued_at_ms = fresh.now.millis().max(prior.as_ref().map_or(0, |prior| prior.issued_at_ms.saturating_add(1)));
    if waived || by_code {
        status.line_ms = Some(issued_at_ms);
    }
    if by_code {
        status.trusted_from_ms = Some(issued_at_ms);
    }
    let of_other_instance = kind == JoinKind::Renewal && prior.as_ref().is_some_and(|prior| prior.of_other_instance);
    if !of_other_instance {
        let instance = Some(step.instance);
        (status.bound_bot_instance_id, status.bound_host_id) = match token.kind {
            InstanceKind::Bot => (instance, None),
            InstanceKind::Host => (None, instance),
        };
        status.last_step = Some(LastStep {
            generation: step.generation,
            issued_at_ms,
            attempt: request.attempt,
            from: request.presented.as_ref().map(|presented| presented.digest.clone()),
            not_after: fresh.not_after,
        });
    }
    Ok(Grant {
        kind,
        step,
        key,
        issued_at_ms,
        attempt: request.attempt,
        not_after: fresh.not_after,
        rotated_from,
        rolled_forward: prior.and_then(|prior| prior.rolled_forward),
        exemption,
        by_code,
        status,
    })
}

/// The last step's answer once more. Nothing about the token changes, but that a waiver ends.
fn replay(
    prior: &PriorState,
    last: &LastStep,
    token: &TokenView<'_>,
    request: &Verified,
    mut status: Status,
    now: Timestamp,
) -> Grant {
    let exemption = use_exemption(token, &mut status, false, false, now);
    Grant {
        kind: JoinKind::Replay,
        step: prior.step,
        key: request.key.clone(),
        issued_at_ms: last.issued_at_ms,
        attempt: last.attempt,
        not_after: last.not_after,
        rotated_from: None,
        rolled_forward: None,
        exemption,
        by_code: false,
        status,
    }
}

/// Step 4. Counts one recovery. Returns whether the exemption pays for it: where it stands in for the join state, or where the limit is
/// reached.
fn take_recovery(token: &TokenView<'_>, status: &mut Status, waived: bool, now: Timestamp) -> Result<bool, Refusal> {
    let within = status.recoveries(token.spec).remaining().is_none_or(|left| left > 0);
    let exempt = token.exemption(now).is_some_and(|exemption| exemption.recoveries > 0);
    if !within && !exempt {
        let count = status.recovery_count;
        let why = format!("no recoveries left: {count} used of {} allowed", token.spec.recovery.limit);
        return Err(Problem::new(ProblemType::NoRecoveriesLeft, why).into());
    }
    status.recovery_count = status.recovery_count.saturating_add(1);
    status.last_recovered_at = Some(now);
    Ok(exempt && (waived || !within))
}

/// What is left of the exemption after a grant: its waiver ends with the first one, and so does all of it where that came by its code.
fn use_exemption(token: &TokenView<'_>, status: &mut Status, paid: bool, by_code: bool, now: Timestamp) -> Option<ExemptionUse> {
    let before = token.exemption(now)?;
    let mut left = before.clone();
    left.waive_join_state = false;
    left.recoveries = left.recoveries.saturating_sub(u32::from(paid));
    let ended = by_code || left.recoveries == 0;
    let used = (left != *before || ended).then_some(ExemptionUse { paid, ended });
    status.exemption = (!ended).then_some(left);
    used
}

/// Step 5. The key from now on, and the one it replaces.
fn rotate(
    before: &Status,
    status: &mut Status,
    request: &Verified,
    kind: JoinKind,
    now: Timestamp,
) -> Result<(PublicKey, Option<Thumbprint>), Refusal> {
    if kind == JoinKind::First || !request.challenge.rotate {
        return Ok((request.key.clone(), None));
    }
    let new = request.new_key.as_ref().ok_or(ProblemType::RotationRequired)?;
    let print = Thumbprint::of(new);
    if *new == request.key || is_bound(before, new) || status.retired_keys.contains(&print) {
        return Err(ProblemType::KeyReused.into());
    }
    bind(status, new);
    status.last_rotated_at = Some(now);
    Ok((new.clone(), Some(Thumbprint::of(&request.key))))
}

/// Binds `key`. The key bound before, where it is another, is retired.
fn bind(status: &mut Status, key: &PublicKey) {
    if is_bound(status, key) {
        return;
    }
    if let Some(before) = status.bound_public_key.replace(SshKey(key.clone())) {
        status.retired_keys.insert(0, Thumbprint::of(&before.0));
    }
    let print = Thumbprint::of(key);
    status.retired_keys.retain(|other| *other != print);
    status.retired_keys.truncate(MAX_RETIRED);
}
