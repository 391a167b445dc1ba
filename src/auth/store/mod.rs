//! The store: what the auth endpoint must not lose. A trait of typed operations, so that a second database, with several auth
//! endpoints on it, is a second implementation and nothing else.
//!
//! Reading gives a resource with its revision; a commit names what it read, with the revisions, and what it writes. It holds only if all of
//! that is as it was read: nothing else can get in its way, and there is no counter that all commits share.

mod sqlite;

use std::time::Duration;

use boundkey_api::ca::Share;
use boundkey_api::event::{Event, EventFilter, EventPage};
use boundkey_api::resource::{Bot, Instance, Kind, Lock, LockTarget, Resource, ResourceId, Role, Token};
use boundkey_join::Id;
use boundkey_platform::time::Timestamp;

pub use sqlite::SqliteStore;

/// A resource as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// The resource.
    pub resource: T,
    /// Its revision: another at every write. A resource that is made again after it was deleted begins at a random one.
    pub revision: u64,
}

/// A resource and what operators see beside it, read at one moment.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The resource.
    pub stored: Stored<Resource>,
    /// The locks on it and on what it belongs to, also those that have ended: of a token on its bot and the instance that it is bound to,
    /// of an instance on its bot and its token.
    pub locks: Vec<Lock>,
    /// The instance that a token is bound to.
    pub instance: Option<Instance>,
}

/// Everything a join is decided on, read at one moment.
#[derive(Clone, Debug)]
pub struct JoinView {
    /// The token.
    pub token: Stored<Token>,
    /// Its bot, if there is one of that name.
    pub bot: Option<Bot>,
    /// The roles of the bot, or of the token for a host, that exist.
    pub roles: Vec<Role>,
    /// Locks on token, bot and these instances, also those that have ended.
    pub locks: Vec<Stored<Lock>>,
    /// The bound instance and the one that the device names, whose records have not ended.
    pub instances: Vec<Stored<Instance>>,
    /// What of it has to stand when the join is committed. Records of instances are not in it: the one that a join writes is compared
    /// where it is written.
    pub reads: ReadSet,
    /// The epoch of the database: another each time that it is opened, and so after every restore.
    pub epoch: Id,
}

/// What a decision was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSet {
    /// Resources, and the revisions that they were read at; `None`: there was none.
    pub resources: Vec<(ResourceId, Option<u64>)>,
    /// On what locks were looked for, and the revisions of those that there were, rising.
    pub locks: Vec<(LockTarget, Vec<u64>)>,
}

/// One change of a resource.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it changes.
    pub id: ResourceId,
    /// The revision it was read at; `None`: it does not exist yet.
    pub expected: Option<u64>,
    /// What it becomes; `None`: nothing.
    pub to: Option<Resource>,
}

/// A certificate that was issued, kept until [`KEEP_ISSUED`] after its end, for revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedRecord {
    /// What it is.
    pub form: Form,
    /// Serial number, hexadecimal: 32 digits, or 16 of an SSH certificate.
    pub serial: String,
    /// The token it was issued for.
    pub token: String,
    /// Its bot.
    pub bot: Option<String>,
    /// Its instance.
    pub instance: String,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// Which certificates a revocation list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// SSH host certificates, by serial numbers of 16 digits.
    SshHost,
    /// X.509.
    X509,
}

impl Form {
    /// That of a certificate with this serial number, in hexadecimal: SSH numbers certificates by 64 bits, this server's X.509 by 128.
    pub fn of_serial(serial: &str) -> Self {
        if serial.len() == 16 { Self::SshHost } else { Self::X509 }
    }

    /// The word that it is stored by.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::SshHost => "ssh_host",
            Self::X509 => "x509",
        }
    }
}

/// How long after its end a certificate stays known, and revoked. RFC 5280 section 3.3 wants it on one list that was made after its
/// end, and a list is made at least this often where anybody asks for one.
pub const KEEP_ISSUED: Duration = Duration::from_secs(20 * 60);

/// What becomes true together, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// What it was decided on: all of it has to be as it was read.
    pub reads: ReadSet,
    /// Changes of resources.
    pub changes: Vec<Change>,
    /// The token whose certificates issued so far stay revoked from now on, whatever becomes of its locks.
    pub supersedes: Option<String>,
    /// Certificates issued.
    pub issued: Vec<IssuedRecord>,
    /// At most so many certificates stay known of the token of [`Self::issued`]: those that end last. `None`: all of them.
    pub keep_issued: Option<u32>,
    /// Audit events that tell of it.
    pub events: Vec<Event>,
}

