//! The store's contract, checked through the trait, and what SQLite has to add to it: durability, damage, versions.
#![cfg(feature = "auth")]

#[path = "store/alternating.rs"]
mod alternating;
#[path = "store/conforms.rs"]
mod conforms;
#[path = "store/two_handles.rs"]
mod two_handles;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use boundkey::api::event::{Event, EventFilter, EventKind};
use boundkey::api::resource::{Bot, BotSpec, Kind, LockTarget, Metadata, Resource, ResourceId};
use boundkey::auth::store::{Change, Commit, Form, SqliteStore, Store, StoreError};
use boundkey::platform::time::Timestamp;

/// Path of the database that a child process of a test writes to.
const CHILD_DATABASE: &str = "BOUNDKEY_TEST_DATABASE";
/// The same, for a child whose disk is small.
const CHILD_DISK: &str = "BOUNDKEY_TEST_DISK";

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

/// A resource, from its JSON.
fn resource(json: &str) -> Resource {
    serde_json::from_str(json).unwrap()
}

fn bot(name: &str, roles: &[&str]) -> Resource {
    let roles = roles.iter().map(ToString::to_string).collect();
    Resource::Bot(Bot { metadata: Metadata::named(name), spec: BotSpec { roles } })
}

fn token(name: &str, bot: &str, bound: Option<&str>) -> Resource {
    let status = bound.map_or(String::new(), |id| format!(r#","bound_bot_instance_id":"{id}""#));
    resource(&format!(
        r#"{{"kind":"token","version":"v2","metadata":{{"name":"{name}"}},
            "spec":{{"roles":["Bot"],"bot_name":"{bot}","join_method":"bound_keypair","bound_keypair":{{}}}},
            "status":{{"bound_keypair":{{"recovery_count":1{status}}}}}}}"#
    ))
}

fn instance(id: &str, token: &str, expires: u64) -> Resource {
    let expires = at(expires);
    resource(&format!(
        r#"{{"kind":"bot_instance","version":"v1","metadata":{{"name":"{id}","expires":"{expires}"}},
            "spec":{{"bot_name":"b","token":"{token}"}}}}"#
    ))
}

fn event(secs: u64, token: &str) -> Event {
    Event { token: Some(token.into()), ..Event::new(at(secs), EventKind::JoinRenewal) }
}

fn create(resource: Resource) -> Change {
    Change { id: resource.id(), expected: None, to: Some(resource) }
}

fn put(store: &dyn Store, resource: Resource) -> u64 {
    let key = resource.id();
    let expected = revision(store, &key);
    store.commit(changes([Change { id: key.clone(), expected, to: Some(resource) }])).unwrap();
    revision(store, &key).unwrap()
}

fn delete(store: &dyn Store, key: &ResourceId) {
    let expected = revision(store, key);
    store.commit(changes([Change { id: key.clone(), expected, to: None }])).unwrap();
}

fn changes<const N: usize>(changes: [Change; N]) -> Commit {
    Commit { changes: changes.into(), ..Commit::default() }
}

fn revision(store: &dyn Store, key: &ResourceId) -> Option<u64> {
    store.get(key).unwrap().map(|stored| stored.revision)
}

#[test]
fn sqlite_conforms() {
    let dir = TempDir::new();
    conforms::every_rule(&SqliteStore::create(&dir.database()).unwrap());
}

#[test]
fn sqlite_conforms_with_two_handles_on_one_file() {
    let dir = TempDir::new();
    let first = SqliteStore::create(&dir.database()).unwrap();
    let second = SqliteStore::open(&dir.database()).unwrap();
    conforms::every_rule(&alternating::Alternating::new(first, second));
}

#[test]
fn two_handles_whose_clocks_differ_do_not_disturb_each_other() {
    let dir = TempDir::new();
    let first = SqliteStore::create(&dir.database()).unwrap();
    two_handles::every_rule_of_two(&first, &SqliteStore::open(&dir.database()).unwrap());
}

