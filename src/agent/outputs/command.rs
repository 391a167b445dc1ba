//! The program of `reload.command`: where it is, and whether anybody else may say what it is.
//!
//! It runs as the agent's user, so only root and that user may write the program and the directories on the way to it. That is judged
//! before each run. Nobody else can change it between the judgement and the run, for nobody else may write on the way. What the program
//! reads in turn, such as a script among its arguments, is not looked at.

use std::io;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{Dir, Exposed};
use nix::unistd::{AccessFlags, access};
use rustix::io::Errno;

/// Where programs are looked for without `PATH`, as execvp(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The file that `program` names, which only root and this process's user may replace or rewrite.
///
/// # Errors
/// [`Exposed`] where others may; or it cannot be found.
pub fn locate(program: &str) -> io::Result<PathBuf> {
    let path = find(program).ok_or(Errno::NOENT)?;
    Dir::check_program(&path)?;
    Ok(path)
}

/// What to do about a program that others may write.
pub fn advice(exposed: &Exposed) -> String {
    let path = exposed.path.display();
    let mend = if exposed.is_foreign { "run chown root" } else { "run chmod go-w" };
    format!("{mend} {path}, or let `command` name a program elsewhere")
}

/// Whether `path` is a file that this process's user may run.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// What execvp(3) finds from `/`, where commands run: the path itself where there is a slash in it, and else the first executable file of
/// that name in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let root = Path::new("/");
    if program.contains('/') {
        return Some(root.join(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path).map(|dir| root.join(dir).join(program)).find(|file| is_executable(file))
}
