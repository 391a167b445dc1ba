//! The store's contract, checked through the trait, and what SQLite has to add to it: durability, damage, versions.
#![cfg(feature = "auth")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use boundkey::auth::audit::{Event, EventFilter, EventKind};
use boundkey::auth::resource::{Bot, BotSpec, Key, Kind, Lock, LockSpec, LockTarget, Metadata, Resource};
use boundkey::auth::store::{Change, Commit, Form, IssuedRecord, JoinView, KEEP_ISSUED, SqliteStore, Store, StoreError, Stored};
use boundkey::join::Id;
use boundkey::join::server::record::Exemption;
use boundkey::time::Timestamp;

const HOUR: Duration = Duration::from_secs(3600);
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

fn role(name: &str) -> Resource {
    resource(&format!(r#"{{"kind":"role","version":"v1","metadata":{{"name":"{name}"}},"spec":{{}}}}"#))
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

fn lock(name: &str, target: LockTarget) -> Resource {
    let spec = LockSpec { target, message: "stop".into(), expires: None, automatic: false };
    Resource::Lock(Lock { metadata: Metadata::named(name), spec })
}

fn event(secs: u64, token: &str) -> Event {
    Event { token: Some(token.into()), ..Event::new(at(secs), EventKind::JoinRenewal) }
}

fn create(resource: Resource) -> Change {
    Change { key: resource.key(), expected: None, to: Some(resource) }
}

fn put(store: &dyn Store, resource: Resource) -> u64 {
    let key = resource.key();
    let expected = revision(store, &key);
    store.commit(changes([Change { key: key.clone(), expected, to: Some(resource) }])).unwrap();
    revision(store, &key).unwrap()
}

fn delete(store: &dyn Store, key: &Key) {
    let expected = revision(store, key);
    store.commit(changes([Change { key: key.clone(), expected, to: None }])).unwrap();
}

fn changes<const N: usize>(changes: [Change; N]) -> Commit {
    Commit { changes: changes.into(), ..Commit::default() }
}

fn revision(store: &dyn Store, key: &Key) -> Option<u64> {
    store.get(key).unwrap().map(|stored| stored.revision)
}

fn policy(store: &dyn Store, token: &str) -> u64 {
    store.join_view(token, None).unwrap().unwrap().policy
}

/// What any implementation of the trait has to do. Wants an empty store.
fn conformance(store: &dyn Store) {
    reads_back_what_was_written(store);
    a_conflict_leaves_nothing(store);
    revisions_are_never_used_twice(store);
    policy_rises_with_bots_roles_and_locks(store);
    a_join_view_has_all_that_a_decision_needs(store);
    what_is_locked_or_gone_is_revoked(store);
    ended_exemptions_are_found(store);
    events_are_filtered(store);
    concurrent_commits_do_not_mix(store);
    a_sweep_takes_what_has_ended(store);
}

fn reads_back_what_was_written(store: &dyn Store) {
    for resource in [bot("one", &["r"]), token("one", "one", None), instance("one", "one", 9), role("one")] {
        let revision = put(store, resource.clone());
        assert_eq!(store.get(&resource.key()).unwrap(), Some(Stored { resource, revision }));
    }
    put(store, bot("another", &[]));
    let names: Vec<_> = store.list(Kind::Bot).unwrap().into_iter().map(|s| s.resource.metadata().name.clone()).collect();
    assert_eq!(names, ["another", "one"]);
    assert_eq!(store.get(&Key::new(Kind::Bot, "none")).unwrap(), None);
    assert_eq!(store.list(Kind::Lock).unwrap(), []);
}

fn a_conflict_leaves_nothing(store: &dyn Store) {
    let first = put(store, bot("cas", &[]));
    let second = put(store, bot("cas", &["r"]));
    assert!(second > first);
    let fresh = create(bot("fresh", &[]));
    let key = Key::new(Kind::Bot, "cas");
    let of_missing = Change { key: Key::new(Kind::Bot, "none"), expected: Some(first), to: None };
    for stale in [Change { key, expected: Some(first), to: None }, create(bot("cas", &[])), of_missing] {
        let name = stale.key.to_string();
        let commit = Commit {
            changes: vec![fresh.clone(), stale],
            events: vec![event(1, "conflict")],
            issued: vec![issued("conflict", 1)],
            policy: None,
        };
        assert!(matches!(store.commit(commit), Err(StoreError::Conflict(what)) if what == name));
    }
    assert_eq!(store.get(&fresh.key).unwrap(), None);
    let told = store.events(&EventFilter { token: Some("conflict".into()), ..EventFilter::default() }).unwrap();
    assert_eq!(told, []);
    // Nothing of `issued` either: the serial is free.
    store.commit(Commit { issued: vec![issued("conflict", 1)], ..Commit::default() }).unwrap();
}

fn issued(serial: &str, not_after: u64) -> IssuedRecord {
    let bot = Some("b".into());
    IssuedRecord { serial: serial.into(), token: "t".into(), bot, instance: "i".into(), not_after: at(not_after) }
}

fn revisions_are_never_used_twice(store: &dyn Store) {
    let key = Key::new(Kind::Bot, "again");
    let first = put(store, bot("again", &[]));
    delete(store, &key);
    let second = put(store, bot("again", &[]));
    assert!(second > first);
    let stale = changes([Change { key, expected: Some(first), to: None }]);
    assert!(matches!(store.commit(stale), Err(StoreError::Conflict(_))));
}

fn policy_rises_with_bots_roles_and_locks(store: &dyn Store) {
    put(store, token("policy", "policy", None));
    let mut last = policy(store, "policy");
    for resource in [bot("policy", &[]), role("policy"), lock("policy", LockTarget::Bot("x".into()))] {
        for change in [Some(resource.clone()), None] {
            let expected = revision(store, &resource.key());
            store.commit(changes([Change { key: resource.key(), expected, to: change }])).unwrap();
            let now = policy(store, "policy");
            assert!(now > last, "after a change of {}", resource.key());
            last = now;
        }
    }
    put(store, token("policy", "other", None));
    put(store, instance("policy", "policy", 9));
    assert!(store.commit(changes([create(bot("one", &[]))])).is_err());
    assert_eq!(policy(store, "policy"), last, "tokens, instances and conflicts are no policy");

    let join = Commit { policy: Some(last), ..Commit::default() };
    store.commit(join.clone()).unwrap();
    put(store, role("policy"));
    assert!(matches!(store.commit(join), Err(StoreError::Conflict(_))));
}

fn a_join_view_has_all_that_a_decision_needs(store: &dyn Store) {
    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const OTHER: &str = "ffeeddcc-bbaa-9988-7766-554433221100";
    assert!(store.join_view("none", None).unwrap().is_none());
    put(store, token("view", "view", Some(ID)));
    let view = store.join_view("view", None).unwrap().unwrap();
    assert_eq!((view.bot, view.roles.len(), view.locks.len(), view.instances), (None, 0, 0, vec![]));

    put(store, bot("view", &["view", "missing"]));
    put(store, role("view"));
    put(store, instance(ID, "view", 9));
    for (name, target) in [("l1", LockTarget::Token("view".into())), ("l2", LockTarget::Bot("view".into()))] {
        put(store, lock(name, target));
    }
    put(store, lock("l3", LockTarget::BotInstance(ID.into())));
    put(store, lock("not-ours", LockTarget::Token("other".into())));
    put(store, instance(OTHER, "view", 9));
    put(store, lock("l4", LockTarget::BotInstance(OTHER.into())));
    let view = store.join_view("view", None).unwrap().unwrap();
    assert_eq!(view.bot.as_ref().map(|bot| bot.metadata.name.as_str()), Some("view"));
    assert_eq!(view.roles.len(), 1);
    let mut locks: Vec<_> = view.locks.iter().map(|lock| lock.metadata.name.clone()).collect();
    locks.sort();
    assert_eq!(locks, ["l1", "l2", "l3"]);
    let names = |view: &JoinView| view.instances.iter().map(|stored| stored.resource.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&view), [ID]);
    assert_eq!(Some(view.token.revision), revision(store, &Key::new(Kind::Token, "view")));

    let named = |id: &str| store.join_view("view", Some(id.parse().unwrap())).unwrap().unwrap();
    assert_eq!((names(&named(OTHER)), named(OTHER).locks.len()), (vec![ID.to_owned(), OTHER.to_owned()], 4));
    assert_eq!((names(&named(ID)), named(ID).locks.len()), (vec![ID.to_owned()], 3), "not twice");
    let unknown = named("ffffffff-ffff-ffff-ffff-ffffffffffff");
    assert_eq!((names(&unknown), unknown.locks.len()), (vec![ID.to_owned()], 3));
}

fn what_is_locked_or_gone_is_revoked(store: &dyn Store) {
    const NOW: u64 = 1_000_000;
    const SSH: &str = "00112233445566ff";
    let certificate = |serial: &str, token: &str, bot: &str, instance: &str, not_after: u64| IssuedRecord {
        serial: serial.into(),
        token: token.into(),
        bot: Some(bot.into()),
        instance: instance.into(),
        not_after: at(not_after),
    };
    let issued = vec![
        certificate("r1", "rt", "rb", "ri", NOW + 10),
        certificate("r2", "rt", "rb", "rj", NOW + 20),
        certificate("r3", "ru", "rb", "rk", NOW),
        certificate("r4", "ru", "rb", "rk", NOW - KEEP_ISSUED.as_secs()),
        certificate("r5", "ru", "rb", "rk", NOW - KEEP_ISSUED.as_secs() - 1),
        certificate("r6", "rv", "rc", "rl", NOW + 30),
        certificate(SSH, "rt", "rb", "ri", NOW + 10),
    ];
    for resource in [token("rt", "rb", None), token("ru", "rb", None), token("rv", "rc", None), bot("rb", &[]), bot("rc", &[])] {
        put(store, resource);
    }
    store.commit(Commit { issued, ..Commit::default() }).unwrap();
    let revoked = |limit| store.revoked(Form::X509, at(NOW), limit).unwrap();
    let of_ssh = || store.revoked(Form::SshHost, at(NOW), 9).unwrap().serials;
    assert_eq!(revoked(9).serials, [""; 0]);
    assert_eq!(revoked(9).policy, store.policy().unwrap());

    let locked = |target: LockTarget| {
        put(store, lock("revokes", target));
        assert_eq!(revoked(9).policy, store.policy().unwrap());
        let serials = revoked(9).serials;
        delete(store, &Key::new(Kind::Lock, "revokes"));
        serials
    };
    assert_eq!(locked(LockTarget::Token("rt".into())), ["r2", "r1"]);
    assert_eq!(locked(LockTarget::Token("ru".into())), ["r3", "r4"], "an hour longer than they hold");
    assert_eq!(locked(LockTarget::Bot("rb".into())), ["r2", "r1", "r3", "r4"]);
    assert_eq!(locked(LockTarget::BotInstance("ri".into())), ["r1"]);
    assert_eq!(locked(LockTarget::Host("rk".into())), ["r3", "r4"]);
    assert_eq!(of_ssh(), [""; 0]);
    assert_eq!(locked(LockTarget::Token("r".into())), [""; 0]);

    let Resource::Lock(mut ends) = lock("ends", LockTarget::Bot("rb".into())) else { unreachable!() };
    for (metadata, spec, holds) in
        [(None, Some(1), true), (Some(1), None, true), (Some(1), Some(0), false), (Some(0), None, false)]
    {
        ends.metadata.expires = metadata.map(|more| at(NOW + more));
        ends.spec.expires = spec.map(|more| at(NOW + more));
        put(store, Resource::Lock(ends.clone()));
        assert_eq!(revoked(9).serials.len(), if holds { 4 } else { 0 }, "{metadata:?} {spec:?}");
    }
    delete(store, &Key::new(Kind::Lock, "ends"));

    let Resource::Token(mut life) = token("rt", "rb", None) else { unreachable!() };
    life.status.bound_keypair.incarnation = Some(Id([7; 16]));
    put(store, Resource::Token(life.clone()));
    delete(store, &Key::new(Kind::Token, "rt"));
    assert_eq!(revoked(9).serials, ["r2", "r1"]);
    assert_eq!(of_ssh(), [SSH]);
    // Another one of that name is another; the same one put back is the same.
    for (incarnation, gone) in [(None, 2), (Some(Id([8; 16])), 2), (Some(Id([7; 16])), 0), (None, 0)] {
        life.status.bound_keypair.incarnation = incarnation;
        put(store, Resource::Token(life.clone()));
        assert_eq!((revoked(9).serials.len(), of_ssh().len()), (gone, gone / 2), "{incarnation:?}");
        if gone > 0 {
            delete(store, &Key::new(Kind::Token, "rt"));
        }
    }
    delete(store, &Key::new(Kind::Token, "rt"));
    delete(store, &Key::new(Kind::Bot, "rc"));
    assert_eq!(revoked(9).serials, ["r6", "r2", "r1"]);
    assert_eq!(revoked(2).serials, ["r6", "r2"]);
    delete(store, &Key::new(Kind::Bot, "rb"));
    assert_eq!(revoked(9).serials, ["r6", "r2", "r1", "r3", "r4"]);
}

fn ended_exemptions_are_found(store: &dyn Store) {
    for (name, ends) in [("x1", 10), ("x2", 20), ("x3", 30)] {
        let Resource::Token(mut token) = token(name, "b", None) else { unreachable!() };
        let exemption = Exemption { recoveries: 1, waive_join_state: true, expires: at(ends), reason: None };
        token.status.bound_keypair.exemption = Some(exemption);
        put(store, Resource::Token(token));
    }
    let ended = |now| store.ended_exemptions(at(now)).unwrap().into_iter().map(|t| t.resource.metadata.name).collect::<Vec<_>>();
    assert_eq!(ended(9), [""; 0]);
    assert_eq!(ended(20), ["x1", "x2"]);
    put(store, token("x1", "b", None));
    assert_eq!(ended(20), ["x2"]);
    put(store, token("x2", "b", None));
}

fn events_are_filtered(store: &dyn Store) {
    let told = [event(10, "e"), event(20, "other"), event(30, "e"), event(40, "e")];
    for event in &told {
        store.commit(Commit { events: vec![event.clone()], ..Commit::default() }).unwrap();
    }
    let of_e = EventFilter { token: Some("e".into()), ..EventFilter::default() };
    let times = |filter: EventFilter| {
        let events = store.events(&filter).unwrap();
        assert!(events.is_sorted_by(|a, b| a.0 < b.0));
        events.into_iter().map(|(_, event)| event.time.secs()).collect::<Vec<_>>()
    };
    assert_eq!(times(of_e.clone()), [10, 30, 40]);
    assert_eq!(times(EventFilter { since: Some(at(30)), ..of_e.clone() }), [30, 40]);
    assert_eq!(times(EventFilter { limit: Some(2), ..of_e.clone() }), [10, 30], "the oldest, to read on after them");
    assert_eq!(times(EventFilter { since: Some(at(31)), ..EventFilter::default() }), [40]);
    assert_eq!(times(EventFilter { since: Some(at(41)), ..EventFilter::default() }), [0; 0]);
    let (first, _) = store.events(&of_e).unwrap()[0].clone();
    assert_eq!(times(EventFilter { after: first, ..EventFilter::default() }), [20, 30, 40]);
    assert_eq!(store.events(&of_e).unwrap()[0].1, told[0]);
}

fn concurrent_commits_do_not_mix(store: &dyn Store) {
    const WRITERS: usize = 24;
    const ROUNDS: usize = 8;
    let stale = put(store, bot("hot", &[]));
    put(store, bot("hot", &["r"]));
    let start = Barrier::new(WRITERS);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..ROUNDS {
                    let mine = create(bot(&format!("mine-{writer}-{round}"), &[]));
                    let mut commit = Commit { changes: vec![mine], ..Commit::default() };
                    commit.events.push(event(1, "concurrent"));
                    // One writer in three is late: it, and nobody else, has to lose.
                    if writer % 3 == 0 {
                        commit.changes.push(Change { key: Key::new(Kind::Bot, "hot"), expected: Some(stale), to: None });
                    }
                    assert_eq!(store.commit(commit).is_ok(), writer % 3 != 0);
                }
            });
        }
    });
    let won = WRITERS / 3 * 2 * ROUNDS;
    let bots = store.list(Kind::Bot).unwrap();
    let mine = bots.iter().filter(|stored| stored.resource.metadata().name.starts_with("mine-"));
    assert_eq!(mine.count(), won);
    let mut revisions: Vec<_> = bots.iter().map(|stored| stored.revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), bots.len());
    let told = store.events(&EventFilter { token: Some("concurrent".into()), ..EventFilter::default() }).unwrap();
    assert_eq!(told.len(), won);
}

