//! Directories held open, for a process that may do more than those who share the file system with it.
//!
//! A path is looked up anew by each system call, so a user who may rename one of its directories can lead a privileged process
//! elsewhere between two calls. A [`Dir`] was reached over directories that nobody but root and this process's user may write, or it
//! was not opened at all ([`Exposed`]); names in it are looked up in the open directory, and never through a symbolic link.
//!
//! | to | from | refuses |
//! | --- | --- | --- |
//! | write | [`Dir::open`], [`Dir::create`] | a directory that others may write, `/tmp` too |
//! | put one file beside others | [`Dir::of_file`] | the same, but for `/tmp` and its like, where nobody may rename what is ours |
//! | read, or leave a note that nobody relies on | [`Dir::to_read`] | links that others may have put there; what is read there is for the caller to judge |

mod walk;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::vec::Vec;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fchmod, fstat, fsync, openat, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use walk::{Exposure, Walk};

pub use walk::{Access, Exposed};

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// Why what is in it is not to be trusted, if it was opened to read.
    exposed: Option<Exposed>,
}

/// What was read of a file, and what tells whether to believe it.
pub struct Found {
    /// The first bytes, wiped when dropped: a file may hold a secret.
    pub content: Zeroizing<Vec<u8>>,
    /// The file itself, open.
    pub file: File,
}

