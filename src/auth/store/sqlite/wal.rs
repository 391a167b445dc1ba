//! The bound of the write-ahead log.
//!
//! SQLite begins the log anew only at a moment when no reader looks into it. With enough readers, one always does, and the log grows
//! without end. Past a size, the writer waits for those that are reading: what they ask is answered in milliseconds, and those
//! that come meanwhile read the file itself, which then has everything.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;

use super::BUSY;
use crate::store::StoreError;

/// The size at which the log is begun anew, in bytes. It can be passed by what one transaction writes.
pub(super) const MAX_WAL: u64 = 16 << 20;
/// How long the writer waits for readers: commits wait as long.
const WAIT: Duration = Duration::from_millis(250);

/// Keeps the log of one database within its bound.
#[derive(Debug)]
pub(super) struct Wal {
    file: PathBuf,
    /// The size at which something is to be done.
    limit: u64,
}

impl Wal {
    /// That of the database at `path`.
    pub(super) fn of(path: &std::path::Path) -> Self {
        let mut file = path.as_os_str().to_owned();
        file.push("-wal");
        Self { file: file.into(), limit: MAX_WAL }
    }

    /// To be called after each transaction of the writer. A reader that does not end, such as a copy of the whole file for a backup,
    /// is left alone: the log then grows until it has ended.
    pub(super) fn bound(&mut self, connection: &Connection) -> Result<(), StoreError> {
        // Without the file there is nothing to bound.
        let size = std::fs::metadata(&self.file).map_or(0, |file| file.len());
        if size <= self.limit {
            return Ok(());
        }
        connection.busy_timeout(WAIT)?;
        let begun = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        connection.busy_timeout(BUSY)?;
        let is_busy = begun? != 0;
        self.limit = if is_busy { size + MAX_WAL } else { MAX_WAL };
        if is_busy {
            log::warn!("database: the write-ahead log has {} MiB, and a reader keeps it from being begun anew", size >> 20);
        }
        Ok(())
    }
}
