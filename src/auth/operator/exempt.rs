//! Exemptions: one step that brings a device back, and that ends by itself. Each orders a new key too.

use std::time::Duration;

use super::error::{OperatorError, refused, retry_on_conflict};
use super::{Operator, event};
use crate::store::{Change, Commit, StoreError, Stored};
use boundkey_api::actor::Actor;
use boundkey_api::call::{CancelExemption, Exempt, Exempted};
use boundkey_api::event::{Event, EventKind, MAX_TEXT};
use boundkey_api::resource::{Kind, Lock, LockSpec, LockTarget, Metadata, Resource, ResourceId, Token};
use boundkey_join::server::record::Exemption;
use boundkey_join::{Id, ProblemType, RecoveryMode, Thumbprint};
use boundkey_platform::time::Timestamp;

impl Operator {
    pub(crate) fn exempt(&self, call: Exempt, actor: &Actor) -> Result<Exempted, OperatorError> {
        if call.recoveries == 0 || call.seconds == 0 {
            return refused(ProblemType::BadRequest, "an exemption allows at least one recovery, for at least one second");
        }
        if call.reason.as_ref().is_some_and(|reason| reason.len() > MAX_TEXT) {
            return refused(ProblemType::BadRequest, format!("the reason is longer than {MAX_TEXT} bytes"));
        }
        retry_on_conflict(move || {
            let now = self.clock.now();
            let name = &call.token;
            let Some(view) = self.store.join_view(name, None)? else {
                return refused(ProblemType::NotFound, format!("there is no token/{name}"));
            };
            let mut token = view.token.resource;
            check_code(&call, &token)?;
            let exemption = Exemption {
                recoveries: call.recoveries,
                waive_join_state: true,
                expires: now.plus(Duration::from_secs(call.seconds)),
                key: call.key.clone(),
                reason: call.reason.clone(),
            };
            let mut granted =
                with_exemption(event(now, EventKind::ExemptionGranted, &Resource::Token(token.clone()), actor), &exemption);
            granted.reason.clone_from(&call.reason);
            // A lock that appears meanwhile is looked at too.
            let mut commit = Commit { reads: view.reads, ..Commit::default() };
            let (own, others): (Vec<_>, Vec<_>) = view.locks.into_iter().partition(|lock| lock.resource.is_own_of(name));
            let lifted = if call.key.is_some() {
                // The device that the code names takes the locks away when it comes.
                self.keep_locked(&own, &token, &mut commit, actor, now)?;
                vec![]
            } else {
                lift(own, &mut commit, actor, now)
            };
            commit.events.push(granted);
            order_rotation(&mut token, now);
            token.status.bound_keypair.exemption = Some(exemption.clone());
            commit.changes.push(change(token, view.token.revision));
            self.store.commit(commit)?;
            let remaining = others.into_iter().map(|stored| stored.resource).filter(|lock| lock.in_force(now));
            let remaining = remaining.map(|lock| ResourceId::new(Kind::Lock, lock.metadata.name)).collect();
            Ok(Exempted { exemption, lifted, remaining })
        })
    }

    /// Sees to it that the token is locked until the device comes that a recovery code names.
    fn keep_locked(
        &self,
        own: &[Stored<Lock>],
        token: &Token,
        commit: &mut Commit,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), OperatorError> {
        if own.iter().any(|lock| lock.resource.in_force(now)) {
            return Ok(());
        }
        let name = &token.metadata.name;
        let spec = LockSpec {
            target: LockTarget::Token(name.clone()),
            message: format!("token {name} is locked until the device with the recovery code comes back"),
            expires: None,
            automatic: true,
        };
        let lock = Resource::Lock(Lock { metadata: Metadata::named(Id::random(&*self.random)?.to_string()), spec });
        commit.events.push(event(now, EventKind::LockCreated, &lock, actor));
        commit.changes.push(Change { id: lock.id(), expected: None, to: Some(lock) });
        Ok(())
    }

