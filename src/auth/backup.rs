//! Backups: a data directory copied beside a running server, and its database put back.
//!
//! A backup is a data directory itself: where all else is lost, it is copied to its place and started.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{self, Dir};
use boundkey_hal::durable;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::ca::CaSet;
use super::data_dir::{CA, CA_PEM, CHALLENGE_KEY, CLUSTER, DATABASE, DataDir, DataDirError, KEYS, TLS};
use super::store::SqliteStore;
use boundkey_platform::time::Random;

/// Larger than any file that is copied whole.
const MAX_COPIED: u64 = 1024 * 1024;

impl DataDir {
    /// Copies what the server needs into the directory `to`, which is made, or empty. `cluster.json` comes last: a backup that was
    /// cut off is none.
    pub fn backup(&self, to: &Path) -> Result<(), DataDirError> {
        self.cluster()?;
        // SQLite makes files beside the database: root's, in a directory of the server's user, would stop the server.
        self.open()?;
        let unusable = |e| DataDirError::Io(to.into(), e);
        durable::create_dir(to).map_err(unusable)?;
        if std::fs::read_dir(to).map_err(unusable)?.next().is_some() {
            return Err(DataDirError::NotEmpty(to.into()));
        }
        let backup = Self::new(to);
        // A cluster made before there was one has none until its server starts. Before the keys: all that it names are there by then.
        if self.path(CA).exists() {
            copy(&self.path(CA), &backup.path(CA))?;
        }
        self.copy_keys(&backup)?;
        for name in [CHALLENGE_KEY, CA_PEM, TLS] {
            copy(&self.path(name), &backup.path(name))?;
        }
        SqliteStore::copy(&self.path(DATABASE), &backup.path(DATABASE))?;
        copy(&self.path(CLUSTER), &backup.path(CLUSTER))
    }

    /// Puts the database of the backup `from` in place; returns where the one that was there is kept. No server may be running.
    ///
    /// A cut at any instant leaves no database or a whole one, and this can be done again. Challenges given before are void from
    /// then on: their token's revision may be given again, with other content.
    pub fn restore(&self, from: &Path, random: &dyn Random) -> Result<Option<PathBuf>, DataDirError> {
        self.cluster()?;
        let _lock = self.lock()?;
        let backup = Self::new(from);
        backup.cluster().map_err(|e| match e {
            DataDirError::Missing(dir) => DataDirError::NoBackup(dir),
            e => e,
        })?;
        // Its records say which key each device has: nobody may have put others in their place.
        Dir::open(from).map_err(|e| DataDirError::Io(from.into(), e))?;
        let (theirs, ours) = (backup.ca_certificates()?, self.ca_certificates()?);
        if !theirs.iter().any(|certificate| ours.contains(certificate)) {
            return Err(DataDirError::Foreign(from.into()));
        }
        let (database, staged) = (self.path(DATABASE), self.path("boundkey.db.new"));
        remove(&staged)?;
        SqliteStore::copy(&backup.path(DATABASE), &staged)?;
        let kept = self.path("boundkey.db.replaced");
        let replaced = database.exists();
        // The file first, then what SQLite keeps beside it: without the file no server starts.
        for suffix in ["", "-wal", "-shm"] {
            let with_suffix = |path: &Path| {
                let mut name = OsString::from(path);
                name.push(suffix);
                PathBuf::from(name)
            };
            let (path, kept) = (with_suffix(&database), with_suffix(&kept));
            match std::fs::rename(&path, &kept) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && replaced => remove(&kept)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(|e| DataDirError::Io(path, e))?,
            }
        }
        self.make_challenge_key(random)?;
        std::fs::rename(&staged, &database).map_err(|e| DataDirError::Io(staged, e))?;
        durable::sync_parent(&database).map_err(|e| DataDirError::Io(database, e))?;
        Ok(replaced.then_some(kept))
    }

    /// Certificates of the CAs that this cluster has or had, DER.
    fn ca_certificates(&self) -> Result<Vec<Vec<u8>>, DataDirError> {
        let path = self.path(CA);
        match std::fs::read(&path) {
            Ok(json) => {
                let set = CaSet::read(&json).map_err(|e| DataDirError::Malformed(path, e.to_string()))?;
                Ok(set.cas.iter().map(|ca| ca.certificate().to_vec()).collect())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let path = self.path(CA_PEM);
                let certificate =
                    CertificateDer::from_pem_file(&path).map_err(|e| DataDirError::Malformed(path, e.to_string()))?;
                Ok(vec![certificate.to_vec()])
            }
            Err(e) => Err(DataDirError::Io(path, e)),
        }
    }

    fn copy_keys(&self, backup: &Self) -> Result<(), DataDirError> {
        let (from, to) = (self.path(KEYS), backup.path(KEYS));
        durable::create_dir(&to).map_err(|e| DataDirError::Io(to.clone(), e))?;
        for entry in std::fs::read_dir(&from).map_err(|e| DataDirError::Io(from.clone(), e))? {
            let entry = entry.map_err(|e| DataDirError::Io(from.clone(), e))?;
            if entry.file_type().map_err(|e| DataDirError::Io(entry.path(), e))?.is_file() {
                copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// Copies a file, durably and privately.
fn copy(from: &Path, to: &Path) -> Result<(), DataDirError> {
    let content = dir::read(from, MAX_COPIED).map_err(|e| DataDirError::Io(from.into(), e))?.content;
    if content.len() as u64 == MAX_COPIED {
        return Err(DataDirError::Io(from.into(), io::ErrorKind::FileTooLarge.into()));
    }
    durable::create(to, &content, durable::PRIVATE_FILE).map_err(|e| DataDirError::Io(to.into(), e))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), DataDirError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DataDirError::Io(path.into(), e)),
        _ => Ok(()),
    }
}
