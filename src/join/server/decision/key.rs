//! Step 1: is the key one of the token's.

use boundkey_hal::PublicKey;

use super::Refusal;
use crate::join::server::record::Status;
use crate::join::server::request::Verified;
use crate::join::server::view::TokenView;
use crate::join::{Claims, Problem, ProblemType, RecoveryMode, Thumbprint};
use crate::time::Timestamp;

/// Step 1. Everything that a stranger can send ends here.
///
/// Two kinds of keys count. The bound key does, and so does a key that one of our own join states names as bound: its holder is no
/// stranger. Either a restore lost the record of that key, or a rotation has retired it since. In the second case there are two
/// holders, and step 3 finds that out by the join state.
///
/// A step by a recovery code ends the trust in all older join states ([`Status::trusted_from_ms`]). The keys that only these name are
/// strangers' keys from then on, so that no copy from before can lock the token again.
pub(super) fn prove(token: &TokenView<'_>, request: &Verified, now: Timestamp) -> Result<(), Refusal> {
    let status = token.status;
    if is_bound(status, &request.key) || is_named(token, request) {
        return if status.bound_public_key.is_some() && status.step().is_none() { Err(inconsistent()) } else { Ok(()) };
    }
    if status.bound_public_key.is_some() {
        return Err(ProblemType::KeyNotProven.into());
    }
    prove_first_key(token, request, now)
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

/// Whether the join state presented names the key as one that was bound.
///
/// In mode `insecure` no join state is asked for, so that none can tell two holders apart: a retired key is a stranger's there, unless
/// the join state is newer than the record.
fn is_named(token: &TokenView<'_>, request: &Verified) -> bool {
    let Some(claims) = state_naming_key(token, request) else { return false };
    let trusted = token.status.trusted_from_ms.is_none_or(|from_ms| claims.iat_ms >= from_ms);
    let judged_by_state = token.spec.recovery.mode != RecoveryMode::Insecure;
    (trusted && judged_by_state) || newer_state(token, request).is_some()
}

/// A join state of ours that is newer than the token's record and names the key just proven: the server was restored from a backup.
///
/// It must have been issued after the record's step: else the record went on after the restore, with another holder.
pub(super) fn newer_state<'a>(token: &TokenView<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let claims = state_naming_key(token, request)?;
    let status = token.status;
    let newer = status.step().is_none_or(|current| claims.step.is_after(&current));
    let later = status.last_step.as_ref().is_none_or(|last| claims.iat_ms > last.issued_at_ms);
    (newer && later).then_some(claims)
}

/// The join state presented, where it is of this life of the token and names the key just proven.
fn state_naming_key<'a>(token: &TokenView<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let claims = request.presented.as_ref()?.claims.as_ref().ok()?;
    let of_this_life = Some(claims.inc) == token.status.incarnation && claims.kind == token.kind;
    (of_this_life && claims.jkt == Thumbprint::of(&request.key)).then_some(claims)
}

pub(super) fn is_bound(status: &Status, key: &PublicKey) -> bool {
    status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == *key)
}