    pub(crate) fn cancel_exemption(
        &self,
        CancelExemption { token: name }: CancelExemption,
        actor: &Actor,
    ) -> Result<Exemption, OperatorError> {
        retry_on_conflict(|| {
            let stored = self.token(&name)?;
            let mut token = stored.resource;
            let Some(exemption) = token.status.bound_keypair.exemption.take() else {
                return refused(ProblemType::NotFound, format!("token/{name} has no exemption"));
            };
            let cancelled = event(self.clock.now(), EventKind::ExemptionCancelled, &Resource::Token(token.clone()), actor);
            let events = vec![with_exemption(cancelled, &exemption)];
            self.store.commit(Commit { changes: vec![change(token, stored.revision)], events, ..Commit::default() })?;
            Ok(exemption)
        })
    }

    /// Ends the exemptions that nobody used in time. To be called now and then; a join honours none of them anyway.
    pub fn end_exemptions(&self, now: Timestamp) -> Result<(), StoreError> {
        for stored in self.store.ended_exemptions(now)? {
            let mut token = stored.resource;
            let Some(exemption) = token.status.bound_keypair.exemption.take() else { continue };
            let event = Event {
                token: Some(token.metadata.name.clone()),
                bot: token.spec.bot_name.clone(),
                ..Event::new(now, EventKind::ExemptionExpired)
            };
            let commit = Commit {
                changes: vec![change(token, stored.revision)],
                events: vec![with_exemption(event, &exemption)],
                ..Commit::default()
            };
            match self.store.commit(commit) {
                // Somebody changed it meanwhile: the next call looks at it anew.
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A recovery code is for a device that is bound, and for a token that no hosts share. Its key is new: a device cannot rotate to a key that
/// it has or had, and would be locked out for good.
fn check_code(call: &Exempt, token: &Token) -> Result<(), OperatorError> {
    let Some(code) = &call.key else { return Ok(()) };
    let name = &token.metadata.name;
    let status = &token.status.bound_keypair;
    let Some(bound) = &status.bound_public_key else {
        let why = format!("token/{name} is not bound to a device: a recovery code has nothing to replace; let the device join");
        return refused(ProblemType::BadRequest, why);
    };
    if code.matches(Thumbprint::of(&bound.0)) || status.retired_keys.iter().any(|key| code.matches(*key)) {
        let why = format!(
            "the key of this code was bound to token/{name} already: `boundkey recovery-code` on the device makes another, if it is kept out"
        );
        return refused(ProblemType::BadRequest, why);
    }
    if token.spec.bound_keypair.recovery.mode == RecoveryMode::Insecure {
        let why = format!(
            "token/{name} is in recovery mode insecure, where many hosts may share its key: set the mode to standard or relaxed first"
        );
        return refused(ProblemType::BadRequest, why);
    }
    Ok(())
}

/// Takes the server's own locks on the token away; returns which.
fn lift(own: Vec<Stored<Lock>>, commit: &mut Commit, actor: &Actor, now: Timestamp) -> Vec<ResourceId> {
    let mut lifted = Vec::with_capacity(own.len());
    for Stored { resource, revision } in own {
        let lock = Resource::Lock(resource);
        let id = lock.id();
        commit.changes.push(Change { id: id.clone(), expected: Some(revision), to: None });
        commit.events.push(event(now, EventKind::LockRemoved, &lock, actor));
        lifted.push(id);
    }
    lifted
}

/// A key that two may hold is to be replaced. In mode `insecure` hosts share the key on purpose, and may not be able to make another.
fn order_rotation(token: &mut Token, now: Timestamp) {
    if token.spec.bound_keypair.recovery.mode != RecoveryMode::Insecure {
        token.spec.bound_keypair.rotate_after = Some(now);
    }
}

fn change(token: Token, revision: u64) -> Change {
    let to = Resource::Token(token);
    Change { id: to.id(), expected: Some(revision), to: Some(to) }
}

fn with_exemption(event: Event, exemption: &Exemption) -> Event {
    let event = event.with("recoveries", exemption.recoveries).with("expires", exemption.expires.to_string());
    match &exemption.key {
        Some(code) => event.with("recovery_code", code.to_string()),
        None => event,
    }
}
