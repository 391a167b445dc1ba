//! SQLite.
/// The store.
#[derive(Debug)]
pub struct SqliteStore;
