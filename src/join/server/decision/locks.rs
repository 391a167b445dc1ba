//! Step 2: is the token stopped.

use super::{Proven, Refusal};
use crate::server::view::LockInForce;
use crate::{Problem, ProblemType, RecoveryMode};

/// Step 2. Every sender that has the key learns of a lock, and nothing is issued under one.
///
/// While a recovery code is pending, only the request that brings its key goes on, and it passes the server's own locks on the token.
/// A lock that an operator made stops that request too.
pub(super) fn check(proven: &Proven<'_>) -> Result<(), Refusal> {
    let Proven { token, by_code, fresh, .. } = *proven;
    let stops = |lock: &&LockInForce| concerns(lock, proven) && !(by_code && lock.opened_by_code);
    if let Some(lock) = token.locks.iter().find(stops) {
        return Err(Problem::new(ProblemType::Locked, lock.message.clone()).into());
    }
    let awaits_code = token.pending_code(fresh.now).is_some();
    if awaits_code && !by_code {
        let why = "an operator lets in only the device with the recovery code that was given";
        return Err(Problem::new(ProblemType::Locked, why).into());
    }
    Ok(())
}

/// Whether the lock is on the token, or on the instance that joins.
fn concerns(lock: &LockInForce, proven: &Proven<'_>) -> bool {
    let Proven { token, request, .. } = *proven;
    let Some(locked) = lock.instance else { return true };
    let shown = request.certificate.as_ref().map(|certificate| certificate.subject.step.instance);
    // In mode `insecure` the bound instance is that of the host that recovered last: a lock on it is no matter of the others. In the
    // other modes it counts whatever certificate is shown: an old one, of another instance, must not lead around the lock.
    let is_insecure = token.spec.recovery.mode == RecoveryMode::Insecure;
    let is_bound_instance = !is_insecure && token.status.bound_instance() == Some(locked);
    shown == Some(locked) || is_bound_instance
}
