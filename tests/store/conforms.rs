//! What every store does, whatever it is made of.

use std::sync::Barrier;
use std::time::Duration;

use boundkey::api::event::{Cursor, Event, EventFilter, MAX_TEXT};
use boundkey::api::resource::{Kind, Lock, LockSpec, LockTarget, Metadata, Resource, ResourceId};
use boundkey::auth::store::{Change, Commit, Form, IssuedRecord, JoinView, KEEP_ISSUED, ReadSet, Store, StoreError, Stored};
use boundkey::join::Id;
use boundkey::join::server::record::Exemption;

use super::{at, bot, changes, create, delete, event, instance, put, resource, revision, token};

const HOUR: Duration = Duration::from_secs(3600);

/// What any implementation of the trait has to do. Wants an empty store.
pub(super) fn every_rule(store: &dyn Store) {
    reads_back_what_was_written(store);
    a_conflict_leaves_nothing(store);
    revisions_are_never_used_twice(store);
    a_commit_holds_if_and_only_if_what_it_read_stands(store);
    numbers_of_lists_only_rise(store);
    what_may_change_a_revocation_list_is_told(store);
    a_join_view_has_all_that_a_decision_needs(store);
    what_is_locked_or_gone_is_revoked(store);
    no_token_crowds_another_off_the_list(store);
    certificates_of_a_token_are_counted_and_bounded(store);
    ended_exemptions_are_found(store);
    the_share_of_a_trust_bundle_is_that_of_bound_tokens(store);
    events_are_filtered(store);
    events_are_found_by_time_though_times_go_back(store);
    texts_of_events_are_kept_to_their_bound(store);
    concurrent_commits_do_not_mix(store);
    a_sweep_takes_what_has_ended(store);
    names_are_found_whatever_their_case(store);
}

fn names_are_found_whatever_their_case(store: &dyn Store) {
    let key = |kind, name: &str| ResourceId::new(kind, name);
    put(store, bot("Case-1", &[]));
    assert_eq!(store.alike(&key(Kind::Bot, "case-1")).unwrap(), Some(key(Kind::Bot, "Case-1")));
    for other in [key(Kind::Bot, "Case-1"), key(Kind::Bot, "case_1"), key(Kind::Bot, "case-10"), key(Kind::Token, "case-1")] {
        assert_eq!(store.alike(&other).unwrap(), None, "{other}");
    }
    // Another is made meanwhile: of two that differ in case alone the second one is not written.
    let second = bot("CASE-1", &[]);
    let change = Change { id: second.id(), expected: None, to: Some(second) };
    let written = store.commit(Commit { changes: vec![change], ..Commit::default() });
    assert!(matches!(written, Err(StoreError::Conflict(what)) if what == "bot/Case-1"));
}

fn reads_back_what_was_written(store: &dyn Store) {
    for resource in [bot("one", &["r"]), token("one", "one", None), instance("one", "one", 9), role("one")] {
        let revision = put(store, resource.clone());
        assert_eq!(store.get(&resource.id()).unwrap(), Some(Stored { resource, revision }));
    }
    put(store, bot("another", &[]));
    let names: Vec<_> = store.list(Kind::Bot).unwrap().into_iter().map(|s| s.resource.metadata().name.clone()).collect();
    assert_eq!(names, ["another", "one"]);
    assert_eq!(store.get(&ResourceId::new(Kind::Bot, "none")).unwrap(), None);
    assert_eq!(store.list(Kind::Lock).unwrap(), []);
}

fn a_conflict_leaves_nothing(store: &dyn Store) {
    let first = put(store, bot("cas", &[]));
    let second = put(store, bot("cas", &["r"]));
    assert!(second > first);
    let fresh = create(bot("fresh", &[]));
    let key = ResourceId::new(Kind::Bot, "cas");
    let of_missing = Change { id: ResourceId::new(Kind::Bot, "none"), expected: Some(first), to: None };
    for stale in [Change { id: key, expected: Some(first), to: None }, create(bot("cas", &[])), of_missing] {
        let name = stale.id.to_string();
        let commit = Commit {
            changes: vec![fresh.clone(), stale],
            events: vec![event(1, "conflict")],
            issued: vec![issued("conflict", 1)],
            ..Commit::default()
        };
        assert!(matches!(store.commit(commit), Err(StoreError::Conflict(what)) if what == name));
    }
    assert_eq!(store.get(&fresh.id).unwrap(), None);
    assert_eq!(events_of(store, "conflict"), []);
    // Nothing of `issued` either: the serial is free.
    store.commit(Commit { issued: vec![issued("conflict", 1)], ..Commit::default() }).unwrap();
}

