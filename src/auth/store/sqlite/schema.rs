//! What stands in the file, and how a file of an earlier version gets there.
//!
//! `PRAGMA user_version` counts the migrations done, `PRAGMA application_id` tells our files from others.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::store::StoreError;

/// `bkey`.
const APPLICATION: i64 = 0x626b_6579;

/// Each brings the schema one version on. Released ones never change.
const MIGRATIONS: [&str; 9] = [
    "
    -- The counters: both only rise, and a revision given once is never given again.
    CREATE TABLE meta (
        id       INTEGER PRIMARY KEY CHECK (id = 1),
        revision INTEGER NOT NULL,
        policy   INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (1, 0, 0);

    CREATE TABLE resource (
        kind     TEXT NOT NULL,
        name     TEXT NOT NULL,
        revision INTEGER NOT NULL,
        subject  TEXT,      -- 'kind/name' that a lock stops, or whose token an instance joined with
        ends     INTEGER,   -- when an instance, a lock, or the exemption of a token ends: milliseconds since 1970
        document TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT;
    CREATE INDEX resource_subject ON resource (subject) WHERE subject IS NOT NULL;
    CREATE INDEX resource_ends ON resource (kind, ends) WHERE ends IS NOT NULL;

    CREATE TABLE issued (
        serial    TEXT PRIMARY KEY,
        token     TEXT NOT NULL,
        bot       TEXT,
        instance  TEXT NOT NULL,
        not_after INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX issued_not_after ON issued (not_after);

    -- AUTOINCREMENT: a number swept away does not come back, so 'all after N' misses nothing.
    CREATE TABLE event (
        number   INTEGER PRIMARY KEY AUTOINCREMENT,
        time     INTEGER NOT NULL,
        token    TEXT,
        document TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_time ON event (time);
    CREATE INDEX event_token ON event (token) WHERE token IS NOT NULL;
    ",
    "
    -- A token that is deleted leaves its certificates behind: found without a look at those of all others.
    CREATE INDEX issued_token ON issued (token);
    ",
    "
    -- Certificates lie together by token, and are found by each name that a lock can have: no list needs a look at all of them.
    CREATE TABLE issued_by_token (
        token     TEXT NOT NULL,    -- of a deleted one: 'NAME/INCARNATION'
        serial    TEXT NOT NULL,
        bot       TEXT,
        instance  TEXT NOT NULL,
        not_after INTEGER NOT NULL, -- milliseconds since 1970
        PRIMARY KEY (token, serial)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO issued_by_token SELECT token, serial, bot, instance, not_after FROM issued;
    DROP TABLE issued;
    ALTER TABLE issued_by_token RENAME TO issued;
    CREATE INDEX issued_bot ON issued (bot) WHERE bot IS NOT NULL;
    CREATE INDEX issued_instance ON issued (instance);
    CREATE INDEX issued_not_after ON issued (not_after);

    -- Tokens and bots that were deleted while certificates of theirs had not ended.
    CREATE TABLE gone (
        subject TEXT PRIMARY KEY,   -- 'token/NAME/INCARNATION' or 'bot/NAME'
        ends    INTEGER NOT NULL    -- when the last of the certificates ends: milliseconds since 1970
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX gone_ends ON gone (ends);
    INSERT INTO gone SELECT 'token/' || token, max(not_after) FROM issued
        WHERE token NOT IN (SELECT name FROM resource WHERE kind = 'token') GROUP BY token;
    INSERT INTO gone SELECT 'bot/' || bot, max(not_after) FROM issued
        WHERE bot NOT IN (SELECT name FROM resource WHERE kind = 'bot') GROUP BY bot;
    ",
    "
    -- A new name is compared with those there are whatever the case of their letters.
    CREATE INDEX resource_alike ON resource (kind, name COLLATE NOCASE);
    ",
    "
    -- Another at each opening of the file: nothing that was signed for the file as it was before a restore is fresh in it.
    ALTER TABLE meta ADD COLUMN epoch BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
    -- Keys that two held are told by join states alone.
    UPDATE resource SET document = json_remove(document, '$.status.bound_keypair.caught_keys')
        WHERE kind = 'token' AND json_type(document, '$.status.bound_keypair.caught_keys') IS NOT NULL;
    ",
    "
    -- Operators are named by a member of their own; before, 'uid N' stood where the address of a device stands.
    UPDATE event SET document = json_set(json_remove(document, '$.remote_addr'),
            '$.actor', 'local:' || substr(json_extract(document, '$.remote_addr'), length('uid ') + 1))
        WHERE json_extract(document, '$.remote_addr') GLOB 'uid [0-9]*';
    ",
    "
    -- Times of events need not rise; the greatest one so far does: an index finds the first event of some time.
    ALTER TABLE event ADD COLUMN latest INTEGER NOT NULL DEFAULT 0;
    UPDATE event SET latest = greatest FROM
        (SELECT number AS of_number, max(time) OVER (ORDER BY number) AS greatest FROM event) WHERE number = of_number;
    CREATE INDEX event_latest ON event (latest);
    ",
    "
    -- No counter that all commits share: each names what it read.
    ALTER TABLE meta DROP COLUMN revision;
    ALTER TABLE meta DROP COLUMN policy;

    -- Locks alone are looked for by what they are on; a token that many hosts share has as many instances.
    DROP INDEX resource_subject;
    UPDATE resource SET subject = NULL WHERE kind <> 'lock' AND subject IS NOT NULL;
    CREATE INDEX resource_lock ON resource (subject) WHERE kind = 'lock';

    -- The number of the last revocation list. Before, lists were numbered by milliseconds since 1970.
    CREATE TABLE list_number (
        form   TEXT PRIMARY KEY,    -- 'ssh_host' or 'x509'
        number INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO list_number SELECT form, coalesce((SELECT max(latest) FROM event), 0)
        FROM (SELECT 'ssh_host' AS form UNION ALL SELECT 'x509');
    ",
    "
    -- What was deleted, or made worthless, while certificates of it had not ended: a row, in place of a name that no token has.
    CREATE TABLE tombstone (
        number      INTEGER PRIMARY KEY,
        kind        TEXT NOT NULL,      -- 'bot', 'token', or 'superseded': of a token that stays
        name        TEXT NOT NULL,
        incarnation TEXT,               -- of a deleted token: the one that gets its certificates back
        ends        INTEGER NOT NULL,   -- when the last of the certificates ends: milliseconds since 1970
        was         TEXT                -- the name in use until now
    ) STRICT;
    INSERT INTO tombstone (kind, name, ends) SELECT 'bot', substr(subject, 5), ends FROM gone WHERE subject LIKE 'bot/%';
    INSERT INTO tombstone (kind, name, incarnation, ends, was)
        SELECT CASE rest WHEN '/' THEN 'superseded' ELSE 'token' END, name, nullif(nullif(rest, '/'), ''), ends, token FROM (
            SELECT token, ends, substr(token, 1, instr(token || '/', '/') - 1) AS name,
                substr(token, instr(token || '/', '/') + 1) AS rest
            FROM (SELECT token, max(not_after) AS ends FROM issued
                WHERE instr(token, '/') > 0 OR 'token/' || token IN (SELECT subject FROM gone) GROUP BY token)
        );
    DROP TABLE gone;

    CREATE TABLE issued_with_form (
        token     TEXT NOT NULL,
        serial    TEXT NOT NULL,
        form      TEXT NOT NULL,    -- 'ssh_host' or 'x509'
        bot       TEXT,
        instance  TEXT NOT NULL,
        not_after INTEGER NOT NULL, -- milliseconds since 1970
        tombstone INTEGER,          -- of its token, or of what superseded it: it is revoked
        PRIMARY KEY (token, serial)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO issued_with_form
        SELECT coalesce(name, token), serial, CASE length(serial) WHEN 16 THEN 'ssh_host' ELSE 'x509' END, bot, instance, not_after, number
        FROM issued LEFT JOIN tombstone ON was = token;
    DROP TABLE issued;
    ALTER TABLE issued_with_form RENAME TO issued;
    CREATE INDEX issued_bot ON issued (bot) WHERE bot IS NOT NULL;
    CREATE INDEX issued_instance ON issued (instance);
    CREATE INDEX issued_not_after ON issued (not_after);
    CREATE INDEX issued_tombstone ON issued (tombstone) WHERE tombstone IS NOT NULL;

    ALTER TABLE tombstone DROP COLUMN was;
    CREATE INDEX tombstone_name ON tombstone (kind, name);
    CREATE INDEX tombstone_ends ON tombstone (ends);
    ",
];

/// Makes an empty file ours.
pub(super) fn create(connection: &mut Connection) -> Result<(), StoreError> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    run_from(&transaction, 0)?;
    Ok(transaction.commit()?)
}

/// Brings a file of an earlier version to this one; refuses what [`check`] does.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    // The write lock first: two programs that start at once must not both migrate.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = check(&transaction)?;
    run_from(&transaction, version)?;
    Ok(transaction.commit()?)
}

/// Begins another epoch, named by 128 random bits.
///
/// A database from a backup has numbers of revocation lists that were given already. Fewer than one a millisecond are given, so
/// they go on at the milliseconds since 1970 where that is more: the one place where a clock has a say, and only upwards.
pub(super) fn begin_epoch(connection: &Connection) -> Result<(), StoreError> {
    Ok(connection.execute_batch(
        "BEGIN IMMEDIATE;
         UPDATE meta SET epoch = randomblob(16);
         UPDATE list_number SET number = max(number, CAST(unixepoch('subsec') * 1000 AS INTEGER));
         COMMIT",
    )?)
}

/// The schema's version; refuses a foreign file and one of a newer version.
pub(super) fn check(connection: &Connection) -> Result<usize, StoreError> {
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION {
        return Err(StoreError::Failed(
            "the file is not a database of boundkey's, or its making was cut off: remove it and make it anew".into(),
        ));
    }
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > MIGRATIONS.len() {
        let ours = MIGRATIONS.len();
        let why = format!("the file is of schema {version}, made by a newer boundkey-auth; this one knows schema {ours}");
        return Err(StoreError::Failed(why));
    }
    Ok(version)
}

fn run_from(transaction: &Transaction<'_>, version: usize) -> Result<(), StoreError> {
    for migration in &MIGRATIONS[version..] {
        transaction.execute_batch(migration)?;
    }
    Ok(transaction.pragma_update(None, "user_version", MIGRATIONS.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_first_schema_is_brought_on_with_all_that_is_in_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute_batch(
                r#"INSERT INTO issued VALUES ('1', 't', 'b', 'i', 7), ('2', 'gone/life', 'b', 'i', 8), ('3', 'gone/life', 'c', 'i', 9);
                 INSERT INTO resource VALUES ('token', 't', 1, NULL, NULL, '{"status":{"bound_keypair":{"caught_keys":["k"],"recovery_count":3}}}'), ('bot', 'b', 2, NULL, NULL, '{}');
                 INSERT INTO event VALUES (1, 0, NULL, '{"event":"resource.created","remote_addr":"uid 1000","success":true}'),
                     (2, 0, 't', '{"event":"join.first","remote_addr":"[::1]:4711","success":true}')"#,
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        begin_epoch(&connection).unwrap();
        let now = connection.transaction().unwrap();
        assert_eq!(check(&now).unwrap(), MIGRATIONS.len());
        let rows = |query: &str| -> Vec<String> {
            let mut query = now.prepare(query).unwrap();
            query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(
            rows("SELECT concat_ws(' ', serial, token, bot, instance, not_after) FROM issued ORDER BY serial"),
            ["1 t b i 7", "2 gone b i 8", "3 gone c i 9"]
        );
        assert_eq!(
            rows("SELECT concat_ws(' ', kind, name, incarnation, ends) FROM tombstone ORDER BY kind"),
            ["bot c 9", "token gone life 9"]
        );
        let document = rows("SELECT document FROM resource WHERE kind = 'token'");
        assert_eq!(document, [r#"{"status":{"bound_keypair":{"recovery_count":3}}}"#]);
        assert_eq!(
            rows("SELECT document FROM event ORDER BY number"),
            [
                r#"{"event":"resource.created","success":true,"actor":"local:1000"}"#,
                r#"{"event":"join.first","remote_addr":"[::1]:4711","success":true}"#
            ]
        );
    }
}
