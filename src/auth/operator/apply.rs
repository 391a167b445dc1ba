//! `create -f` and `edit`: resources as operators want them.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{OperatorError, refused, retry_on_conflict};
use super::{Operator, event, token};
use crate::store::{Change, Commit, Stored};
use boundkey_api::actor::Actor;
use boundkey_api::call::{Applied, Apply, Outcome, Replace};
use boundkey_api::event::EventKind;
use boundkey_api::resource::{Resource, ResourceId};
use boundkey_join::ProblemType;

impl Operator {
    pub(crate) fn apply(&self, Apply { resources }: Apply, actor: &Actor) -> Result<Vec<Applied>, OperatorError> {
        let (mut ids, mut folded) = (BTreeSet::new(), BTreeMap::<_, u32>::new());
        for resource in &resources {
            check(resource)?;
            if !ids.insert(resource.id()) {
                return refused(ProblemType::BadRequest, format!("{} stands there twice", resource.id()));
            }
            *folded.entry(case_folded(&resource.id())).or_default() += 1;
        }
        retry_on_conflict(|| {
            let mut commit = Commit::default();
            let mut applied = Vec::with_capacity(resources.len());
            for resource in &resources {
                self.check_names(resource, &ids)?;
                let id = resource.id();
                let stored = self.store.get(&id)?;
                let is_new = stored.is_none();
                if is_new {
                    self.check_alike(&id, &folded)?;
                }
                let outcome = self.put(resource.clone(), stored, actor, &mut commit)?;
                let locks = if is_new { self.locks_in_force_on(&id)? } else { Vec::new() };
                applied.push(Applied { id, outcome, locks });
            }
            self.store.commit(commit)?;
            Ok(applied)
        })
    }

    pub(crate) fn replace(&self, Replace { resource, revision }: Replace, actor: &Actor) -> Result<Applied, OperatorError> {
        check(&resource)?;
        let id = resource.id();
        self.check_names(&resource, &BTreeSet::new())?;
        let stored = self.stored(&id)?;
        if stored.revision != revision {
            return refused(ProblemType::Conflict, format!("{id} has changed meanwhile"));
        }
        let mut commit = Commit::default();
        let outcome = self.put(resource, Some(stored), actor, &mut commit)?;
        self.store.commit(commit)?;
        Ok(Applied { id, outcome, locks: Vec::new() })
    }

    /// Puts what makes `stored` into `resource` into `commit`.
    fn put(
        &self,
        mut resource: Resource,
        stored: Option<Stored<Resource>>,
        actor: &Actor,
        commit: &mut Commit,
    ) -> Result<Outcome, OperatorError> {
        if let Resource::Token(new) = &mut resource {
            match stored.as_ref().map(|stored| &stored.resource) {
                Some(Resource::Token(old)) => token::update(new, old, &*self.random)?,
                _ => token::create(new, &*self.random)?,
            }
        }
        let outcome = match &stored {
            Some(stored) if stored.resource == resource => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Updated,
            None => Outcome::Created,
        };
        let kind = match (outcome, &resource) {
            (Outcome::Created, Resource::Lock(_)) => EventKind::LockCreated,
            (Outcome::Created, _) => EventKind::ResourceCreated,
            _ => EventKind::ResourceUpdated,
        };
        commit.events.push(event(self.clock.now(), kind, &resource, actor));
        let expected = stored.map(|stored| stored.revision);
        commit.changes.push(Change { id: resource.id(), expected, to: Some(resource) });
        Ok(outcome)
    }

    /// A name that differs from another in the case of letters alone is refused: `{{token.name}}` stands in DNS names too, in which
    /// the two would be one. `set` counts the folded names of the set that is applied.
    fn check_alike(&self, id: &ResourceId, set: &BTreeMap<ResourceId, u32>) -> Result<(), OperatorError> {
        let other = if set.get(&case_folded(id)).is_some_and(|count| *count > 1) {
            Some("another in this file".to_owned())
        } else {
            self.store.alike(id)?.map(|other| other.to_string())
        };
        match other {
            Some(other) => {
                let why =
                    format!("{id} differs from {other} in upper and lower case alone: DNS names and hosts know no difference");
                refused(ProblemType::BadRequest, why)
            }
            None => Ok(()),
        }
    }

    /// What `resource` names has to exist, in the store or in the same set.
    fn check_names(&self, resource: &Resource, set: &BTreeSet<ResourceId>) -> Result<(), OperatorError> {
        for id in resource.named() {
            if !set.contains(&id) && self.store.get(&id)?.is_none() {
                return refused(ProblemType::BadRequest, format!("{}: there is no {id}", resource.id()));
            }
        }
        Ok(())
    }
}

fn case_folded(id: &ResourceId) -> ResourceId {
    ResourceId::new(id.kind, id.name.to_ascii_lowercase())
}

fn check(resource: &Resource) -> Result<(), OperatorError> {
    if matches!(resource, Resource::Instance(_)) {
        return refused(ProblemType::BadRequest, format!("{}: instances are written by joins alone", resource.id()));
    }
    resource.validate().or_else(|why| refused(ProblemType::BadRequest, why))
}
