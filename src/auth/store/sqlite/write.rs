//! Writing: one thread, which commits together whatever waits.
//!
//! A sync of the disk costs the same for one commit as for a hundred. Each stands on a savepoint of its own, so a conflict undoes
//! that one alone; nobody is answered before the transaction is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::read;
use super::wal::Wal;
use crate::store::{Change, Commit, Form, IssuedRecord, KEEP_ISSUED, StoreError};
use boundkey_api::event::Event;
use boundkey_api::resource::{Kind, LockTarget, Resource, ResourceId, Token};
use boundkey_platform::time::Timestamp;

/// Most commits in one transaction: bounds the wait of the first.
const MAX_GROUP: usize = 128;

/// The handle of the writer thread.
#[derive(Debug)]
pub(super) struct Writer {
    /// Taken on drop: its end ends the thread.
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Raised by the thread before it answers for a commit that may have changed what is revoked.
    changes: Arc<AtomicU64>,
}

struct Job {
    work: Work,
    answer: SyncSender<Result<(), StoreError>>,
}

enum Work {
    Commit(Box<Commit>),
    /// Counts the lists of this form, and hands the number on once it is written.
    ListNumber {
        form: Form,
        given: SyncSender<u64>,
    },
    Sweep {
        now: Timestamp,
        events_before: Timestamp,
    },
}

impl Writer {
    pub(super) fn start(connection: Connection, wal: Wal) -> Result<Self, StoreError> {
        let (queue, jobs) = channel();
        let changes = Arc::new(AtomicU64::new(0));
        let raised = changes.clone();
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || {
            let _said = SayWhenDead;
            run(connection, wal, &jobs, &raised);
        });
        let thread = thread.map_err(|e| StoreError::Failed(format!("cannot start the writer thread: {e}")))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), changes })
    }

    pub(super) fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.ask(Work::Commit(Box::new(commit)))
    }

    /// Another number after each commit that may have changed what is revoked.
    pub(super) fn revocation_changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn next_list_number(&self, form: Form) -> Result<u64, StoreError> {
        let (given, number) = sync_channel(1);
        self.ask(Work::ListNumber { form, given })?;
        number.try_recv().map_err(|_| StoreError::Failed("the writer gave no number".into()))
    }

    pub(super) fn sweep(&self, now: Timestamp, keep_events: Duration) -> Result<(), StoreError> {
        self.ask(Work::Sweep { now, events_before: now.minus(keep_events) })
    }

    fn ask(&self, work: Work) -> Result<(), StoreError> {
        let dead = || StoreError::Failed("the writer thread has died; restart boundkey-auth, its log says more".into());
        let (answer, answered) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or_else(dead)?;
        queue.send(Job { work, answer }).map_err(|_| dead())?;
        answered.recv().map_err(|_| dead())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It has said so itself if it died.
            let _ = thread.join();
        }
    }
}

/// Logs the death of the thread that holds it.
struct SayWhenDead;

impl Drop for SayWhenDead {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("database: the writer thread has died; nothing can be written until a restart");
        }
    }
}

fn run(mut connection: Connection, mut wal: Wal, jobs: &Receiver<Job>, changes: &AtomicU64) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            group.push(next);
        }
        let results = commit_group(&mut connection, &group);
        if group.iter().any(|job| job.work.may_revoke()) {
            changes.fetch_add(1, Ordering::Release);
        }
        for (job, result) in group.into_iter().zip(results) {
            // Who asked may have gone; the commit stands all the same.
            let _ = job.answer.send(result);
        }
        // What was committed stands, whatever becomes of the log.
        if let Err(e) = wal.bound(&connection) {
            log::error!("the write-ahead log cannot be begun anew: {e}");
        }
    }
}

/// One result per job, all of them true on disk.
fn commit_group(connection: &mut Connection, group: &[Job]) -> Vec<Result<(), StoreError>> {
    match try_group(connection, group) {
        Ok(results) => results,
        Err(error) => {
            let why = match error {
                StoreError::Conflict(why) | StoreError::Failed(why) => why,
                other @ StoreError::UnknownCursor => other.to_string(),
            };
            group.iter().map(|_| Err(StoreError::Failed(why.clone()))).collect()
        }
    }
}

