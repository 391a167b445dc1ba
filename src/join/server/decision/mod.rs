//! The decision: may this device join, and what does it cost. One pure function.
//!
//! The order of checks is the security argument: the key first (step 1, `key.rs`), so that a stranger learns nothing and locks
//! nobody; then locks (2); then the join state (3, `course.rs`), which tells an honest device from a copy; then the limit (4) and
//! rotation (5, both in `advance.rs`).
//!
//! An honest device alone always gets back in: whatever is lost on the way, its next request is a fresh step or the replay of
//! the last one. Two holders of one key are always caught: each step leaves every other copy of the join state behind.

mod advance;
mod course;
mod key;

use boundkey_hal::PublicKey;

use self::advance::advance;
use self::course::{Base, Course};
use self::key::prove_key;
use super::record::{LastStep, Spec, Status};
use super::request::Verified;
use crate::join::{Id, JoinKind, Problem, ProblemType, Step, Thumbprint};
use crate::time::Timestamp;

/// What a decision is about: the token, as stored.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// Whether its instances are bots (else hosts).
    pub for_bot: bool,
    /// What the operator wants.
    pub spec: &'a Spec,
    /// What joins made of it.
    pub status: &'a Status,
    /// The instance that the certificate shown names, and its last step. Looked at in mode `insecure` alone, where many hosts share a
    /// key and each goes on from its own.
    pub instance: Option<(Id, &'a LastStep)>,
}

/// What the caller provides for a step, so that the decision stays pure.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Name for a new instance.
    pub instance: Id,
    /// The server's clock.
    pub now: Timestamp,
    /// Last moment of the identity certificate that a fresh step would issue.
    pub not_after: Timestamp,
}

/// A join that may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it is.
    pub kind: JoinKind,
    /// The step that the device is at from now on.
    pub step: Step,
    /// The key bound from now on.
    pub key: PublicKey,
    /// When the step was made, for its join state.
    pub issued_at_ms: u64,
    /// The attempt that made it, for the same.
    pub attempt: Id,
    /// Last moment of the identity certificate.
    pub not_after: Timestamp,
    /// The key that a rotation retired.
    pub rotated_from: Option<Thumbprint>,
    /// Where a restored server was before it followed the device.
    pub rolled_forward: Option<RolledForward>,
    /// Whether this join used the exemption, and whether it thereby ended.
    pub exemption: Option<ExemptionUse>,
    /// What the token becomes.
    pub status: Status,
}

impl Grant {
    /// The step as the record of its instance keeps it, for hosts that share a key in mode `insecure`. No join state counts in that
    /// mode, so where the step started from is not kept.
    pub fn instance_step(&self) -> LastStep {
        LastStep {
            generation: self.step.generation,
            issued_at_ms: self.issued_at_ms,
            attempt: self.attempt,
            from: None,
            not_after: self.not_after,
        }
    }
}

/// That a restored server followed the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledForward {
    /// The step it was at before; `None`: the token was not bound.
    pub from: Option<Step>,
}

/// How a join used an exemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemptionUse {
    /// Whether it is used up.
    pub ended: bool,
}

/// A join that may not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the device is told.
    pub problem: Problem,
    /// Message of the lock that has to be put on the token.
    pub lock: Option<String>,
    /// The key that two hold, to be noted in [`Status::caught_keys`] together with the lock.
    pub caught: Option<Thumbprint>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, lock: None, caught: None }
    }
}

impl From<ProblemType> for Refusal {
    fn from(kind: ProblemType) -> Self {
        Problem::from(kind).into()
    }
}

/// Decides on a verified request; `locks` are the messages of the locks in force on token, bot and instance.
pub fn decide(token: Token<'_>, locks: &[String], request: &Verified, fresh: Fresh) -> Result<Grant, Refusal> {
    prove_key(token, request, fresh.now)?;
    if let Some(message) = locks.first() {
        return Err(Problem::new(ProblemType::Locked, message.clone()).into());
    }
    let exemption = token.status.exemption.as_ref().filter(|e| e.expires > fresh.now);
    let base = Base::find(token, request);
    let course = Course::find(base.as_ref(), token, request, exemption, fresh.now)?;
    advance(token, request, base, course, exemption, fresh)
}