fn revisions_are_never_used_twice(store: &dyn Store) {
    let key = ResourceId::new(Kind::Bot, "again");
    let first = put(store, bot("again", &[]));
    delete(store, &key);
    let second = put(store, bot("again", &[]));
    assert_ne!(second, first);
    let stale = changes([Change { id: key, expected: Some(first), to: None }]);
    assert!(matches!(store.commit(stale), Err(StoreError::Conflict(_))));
}

/// A lock on any token sent away all joins that were under way.
fn a_commit_holds_if_and_only_if_what_it_read_stands(store: &dyn Store) {
    const ID: &str = "10112233-4455-6677-8899-aabbccddeeff";
    for resource in
        [bot("reads", &["reads", "to-come"]), role("reads"), token("reads", "reads", Some(ID)), instance(ID, "reads", 9)]
    {
        put(store, resource);
    }
    put(store, lock("reads-own", LockTarget::Token("reads".into())));
    let read = || store.join_view("reads", Some(ID.parse().unwrap())).unwrap().unwrap().reads;
    let commit = |reads: &ReadSet| {
        let events = vec![event(1, "reads")];
        store.commit(Commit { reads: reads.clone(), events, ..Commit::default() })
    };

    let reads = read();
    put(store, token("reads-other", "reads-other", None));
    put(store, bot("reads-other", &["reads-other"]));
    put(store, role("reads-other"));
    put(store, lock("reads-other-token", LockTarget::Token("reads-other".into())));
    put(store, lock("reads-other-bot", LockTarget::Bot("reads-other".into())));
    put(store, lock("reads-other-host", LockTarget::Host(ID.into())));
    delete(store, &ResourceId::new(Kind::Lock, "reads-other-token"));
    put(store, instance("reads-other", "reads-other", 9));
    commit(&reads).expect("what is not of this token is left out of account");

    let Resource::Lock(mut ends) = lock("reads-own", LockTarget::Token("reads".into())) else { unreachable!() };
    ends.spec.expires = Some(at(5));
    let changes = [
        (token("reads", "reads", Some(ID)), "token/reads"),
        (bot("reads", &["reads", "to-come"]), "bot/reads"),
        (role("reads"), "role/reads"),
        (role("to-come"), "role/to-come"),
        (Resource::Lock(ends), "a lock on token/reads"),
        (lock("reads-token", LockTarget::Token("reads".into())), "a lock on token/reads"),
        (lock("reads-bot", LockTarget::Bot("reads".into())), "a lock on bot/reads"),
        (lock("reads-instance", LockTarget::BotInstance(ID.into())), &format!("a lock on bot_instance/{ID}")),
    ];
    for (resource, names) in &changes {
        let reads = read();
        put(store, resource.clone());
        assert!(matches!(commit(&reads), Err(StoreError::Conflict(what)) if what == *names), "{names}");
        commit(&read()).unwrap();
    }
    for (resource, names) in changes.iter().rev() {
        let reads = read();
        delete(store, &resource.id());
        assert!(matches!(commit(&reads), Err(StoreError::Conflict(what)) if what == *names), "{names}");
        if resource.id().kind == Kind::Token {
            break;
        }
        commit(&read()).unwrap();
    }
    for name in ["reads-other-bot", "reads-other-host"] {
        delete(store, &ResourceId::new(Kind::Lock, name));
    }
}

