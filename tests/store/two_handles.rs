//! What two handles on one database do, beside what each does alone.

use std::time::Duration;

use boundkey::api::event::{Event, EventFilter};
use boundkey::api::resource::{Kind, LockTarget, ResourceId};
use boundkey::auth::store::{Commit, Form, Store, StoreError};
use boundkey::platform::time::Timestamp;

use super::conforms::{issued, lock};
use super::{at, delete, event, put, token};

const HOUR: Duration = Duration::from_secs(3600);

/// What two auth endpoints on one database may rely on, whose clocks differ by 45 s. Wants two handles of one empty store.
pub(super) fn every_rule_of_two(ahead: &dyn Store, behind: &dyn Store) {
    const APART: Duration = Duration::from_secs(45);
    let now = at(5_000_000);
    let clocks = [(ahead, now), (behind, now.minus(APART))];
    a_follower_gets_what_both_write(clocks);
    lists_of_both_are_numbered_in_one_row(clocks);
    each_takes_what_the_other_wrote_into_account(clocks);
    neither_forgets_what_the_other_needs(clocks);
}

type Clocks<'a> = [(&'a dyn Store, Timestamp); 2];

fn a_follower_gets_what_both_write(clocks: Clocks<'_>) {
    const EVENTS: u64 = 100;
    let since = clocks[1].1;
    let written = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (store, clock) in clocks {
            let written = &written;
            scope.spawn(move || {
                for number in 0..EVENTS {
                    let told = event(clock.secs(), "both").with("number", number);
                    store.commit(Commit { events: vec![told], ..Commit::default() }).unwrap();
                    written.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
        for (store, _) in clocks {
            let written = &written;
            scope.spawn(move || {
                let mut filter = EventFilter { since: Some(since), limit: Some(7), ..EventFilter::default() };
                let mut got: Vec<Event> = Vec::new();
                loop {
                    let all = written.load(std::sync::atomic::Ordering::SeqCst) == 2 * EVENTS;
                    let page = store.events(&filter).unwrap();
                    got.extend(page.events);
                    filter.after = Some(page.cursor);
                    if all && !page.more {
                        break;
                    }
                }
                for (_, clock) in clocks {
                    let of_one = got.iter().filter(|event| event.time == clock).map(|event| event.more["number"].as_u64());
                    assert!(of_one.eq((0..EVENTS).map(Some)), "each once, and in order");
                }
            });
        }
    });
}

fn lists_of_both_are_numbered_in_one_row([(ahead, _), (behind, _)]: Clocks<'_>) {
    let numbers: Vec<_> = [ahead, behind, behind, ahead].map(|store| store.next_list_number(Form::X509).unwrap()).into();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

fn each_takes_what_the_other_wrote_into_account([(ahead, _), (behind, _)]: Clocks<'_>) {
    put(ahead, token("pair", "pair", None));
    let view = |store: &dyn Store| store.join_view("pair", None).unwrap().unwrap();
    assert_eq!(view(ahead).reads, view(behind).reads);
    for (one, other) in [(ahead, behind), (behind, ahead)] {
        let reads = view(one).reads;
        put(other, lock("pair", LockTarget::Token("pair".into())));
        let join = Commit { reads, ..Commit::default() };
        assert!(matches!(one.commit(join), Err(StoreError::Conflict(what)) if what == "a lock on token/pair"));
        assert_eq!(view(one).locks.len(), 1);
        delete(one, &ResourceId::new(Kind::Lock, "pair"));
        assert_eq!(view(other).locks.len(), 0);
    }
}

/// What has ended by one clock is still known for the other, and what one issued counts for both.
fn neither_forgets_what_the_other_needs([(ahead, later), (behind, earlier)]: Clocks<'_>) {
    put(ahead, token("t", "b", None));
    let record = issued("between", earlier.secs() + 20);
    ahead.commit(Commit { issued: vec![record], ..Commit::default() }).unwrap();
    put(behind, lock("between", LockTarget::Token("t".into())));
    assert_eq!((ahead.outstanding("t", later).unwrap(), behind.outstanding("t", earlier).unwrap()), (0, 1));
    ahead.sweep(later, HOUR).unwrap();
    for (store, clock) in [(ahead, later), (behind, earlier)] {
        assert_eq!(store.revoked(Form::X509, clock, 9).unwrap(), ["between"]);
    }
}
