//! Step 3: where the device stands, by its join state and its certificate, and where that leads.

use boundkey_hal::PublicKey;

use super::key::{is_bound, newer_state};
use super::{Refusal, RolledForward, Token};
use crate::join::server::record::{Exemption, LastStep, Status};
use crate::join::server::request::Verified;
use crate::join::{Claims, Problem, ProblemType, RecoveryMode, Step, Thumbprint};
use crate::time::Timestamp;

/// The state from which a fresh step starts: the token's, or the device's where a restored server follows it.
pub(super) struct Base {
    pub step: Step,
    pub issued_at_ms: u64,
    /// The step the server was at, where it follows the device.
    pub rolled_forward: Option<RolledForward>,
    last: Option<LastStep>,
    /// Whether it is that of another instance than the token's last recovery made: the token's own step then stays as it is.
    pub aside: bool,
}

impl Base {
    /// `None`: nothing has joined with the token yet.
    pub fn find(token: Token<'_>, request: &Verified) -> Option<Self> {
        // Insecure mode does not look at the join state, but a restored server still learns of a newer key from it.
        let follow = newer_state(token, request)
            .filter(|_| token.spec.recovery.mode != RecoveryMode::Insecure || !is_bound(token.status, &request.key));
        Self::of_instance(token, request).or_else(|| Self::of(token.status, &request.key, follow))
    }

    fn of(status: &Status, key: &PublicKey, follow: Option<&Claims>) -> Option<Self> {
        if let Some(claims) = follow {
            debug_assert_eq!(claims.jkt, Thumbprint::of(key));
            return Some(Self {
                step: claims.step,
                issued_at_ms: claims.iat_ms,
                rolled_forward: Some(RolledForward { from: status.step() }),
                last: None,
                aside: false,
            });
        }
        let last = status.last_step.clone()?;
        let (step, issued_at_ms) = (status.step()?, last.issued_at_ms);
        Some(Self { step, issued_at_ms, rolled_forward: None, last: Some(last), aside: false })
    }

    /// In mode `insecure`: where the instance has got to whose certificate is shown. A certificate of ours of a later generation is
    /// one that a restored server has forgotten. The attempt that made the token's last step asks for its answer again, and still
    /// shows the certificate of the instance before.
    fn of_instance(token: Token<'_>, request: &Verified) -> Option<Self> {
        let shown = request.certificate.as_ref()?.holder.step;
        let again = token.status.last_step.as_ref().is_some_and(|last| last.attempt == request.attempt);
        let insecure = token.spec.recovery.mode == RecoveryMode::Insecure && is_bound(token.status, &request.key) && !again;
        let (_, last) = token.instance.filter(|(instance, _)| insecure && *instance == shown.instance)?;
        let known = Step { generation: last.generation, ..shown };
        let forgotten = shown.is_after(&known);
        Some(Self {
            step: if forgotten { shown } else { known },
            issued_at_ms: last.issued_at_ms,
            rolled_forward: forgotten.then_some(RolledForward { from: Some(known) }),
            last: (!forgotten).then(|| last.clone()),
            aside: token.status.step()?.instance != shown.instance,
        })
    }
}

/// Where a join leads.
pub(super) enum Course {
    First,
    Renewal,
    Recovery {
        /// Whether the exemption stands in for the join state.
        waived: bool,
    },
    /// The step to answer for again.
    Replay(LastStep),
}

impl Course {
    /// Of a join that starts from `base`.
    pub fn find(
        base: Option<&Base>,
        token: Token<'_>,
        request: &Verified,
        exemption: Option<&Exemption>,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        match (base, token.spec.recovery.mode) {
            (None, _) => first_join(request),
            (Some(base), RecoveryMode::Insecure) => insecure_course(base, request, now),
            (Some(base), _) => course(base, token, request, exemption, now),
        }
    }
}

fn first_join(request: &Verified) -> Result<Course, Refusal> {
    if request.presented.is_some() || request.certificate.is_some() {
        return Err(ProblemType::FirstJoinWithCredentials.into());
    }
    Ok(Course::First)
}

