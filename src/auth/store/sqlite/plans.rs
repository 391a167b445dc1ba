//! How SQLite answers: that no statement reads a table from one end to the other.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::{events, listing, read, schema, write};
use crate::store::Form;
use boundkey_api::event::{Event, EventFilter, EventKind};
use boundkey_platform::time::Timestamp;

/// Every statement that looks for rows, for a device, an operator or the upkeep.
const STATEMENTS: [&str; 25] = [
    events::AFTER,
    events::AFTER_OF_TOKEN,
    events::FIRST_SINCE,
    events::LAST,
    events::LAST_UNTIL,
    events::TIME_OF,
    listing::PAGE,
    read::ENDED_EXEMPTIONS,
    read::GET,
    read::LIST,
    read::LOCKS_ON,
    read::OUTSTANDING,
    read::REVOKED,
    write::BOT_TOMBSTONE,
    write::BURY_ISSUED,
    write::FORGET_ISSUED,
    write::GIVE_BACK_ISSUED,
    write::INSERT_EVENT,
    write::LOCK_REVISIONS,
    write::REVISION,
    write::SWEEP_ENDED,
    write::SWEEP_EVENTS,
    write::SWEEP_TOMBSTONES,
    write::TOKEN_TOMBSTONE,
    write::SWEEP_ISSUED,
];

/// What is read whole on purpose: subjects that are locked or gone, and results on the way.
const SCANNED: [&str; 5] = ["ranked", "revoked", "stopped", "stopped_name", "tombstone"];

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
             INSERT INTO issued SELECT 't' || (i / 10), printf('%032x', i), 'x509', 'b' || (i / 1000), 'i' || (i / 10), ?1, NULL FROM n",
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
    assert_eq!(revoked.len(), 10 + 1000 + 10 + 10);
    let start = Instant::now();
    assert_eq!(read::outstanding(&snapshot, "t500", now).unwrap(), 10);
    let counted = start.elapsed();
    println!("of {ISSUED}: {} revoked in {took:?}; those of one token counted in {counted:?}", revoked.len());
    assert!(took < Duration::from_millis(200) && counted < Duration::from_millis(50), "{took:?} {counted:?}");
}

/// Events in the log of a fleet.
const EVENTS: u64 = 500_000;

/// Each page of `audit --since`, and each look of a follower, walked the whole log: 76 ms at 496,000 events.
#[test]
fn a_page_of_the_log_costs_what_is_on_it_and_not_what_is_in_the_log() {
    let mut connection = database();
    let begin = Timestamp::from_secs(1_800_000_000);
    let document = Event::new(begin, EventKind::JoinRenewal).document().unwrap();
    connection
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?2 - 1)
             INSERT INTO event (time, token, document, latest) SELECT ?1 + i * 1000, 't' || (i % 1000), ?3, ?1 + i * 1000 FROM n",
            params![begin.millis(), EVENTS, document],
        )
        .unwrap();
    let snapshot = connection.transaction().unwrap();
    let page = |filter: &EventFilter| {
        let filter = EventFilter { limit: Some(10), ..filter.clone() };
        // The fastest of some: other programs run too.
        let try_once = |_| {
            let start = Instant::now();
            let page = events::events(&snapshot, &filter).unwrap();
            (start.elapsed(), page)
        };
        (0..5).map(try_once).min_by_key(|(took, _)| *took).unwrap()
    };
    let since = EventFilter { since: Some(begin.plus(Duration::from_secs(EVENTS / 2))), ..EventFilter::default() };
    let of_token = EventFilter { token: Some("t7".into()), ..since.clone() };
    let now = EventFilter { since: Some(begin.plus(Duration::from_secs(EVENTS))), ..EventFilter::default() };
    for (what, filter, found) in [("since", since, 10), ("of a token", of_token, 10), ("from now on", now, 0)] {
        let (first, page_one) = page(&filter);
        let (second, page_two) = page(&EventFilter { after: Some(page_one.cursor), ..filter });
        assert_eq!((page_one.events.len(), page_two.events.len()), (found, found), "{what}");
        println!("of {EVENTS} events, 10 {what}: first page {first:?}, next page {second:?}");
        assert!(first.max(second) < Duration::from_millis(10), "{what}: {first:?} {second:?}");
    }
}

#[test]
fn the_log_is_read_in_its_own_order_and_never_sorted() {
    let connection = database();
    for statement in [events::AFTER, events::AFTER_OF_TOKEN, events::FIRST_SINCE, events::LAST] {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let parameters = rusqlite::params_from_iter(std::iter::repeat_n(1, plan.parameter_count()));
        let steps: Vec<String> = plan.query_map(parameters, |row| row.get("detail")).unwrap().map(Result::unwrap).collect();
        assert!(steps.iter().all(|step| !step.contains("TEMP B-TREE")), "{statement}\n{steps:#?}");
    }
}
