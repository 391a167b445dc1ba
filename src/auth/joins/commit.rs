//! From the effects of a join to what the store commits: token, instance, locks, certificates and audit events of one transaction.

use std::net::SocketAddr;

use crate::store::{Change, Commit, Form, IssuedRecord, JoinView};
use boundkey_api::event::{Event, EventKind};
use boundkey_api::resource::{
    Authentication, INSTANCE_GRACE, Instance, InstanceSpec, InstanceStatus, Kind, Lock, LockSpec, LockTarget, Metadata, Resource,
    ResourceId,
};
use boundkey_join::message::Heartbeat;
use boundkey_join::server::effects::{Effects, InstanceRecord, JoinEvent, LockChange, TokenRecord};
use boundkey_join::{Id, JoinKind, RecoveryMode};
use boundkey_platform::time::Timestamp;

/// A join under way: what it is decided on, when, and where it came from.
#[derive(Clone, Copy)]
pub(super) struct JoinContext<'a> {
    pub(super) view: &'a JoinView,
    pub(super) now: Timestamp,
    pub(super) from: SocketAddr,
}

impl JoinContext<'_> {
    /// Everything that a granted join changes, with the events that tell of it.
    pub(super) fn granted(&self, effects: Effects, heartbeat: Heartbeat, keep_issued: Option<u32>) -> Commit {
        let token = &self.view.token.resource;
        let mut commit = Commit { reads: self.view.reads.clone(), keep_issued, ..Commit::default() };
        commit.events = effects.events.iter().map(|event| self.event(event, effects.instance.as_ref())).collect();
        if let Some(record) = &effects.instance {
            let instance = record.id.to_string();
            commit.issued = effects
                .issued
                .into_iter()
                .map(|issued| IssuedRecord {
                    form: Form::of_serial(&issued.serial),
                    serial: issued.serial,
                    token: token.metadata.name.clone(),
                    bot: token.spec.bot_name.clone(),
                    instance: instance.clone(),
                    not_after: issued.not_after,
                })
                .collect();
            commit.changes.push(self.instance(record, heartbeat));
        }
        commit.changes.extend(effects.token.map(|record| self.token(record)));
        if effects.locks == LockChange::LiftOwn {
            self.lift_own_locks(&mut commit, effects.instance.as_ref());
        }
        commit
    }

    /// What a refused join changes. `lock_id` names the lock, where its effects put one on.
    pub(super) fn refused(&self, effects: Effects, lock_id: Id) -> Commit {
        let mut commit =
            Commit { events: effects.events.iter().map(|event| self.event(event, None)).collect(), ..Commit::default() };
        commit.changes.extend(effects.token.map(|record| self.token(record)));
        if let LockChange::Add(why) = &effects.locks {
            let (lock, event) = self.lock(why, lock_id);
            commit.reads = self.view.reads.clone();
            commit.changes.push(lock);
            commit.events.push(event);
        }
        commit
    }

    fn token(&self, record: TokenRecord) -> Change {
        let mut token = self.view.token.resource.clone();
        token.status.bound_keypair = record.status;
        token.status.trust_bundle = record.trust_bundle;
        Change { id: token_id(&token.metadata.name), expected: Some(self.view.token.revision), to: Some(Resource::Token(token)) }
    }

    /// The record of the instance after this join; a new one where there was none.
    fn instance(&self, record: &InstanceRecord, heartbeat: Heartbeat) -> Change {
        let token = &self.view.token.resource;
        let name = record.id.to_string();
        let known = self.view.instances.iter().find(|stored| stored.resource.metadata.name == name);
        let new = || Instance {
            metadata: Metadata::named(name.clone()),
            spec: InstanceSpec {
                bot_name: token.spec.bot_name.clone(),
                token: token.metadata.name.clone(),
                previous_instance: record.previous,
            },
            status: InstanceStatus::default(),
        };
        let mut instance = known.map_or_else(new, |stored| stored.resource.clone());
        instance.metadata.expires = instance.metadata.expires.max(Some(record.certificates_end.plus(INSTANCE_GRACE)));
        let authentication = Authentication {
            time: self.now,
            kind: record.kind,
            generation: record.generation,
            remote_addr: Some(self.from.to_string()),
        };
        instance.status.note(authentication, heartbeat);
        instance.status.last_step.clone_from(&record.last_step);
        Change {
            id: token.instance(record.id).id(),
            expected: known.map(|stored| stored.revision),
            to: Some(Resource::Instance(instance)),
        }
    }

    /// The locks that the server itself put on the token go. The certificates issued before stay revoked.
    fn lift_own_locks(&self, commit: &mut Commit, instance: Option<&InstanceRecord>) {
        let token = &self.view.token.resource.metadata.name;
        for lock in self.view.locks.iter().filter(|lock| lock.resource.is_own_of(token)) {
            let name = lock.resource.metadata.name.as_str();
            let event = Event {
                reason: Some("the device with the recovery code came back".into()),
                ..self.about(EventKind::LockRemoved, instance.map(|record| record.id))
            };
            commit.events.push(event.with("lock", name).with("automatic", true));
            commit.changes.push(Change { id: ResourceId::new(Kind::Lock, name), expected: Some(lock.revision), to: None });
        }
        commit.supersedes = Some(token.clone());
    }

    /// The lock `id` for two holders of one key: the change, and the event that tells of it.
    fn lock(&self, why: &str, id: Id) -> (Change, Event) {
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
        let event = Event { reason: Some(message), ..self.about(EventKind::LockCreated, None) };
        let event = event.with("lock", id.clone()).with("automatic", true);
        (Change { id: ResourceId::new(Kind::Lock, id), expected: None, to: Some(Resource::Lock(lock)) }, event)
    }

    /// The record of `event`. One of a refusal is about the instance that the token is bound to.
    fn event(&self, event: &JoinEvent, instance: Option<&InstanceRecord>) -> Event {
        let about = |kind| self.about(kind, instance.map(|record| record.id));
        match event {
            JoinEvent::ExemptionUsed { used, by_code } => {
                about(EventKind::ExemptionUsed).with("paid", used.paid).with("ended", used.ended).with("by_code", *by_code)
            }
            JoinEvent::Joined { kind, generation, recovery_count, recoveries_left, public_key, certificate_ignored } => {
                let joined = about(joined(*kind))
                    .with("generation", *generation)
                    .with("recovery_count", *recovery_count)
                    .with("recovery_mode", self.mode())
                    .with("public_key", public_key.as_ref().map(ToString::to_string));
                let joined = match recoveries_left {
                    Some(left) => joined.with("recoveries_left", *left),
                    None => joined,
                };
                match certificate_ignored {
                    Some(why) => joined.with("certificate_ignored", why.as_str()),
                    None => joined,
                }
            }
            JoinEvent::KeyRotated { previous, new } => {
                about(EventKind::KeyRotated).with("previous_key", previous.to_string()).with("new_key", new.to_string())
            }
            JoinEvent::RecoveriesLow { left, limit } => {
                about(EventKind::RecoveriesLow).with("recoveries_left", *left).with("limit", *limit)
            }
            JoinEvent::Refused { problem, recovery_count, key } => {
                let bound = self.view.token.resource.status.bound_keypair.step().map(|step| step.instance);
                let refused =
                    Event { success: false, reason: Some(problem.detail.clone()), ..self.about(EventKind::JoinRefused, bound) };
                let refused = refused
                    .with("problem", problem.kind.name())
                    .with("recovery_count", *recovery_count)
                    .with("recovery_mode", self.mode());
                match key {
                    Some(key) => refused.with("key", key.to_string()),
                    None => refused,
                }
            }
            JoinEvent::RolledForward { from } => {
                let from = from.map(|step| format!("recovery sequence {}, generation {}", step.recovery, step.generation));
                about(EventKind::JoinRolledForward).with("from", from.unwrap_or_else(|| "not bound".into()))
            }
        }
    }

    /// An event of this join, about the token and `instance`.
    fn about(&self, kind: EventKind, instance: Option<Id>) -> Event {
        let token = &self.view.token.resource;
        let event = Event {
            token: Some(token.metadata.name.clone()),
            bot: token.spec.bot_name.clone(),
            remote_addr: Some(self.from.to_string()),
            ..Event::new(self.now, kind)
        };
        match instance {
            Some(instance) => event.about(token.instance(instance)),
            None => event,
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

fn token_id(name: &str) -> ResourceId {
    ResourceId::new(Kind::Token, name)
}

fn joined(kind: JoinKind) -> EventKind {
    match kind {
        JoinKind::First => EventKind::JoinFirst,
        JoinKind::Recovery => EventKind::JoinRecovery,
        JoinKind::Renewal => EventKind::JoinRenewal,
        JoinKind::Replay => EventKind::JoinReplay,
    }
}