fn numbers_of_lists_only_rise(store: &dyn Store) {
    let mut given: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..10).map(|_| store.next_list_number(Form::X509).unwrap()).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                let numbers = thread.join().unwrap();
                assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
                numbers
            })
            .collect()
    });
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 40, "no number was given twice");
    assert!(store.next_list_number(Form::X509).unwrap() > *given.last().unwrap());
    store.next_list_number(Form::SshHost).unwrap();
}

fn what_may_change_a_revocation_list_is_told(store: &dyn Store) {
    let mut last = store.revocation_changes();
    let mut has_changed = || std::mem::replace(&mut last, store.revocation_changes()) != store.revocation_changes();
    for resource in [bot("told", &[]), token("told", "told", None), lock("told", LockTarget::Bot("told".into()))] {
        let id = resource.id();
        put(store, resource.clone());
        assert!(has_changed(), "{id} is new");
        put(store, resource);
        assert_eq!(has_changed(), id.kind == Kind::Lock, "{id} is written again");
        delete(store, &id);
        assert!(has_changed(), "{id} is gone");
    }
    put(store, role("told"));
    put(store, instance("told", "told", 9));
    store.commit(Commit { issued: vec![issued("told", 1)], events: vec![event(1, "told")], ..Commit::default() }).unwrap();
    assert!(!has_changed(), "joins and roles change no list");
    store.commit(Commit { supersedes: Some("told".into()), ..Commit::default() }).unwrap();
    assert!(has_changed());
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
    let mut locks: Vec<_> = view.locks.iter().map(|lock| lock.resource.metadata.name.clone()).collect();
    locks.sort();
    assert_eq!(locks, ["l1", "l2", "l3"]);
    let names = |view: &JoinView| view.instances.iter().map(|stored| stored.resource.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&view), [ID]);
    assert_eq!(Some(view.token.revision), revision(store, &ResourceId::new(Kind::Token, "view")));

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
        form: Form::of_serial(serial),
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
    let of_ssh = || store.revoked(Form::SshHost, at(NOW), 9).unwrap();
    assert_eq!(revoked(9), [""; 0]);

    let locked = |target: LockTarget| {
        put(store, lock("revokes", target));
        let serials = revoked(9);
        delete(store, &ResourceId::new(Kind::Lock, "revokes"));
        serials
    };
    assert_eq!(locked(LockTarget::Token("rt".into())), ["r2", "r1"]);
    assert_eq!(locked(LockTarget::Token("ru".into())), ["r3", "r4"], "a while longer than they hold");
    assert_eq!(locked(LockTarget::Bot("rb".into())), ["r2", "r3", "r1", "r4"], "the newest of each token, then the next");
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
        assert_eq!(revoked(9).len(), if holds { 4 } else { 0 }, "{metadata:?} {spec:?}");
    }
    delete(store, &ResourceId::new(Kind::Lock, "ends"));

    let Resource::Token(mut life) = token("rt", "rb", None) else { unreachable!() };
    life.status.bound_keypair.incarnation = Some(Id([7; 16]));
    put(store, Resource::Token(life.clone()));
    delete(store, &ResourceId::new(Kind::Token, "rt"));
    assert_eq!(revoked(9), ["r2", "r1"]);
    assert_eq!(of_ssh(), [SSH]);
    // Another one of that name is another; the same one put back is the same.
    for (incarnation, gone) in [(None, 2), (Some(Id([8; 16])), 2), (Some(Id([7; 16])), 0), (None, 0)] {
        life.status.bound_keypair.incarnation = incarnation;
        put(store, Resource::Token(life.clone()));
        assert_eq!((revoked(9).len(), of_ssh().len()), (gone, gone / 2), "{incarnation:?}");
        if gone > 0 {
            delete(store, &ResourceId::new(Kind::Token, "rt"));
        }
    }
    delete(store, &ResourceId::new(Kind::Token, "rt"));
    delete(store, &ResourceId::new(Kind::Bot, "rc"));
    assert_eq!(revoked(9), ["r6", "r2", "r1"]);
    assert_eq!(revoked(2), ["r6", "r2"]);
    delete(store, &ResourceId::new(Kind::Bot, "rb"));
    assert_eq!(revoked(9), ["r6", "r2", "r3", "r1", "r4"]);
    put(store, bot("rc", &[]));
    assert_eq!(revoked(9), ["r2", "r3", "r1", "r4"], "a bot of that name is there again");
}