/// The file has rows in every table: nothing of them is lost.
#[test]
fn a_database_of_schema_7_is_brought_on_with_all_that_is_in_it() {
    let dir = TempDir::new();
    let old = rusqlite::Connection::open(dir.database()).unwrap();
    old.execute_batch(include_str!("store/schema-7.sql")).unwrap();
    drop(old);
    let store = SqliteStore::open(&dir.database()).unwrap();
    let now = at(1_800_000_010);
    let serial = |number: u64| format!("{number:032x}");

    let revisions = [
        ("role/r", 1),
        ("bot/b", 2),
        ("token/t", 3),
        ("token/locked", 4),
        ("bot_instance/10112233-4455-6677-8899-aabbccddeeff", 5),
        ("host/20112233-4455-6677-8899-aabbccddeeff", 6),
        ("lock/own", 7),
        ("lock/outlived", 8),
    ];
    for (id, known) in revisions {
        assert_eq!(revision(&store, &id.parse().unwrap()), Some(known), "{id}");
    }
    let view = store.join_view("t", None).unwrap().unwrap();
    assert_eq!((view.bot.is_some(), view.roles.len(), view.instances.len(), view.locks.len()), (true, 1, 1, 0));
    assert_eq!(store.join_view("locked", None).unwrap().unwrap().locks.len(), 1);
    assert_eq!(store.locks_on(&LockTarget::Token("removed".into())).unwrap().len(), 1, "it outlives its token");
    assert_eq!(store.ended_exemptions(at(1_800_003_600)).unwrap().len(), 1);

    let mut revoked = store.revoked(Form::X509, now, 9).unwrap();
    revoked.sort_unstable();
    assert_eq!(revoked, [2, 3, 4, 5, 6].map(serial));
    assert_eq!(store.revoked(Form::SshHost, now, 9).unwrap(), ["0000000000001003"]);
    assert_eq!((store.outstanding("t", now).unwrap(), store.outstanding("removed", now).unwrap()), (2, 0));
    // The token that was removed is put back, with its life: its certificates count again, but for its lock.
    let Resource::Token(mut back) = token("removed", "b", None) else { unreachable!() };
    back.status.bound_keypair.incarnation = Some("00112233-4455-6677-8899-aabbccddeeff".parse().unwrap());
    put(&store, Resource::Token(back));
    delete(&store, &"lock/outlived".parse().unwrap());
    assert_eq!((store.revoked(Form::X509, now, 9).unwrap().len(), store.outstanding("removed", now).unwrap()), (4, 2));

    let page = store.events(&EventFilter { since: Some(at(1_800_000_001)), ..EventFilter::default() }).unwrap();
    let times: Vec<_> = page.events.iter().map(|event| event.time.secs()).collect();
    assert_eq!(times, [1_800_000_002, 1_800_000_001]);
    assert!(store.next_list_number(Form::X509).unwrap() > 1_800_000_002_000);
}

/// Numbers were those of the clock: one that was set back gave lists that a verifier takes for old.
#[test]
fn numbers_of_lists_go_on_after_a_restart_with_whatever_clock() {
    let dir = TempDir::new();
    let store = SqliteStore::create(&dir.database()).unwrap();
    let now = store.next_list_number(Form::X509).unwrap();
    assert!(now > 1_600_000_000_000, "above those of earlier versions, which were milliseconds: {now}");
    drop(store);
    // As if the clock had been ten years ahead until now.
    let ahead = now + 10 * 365 * 86_400_000;
    let file = rusqlite::Connection::open(dir.database()).unwrap();
    file.execute("UPDATE list_number SET number = ?", [ahead]).unwrap();
    drop(file);
    let store = SqliteStore::open(&dir.database()).unwrap();
    assert_eq!(
        [Form::X509, Form::X509, Form::SshHost].map(|form| store.next_list_number(form).unwrap()),
        [ahead + 1, ahead + 2, ahead + 1]
    );
    // As if it came from a backup of last year.
    drop(store);
    let file = rusqlite::Connection::open(dir.database()).unwrap();
    file.execute("UPDATE list_number SET number = ?", [now - 365 * 86_400_000]).unwrap();
    drop(file);
    assert!(SqliteStore::open(&dir.database()).unwrap().next_list_number(Form::X509).unwrap() > now);
}

#[test]
fn a_database_is_its_owners_alone_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new();
    let store = SqliteStore::create(&dir.database()).unwrap();
    put(&store, bot("b", &[]));
    for file in std::fs::read_dir(dir.0.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
    let again = failure(SqliteStore::create(&dir.database()));
    assert!(again.contains("cannot create") && again.contains("exists"), "{again}");
    drop(store);
    assert!(SqliteStore::open(&dir.database()).unwrap().get(&ResourceId::new(Kind::Bot, "b")).unwrap().is_some());
}

