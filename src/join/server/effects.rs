//! What a join that was decided on changes, as a value.
//!
//! Nothing else may change by it. The caller makes all of it durable in one transaction, on condition that the view still holds, before
//! anything is answered.

use super::answer::Issued;
use super::decision::{ExemptionUse, Refusal};
use super::record::{LastStep, Status};
use super::request::Verified;
use super::view::TokenView;
use crate::message::IssuedCertificate;
use crate::{Id, JoinKind, Problem, ProblemType, RecoveryMode, SshKey, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Everything that one join changes on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {
    /// What is written of the token. `None`: the token keeps its revision, so that challenges under way stay good.
    pub token: Option<TokenRecord>,
    /// What is written of the instance; `None` for a refusal.
    pub instance: Option<InstanceRecord>,
    /// What becomes of the token's locks.
    pub locks: LockChange,
    /// The certificates issued, which may have to be revoked one day.
    pub issued: Vec<IssuedSerial>,
    /// What the audit log tells, in this order, before the events of the locks.
    pub events: Vec<JoinEvent>,
}

/// What joins write of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its status.
    pub status: Status,
    /// Sequence number of the trust bundle that its device has.
    pub trust_bundle: Option<u64>,
}

/// What a join writes of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Its name.
    pub id: Id,
    /// The instance that it takes the place of, where this join makes it and that is known.
    pub previous: Option<Id>,
    /// What the join was.
    pub kind: JoinKind,
    /// Its generation.
    pub generation: u32,
    /// Its own last step, which it goes on from in mode `insecure`; `None` in the others, where the token's counts.
    pub last_step: Option<LastStep>,
    /// The last moment of all certificates that this join issued for it.
    pub certificates_end: Timestamp,
}

/// What becomes of the locks on a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockChange {
    /// The token is locked, as two holders have one key. With the reason.
    Add(String),
    /// A recovery code was used: the server's own locks on the token are lifted, and every certificate issued before stays revoked.
    LiftOwn,
    /// They stay as they are.
    None,
}

/// A certificate issued, as far as its revocation needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedSerial {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// What the audit log tells of a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinEvent {
    /// An exemption was used.
    ExemptionUsed {
        /// What was used.
        used: ExemptionUse,
        /// Whether the device came by its recovery code.
        by_code: bool,
    },
    /// The device joined.
    Joined {
        /// What the join was.
        kind: JoinKind,
        /// The generation of the instance.
        generation: u32,
        /// Recoveries of the token so far.
        recovery_count: u32,
        /// Recoveries left, where this join took one or few are left.
        recoveries_left: Option<u32>,
        /// The key bound from now on.
        public_key: Option<SshKey>,
        /// Why a renewal proof was not taken for one.
        certificate_ignored: Option<String>,
    },
    /// The key was replaced.
    KeyRotated {
        /// The key before.
        previous: Thumbprint,
        /// The key from now on.
        new: Thumbprint,
    },
    /// This join took a recovery, and one is left, or none.
    RecoveriesLow {
        /// Recoveries left.
        left: u32,
        /// Recoveries allowed.
        limit: u32,
    },
    /// The join was refused.
    Refused {
        /// What the device is told.
        problem: Problem,
        /// Recoveries of the token so far.
        recovery_count: u32,
        /// The key that signed the request; `None`: no signature was verified.
        key: Option<Thumbprint>,
    },
    /// A restored server followed the device.
    RolledForward {
        /// The step that it was at; `None`: the token was not bound.
        from: Option<Step>,
    },
}

impl Effects {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::none()
    }

    fn none() -> Self {
        Self { token: None, instance: None, locks: LockChange::None, issued: vec![], events: vec![] }
    }

    /// Of a grant for which everything is signed.
    pub(super) fn of_issued(issued: &Issued, token: &TokenView<'_>, request: &Verified) -> Self {
        let grant = issued.grant();
        let locks = if grant.by_code { LockChange::LiftOwn } else { LockChange::None };
        Self {
            token: token_record(issued, token, request),
            instance: Some(instance_record(issued, token, request)),
            locks,
            issued: issued.certificates().map(IssuedSerial::of).collect(),
            events: granted_events(issued, token, request),
        }
    }
}

