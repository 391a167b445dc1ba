//! Resources page by page, with what operators see beside them.

use rusqlite::{Transaction, params};

use super::read::{self, column, locks_on, resource, typed};
use crate::store::{Listed, StoreError, Stored};
use boundkey_api::resource::{Instance, Kind, Lock, LockTarget, Resource, ResourceId};

pub(super) const PAGE: &str = "SELECT name, revision, document FROM resource WHERE kind = ? AND name > ? ORDER BY name LIMIT ?";

pub(super) fn page(snapshot: &Transaction<'_>, kind: Kind, after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
    let mut query = snapshot.prepare_cached(PAGE)?;
    let mut rows = query.query(params![kind.name(), after, limit])?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        let id = ResourceId::new(kind, column::<String>(row, 0)?);
        let resource = resource(&id, &column::<String>(row, 2)?)?;
        page.push(with_surroundings(snapshot, Stored { resource, revision: column(row, 1)? })?);
    }
    Ok(page)
}

pub(super) fn listed(snapshot: &Transaction<'_>, id: &ResourceId) -> Result<Option<Listed>, StoreError> {
    read::get(snapshot, id)?.map(|stored| with_surroundings(snapshot, stored)).transpose()
}

fn with_surroundings(snapshot: &Transaction<'_>, stored: Stored<Resource>) -> Result<Listed, StoreError> {
    let mut instance = None;
    let targets = match &stored.resource {
        Resource::Bot(bot) => vec![LockTarget::Bot(bot.metadata.name.clone())],
        Resource::Instance(instance) => {
            let own = LockTarget::of(&stored.resource.id());
            let bot = instance.spec.bot_name.clone().map(LockTarget::Bot);
            own.into_iter().chain(bot).chain([LockTarget::Token(instance.spec.token.clone())]).collect()
        }
        Resource::Lock(_) | Resource::Role(_) => vec![],
        Resource::Token(token) => {
            let bound = token.status.bound_keypair.bound_instance().map(|id| token.instance(id));
            if let Some(bound) = &bound {
                instance = typed::<Instance>(snapshot, bound.id().kind, bound.name())?.map(|stored| stored.resource);
            }
            let own = LockTarget::Token(token.metadata.name.clone());
            let bot = token.spec.bot_name.clone().map(LockTarget::Bot);
            [own].into_iter().chain(bot).chain(bound).collect()
        }
    };
    let mut locks: Vec<Lock> = Vec::new();
    for target in &targets {
        locks.extend(locks_on(snapshot, target)?.into_iter().map(|stored| stored.resource));
    }
    Ok(Listed { stored, locks, instance })
}
