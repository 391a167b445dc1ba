//! What the store has of a token, read at one moment: all that a join is judged against.

use ring::digest::{Context, SHA256};

use super::record::{Exemption, LastStep, Spec, Status};
use crate::identity::InstanceKind;
use crate::{Id, Problem, ProblemType, RecoveryCode, RecoveryMode, Thumbprint};
use boundkey_platform::time::Timestamp;

/// A token, its locks and its instances.
#[derive(Clone, Copy, Debug)]
pub struct TokenView<'a> {
    /// Its name.
    pub name: &'a str,
    /// What its instances are.
    pub kind: InstanceKind,
    /// What the operator wants.
    pub spec: &'a Spec,
    /// What joins made of it.
    pub status: &'a Status,
    /// Sequence number of the trust bundle that its device has.
    pub trust_bundle: Option<u64>,
    /// The revision of all this: another at every write of the token.
    pub revision: u64,
    /// The epoch of the database: another after every restore.
    pub epoch: Id,
    /// The locks in force on the token, on its bot and on its instances.
    pub locks: &'a [LockInForce],
    /// Instances that keep steps of their own, as in mode `insecure`: the bound one and the one that the device names.
    pub instances: &'a [InstanceView],
}

/// A lock that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInForce {
    /// The instance that it stops; `None`: it stops every join with the token.
    pub instance: Option<Id>,
    /// Whether it is one of the server's own on the token, which a recovery code opens.
    pub opened_by_code: bool,
    /// What the device is told.
    pub message: String,
}

/// An instance that goes on from a step of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    /// Its name.
    pub id: Id,
    /// Its revision.
    pub revision: u64,
    /// Its last step.
    pub last_step: LastStep,
}

/// The point in a token's life that a challenge is made at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The revision that a join must find unchanged; 0: none, in mode `insecure` for a device that names no instance.
    pub revision: u64,
    /// When the current step was made, in milliseconds since 1970; 0 before the first join.
    pub step_ms: u64,
    /// Names the request that made the current step.
    pub tag: StepTag,
}

impl Anchor {
    /// Of a join that is compared with nothing.
    const FREE: Self = Self { revision: 0, step_ms: 0, tag: StepTag([0; StepTag::LENGTH]) };
}

/// The first bytes of SHA-256 over attempt, join state presented and bound key of a step: enough to know a late repetition of the
/// request that made it. It is no proof of anything, for the challenge that carries it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTag([u8; Self::LENGTH]);

impl StepTag {
    /// Its length in bytes.
    pub const LENGTH: usize = 8;

    /// Of the step that `attempt` made from the join state with this digest, after which `key` was bound.
    pub fn of(attempt: Id, from: Option<&str>, key: Thumbprint) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(&attempt.0);
        hash.update(key.as_bytes());
        // Last, as it has no fixed length; no digest is empty.
        hash.update(from.unwrap_or_default().as_bytes());
        let digest = hash.finish();
        Self(std::array::from_fn(|i| digest.as_ref()[i]))
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl<'a> TokenView<'a> {
    /// The life of the token.
    ///
    /// # Errors
    /// [`ProblemType::TokenUnusable`] where an operator's document left it out.
    pub fn incarnation(&self) -> Result<Id, Problem> {
        let missing = || Problem::new(ProblemType::TokenUnusable, "the token has no incarnation: reset it");
        self.status.incarnation.ok_or_else(missing)
    }

    /// The exemption, where one is in force at `now`.
    pub fn exemption(&self, now: Timestamp) -> Option<&'a Exemption> {
        self.status.exemption.as_ref().filter(|exemption| exemption.expires > now)
    }

    /// The recovery code that one device may come back with, where an exemption names one.
    pub fn pending_code(&self, now: Timestamp) -> Option<&'a RecoveryCode> {
        self.exemption(now)?.key.as_ref()
    }

    /// Where a join by a device that names `instance` starts from.
    ///
    /// In mode `insecure` many hosts share the token, and each goes on from its own instance: what one does must not make the
    /// challenges of the others stale. A device without an instance recovers, which takes nothing from anybody there.
    pub fn anchor(&self, instance: Option<Id>) -> Anchor {
        if self.spec.recovery.mode != RecoveryMode::Insecure {
            return self.token_anchor();
        }
        let Some(id) = instance else { return Anchor::FREE };
        match self.instance(id) {
            Some(instance) => self.anchor_at(instance.revision, Some(&instance.last_step)),
            None if self.status.bound_instance() == Some(id) => self.token_anchor(),
            None => Anchor::FREE,
        }
    }

    /// The step that `id` is at by itself, in mode `insecure`.
    pub fn instance(&self, id: Id) -> Option<&'a InstanceView> {
        let insecure = self.spec.recovery.mode == RecoveryMode::Insecure;
        self.instances.iter().filter(|_| insecure).find(|instance| instance.id == id)
    }

    fn token_anchor(&self) -> Anchor {
        self.anchor_at(self.revision, self.status.last_step.as_ref())
    }

    fn anchor_at(&self, revision: u64, last: Option<&LastStep>) -> Anchor {
        let Some((last, key)) = last.zip(self.status.bound_public_key.as_ref()) else {
            return Anchor { revision, ..Anchor::FREE };
        };
        let tag = StepTag::of(last.attempt, last.from.as_deref(), Thumbprint::of(&key.0));
        Anchor { revision, step_ms: last.issued_at_ms, tag }
    }
}
