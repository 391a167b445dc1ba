//! Steps 4 and 5: what the join costs, rotation, and what the token becomes.

use boundkey_hal::PublicKey;

use super::key::is_bound;
use super::prior::PriorState;
use super::transition::Transition;
use super::{ExemptionUse, Grant, Proven, Refusal, presented_digest};
use crate::identity::InstanceKind;
use crate::server::record::{LastStep, MAX_RETIRED, Status};
use crate::{JoinKind, Problem, ProblemType, SshKey, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

/// A fresh step, its cost paid.
struct NextStep {
    kind: JoinKind,
    /// The state that it starts from; `None` for the first step of the token.
    prior: Option<PriorState>,
    step: Step,
    cost: Cost,
}

/// What a fresh step takes of an exemption.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Whether an exemption or a recovery code stands in for the join state.
    join_state_waived: bool,
    /// Whether the exemption pays for the recovery.
    paid_by_exemption: bool,
}

/// Steps 4 and 5. `pace_ms` is the pace of the token after this join.
pub(super) fn advance(proven: &Proven<'_>, transition: Transition, pace_ms: Option<u64>) -> Result<Grant, Refusal> {
    let mut status = proven.token.status.clone();
    status.pace_ms = pace_ms;
    if let Some(prior) = transition.prior() {
        follow(&mut status, prior, &proven.request.key);
    }
    let next = match transition {
        Transition::First => {
            let (step, cost) = recover(proven, &mut status, false)?;
            NextStep { kind: JoinKind::First, prior: None, step, cost }
        }
        Transition::Recovery { prior, join_state_waived } => {
            let (step, cost) = recover(proven, &mut status, join_state_waived)?;
            NextStep { kind: JoinKind::Recovery, prior: Some(prior), step, cost }
        }
        Transition::Renewal(prior) => {
            let step = Step { generation: prior.step.generation.saturating_add(1), ..prior.step };
            NextStep { kind: JoinKind::Renewal, prior: Some(prior), step, cost: Cost::default() }
        }
        Transition::Replay { prior, last } => return Ok(replay(proven, status, &prior, &last)),
    };
    make_step(proven, status, next)
}

/// A restored server learns from the device where the token is, and which key is bound.
fn follow(status: &mut Status, prior: &PriorState, key: &PublicKey) {
    if prior.rolled_forward.is_some() {
        status.recovery_count = status.recovery_count.max(prior.step.recovery);
    }
    bind(status, key);
}

/// Step 5, and what the token becomes.
fn make_step(proven: &Proven<'_>, mut status: Status, next: NextStep) -> Result<Grant, Refusal> {
    let Proven { token, request, by_code, fresh } = *proven;
    let exemption = use_exemption(proven, &mut status, next.cost.paid_by_exemption, by_code);
    // The first key replaces none.
    let rotated_from = if next.prior.is_some() { rotate(proven, &mut status)? } else { None };
    let key = match &request.new_key {
        Some(new_key) if rotated_from.is_some() => new_key.clone(),
        _ => request.key.clone(),
    };
    status.bound_public_key = Some(SshKey(key.clone()));
    status.registration_secret = None;
    let issued_at_ms = issue_time(fresh.now, next.prior.as_ref());
    if next.cost.join_state_waived || by_code {
        status.line_ms = Some(issued_at_ms);
    }
    if by_code {
        status.trusted_from_ms = Some(issued_at_ms);
    }
    // A renewal of another instance than the token's leaves the token's own step as it is.
    let is_of_other_instance = next.prior.as_ref().is_some_and(|prior| prior.of_other_instance);
    if next.kind != JoinKind::Renewal || !is_of_other_instance {
        let instance = Some(next.step.instance);
        (status.bound_bot_instance_id, status.bound_host_id) = match token.kind {
            InstanceKind::Bot => (instance, None),
            InstanceKind::Host => (None, instance),
        };
        status.last_step = Some(LastStep {
            generation: next.step.generation,
            issued_at_ms,
            attempt: request.attempt,
            from: presented_digest(request),
            not_after: fresh.not_after,
        });
    }
    Ok(Grant {
        kind: next.kind,
        step: next.step,
        key,
        issued_at_ms,
        attempt: request.attempt,
        not_after: fresh.not_after,
        rotated_from,
        rolled_forward: next.prior.and_then(|prior| prior.rolled_forward),
        exemption,
        by_code,
        status,
    })
}

