//! How SQLite answers: that no statement reads a table from one end to the other.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::{listing, read, schema, write};
use crate::auth::store::Form;
use crate::time::Timestamp;

/// Every statement that looks for rows, for a device, an operator or the upkeep.
const STATEMENTS: [&str; 20] = [
    listing::PAGE,
    read::ENDED_EXEMPTIONS,
    read::EVENTS,
    read::EVENTS_OF_TOKEN,
    read::FIRST_EVENT_SINCE,
    read::GET,
    read::LAST_EVENT_UNTIL,
    read::LIST,
    read::LOCKS_ON,
    read::OUTSTANDING,
    read::REVOKED,
    write::FORGET_ISSUED,
    write::REMEMBER_BOT,
    write::REMEMBER_TOKEN,
    write::RENAME_ISSUED,
    write::REVISION,
    write::SWEEP_ENDED,
    write::SWEEP_EVENTS,
    write::SWEEP_GONE,
    write::SWEEP_ISSUED,
];

/// What is read whole on purpose: subjects that are locked or gone, and results on the way.
const SCANNED: [&str; 5] = ["gone", "ranked", "revoked", "stopped", "stopped_name"];

/// Certificates in the database of a fleet.
const ISSUED: u64 = 200_000;

fn database() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::create(&mut connection).unwrap();
    connection
}

#[test]
fn no_statement_reads_a_table_from_end_to_end() {
    let connection = database();
    for statement in STATEMENTS {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let count = plan.parameter_count();
        let parameters = rusqlite::params_from_iter(std::iter::repeat_n(1, count));
        let steps: Vec<String> = plan.query_map(parameters, |row| row.get("detail")).unwrap().map(Result::unwrap).collect();
        for step in &steps {
            let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
            assert!(scanned.is_none_or(|table| SCANNED.contains(&table) || table.starts_with('(')), "{statement}\n{steps:#?}");
        }
    }
}

/// Certificates that nobody revoked were all read for each list. The bound is far above what it takes, and far below a scan.
#[test]
fn a_list_costs_what_is_on_it_and_not_what_was_issued() {
    let mut connection = database();
    let now = Timestamp::from_secs(1_800_000_000);
    let end = now.plus(Duration::from_secs(3600)).millis();
    connection
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?2 - 1)
             INSERT INTO issued SELECT 't' || (i / 10), printf('%032x', i), 'b' || (i / 1000), 'i' || (i / 10), ?1 FROM n",
            [end, ISSUED],
        )
        .unwrap();
    let subjects = ["token/t7", "bot/b3", "bot_instance/i9999", "host/i12"];
    for (at, subject) in subjects.iter().enumerate() {
        connection
            .execute("INSERT INTO resource VALUES ('lock', ?1, 1, ?2, NULL, '{}')", params![at.to_string(), subject])
            .unwrap();
    }
    let snapshot = connection.transaction().unwrap();
    let start = Instant::now();
    let revoked = read::revoked(&snapshot, Form::X509, now, 50_000).unwrap();
    let took = start.elapsed();
    assert_eq!(revoked.serials.len(), 10 + 1000 + 10 + 10);
    let start = Instant::now();
    assert_eq!(read::outstanding(&snapshot, "t500", now).unwrap(), 10);
    let counted = start.elapsed();
    println!("of {ISSUED}: {} revoked in {took:?}; those of one token counted in {counted:?}", revoked.serials.len());
    assert!(took < Duration::from_millis(200) && counted < Duration::from_millis(50), "{took:?} {counted:?}");
}
