//! The decision: may this device join, and what does it cost. One pure function.
//!
//! The order of checks is the security argument: the key first, so that a stranger learns nothing and locks nobody; then locks;
//! then the join state, which tells an honest device from a copy; then the limit; then rotation.
//!
//! An honest device alone always gets back in: whatever is lost on the way, its next request is a fresh step or the replay of
//! the last one. Two holders of one key are always caught: each step leaves every other copy of the join state behind.

use boundkey_hal::PublicKey;

use super::record::{Exemption, LastStep, MAX_RETIRED, Spec, Status};
use super::request::Verified;
use crate::join::{Claims, Id, JoinKind, Problem, ProblemType, RecoveryMode, SshKey, Step, Thumbprint};
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
    // Insecure mode does not look at the join state, but a restored server still learns of a newer key from it.
    let follow = newer_state(token, request)
        .filter(|_| token.spec.recovery.mode != RecoveryMode::Insecure || !is_bound(token.status, &request.key));
    let base = Base::of_instance(token, request).or_else(|| Base::of(token.status, &request.key, follow));
    let course = match (&base, token.spec.recovery.mode) {
        (None, _) => first_join(request)?,
        (Some(base), RecoveryMode::Insecure) => insecure_course(base, request, fresh.now)?,
        (Some(base), _) => course(base, token, request, exemption, fresh.now)?,
    };
    advance(token, request, base, course, exemption, fresh)
}

/// The state from which a fresh step starts: the token's, or the device's where a restored server follows it.
struct Base {
    step: Step,
    issued_at_ms: u64,
    /// The step the server was at, where it follows the device.
    rolled_forward: Option<RolledForward>,
    last: Option<LastStep>,
    /// Whether it is that of another instance than the token's last recovery made: the token's own step then stays as it is.
    aside: bool,
}

