//! Locks that operators put on.

use std::time::Duration;

use super::error::{OperatorError, refused};
use super::{Operator, event};
use crate::store::{Change, Commit};
use boundkey_api::actor::Actor;
use boundkey_api::call::PutLock;
use boundkey_api::event::EventKind;
use boundkey_api::resource::{Kind, Lock, LockSpec, Metadata, Resource, ResourceId};
use boundkey_join::{Id, ProblemType};

impl Operator {
    /// Locks what exists: a mistyped name has to be told, not taken for a lock that holds.
    pub(crate) fn put_lock(
        &self,
        PutLock { target, message, seconds }: PutLock,
        actor: &Actor,
    ) -> Result<ResourceId, OperatorError> {
        let locked = self.stored(&target.id())?.resource.id();
        let message = if message.is_empty() { format!("{locked} was locked by an operator") } else { message };
        let now = self.clock.now();
        let expires = seconds.map(|seconds| now.plus(Duration::from_secs(seconds)));
        let id = ResourceId::new(Kind::Lock, Id::random(&*self.random)?.to_string());
        let lock = Resource::Lock(Lock {
            metadata: Metadata::named(&id.name),
            spec: LockSpec { target, message, expires, automatic: false },
        });
        lock.validate().or_else(|why| refused(ProblemType::BadRequest, why))?;
        let events = vec![event(now, EventKind::LockCreated, &lock, actor)];
        let changes = vec![Change { id: id.clone(), expected: None, to: Some(lock) }];
        self.store.commit(Commit { changes, events, ..Commit::default() })?;
        Ok(id)
    }
}
