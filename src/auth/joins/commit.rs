//! What a join leaves in the store: token, instance, certificates and audit events of one transaction.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Accepted, Refused};
use crate::api::event::{Event, EventKind};
use crate::api::resource::{
    Authentication, Instance, InstanceSpec, InstanceStatus, Kind, Lock, LockSpec, LockTarget, Metadata, Resource, ResourceId,
};
use crate::auth::store::{Change, Commit, IssuedRecord, JoinView};
use crate::join::server::decision::Grant;
use crate::join::{Id, JoinKind, RecoveryMode, Thumbprint};
use crate::time::Timestamp;

/// How long the record of an instance outlives its newest certificate.
const INSTANCE_GRACE: Duration = Duration::from_secs(300);

/// A join under way: what it is decided on, when, and where it came from.
#[derive(Clone, Copy)]
pub(super) struct JoinContext<'a> {
    pub(super) view: &'a JoinView,
    pub(super) now: Timestamp,
    pub(super) from: SocketAddr,
}

impl JoinContext<'_> {
    /// Everything that a granted join changes, with the events that tell of it.
    pub(super) fn accepted(&self, accepted: &Accepted) -> Commit {
        let Accepted { grant, certified, .. } = accepted;
        let instance = grant.step.instance.to_string();
        let mut token = self.view.token.resource.clone();
        let instance_id = token.instance(grant.step.instance).id();
        let (name, bot) = (token.metadata.name.clone(), token.spec.bot_name.clone());
        token.status.bound_keypair = grant.status.clone();
        // A number of the store's is no greater.
        // A replay leaves the token as it is, whatever it tells of the device.
        if grant.kind != JoinKind::Replay {
            token.status.trust_bundle = accepted.request.bundle.map(|sequence| sequence.min(i64::MAX.unsigned_abs()));
        }
        let issued = certified.outputs.iter().chain([&certified.identity]);
        let issued: Vec<_> = issued
            .map(|issued| IssuedRecord {
                serial: issued.serial.clone(),
                token: name.clone(),
                bot: bot.clone(),
                instance: instance.clone(),
                not_after: issued.not_after,
            })
            .collect();
        let known = self.view.instances.iter().find(|stored| stored.resource.metadata.name == instance);
        let record = self.instance(accepted, known.map(|stored| stored.resource.clone()));
        let mut changes =
            vec![Change { id: instance_id, expected: known.map(|stored| stored.revision), to: Some(Resource::Instance(record)) }];
        let (token_id, revision) = (ResourceId::new(Kind::Token, name.clone()), self.view.token.revision);
        let mut expects = vec![];
        // A join that leaves the token as it is does not make another revision of it: challenges that are under way stay good.
        if token == self.view.token.resource {
            expects.push((token_id, revision));
        } else {
            changes.push(Change { id: token_id, expected: Some(revision), to: Some(Resource::Token(token)) });
        }
        let mut events = self.events(accepted);
        if grant.by_code {
            for lock in self.view.locks.iter().filter(|lock| self.is_own_lock(&lock.resource)) {
                events.push(self.lock_removed(&lock.resource, grant));
                let id = ResourceId::new(Kind::Lock, &lock.resource.metadata.name);
                changes.push(Change { id, expected: Some(lock.revision), to: None });
            }
        }
        Commit {
            policy: Some(self.view.policy),
            expects,
            changes,
            supersedes: grant.by_code.then_some(name),
            keep_issued: accepted.outstanding.keep(issued.len()),
            issued,
            events,
        }
    }

    /// Whether the server made the lock itself, on the token.
    fn is_own_lock(&self, lock: &Lock) -> bool {
        lock.is_own_of(&self.view.token.resource.metadata.name)
    }

    fn lock_removed(&self, lock: &Lock, grant: &Grant) -> Event {
        let event = Event {
            reason: Some("the device with the recovery code came back".into()),
            ..self.of_grant(EventKind::LockRemoved, grant)
        };
        event.with("lock", lock.metadata.name.as_str()).with("automatic", true)
    }

    /// The record of the instance after this join; a new one where there was none.
    fn instance(&self, accepted: &Accepted, known: Option<Instance>) -> Instance {
        let Accepted { request, grant, certified, .. } = accepted;
        let token = &self.view.token.resource;
        let insecure = token.spec.bound_keypair.recovery.mode == RecoveryMode::Insecure;
        let mut record = known.unwrap_or_else(|| {
            // A restored server knows the instance before from the device alone.
            let claims = accepted.verified.presented.as_ref().and_then(|presented| presented.claims.as_ref().ok());
            let followed = claims.filter(|_| grant.rolled_forward.is_some()).map(|claims| claims.step);
            let previous = followed.or(token.status.bound_keypair.step()).map(|step| step.instance);
            Instance {
                metadata: Metadata::named(grant.step.instance.to_string()),
                spec: InstanceSpec {
                    bot_name: token.spec.bot_name.clone(),
                    token: token.metadata.name.clone(),
                    // In insecure mode nobody knows whether it is the same host.
                    previous_instance: previous.filter(|id| !insecure && *id != grant.step.instance),
                },
                status: InstanceStatus::default(),
            }
        });
        let ends = certified.outputs.iter().map(|issued| issued.not_after).max().unwrap_or_default().max(grant.not_after);
        record.metadata.expires = record.metadata.expires.max(Some(ends.plus(INSTANCE_GRACE)));
        let authentication = Authentication {
            time: self.now,
            kind: grant.kind,
            generation: grant.step.generation,
            remote_addr: Some(self.from.to_string()),
        };
        record.status.note(authentication, request.heartbeat.clone());
        record.status.last_step = insecure.then(|| grant.instance_step(&accepted.verified));
        record
    }

    fn events(&self, accepted: &Accepted) -> Vec<Event> {
        let Accepted { verified, grant, .. } = accepted;
        let mut events = vec![];
        if let Some(rolled) = grant.rolled_forward {
            let from = rolled.from.map(|step| format!("recovery sequence {}, generation {}", step.recovery, step.generation));
            let from = from.unwrap_or_else(|| "not bound".into());
            events.push(self.of_grant(EventKind::JoinRolledForward, grant).with("from", from));
        }
        let main = match grant.kind {
            JoinKind::First => EventKind::JoinFirst,
            JoinKind::Recovery => EventKind::JoinRecovery,
            JoinKind::Renewal => EventKind::JoinRenewal,
            JoinKind::Replay => EventKind::JoinReplay,
        };
        let mut joined = self
            .of_grant(main, grant)
            .with("generation", grant.step.generation)
            .with("recovery_count", grant.status.recovery_count)
            .with("recovery_mode", self.mode())
            .with("public_key", grant.status.bound_public_key.as_ref().map(ToString::to_string));
        let recoveries = grant.status.recoveries(&self.view.token.resource.spec.bound_keypair);
        let spends = matches!(grant.kind, JoinKind::First | JoinKind::Recovery);
        if let Some(left) = recoveries.remaining().filter(|left| spends || *left <= 1) {
            joined = joined.with("recoveries_left", left);
        }
        if let Some(why) = &verified.certificate_ignored {
            joined = joined.with("certificate_ignored", why.as_str());
        }
        events.push(joined);
        // Renewals leave them as they are.
        if let Some(left @ 0..=1) = recoveries.remaining().filter(|_| spends) {
            let low = self.of_grant(EventKind::RecoveriesLow, grant);
            events.push(low.with("recoveries_left", left).with("limit", recoveries.limit));
        }
        if let Some(old) = grant.rotated_from {
            let new = Thumbprint::of(&grant.key).to_string();
            let rotated = self.of_grant(EventKind::KeyRotated, grant);
            events.push(rotated.with("previous_key", old.to_string()).with("new_key", new));
        }
        if let Some(used) = grant.exemption {
            let event = self.of_grant(EventKind::ExemptionUsed, grant).with("paid", used.paid).with("ended", used.ended);
            events.push(event.with("by_code", grant.by_code));
        }
        events
    }

    /// The event of a refused join.
    pub(super) fn refused(&self, refused: &Refused) -> Event {
        let Refused { refusal, verified } = refused;
        let status = &self.view.token.resource.status.bound_keypair;
        let event = self.event(EventKind::JoinRefused);
        let event = match status.step() {
            Some(step) => event.about(self.view.token.resource.instance(step.instance)),
            None => event,
        };
        let event = Event { success: false, reason: Some(refusal.problem.detail.clone()), ..event }
            .with("problem", refusal.problem.kind.name())
            .with("recovery_count", status.recovery_count)
            .with("recovery_mode", self.mode());
        match verified {
            Some(verified) => event.with("key", Thumbprint::of(&verified.key).to_string()),
            None => event,
        }
    }

    /// The lock `id` for two holders of one key: the change, and the event that tells of it.
    pub(super) fn lock(&self, why: &str, id: Id) -> (Change, Event) {
        let token = &self.view.token.resource;
        let name = &token.metadata.name;
        let id = id.to_string();
        let of = match &token.spec.bot_name {
            Some(bot) => format!("bot {bot}"),
            None => token.status.bound_keypair.bound_host_id.map_or_else(|| "no host".into(), |host| format!("host {host}")),
        };
        let message = format!("token {name} of {of} is locked: two holders of one key, it may be stolen ({why})");
        let lock = Lock {
            metadata: Metadata::named(&id),
            spec: LockSpec { target: LockTarget::Token(name.clone()), message: message.clone(), expires: None, automatic: true },
        };
        let event = Event { reason: Some(message), ..self.event(EventKind::LockCreated) };
        let event = event.with("lock", id.clone()).with("automatic", true);
        (Change { id: ResourceId::new(Kind::Lock, id), expected: None, to: Some(Resource::Lock(lock)) }, event)
    }

    fn of_grant(&self, kind: EventKind, grant: &Grant) -> Event {
        self.event(kind).about(self.view.token.resource.instance(grant.step.instance))
    }

    fn event(&self, kind: EventKind) -> Event {
        let token = &self.view.token.resource;
        Event {
            token: Some(token.metadata.name.clone()),
            bot: token.spec.bot_name.clone(),
            remote_addr: Some(self.from.to_string()),
            ..Event::new(self.now, kind)
        }
    }

    fn mode(&self) -> &'static str {
        match self.view.token.resource.spec.bound_keypair.recovery.mode {
            RecoveryMode::Standard => "standard",
            RecoveryMode::Relaxed => "relaxed",
            RecoveryMode::Insecure => "insecure",
        }
    }
}