/// `Err`: the transaction as a whole failed, and nothing of it was written.
fn try_group(connection: &mut Connection, group: &[Job]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut results = Vec::with_capacity(group.len());
    for job in group {
        let savepoint = transaction.savepoint()?;
        let result = job.work.apply(&savepoint);
        results.push(match result {
            Ok(()) => Ok(savepoint.commit()?),
            // A full or failing disk ends the whole transaction, not this savepoint alone.
            Err(error) if savepoint.is_autocommit() => return Err(error),
            Err(error) => {
                savepoint.finish()?;
                Err(error)
            }
        });
    }
    transaction.commit()?;
    Ok(results)
}

impl Work {
    /// Whether it may put certificates on a revocation list, or take them off.
    fn may_revoke(&self) -> bool {
        let Self::Commit(commit) = self else { return false };
        let may_revoke = |change: &Change| match change.id.kind {
            Kind::Lock => true,
            // One that is deleted, or is there again.
            Kind::Bot | Kind::Token => change.expected.is_none() || change.to.is_none(),
            Kind::BotInstance | Kind::Host | Kind::Role => false,
        };
        commit.supersedes.is_some() || commit.changes.iter().any(may_revoke)
    }

    fn apply(&self, connection: &Connection) -> Result<(), StoreError> {
        match self {
            Self::Commit(commit) => apply(connection, commit),
            Self::ListNumber { form, given } => give_list_number(connection, *form, given),
            Self::Sweep { now, events_before } => sweep(connection, *now, *events_before),
        }
    }
}

fn apply(connection: &Connection, commit: &Commit) -> Result<(), StoreError> {
    commit.reads.resources.iter().try_for_each(|(id, revision)| expect(connection, id, *revision))?;
    commit.reads.locks.iter().try_for_each(|(target, revisions)| expect_locks(connection, target, revisions))?;
    commit.changes.iter().try_for_each(|change| apply_change(connection, change))?;
    if let Some(token) = &commit.supersedes {
        supersede(connection, token)?;
    }
    commit.issued.iter().try_for_each(|issued| insert_issued(connection, issued))?;
    if let (Some(keep), Some(issued)) = (commit.keep_issued, commit.issued.first()) {
        connection.prepare_cached(FORGET_ISSUED)?.execute(params![issued.token, keep])?;
    }
    commit.events.iter().try_for_each(|event| insert_event(connection, event))
}

/// Refuses the commit where a resource is not at the revision that it was read at; `None`: it does not exist.
fn expect(connection: &Connection, id: &ResourceId, revision: Option<u64>) -> Result<(), StoreError> {
    let mut query = connection.prepare_cached(REVISION)?;
    let current: Option<u64> = query.query_row([id.kind.name(), &id.name], |row| row.get(0)).optional()?;
    if current == revision { Ok(()) } else { Err(StoreError::Conflict(id.to_string())) }
}

/// Refuses the commit where other locks are on `target` than those that were read: one that was put on meanwhile counts too.
fn expect_locks(connection: &Connection, target: &LockTarget, revisions: &[u64]) -> Result<(), StoreError> {
    let mut query = connection.prepare_cached(LOCK_REVISIONS)?;
    let current = query.query_map([target.id().to_string()], |row| row.get(0))?.collect::<Result<Vec<u64>, _>>()?;
    if current == revisions { Ok(()) } else { Err(StoreError::Conflict(format!("a lock on {}", target.id()))) }
}