/// Why the store did not do as asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// A resource has another revision than it was read at, or locks on it have changed; nothing was written.
    Conflict(String),
    /// The database failed; nothing was written that is not whole.
    Failed(String),
    /// The cursor is not a place in this log, which may have been restored from a backup since.
    UnknownCursor,
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Conflict(what) => write!(f, "{what} has changed meanwhile"),
            Self::Failed(why) => write!(f, "database: {why}"),
            Self::UnknownCursor => {
                f.write_str("the cursor is of another audit log, perhaps of this one before a restore: begin again with --since")
            }
        }
    }
}

impl std::error::Error for StoreError {}

/// What an auth endpoint needs of a database. Calls block; call from a thread that may.
pub trait Store: Send + Sync {
    /// One resource.
    fn get(&self, id: &ResourceId) -> Result<Option<Stored<Resource>>, StoreError>;

    /// One resource, as operators see it.
    fn listed(&self, id: &ResourceId) -> Result<Option<Listed>, StoreError>;

    /// At most `limit` resources of a kind as operators see them, by name: those whose names are greater than `after`, all as they were at
    /// one moment.
    fn page(&self, kind: Kind, after: &str, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// All resources of a kind, by name.
    fn list(&self, kind: Kind) -> Result<Vec<Stored<Resource>>, StoreError>;

    /// A resource of the same kind whose name differs from that of `key` in the case of letters alone (A to Z).
    fn alike(&self, id: &ResourceId) -> Result<Option<ResourceId>, StoreError>;

    /// Locks on `target`, also those that have ended.
    fn locks_on(&self, target: &LockTarget) -> Result<Vec<Lock>, StoreError>;

    /// What a join with `token` by a device that names `instance` is decided on; `None` without such a token.
    fn join_view(&self, token: &str, instance: Option<Id>) -> Result<Option<JoinView>, StoreError>;

    /// Another number after each commit of this handle that may have put certificates on a revocation list or taken them off.
    /// What others wrote to the same database does not show in it.
    fn revocation_changes(&self) -> u64;

    /// A number for the next revocation list of `form`: greater than all that were given before, over all handles and whatever the
    /// clock shows.
    fn next_list_number(&self, form: Form) -> Result<u64, StoreError>;

    /// How many certificates of `token` are known that have not ended at `now`.
    fn outstanding(&self, token: &str, now: Timestamp) -> Result<u32, StoreError>;

    /// Certificates of `form` of tokens, bots and instances that a lock in force at `now` stops, and of tokens and bots that were
    /// deleted: those that ended no longer than [`KEEP_ISSUED`] before. At most `limit`.
    ///
    /// Serial numbers, hexadecimal, in an order that is fair where not all of them fit: first the certificate of each token that ends
    /// last, then the second one of each, and so on. No token can crowd out another.
    fn revoked(&self, form: Form, now: Timestamp, limit: usize) -> Result<Vec<String>, StoreError>;

    /// Tokens whose exemption ended before or at `now`, unused.
    fn ended_exemptions(&self, now: Timestamp) -> Result<Vec<Stored<Token>>, StoreError>;

    /// Of the bound tokens that have not expired at `now`, how many told at their last join of a trust bundle of this sequence number or a
    /// later one.
    fn bundle_share(&self, sequence: u64, now: Timestamp) -> Result<Share, StoreError>;

    /// Writes all of `commit`, durably, or nothing.
    fn commit(&self, commit: Commit) -> Result<(), StoreError>;

    /// A page of the audit log, in the order of writing: a reader that follows the cursors misses no event and gets none twice, whatever
    /// is written meanwhile. Refuses a cursor that it did not give.
    fn events(&self, filter: &EventFilter) -> Result<EventPage, StoreError>;

    /// The time of the latest event that is no later than `time`.
    fn last_event_until(&self, time: Timestamp) -> Result<Option<Timestamp>, StoreError>;

    /// Forgets what ended before `now`: instances, certificates that ended [`KEEP_ISSUED`] before it, and events older than
    /// `keep_events`.
    fn sweep(&self, now: Timestamp, keep_events: Duration) -> Result<(), StoreError>;
}
