//! The revocation lists that this server gives out, of X.509 and of SSH: made when asked for, and no oftener than it can have changed.
//!
//! What is on it: certificates of locked tokens, bots and instances, and of tokens and bots that were deleted. A `reset` puts nothing on
//! it: the device of the old life may be the one that is to register anew; `boundkeyctl lock --instance` takes its certificates away.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;

use super::ca::{Authority, CaError};
use super::store::{Form, Store, StoreError};
use crate::time::Timestamp;

/// How long what was looked up counts: ends of locks, and deleted tokens, show that much later. New locks show at once.
pub const FRESH: Duration = Duration::from_secs(5);
/// An unchanged list is signed anew after this time, so that whoever fetches it has at least 40 minutes.
const RENEWED: Duration = Duration::from_secs(20 * 60);
/// Most certificates on a list: 2.5 MB.
const MAX_ENTRIES: usize = 50_000;

/// One list of this server.
#[derive(Debug)]
pub struct RevocationList {
    form: Form,
    made: Mutex<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    policy: u64,
    serials: Vec<String>,
    number: u64,
    bytes: Bytes,
    signed_at: Timestamp,
    looked_at: Timestamp,
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
        Self { form, made: Mutex::default() }
    }

    /// The list at `now`: DER, or OpenSSH's format. Requests that come together wait for one to make it.
    pub fn at(&self, now: Timestamp, store: &dyn Store, authority: &Authority) -> Result<Bytes, RevocationError> {
        // A thread that panicked left the list of before, which is whole.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = store.policy().map_err(RevocationError::Store)?;
        if let Some(made) = made.as_ref().filter(|made| made.policy == policy && within(now, made.looked_at, FRESH)) {
            return Ok(made.bytes.clone());
        }
        let mut revoked = store.revoked(self.form, now, MAX_ENTRIES + 1).map_err(RevocationError::Store)?;
        if revoked.serials.len() > MAX_ENTRIES {
            revoked.serials.truncate(MAX_ENTRIES);
            log::error!(
                "more than {MAX_ENTRIES} certificates are revoked: those that end soonest are not on the revocation list"
            );
        }
        if let Some(made) = made.as_mut().filter(|made| made.serials == revoked.serials && within(now, made.signed_at, RENEWED)) {
            (made.policy, made.looked_at) = (revoked.policy, now);
            return Ok(made.bytes.clone());
        }
        // Milliseconds rise also over a restart, and over a database restored from a backup.
        let number = now.millis().max(made.as_ref().map_or(0, |made| made.number + 1));
        let list = match self.form {
            Form::SshHost => authority.ssh_revocation_list(number, &revoked.serials, now),
            Form::X509 => authority.revocation_list(number, &revoked.serials, now),
        };
        let bytes = Bytes::from(list.map_err(RevocationError::Authority)?);
        let (policy, serials) = (revoked.policy, revoked.serials);
        *made = Some(Made { policy, serials, number, bytes: bytes.clone(), signed_at: now, looked_at: now });
        Ok(bytes)
    }
}

/// Whether `now` is in the time after `start`; before it is a clock that was set back.
fn within(now: Timestamp, start: Timestamp, time: Duration) -> bool {
    start <= now && now < start.plus(time)
}
