//! Step 1: is the key one of the token's.

use boundkey_hal::PublicKey;

use super::{Refusal, Token};
use crate::join::server::record::Status;
use crate::join::server::request::Verified;
use crate::join::{Claims, Problem, ProblemType, RecoveryMode, Thumbprint};
use crate::time::Timestamp;

/// Step 1. Everything that a stranger can send ends here.
///
/// A key that only our own join state names was bound once, and its holder is no stranger. A restore lost the record of it, or a
/// rotation retired it: by the device, and this is a copy from before; or by a thief, and this is the device. Step 3 tells which
/// of these can go on. A retired key that locked the token so is a stranger's from then on, for a copy is not to lock a device out
/// for ever; an exemption lets it in all the same, for it may be the device's.
pub(super) fn prove_key(token: Token<'_>, request: &Verified, now: Timestamp) -> Result<(), Refusal> {
    let onboarding = &token.spec.onboarding;
    let print = Thumbprint::of(&request.key);
    let waiver = token.status.exemption.as_ref().is_some_and(|e| e.waive_join_state && e.expires > now);
    let heard = token.spec.recovery.mode != RecoveryMode::Insecure && (waiver || !token.status.caught_keys.contains(&print));
    let named = state_naming_key(token, request).is_some() && (heard || newer_state(token, request).is_some());
    if is_bound(token.status, &request.key) || named {
        return match (token.status.bound_public_key.is_some(), token.status.step()) {
            (true, None) => Err(inconsistent()),
            _ => Ok(()),
        };
    }
    if token.status.bound_public_key.is_some() {
        return Err(ProblemType::KeyNotProven.into());
    }
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

/// A join state of ours that is newer than the token's record and names the key just proven: the server was restored from a backup.
///
/// It must have been issued after the record's step: else the record went on after the restore, with another holder.
pub(super) fn newer_state<'a>(token: Token<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let claims = state_naming_key(token, request)?;
    let status = token.status;
    let newer = status.step().is_none_or(|current| claims.step.is_after(&current));
    let later = status.last_step.as_ref().is_none_or(|last| claims.iat_ms > last.issued_at_ms);
    (newer && later).then_some(claims)
}

/// The join state presented, where it is of this life of the token and names the key just proven.
fn state_naming_key<'a>(token: Token<'_>, request: &'a Verified) -> Option<&'a Claims> {
    let claims = request.presented.as_ref()?.claims.as_ref().ok()?;
    let of_this_life = Some(claims.inc) == token.status.incarnation && claims.host != token.for_bot;
    (of_this_life && claims.jkt == Thumbprint::of(&request.key)).then_some(claims)
}

pub(super) fn is_bound(status: &Status, key: &PublicKey) -> bool {
    status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == *key)
}
