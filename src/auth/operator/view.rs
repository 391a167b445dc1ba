//! Computes what operators see of a resource beside its document ([`boundkey_api::view`]).

use crate::store::Listed;
use boundkey_api::resource::{Instance, Kind, Lock, Resource, ResourceId, Token};
use boundkey_api::view::{BotView, Bound, DeviceView, InstanceView, LockInForce, LockView, RecoveriesView, TokenView, View};
use boundkey_join::server::record::rotation_due;
use boundkey_platform::time::Timestamp;

/// A device with no more recoveries left than this should get more soon.
const FEW_RECOVERIES: u32 = 1;

/// The view of a resource at `now`.
pub(super) fn of(listed: &Listed, now: Timestamp) -> Option<View> {
    let Listed { stored, locks, instance } = listed;
    match &stored.resource {
        Resource::Bot(_) => {
            let locks = in_force(locks, now);
            Some(View::Bot(BotView { locked: !locks.is_empty(), locks }))
        }
        Resource::Instance(instance) => {
            let locks = in_force(locks, now);
            Some(View::Instance(InstanceView { locked: !locks.is_empty(), locks, device: device(instance) }))
        }
        Resource::Lock(lock) => Some(View::Lock(LockView { in_force: lock.in_force(now), ends: lock.ends() })),
        Resource::Role(_) => None,
        Resource::Token(token) => Some(View::Token(Box::new(token_view(token, in_force(locks, now), instance.as_ref(), now)))),
    }
}

fn token_view(token: &Token, locks: Vec<LockInForce>, instance: Option<&Instance>, now: Timestamp) -> TokenView {
    let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
    let recoveries = status.recoveries(spec);
    let remaining = recoveries.remaining();
    let bound = bound(token, now);
    TokenView {
        bound,
        locked: !locks.is_empty(),
        locks,
        expired: token.metadata.expired(now),
        recoveries: RecoveriesView {
            used: recoveries.count,
            limit: remaining.map(|_| recoveries.limit),
            remaining,
            low: bound == Bound::Yes && remaining.is_some_and(|left| left <= FEW_RECOVERIES),
            mode: recoveries.mode,
        },
        rotation_due: rotation_due(spec, status, now),
        exemption: status.exemption.clone().filter(|exemption| exemption.expires > now),
        instance: status.bound_instance().map(|id| token.instance(id).id()),
        generation: status.step().map(|step| step.generation),
        device: instance.map(device).unwrap_or_default(),
    }
}

/// Whether a device holds the token, or can.
fn bound(token: &Token, now: Timestamp) -> Bound {
    let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
    let in_time = spec.onboarding.must_register_before.is_none_or(|deadline| now < deadline);
    if status.bound_public_key.is_some() {
        Bound::Yes
    } else if spec.onboarding.initial_public_key.is_some() || (status.registration_secret.is_some() && in_time) {
        Bound::Waiting
    } else {
        Bound::No
    }
}

fn device(instance: &Instance) -> DeviceView {
    let status = &instance.status;
    let heartbeat = status.heartbeats.back().map(|seen| &seen.heartbeat);
    DeviceView {
        last_join: status.authentications.back().map(|last| last.time),
        certificate_ends: instance.certificate_ends(),
        agent_version: heartbeat.map(|heartbeat| heartbeat.version.clone()),
        hostname: heartbeat.map(|heartbeat| heartbeat.hostname.clone()),
    }
}

fn in_force(locks: &[Lock], now: Timestamp) -> Vec<LockInForce> {
    let in_force = locks.iter().filter(|lock| lock.in_force(now));
    let seen = |lock: &Lock| LockInForce {
        lock: ResourceId::new(Kind::Lock, &lock.metadata.name),
        target: lock.spec.target.id(),
        message: lock.spec.message.clone(),
    };
    in_force.map(seen).collect()
}
