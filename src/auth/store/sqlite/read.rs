//! Reading: a pool of connections, and each question answered from one snapshot.

use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use serde::de::DeserializeOwned;

use crate::store::{Form, JoinView, KEEP_ISSUED, ReadSet, StoreError, Stored};
use boundkey_api::ca::Share;
use boundkey_api::resource::{Bot, Instance, Kind, Lock, LockTarget, Resource, ResourceId, Role, Token};
use boundkey_join::Id;
use boundkey_platform::time::Timestamp;

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    freed: Condvar,
}

impl Readers {
    /// A pool of `count` connections.
    pub(super) fn open(count: usize, connect: impl Fn() -> Result<Connection, StoreError>) -> Result<Self, StoreError> {
        let reader = |_| {
            let connection = connect()?;
            connection.pragma_update(None, "query_only", true)?;
            Ok(connection)
        };
        let idle = (0..count).map(reader).collect::<Result<_, StoreError>>()?;
        Ok(Self { idle: Mutex::new(idle), freed: Condvar::new() })
    }

    /// Runs `question` on one snapshot of the database.
    pub(super) fn with<T>(&self, question: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut lease = self.lease();
        let snapshot = lease.connection()?.transaction()?;
        question(&snapshot)
    }

    fn lease(&self) -> Lease<'_> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(connection) = idle.pop() {
                return Lease { pool: self, connection: Some(connection) };
            }
            idle = self.freed.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A connection on loan; it goes back by itself, also when the question panics.
struct Lease<'a> {
    pool: &'a Readers,
    connection: Option<Connection>,
}

impl Lease<'_> {
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::Failed("a reader without a connection".into()))
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
        self.pool.freed.notify_one();
    }
}

pub(super) fn get(snapshot: &Transaction<'_>, key: &ResourceId) -> Result<Option<Stored<Resource>>, StoreError> {
    let found = raw(snapshot, key.kind, &key.name)?;
    found.map(|(revision, document)| Ok(Stored { resource: resource(key, &document)?, revision })).transpose()
}

pub(super) const LIST: &str = "SELECT name, revision, document FROM resource WHERE kind = ? ORDER BY name";

pub(super) fn list(snapshot: &Transaction<'_>, kind: Kind) -> Result<Vec<Stored<Resource>>, StoreError> {
    let mut query = snapshot.prepare_cached(LIST)?;
    let mut rows = query.query([kind.name()])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let key = ResourceId::new(kind, column::<String>(row, 0)?);
        all.push(Stored { resource: resource(&key, &column::<String>(row, 2)?)?, revision: column(row, 1)? });
    }
    Ok(all)
}

pub(super) fn alike(snapshot: &Connection, key: &ResourceId) -> Result<Option<ResourceId>, StoreError> {
    // SQLite's NOCASE folds A to Z and nothing else.
    let mut query = snapshot
        .prepare_cached("SELECT name FROM resource WHERE kind = ?1 AND name = ?2 COLLATE NOCASE AND name <> ?2 LIMIT 1")?;
    let found = query.query_row([key.kind.name(), &key.name], |row| row.get::<_, String>(0)).optional()?;
    Ok(found.map(|name| ResourceId::new(key.kind, name)))
}

