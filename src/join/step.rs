//! Where a token's life has got to, and the signed statement of it: the join state that a device carries, and the same
//! claims inside its identity certificate.

use boundkey_hal::{Error as KeyError, PublicKey, Signature};
use serde::{Deserialize, Serialize};

use super::identity::{IdentitySubject, InstanceKind};
use super::jws::{Header, Jws, JwsError};
use super::{Id, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Longest join state, in bytes.
pub const MAX_JOIN_STATE: usize = 1024;

/// One step of a token's life. Every join but a replay makes the next one; later steps compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Recovery sequence: recoveries so far, the first join counted.
    pub recovery: u32,
    /// Generation counter: 1 after a recovery, then one more at each renewal.
    pub generation: u32,
    /// The bot instance (or host) that the last recovery made.
    pub instance: Id,
}

impl Step {
    /// Whether this step comes after `other` in one token's life.
    pub fn is_after(&self, other: &Self) -> bool {
        (self.recovery, self.generation) > (other.recovery, other.generation)
    }
}

/// What the server states of a step. At most [`MAX_JOIN_STATE`] bytes once signed; opaque to the device; has no expiry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Cluster.
    pub iss: String,
    /// Token.
    pub sub: String,
    /// Incarnation of the token.
    pub inc: Id,
    /// The step.
    #[serde(flatten)]
    pub step: Step,
    /// Thumbprint of the key bound at that step.
    pub jkt: Thumbprint,
    /// What the instance is.
    #[serde(default, rename = "host", skip_serializing_if = "InstanceKind::is_bot")]
    pub kind: InstanceKind,
    /// The attempt that made the step: the same counters in another line of steps were made by another.
    pub jti: Id,
    /// When the step was made, in milliseconds since 1970. Rises with every step of a token, whatever the server's clock does.
    pub iat_ms: u64,
}

impl Claims {
    /// Signs a join state with the server's key.
    pub fn sign(&self, key: &PublicKey, sign: impl FnOnce(&[u8]) -> Result<Signature, KeyError>) -> Result<String, KeyError> {
        let header = Header { typ: Some("JWT".into()), ..Header::by_thumbprint(key) };
        Jws::sign(&header, self, sign).map(|jws| jws.to_compact())
    }

    /// The claims of a join state that one of the server's `keys` signed.
    pub fn verify(join_state: &str, keys: &[PublicKey]) -> Result<Self, JwsError> {
        if join_state.len() > MAX_JOIN_STATE {
            return Err(JwsError::Form);
        }
        let jws = Jws::from_compact(join_state)?;
        let kid = jws.header()?.kid.ok_or(JwsError::Form)?;
        let key = keys.iter().find(|key| Thumbprint::of(key).to_string() == kid).ok_or(JwsError::Signature)?;
        jws.verify(key)
    }

    /// The subject of the identity certificate that is issued for the same step.
    pub fn subject(&self) -> IdentitySubject {
        IdentitySubject {
            cluster: self.iss.clone(),
            token: self.sub.clone(),
            incarnation: self.inc,
            kind: self.kind,
            step: self.step,
        }
    }

    /// When the step was made.
    pub fn issued_at(&self) -> Timestamp {
        Timestamp::from_millis(self.iat_ms)
    }
}
