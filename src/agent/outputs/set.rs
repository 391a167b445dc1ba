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
//! The directory, and those that it is in, have to be the agent's or root's alone to write, or nothing is written ([`Dir::open`]): who
//! may write there could put another key in place, or lead the agent elsewhere. A program that runs as another user gets its files by
//! `owner` and `group`, or by the group of a set-group-id directory, which the sets and files in it keep.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{self, Access, Dir};
use nix::unistd::{Group, User};

use super::error::{Fault, at};
use crate::config::{Account, Destination};

const CURRENT: &str = "..current";
const NEXT: &str = "..current.new";
const SET: &str = "..set-";
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
    /// The users that the destination's mode admits.
    AsConfigured,
    /// Everyone.
    Public,
}

/// Puts `files` into the directory as its current set. On an error the set before stays current.
pub fn replace(destination: &Destination, files: &[File<'_>]) -> Result<(), Fault> {
    let owner = Owner::find(destination)?;
    // Directories are open to all: the private key's own mode protects it, and certificates are public.
    let dir = Dir::create(&destination.path, Access::Public).map_err(at(&destination.path))?;
    for file in files {
        check_name(&dir, file.name)?;
    }
    let current = current(&dir)?;
    let previous = current.and_then(|current| previous(&dir, current));
    remove_sets(&dir, |n| Some(n) == current || Some(n) == previous);

    // Greater than all: the number of one that could not be removed is not free.
    let number = sets(&dir).into_iter().chain(current).max().map_or(1, |n| n.saturating_add(1));
    prepare_link(&dir, number)?;
    let written = write_set(&dir, number, files, destination.mode.0, owner);
    let switched = written.and_then(|()| dir.rename(NEXT, CURRENT).map_err(at(&dir.path().join(NEXT))));
    if let Err(fault) = switched {
        if let Err(e) = dir.remove(NEXT) {
            log::debug!("{}: {e}", dir.path().join(NEXT).display());
        }
        remove_set(&dir, number);
        return Err(fault);
    }
    for file in files {
        make_name(&dir, file.name)?;
    }
    dir.sync().map_err(at(dir.path()))?;
    remove_sets(&dir, |n| n == number || Some(n) == current);
    Ok(())
}

/// The file `name` of the current set, up to `limit` bytes; `None` where there is no such set or file.
pub fn read(destination: &Destination, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    let dir = match Dir::open(&destination.path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(at(&destination.path))?,
    };
    let Some(number) = current(&dir)? else { return Ok(None) };
    let set = dir.path().join(set_name(number));
    let found = match dir.subdir(set_name(number)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|opened| opened.read(name, limit)).map_err(at(&set.join(name)))?,
    };
    Ok(found.map(|found| found.content.to_vec()))
}

/// The users that files are given to.
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

/// A name is free, or one of our links; what somebody else put there is not ours to replace.
fn check_name(dir: &Dir, name: &str) -> Result<(), Fault> {
    match target(dir, name)? {
        Some(target) if target != target_of(name) => Err(Fault::NotOurs(dir.path().join(name))),
        _ => Ok(()),
    }
}

/// Makes the link of a name where it is missing; fails where anything else has come to be.
fn make_name(dir: &Dir, name: &str) -> Result<(), Fault> {
    match dir.link(target_of(name), name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check_name(dir, name),
        made => made.map_err(at(&dir.path().join(name))),
    }
}

/// Where a link of ours leads; `None` where there is nothing of that name. What is no link is not ours.
fn target(dir: &Dir, name: &str) -> Result<Option<PathBuf>, Fault> {
    let path = dir.path().join(name);
    dir.link_target(name).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidInput => Fault::NotOurs(path),
        _ => Fault::Storage(path, e),
    })
}

fn target_of(name: &str) -> PathBuf {
    Path::new(CURRENT).join(name)
}

/// The number of the current set.
fn current(dir: &Dir) -> Result<Option<u64>, Fault> {
    let Some(target) = target(dir, CURRENT)? else { return Ok(None) };
    target.to_str().and_then(number_of).map(Some).ok_or_else(|| Fault::NotOurs(dir.path().join(CURRENT)))
}

/// Makes the link that is to become `..current`, before anything is written: where it cannot be, no key is left lying about.
fn prepare_link(dir: &Dir, number: u64) -> Result<(), Fault> {
    let path = dir.path().join(NEXT);
    dir.remove_if_there(NEXT).map_err(at(&path))?;
    match dir.link(set_name(number), NEXT) {
        Err(e) if no_links(&e) => Err(Fault::NoLinks(dir.path().to_path_buf())),
        made => made.map_err(at(&path)),
    }
}

/// symlink(2): EPERM is a file system without links, such as FAT; a lack of permission is EACCES.
fn no_links(e: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSYS].iter().any(|errno| e.raw_os_error() == Some(*errno as i32))
}

fn write_set(dir: &Dir, number: u64, files: &[File<'_>], mode: u32, owner: Owner) -> Result<(), Fault> {
    let path = dir.path().join(set_name(number));
    let set = dir.make_subdir(set_name(number), Access::Public).map_err(at(&path))?;
    for file in files {
        let mode = if file.visibility == Visibility::Public { PUBLIC_MODE } else { mode };
        write_file(&set, file, mode, owner).map_err(at(&path.join(file.name)))?;
    }
    set.sync().map_err(at(&path))
}

/// Mode and owner are as they should be before there is anything to read.
fn write_file(set: &Dir, file: &File<'_>, mode: u32, owner: Owner) -> io::Result<()> {
    let mut made = set.make_file(file.name, 0o600)?;
    // Mode first: for a file that was given away it would take CAP_FOWNER.
    dir::set_mode(&made, mode)?;
    if owner.user.is_some() || owner.group.is_some() {
        fchown(&made, owner.user, owner.group)?;
    }
    made.write_all(file.content)?;
    made.sync_all()
}

fn set_name(number: u64) -> String {
    format!("{SET}{number}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(SET)?.parse().ok()
}

/// The numbers of all sets, whole or not. A link of such a name is not ours, and leads who knows where.
fn sets(dir: &Dir) -> Vec<u64> {
    let names = dir.names(true).unwrap_or_else(|e| {
        log::warn!("{} could not be listed: {e}", dir.path().display());
        Vec::new()
    });
    names.iter().filter_map(|name| name.to_str().and_then(number_of)).collect()
}

/// The set before `current`; a greater one was never switched to.
fn previous(dir: &Dir, current: u64) -> Option<u64> {
    sets(dir).into_iter().filter(|n| *n < current).max()
}

/// Removes the sets that `keep` does not name. What cannot be removed now is tried again at the next change.
fn remove_sets(dir: &Dir, keep: impl Fn(u64) -> bool) {
    for number in sets(dir).into_iter().filter(|n| !keep(*n)) {
        remove_set(dir, number);
    }
}

/// Removes a set: plain files in one directory; a directory in it is not ours, and stays.
fn remove_set(dir: &Dir, number: u64) {
    let remove = || {
        let set = match dir.subdir(set_name(number)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        set.names(false)?.into_iter().try_for_each(|name: OsString| set.remove(name))?;
        dir.remove_subdir(set_name(number))
    };
    if let Err(e) = remove() {
        log::warn!("{} could not be removed: {e}", dir.path().join(set_name(number)).display());
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