/// One device had itself issued 50,000 certificates and locked itself: the only one of another device, which an operator had locked, was
/// no longer on the list.
fn no_token_crowds_another_off_the_list(store: &dyn Store) {
    const NOW: u64 = 2_000_000;
    let certificate = |token: &str, number: u32, not_after: u64| IssuedRecord {
        form: Form::X509,
        serial: format!("{token}-{number}"),
        token: token.into(),
        bot: None,
        instance: format!("i-{token}"),
        not_after: at(not_after),
    };
    for name in ["crowd-1", "crowd-2", "victim"] {
        put(store, token(name, "b", None));
        put(store, lock(name, LockTarget::Token(name.into())));
    }
    let mut issued: Vec<_> = (0..500).map(|number| certificate("crowd-1", number, NOW + 100_000)).collect();
    issued.extend((0..300).map(|number| certificate("crowd-2", number, NOW + 100_000)));
    issued.extend((0..3).map(|number| certificate("victim", number, NOW + 10)));
    store.commit(Commit { issued, ..Commit::default() }).unwrap();
    let listed = |limit: usize| {
        let serials = store.revoked(Form::X509, at(NOW), limit).unwrap();
        ["crowd-1", "crowd-2", "victim"].map(|token| serials.iter().filter(|serial| serial.starts_with(token)).count())
    };
    assert_eq!(listed(usize::from(u16::MAX)), [500, 300, 3]);
    assert_eq!(listed(700), [397, 300, 3]);
    assert_eq!(listed(90), [44, 43, 3]);
    assert_eq!(listed(6), [2, 2, 2]);
    for name in ["crowd-1", "crowd-2", "victim"] {
        delete(store, &ResourceId::new(Kind::Lock, name));
    }
}

fn certificates_of_a_token_are_counted_and_bounded(store: &dyn Store) {
    const NOW: u64 = 3_000_000;
    let certificate = |serial: &str, not_after: u64| IssuedRecord {
        form: Form::of_serial(serial),
        serial: serial.into(),
        token: "bounded".into(),
        bot: None,
        instance: "i".into(),
        not_after: at(not_after),
    };
    put(store, token("bounded", "b", None));
    let issued = vec![certificate("a", NOW - 1), certificate("b", NOW), certificate("c", NOW + 1), certificate("d", NOW + 2)];
    store.commit(Commit { issued, ..Commit::default() }).unwrap();
    assert_eq!(store.outstanding("bounded", at(NOW)).unwrap(), 3);
    assert_eq!(store.outstanding("another", at(NOW)).unwrap(), 0);
    let issued = vec![certificate("e", NOW + 9)];
    store.commit(Commit { issued, keep_issued: Some(3), ..Commit::default() }).unwrap();
    put(store, lock("bounded", LockTarget::Token("bounded".into())));
    assert_eq!(store.revoked(Form::X509, at(NOW), 9).unwrap(), ["e", "d", "c"], "those that end last are kept");
    delete(store, &ResourceId::new(Kind::Lock, "bounded"));
}

fn the_share_of_a_trust_bundle_is_that_of_bound_tokens(store: &dyn Store) {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    let before = store.bundle_share(7, at(50)).unwrap();
    // Not bound; bound, and told of nothing, of bundle 6, of bundle 7, of the greatest there may be; and one that has expired.
    let tokens: [(&str, bool, Option<u64>, Option<u64>); 6] = [
        ("s1", false, Some(9), None),
        ("s2", true, None, None),
        ("s3", true, Some(6), Some(100)),
        ("s4", true, Some(7), None),
        ("s5", true, Some(i64::MAX.unsigned_abs()), Some(51)),
        ("s6", true, Some(9), Some(50)),
    ];
    for (name, is_bound, bundle, expires) in tokens {
        let Resource::Token(mut token) = token(name, "b", None) else { unreachable!() };
        token.status.bound_keypair.bound_public_key = is_bound.then(|| key.parse().unwrap());
        token.status.trust_bundle = bundle;
        token.metadata.expires = expires.map(at);
        put(store, Resource::Token(token));
    }
    let share = |sequence| {
        let share = store.bundle_share(sequence, at(50)).unwrap();
        (share.tokens - before.tokens, share.have)
    };
    assert_eq!([share(6), share(7), share(8), share(u64::MAX)], [(4, 3), (4, 2), (4, 1), (4, 1)]);
    for (name, ..) in tokens {
        delete(store, &ResourceId::new(Kind::Token, name));
    }
}

