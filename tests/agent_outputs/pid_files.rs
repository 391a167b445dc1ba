//! PID files that somebody else wrote, and the processes that they name.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use boundkey::agent::config::{Output, Reload};
use boundkey::agent::outputs::Reloads;
use nix::sys::signal::Signal;

use super::{BOOT, is_root, output, reload_by};

const NOBODY: u32 = 65534;

/// A process that sleeps, of this user; ended when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn of(user: Option<u32>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Self(command.spawn().expect("sleep"))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_none()
    }

    fn end(mut self) -> ExitStatus {
        self.0.wait().expect("a child")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(pid_file: &Path) -> Result<(), String> {
    let reload = Reload::Signal { pid_file: pid_file.into(), signal: Signal::SIGTERM };
    reload_by(reload).0.run_all().map_err(|e| format!("{e}\n{}", e.advice()))
}

fn write(path: &Path, pid: u32, owner: u32, bits: u32) -> PathBuf {
    fs::write(path, format!("{pid}\n")).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).expect("mode");
    chown(path, Some(owner), None).expect("owner");
    path.into()
}

/// A user of the device wrote the process id of one of root's into the PID file of a program of that user, and the agent ended
/// it.
#[test]
fn a_pid_file_names_only_what_its_owner_could_signal() {
    if !is_root("PID files of another user") {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).expect("directory");
    chown(&theirs, Some(NOBODY), Some(NOBODY)).expect("owner");

    let mut root = Sleeper::of(None);
    let said = signal(&write(&theirs.join("pid"), root.id(), NOBODY, 0o644)).expect_err("refused");
    let expected = format!("belongs to user {NOBODY}, and names process {} of user 0, which that user may not signal", root.id());
    assert!(said.contains(&expected) && said.contains("as root or as the user that it runs as"), "{said}");
    // A link and a second name of a file that root wrote.
    let ours = write(&dir.path().join("ours"), root.id(), 0, 0o644);
    symlink(&ours, theirs.join("link")).expect("link");
    assert!(signal(&theirs.join("link")).expect_err("a link").contains("a symbolic link, which is not followed here"));
    symlink(dir.path(), theirs.join("dir")).expect("link");
    assert!(signal(&theirs.join("dir/ours")).expect_err("a link on the way").contains("may replace it"), "on the way");
    fs::hard_link(&ours, theirs.join("hard")).expect("link");
    assert!(signal(&theirs.join("hard")).expect_err("a second name").contains("it has a second name (hard link)"));
    fs::remove_file(theirs.join("hard")).expect("remove");
    // One that others may write.
    for bits in [0o664, 0o646] {
        let said = signal(&write(&dir.path().join("open"), root.id(), 0, bits)).expect_err("writable");
        assert!(said.contains("lets other users write: they may replace it") && said.contains("mode 0644"), "{said}");
    }
    // No pipe keeps the agent waiting.
    nix::unistd::mkfifo(&theirs.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("pipe");
    assert!(signal(&theirs.join("pipe")).expect_err("a pipe").contains("not a regular file"));
    assert!(root.lives());

    let other = Sleeper::of(Some(NOBODY));
    signal(&write(&theirs.join("pid"), other.id(), NOBODY, 0o644)).expect("their own");
    assert_eq!(other.end().signal(), Some(15));
    let other = Sleeper::of(Some(NOBODY));
    signal(&write(&theirs.join("by-root"), other.id(), 0, 0o644)).expect("root's word, of a process of theirs");
    assert_eq!(other.end().signal(), Some(15));
    signal(&ours).expect("root's word");
    assert_eq!(root.end().signal(), Some(15));
}

/// What a program left behind when it crashed names a process that has nothing to do with it, sooner or later.
#[test]
fn a_pid_file_from_before_the_process_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let reload = |pid_file: &Path| Reload::Signal { pid_file: pid_file.into(), signal: Signal::SIGTERM };
    let pid_file = dir.path().join("pid");
    let mut reloads = Reloads::default();
    let mut process = Sleeper::of(None);
    fs::write(&pid_file, process.id().to_string()).expect("write");
    let file = fs::File::options().write(true).open(&pid_file).expect("file");
    let written = file.metadata().and_then(|file| file.modified()).expect("time");
    file.set_modified(written - Duration::from_secs(3600)).expect("time");
    reloads.add(&Output { reload: Some(reload(&pid_file)), ..output(Path::new("/run/mqtt")) }, BOOT);
    let error = reloads.run_all().expect_err("an earlier run's").to_string();
    let expected = format!("{} was written before process {} began, so it means another", pid_file.display(), process.id());
    assert!(error.ends_with(&expected), "{error}");
    assert!(process.lives());
    fs::write(&pid_file, process.id().to_string()).expect("write");
    signal(&pid_file).expect("written since");
    assert_eq!(process.end().signal(), Some(15));
}
