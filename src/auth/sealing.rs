//! The key that seals challenges, which may be replaced while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use boundkey_join::server::challenge::SealingKey;
use boundkey_platform::time::Timestamp;

/// The key as it is now.
pub struct Sealing(RwLock<Arc<SealingKey>>);

impl Sealing {
    /// Begins with `key`.
    pub fn new(key: SealingKey) -> Self {
        Self(RwLock::new(Arc::new(key)))
    }

    /// The key now.
    pub fn now(&self) -> Arc<SealingKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Seals with `secret` from `now` on. Challenges of the key before hold to their end.
    pub fn replace(&self, secret: &[u8; 32], now: Timestamp) {
        let mut key = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *key = Arc::new(key.succeeded_by(secret, now));
    }
}