impl Base {
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
enum Course {
    First,
    Renewal,
    Recovery {
        /// Whether the exemption stands in for the join state.
        waived: bool,
    },
    /// The step to answer for again.
    Replay(LastStep),
}

/// A join state of ours that is newer than the token's record and names the key just proven: the server was restored from a backup.
///
/// It must have been issued after the record's step: else the record went on after the restore, with another holder.
fn newer_state<'a>(token: Token<'_>, request: &'a Verified) -> Option<&'a Claims> {
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

fn is_bound(status: &Status, key: &PublicKey) -> bool {
    status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == *key)
}

/// Step 1. Everything that a stranger can send ends here.
///
/// A key that only our own join state names was bound once, and its holder is no stranger. A restore lost the record of it, or a
/// rotation retired it: by the device, and this is a copy from before; or by a thief, and this is the device. Step 3 tells which
/// of these can go on. A retired key that locked the token so is a stranger's from then on, for a copy is not to lock a device out
/// for ever; an exemption lets it in all the same, for it may be the device's.
fn prove_key(token: Token<'_>, request: &Verified, now: Timestamp) -> Result<(), Refusal> {
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

fn first_join(request: &Verified) -> Result<Course, Refusal> {
    if request.presented.is_some() || request.certificate.is_some() {
        return Err(ProblemType::FirstJoinWithCredentials.into());
    }
    Ok(Course::First)
}

/// Step 3, in modes `standard` and `relaxed`.
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

/// Step 3 in mode `insecure`: certificates alone tell steps apart.
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

/// Steps 4 and 5: the limit, rotation, and what the token becomes.
fn advance(
    token: Token<'_>,
    request: &Verified,
    base: Option<Base>,
    course: Course,
    exemption: Option<&Exemption>,
    fresh: Fresh,
) -> Result<Grant, Refusal> {
    let rolled_forward = base.as_ref().and_then(|base| base.rolled_forward);
    let mut status = token.status.clone();
    if let (Some(_), Some(base)) = (rolled_forward, &base) {
        status.recovery_count = status.recovery_count.max(base.step.recovery);
    }
    if base.is_some() {
        rebind(&mut status, &request.key);
    }
    let waived = matches!(course, Course::Recovery { waived: true });
    let kind = match (course, &base) {
        (Course::Replay(last), Some(base)) => return Ok(replay(base.step, request, &last, status)),
        (Course::Renewal, _) => JoinKind::Renewal,
        (Course::Recovery { .. }, _) => JoinKind::Recovery,
        (Course::First | Course::Replay(_), _) => JoinKind::First,
    };
    let mut used = None;
    let step = if let (Some(base), JoinKind::Renewal) = (&base, kind) {
        Step { generation: base.step.generation.saturating_add(1), ..base.step }
    } else {
        used = take_recovery(token.spec, &mut status, exemption, waived)?;
        status.last_recovered_at = Some(fresh.now);
        Step { recovery: status.recovery_count, generation: 1, instance: fresh.instance }
    };
    let (key, rotated_from) = rotate(token.status, &mut status, request, kind, fresh.now)?;
    let aside = kind == JoinKind::Renewal && base.as_ref().is_some_and(|base| base.aside);
    let issued_at_ms = fresh.now.millis().max(base.map_or(0, |base| base.issued_at_ms.saturating_add(1)));
    status.registration_secret = None;
    status.bound_public_key = Some(SshKey(key.clone()));
    if !aside {
        let instance = Some(step.instance);
        (status.bound_bot_instance_id, status.bound_host_id) = if token.for_bot { (instance, None) } else { (None, instance) };
        status.last_step = Some(LastStep {
            generation: step.generation,
            issued_at_ms,
            attempt: request.attempt,
            from: request.presented.as_ref().map(|p| p.digest.clone()),
            not_after: fresh.not_after,
        });
    }
    Ok(Grant {
        kind,
        step,
        key,
        issued_at_ms,
        attempt: request.attempt,
        not_after: fresh.not_after,
        rotated_from,
        rolled_forward,
        exemption: used,
        status,
    })
}

/// The last step's answer once more: nothing about the token changes.
fn replay(step: Step, request: &Verified, last: &LastStep, status: Status) -> Grant {
    Grant {
        kind: JoinKind::Replay,
        step,
        key: request.key.clone(),
        issued_at_ms: last.issued_at_ms,
        attempt: last.attempt,
        not_after: last.not_after,
        rotated_from: None,
        rolled_forward: None,
        exemption: None,
        status,
    }
}

/// Step 4. Counts one recovery, by the exemption where there is one, else within the limit.
fn take_recovery(
    spec: &Spec,
    status: &mut Status,
    exemption: Option<&Exemption>,
    waived: bool,
) -> Result<Option<ExemptionUse>, Refusal> {
    let within = status.recoveries(spec).remaining().is_none_or(|left| left > 0);
    let exempt = exemption.filter(|e| e.recoveries > 0);
    if !within && exempt.is_none() {
        let count = status.recovery_count;
        let why = format!("no recoveries left: {count} used of {} allowed", spec.recovery.limit);
        return Err(Problem::new(ProblemType::NoRecoveriesLeft, why).into());
    }
    status.recovery_count = status.recovery_count.saturating_add(1);
    let Some(exemption) = exempt.filter(|_| waived || !within) else {
        return Ok(None);
    };
    let left = Exemption {
        recoveries: exemption.recoveries - 1,
        waive_join_state: exemption.waive_join_state && !waived,
        ..exemption.clone()
    };
    let ended = left.recoveries == 0;
    status.exemption = (!ended).then_some(left);
    Ok(Some(ExemptionUse { ended }))
}

/// Step 5. The key from now on, and the one it replaces.
fn rotate(
    before: &Status,
    status: &mut Status,
    request: &Verified,
    kind: JoinKind,
    now: Timestamp,
) -> Result<(PublicKey, Option<Thumbprint>), Refusal> {
    if kind == JoinKind::First || !request.rotate {
        return Ok((request.key.clone(), None));
    }
    let new = request.new_key.as_ref().ok_or(ProblemType::RotationRequired)?;
    let print = Thumbprint::of(new);
    if *new == request.key || is_bound(before, new) || status.retired_keys.contains(&print) {
        return Err(ProblemType::KeyReused.into());
    }
    rebind(status, new);
    status.last_rotated_at = Some(now);
    Ok((new.clone(), Some(Thumbprint::of(&request.key))))
}

/// Binds `key`. The key bound before, where it is another, is retired.
fn rebind(status: &mut Status, key: &PublicKey) {
    // The mark of the bound key stays: once a rotation retires it, its copies are strangers.
    if is_bound(status, key) {
        return;
    }
    let print = Thumbprint::of(key);
    if let Some(bound) = status.bound_public_key.replace(SshKey(key.clone())).filter(|bound| bound.0 != *key) {
        status.retired_keys.insert(0, Thumbprint::of(&bound.0));
    }
    for keys in [&mut status.retired_keys, &mut status.caught_keys] {
        keys.retain(|other| *other != print);
        keys.truncate(MAX_RETIRED);
    }
}
