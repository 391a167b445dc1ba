//! Writing: one thread, which commits together whatever waits.
//!
//! A sync of the disk costs the same for one commit as for a hundred. Each stands on a savepoint of its own, so a conflict undoes
//! that one alone; nobody is answered before the transaction is durable.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::wal::Wal;
use crate::api::event::Event;
use crate::api::resource::{Kind, Resource, ResourceId, Token};
use crate::auth::store::{Change, Commit, IssuedRecord, KEEP_ISSUED, StoreError};
use crate::time::Timestamp;

/// Most commits in one transaction: bounds the wait of the first.
const MAX_GROUP: usize = 128;

/// The handle of the writer thread.
#[derive(Debug)]
pub(super) struct Writer {
    /// Taken on drop: its end ends the thread.
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    work: Work,
    answer: SyncSender<Result<(), StoreError>>,
}

enum Work {
    Commit(Box<Commit>),
    Sweep { now: Timestamp, events_before: Timestamp },
}

impl Writer {
    pub(super) fn start(connection: Connection, wal: Wal) -> Result<Self, StoreError> {
        let (queue, jobs) = channel();
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || {
            let _said = SayWhenDead;
            run(connection, wal, &jobs);
        });
        let thread = thread.map_err(|e| StoreError::Failed(format!("cannot start the writer thread: {e}")))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    pub(super) fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.ask(Work::Commit(Box::new(commit)))
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

fn run(mut connection: Connection, mut wal: Wal, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP {
            let Ok(next) = jobs.try_recv() else { break };
            group.push(next);
        }
        let results = commit_group(&mut connection, &group);
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
    let mut counters = Counters::read(&transaction)?;
    let mut results = Vec::with_capacity(group.len());
    for job in group {
        let savepoint = transaction.savepoint()?;
        let before = counters;
        let result = job.work.apply(&savepoint, &mut counters);
        results.push(match result {
            Ok(()) => Ok(savepoint.commit()?),
            // A full or failing disk ends the whole transaction, not this savepoint alone.
            Err(error) if savepoint.is_autocommit() => return Err(error),
            Err(error) => {
                savepoint.finish()?;
                counters = before;
                Err(error)
            }
        });
    }
    counters.write(&transaction)?;
    transaction.commit()?;
    Ok(results)
}

/// The counters of the whole store.
#[derive(Clone, Copy)]
struct Counters {
    revision: u64,
    policy: u64,
}

impl Counters {
    fn read(transaction: &Transaction<'_>) -> Result<Self, StoreError> {
        let mut query = transaction.prepare_cached("SELECT revision, policy FROM meta")?;
        Ok(query.query_row([], |row| Ok(Self { revision: row.get(0)?, policy: row.get(1)? }))?)
    }

    fn write(self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        transaction.prepare_cached("UPDATE meta SET revision = ?, policy = ?")?.execute([self.revision, self.policy])?;
        Ok(())
    }
}

impl Work {
    fn apply(&self, connection: &Connection, counters: &mut Counters) -> Result<(), StoreError> {
        match self {
            Self::Commit(commit) => apply(connection, counters, commit),
            Self::Sweep { now, events_before } => sweep(connection, *now, *events_before),
        }
    }
}

fn apply(connection: &Connection, counters: &mut Counters, commit: &Commit) -> Result<(), StoreError> {
    if commit.policy.is_some_and(|decided_under| decided_under != counters.policy) {
        return Err(StoreError::Conflict("a bot, role or lock".into()));
    }
    commit.expects.iter().try_for_each(|(key, revision)| expect(connection, key, Some(*revision)))?;
    commit.changes.iter().try_for_each(|change| apply_change(connection, counters, change))?;
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

fn apply_change(connection: &Connection, counters: &mut Counters, change: &Change) -> Result<(), StoreError> {
    let Change { id, expected, to } = change;
    expect(connection, id, *expected)?;
    counters.revision += 1;
    if matches!(id.kind, Kind::Bot | Kind::Lock | Kind::Role) {
        counters.policy += 1;
    }
    let Some(resource) = to else {
        match id.kind {
            Kind::Bot => remember_bot(connection, &id.name)?,
            Kind::Token => disown(connection, &id.name)?,
            Kind::BotInstance | Kind::Host | Kind::Lock | Kind::Role => {}
        }
        connection.prepare_cached("DELETE FROM resource WHERE kind = ? AND name = ?")?.execute([id.kind.name(), &id.name])?;
        return Ok(());
    };
    let document = document(resource).map_err(|e| StoreError::Failed(format!("{id} cannot be stored: {e}")))?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO resource (kind, name, revision, subject, ends, document) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![id.kind.name(), id.name, counters.revision, subject_of(resource), ends(resource), document])?;
    match resource {
        Resource::Bot(bot) if expected.is_none() => is_back(connection, &format!("bot/{}", bot.metadata.name)),
        Resource::Token(token) if expected.is_none() => own(connection, token),
        _ => Ok(()),
    }
}

/// Statements of the writer that look for rows.
pub(super) const REVISION: &str = "SELECT revision FROM resource WHERE kind = ? AND name = ?";
pub(super) const FORGET_ISSUED: &str = "
    DELETE FROM issued WHERE token = ?1 AND serial IN (
        SELECT serial FROM issued WHERE token = ?1 ORDER BY not_after DESC, serial LIMIT -1 OFFSET ?2
    )";
pub(super) const REMEMBER_BOT: &str = "
    INSERT OR REPLACE INTO gone SELECT 'bot/' || bot, max(not_after) FROM issued WHERE bot = ?1 GROUP BY bot";
pub(super) const REMEMBER_TOKEN: &str = "
    INSERT OR REPLACE INTO gone SELECT 'token/' || token, max(not_after) FROM issued WHERE token = ?1 GROUP BY token";
pub(super) const RENAME_ISSUED: &str = "UPDATE issued SET token = ?2 WHERE token = ?1";

/// Certificates of a bot that is deleted are revoked until there is a bot of that name again.
fn remember_bot(connection: &Connection, name: &str) -> Result<(), StoreError> {
    connection.prepare_cached(REMEMBER_BOT)?.execute([name])?;
    Ok(())
}

fn is_back(connection: &Connection, subject: &str) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM gone WHERE subject = ?")?.execute([subject])?;
    Ok(())
}