/// Runs as a child process of [`what_was_answered_survives_sigkill`]; by itself it does nothing.
#[test]
fn child_writes_until_killed() {
    let Some(path) = std::env::var_os(CHILD_DATABASE) else { return };
    let store = SqliteStore::open(Path::new(&path)).unwrap();
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let changes = vec![create(bot(&format!("b{number}"), &[]))];
                    let events = vec![event(u64::from(number), &format!("b{number}"))];
                    store.commit(Commit { changes, events, ..Commit::default() }).unwrap();
                    println!("answered {number}");
                }
            });
        }
    });
}

#[test]
fn what_was_answered_survives_sigkill() {
    let dir = TempDir::new();
    drop(SqliteStore::create(&dir.database()).unwrap());
    let mut answered = Vec::new();
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD_DATABASE, dir.database())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers =
            lines.map_while(Result::ok).filter_map(|line| Some(line.split_once("answered ")?.1.parse::<u32>().unwrap()));
        answered.extend(numbers.take(50));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = SqliteStore::open(&dir.database()).unwrap();
        let events = store.events(&EventFilter::default()).unwrap().events;
        for number in &answered {
            let name = format!("b{number}");
            assert!(revision(&store, &ResourceId::new(Kind::Bot, &name)).is_some(), "{name} was answered for");
        }
        assert_eq!(store.list(Kind::Bot).unwrap().len(), events.len(), "a commit is whole");
        for stored in store.list(Kind::Bot).unwrap() {
            delete(&store, &stored.resource.id());
        }
        store.sweep(at(u64::MAX / 2000), Duration::ZERO).unwrap();
        answered.clear();
    }
}

#[test]
fn other_files_are_refused_in_words() {
    let dir = TempDir::new();
    let path = dir.database();
    assert!(failure(SqliteStore::open(&path)).contains("there is no"));

    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    assert!(failure(SqliteStore::open(&path)).contains("damaged"));

    std::fs::write(&path, "").unwrap();
    assert!(failure(SqliteStore::open(&path)).contains("not a database of boundkey's"));

    std::fs::remove_file(&path).unwrap();
    drop(SqliteStore::create(&path).unwrap());
    let file = rusqlite::Connection::open(&path).unwrap();
    file.pragma_update(None, "user_version", 1000).unwrap();
    drop(file);
    let newer = failure(SqliteStore::open(&path));
    assert!(newer.contains("schema 1000") && newer.contains("newer boundkey-auth"), "{newer}");
}

#[test]
fn damage_is_told_and_does_not_panic() {
    let dir = TempDir::new();
    let path = dir.database();
    let store = SqliteStore::create(&path).unwrap();
    for number in 0..200 {
        put(&store, token(&format!("t{number}"), "b", None));
    }
    drop(store);
    // Every page but the first: the schema still reads, the tables do not.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();

    let why = match SqliteStore::open(&path) {
        Err(error) => error.to_string(),
        Ok(store) => {
            assert!(failure(store.get(&ResourceId::new(Kind::Token, "t7"))).contains("damaged"));
            assert!(failure(store.join_view("t7", None)).contains("damaged"));
            failure(store.commit(changes([create(bot("b", &[]))])))
        }
    };
    assert!(why.contains("damaged"), "{why}");
}

#[test]
fn a_document_that_does_not_parse_names_its_resource() {
    let dir = TempDir::new();
    let store = SqliteStore::create(&dir.database()).unwrap();
    put(&store, token("t", "b", None));
    let file = rusqlite::Connection::open(dir.database()).unwrap();
    file.execute("UPDATE resource SET document = '{'", []).unwrap();
    for why in [
        failure(store.get(&ResourceId::new(Kind::Token, "t"))),
        failure(store.join_view("t", None)),
        failure(store.list(Kind::Token)),
    ] {
        assert!(why.contains("token/t is damaged"), "{why}");
    }
}

