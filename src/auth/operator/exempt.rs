//! Exemptions: one step that brings a device back, and that ends by itself.

use std::time::Duration;

use super::fault::{Fault, insist, refused};
use super::message::{CancelExemption, Exempt, Exempted};
use super::{Operator, Who, event};
use crate::auth::audit::{Event, EventKind, MAX_TEXT};
use crate::auth::resource::{Key, Kind, Lock, LockTarget, Resource, Token};
use crate::auth::store::{Change, Commit, StoreError};
use crate::join::ProblemType;
use crate::join::server::record::Exemption;
use crate::time::Timestamp;

impl Operator {
    pub(super) fn exempt(&self, call: Exempt, who: Who) -> Result<Exempted, Fault> {
        if call.recoveries == 0 || call.seconds == 0 {
            return refused(ProblemType::BadRequest, "an exemption allows at least one recovery, for at least one second");
        }
        if call.reason.as_ref().is_some_and(|reason| reason.len() > MAX_TEXT) {
            return refused(ProblemType::BadRequest, format!("the reason is longer than {MAX_TEXT} bytes"));
        }
        let Exempt { token: name, recoveries, seconds, key, reason } = call;
        insist(|| {
            let now = self.clock.now();
            let Some(view) = self.store.join_view(&name, None)? else {
                return refused(ProblemType::NotFound, format!("there is no token/{name}"));
            };
            let expires = now.plus(Duration::from_secs(seconds));
            let exemption = Exemption { recoveries, waive_join_state: true, expires, key: key.clone(), reason: reason.clone() };
            let own = LockTarget::Token(name.clone());
            let (automatic, others): (Vec<Lock>, Vec<Lock>) =
                view.locks.into_iter().partition(|lock| lock.spec.automatic && lock.spec.target == own);

            // Under the same policy: a lock that appears meanwhile is looked at too.
            let mut commit = Commit { policy: Some(view.policy), ..Commit::default() };
            let mut lifted = Vec::with_capacity(automatic.len());
            for lock in automatic {
                let key = Key::new(Kind::Lock, &lock.metadata.name);
                let expected = self.store.get(&key)?.map(|stored| stored.revision);
                commit.changes.push(Change { key: key.clone(), expected, to: None });
                commit.events.push(event(now, EventKind::LockRemoved, &Resource::Lock(lock), who));
                lifted.push(key);
            }
            let mut token = view.token.resource;
            let mut granted = told(event(now, EventKind::ExemptionGranted, &Resource::Token(token.clone()), who), &exemption);
            granted.reason.clone_from(&reason);
            commit.events.push(granted);
            token.status.bound_keypair.exemption = Some(exemption.clone());
            commit.changes.push(change(token, view.token.revision));
            self.store.commit(commit)?;
            let remaining =
                others.into_iter().filter(|lock| lock.in_force(now)).map(|lock| Key::new(Kind::Lock, lock.metadata.name));
            Ok(Exempted { exemption, lifted, remaining: remaining.collect() })
        })
    }

    pub(super) fn cancel_exemption(
        &self,
        CancelExemption { token: name }: CancelExemption,
        who: Who,
    ) -> Result<Exemption, Fault> {
        insist(|| {
            let stored = self.token(&name)?;
            let mut token = stored.resource;
            let Some(exemption) = token.status.bound_keypair.exemption.take() else {
                return refused(ProblemType::NotFound, format!("token/{name} has no exemption"));
            };
            let cancelled = event(self.clock.now(), EventKind::ExemptionCancelled, &Resource::Token(token.clone()), who);
            let events = vec![told(cancelled, &exemption)];
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
                events: vec![told(event, &exemption)],
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

fn change(token: Token, revision: u64) -> Change {
    let to = Resource::Token(token);
    Change { key: to.key(), expected: Some(revision), to: Some(to) }
}

fn told(event: Event, exemption: &Exemption) -> Event {
    event.with("recoveries", exemption.recoveries).with("expires", exemption.expires.to_string())
}
