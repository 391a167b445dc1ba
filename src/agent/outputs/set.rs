//! A set of files that changes as one, in the manner of Kubernetes' atomic writer.
//!
//! ```text
//! /run/boundkey/mqtt/
//!   tls.key  -> ..current/tls.key     the names that programs are configured with; made once, never touched again
//!   tls.crt  -> ..current/tls.crt
//!   ca.crt   -> ..current/ca.crt
//!   ..current -> ..set-8              one rename(2) over it switches all three
//!   ..set-8/                          the current set
//!   ..set-7/                          the one before, for readers that have resolved it; removed after the next switch
//! ```
//! A program that must not pair an old key with a new certificate resolves `..current` once and reads through that; one that is
//! reloaded after the change reads both after the switch anyway.
//!
//! The content is synced before the switch, so that a power cut never leaves a current set with empty files, and the switch before
//! the oldest set goes. On tmpfs (`/run`) that costs nothing; on flash it is five syncs a renewal, and `/run` is the better place.
//! What a power cut leaves half written is under no name that programs use, and is removed at the next change.
//!
//! The directory has to be the agent's alone to write: who may write there may put another key in place.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};

use super::error::{Fault, at};
use crate::agent::config::{Account, Destination};

const CURRENT: &str = "..current";
const NEXT: &str = "..current.new";
const SET: &str = "..set-";
/// Directories are open to all: the private key's own mode protects it, and certificates are public.
const DIRECTORY_MODE: u32 = 0o755;
const PUBLIC_MODE: u32 = 0o644;

/// A file of a set.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its name in the directory.
    pub name: &'a str,
    /// What is in it.
    pub content: &'a [u8],
    /// Who may read it.
    pub visibility: Visibility,
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Those whom the destination's mode admits.
    AsConfigured,
    /// Everyone.
    Public,
}

/// Puts `files` into the directory as its current set. On an error the set before stays current.
pub fn replace(destination: &Destination, files: &[File<'_>]) -> Result<(), Fault> {
    let dir = &destination.path;
    let owner = Owner::find(destination)?;
    make_directory(dir).map_err(at(dir))?;
    for file in files {
        check_name(dir, file.name)?;
    }
    let current = current(dir)?;
    let previous = current.and_then(|current| previous(dir, current));
    remove_sets(dir, |n| Some(n) == current || Some(n) == previous);

    // Greater than all: the number of one that could not be removed is not free.
    let number = sets(dir).into_iter().chain(current).max().map_or(1, |n| n.saturating_add(1));
    let link = prepare_link(dir, number)?;
    let new = dir.join(set_name(number));
    let written = write_set(&new, files, destination.mode.0, owner);
    let switched = written.and_then(|()| fs::rename(&link, dir.join(CURRENT)).map_err(at(&link)));
    if let Err(fault) = switched {
        let _ = fs::remove_file(&link);
        remove_set(&new);
        return Err(fault);
    }
    for file in files {
        make_name(dir, file.name)?;
    }
    sync(dir)?;
    remove_sets(dir, |n| n == number || Some(n) == current);
    Ok(())
}

/// To whom files are given.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    user: Option<u32>,
    group: Option<u32>,
}

impl Owner {
    /// Looks the configured names up.
    fn find(destination: &Destination) -> Result<Self, Fault> {
        let user = match &destination.owner {
            None => None,
            Some(Account::Id(id)) => Some(*id),
            Some(Account::Name(name)) => {
                let found = User::from_name(name).ok().flatten();
                Some(found.ok_or_else(|| Fault::NoUser(name.clone()))?.uid.as_raw())
            }
        };
        let group = match &destination.group {
            None => None,
            Some(Account::Id(id)) => Some(*id),
            Some(Account::Name(name)) => {
                let found = Group::from_name(name).ok().flatten();
                Some(found.ok_or_else(|| Fault::NoGroup(name.clone()))?.gid.as_raw())
            }
        };
        Ok(Self { user, group })
    }
}

/// Makes the directory and its missing parents, each open to all whatever the umask.
fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_directory(parent)?;
    }
    DirBuilder::new().mode(DIRECTORY_MODE).create(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(DIRECTORY_MODE))
}

