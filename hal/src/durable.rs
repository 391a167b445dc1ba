//! Files that survive a power cut: written whole under another name, synced, then renamed over the old one.
//!
//! On return the new content is on the medium, name included; after a cut at any instant the file holds either the old
//! content or the new. (rename(2) is atomic; POSIX promises durability only after fsync(2) of file and directory.)
//!
//! Who else may write where they are put is looked at first: [`crate::dir`].
//!
//! On FAT a rename is not atomic: a cut within it may leave the file empty. After the return all is as elsewhere.

use std::io;
use std::path::Path;
use std::string::String;

use zeroize::Zeroizing;

use crate::dir::{self, Access, Dir};
use crate::{Error, ErrorKind, KeyId};

/// Mode of a file that holds a secret.
pub const PRIVATE_FILE: u32 = 0o600;
/// errno(3): the same on every Linux, and without a name in `std`.
const EIO: i32 = 5;
/// Larger than any key file of ours; more is not read.
const MAX_KEY_FILE: u64 = 4096;

/// Puts `content` under `path` with `mode`, replacing what was there. A symbolic link of that name is replaced itself.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (dir, name) = Dir::of_file(path)?;
    dir.replace(name, content, mode)
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
    let (dir, name) = Dir::of_file(path)?;
    dir.remove(name)?;
    dir.sync()
}

/// Makes `dir` and its missing parents, private to their owner, and opens it. One that is there has to be ours or root's.
pub fn create_dir(dir: &Path) -> io::Result<Dir> {
    Dir::create(dir, Access::Private)
}

/// Makes the names in `path`'s directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    Dir::of_file(path)?.0.sync()
}

/// The text of a key file, wiped when dropped.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Zeroizing<String>> {
    let content = dir::read(path, MAX_KEY_FILE)?.content;
    let text = str::from_utf8(&content).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))?;
    Ok(Zeroizing::new(text.into()))
}

/// Calls `each` for every file of `dir` whose name is a key's between `prefix` and `suffix`.
pub(crate) fn list(dir: &Path, prefix: &str, suffix: &str, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
    let names = match Dir::to_read(dir).and_then(|opened| opened.names(false)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| explain(dir, &e))?,
    };
    for name in names {
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
