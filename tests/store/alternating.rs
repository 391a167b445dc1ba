//! Two handles on one database, asked by turns: what one wrote, the other has to know.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use boundkey::api::ca::Share;
use boundkey::api::event::{EventFilter, EventPage};
use boundkey::api::resource::{Kind, Lock, LockTarget, Resource, ResourceId, Token};
use boundkey::auth::store::{Commit, Form, JoinView, Listed, SqliteStore, Store, StoreError, Stored};
use boundkey::join::Id;
use boundkey::platform::time::Timestamp;

/// The two handles.
pub(super) struct Alternating {
    handles: [SqliteStore; 2],
    calls: AtomicUsize,
}

impl Alternating {
    pub(super) fn new(first: SqliteStore, second: SqliteStore) -> Self {
        Self { handles: [first, second], calls: AtomicUsize::new(0) }
    }

    fn next(&self) -> &SqliteStore {
        &self.handles[self.calls.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

impl Store for Alternating {
    fn get(&self, id: &ResourceId) -> Result<Option<Stored<Resource>>, StoreError> {
        self.next().get(id)
    }

    fn listed(&self, id: &ResourceId) -> Result<Option<Listed>, StoreError> {
        self.next().listed(id)
    }

    fn page(&self, kind: Kind, after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.next().page(kind, after, limit)
    }

    fn list(&self, kind: Kind) -> Result<Vec<Stored<Resource>>, StoreError> {
        self.next().list(kind)
    }

    fn alike(&self, id: &ResourceId) -> Result<Option<ResourceId>, StoreError> {
        self.next().alike(id)
    }

    fn locks_on(&self, target: &LockTarget) -> Result<Vec<Lock>, StoreError> {
        self.next().locks_on(target)
    }

    fn join_view(&self, token: &str, instance: Option<Id>) -> Result<Option<JoinView>, StoreError> {
        self.next().join_view(token, instance)
    }

    /// A handle knows of its own commits alone.
    fn revocation_changes(&self) -> u64 {
        self.handles.iter().map(Store::revocation_changes).sum()
    }

    fn next_list_number(&self, form: Form) -> Result<u64, StoreError> {
        self.next().next_list_number(form)
    }

    fn outstanding(&self, token: &str, now: Timestamp) -> Result<u32, StoreError> {
        self.next().outstanding(token, now)
    }

    fn revoked(&self, form: Form, now: Timestamp, limit: usize) -> Result<Vec<String>, StoreError> {
        self.next().revoked(form, now, limit)
    }

    fn ended_exemptions(&self, now: Timestamp) -> Result<Vec<Stored<Token>>, StoreError> {
        self.next().ended_exemptions(now)
    }

    fn bundle_share(&self, sequence: u64, now: Timestamp) -> Result<Share, StoreError> {
        self.next().bundle_share(sequence, now)
    }

    fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.next().commit(commit)
    }

    fn events(&self, filter: &EventFilter) -> Result<EventPage, StoreError> {
        self.next().events(filter)
    }

    fn last_event_until(&self, time: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.next().last_event_until(time)
    }

    fn sweep(&self, now: Timestamp, keep_events: Duration) -> Result<(), StoreError> {
        self.next().sweep(now, keep_events)
    }
}