impl Dir {
    /// Opens the directory `path` to write there.
    ///
    /// # Errors
    /// [`Exposed`], where others than root and this process's user may write in it or in a directory on the way.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::walk(path, Exposure::Refuse, None)
    }

    /// The same; missing directories are made, and durable.
    pub fn create(path: &Path, access: Access) -> io::Result<Self> {
        Self::walk(path, Exposure::Refuse, Some(access))
    }

    /// The directory of the file `path`, and the file's name, to write the file there.
    pub fn of_file(path: &Path) -> io::Result<(Self, OsString)> {
        let (parent, name) = split(path)?;
        Ok((Self::walk(parent, Exposure::RefuseButSticky, None)?, name))
    }

    /// Opens the directory `path` to read there. Other users may be able to write in it.
    pub fn to_read(path: &Path) -> io::Result<Self> {
        Self::walk(path, Exposure::Note, None)
    }

    /// Whether the directory `path` can be opened to write there, or could if it were made: what is missing has no fault.
    pub fn check(path: &Path) -> io::Result<()> {
        for place in path.ancestors().filter(|place| !place.as_os_str().is_empty()) {
            let exposure = if place == path { Exposure::Refuse } else { Exposure::RefuseButSticky };
            match Self::walk(place, exposure, None) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                opened => return opened.map(drop),
            }
        }
        Ok(())
    }

    /// Whether nobody but root and this process's user may replace or rewrite the file `path`.
    ///
    /// # Errors
    /// [`Exposed`]; or the file cannot be found by its name, as one that is a descriptor of this process (`/dev/stdin`).
    pub fn check_file(path: &Path) -> io::Result<()> {
        Walk::new(Exposure::RefuseButSticky).look_at_file(path)
    }

    /// The same of a program, and nobody else may make entries beside it: in a directory such as `/tmp` a hard link puts any program of
    /// root's under the name.
    ///
    /// # Errors
    /// As of [`Self::check_file`].
    pub fn check_program(path: &Path) -> io::Result<()> {
        Walk::new(Exposure::Refuse).look_at_file(path)
    }

    fn walk(path: &Path, exposure: Exposure, make: Option<Access>) -> io::Result<Self> {
        let mut walk = Walk::new(exposure);
        let (fd, path) = walk.to(path, make)?;
        Ok(Self { fd, path, exposed: walk.exposed })
    }

    /// Where it is, symbolic links resolved; for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `name` in it.
    pub fn subdir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name.as_ref(), flags, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name.as_ref()), exposed: self.exposed.clone() })
    }

    /// Makes the directory `name` in it, which must not be there, and opens it. Durable after [`Dir::sync`].
    pub fn make_subdir(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<Self> {
        if self.kind_of(&name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        walk::make_directory(&self.fd, name.as_ref(), access)?;
        self.subdir(name)
    }

    /// The first `limit` bytes of the regular file `name`; `None` where there is nothing of that name.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Option<Found>> {
        let file = match self.open_file(&name, OFlags::RDONLY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // Room for all of it at once: what a growing buffer leaves behind is not wiped.
        let room = file.metadata()?.len().min(limit).saturating_add(1);
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or_default()));
        (&file).take(limit).read_to_end(&mut content)?;
        Ok(Some(Found { content, file }))
    }

    /// Opens the regular file `name` to write in it.
    pub fn write(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(&name, OFlags::WRONLY)
    }

    /// Opens the regular file `name` to write in it, and makes it where it is missing.
    pub fn write_or_make(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        match self.make_file(&name, mode) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.write(name),
            made => made,
        }
    }

    /// Makes the file `name`, which must not be there, with this mode less the umask.
    pub fn make_file(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&self.fd, name.as_ref(), flags, Mode::from_raw_mode(mode))?.into())
    }

    /// Puts `content` under `name` with `mode`, replacing what was there: after a power cut it is the old or the new one. Durable on
    /// return.
    pub fn replace(&self, name: impl AsRef<OsStr>, content: &[u8], mode: u32) -> io::Result<()> {
        let name = name.as_ref();
        let mut staged = OsString::from(name);
        staged.push(".new");
        // Left by a power cut.
        self.remove_if_there(&staged)?;
        let mut file = self.make_file(&staged, mode)?;
        file.write_all(content)?;
        file.sync_all()?;
        self.rename(&staged, name)?;
        // On FAT the renamed entry has neither length nor clusters until the file itself is synced once more.
        file.sync_all()?;
        self.sync()
    }

    /// Renames an entry over another, or none.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(renameat(&self.fd, from.as_ref(), &self.fd, to.as_ref())?)
    }

    /// Removes an entry that is no directory: a link itself, not what it leads to.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_ref(), AtFlags::empty())?)
    }

    /// The same; `false` where there is none.
    pub fn remove_if_there(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        match self.remove(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// Removes the directory `name` in it, which must be empty.
    pub fn remove_subdir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_ref(), AtFlags::REMOVEDIR)?)
    }

    /// Makes a symbolic link.
    pub fn link(&self, target: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(symlinkat(target.as_ref(), &self.fd, name.as_ref())?)
    }

    /// Where the symbolic link `name` leads; `None` where there is nothing of that name.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for what is no link.
    pub fn link_target(&self, name: impl AsRef<OsStr>) -> io::Result<Option<PathBuf>> {
        match readlinkat(&self.fd, name.as_ref(), Vec::new()) {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The names in it that are of directories, or of anything else.
    pub fn names(&self, directories: bool) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            let kind = match entry.file_type() {
                // Some file systems do not tell here.
                FileType::Unknown => self.kind_of(&name)?.unwrap_or(FileType::Unknown),
                kind => kind,
            };
            if name != "." && name != ".." && (kind == FileType::Directory) == directories {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes the names in it durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }

    /// The open directory itself, to ask the kernel for what this type does not tell.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        File::from(self.fd.as_fd().try_clone_to_owned()?).metadata()
    }

    fn kind_of(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileType>> {
        match statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens the regular file `name`, no link, without waiting for the other end where the name is that of a pipe.
    fn open_file(&self, name: impl AsRef<OsStr>, access: OFlags) -> io::Result<File> {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name.as_ref(), flags, Mode::empty()).map_err(|e| match e {
            Errno::LOOP => io::Error::other("a symbolic link, which is not followed here"),
            e => e.into(),
        })?;
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(fd.into())
    }
}

impl Found {
    /// Who else than root and this process's user may write into the file at `path`, whose mode lets them or who own it.
    pub fn exposed(&self, path: &Path) -> io::Result<Option<Exposed>> {
        Ok(walk::judge_file(path, &fstat(&self.file)?))
    }
}

/// Reads the first `limit` bytes of the file `path`, which other users may write; follows no link that they may have put there.
pub fn read(path: &Path, limit: u64) -> io::Result<Found> {
    let (parent, name) = split(path)?;
    Dir::to_read(parent)?.read(name, limit)?.ok_or_else(|| Errno::NOENT.into())
}

/// Gives an open file the mode `mode`, whatever the umask.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    Ok(fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Directory and name of the file `path`.
fn split(path: &Path) -> io::Result<(&Path, OsString)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((parent.unwrap_or(Path::new(".")), OsString::from(name)))
}
