//! From a path to a directory, one component at a time, without trusting anybody on the way but root and this process's user.
//!
//! A directory that only these two may write keeps its entries while it is open, so a walk that starts at `/` and leaves none of the
//! directories unjudged leads where their owners mean it to lead, whatever others do meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};
use std::string::String;

use rustix::fs::{FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{geteuid, umask};

/// Symbolic links that are followed at most, as the kernel does (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Write permission of group and others. A POSIX access control list for another user shows as the group's.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
const SET_GROUP_ID: u32 = 0o2000;
const ROOT: u32 = 0;
/// Owner that the kernel shows for users that a user namespace does not map (user_namespaces(7)), unless it is told otherwise.
const OVERFLOW_USER: u32 = 65534;

/// A directory, file or link that others than root and this process's user may replace or rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Where it is, symbolic links before it resolved.
    pub path: PathBuf,
    /// Its owner's user id.
    pub owner: u32,
    /// Its group id.
    pub group: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Whether it is the owner who is not trusted; else its mode lets others write.
    pub is_foreign: bool,
    is_directory: bool,
}

impl Exposed {
    /// The one in `e`, if that is why something was refused.
    pub fn of(e: &io::Error) -> Option<&Self> {
        e.get_ref()?.downcast_ref()
    }

    /// The same finding reduced to its mode: `None` unless the mode lets others write, whatever user owns it.
    pub fn by_mode(&self) -> Option<Self> {
        (self.mode & OTHERS_WRITE != 0).then(|| Self { is_foreign: false, ..self.clone() })
    }

    /// What to do about it.
    pub fn advice(&self) -> String {
        let path = self.path.display();
        if self.is_foreign {
            let owner = self.owner;
            return std::format!(
                "run boundkey as user {owner} (runuser -u NAME -- ...), give {path} to root or boundkey's user (chown), or choose another \
                 directory"
            );
        }
        std::format!("run chmod go-w {path}, or choose another directory")
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, group, mode, .. } = self;
        let what = if self.is_directory { "what is in it" } else { "it" };
        write!(f, "{} (owner {owner}, group {group}, mode {mode:04o}) ", path.display())?;
        if self.is_foreign {
            write!(f, "belongs to user {owner}, who may replace {what}")
        } else {
            write!(f, "lets other users write: they may replace {what}")
        }
    }
}

impl std::error::Error for Exposed {}

impl From<Exposed> for io::Error {
    fn from(exposed: Exposed) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, exposed)
    }
}

/// What to do on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Fail at the first directory that others may write.
    Refuse,
    /// As [`Exposure::Refuse`], but the last directory may be one that all may write and nobody may rename others' files in, as `/tmp`.
    RefuseButSticky,
    /// Go on, for what is read there is judged by itself. From there on no link is followed.
    Note,
}

/// How a directory is made that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 0700.
    Private,
    /// Mode 0755 whatever the umask, and with the group of a set-group-id parent.
    Public,
}

/// Whose doings are trusted: root's and those of the user that this process acts as.
struct Trust {
    user: u32,
    /// Whether the host's root is outside this user namespace. It is then shown by a number that nobody in it has, as every other user
    /// outside is: there is no way to tell them apart.
    overflow: bool,
}

impl Trust {
    fn of_process() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self { user: geteuid().as_raw(), overflow: hides_root(&map) && !has_user(&map, OVERFLOW_USER) }
    }

    fn trusts(&self, owner: u32) -> bool {
        owner == ROOT || owner == self.user || (self.overflow && owner == OVERFLOW_USER)
    }
}

/// Whether a namespace with this `uid_map` lacks the root of the one around it. systemd's `PrivateUsers=yes` has it.
fn hides_root(map: &str) -> bool {
    let has_root = |line: &str| line.split_whitespace().nth(1) == Some("0");
    !map.is_empty() && !map.lines().any(has_root)
}

/// Whether the user is one of the namespace with this `uid_map`: lines of first number inside, first number outside, count.
fn has_user(map: &str, user: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().ok());
        match (numbers.next().flatten(), numbers.nth(1).flatten()) {
            (Some(first), Some(count)) => (first..first.saturating_add(count)).contains(&user.into()),
            _ => false,
        }
    })
}

