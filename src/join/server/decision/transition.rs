//! Step 3: where the device stands, by its join state and its certificate, and where that leads.

use super::key::is_bound;
use super::prior::PriorState;
use super::{Evidence, Proven, Refusal};
use crate::server::record::LastStep;
use crate::server::request::Verified;
use crate::server::view::TokenView;
use crate::{Claims, Problem, ProblemType, RecoveryMode};
use boundkey_platform::time::Timestamp;

/// Where a join leads.
pub(super) enum Transition {
    /// To the first step of the token.
    First,
    /// To the next generation of the same instance.
    Renewal(PriorState),
    /// To a new instance.
    Recovery {
        /// Where it starts from.
        prior: PriorState,
        /// Whether an exemption or a recovery code stands in for the join state.
        join_state_waived: bool,
    },
    /// To the answer that was lost, once more.
    Replay {
        /// The state that the lost answer told of.
        prior: PriorState,
        /// How that state came about.
        last: LastStep,
    },
}

impl Transition {
    /// Of a request whose key is proven.
    pub fn find(proven: &Proven<'_>) -> Result<Self, Refusal> {
        let Some(prior) = PriorState::find(proven.token, proven.request) else {
            return first_join(proven.request);
        };
        match proven.token.spec.recovery.mode {
            RecoveryMode::Insecure => by_certificate(prior, proven),
            RecoveryMode::Relaxed | RecoveryMode::Standard => by_join_state(prior, proven),
        }
    }

    /// The state that it starts from; `None` for a first join.
    pub fn prior(&self) -> Option<&PriorState> {
        match self {
            Self::First => None,
            Self::Renewal(prior) | Self::Recovery { prior, .. } | Self::Replay { prior, .. } => Some(prior),
        }
    }
}

fn first_join(request: &Verified) -> Result<Transition, Refusal> {
    if request.presented.is_some() || request.certificate.is_some() {
        return Err(ProblemType::FirstJoinWithCredentials.into());
    }
    Ok(Transition::First)
}

/// In modes `standard` and `relaxed`.
fn by_join_state(prior: PriorState, proven: &Proven<'_>) -> Result<Transition, Refusal> {
    let Proven { token, request, by_code, fresh } = *proven;
    // A device that comes by a code makes a step, whatever it has lost: a replay would leave its key as it was.
    if !by_code
        && is_bound(token.status, &request.key)
        && let Some(last) = lost_answer(&prior, request)
    {
        return replay_or_recover(prior, last, request, fresh.now);
    }
    let is_waived = by_code || waives_join_state(token, fresh.now);
    let Some(presented) = &request.presented else {
        return if is_waived { Ok(recovery(prior, true)) } else { Err(ProblemType::JoinStateRequired.into()) };
    };
    let mismatch = match &presented.claims {
        Ok(claims) => state_mismatch(&prior, token, claims),
        Err(why) => Some(why.clone()),
    };
    match mismatch {
        None => renewal_or_recovery(prior, request, fresh.now),
        Some(_) if is_waived => Ok(recovery(prior, true)),
        Some(why) => Err(two_holders(format!("join state: {why}"))),
    }
}

/// Whether an exemption stands in for the join state of every sender that has the key.
fn waives_join_state(token: &TokenView<'_>, now: Timestamp) -> bool {
    let Some(exemption) = token.exemption(now) else { return false };
    let is_for_one_key = exemption.key.is_some();
    exemption.waive_join_state && !is_for_one_key
}

/// In mode `insecure`: certificates alone tell steps apart.
fn by_certificate(prior: PriorState, proven: &Proven<'_>) -> Result<Transition, Refusal> {
    let Proven { request, fresh, .. } = *proven;
    match prior.last.clone().filter(|last| last.attempt == request.attempt) {
        Some(last) => replay_or_recover(prior, last, request, fresh.now),
        None => renewal_or_recovery(prior, request, fresh.now),
    }
}

