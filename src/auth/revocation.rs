//! The revocation lists that this server gives out, of X.509 and of SSH: made when asked for, and no oftener than it can have changed.
//!
//! What is on it: certificates of locked tokens, bots and instances, and of tokens and bots that were deleted. A `reset` puts nothing on
//! it: the device of the old life may be the one that is to register anew; `boundkeyctl lock --instance` takes its certificates away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use axum::body::Bytes;

use super::ca::{Authority, CaError};
use super::store::{Form, Store, StoreError};
use boundkey_join::TrustBundle;
use boundkey_join::message::CRL_LIFETIME;
use boundkey_platform::time::Timestamp;

/// How long what was looked up counts: ends of locks, and deleted tokens, show that much later. New locks show at once.
pub const FRESH: Duration = Duration::from_secs(5);
/// An unchanged list is signed anew after this time, so that a client that fetches it has at least 40 minutes.
const RENEWED: Duration = Duration::from_secs(20 * 60);
/// Most certificates on a list: as many as fit into [`boundkey_join::message::MAX_CRL`], at 49 bytes each.
pub const MAX_ENTRIES: usize = 40_000;

/// A list for each CA, named by its pin; of SSH there is one for all.
pub type Lists = Arc<Vec<(String, Bytes)>>;

/// The lists of one form of this server.
#[derive(Debug)]
pub struct RevocationList {
    form: Form,
    /// The newest list. Held for no longer than it takes to read or replace it.
    made: Mutex<Option<Made>>,
    /// Held by the one request that makes a list.
    making: Mutex<()>,
}

#[derive(Clone, Debug)]
struct Made {
    changes: u64,
    serials: Arc<Vec<String>>,
    /// The trust bundle of whose CAs these lists are.
    bundle: u64,
    lists: Lists,
    signed_at: Timestamp,
    looked_at: Timestamp,
}

/// What a request does.
enum Look<'a> {
    /// It gets these lists.
    Answer(Lists),
    /// It makes lists, in place of those before, and nobody else does as long as it holds the lock.
    Make(MutexGuard<'a, ()>, Option<Made>),
}

/// Why there is no list.
#[derive(Debug)]
pub enum RevocationError {
    /// The authority did not sign.
    Authority(CaError),
    /// The store did not answer.
    Store(StoreError),
}

impl std::fmt::Display for RevocationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Authority(e) => write!(f, "revocation list: {e}"),
            Self::Store(e) => write!(f, "revocation list: {e}"),
        }
    }
}

impl std::error::Error for RevocationError {}

impl RevocationList {
    /// The list of certificates of `form`.
    pub fn of(form: Form) -> Self {
        Self { form, made: Mutex::default(), making: Mutex::default() }
    }

    /// The lists at `now`: DER, or OpenSSH's format. Where the store fails, those before, as long as they hold.
    ///
    /// One request makes them. Those that come meanwhile get the ones before, which may lack a lock of that moment; only where there are
    /// none that hold do they wait.
    pub fn at(&self, now: Timestamp, store: &dyn Store, authority: &Authority) -> Result<Lists, RevocationError> {
        let changes = store.revocation_changes();
        let bundle = authority.newest_bundle().map_or(0, TrustBundle::sequence);
        let (_making, before) = match self.look(changes, bundle, now) {
            Look::Answer(lists) => return Ok(lists),
            Look::Make(making, before) => (making, before),
        };
        let made = match self.make(changes, before.as_ref(), now, store, authority) {
            Ok(made) => made,
            // A disk that is full, for one: verifiers that get no list at all refuse every device an hour later.
            Err(RevocationError::Store(e)) => {
                let Some(held) = before.filter(|made| made.holds(bundle, now)) else { return Err(RevocationError::Store(e)) };
                log::error!("revocation list: {e}; the list before it is given as long as it holds");
                return Ok(held.lists);
            }
            Err(e) => return Err(e),
        };
        let lists = made.lists.clone();
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Ok(lists)
    }

    /// What a request does, where so much has changed and this is the trust bundle.
    fn look(&self, changes: u64, bundle: u64, now: Timestamp) -> Look<'_> {
        let before = self.made();
        if let Some(made) = before.as_ref().filter(|made| made.is_current(changes, bundle, now)) {
            return Look::Answer(made.lists.clone());
        }
        let making = match (self.making.try_lock(), before.filter(|made| made.holds(bundle, now))) {
            (Ok(making), _) => making,
            (Err(TryLockError::Poisoned(making)), _) => making.into_inner(),
            (Err(TryLockError::WouldBlock), Some(made)) => return Look::Answer(made.lists),
            (Err(TryLockError::WouldBlock), None) => self.making.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Another request may have made it between the look and the lock.
        match self.made() {
            Some(made) if made.is_current(changes, bundle, now) => Look::Answer(made.lists),
            before => Look::Make(making, before),
        }
    }

