//! The state that a join starts from.

use super::RolledForward;
use super::key::{is_bound, newer_state};
use crate::server::record::LastStep;
use crate::server::request::Verified;
use crate::server::view::TokenView;
use crate::{Claims, RecoveryMode, Step};

/// The state from which a join starts: the token's; or the device's, where a restored server follows it; or in mode `insecure` that of
/// the instance whose certificate is shown.
pub(super) struct PriorState {
    /// The step.
    pub step: Step,
    /// When it was made, in milliseconds since 1970.
    pub issued_at_ms: u64,
    /// Where a restored server was, where it follows the device.
    pub rolled_forward: Option<RolledForward>,
    /// How the step came about; `None` where a restore has forgotten it.
    pub last: Option<LastStep>,
    /// Whether it is the state of another instance than the token's last recovery made. The token's own step then stays as it is.
    pub of_other_instance: bool,
}

impl PriorState {
    /// `None`: nothing has joined with the token yet.
    pub fn find(token: &TokenView<'_>, request: &Verified) -> Option<Self> {
        let is_insecure = token.spec.recovery.mode == RecoveryMode::Insecure;
        // Mode `insecure` does not look at the join state, but a restored server still learns of a newer key from it.
        if is_insecure && is_bound(token.status, &request.key) {
            return Self::of_instance(token, request).or_else(|| Self::of_token(token));
        }
        match newer_state(token, request) {
            Some(claims) => Some(Self::of_device(token, claims)),
            None => Self::of_token(token),
        }
    }

    /// A restored server takes the device's word for where it has got to: our own signature is under it.
    fn of_device(token: &TokenView<'_>, claims: &Claims) -> Self {
        Self {
            step: claims.step,
            issued_at_ms: claims.iat_ms,
            rolled_forward: Some(RolledForward { from: token.status.step() }),
            last: None,
            of_other_instance: false,
        }
    }

    fn of_token(token: &TokenView<'_>) -> Option<Self> {
        // Without a bound key there was no join, whatever else a document that an operator wrote says.
        token.status.bound_public_key.as_ref()?;
        let last = token.status.last_step.clone()?;
        Some(Self {
            step: token.status.step()?,
            issued_at_ms: last.issued_at_ms,
            rolled_forward: None,
            last: Some(last),
            of_other_instance: false,
        })
    }

    /// Where the instance has got to whose certificate is shown. A certificate of ours of a later generation is one that a restored
    /// server has forgotten. The attempt that made the token's last step asks for its answer again, and still shows the certificate of
    /// the instance before: it starts from the token's state.
    fn of_instance(token: &TokenView<'_>, request: &Verified) -> Option<Self> {
        let shown = request.certificate.as_ref()?.subject.step;
        if token.status.last_step.as_ref().is_some_and(|last| last.attempt == request.attempt) {
            return None;
        }
        let last = &token.instance(shown.instance)?.last_step;
        let known = Step { generation: last.generation, ..shown };
        let forgotten = shown.is_after(&known);
        Some(Self {
            step: if forgotten { shown } else { known },
            issued_at_ms: last.issued_at_ms,
            rolled_forward: forgotten.then_some(RolledForward { from: Some(known) }),
            last: (!forgotten).then(|| last.clone()),
            of_other_instance: token.status.step()?.instance != shown.instance,
        })
    }
}