/// In modes `standard` and `relaxed`.
fn course(
    base: &Base,
    token: Token<'_>,
    request: &Verified,
    exemption: Option<&Exemption>,
    now: Timestamp,
) -> Result<Course, Refusal> {
    let bound = is_bound(token.status, &request.key);
    if let Some(course) = lost_answer(base, request, now).filter(|_| bound) {
        return Ok(course);
    }
    let waiver = exemption.is_some_and(|e| e.waive_join_state);
    let Some(presented) = &request.presented else {
        return if waiver { Ok(Course::Recovery { waived: true }) } else { Err(ProblemType::JoinStateRequired.into()) };
    };
    let mismatch = match &presented.claims {
        Ok(claims) => state_mismatch(base, token, claims),
        Err(why) => Some(why.clone()),
    };
    match mismatch {
        None => renewal_or_recovery(base, request, now),
        Some(_) if waiver => Ok(Course::Recovery { waived: true }),
        Some(why) => Err(two_holders(format!("join state: {why}"), request)),
    }
}

/// In mode `insecure`: certificates alone tell steps apart.
fn insecure_course(base: &Base, request: &Verified, now: Timestamp) -> Result<Course, Refusal> {
    match base.last.as_ref().filter(|last| last.attempt == request.attempt) {
        Some(last) => Ok(again(last, now)),
        None => renewal_or_recovery(base, request, now),
    }
}

/// The same attempt from the same state as the last step: its answer was lost. A copy of the device cannot know the attempt.
fn lost_answer(base: &Base, request: &Verified, now: Timestamp) -> Option<Course> {
    let last = base.last.as_ref()?;
    let presented = request.presented.as_ref().map(|p| &p.digest);
    (last.attempt == request.attempt && last.from.as_ref() == presented).then(|| again(last, now))
}

/// What a lost answer leads to: the same as if it had arrived, and then held or expired.
fn again(last: &LastStep, now: Timestamp) -> Course {
    if now <= last.not_after { Course::Replay(last.clone()) } else { Course::Recovery { waived: false } }
}

/// Every difference between the state presented and the one expected, in one sentence.
fn state_mismatch(base: &Base, token: Token<'_>, claims: &Claims) -> Option<String> {
    let mut wrong = Vec::new();
    if Some(claims.inc) != token.status.incarnation {
        wrong.push("is of an earlier life of the token".to_owned());
    }
    if claims.host == token.for_bot {
        let name = |host| if host { "a host" } else { "a bot" };
        wrong.push(format!("is of {}, expected one of {}", name(claims.host), name(!token.for_bot)));
    }
    let (step, expected) = (&claims.step, &base.step);
    if step.instance != expected.instance {
        wrong.push(format!("instance {}, expected {}", step.instance, expected.instance));
    }
    if step.recovery != expected.recovery {
        wrong.push(format!("recovery sequence {}, expected {}", step.recovery, expected.recovery));
    }
    if step.generation != expected.generation {
        wrong.push(format!("generation {}, expected {}", step.generation, expected.generation));
    }
    // The same counters of another line of steps: a restored server followed one holder, and this is the other. The attempt itself
    // is not told: whoever knows it and has the state before could take the step's answer.
    if wrong.is_empty() && base.last.as_ref().is_some_and(|last| (last.attempt, last.issued_at_ms) != (claims.jti, claims.iat_ms))
    {
        let expected = Timestamp::from_millis(base.issued_at_ms);
        wrong.push(format!("of another line of steps: issued at {}, expected one of {expected}", claims.issued_at()));
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// A certificate of this very step that has not run out makes a renewal. Its first moment is not looked at: a server clock set
/// back must not cost a recovery.
fn renewal_or_recovery(base: &Base, request: &Verified, now: Timestamp) -> Result<Course, Refusal> {
    let Some(certificate) = request.certificate.as_ref().filter(|c| now <= c.not_after) else {
        return Ok(Course::Recovery { waived: false });
    };
    let (shown, expected) = (&certificate.holder.step, &base.step);
    if shown.instance != expected.instance {
        return Ok(Course::Recovery { waived: false });
    }
    if shown.generation != expected.generation {
        let why =
            format!("generation mismatch: certificate of generation {}, expected {}", shown.generation, expected.generation);
        return Err(two_holders(why, request));
    }
    Ok(Course::Renewal)
}

/// The key is noted as one of two holders: once a rotation has retired it, whoever still has it is a stranger.
fn two_holders(why: String, request: &Verified) -> Refusal {
    let problem = Problem::new(ProblemType::JoinStateMismatch, format!("{}: {why}", ProblemType::JoinStateMismatch.title()));
    Refusal { problem, lock: Some(why), caught: Some(Thumbprint::of(&request.key)) }
}
