//! What can go wrong with an output, in words.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use boundkey_hal::ErrorKind as KeyErrorKind;
use boundkey_hal::dir::Exposed;

use crate::config::Output;
use crate::error::AgentError;

/// An output that was not written. The set of files that was there before still is.
#[derive(Debug)]
pub struct OutputError {
    /// Name of the output.
    pub output: String,
    /// What went wrong.
    pub fault: Fault,
}

/// What went wrong with an output.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// No key or certificate request could be made.
    Key(boundkey_hal::Error),
    /// There is a file that is not ours.
    NotOurs(PathBuf),
    /// No such group.
    NoGroup(String),
    /// The file system has no symbolic links.
    NoLinks(PathBuf),
    /// No such user.
    NoUser(String),
    /// Files could not be written.
    Storage(PathBuf, io::Error),
    /// The server's certificate cannot be used.
    Unusable(&'static str),
}

impl Fault {
    /// The same, with the output's name.
    pub(super) fn of(self, output: &Output) -> OutputError {
        OutputError { output: output.name.clone(), fault: self }
    }
}

impl OutputError {
    /// What to do next.
    pub fn advice(&self) -> String {
        if let Fault::Storage(_, e) = &self.fault
            && let Some(exposed) = Exposed::of(e)
        {
            let advice = exposed.advice();
            return format!("{advice}; a program gets its files by `owner` or `group`, not by a directory of its own");
        }
        self.fault.advice().to_owned()
    }
}

impl Fault {
    fn advice(&self) -> &'static str {
        match self {
            Fault::Key(e) if e.kind() == KeyErrorKind::Other => "try again; if it stays, report it with the log",
            Fault::Key(_) => {
                "nothing was overwritten; delete that key (its file, or `boundkey hsm delete-key NAME --yes`), and the next renewal makes \
                 another"
            }
            Fault::NotOurs(_) => "move it away, or give the output a directory of its own",
            Fault::NoGroup(_) => "create the group, or correct `group` in the destination",
            Fault::NoLinks(_) => "choose a directory on another file system, such as one under /run/boundkey",
            Fault::NoUser(_) => "create the user, or correct `owner` in the destination",
            Fault::Storage(_, e) => match e.kind() {
                io::ErrorKind::PermissionDenied => {
                    "let the user that boundkey runs as write there, and with `owner` or `group` set give it CAP_CHOWN"
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that file system",
                io::ErrorKind::ReadOnlyFilesystem => {
                    "mount it writable, or add it to ReadWritePaths of the unit (`boundkey install systemd` does)"
                }
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    "move away what is in its place, or choose another directory"
                }
                _ => "check that file system (dmesg tells of I/O errors)",
            },
            Fault::Unusable(_) => "nothing was written; upgrade the agent or the server, so that both are of the same version",
        }
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "output {}: ", self.output)?;
        match &self.fault {
            Fault::Key(e) => write!(f, "no key or certificate request: {e}"),
            Fault::NotOurs(path) => write!(f, "{} is not boundkey's and is not overwritten", path.display()),
            Fault::NoGroup(name) => write!(f, "there is no group {name}"),
            Fault::NoLinks(path) => write!(f, "the file system of {} has no symbolic links", path.display()),
            Fault::NoUser(name) => write!(f, "there is no user {name}"),
            // It names the directory itself, which may be one on the way.
            Fault::Storage(_, e) if Exposed::of(e).is_some() => write!(f, "not written: {e}"),
            Fault::Storage(path, e) => write!(f, "{}: {e}", path.display()),
            Fault::Unusable(why) => write!(f, "the server's answer cannot be used: {why}"),
        }
    }
}

impl std::error::Error for OutputError {}

impl From<OutputError> for AgentError {
    fn from(e: OutputError) -> Self {
        Self::Output(e.to_string(), e.advice())
    }
}

/// For `map_err`: an I/O error at `path`.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Fault {
    |e| Fault::Storage(path.to_path_buf(), e)
}
