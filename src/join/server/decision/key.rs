//! Step 1: is the key one of the token's.

use boundkey_hal::PublicKey;

use super::{Fresh, Proven, Refusal};
use crate::server::record::Status;
use crate::server::request::Verified;
use crate::server::view::TokenView;
use crate::{Claims, Problem, ProblemType, RecoveryMode, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Step 1. Everything that a stranger can send ends here.
///
/// Two kinds of keys count: the bound key, and a key that one of our own join states names as bound ([`is_named`]).
pub(super) fn prove<'a>(token: &'a TokenView<'a>, request: &'a Verified, fresh: Fresh) -> Result<Proven<'a>, Refusal> {
    let has_bound_key = token.status.bound_public_key.is_some();
    let is_of_token = is_bound(token.status, &request.key) || is_named(token, request);
    if !is_of_token && has_bound_key {
        return Err(ProblemType::KeyNotProven.into());
    }
    if !is_of_token {
        prove_first_key(token, request, fresh.now)?;
    }
    let has_step = token.status.step().is_some();
    if has_bound_key && !has_step {
        return Err(inconsistent());
    }
    let by_code = brings_code(token, request, fresh.now);
    Ok(Proven { token, request, by_code, fresh })
}

/// The first join with a token proves the preregistered key or the registration secret.
fn prove_first_key(token: &TokenView<'_>, request: &Verified, now: Timestamp) -> Result<(), Refusal> {
    let onboarding = &token.spec.onboarding;
    if let Some(initial) = &onboarding.initial_public_key {
        return if initial.0 == request.key { Ok(()) } else { Err(ProblemType::KeyNotProven.into()) };
    }
    if token.status.registration_secret.is_none() {
        let why = "the token has neither a preregistered key nor a registration secret";
        return Err(Problem::new(ProblemType::TokenUnusable, why).into());
    }
    // One answer for all faults of secret and deadline: a guesser learns nothing.
    let in_time = onboarding.must_register_before.is_none_or(|deadline| now < deadline);
    if request.secret_proven && in_time { Ok(()) } else { Err(ProblemType::RegistrationRefused.into()) }
}

fn inconsistent() -> Refusal {
    let why = "the token has a bound key but no instance: its stored state is not whole; delete and create it anew";
    Problem::new(ProblemType::TokenUnusable, why).into()
}

/// Whether the request rotates to the key that an operator's recovery code names.
fn brings_code(token: &TokenView<'_>, request: &Verified, now: Timestamp) -> bool {
    let Some(code) = token.pending_code(now) else { return false };
    let Some(new_key) = &request.new_key else { return false };
    request.challenge.rotate && code.matches(Thumbprint::of(new_key))
}

/// Whether a join state of ours names the key as one that was bound: its sender is no stranger.
///
/// Either a restore lost the record of that key, or a rotation has retired it since. In the second case there are two holders, and step
/// 3 finds that out by the join state.
fn is_named(token: &TokenView<'_>, request: &Verified) -> bool {
    let Some(claims) = state_naming_key(token, request) else { return false };
    if is_newer(token.status, claims) {
        return true;
    }
    // A step by a recovery code ends the trust in all older join states. The keys that only these name are strangers' keys from then
    // on, so that no copy from before can lock the token again.
    let is_before_code = token.status.trusted_from_ms.is_some_and(|from_ms| claims.iat_ms < from_ms);
    // In mode `insecure` no join state is asked for, so that none can tell two holders apart: a retired key is a stranger's there.
    let is_insecure = token.spec.recovery.mode == RecoveryMode::Insecure;
    !is_before_code && !is_insecure
}

/// A join state of ours that is newer than the token's record and names the key just proven: the server was restored from a backup.
pub(super) fn newer_state<'a>(token: &TokenView<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let claims = state_naming_key(token, request)?;
    is_newer(token.status, claims).then_some(claims)
}

/// Whether a join state is of a step that the record does not have.
fn is_newer(status: &Status, claims: &Claims) -> bool {
    let is_later_step = status.step().is_none_or(|current| claims.step.is_after(&current));
    // Else the record went on after the restore, with another holder.
    let is_issued_later = status.last_step.as_ref().is_none_or(|last| claims.iat_ms > last.issued_at_ms);
    is_later_step && is_issued_later
}

/// The join state presented, where it is of this life of the token and names the key just proven.
fn state_naming_key<'a>(token: &TokenView<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let presented = request.presented.as_ref()?;
    let claims = presented.claims.as_ref().ok()?;
    let is_of_this_life = Some(claims.inc) == token.status.incarnation;
    let is_of_this_kind = claims.kind == token.kind;
    let names_key = claims.jkt == Thumbprint::of(&request.key);
    (is_of_this_life && is_of_this_kind && names_key).then_some(claims)
}

pub(super) fn is_bound(status: &Status, key: &PublicKey) -> bool {
    status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == *key)
}