/// Runs as a child process of [`a_disk_that_takes_no_more_is_told`]; by itself it does nothing.
#[test]
fn child_fills_its_disk() {
    let Some(path) = std::env::var_os(CHILD_DISK) else { return };
    let store = SqliteStore::open(Path::new(&path)).unwrap();
    let write = |number: u32| {
        let events = vec![event(1, "t").with("padding", "x".repeat(10_000))];
        store.commit(Commit { changes: vec![create(bot(&format!("b{number}"), &[]))], events, ..Commit::default() })
    };
    let (failed, why) = (0..).find_map(|number| Some((number, write(number).err()?))).unwrap();
    assert!(why.to_string().contains("the disk"), "{why}");
    assert!(write(failed).is_err(), "and again, instead of hanging");
    assert_eq!(store.list(Kind::Bot).unwrap().len(), failed as usize, "what was answered is there, and no more");
    println!("told at {failed}");
}

/// A limit on file sizes stands in for a full disk: SQLite meets it at the same place.
#[test]
fn a_disk_that_takes_no_more_is_told() {
    let dir = TempDir::new();
    drop(SqliteStore::create(&dir.database()).unwrap());
    let output = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 512; exec "$0" --exact child_fills_its_disk --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD_DISK, dir.database())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("told at"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let store = SqliteStore::open(&dir.database()).unwrap();
    put(&store, bot("after", &[]));
}

/// Followers that always have a snapshot open kept the write-ahead log from being begun anew: it grew to 831 MB.
#[test]
fn the_write_ahead_log_has_a_bound_while_readers_never_rest() {
    /// What `src/auth/store/sqlite/wal.rs` allows, and what one transaction may add.
    const BOUND: u64 = 24 << 20;
    const WRITTEN: u64 = 64 << 20;
    let dir = TempDir::new();
    let store = SqliteStore::create(&dir.database()).unwrap();
    let wal = dir.0.path().join("db.sqlite-wal");
    let padding = |event: Event| (0..64).fold(event, |event, n| event.with(&n.to_string(), "x".repeat(1000)));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let followed = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut filter = EventFilter { limit: Some(50), ..EventFilter::default() };
                    let mut read = 0;
                    loop {
                        let last = is_over.load(Ordering::Relaxed);
                        let page = store.events(&filter).unwrap();
                        read += page.events.len();
                        filter.after = Some(page.cursor);
                        if last && !page.more {
                            return read;
                        }
                    }
                })
            })
            .collect();
        let events = WRITTEN / 64_000;
        let mut highest = 0;
        for number in 0..events {
            store.commit(Commit { events: vec![padding(event(number, "t"))], ..Commit::default() }).unwrap();
            highest = highest.max(std::fs::metadata(&wal).unwrap().len());
        }
        is_over.store(true, Ordering::Relaxed);
        println!("{} MiB written: the log had {} KiB at most", WRITTEN >> 20, highest >> 10);
        assert!(highest < BOUND, "{highest}");
        readers.into_iter().map(|reader| reader.join().unwrap() as u64 == events).collect::<Vec<_>>()
    });
    assert_eq!(followed, [true; 3], "each follower got each event once");
}

/// A backup holds a snapshot for as long as it takes. Commits do not wait for it, and the log is cut as soon as it has ended.
#[test]
fn a_reader_that_does_not_end_holds_up_no_commit() {
    let dir = TempDir::new();
    let store = SqliteStore::create(&dir.database()).unwrap();
    let wal = dir.0.path().join("db.sqlite-wal");
    put(&store, bot("before", &[]));
    let reader = rusqlite::Connection::open(dir.database()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM resource").unwrap();
    let write = |commits: usize| {
        let padded = (0..60).fold(event(1, "t"), |event, n| event.with(&n.to_string(), "x".repeat(1000)));
        for _ in 0..commits {
            store.commit(Commit { events: vec![padded.clone(); 64], ..Commit::default() }).unwrap();
        }
        std::fs::metadata(&wal).unwrap().len()
    };
    assert!(write(6) > 20 << 20, "it grows meanwhile");
    reader.execute_batch("COMMIT").unwrap();
    assert!(write(3) <= 16 << 20, "begun anew, and cut");
}

fn failure<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Failed(why)) => why,
        Err(other) => panic!("not a failure: {other}"),
        Ok(_) => panic!("did not fail"),
    }
}

/// A directory of its own, removed at the end.
struct TempDir(tempfile::TempDir);

impl TempDir {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("boundkey-store-").tempdir().unwrap())
    }

    fn database(&self) -> PathBuf {
        self.0.path().join("db.sqlite")
    }
}
