//! Steps 4 and 5: what the join costs, rotation, and what the token becomes.

use boundkey_hal::PublicKey;

use super::course::{Base, Course};
use super::key::is_bound;
use super::{ExemptionUse, Fresh, Grant, Refusal, Token};
use crate::join::server::record::{Exemption, LastStep, MAX_RETIRED, Spec, Status};
use crate::join::server::request::Verified;
use crate::join::{JoinKind, Problem, ProblemType, SshKey, Step, Thumbprint};
use crate::time::Timestamp;

/// Steps 4 and 5: the limit, rotation, and what the token becomes.
pub(super) fn advance(
    token: Token<'_>,
    request: &Verified,
    base: Option<Base>,
    course: Course,
    exemption: Option<&Exemption>,
    fresh: Fresh,
) -> Result<Grant, Refusal> {
    let rolled_forward = base.as_ref().and_then(|base| base.rolled_forward);
    let mut status = token.status.clone();
    if let (Some(_), Some(base)) = (rolled_forward, &base) {
        status.recovery_count = status.recovery_count.max(base.step.recovery);
    }
    if base.is_some() {
        rebind(&mut status, &request.key);
    }
    let waived = matches!(course, Course::Recovery { waived: true });
    let kind = match (course, &base) {
        (Course::Replay(last), Some(base)) => return Ok(replay(base.step, request, &last, status)),
        (Course::Renewal, _) => JoinKind::Renewal,
        (Course::Recovery { .. }, _) => JoinKind::Recovery,
        (Course::First | Course::Replay(_), _) => JoinKind::First,
    };
    let mut used = None;
    let step = if let (Some(base), JoinKind::Renewal) = (&base, kind) {
        Step { generation: base.step.generation.saturating_add(1), ..base.step }
    } else {
        used = take_recovery(token.spec, &mut status, exemption, waived)?;
        status.last_recovered_at = Some(fresh.now);
        Step { recovery: status.recovery_count, generation: 1, instance: fresh.instance }
    };
    let (key, rotated_from) = rotate(token.status, &mut status, request, kind, fresh.now)?;
    let aside = kind == JoinKind::Renewal && base.as_ref().is_some_and(|base| base.aside);
    let issued_at_ms = fresh.now.millis().max(base.map_or(0, |base| base.issued_at_ms.saturating_add(1)));
    status.registration_secret = None;
    status.bound_public_key = Some(SshKey(key.clone()));
    if !aside {
        let instance = Some(step.instance);
        (status.bound_bot_instance_id, status.bound_host_id) = if token.for_bot { (instance, None) } else { (None, instance) };
        status.last_step = Some(LastStep {
            generation: step.generation,
            issued_at_ms,
            attempt: request.attempt,
            from: request.presented.as_ref().map(|p| p.digest.clone()),
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
        rolled_forward,
        exemption: used,
        status,
    })
}

/// The last step's answer once more: nothing about the token changes.
fn replay(step: Step, request: &Verified, last: &LastStep, status: Status) -> Grant {
    Grant {
        kind: JoinKind::Replay,
        step,
        key: request.key.clone(),
        issued_at_ms: last.issued_at_ms,
        attempt: last.attempt,
        not_after: last.not_after,
        rotated_from: None,
        rolled_forward: None,
        exemption: None,
        status,
    }
}

/// Step 4. Counts one recovery, by the exemption where there is one, else within the limit.
fn take_recovery(
    spec: &Spec,
    status: &mut Status,
    exemption: Option<&Exemption>,
    waived: bool,
) -> Result<Option<ExemptionUse>, Refusal> {
    let within = status.recoveries(spec).remaining().is_none_or(|left| left > 0);
    let exempt = exemption.filter(|e| e.recoveries > 0);
    if !within && exempt.is_none() {
        let count = status.recovery_count;
        let why = format!("no recoveries left: {count} used of {} allowed", spec.recovery.limit);
        return Err(Problem::new(ProblemType::NoRecoveriesLeft, why).into());
    }
    status.recovery_count = status.recovery_count.saturating_add(1);
    let Some(exemption) = exempt.filter(|_| waived || !within) else {
        return Ok(None);
    };
    let left = Exemption {
        recoveries: exemption.recoveries - 1,
        waive_join_state: exemption.waive_join_state && !waived,
        ..exemption.clone()
    };
    let ended = left.recoveries == 0;
    status.exemption = (!ended).then_some(left);
    Ok(Some(ExemptionUse { ended }))
}

/// Step 5. The key from now on, and the one it replaces.
fn rotate(
    before: &Status,
    status: &mut Status,
    request: &Verified,
    kind: JoinKind,
    now: Timestamp,
) -> Result<(PublicKey, Option<Thumbprint>), Refusal> {
    if kind == JoinKind::First || !request.rotate {
        return Ok((request.key.clone(), None));
    }
    let new = request.new_key.as_ref().ok_or(ProblemType::RotationRequired)?;
    let print = Thumbprint::of(new);
    if *new == request.key || is_bound(before, new) || status.retired_keys.contains(&print) {
        return Err(ProblemType::KeyReused.into());
    }
    rebind(status, new);
    status.last_rotated_at = Some(now);
    Ok((new.clone(), Some(Thumbprint::of(&request.key))))
}

/// Binds `key`. The key bound before, where it is another, is retired.
fn rebind(status: &mut Status, key: &PublicKey) {
    // The mark of the bound key stays: once a rotation retires it, its copies are strangers.
    if is_bound(status, key) {
        return;
    }
    let print = Thumbprint::of(key);
    if let Some(bound) = status.bound_public_key.replace(SshKey(key.clone())).filter(|bound| bound.0 != *key) {
        status.retired_keys.insert(0, Thumbprint::of(&bound.0));
    }
    for keys in [&mut status.retired_keys, &mut status.caught_keys] {
        keys.retain(|other| *other != print);
        keys.truncate(MAX_RETIRED);
    }
}