/// The last step, where this is the same attempt from the same state: its answer was lost. A copy of the device cannot know the
/// attempt.
fn lost_answer(prior: &PriorState, request: &Verified) -> Option<LastStep> {
    let last = prior.last.as_ref()?;
    let presented = request.presented.as_ref().map(|presented| &presented.digest);
    (last.attempt == request.attempt && last.from.as_ref() == presented).then(|| last.clone())
}

/// What a lost answer leads to: the same as if it had arrived, and then held or expired.
///
/// A replay leaves the token's revision as it is, so that the same request may be judged again, where the network repeats it. It must
/// not make a step then, of which the device would know nothing. So the time of the challenge tells which of the two a request can
/// lead to, and one that arrives on the other side of the certificate's end is asked for anew.
fn replay_or_recover(prior: PriorState, last: LastStep, request: &Verified, now: Timestamp) -> Result<Transition, Refusal> {
    let is_asked_in_time = request.challenge.made() <= last.not_after;
    let is_in_time = now <= last.not_after;
    match (is_asked_in_time, is_in_time) {
        (true, true) => Ok(Transition::Replay { prior, last }),
        (false, false) => Ok(recovery(prior, false)),
        (true, false) | (false, true) => Err(ProblemType::ChallengeStale.into()),
    }
}

fn recovery(prior: PriorState, join_state_waived: bool) -> Transition {
    Transition::Recovery { prior, join_state_waived }
}

/// Every difference between the state presented and the one expected, in one sentence.
fn state_mismatch(prior: &PriorState, token: &TokenView<'_>, claims: &Claims) -> Option<String> {
    let mut wrong = Vec::new();
    if Some(claims.inc) != token.status.incarnation {
        wrong.push("is of an earlier life of the token".to_owned());
    }
    if claims.kind != token.kind {
        wrong.push(format!("is of a {}, expected one of a {}", claims.kind, token.kind));
    }
    let (step, expected) = (&claims.step, &prior.step);
    if step.instance != expected.instance {
        wrong.push(format!("instance {}, expected {}", step.instance, expected.instance));
    }
    if step.recovery != expected.recovery {
        wrong.push(format!("recovery sequence {}, expected {}", step.recovery, expected.recovery));
    }
    if step.generation != expected.generation {
        wrong.push(format!("generation {}, expected {}", step.generation, expected.generation));
    }
    // The same counters may be those of another line of steps: a restored server followed one holder, and this is the other. The
    // sentence does not tell the attempt: a holder that knows it and has the state before could take the step's answer.
    let stamp = prior.last.as_ref().map(|last| (last.attempt, last.issued_at_ms));
    if wrong.is_empty() && stamp.is_some_and(|stamp| stamp != (claims.jti, claims.iat_ms)) {
        let expected = Timestamp::from_millis(prior.issued_at_ms);
        wrong.push(format!("of another line of steps: issued at {}, expected one of {expected}", claims.issued_at()));
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// A certificate of this very step that has not run out makes a renewal. Its first moment is not looked at: a server clock set
/// back must not cost a recovery.
fn renewal_or_recovery(prior: PriorState, request: &Verified, now: Timestamp) -> Result<Transition, Refusal> {
    let Some(certificate) = request.certificate.as_ref().filter(|certificate| now <= certificate.not_after) else {
        return Ok(recovery(prior, false));
    };
    let (shown, expected) = (&certificate.subject.step, &prior.step);
    if shown.instance != expected.instance {
        return Ok(recovery(prior, false));
    }
    if shown.generation != expected.generation {
        return Err(two_holders(format!(
            "generation mismatch: certificate of generation {}, expected {}",
            shown.generation, expected.generation
        )));
    }
    Ok(Transition::Renewal(prior))
}

fn two_holders(why: String) -> Refusal {
    let problem = Problem::new(ProblemType::JoinStateMismatch, format!("{}: {why}", ProblemType::JoinStateMismatch.title()));
    Refusal { problem, evidence: Evidence::TwoHolders(why) }
}
