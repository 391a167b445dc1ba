//! What the server keeps of a token: `spec.bound_keypair`, written by operators, and `status.bound_keypair`, written by joins.
//! The names are those that operators of this join method know.

use serde::{Deserialize, Serialize};

use crate::{Id, Recoveries, RecoveryCode, RecoveryMode, SshKey, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Most retired keys remembered.
pub const MAX_RETIRED: usize = 32;

/// `spec.bound_keypair`: what an operator wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// How the first join proves itself.
    #[serde(default)]
    pub onboarding: Onboarding,
    /// How recoveries are judged.
    #[serde(default)]
    pub recovery: Recovery,
    /// A new key at the first join after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_after: Option<Timestamp>,
}

/// How the first join proves itself: by a key known beforehand, or else by a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Onboarding {
    /// Preregistered key, as in `authorized_keys`; the next two are then ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_public_key: Option<SshKey>,
    /// A fixed secret, copied to the status at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_secret: Option<String>,
    /// Deadline for the first join by secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub must_register_before: Option<Timestamp>,
}

/// How recoveries are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Recoveries allowed in all, the first join counted; `standard` only.
    #[serde(default = "one")]
    pub limit: u32,
    /// The mode.
    #[serde(default)]
    pub mode: RecoveryMode,
}

const fn one() -> u32 {
    1
}

impl Default for Recovery {
    fn default() -> Self {
        Self { limit: one(), mode: RecoveryMode::default() }
    }
}

/// `status.bound_keypair`: what joins made of the token. Restoring it from a backup restores the binding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// What the first join proves knowledge of; cleared by its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_secret: Option<String>,
    /// The key trusted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_public_key: Option<SshKey>,
    /// Instance of the last recovery, for bots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_bot_instance_id: Option<Id>,
    /// Host of the last recovery, for services that are not bots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_host_id: Option<Id>,
    /// Recoveries so far, the first join counted.
    #[serde(default)]
    pub recovery_count: u32,
    /// When the last recovery was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_recovered_at: Option<Timestamp>,
    /// When the key was last replaced; a first registration is no rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rotated_at: Option<Timestamp>,
    /// The life of this token: old join states mean nothing after a `reset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Id>,
    /// The last step, and how it came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<LastStep>,
    /// Keys bound before, the newest first; not accepted again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_keys: Vec<Thumbprint>,
    /// The stamp of the last step that was made without a matching join state: by an exemption or a recovery code. A request whose
    /// challenge is older than this step may have been in step when its device asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_ms: Option<u64>,
    /// The stamp of the last step that was made by a recovery code. A join state issued before it names no key any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_from_ms: Option<u64>,
    /// Until when steps made so far use up the pace, in milliseconds since 1970 (see `decision/pace.rs`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace_ms: Option<u64>,
    /// A pending exemption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exemption: Option<Exemption>,
}

/// The last step of a token, and what tells a lost answer from a second holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastStep {
    /// Generation of the bound instance.
    pub generation: u32,
    /// When the step was made, in milliseconds since 1970, as its join state says.
    pub issued_at_ms: u64,
    /// The attempt that made it.
    pub attempt: Id,
    /// SHA-256, base64url, of the join state that the attempt presented; absent if it presented none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// End of the certificate issued with it.
    pub not_after: Timestamp,
}

/// An operator's leave to come back, beyond limit and join state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exemption {
    /// Recoveries still allowed by it.
    pub recoveries: u32,
    /// Whether the next join may come without a matching join state. The first grant ends it, whatever that grant is.
    pub waive_join_state: bool,
    /// When it ends unused.
    pub expires: Timestamp,
    /// The code of the only key that may come back by it. Without a code, the first holder to prove a key of the token does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RecoveryCode>,
    /// Why it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Status {
    /// Where the token has got to; `None` before the first join or where the stored state is not whole.
    pub fn step(&self) -> Option<Step> {
        let instance = self.bound_instance()?;
        let last = self.last_step.as_ref()?;
        Some(Step { recovery: self.recovery_count, generation: last.generation, instance })
    }

    /// The bot instance, or the host, of the last recovery.
    pub fn bound_instance(&self) -> Option<Id> {
        self.bound_bot_instance_id.or(self.bound_host_id)
    }

    /// Recoveries used and allowed under `spec`.
    pub fn recoveries(&self, spec: &Spec) -> Recoveries {
        Recoveries { count: self.recovery_count, limit: spec.recovery.limit, mode: spec.recovery.mode }
    }
}

/// Whether a rotation is due: `rotate_after` has passed, and no rotation followed it.
pub fn rotation_due(spec: &Spec, status: &Status, now: Timestamp) -> bool {
    let after_last = |due: Timestamp| status.last_rotated_at.is_none_or(|last| due > last);
    status.bound_public_key.is_some() && spec.rotate_after.is_some_and(|due| due <= now && after_last(due))
}