/// A name is free, or one of our links; what somebody else put there is not ours to replace.
fn check_name(dir: &Path, name: &str) -> Result<(), Fault> {
    let path = dir.join(name);
    match fs::read_link(&path) {
        Ok(target) if target == target_of(name) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // InvalidInput: no link, but a file or directory.
        Ok(_) => Err(Fault::NotOurs(path)),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(Fault::NotOurs(path)),
        Err(e) => Err(Fault::Storage(path, e)),
    }
}

/// Makes the link of a name where it is missing; fails where anything else has come to be.
fn make_name(dir: &Path, name: &str) -> Result<(), Fault> {
    let path = dir.join(name);
    match symlink(target_of(name), &path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check_name(dir, name),
        made => made.map_err(at(&path)),
    }
}

fn target_of(name: &str) -> PathBuf {
    Path::new(CURRENT).join(name)
}

/// The number of the current set.
fn current(dir: &Path) -> Result<Option<u64>, Fault> {
    let path = dir.join(CURRENT);
    match fs::read_link(&path) {
        Ok(target) => target.to_str().and_then(number_of).map(Some).ok_or(Fault::NotOurs(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(Fault::NotOurs(path)),
        Err(e) => Err(Fault::Storage(path, e)),
    }
}

/// Makes the link that is to become `..current`, before anything is written: where it cannot be, no key is left lying about.
fn prepare_link(dir: &Path, number: u64) -> Result<PathBuf, Fault> {
    let path = dir.join(NEXT);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Fault::Storage(path, e)),
        _ => {}
    }
    match symlink(set_name(number), &path) {
        Ok(()) => Ok(path),
        Err(e) if no_links(&e) => Err(Fault::NoLinks(dir.to_path_buf())),
        Err(e) => Err(Fault::Storage(path, e)),
    }
}

/// symlink(2): EPERM is a file system without links, such as FAT; a lack of permission is EACCES.
fn no_links(e: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSYS].iter().any(|errno| e.raw_os_error() == Some(*errno as i32))
}

fn write_set(set: &Path, files: &[File<'_>], mode: u32, owner: Owner) -> Result<(), Fault> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(set).map_err(at(set))?;
    fs::set_permissions(set, Permissions::from_mode(DIRECTORY_MODE)).map_err(at(set))?;
    for file in files {
        let path = set.join(file.name);
        let mode = if file.visibility == Visibility::Public { PUBLIC_MODE } else { mode };
        write_file(&path, file.content, mode, owner).map_err(at(&path))?;
    }
    sync(set)
}

/// Mode and owner are as they should be before there is anything to read.
fn write_file(path: &Path, content: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Mode first: for a file that was given away it would take CAP_FOWNER.
    file.set_permissions(Permissions::from_mode(mode))?;
    if owner.user.is_some() || owner.group.is_some() {
        fchown(&file, owner.user, owner.group)?;
    }
    file.write_all(content)?;
    file.sync_all()
}

fn sync(dir: &Path) -> Result<(), Fault> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

fn set_name(number: u64) -> String {
    format!("{SET}{number}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(SET)?.parse().ok()
}

/// The numbers of all sets, whole or not. A link of such a name is not ours, and leads who knows where.
fn sets(dir: &Path) -> Vec<u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    entries.filter_map(|entry| entry.file_name().to_str().and_then(number_of)).collect()
}

/// The set before `current`; a greater one was never switched to.
fn previous(dir: &Path, current: u64) -> Option<u64> {
    sets(dir).into_iter().filter(|n| *n < current).max()
}

/// Removes the sets that `keep` does not name. What cannot be removed now is tried again at the next change.
fn remove_sets(dir: &Path, keep: impl Fn(u64) -> bool) {
    for number in sets(dir).into_iter().filter(|n| !keep(*n)) {
        remove_set(&dir.join(set_name(number)));
    }
}

/// Removes a set: plain files in one directory; anything else in it is not ours, and stays.
fn remove_set(set: &Path) {
    for entry in fs::read_dir(set).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    if let Err(e) = fs::remove_dir(set)
        && e.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{} could not be removed: {e}", set.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_links_is_known_by_its_error() {
        for (errno, expected) in
            [(nix::errno::Errno::EPERM, true), (nix::errno::Errno::EACCES, false), (nix::errno::Errno::ENOSPC, false)]
        {
            assert_eq!(no_links(&io::Error::from(errno)), expected, "{errno}");
        }
    }

    #[test]
    fn set_names_are_read_as_written() {
        assert_eq!(number_of(&set_name(7)), Some(7));
        for name in ["..set-", "..set-x", "..current", "set-1", "..set--1"] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
