//! The few calls that durable state needs of a file system, as a trait: tests cut the power behind it.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::Dir;
use boundkey_hal::durable;

/// Longest file that is read whole.
const MAX_FILE: u64 = 256 * 1024;

/// Named files in one place.
pub trait Storage {
    /// The whole of `name`; `None` only if there is no such file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Overwrites part of `name`, which exists. Durable only after [`Storage::sync`]; until then a power cut may leave any mix.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all written to `name` durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Replaces `name` whole, or makes it: after a power cut it is the old or the new one. Durable on return.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

impl Storage for Box<dyn Storage> {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        (**self).read(name)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        (**self).sync(name)
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        (**self).replace(name, bytes)
    }
}

/// A directory of the file system. Files are 0600.
///
/// The directory is found anew for each call, as it may be mounted anew while an agent runs. What is written goes to a directory that
/// nobody may write but root and this process's user, or nowhere; reading is for anybody.
#[derive(Debug)]
pub struct DirStorage {
    dir: PathBuf,
}

impl DirStorage {
    /// Storage in `dir`, which is made if missing, private to its owner. Names that a process put there and did not live to make
    /// durable are made so: keys among them.
    pub fn create(dir: &Path) -> io::Result<Self> {
        durable::create_dir(dir)?.sync()?;
        Ok(Self::open(dir))
    }

    /// Storage in `dir` as it is.
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }
}

impl Storage for DirStorage {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match Dir::to_read(&self.dir).and_then(|dir| dir.read(name, MAX_FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok(found?.map(|found| found.content.to_vec())),
        }
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Dir::open(&self.dir)?.write(name)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let found = Dir::to_read(&self.dir)?.read(name, 0)?;
        found.ok_or(io::ErrorKind::NotFound)?.file.sync_data()
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        Dir::open(&self.dir)?.replace(name, bytes, durable::PRIVATE_FILE)
    }
}
