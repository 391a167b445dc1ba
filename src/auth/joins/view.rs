//! From resources to what the decision looks at.

use crate::store::JoinView;
use boundkey_api::resource::{Lock, LockTarget};
use boundkey_join::server::view::{InstanceView, LockInForce, TokenView};
use boundkey_platform::time::Timestamp;

/// The parts of a [`TokenView`] that the store's view has in another form.
pub(super) struct ViewParts {
    locks: Vec<LockInForce>,
    instances: Vec<InstanceView>,
}

impl ViewParts {
    /// Of what the store gave, at `now`.
    pub(super) fn new(view: &JoinView, now: Timestamp) -> Self {
        let token = &view.token.resource.metadata.name;
        let locks = view.locks.iter().map(|stored| &stored.resource).filter(|lock| lock.in_force(now));
        let instances = view.instances.iter().filter_map(|stored| {
            let id = stored.resource.metadata.name.parse().ok()?;
            let last_step = stored.resource.status.last_step.clone()?;
            Some(InstanceView { id, revision: stored.revision, last_step })
        });
        Self { locks: locks.filter_map(|lock| in_force(lock, token)).collect(), instances: instances.collect() }
    }

    /// The whole view.
    pub(super) fn token<'a>(&'a self, view: &'a JoinView) -> TokenView<'a> {
        let token = &view.token.resource;
        TokenView {
            name: &token.metadata.name,
            kind: token.instance_kind(),
            spec: &token.spec.bound_keypair,
            status: &token.status.bound_keypair,
            trust_bundle: token.status.trust_bundle,
            revision: view.token.revision,
            epoch: view.epoch,
            locks: &self.locks,
            instances: &self.instances,
        }
    }
}

/// `None`: a lock on an instance that no join can be of, as its name is no id.
fn in_force(lock: &Lock, token: &str) -> Option<LockInForce> {
    let instance = match &lock.spec.target {
        LockTarget::BotInstance(id) | LockTarget::Host(id) => Some(id.parse().ok()?),
        LockTarget::Bot(_) | LockTarget::Token(_) => None,
    };
    Some(LockInForce { instance, opened_by_code: lock.is_own_of(token), message: lock.spec.message.clone() })
}