pub(super) fn join_view(snapshot: &Transaction<'_>, token: &str, instance: Option<Id>) -> Result<Option<JoinView>, StoreError> {
    let Some(token) = typed::<Token>(snapshot, Kind::Token, token)? else {
        return Ok(None);
    };
    let mut reads = ReadSet { resources: vec![(id_of(&token.resource), Some(token.revision))], locks: vec![] };
    let mut locks = vec![];
    let mut look_for_locks = |reads: &mut ReadSet, target: LockTarget| -> Result<(), StoreError> {
        let found = locks_on(snapshot, &target)?;
        let mut revisions: Vec<_> = found.iter().map(|lock| lock.revision).collect();
        revisions.sort_unstable();
        reads.locks.push((target, revisions));
        locks.extend(found);
        Ok(())
    };
    look_for_locks(&mut reads, LockTarget::Token(token.resource.metadata.name.clone()))?;
    let (mut bot, mut roles, mut instances) = (None, Vec::new(), Vec::new());
    if let Some(name) = &token.resource.spec.bot_name {
        bot = read_for(&mut reads, Kind::Bot, name, typed::<Bot>(snapshot, Kind::Bot, name)?);
        look_for_locks(&mut reads, LockTarget::Bot(name.clone()))?;
    }
    let names =
        if token.resource.is_for_bot() { bot.as_ref().map(|bot| &bot.spec.roles) } else { Some(&token.resource.spec.host.roles) };
    for name in names.into_iter().flatten() {
        roles.extend(read_for(&mut reads, Kind::Role, name, typed::<Role>(snapshot, Kind::Role, name)?));
    }
    let bound = token.resource.status.bound_keypair.bound_instance();
    for id in bound.into_iter().chain(instance.filter(|id| Some(*id) != bound)) {
        let target = token.resource.instance(id);
        instances.extend(typed::<Instance>(snapshot, target.id().kind, target.name())?);
        look_for_locks(&mut reads, target)?;
    }
    let epoch = snapshot.prepare_cached("SELECT epoch FROM meta")?.query_row([], |row| Ok(Id(row.get(0)?)))?;
    Ok(Some(JoinView { token, bot, roles, locks, instances, reads, epoch }))
}

fn id_of(token: &Token) -> ResourceId {
    ResourceId::new(Kind::Token, &token.metadata.name)
}

/// The resource, noted in `reads` whether there is one or not.
fn read_for<T>(reads: &mut ReadSet, kind: Kind, name: &str, found: Option<Stored<T>>) -> Option<T> {
    reads.resources.push((ResourceId::new(kind, name), found.as_ref().map(|stored| stored.revision)));
    found.map(|stored| stored.resource)
}

/// Certificates of a token that have not ended at `?2`.
pub(super) const OUTSTANDING: &str = "SELECT count(*) FROM issued WHERE token = ?1 AND tombstone IS NULL AND not_after >= ?2";

pub(super) fn outstanding(snapshot: &Transaction<'_>, token: &str, now: Timestamp) -> Result<u32, StoreError> {
    Ok(snapshot.prepare_cached(OUTSTANDING)?.query_row(params![token, now.millis()], |row| row.get(0))?)
}

/// From locks in force at `?1`, and from what was deleted, to certificates that end no sooner than `?2`: what is not revoked is not
/// looked at. At most `?3`; of SSH or of X.509 as `?4` says. `CROSS JOIN` keeps SQLite to that order.
pub(super) const REVOKED: &str = "
    WITH
    stopped (subject) AS MATERIALIZED (
        SELECT subject FROM resource WHERE kind = 'lock' AND (ends IS NULL OR ends > ?1)
        UNION SELECT 'bot/' || name FROM tombstone WHERE kind = 'bot'
    ),
    stopped_name (kind, name) AS MATERIALIZED (
        SELECT substr(subject, 1, instr(subject, '/') - 1), substr(subject, instr(subject, '/') + 1) FROM stopped
    ),
    revoked (token, serial, not_after) AS (
        SELECT token, serial, not_after FROM stopped_name CROSS JOIN issued ON token = name
            WHERE kind = 'token' AND not_after >= ?2 AND form = ?4
        UNION SELECT token, serial, not_after FROM stopped_name CROSS JOIN issued ON bot = name
            WHERE kind = 'bot' AND not_after >= ?2 AND form = ?4
        UNION SELECT token, serial, not_after FROM stopped_name CROSS JOIN issued ON instance = name
            WHERE kind IN ('bot_instance', 'host') AND not_after >= ?2 AND form = ?4
        UNION SELECT token, serial, not_after FROM tombstone CROSS JOIN issued ON issued.tombstone = number
            WHERE not_after >= ?2 AND form = ?4
    ),
    ranked (serial, not_after, place) AS (
        SELECT serial, not_after, row_number() OVER (PARTITION BY token ORDER BY not_after DESC, serial) FROM revoked
    )
    SELECT serial FROM ranked ORDER BY place, not_after DESC, serial LIMIT ?3";

pub(super) fn revoked(snapshot: &Transaction<'_>, form: Form, now: Timestamp, limit: usize) -> Result<Vec<String>, StoreError> {
    let mut query = snapshot.prepare_cached(REVOKED)?;
    let mut rows = query.query(params![now.millis(), now.minus(KEEP_ISSUED).millis(), limit, form.name()])?;
    let mut serials = Vec::new();
    while let Some(row) = rows.next()? {
        serials.push(column(row, 0)?);
    }
    Ok(serials)
}