fn ended_exemptions_are_found(store: &dyn Store) {
    for (name, ends) in [("x1", 10), ("x2", 20), ("x3", 30)] {
        let Resource::Token(mut token) = token(name, "b", None) else { unreachable!() };
        let exemption = Exemption { recoveries: 1, waive_join_state: true, expires: at(ends), key: None, reason: None };
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
    let page = |filter: EventFilter| store.events(&filter).unwrap();
    let times = |filter: EventFilter| page(filter).events.iter().map(|event| event.time.secs()).collect::<Vec<_>>();
    assert_eq!(times(of_e.clone()), [10, 30, 40]);
    assert_eq!(times(EventFilter { since: Some(at(30)), ..of_e.clone() }), [30, 40]);
    assert_eq!(times(EventFilter { limit: Some(2), ..of_e.clone() }), [10, 30], "the oldest, to read on after them");
    assert_eq!(times(EventFilter { since: Some(at(31)), ..EventFilter::default() }), [40]);
    assert_eq!(times(EventFilter { since: Some(at(41)), ..EventFilter::default() }), [0; 0]);
    let first = page(EventFilter { limit: Some(1), ..of_e.clone() });
    assert_eq!((&first.events[..], first.more), (&told[..1], true));
    let after_first = EventFilter { after: Some(first.cursor), ..EventFilter::default() };
    assert_eq!(times(after_first.clone()), [20, 30, 40]);
    let rest = page(after_first.clone());
    assert!(!rest.more);
    let end = page(EventFilter { after: Some(rest.cursor.clone()), ..EventFilter::default() });
    assert_eq!((end.events, &end.cursor, end.more), (vec![], &rest.cursor, false));
    let size = told[0].document().unwrap().len();
    for (max_bytes, fits) in [(1, 1), (size, 1), (2 * size, 2), (3 * size - 1, 2), (3 * size, 3)] {
        assert_eq!(times(EventFilter { max_bytes: Some(max_bytes), ..of_e.clone() }).len(), fits, "{max_bytes} bytes");
    }
    assert_eq!(times(EventFilter { since: Some(at(15)), ..after_first }), [20, 30, 40]);
    for unknown in ["", "x", "1", "ffffffff-1", "7fffffffffffffff-0", &format!("{}0", rest.cursor.0)] {
        let filter = EventFilter { after: Some(Cursor(unknown.into())), ..EventFilter::default() };
        assert!(matches!(store.events(&filter), Err(StoreError::UnknownCursor)), "{unknown:?}");
    }
}

/// Times go back where a clock is set back, and where clocks differ: what is asked for by time is found all the same.
fn events_are_found_by_time_though_times_go_back(store: &dyn Store) {
    const BASE: u64 = 4_000_000;
    let filter = |since| EventFilter { token: Some("back".into()), since: Some(at(BASE + since)), ..EventFilter::default() };
    for time in [100, 200, 150, 199, 160, 300, 170] {
        store.commit(Commit { events: vec![event(BASE + time, "back")], ..Commit::default() }).unwrap();
    }
    let times = |since| {
        let mut filter = EventFilter { limit: Some(1), ..filter(since) };
        let mut times = vec![];
        loop {
            let page = store.events(&filter).unwrap();
            times.extend(page.events.iter().map(|event| event.time.secs() - BASE));
            if !page.more {
                return times;
            }
            filter.after = Some(page.cursor);
        }
    };
    assert_eq!(times(0), [100, 200, 150, 199, 160, 300, 170]);
    assert_eq!(times(155), [200, 199, 160, 300, 170]);
    assert_eq!(times(201), [300]);
    assert_eq!(times(301), [0; 0]);
    // A follower that begins where nothing is yet gets what comes after, and nothing else.
    let none = store.events(&filter(400)).unwrap();
    assert_eq!((none.events.len(), none.more), (0, false));
    let follow = EventFilter { after: Some(none.cursor), ..filter(400) };
    store.commit(Commit { events: vec![event(BASE + 399, "back"), event(BASE + 400, "back")], ..Commit::default() }).unwrap();
    assert_eq!(store.events(&follow).unwrap().events, [event(BASE + 400, "back")]);
    store.sweep(at(BASE), Duration::ZERO).unwrap();
    store.sweep(at(BASE + 1000), Duration::ZERO).unwrap();
}

/// What peers wrote is in events: a URL of 34,000 control characters was, six bytes for each of them.
fn texts_of_events_are_kept_to_their_bound(store: &dyn Store) {
    let long = "\u{1}".repeat(34_000);
    let event = Event { reason: Some(long.clone()), remote_addr: Some(long.clone()), ..event(50, "long") };
    store.commit(Commit { events: vec![event.with("certificate_ignored", long)], ..Commit::default() }).unwrap();
    let kept = events_of(store, "long");
    let Event { reason, remote_addr, more, .. } = &kept[0];
    for text in [reason.as_deref(), remote_addr.as_deref(), more["certificate_ignored"].as_str()] {
        assert!(text.is_some_and(|text| text.len() == MAX_TEXT && text.ends_with("...")), "{text:?}");
    }
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
                        commit.changes.push(Change { id: ResourceId::new(Kind::Bot, "hot"), expected: Some(stale), to: None });
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
    assert_eq!(events_of(store, "concurrent").len(), won);
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
    let last = store.events(&swept).unwrap();
    assert_eq!(last.events.len(), 2);

    store.sweep(now, HOUR).unwrap();
    assert_eq!(revision(store, &ResourceId::new(Kind::BotInstance, "ended")), None);
    assert!(revision(store, &ResourceId::new(Kind::BotInstance, "lives")).is_some());
    assert_eq!(events_of(store, "swept").len(), 1);
    assert!(store.commit(Commit { issued: vec![issued("lives", 1)], ..Commit::default() }).is_err());
    store.commit(Commit { issued: vec![issued("ended", 1)], ..Commit::default() }).unwrap();

    // A number swept away does not come back: a reader that follows would miss the event.
    store.sweep(now.plus(HOUR * 2), HOUR).unwrap();
    store.commit(Commit { events: vec![event(now.secs(), "swept")], ..Commit::default() }).unwrap();
    let follow = EventFilter { after: Some(last.cursor), ..swept };
    assert_eq!(store.events(&follow).unwrap().events, [event(now.secs(), "swept")]);

    for (until, last) in [(now, Some(now)), (now.plus(HOUR), Some(now)), (now.minus(HOUR), None)] {
        assert_eq!(store.last_event_until(until).unwrap(), last, "{until}");
    }
}

fn role(name: &str) -> Resource {
    resource(&format!(r#"{{"kind":"role","version":"v1","metadata":{{"name":"{name}"}},"spec":{{}}}}"#))
}

pub(super) fn lock(name: &str, target: LockTarget) -> Resource {
    let spec = LockSpec { target, message: "stop".into(), expires: None, automatic: false };
    Resource::Lock(Lock { metadata: Metadata::named(name), spec })
}

fn events_of(store: &dyn Store, token: &str) -> Vec<Event> {
    store.events(&EventFilter { token: Some(token.into()), ..EventFilter::default() }).unwrap().events
}

pub(super) fn issued(serial: &str, not_after: u64) -> IssuedRecord {
    let bot = Some("b".into());
    IssuedRecord {
        form: Form::X509,
        serial: serial.into(),
        token: "t".into(),
        bot,
        instance: "i".into(),
        not_after: at(not_after),
    }
}