/// A directory on the way.
struct Place {
    fd: OwnedFd,
    path: PathBuf,
    /// Why others may change what is in it.
    exposed: Option<Exposed>,
    /// Whether others may make entries in it, but neither rename nor remove those of its owner, root or ours.
    sticky: bool,
}

pub(super) struct Walk {
    trust: Trust,
    exposure: Exposure,
    /// Why what was found is not to be trusted, with [`Exposure::Note`].
    pub(super) exposed: Option<Exposed>,
}

impl Walk {
    pub(super) fn new(exposure: Exposure) -> Self {
        Self { trust: Trust::of_process(), exposure, exposed: None }
    }

    /// The directory `path`, open to read, and where it is. Where `make` says how, missing directories are made.
    pub(super) fn to(&mut self, path: &Path, make: Option<Access>) -> io::Result<(OwnedFd, PathBuf)> {
        let (here, file) = self.along(path, make)?;
        if file.is_some() {
            return Err(Errno::NOTDIR.into());
        }
        if self.exposure == Exposure::Refuse
            && let Some(exposed) = here.exposed
        {
            return Err(exposed.into());
        }
        // What was opened up to here serves to look names up alone.
        let fd = openat(&here.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok((fd, here.path))
    }

    /// Judges the way to the file `path`, and the file itself.
    pub(super) fn look_at_file(&mut self, path: &Path) -> io::Result<()> {
        let (here, file) = self.along(path, None)?;
        let Some((at, stat)) = file else { return Err(Errno::ISDIR.into()) };
        if self.exposure == Exposure::Refuse
            && let Some(exposed) = here.exposed
        {
            return Err(exposed.into());
        }
        let is_foreign = !self.trust.trusts(stat.st_uid);
        if is_foreign || stat.st_mode & OTHERS_WRITE != 0 {
            return Err(exposed(&at, &stat, is_foreign).into());
        }
        Ok(())
    }

    /// The last directory on the way to `path`, and what `path` is where it is no directory.
    fn along(&mut self, path: &Path, make: Option<Access>) -> io::Result<(Place, Option<(PathBuf, Stat)>)> {
        let mut here = self.root()?;
        let mut todo: VecDeque<OsString> = components(&std::path::absolute(path)?);
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let (fd, stat) = match (open(&here, &name), make) {
                (Err(Errno::NOENT), Some(access)) => make_and_open(&here, &name, access)?,
                (opened, _) => opened?,
            };
            let at = if name == ".." { parent(&here.path) } else { here.path.join(&name) };
            self.judge_entry(&here, &at, &stat)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => here = self.enter(fd, at, &stat)?,
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    // Of the link itself, not of whatever may have come to be under its name.
                    let target = PathBuf::from(OsString::from_vec(readlinkat(&fd, "", std::vec::Vec::new())?.into_bytes()));
                    if target.is_absolute() {
                        here = self.root()?;
                    }
                    for name in components(&target).into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                _ if todo.is_empty() => return Ok((here, Some((at, stat)))),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        Ok((here, None))
    }

    fn root(&mut self) -> io::Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // An emulator with a sysroot (qemu-user) leads `/` itself there. Without /proc, `/` it is.
        let fd =
            rustix::fs::open("/proc/self/root", flags, Mode::empty()).or_else(|_| rustix::fs::open("/", flags, Mode::empty()))?;
        let stat = fstat(&fd)?;
        self.enter(fd, "/".into(), &stat)
    }

    /// Judges a directory by who may write in it.
    fn enter(&mut self, fd: OwnedFd, path: PathBuf, stat: &Stat) -> io::Result<Place> {
        let is_foreign = !self.trust.trusts(stat.st_uid);
        let is_writable = stat.st_mode & OTHERS_WRITE != 0;
        let sticky = !is_foreign && stat.st_mode & STICKY != 0;
        let exposed = (is_foreign || is_writable).then(|| exposed(&path, stat, is_foreign));
        match self.exposure {
            Exposure::Note => self.exposed = self.exposed.take().or_else(|| exposed.clone().filter(|_| !sticky)),
            Exposure::Refuse | Exposure::RefuseButSticky => {
                if let Some(exposed) = exposed.clone().filter(|_| !sticky) {
                    return Err(exposed.into());
                }
            }
        }
        Ok(Place { fd, path, exposed, sticky })
    }

