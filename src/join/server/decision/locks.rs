//! Step 2: is the token stopped.

use crate::join::server::decision::Refusal;
use crate::join::server::request::Verified;
use crate::join::server::view::{LockInForce, TokenView};
use crate::join::{Problem, ProblemType, RecoveryMode};
use crate::time::Timestamp;

/// Step 2. The holder of the key learns of a lock, and nothing is issued under one.
///
/// While a recovery code is pending, only the request that brings its key goes on, and it passes the server's own locks on the token.
/// A lock that an operator made stops that request too.
pub(super) fn check(token: &TokenView<'_>, request: &Verified, by_code: bool, now: Timestamp) -> Result<(), Refusal> {
    let named = request.certificate.as_ref().map(|shown| shown.subject.step.instance);
    // In mode `insecure` the bound instance is that of whichever host recovered last: a lock on it is no matter of the others. Elsewhere it
    // counts whatever certificate is shown: an old one, of another instance, must not lead around the lock.
    let shared = token.spec.recovery.mode == RecoveryMode::Insecure;
    let bound = token.status.bound_instance().filter(|_| !shared);
    let concerns = |lock: &&LockInForce| lock.instance.is_none_or(|locked| Some(locked) == named || Some(locked) == bound);
    let stops = |lock: &&LockInForce| !(by_code && lock.opened_by_code);
    if let Some(lock) = token.locks.iter().filter(concerns).find(stops) {
        return Err(Problem::new(ProblemType::Locked, lock.message.clone()).into());
    }
    if by_code || token.pending_code(now).is_none() {
        return Ok(());
    }
    Err(Problem::new(ProblemType::Locked, "an operator lets in only the device with the recovery code that was given").into())
}