/// Certificates of a token that is deleted are from then on those of `NAME/LIFE`, which names no token: the next one of this name gives
/// them back to nobody.
fn disown(connection: &Connection, name: &str) -> Result<(), StoreError> {
    let life: Option<String> = connection
        .prepare_cached(
            "SELECT json_extract(document, '$.status.bound_keypair.incarnation') FROM resource WHERE kind = 'token' AND name = ?",
        )?
        .query_row([name], |row| row.get(0))
        .optional()?
        .flatten();
    let gone = format!("{name}/{}", life.unwrap_or_default());
    connection.prepare_cached(RENAME_ISSUED)?.execute([name, &gone])?;
    connection.prepare_cached(REMEMBER_TOKEN)?.execute([&gone])?;
    Ok(())
}

/// Certificates of a token that a recovery code made worthless are from then on those of `NAME//`, which names no token and no life of
/// one: nothing gives them back.
fn supersede(connection: &Connection, name: &str) -> Result<(), StoreError> {
    let superseded = format!("{name}//");
    connection.prepare_cached(RENAME_ISSUED)?.execute([name, &superseded])?;
    connection.prepare_cached(REMEMBER_TOKEN)?.execute([&superseded])?;
    Ok(())
}

/// A token that is made with the life of one that was deleted is that one, put back.
fn own(connection: &Connection, token: &Token) -> Result<(), StoreError> {
    let (name, Some(life)) = (&token.metadata.name, token.status.bound_keypair.incarnation) else { return Ok(()) };
    let gone = format!("{name}/{life}");
    connection.prepare_cached(RENAME_ISSUED)?.execute([&gone, name])?;
    is_back(connection, &format!("token/{gone}"))
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
        Resource::Instance(instance) => Some(format!("token/{}", instance.spec.token)),
        Resource::Bot(_) | Resource::Role(_) | Resource::Token(_) => None,
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
    let IssuedRecord { serial, token, bot, instance, not_after } = issued;
    connection
        .prepare_cached("INSERT INTO issued (token, serial, bot, instance, not_after) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![token, serial, bot, instance, not_after.millis()])?;
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
pub(super) const SWEEP_GONE: &str = "DELETE FROM gone WHERE ends < ?";
pub(super) const SWEEP_EVENTS: &str = "DELETE FROM event WHERE time < ?";

fn sweep(connection: &Connection, now: Timestamp, events_before: Timestamp) -> Result<(), StoreError> {
    let forgotten = now.minus(KEEP_ISSUED);
    let sweeps = [(SWEEP_ENDED, now), (SWEEP_ISSUED, forgotten), (SWEEP_GONE, forgotten), (SWEEP_EVENTS, events_before)];
    for (statement, limit) in sweeps {
        connection.prepare_cached(statement)?.execute([limit.millis()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resource::{Bot, BotSpec, Metadata};

    fn job(commit: Commit) -> Job {
        Job { work: Work::Commit(Box::new(commit)), answer: sync_channel(1).0 }
    }

    fn create(name: &str, serial: &str) -> Commit {
        let bot = Resource::Bot(Bot { metadata: Metadata::named(name), spec: BotSpec::default() });
        let issued = IssuedRecord {
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
        let under_new_policy = Commit { policy: Some(2), ..create("e", "4") };
        // The second brings a serial that is taken: a failure of its own, after its change of a bot.
        let group = [create("a", "1"), create("b", "1"), conflict, create("d", "2"), under_new_policy].map(job);
        let results = commit_group(&mut connection, &group);
        assert!(matches!(
            &results[..],
            [Ok(()), Err(StoreError::Failed(_)), Err(StoreError::Conflict(what)), Ok(()), Ok(())] if what == "bot/d"
        ));
        let mut rows = connection.prepare("SELECT name || revision FROM resource ORDER BY name").unwrap();
        let rows: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, ["a1", "d2", "e3"]);
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
        let writer = Writer { queue: Some(queue), thread: Some(thread) };
        for _ in 0..2 {
            let result = writer.commit(Commit::default());
            assert!(matches!(result, Err(StoreError::Failed(why)) if why.contains("has died")));
        }
    }
}