impl Refusal {
    /// What a refused join changes. `request`: `None` where it was not verified.
    pub fn effects(&self, token: &TokenView<'_>, request: Option<&Verified>) -> Effects {
        // A failure of the server itself tells nothing about the device, which tries again.
        if self.problem.kind == ProblemType::ServerError {
            return Effects::none();
        }
        let refused = JoinEvent::Refused {
            problem: self.problem.clone(),
            recovery_count: token.status.recovery_count,
            key: request.map(|request| Thumbprint::of(&request.key)),
        };
        let refused = Effects { events: vec![refused], ..Effects::none() };
        match self.lock_reason() {
            None => refused,
            Some(why) => {
                // The token is written as it is: its new revision undoes every join that runs beside this one.
                let unchanged = TokenRecord { status: token.status.clone(), trust_bundle: token.trust_bundle };
                Effects { token: Some(unchanged), locks: LockChange::Add(why.to_owned()), ..refused }
            }
        }
    }
}

impl IssuedSerial {
    fn of(certificate: &IssuedCertificate) -> Self {
        Self { serial: certificate.serial.clone(), not_after: certificate.not_after }
    }
}

fn token_record(issued: &Issued, token: &TokenView<'_>, request: &Verified) -> Option<TokenRecord> {
    let grant = issued.grant();
    let trust_bundle = match grant.kind {
        // A replay leaves the token as it is, whatever it tells of the device.
        JoinKind::Replay => token.trust_bundle,
        JoinKind::First | JoinKind::Recovery | JoinKind::Renewal => request.trust_bundle,
    };
    let is_changed = grant.status != *token.status || trust_bundle != token.trust_bundle;
    is_changed.then(|| TokenRecord { status: grant.status.clone(), trust_bundle })
}

fn instance_record(issued: &Issued, token: &TokenView<'_>, request: &Verified) -> InstanceRecord {
    let grant = issued.grant();
    let id = grant.step.instance;
    let is_insecure = token.spec.recovery.mode == RecoveryMode::Insecure;
    // A restored server knows the instance before from the device alone.
    let presented = request.presented.as_ref().and_then(|presented| presented.claims.as_ref().ok());
    let followed = presented.filter(|_| grant.rolled_forward.is_some()).map(|claims| claims.step);
    let before = followed.or_else(|| token.status.step()).map(|step| step.instance);
    InstanceRecord {
        id,
        // In mode `insecure` nothing tells whether it is the same host.
        previous: before.filter(|before| !is_insecure && *before != id),
        kind: grant.kind,
        generation: grant.step.generation,
        last_step: is_insecure.then(|| grant.instance_step(request)),
        certificates_end: issued.certificates().map(|certificate| certificate.not_after).max().unwrap_or(grant.not_after),
    }
}

fn granted_events(issued: &Issued, token: &TokenView<'_>, request: &Verified) -> Vec<JoinEvent> {
    let grant = issued.grant();
    let recoveries = grant.status.recoveries(token.spec);
    let takes_recovery = matches!(grant.kind, JoinKind::First | JoinKind::Recovery);
    let mut events = vec![];
    if let Some(rolled) = grant.rolled_forward {
        events.push(JoinEvent::RolledForward { from: rolled.from });
    }
    events.push(JoinEvent::Joined {
        kind: grant.kind,
        generation: grant.step.generation,
        recovery_count: grant.status.recovery_count,
        recoveries_left: recoveries.remaining().filter(|left| takes_recovery || *left <= 1),
        public_key: grant.status.bound_public_key.clone(),
        certificate_ignored: request.certificate_ignored.clone(),
    });
    if let Some(left @ 0..=1) = recoveries.remaining()
        && takes_recovery
    {
        events.push(JoinEvent::RecoveriesLow { left, limit: recoveries.limit });
    }
    if let Some(previous) = grant.rotated_from {
        events.push(JoinEvent::KeyRotated { previous, new: Thumbprint::of(&grant.key) });
    }
    if let Some(used) = grant.exemption {
        events.push(JoinEvent::ExemptionUsed { used, by_code: grant.by_code });
    }
    events
}
