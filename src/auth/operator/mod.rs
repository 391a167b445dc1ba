//! What operators' calls do. Every change tells the audit log, in the transaction that makes it, which actor made it.
//!
//! Nothing here decides who may make a call ([`super::authorize`]) or knows how it came ([`super::http`]).

mod apply;
mod ca;
mod error;
mod exempt;
mod lock;
mod token;
mod view;

use std::sync::Arc;

use tokio::sync::watch;

use super::rotation::Rotation;
use super::store::{Change, Commit, Listed, Store, Stored};
use boundkey_api::actor::Actor;
use boundkey_api::call::{Delete, Deleted, Entry, Get, List, Listing};
use boundkey_api::event::{Event, EventFilter, EventKind, EventPage};
use boundkey_api::resource::{Kind, LockTarget, Resource, ResourceId};
use boundkey_join::{Problem, ProblemType};
use boundkey_platform::time::{Clock, Random, Timestamp};
use error::retry_on_conflict;

pub(crate) use error::OperatorError;

/// Most resources in one answer.
const PAGE: usize = 500;

/// What operators can do.
pub struct Operator {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    rotation: Option<Arc<Rotation>>,
    /// Ends the waits of followers.
    stopping: watch::Sender<bool>,
}

impl Operator {
    /// The operator's part of a server.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { store, clock, random, rotation: None, stopping: watch::Sender::new(false) }
    }

    /// Ends the waits of followers of the audit log.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// True from [`Self::stop`] on.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// A page of the events that pass `filter`.
    pub(crate) fn events(&self, filter: &EventFilter) -> Result<EventPage, OperatorError> {
        Ok(self.store.events(filter)?)
    }

    /// The same, of a server that replaces its CAs.
    #[must_use]
    pub fn replacing(self, rotation: Arc<Rotation>) -> Self {
        Self { rotation: Some(rotation), ..self }
    }

    pub(crate) fn get(&self, Get { id, with_secrets }: Get, _: &Actor) -> Result<Entry, OperatorError> {
        let listed = self.store.listed(&id)?.ok_or_else(|| unknown(&id))?;
        Ok(entry(listed, with_secrets, self.clock.now()))
    }

    pub(crate) fn list(&self, List { kind, after, with_secrets }: List, _: &Actor) -> Result<Listing, OperatorError> {
        let now = self.clock.now();
        let page = self.store.page(kind, &after.unwrap_or_default(), PAGE)?;
        let last = page.last().filter(|_| page.len() == PAGE);
        let next = last.map(|listed| listed.stored.resource.metadata().name.clone());
        let entries = page.into_iter().map(|listed| entry(listed, with_secrets, now)).collect();
        Ok(Listing { entries, next })
    }

    /// Locks stay, those that the server made too: a token that is made again out of a backup is the one that two held. They go by
    /// `rm lock/ID` or `exempt`, which the audit log tells of.
    pub(crate) fn delete(&self, Delete { id }: Delete, actor: &Actor) -> Result<Deleted, OperatorError> {
        retry_on_conflict(|| {
            let Stored { resource, revision } = self.stored(&id)?;
            let kind = if id.kind == Kind::Lock { EventKind::LockRemoved } else { EventKind::ResourceDeleted };
            let events = vec![event(self.clock.now(), kind, &resource, actor)];
            let changes = vec![Change { id: id.clone(), expected: Some(revision), to: None }];
            self.store.commit(Commit { changes, events, ..Commit::default() })?;
            Ok(Deleted { locks: self.locks_in_force_on(&id)?, named_by: self.naming(&id)?, id: id.clone() })
        })
    }

    /// The resources that name this one.
    fn naming(&self, id: &ResourceId) -> Result<Vec<ResourceId>, OperatorError> {
        let kinds: &[Kind] = match id.kind {
            Kind::Bot => &[Kind::Token],
            Kind::Role => &[Kind::Bot, Kind::Token],
            Kind::BotInstance | Kind::Host | Kind::Lock | Kind::Token => &[],
        };
        let mut naming = Vec::new();
        for kind in kinds {
            let resources = self.store.list(*kind)?.into_iter().map(|stored| stored.resource);
            naming.extend(resources.filter(|resource| resource.named().contains(id)).map(|resource| resource.id()));
        }
        Ok(naming)
    }

    /// Locks that stop the resource of this name, whether it is there or not.
    fn locks_in_force_on(&self, id: &ResourceId) -> Result<Vec<ResourceId>, OperatorError> {
        let Some(target) = LockTarget::of(id) else { return Ok(Vec::new()) };
        let now = self.clock.now();
        let locks = self.store.locks_on(&target)?.into_iter().filter(|lock| lock.in_force(now));
        Ok(locks.map(|lock| ResourceId::new(Kind::Lock, lock.metadata.name)).collect())
    }

    fn stored(&self, id: &ResourceId) -> Result<Stored<Resource>, OperatorError> {
        Ok(self.store.get(id)?.ok_or_else(|| unknown(id))?)
    }
}

fn unknown(id: &ResourceId) -> Problem {
    Problem::new(ProblemType::NotFound, format!("there is no {id}"))
}

/// A resource as an operator is shown it.
fn entry(listed: Listed, with_secrets: bool, now: Timestamp) -> Entry {
    let view = view::of(&listed, now);
    let Stored { resource, revision } = listed.stored;
    let resource = if with_secrets { resource } else { resource.without_secrets() };
    Entry { resource, revision, view }
}

/// An event of `kind` about `resource`.
fn event(now: Timestamp, kind: EventKind, resource: &Resource, actor: &Actor) -> Event {
    let mut event = Event { actor: Some(actor.clone()), ..Event::new(now, kind) };
    match resource {
        Resource::Bot(bot) => event.bot = Some(bot.metadata.name.clone()),
        Resource::Instance(instance) => {
            let id = Some(instance.metadata.name.clone());
            let named = if instance.spec.bot_name.is_some() { &mut event.instance_id } else { &mut event.host_id };
            *named = id;
            event.bot.clone_from(&instance.spec.bot_name);
            event.token = Some(instance.spec.token.clone());
        }
        Resource::Lock(lock) => {
            let target = match &lock.spec.target {
                LockTarget::Bot(_) => &mut event.bot,
                LockTarget::BotInstance(_) => &mut event.instance_id,
                LockTarget::Host(_) => &mut event.host_id,
                LockTarget::Token(_) => &mut event.token,
            };
            *target = Some(lock.spec.target.name().into());
            event.reason = Some(lock.spec.message.clone()).filter(|message| !message.is_empty());
        }
        Resource::Role(_) => {}
        Resource::Token(token) => {
            event.token = Some(token.metadata.name.clone());
            event.bot.clone_from(&token.spec.bot_name);
        }
    }
    match (kind, resource) {
        (EventKind::LockCreated | EventKind::LockRemoved, Resource::Lock(lock)) => {
            event.with("lock", lock.metadata.name.as_str()).with("automatic", lock.spec.automatic)
        }
        (EventKind::ResourceCreated | EventKind::ResourceUpdated | EventKind::ResourceDeleted, _) => {
            event.with("resource", resource.id().to_string())
        }
        _ => event,
    }
}