fn apply_change(connection: &Connection, change: &Change) -> Result<(), StoreError> {
    let Change { id, expected, to } = change;
    expect(connection, id, *expected)?;
    let Some(resource) = to else {
        match id.kind {
            Kind::Bot => bury_bot(connection, &id.name)?,
            Kind::Token => bury_token(connection, &id.name)?,
            Kind::BotInstance | Kind::Host | Kind::Lock | Kind::Role => {}
        }
        connection.prepare_cached("DELETE FROM resource WHERE kind = ? AND name = ?")?.execute([id.kind.name(), &id.name])?;
        return Ok(());
    };
    // Of two that are made at once, neither sees the other when it looks for names that are alike: the second one looks again.
    if expected.is_none()
        && matches!(id.kind, Kind::Bot | Kind::Role | Kind::Token)
        && let Some(other) = read::alike(connection, id)?
    {
        return Err(StoreError::Conflict(other.to_string()));
    }
    let document = document(resource).map_err(|e| StoreError::Failed(format!("{id} cannot be stored: {e}")))?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO resource (kind, name, revision, subject, ends, document) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            id.kind.name(),
            id.name,
            next_revision(connection, *expected)?,
            subject_of(resource),
            ends(resource),
            document
        ])?;
    match resource {
        Resource::Bot(bot) if expected.is_none() => unbury_bot(connection, &bot.metadata.name),
        Resource::Token(token) if expected.is_none() => unbury_token(connection, token),
        _ => Ok(()),
    }
}

/// The revision after `before`; `None`: the first one of a resource. That is random, of 52 bits: a resource of this name that was deleted
/// had others, and nothing has to be remembered of it.
fn next_revision(connection: &Connection, before: Option<u64>) -> Result<u64, StoreError> {
    if let Some(before) = before {
        return Ok(before + 1);
    }
    let mut query = connection.prepare_cached("SELECT 1 + abs(random() % (1 << 52))")?;
    Ok(query.query_row([], |row| row.get(0))?)
}

/// The greatest number so far, and one more.
fn give_list_number(connection: &Connection, form: Form, given: &SyncSender<u64>) -> Result<(), StoreError> {
    let mut update = connection.prepare_cached("UPDATE list_number SET number = number + 1 WHERE form = ? RETURNING number")?;
    let number = update.query_row([form.name()], |row| row.get(0))?;
    // Who asked may have gone; the number is then given to nobody.
    let _ = given.try_send(number);
    Ok(())
}

/// Statements of the writer that look for rows.
pub(super) const LOCK_REVISIONS: &str = "SELECT revision FROM resource WHERE subject = ? AND kind = 'lock' ORDER BY revision";
pub(super) const REVISION: &str = "SELECT revision FROM resource WHERE kind = ? AND name = ?";
pub(super) const FORGET_ISSUED: &str = "
    DELETE FROM issued WHERE token = ?1 AND serial IN (
        SELECT serial FROM issued WHERE token = ?1 AND tombstone IS NULL ORDER BY not_after DESC, serial LIMIT -1 OFFSET ?2
    )";
pub(super) const BOT_TOMBSTONE: &str = "
    INSERT INTO tombstone (kind, name, ends) SELECT 'bot', ?1, max(not_after) FROM issued WHERE bot = ?1 HAVING count(*) > 0";
pub(super) const TOKEN_TOMBSTONE: &str = "
    INSERT INTO tombstone (kind, name, incarnation, ends)
    SELECT ?1, ?2, ?3, max(not_after) FROM issued WHERE token = ?2 AND tombstone IS NULL HAVING count(*) > 0 RETURNING number";
pub(super) const BURY_ISSUED: &str = "UPDATE issued SET tombstone = ?2 WHERE token = ?1 AND tombstone IS NULL";
pub(super) const GIVE_BACK_ISSUED: &str = "
    UPDATE issued SET tombstone = NULL WHERE tombstone IN (
        SELECT number FROM tombstone WHERE kind = 'token' AND name = ?1 AND incarnation = ?2
    )";

/// Certificates of a bot that is deleted are revoked until there is a bot of that name again.
fn bury_bot(connection: &Connection, name: &str) -> Result<(), StoreError> {
    connection.prepare_cached(BOT_TOMBSTONE)?.execute([name])?;
    Ok(())
}

fn unbury_bot(connection: &Connection, name: &str) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM tombstone WHERE kind = 'bot' AND name = ?")?.execute([name])?;
    Ok(())
}