/// The last step's answer once more. Nothing about the token changes, but that a waiver ends.
fn replay(proven: &Proven<'_>, mut status: Status, prior: &PriorState, last: &LastStep) -> Grant {
    let exemption = use_exemption(proven, &mut status, false, false);
    Grant {
        kind: JoinKind::Replay,
        step: prior.step,
        key: proven.request.key.clone(),
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

/// The stamp of a fresh step, in milliseconds since 1970: it rises with every step, whatever the clock does.
fn issue_time(now: Timestamp, prior: Option<&PriorState>) -> u64 {
    let earliest = prior.map_or(0, |prior| prior.issued_at_ms.saturating_add(1));
    now.millis().max(earliest)
}

/// Step 4. Counts one recovery, and returns the step that it makes. The exemption pays for it where it stands in for the join state, or
/// where the limit is reached.
fn recover(proven: &Proven<'_>, status: &mut Status, join_state_waived: bool) -> Result<(Step, Cost), Refusal> {
    let Proven { token, fresh, .. } = *proven;
    let is_within_limit = status.recoveries(token.spec).remaining().is_none_or(|left| left > 0);
    let has_exemption = token.exemption(fresh.now).is_some_and(|exemption| exemption.recoveries > 0);
    if !is_within_limit && !has_exemption {
        let count = status.recovery_count;
        let why = format!("no recoveries left: {count} used of {} allowed", token.spec.recovery.limit);
        return Err(Problem::new(ProblemType::NoRecoveriesLeft, why).into());
    }
    status.recovery_count = status.recovery_count.saturating_add(1);
    status.last_recovered_at = Some(fresh.now);
    let paid_by_exemption = has_exemption && (join_state_waived || !is_within_limit);
    let step = Step { recovery: status.recovery_count, generation: 1, instance: fresh.instance };
    Ok((step, Cost { join_state_waived, paid_by_exemption }))
}

/// What is left of the exemption after a grant: its waiver ends with the first one, and so does all of it where that came by its code.
/// Returns what was used, if anything.
fn use_exemption(proven: &Proven<'_>, status: &mut Status, paid: bool, by_code: bool) -> Option<ExemptionUse> {
    let before = proven.token.exemption(proven.fresh.now)?;
    let mut left = before.clone();
    left.waive_join_state = false;
    if paid {
        left.recoveries = left.recoveries.saturating_sub(1);
    }
    let ended = by_code || left.recoveries == 0;
    let is_used = ended || left != *before;
    status.exemption = if ended { None } else { Some(left) };
    is_used.then_some(ExemptionUse { paid, ended })
}

/// Step 5. Binds the new key where the challenge asks for one, and returns the key that it replaces.
fn rotate(proven: &Proven<'_>, status: &mut Status) -> Result<Option<Thumbprint>, Refusal> {
    let Proven { token, request, fresh, .. } = *proven;
    if !request.challenge.rotate {
        return Ok(None);
    }
    let new_key = request.new_key.as_ref().ok_or(ProblemType::RotationRequired)?;
    let is_own_key = *new_key == request.key;
    let is_bound_key = is_bound(token.status, new_key);
    let was_bound = status.retired_keys.contains(&Thumbprint::of(new_key));
    if is_own_key || is_bound_key || was_bound {
        return Err(ProblemType::KeyReused.into());
    }
    bind(status, new_key);
    status.last_rotated_at = Some(fresh.now);
    Ok(Some(Thumbprint::of(&request.key)))
}

/// Binds `key`. The key bound before, where it is another, is retired.
fn bind(status: &mut Status, key: &PublicKey) {
    if is_bound(status, key) {
        return;
    }
    if let Some(before) = status.bound_public_key.replace(SshKey(key.clone())) {
        status.retired_keys.insert(0, Thumbprint::of(&before.0));
    }
    let thumbprint = Thumbprint::of(key);
    status.retired_keys.retain(|other| *other != thumbprint);
    status.retired_keys.truncate(MAX_RETIRED);
}
