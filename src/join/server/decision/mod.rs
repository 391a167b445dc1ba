//! The decision: may this device join, and what does it cost. One pure function.
//!
//! The order of checks is the security argument: the key first (step 1, `key.rs`), so that a stranger learns nothing and locks
//! nobody; then locks (2, `locks.rs`); then the join state (3, `transition.rs`), which tells an honest device from a copy; then the
//! pace (`pace.rs`), the limit (4) and rotation (5, both in `advance.rs`).
//!
//! An honest device alone always gets back in: whatever is lost on the way, its next request is a fresh step or the replay of
//! the last one. Two holders of one key are always caught: each step leaves every other copy of the join state behind.
//!
//! A stale challenge withholds the grant and never the detection. A request whose challenge is stale is judged like any other,
//! against the token as it is now, so that a copy that makes steps faster than the device can ask is caught by the device's next
//! request. What the challenge tells of the step that was current when it was made excuses an honest device whose message is late.

mod advance;
mod key;
mod locks;
pub mod pace;
mod prior;
mod transition;

use boundkey_hal::PublicKey;

use self::transition::Transition;
use super::record::{LastStep, Status};
use super::request::Verified;
use super::view::{StepTag, TokenView};
use crate::{Claims, Id, JoinKind, Problem, ProblemType, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

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
    /// What this join took of the exemption.
    pub exemption: Option<ExemptionUse>,
    /// Whether it came by a recovery code: the server's own locks on the token are lifted, and every certificate issued before stays
    /// revoked.
    pub by_code: bool,
    /// What the token becomes.
    pub status: Status,
}

impl Grant {
    /// The step as the record of its instance keeps it, for hosts that share a key in mode `insecure`.
    pub fn instance_step(&self, request: &Verified) -> LastStep {
        LastStep {
            generation: self.step.generation,
            issued_at_ms: self.issued_at_ms,
            attempt: self.attempt,
            from: presented_digest(request),
            not_after: self.not_after,
        }
    }

    /// What the device's join state and its identity certificate say, in `cluster`.
    ///
    /// # Errors
    /// [`TokenView::incarnation`].
    pub fn claims(&self, cluster: &str, token: &TokenView<'_>) -> Result<Claims, Problem> {
        Ok(Claims {
            iss: cluster.to_owned(),
            sub: token.name.to_owned(),
            inc: token.incarnation()?,
            step: self.step,
            jkt: Thumbprint::of(&self.key),
            kind: token.kind,
            jti: self.attempt,
            iat_ms: self.issued_at_ms,
        })
    }
}

/// That a restored server followed the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledForward {
    /// The step it was at before; `None`: the token was not bound.
    pub from: Option<Step>,
}

/// What a join took of an exemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemptionUse {
    /// Whether one of its recoveries paid for the join.
    pub paid: bool,
    /// Whether nothing is left of it.
    pub ended: bool,
}

/// A join that may not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the device is told.
    pub problem: Problem,
    /// What the request proves of its sender.
    pub evidence: Evidence,
}

/// What a refused request proves of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing: it may be anybody's.
    Nothing,
    /// The sender has a key of the token.
    KeyProven,
    /// The sender has a key of the token, and so has somebody else. The token is to be locked, for this reason.
    TwoHolders(String),
}

impl Refusal {
    /// A refusal of a request whose key is proven.
    pub fn of_key_holder(problem: impl Into<Problem>) -> Self {
        Self { problem: problem.into(), evidence: Evidence::KeyProven }
    }

    /// Why the token has to be locked, if it has to.
    pub fn lock_reason(&self) -> Option<&str> {
        match &self.evidence {
            Evidence::TwoHolders(why) => Some(why),
            Evidence::KeyProven | Evidence::Nothing => None,
        }
    }

    /// The same refusal, where it came after the key was proven.
    fn after_key_proof(self) -> Self {
        match self.evidence {
            Evidence::Nothing => Self { evidence: Evidence::KeyProven, ..self },
            Evidence::KeyProven | Evidence::TwoHolders(_) => self,
        }
    }

    /// Whether a key of the token was proven before the request was refused.
    pub fn key_proven(&self) -> bool {
        self.evidence != Evidence::Nothing
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, evidence: Evidence::Nothing }
    }
}

impl From<ProblemType> for Refusal {
    fn from(kind: ProblemType) -> Self {
        Problem::from(kind).into()
    }
}

/// A verified request whose key is one of the token's: what steps 2 to 5 look at.
struct Proven<'a> {
    token: &'a TokenView<'a>,
    request: &'a Verified,
    /// Whether the request brings the key that a pending recovery code names.
    by_code: bool,
    fresh: Fresh,
}

/// Decides on a verified request.
pub fn decide(token: &TokenView<'_>, request: &Verified, fresh: Fresh) -> Result<Grant, Refusal> {
    let decided = match key::prove(token, request, fresh) {
        Ok(proven) => judge(&proven).map_err(Refusal::after_key_proof),
        Err(refusal) => Err(refusal),
    };
    decided.map_err(|refusal| if request.stale { when_stale(refusal, token, request) } else { refusal })
}

/// Steps 2 to 5.
fn judge(proven: &Proven<'_>) -> Result<Grant, Refusal> {
    locks::check(proven)?;
    let transition = Transition::find(proven)?;
    if proven.request.stale {
        return Err(ProblemType::ChallengeStale.into());
    }
    let pace_ms = pace::of_token(proven, &transition)?;
    advance::advance(proven, transition, pace_ms)
}

/// What is told of a refusal where the challenge is stale: that a lock stands or is to be made, and else nothing.
fn when_stale(refusal: Refusal, token: &TokenView<'_>, request: &Verified) -> Refusal {
    let stands = match &refusal.evidence {
        Evidence::TwoHolders(_) => !excused(token, request),
        Evidence::KeyProven | Evidence::Nothing => refusal.problem.kind == ProblemType::Locked,
    };
    if stands {
        return refusal;
    }
    let evidence = if refusal.key_proven() { Evidence::KeyProven } else { Evidence::Nothing };
    Refusal { problem: ProblemType::ChallengeStale.into(), evidence }
}

/// Whether a device whose request is late may have been in step when it asked for its challenge. Three marks tell, each of which a
/// copy that is behind lacks:
fn excused(token: &TokenView<'_>, request: &Verified) -> bool {
    let then = request.challenge.anchor;
    // Its join state was the current one.
    let claims = request.presented.as_ref().and_then(|presented| presented.claims.as_ref().ok());
    let was_in_step = claims.is_some_and(|claims| claims.iat_ms >= then.step_ms);
    // It repeats the very request that made the step that was current: the answer to that one was lost, or is late.
    let from = presented_digest(request);
    let repeats_step = StepTag::of(request.attempt, from.as_deref(), Thumbprint::of(&request.key)) == then.tag;
    // Since then an exemption or a code made a step without a matching join state, and left behind what was in step.
    let before_line = token.status.line_ms.is_some_and(|line_ms| then.step_ms < line_ms);
    was_in_step || repeats_step || before_line
}

/// SHA-256, base64url, of the join state that the request came with.
fn presented_digest(request: &Verified) -> Option<String> {
    request.presented.as_ref().map(|presented| presented.digest.clone())
}
