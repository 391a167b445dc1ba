//! Broken servers, to see that the model notices: each leaves out one rule. The code that ships has no such switch: a fault changes
//! what goes into the real decision, or what comes out of it.

use boundkey::join::server::decision::{Grant, Refusal, pace};
use boundkey::join::server::request::Verified;
use boundkey::join::server::view::StepTag;
use boundkey::join::{JoinKind, ProblemType, Thumbprint};

use super::holder::named;
use super::server::Server;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Knows no attempt again: a lost answer looks like a second holder.
    AttemptsForgotten,
    /// Follows any newer join state, whenever it was issued.
    AnyNewerFollowed,
    /// Takes the counters of a join state for all there is to compare.
    CountersAlone,
    /// Does not look at the limit.
    LimitIgnored,
    /// Does not look at locks.
    LocksIgnored,
    /// Answers `challenge-stale` before the join state is looked at.
    StaleAnsweredFirst,
    /// Does not know from a challenge when the step was made that was current.
    NoStepTime,
    /// Does not know from a challenge which request made the step that was current.
    NoStepTag,
    /// Takes a request for a repetition of that one though another key was bound by it.
    TagWithoutKey,
    /// Does not remember that a step was made without a matching join state.
    NoLine,
    /// Trusts join states from before a recovery code.
    NoTrustedFrom,
    /// Keeps the waiver until a recovery has used it.
    WaiverOutlivesGrant,
    /// Does not order a rotation with an exemption.
    NoRotationOrdered,
    /// Looks at the pace before the join state.
    PaceFirst,
    /// Counts replays as steps.
    ReplaysPaced,
    /// Has the same epoch after a restore.
    NoEpoch,
}

impl Fault {
    /// Breaks what the decision is given.
    pub fn before(self, server: &mut Server, verified: &mut Verified) -> Result<(), Refusal> {
        let claims = verified.presented.as_ref().and_then(|presented| presented.claims.clone().ok());
        let step = server.status.step();
        let line = server.status.line_ms;
        let anchor = &mut verified.challenge.anchor;
        match (self, claims, &mut server.status.last_step) {
            (Self::AttemptsForgotten, ..) => verified.attempt = named(&[&verified.attempt.0[..], &server.content()].concat()),
            (Self::LimitIgnored, ..) => server.spec.recovery.limit = u32::MAX,
            (Self::LocksIgnored, ..) => server.locks.clear(),
            (Self::AnyNewerFollowed, Some(claims), Some(last)) if step.is_some_and(|step| claims.step.is_after(&step)) => {
                last.issued_at_ms = claims.iat_ms - 1;
            }
            (Self::CountersAlone, Some(claims), Some(last)) if Some(claims.step) == step => {
                (last.attempt, last.issued_at_ms) = (claims.jti, claims.iat_ms);
            }
            (Self::StaleAnsweredFirst, ..) if verified.stale => return Err(ProblemType::ChallengeStale.into()),
            // What was before a line stays excused.
            (Self::NoStepTime, ..) if line.is_none_or(|line| line <= anchor.step_ms) => anchor.step_ms = u64::MAX,
            (Self::NoStepTag, ..) => anchor.tag = StepTag::from_bytes([0; StepTag::LENGTH]),
            (Self::TagWithoutKey, ..) => {
                let from = verified.presented.as_ref().map(|presented| presented.digest.as_str());
                let tag = |key| StepTag::of(verified.attempt, from, key);
                let bound = server.status.bound_public_key.as_ref().map(|key| Thumbprint::of(&key.0));
                let mut keys = bound.iter().chain(&server.status.retired_keys);
                if keys.any(|key| tag(*key) == anchor.tag) {
                    anchor.tag = tag(Thumbprint::of(&verified.key));
                }
            }
            (Self::NoLine, ..) => server.status.line_ms = None,
            (Self::NoTrustedFrom, ..) => server.status.trusted_from_ms = None,
            (Self::PaceFirst, ..) => {
                pace::spend(pace::BURST, server.status.pace_ms, server.now).map_err(pace::exceeded)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Breaks what the decision has granted.
    pub fn after(self, server: &Server, grant: &mut Grant) -> Result<(), Refusal> {
        let used = grant.exemption.is_some_and(|used| used.paid || grant.by_code);
        match self {
            Self::WaiverOutlivesGrant if !used => grant.status.exemption.clone_from(&server.status.exemption),
            Self::ReplaysPaced if grant.kind == JoinKind::Replay => {
                let spent = pace::spend(pace::BURST, server.status.pace_ms, server.now).map_err(pace::exceeded)?;
                grant.status.pace_ms = Some(spent);
            }
            _ => {}
        }
        Ok(())
    }
}