/// Certificates of a token that is deleted stay revoked: another one of this name gives them back to nobody.
fn bury_token(connection: &Connection, name: &str) -> Result<(), StoreError> {
    let incarnation: Option<String> = connection
        .prepare_cached(
            "SELECT json_extract(document, '$.status.bound_keypair.incarnation') FROM resource WHERE kind = 'token' AND name = ?",
        )?
        .query_row([name], |row| row.get(0))
        .optional()?
        .flatten();
    bury_issued(connection, "token", name, incarnation.as_deref())
}

/// Certificates of a token that a recovery code made worthless: nothing gives them back.
fn supersede(connection: &Connection, name: &str) -> Result<(), StoreError> {
    bury_issued(connection, "superseded", name, None)
}

fn bury_issued(connection: &Connection, kind: &str, token: &str, incarnation: Option<&str>) -> Result<(), StoreError> {
    let mut insert = connection.prepare_cached(TOKEN_TOMBSTONE)?;
    let tombstone: Option<i64> = insert.query_row(params![kind, token, incarnation], |row| row.get(0)).optional()?;
    if let Some(tombstone) = tombstone {
        connection.prepare_cached(BURY_ISSUED)?.execute(params![token, tombstone])?;
    }
    Ok(())
}

/// A token that is made with the incarnation of one that was deleted is that one, put back.
fn unbury_token(connection: &Connection, token: &Token) -> Result<(), StoreError> {
    let (name, Some(incarnation)) = (&token.metadata.name, token.status.bound_keypair.incarnation) else { return Ok(()) };
    let named = params![name, incarnation.to_string()];
    connection.prepare_cached(GIVE_BACK_ISSUED)?.execute(named)?;
    connection
        .prepare_cached("DELETE FROM tombstone WHERE kind = 'token' AND name = ?1 AND incarnation = ?2")?
        .execute(params![name, incarnation.to_string()])?;
    Ok(())
}

/// Without `kind` and `version`: the one is a column, the other follows from the schema's version.
fn document(resource: &Resource) -> serde_json::Result<String> {
    match resource {
        Resource::Bot(r) => serde_json::to_string(r),
        Resource::Instance(r) => serde_json::to_string(r),
        Resource::Lock(r) => serde_json::to_string(r),
        Resource::Role(r) => serde_json::to_string(r),
        Resource::Token(r) => serde_json::to_string(r),
    }
}

fn subject_of(resource: &Resource) -> Option<String> {
    match resource {
        Resource::Lock(lock) => Some(lock.spec.target.id().to_string()),
        Resource::Bot(_) | Resource::Instance(_) | Resource::Role(_) | Resource::Token(_) => None,
    }
}

fn ends(resource: &Resource) -> Option<u64> {
    let end = match resource {
        Resource::Instance(instance) => instance.metadata.expires,
        Resource::Token(token) => token.status.bound_keypair.exemption.as_ref().map(|exemption| exemption.expires),
        Resource::Lock(lock) => lock.ends(),
        Resource::Bot(_) | Resource::Role(_) => None,
    };
    end.map(Timestamp::millis)
}