    /// What stands in `made` is whole, also after a thread panicked that held it.
    fn made(&self) -> Option<Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn make(
        &self,
        changes: u64,
        before: Option<&Made>,
        now: Timestamp,
        store: &dyn Store,
        authority: &Authority,
    ) -> Result<Made, RevocationError> {
        let mut serials = store.revoked(self.form, now, MAX_ENTRIES + 1).map_err(RevocationError::Store)?;
        let is_full = serials.len() > MAX_ENTRIES;
        serials.truncate(MAX_ENTRIES);
        let bundle = authority.newest_bundle().map_or(0, TrustBundle::sequence);
        let is_same = |made: &&Made| *made.serials == serials && made.bundle == bundle;
        if let Some(made) = before.filter(is_same).filter(|made| within(now, made.signed_at, RENEWED)) {
            return Ok(Made { changes, looked_at: now, ..made.clone() });
        }
        if is_full {
            log::error!(
                "more than {MAX_ENTRIES} certificates are revoked: of the tokens that have most of them, those that end soonest are not \
                 on the revocation list"
            );
        }
        let number = store.next_list_number(self.form).map_err(RevocationError::Store)?;
        let lists = match self.form {
            Form::SshHost => authority.ssh_revocation_list(number, &serials, now).map(|list| vec![(String::new(), list)]),
            Form::X509 => authority.revocation_lists(number, &serials, now),
        };
        let lists = lists.map_err(RevocationError::Authority)?.into_iter().map(|(of, list)| (of, Bytes::from(list)));
        let (serials, lists) = (Arc::new(serials), Arc::new(lists.collect()));
        Ok(Made { changes, serials, bundle, lists, signed_at: now, looked_at: now })
    }
}

impl Made {
    /// Whether its signature has not ended, and it has a list of each CA of this trust bundle.
    fn holds(&self, bundle: u64, now: Timestamp) -> bool {
        self.bundle == bundle && within(now, self.signed_at, CRL_LIFETIME)
    }

    fn is_current(&self, changes: u64, bundle: u64, now: Timestamp) -> bool {
        self.changes == changes && self.bundle == bundle && within(now, self.looked_at, FRESH)
    }
}

/// Whether `now` is in the time after `start`; before it is a clock that was set back.
fn within(now: Timestamp, start: Timestamp, time: Duration) -> bool {
    start <= now && now < start.plus(time)
}

#[cfg(test)]
mod tests {
    use boundkey_hal::file::FileStore;
    use boundkey_platform::time::System;

    use super::*;
    use crate::ca::make_keys;
    use crate::store::SqliteStore;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn list(text: &'static str, changes: u64) -> RevocationList {
        let lists = Arc::new(vec![("pin".to_owned(), Bytes::from_static(text.as_bytes()))]);
        let made = Made { changes, serials: Arc::default(), bundle: 7, lists, signed_at: NOW, looked_at: NOW };
        RevocationList { made: Mutex::new(Some(made)), ..RevocationList::of(Form::X509) }
    }

    fn answered(look: &Look<'_>) -> Option<Bytes> {
        match look {
            Look::Answer(lists) => Some(lists[0].1.clone()),
            Look::Make(..) => None,
        }
    }

    #[test]
    fn while_one_request_makes_a_list_the_others_get_the_one_before() {
        let list = list("before", 1);
        assert_eq!(answered(&list.look(1, 7, NOW)).as_deref(), Some(&b"before"[..]), "nothing changed");
        let making = list.look(2, 7, NOW);
        assert!(answered(&making).is_none(), "the first request after a lock makes the next list");
        for changes in [2, 3] {
            assert_eq!(answered(&list.look(changes, 7, NOW)).as_deref(), Some(&b"before"[..]));
        }
        drop(making);
        assert!(answered(&list.look(1, 8, NOW)).is_none(), "another CA has none yet");
        assert!(answered(&list.look(2, 7, NOW)).is_none());
        assert!(answered(&list.look(1, 7, NOW.plus(FRESH))).is_none(), "looked up long ago");
    }

    #[test]
    fn without_the_store_the_list_before_is_given_as_long_as_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let keys = FileStore::new(dir.path());
        make_keys(&keys, 1).unwrap();
        let authority = Authority::certify_itself("test.example", Box::new(keys), &System, NOW).unwrap();
        let database = dir.path().join("boundkey.db");
        let store = SqliteStore::create(&database).unwrap();
        let list = RevocationList::of(Form::X509);
        let first = list.at(NOW, &store, &authority).unwrap();
        // Numbers cannot be given any more, as on a full disk.
        rusqlite::Connection::open(&database).unwrap().execute_batch("DROP TABLE list_number").unwrap();
        let renewed = NOW.plus(RENEWED);
        assert_eq!(list.at(renewed, &store, &authority).unwrap(), first);
        let ended = NOW.plus(CRL_LIFETIME);
        assert!(matches!(list.at(ended, &store, &authority), Err(RevocationError::Store(_))));
    }

    #[test]
    fn a_list_that_has_ended_is_given_to_nobody() {
        let list = list("ended", 1);
        let later = NOW.plus(CRL_LIFETIME);
        let making = list.look(2, 7, later);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| answered(&list.look(2, 7, later)));
            *list.made.lock().unwrap() = Some(Made { looked_at: later, changes: 2, ..list.made().unwrap() });
            drop(making);
            assert!(waits.join().unwrap().is_some(), "it waited for the next one");
        });
    }
}
