//! Files that survive a power cut: written whole under another name, synced, then renamed over the old one.
//!
//! On return the new content is on the medium, name included; after a cut at any instant the file holds either the old
//! content or the new. (rename(2) is atomic; POSIX promises durability only after fsync(2) of file and directory.)
//!
//! On FAT a rename is not atomic: a cut within it may leave the file empty. After the return all is as elsewhere.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::string::String;

use zeroize::Zeroizing;

use crate::{Error, ErrorKind, KeyId};

/// Mode of a file that holds a secret.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of a directory that holds secrets.
pub const PRIVATE_DIR: u32 = 0o700;
/// errno(3): the same on every Linux, and without a name in `std`.
const EIO: i32 = 5;
/// Larger than any key file of ours; more is not read.
const MAX_KEY_FILE: u64 = 4096;

/// Puts `content` under `path` with `mode`, replacing what was there.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (staged, file) = stage(path, content, mode)?;
    std::fs::rename(&staged, path)?;
    // On FAT the renamed entry has neither length nor clusters until the file itself is synced once more.
    file.sync_all()?;
    sync_parent(path)
}

/// Puts `content` under `path` with `mode`; fails with [`io::ErrorKind::AlreadyExists`] where something is there.
///
/// The check and the rename are two steps (FAT has neither hard links nor an exclusive rename): callers hold the
/// storage directory's lock, so nobody else makes the name in between.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => replace(path, content, mode),
        Err(e) => Err(e),
    }
}

/// Removes `path`, durably.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    sync_parent(path)
}

/// Makes `dir` and its missing parents, private to their owner.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    match DirBuilder::new().mode(PRIVATE_DIR).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_parent(dir),
    }
}

/// Makes the names in `path`'s directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// The text of a key file, wiped when dropped.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?.take(MAX_KEY_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Calls `each` for every file of `dir` whose name is a key's between `prefix` and `suffix`.
pub(crate) fn list(dir: &Path, prefix: &str, suffix: &str, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| explain(dir, &e))?,
    };
    for entry in entries {
        let name = entry.map_err(|e| explain(dir, &e))?.file_name();
        let id = name.to_str().and_then(|n| n.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok());
        if let Some(id) = id {
            each(&id);
        }
    }
    Ok(())
}

/// The error of a key file.
pub(crate) fn explain(path: &Path, e: &io::Error) -> Error {
    let kind = match e.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        io::ErrorKind::FileTooLarge
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::StorageFull => ErrorKind::Medium,
        _ if e.raw_os_error() == Some(EIO) => ErrorKind::Medium,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format_args!("{}: {e}", path.display()))
}

/// Writes and syncs the content beside `path`. A staged file left by a power cut is written over at the next try.
fn stage(path: &Path, content: &[u8], mode: u32) -> io::Result<(PathBuf, File)> {
    let mut name = OsString::from(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".new");
    let staged = path.with_file_name(name);
    match std::fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok((staged, file))
}