fn insert_issued(connection: &Connection, issued: &IssuedRecord) -> Result<(), StoreError> {
    let IssuedRecord { form, serial, token, bot, instance, not_after } = issued;
    connection
        .prepare_cached("INSERT INTO issued (token, serial, form, bot, instance, not_after) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![token, serial, form.name(), bot, instance, not_after.millis()])?;
    Ok(())
}

pub(super) const INSERT_EVENT: &str = "
    INSERT INTO event (time, token, document, latest)
    VALUES (?1, ?2, ?3, max(?1, coalesce((SELECT latest FROM event WHERE number = (SELECT max(number) FROM event)), 0)))";

fn insert_event(connection: &Connection, event: &Event) -> Result<(), StoreError> {
    let document = event.document().map_err(|e| StoreError::Failed(format!("an event cannot be stored: {e}")))?;
    connection.prepare_cached(INSERT_EVENT)?.execute(params![event.time.millis(), event.token, document])?;
    Ok(())
}

/// What a sweep deletes: the first by what has ended, the next two by when certificates are forgotten, the last by the age of events.
pub(super) const SWEEP_ENDED: &str = "DELETE FROM resource WHERE kind IN ('bot_instance', 'host') AND ends <= ?";
pub(super) const SWEEP_ISSUED: &str = "DELETE FROM issued WHERE not_after < ?";
pub(super) const SWEEP_TOMBSTONES: &str = "DELETE FROM tombstone WHERE ends < ?";
pub(super) const SWEEP_EVENTS: &str = "DELETE FROM event WHERE time < ?";

fn sweep(connection: &Connection, now: Timestamp, events_before: Timestamp) -> Result<(), StoreError> {
    let forgotten = now.minus(KEEP_ISSUED);
    let sweeps = [(SWEEP_ENDED, now), (SWEEP_ISSUED, forgotten), (SWEEP_TOMBSTONES, forgotten), (SWEEP_EVENTS, events_before)];
    for (statement, limit) in sweeps {
        connection.prepare_cached(statement)?.execute([limit.millis()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ReadSet;
    use boundkey_api::resource::{Bot, BotSpec, Metadata};

    fn job(commit: Commit) -> Job {
        Job { work: Work::Commit(Box::new(commit)), answer: sync_channel(1).0 }
    }

    fn create(name: &str, serial: &str) -> Commit {
        let bot = Resource::Bot(Bot { metadata: Metadata::named(name), spec: BotSpec::default() });
        let issued = IssuedRecord {
            form: Form::X509,
            serial: serial.into(),
            token: "t".into(),
            bot: None,
            instance: "i".into(),
            not_after: Timestamp::default(),
        };
        let changes = vec![Change { id: bot.id(), expected: None, to: Some(bot) }];
        Commit { changes, issued: vec![issued], ..Commit::default() }
    }

    #[test]
    fn in_a_group_each_stands_for_itself() {
        let mut connection = Connection::open_in_memory().unwrap();
        super::super::schema::create(&mut connection).unwrap();
        let stale = Change { id: ResourceId::new(Kind::Bot, "d"), expected: Some(7), to: None };
        let mut conflict = create("c", "3");
        conflict.changes.push(stale);
        let reads = ReadSet { locks: vec![(LockTarget::Bot("a".into()), vec![7])], ..ReadSet::default() };
        let under_other_locks = Commit { reads, ..create("e", "4") };
        // The second brings a serial that is taken: a failure of its own, after its change of a bot.
        let group = [create("a", "1"), create("b", "1"), conflict, create("d", "2"), under_other_locks].map(job);
        let results = commit_group(&mut connection, &group);
        assert!(matches!(
            &results[..],
            [Ok(()), Err(StoreError::Failed(_)), Err(StoreError::Conflict(what)), Ok(()), Err(StoreError::Conflict(locks))]
                if what == "bot/d" && locks == "a lock on bot/a"
        ));
        let mut rows = connection.prepare("SELECT name FROM resource ORDER BY name").unwrap();
        let rows: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, ["a", "d"]);
    }

    #[test]
    fn a_group_that_cannot_be_written_fails_as_one() {
        let mut connection = Connection::open_in_memory().unwrap();
        super::super::schema::create(&mut connection).unwrap();
        connection.pragma_update(None, "query_only", true).unwrap();
        let results = commit_group(&mut connection, &[create("a", "1"), create("b", "2")].map(job));
        assert!(results.len() == 2 && results.iter().all(|result| matches!(result, Err(StoreError::Failed(_)))));
    }

    #[test]
    fn a_dead_writer_is_told_and_not_waited_for() {
        let (queue, jobs) = channel();
        // Dies over the first job, with the answer still owed.
        let thread = std::thread::spawn(move || drop(jobs.recv()));
        let writer = Writer { queue: Some(queue), thread: Some(thread), changes: Arc::default() };
        for _ in 0..2 {
            let result = writer.commit(Commit::default());
            assert!(matches!(result, Err(StoreError::Failed(why)) if why.contains("has died")));
        }
    }
}