pub(super) const LOCKS_ON: &str = "SELECT name, document, revision FROM resource WHERE subject = ? AND kind = 'lock'";

pub(super) fn locks_on(snapshot: &Transaction<'_>, target: &LockTarget) -> Result<Vec<Stored<Lock>>, StoreError> {
    let mut query = snapshot.prepare_cached(LOCKS_ON)?;
    let mut rows = query.query([target.id().to_string()])?;
    let mut locks = Vec::new();
    while let Some(row) = rows.next()? {
        let key = ResourceId::new(Kind::Lock, column::<String>(row, 0)?);
        locks.push(Stored { resource: parse(&key, &column::<String>(row, 1)?)?, revision: column(row, 2)? });
    }
    Ok(locks)
}

pub(super) const ENDED_EXEMPTIONS: &str =
    "SELECT name, revision, document FROM resource WHERE kind = 'token' AND ends <= ? ORDER BY name";

pub(super) fn ended_exemptions(snapshot: &Transaction<'_>, now: Timestamp) -> Result<Vec<Stored<Token>>, StoreError> {
    let mut query = snapshot.prepare_cached(ENDED_EXEMPTIONS)?;
    let mut rows = query.query([now.millis()])?;
    let mut ended = Vec::new();
    while let Some(row) = rows.next()? {
        let key = ResourceId::new(Kind::Token, column::<String>(row, 0)?);
        ended.push(Stored { resource: parse(&key, &column::<String>(row, 2)?)?, revision: column(row, 1)? });
    }
    Ok(ended)
}

/// Reads every token: an operator asks for it now and then.
pub(super) fn bundle_share(snapshot: &Transaction<'_>, sequence: u64, now: Timestamp) -> Result<Share, StoreError> {
    let mut query = snapshot.prepare_cached(
        "SELECT count(*), count(*) FILTER (WHERE json_extract(document, '$.status.trust_bundle') >= ?1) FROM resource
         WHERE kind = 'token' AND json_extract(document, '$.status.bound_keypair.bound_public_key') IS NOT NULL
         AND coalesce(json_extract(document, '$.metadata.expires') > ?2, TRUE)",
    )?;
    let sequence = sequence.min(i64::MAX.unsigned_abs());
    Ok(query.query_row(params![sequence, now.to_string()], |row| Ok(Share { tokens: row.get(0)?, have: row.get(1)? }))?)
}

pub(super) fn typed<T: DeserializeOwned>(
    snapshot: &Transaction<'_>,
    kind: Kind,
    name: &str,
) -> Result<Option<Stored<T>>, StoreError> {
    let found = raw(snapshot, kind, name)?;
    found
        .map(|(revision, document)| Ok(Stored { resource: parse(&ResourceId::new(kind, name), &document)?, revision }))
        .transpose()
}

pub(super) const GET: &str = "SELECT revision, document FROM resource WHERE kind = ? AND name = ?";

fn raw(snapshot: &Transaction<'_>, kind: Kind, name: &str) -> Result<Option<(u64, String)>, StoreError> {
    let mut query = snapshot.prepare_cached(GET)?;
    Ok(query.query_row([kind.name(), name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

pub(super) fn resource(key: &ResourceId, document: &str) -> Result<Resource, StoreError> {
    Ok(match key.kind {
        Kind::Bot => Resource::Bot(parse(key, document)?),
        Kind::BotInstance | Kind::Host => Resource::Instance(parse(key, document)?),
        Kind::Lock => Resource::Lock(parse(key, document)?),
        Kind::Role => Resource::Role(parse(key, document)?),
        Kind::Token => Resource::Token(parse(key, document)?),
    })
}

fn parse<T: DeserializeOwned>(key: &ResourceId, document: &str) -> Result<T, StoreError> {
    serde_json::from_str(document).map_err(|e| damaged(key, e))
}

fn damaged(key: &ResourceId, why: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(format!("{key} is damaged: {why}"))
}

pub(super) fn column<T: FromSql>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
    Ok(row.get(index)?)
}