    /// Judges what a directory has under a name: in one that all may write, by its owner, who alone may rename it; and a link by whether
    /// others may put it there.
    fn judge_entry(&mut self, dir: &Place, path: &Path, stat: &Stat) -> io::Result<()> {
        let planted = dir.sticky && dir.exposed.is_some() && !self.trust.trusts(stat.st_uid);
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if is_link && (planted || self.exposed.is_some()) {
            return Err(exposed(path, stat, true).into());
        }
        // A directory is judged again when it is entered: it is its owner's.
        Ok(())
    }
}

/// Makes a directory on the way, and opens it.
fn make_and_open(dir: &Place, name: &OsStr, access: Access) -> io::Result<(OwnedFd, Stat)> {
    make_directory(&dir.fd, name, access)?;
    // The new name is durable before anything relies on it.
    let parent = openat(&dir.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fsync(&parent)?;
    Ok(open(dir, name)?)
}

/// Makes a directory. One that was made meanwhile is judged as every other.
pub(super) fn make_directory(parent: &OwnedFd, name: &OsStr, access: Access) -> io::Result<()> {
    let made = match access {
        Access::Private => mkdirat(parent, name, Mode::from_raw_mode(0o700)),
        Access::Public => {
            // By the umask rather than by chmod(2), which takes the set-group-id bit from a directory whose group is not one of ours. The
            // umask is the process's: none of our threads makes files meanwhile but with modes of their own.
            let before = umask(Mode::from_raw_mode(0o022));
            let made = mkdirat(parent, name, Mode::from_raw_mode(0o755));
            umask(before);
            made
        }
    };
    match made {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    if access == Access::Public {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())?;
        let mode = fstat(&fd)?.st_mode;
        // A default access control list goes before the mode that was asked for.
        if mode & 0o777 != 0o755 {
            fchmod(&fd, Mode::from_raw_mode(0o755 | (mode & SET_GROUP_ID)))?;
        }
    }
    Ok(())
}

/// Opens an entry as it is, a link too, for nothing but to look at it.
fn open(dir: &Place, name: &OsStr) -> Result<(OwnedFd, Stat), Errno> {
    let fd = openat(&dir.fd, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&fd)?;
    Ok((fd, stat))
}

/// Why the file or directory `path` is not to be trusted.
pub(super) fn exposed(path: &Path, stat: &Stat, is_foreign: bool) -> Exposed {
    Exposed {
        path: path.into(),
        owner: stat.st_uid,
        group: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        is_foreign,
        is_directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    }
}

/// Whether others than root and this process's user may write into an open file.
pub(super) fn judge_file(path: &Path, stat: &Stat) -> Option<Exposed> {
    let is_foreign = !Trust::of_process().trusts(stat.st_uid);
    (is_foreign || stat.st_mode & OTHERS_WRITE != 0).then(|| exposed(path, stat, is_foreign))
}

fn components(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    names.map(|c| c.as_os_str().into()).collect()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_users_has_those_of_its_map() {
        let whole = "         0          0 4294967295\n";
        assert!(has_user(whole, 0) && has_user(whole, OVERFLOW_USER));
        let two = "0 1000 1\n1000 0 1\n";
        assert!(has_user(two, 0) && has_user(two, 1000) && !has_user(two, OVERFLOW_USER));
        assert!(!has_user("", 0) && !has_user("x y z\n", 0));
    }

    /// The second number of a line is the user outside. Without a map there is nothing to go by, and nobody is taken for root.
    #[test]
    fn a_namespace_hides_root_unless_a_line_of_its_map_begins_there() {
        assert!(!hides_root("         0          0 4294967295\n"));
        assert!(!hides_root("0 1000 1\n1000 0 1\n") && !hides_root(""));
        assert!(hides_root("0 1000 1\n") && hides_root("1000 4242 1\n0 100000 65536\n"));
    }
}