fn a_sweep_takes_what_has_ended(store: &dyn Store) {
    let now = at(1_000_000);
    put(store, instance("ended", "t", now.secs()));
    put(store, instance("lives", "t", now.secs() + 1));
    let kept = now.minus(KEEP_ISSUED).secs();
    let records = vec![issued("ended", kept - 1), issued("lives", kept)];
    let events = vec![event(now.secs() - 3601, "swept"), event(now.secs() - 3600, "swept")];
    store.commit(Commit { issued: records, events, ..Commit::default() }).unwrap();
    let swept = EventFilter { token: Some("swept".into()), ..EventFilter::default() };
    let last = store.events(&swept).unwrap()[1].0;

    store.sweep(now, HOUR).unwrap();
    assert_eq!(revision(store, &Key::new(Kind::BotInstance, "ended")), None);
    assert!(revision(store, &Key::new(Kind::BotInstance, "lives")).is_some());
    assert_eq!(store.events(&swept).unwrap().len(), 1);
    assert!(store.commit(Commit { issued: vec![issued("lives", 1)], ..Commit::default() }).is_err());
    store.commit(Commit { issued: vec![issued("ended", 1)], ..Commit::default() }).unwrap();

    // A number swept away does not come back: a reader that follows would miss the event.
    store.sweep(now.plus(HOUR * 2), HOUR).unwrap();
    store.commit(Commit { events: vec![event(now.secs(), "swept")], ..Commit::default() }).unwrap();
    assert!(store.events(&swept).unwrap()[0].0 > last);

    for (until, last) in [(now, Some(now)), (now.plus(HOUR), Some(now)), (now.minus(HOUR), None)] {
        assert_eq!(store.last_event_until(until).unwrap(), last, "{until}");
    }
}

#[test]
fn sqlite_conforms() {
    let dir = TempDir::new();
    conformance(&SqliteStore::create(&dir.database()).unwrap());
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
    assert!(SqliteStore::open(&dir.database()).unwrap().get(&Key::new(Kind::Bot, "b")).unwrap().is_some());
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
        let events = store.events(&EventFilter::default()).unwrap();
        for number in &answered {
            let name = format!("b{number}");
            assert!(revision(&store, &Key::new(Kind::Bot, &name)).is_some(), "{name} was answered for");
        }
        assert_eq!(store.list(Kind::Bot).unwrap().len(), events.len(), "a commit is whole");
        for stored in store.list(Kind::Bot).unwrap() {
            delete(&store, &stored.resource.key());
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
            assert!(failure(store.get(&Key::new(Kind::Token, "t7"))).contains("damaged"));
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
    for why in
        [failure(store.get(&Key::new(Kind::Token, "t"))), failure(store.join_view("t", None)), failure(store.list(Kind::Token))]
    {
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
