//! `create -f` and `edit`: resources as operators want them.

use std::collections::BTreeSet;

use super::fault::{Fault, insist, refused};
use super::message::{Action, Applied, Apply, Replace};
use super::{Operator, Who, event, token};
use crate::auth::audit::EventKind;
use crate::auth::resource::{Key, Resource};
use crate::auth::store::{Change, Commit, Stored};
use crate::join::ProblemType;

impl Operator {
    pub(super) fn apply(&self, Apply { resources }: Apply, who: Who) -> Result<Vec<Applied>, Fault> {
        let mut keys = BTreeSet::new();
        for resource in &resources {
            check(resource)?;
            if !keys.insert(resource.key()) {
                return refused(ProblemType::BadRequest, format!("{} stands there twice", resource.key()));
            }
        }
        insist(|| {
            let mut commit = Commit::default();
            let mut applied = Vec::with_capacity(resources.len());
            for resource in &resources {
                self.check_names(resource, &keys)?;
                let stored = self.store.get(&resource.key())?;
                let action = self.put(resource.clone(), stored, who, &mut commit)?;
                applied.push(Applied { key: resource.key(), action });
            }
            self.store.commit(commit)?;
            Ok(applied)
        })
    }

    pub(super) fn replace(&self, Replace { resource, revision }: Replace, who: Who) -> Result<Applied, Fault> {
        check(&resource)?;
        let key = resource.key();
        self.check_names(&resource, &BTreeSet::new())?;
        let stored = self.stored(&key)?;
        if stored.revision != revision {
            return refused(ProblemType::Conflict, format!("{key} has changed meanwhile"));
        }
        let mut commit = Commit::default();
        let action = self.put(resource, Some(stored), who, &mut commit)?;
        self.store.commit(commit)?;
        Ok(Applied { key, action })
    }

    /// Puts what makes `stored` into `resource` into `commit`.
    fn put(
        &self,
        mut resource: Resource,
        stored: Option<Stored<Resource>>,
        who: Who,
        commit: &mut Commit,
    ) -> Result<Action, Fault> {
        if let Resource::Token(new) = &mut resource {
            match stored.as_ref().map(|stored| &stored.resource) {
                Some(Resource::Token(old)) => token::update(new, old, &*self.random)?,
                _ => token::create(new, &*self.random)?,
            }
        }
        let action = match &stored {
            Some(stored) if stored.resource == resource => return Ok(Action::Unchanged),
            Some(_) => Action::Updated,
            None => Action::Created,
        };
        let kind = match (action, &resource) {
            (Action::Created, Resource::Lock(_)) => EventKind::LockCreated,
            (Action::Created, _) => EventKind::ResourceCreated,
            _ => EventKind::ResourceUpdated,
        };
        commit.events.push(event(self.clock.now(), kind, &resource, who));
        let expected = stored.map(|stored| stored.revision);
        commit.changes.push(Change { key: resource.key(), expected, to: Some(resource) });
        Ok(action)
    }

    /// What `resource` names has to exist, in the store or in the same set.
    fn check_names(&self, resource: &Resource, set: &BTreeSet<Key>) -> Result<(), Fault> {
        for key in resource.named() {
            if !set.contains(&key) && self.store.get(&key)?.is_none() {
                return refused(ProblemType::BadRequest, format!("{}: there is no {key}", resource.key()));
            }
        }
        Ok(())
    }
}

fn check(resource: &Resource) -> Result<(), Fault> {
    if matches!(resource, Resource::Instance(_)) {
        return refused(ProblemType::BadRequest, format!("{}: instances are written by joins alone", resource.key()));
    }
    resource.validate().or_else(|why| refused(ProblemType::BadRequest, why))
}
