//! The store in one SQLite file: for one auth endpoint.
//!
//! ```text
//!  commit() ──▶ queue ──▶ one writer thread: BEGIN · SAVEPOINT per commit · COMMIT ──▶ answers, once durable
//!  get(), list(), join_view(), events() ──▶ a pool of readers, each on a snapshot of its own
//!  revoked() ──▶ readers of their own: a long list holds up no join
//! ```
//!
//! Resources are JSON documents beside the few columns that they are looked up by: another database needs no more.

mod events;
mod listing;
#[cfg(test)]
mod plans;
mod read;
mod schema;
mod wal;
mod write;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{
    Commit, EventFilter, EventPage, Form, JoinView, Kind, Listed, Lock, LockTarget, Resource, ResourceId, Share, Store,
    StoreError, Stored, Token,
};
use boundkey_join::Id;
use boundkey_platform::time::Timestamp;
use read::Readers;
use wal::{MAX_WAL, Wal};
use write::Writer;

/// How long to wait for another program that holds the file.
const BUSY: Duration = Duration::from_secs(5);
/// Readers at once; more wait. Two per core of a small server.
const READERS: usize = 4;
/// Readers of revocation lists, of which there are two.
const LIST_READERS: usize = 2;
/// Statements kept prepared per connection: more than there are.
const STATEMENTS: usize = 32;

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    // Before the writer in the order of dropping: the last connection to close folds the log into the file.
    readers: Readers,
    list_readers: Readers,
    writer: Writer,
}

impl SqliteStore {
    /// Makes the file, readable by its owner alone, and opens it. Refuses an existing one.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let cannot = |e| StoreError::Failed(format!("cannot create {}: {e}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(cannot)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        file.sync_all().and_then(|()| std::fs::File::open(directory)?.sync_all()).map_err(cannot)?;
        schema::create(&mut connect(path)?)?;
        Self::open(path)
    }

    /// Opens the file, and brings it to the schema of this version. Refuses that of a newer one.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Failed(format!("there is no {}", path.display())));
        }
        let mut connection = connect(path)?;
        schema::migrate(&mut connection)?;
        schema::begin_epoch(&connection)?;
        // A copy may have come without it.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "journal_size_limit", MAX_WAL)?;
        let writer = Writer::start(connection, Wal::of(path))?;
        let readers = Readers::open(READERS, || connect(path))?;
        let list_readers = Readers::open(LIST_READERS, || connect(path))?;
        Ok(Self { readers, list_readers, writer })
    }

    /// Whether the file at `path` holds no resource: none is there, or one whose making was cut off, or nothing was put into it yet.
    pub fn is_blank(path: &Path) -> Result<bool, StoreError> {
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(StoreError::Failed(format!("cannot open {}: {e}", path.display()))),
            Ok(file) if file.len() == 0 => return Ok(true),
            Ok(_) => {}
        }
        let connection = connect(path)?;
        let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            return Ok(true);
        }
        schema::check(&connection)?;
        let resources: u32 = connection.query_row("SELECT count(*) FROM resource", [], |row| row.get(0))?;
        Ok(resources == 0)
    }

    /// Writes what the file at `from` holds now to a new file `to`, durably; a server may go on using `from` meanwhile. A damaged
    /// file is refused.
    pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        let cannot = |e| StoreError::Failed(format!("cannot write {}: {e}", to.display()));
        let target = to.to_str().ok_or_else(|| StoreError::Failed(format!("{} is not UTF-8", to.display())))?;
        let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        source.busy_timeout(BUSY)?;
        schema::check(&source)?;
        let health: String = source.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        if health != "ok" {
            return Err(StoreError::Failed(format!("{} is damaged: {health}", from.display())));
        }
        // SQLite takes an empty file for a missing one; this one is private from the start.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(cannot)?;
        source.execute("VACUUM INTO ?1", [target])?;
        file.sync_all().map_err(cannot)
    }
}

/// A connection with our settings. Opens without a look at the file: damage shows at the first statement.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

impl Store for SqliteStore {
    fn get(&self, key: &ResourceId) -> Result<Option<Stored<Resource>>, StoreError> {
        self.readers.with(|snapshot| read::get(snapshot, key))
    }

    fn listed(&self, id: &ResourceId) -> Result<Option<Listed>, StoreError> {
        self.readers.with(|snapshot| listing::listed(snapshot, id))
    }

    fn page(&self, kind: Kind, after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.readers.with(|snapshot| listing::page(snapshot, kind, after, limit))
    }

    fn list(&self, kind: Kind) -> Result<Vec<Stored<Resource>>, StoreError> {
        self.readers.with(|snapshot| read::list(snapshot, kind))
    }

    fn alike(&self, key: &ResourceId) -> Result<Option<ResourceId>, StoreError> {
        self.readers.with(|snapshot| read::alike(snapshot, key))
    }

    fn locks_on(&self, target: &LockTarget) -> Result<Vec<Lock>, StoreError> {
        let locks = self.readers.with(|snapshot| read::locks_on(snapshot, target))?;
        Ok(locks.into_iter().map(|stored| stored.resource).collect())
    }

    fn join_view(&self, token: &str, instance: Option<Id>) -> Result<Option<JoinView>, StoreError> {
        self.readers.with(|snapshot| read::join_view(snapshot, token, instance))
    }

    fn revocation_changes(&self) -> u64 {
        self.writer.revocation_changes()
    }

    fn next_list_number(&self, form: Form) -> Result<u64, StoreError> {
        self.writer.next_list_number(form)
    }

    fn outstanding(&self, token: &str, now: Timestamp) -> Result<u32, StoreError> {
        self.readers.with(|snapshot| read::outstanding(snapshot, token, now))
    }

    fn revoked(&self, form: Form, now: Timestamp, limit: usize) -> Result<Vec<String>, StoreError> {
        self.list_readers.with(|snapshot| read::revoked(snapshot, form, now, limit))
    }

    fn ended_exemptions(&self, now: Timestamp) -> Result<Vec<Stored<Token>>, StoreError> {
        self.readers.with(|snapshot| read::ended_exemptions(snapshot, now))
    }

    fn bundle_share(&self, sequence: u64, now: Timestamp) -> Result<Share, StoreError> {
        self.readers.with(|snapshot| read::bundle_share(snapshot, sequence, now))
    }

    fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.writer.commit(commit)
    }

    fn events(&self, filter: &EventFilter) -> Result<EventPage, StoreError> {
        self.readers.with(|snapshot| events::events(snapshot, filter))
    }

    fn last_event_until(&self, time: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.readers.with(|snapshot| events::last_event_until(snapshot, time))
    }

    fn sweep(&self, now: Timestamp, keep_events: Duration) -> Result<(), StoreError> {
        self.writer.sweep(now, keep_events)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let what = match error.sqlite_error_code() {
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => "the file is damaged; restore it from a backup",
            Some(Code::DiskFull) => "the disk is full",
            Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => "the file cannot be opened for writing",
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => "another program holds the file",
            Some(Code::SystemIoFailure) => "the disk failed",
            _ => return Self::Failed(error.to_string()),
        };
        Self::Failed(format!("{what} ({error})"))
    }
}
