//! The init script of the Yocto layer, for systems without systemd: with dpkg's tools, and with busybox alone. In a directory of
//! its own, which stands for the root of the file system.
#![cfg(feature = "agent")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Running, TempDir, run, run_with_input, success, tool, wait_for};

const SCRIPT: &str = include_str!("../yocto/meta-boundkey/recipes-security/boundkey/files/boundkey.init");
/// Who the agent runs as, where the tests run as root.
const OTHER: (&str, &str, u32) = ("nobody", "nogroup", 65534);
/// What the script calls. All of it is in the busybox that openembedded-core configures; install(1), for one, is not.
const APPLETS: &[&str] =
    &["cat", "chmod", "chown", "grep", "kill", "mkdir", "mkfifo", "rm", "sh", "sleep", "start-stop-daemon", "tr"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tools {
    Busybox,
    Dpkg,
}

/// A system of its own, with a shell and tools. The agent is ended with it.
struct System {
    root: TempDir,
    tools: Tools,
}

impl System {
    fn new(tools: Tools) -> Self {
        let system = Self { root: TempDir::new("init"), tools };
        for dir in ["bin", "etc/default", "run", "usr/bin", "var/lib"] {
            fs::create_dir_all(system.root.join(dir)).unwrap();
        }
        let config = format!(
            "version: v1\nauth_server: 127.0.0.1:1\nca_pins: [\"sha256:{}\"]\nonboarding: {{join_method: bound_keypair, token: \
             gateway}}\nstorage: {{type: directory, path: {}}}\n",
            "0".repeat(64),
            system.root.join("var/lib/boundkey").display()
        );
        fs::write(system.root.join("etc/boundkey.yaml"), config).unwrap();
        system.install();
        fs::write(system.root.join("etc/init.d"), system.script()).unwrap();
        // In place of the one that writes to this machine's log.
        executable(&system.root.join("bin/logger"), &format!("#!/bin/sh\ncat >>{}\n", system.root.join("log").display()));
        match tools {
            Tools::Busybox => {
                let busybox = tool("busybox", "busybox");
                for name in APPLETS {
                    symlink(&busybox, system.root.join("bin").join(name)).unwrap();
                }
            }
            Tools::Dpkg => {
                let path = std::env::var("PATH").unwrap_or_default();
                let path = format!("{}:{path}:/usr/sbin:/sbin", system.root.join("bin").display());
                fs::write(system.root.join("path"), path).unwrap();
            }
        }
        fs::write(system.root.join("log"), "").unwrap();
        fs::set_permissions(system.root.join("log"), fs::Permissions::from_mode(0o666)).unwrap();
        system
    }

    /// The script with this system's paths, and with a user that there is.
    fn script(&self) -> String {
        let mut script = SCRIPT.to_owned();
        for dir in ["etc", "run", "usr", "var"] {
            for before in ["=", " "] {
                let (old, new) = (format!("{before}/{dir}/"), format!("{before}{}/", self.root.join(dir).display()));
                script = script.replace(&old, &new);
            }
        }
        if nix::unistd::geteuid().is_root() {
            return script.replace("boundkey:boundkey", &format!("{}:{}", OTHER.0, OTHER.1));
        }
        // Who is not root can become nobody else, and busybox cannot become who it is.
        let me = format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid());
        script.replace(" -c boundkey:boundkey", "").replace("boundkey:boundkey", &me)
    }

    fn program(&self) -> PathBuf {
        self.root.join("usr/bin/boundkey")
    }

    /// Puts the agent's program in place, also of one that runs. By a process of its own: a program that this one has open to write
    /// could not be started while another thread is about to start a program, which then has it open too.
    fn install(&self) {
        let new = self.root.join("usr/bin/new");
        success(Command::new("cp").arg(env!("CARGO_BIN_EXE_boundkey")).arg(&new));
        fs::rename(&new, self.program()).unwrap();
    }

    fn pid_file(&self) -> PathBuf {
        self.root.join("run/boundkey.pid")
    }

    /// From here on the script waits for the end of what it started. It gives that a second, which not every machine keeps.
    fn sleep_until_the_end(&self) {
        let sleep = self.root.join("bin/sleep");
        let _ = fs::remove_file(&sleep); // busybox's, if there is one
        let script = format!(
            "#!/bin/sh\ntries=0\nwhile /bin/sleep \"$1\" && [ $tries -lt 60 ] && process=$(cat {}) && \
             tr '\\0' '\\n' </proc/$process/cmdline | grep -qxF {}; do\n    tries=$((tries + 1))\ndone\n",
            self.pid_file().display(),
            self.program().display()
        );
        executable(&sleep, &script);
    }

    /// Exit code and output of the script.
    fn service(&self, action: &str) -> (i32, String) {
        let (shell, path) = match self.tools {
            Tools::Busybox => (self.root.join("bin/sh"), self.root.join("bin").display().to_string()),
            Tools::Dpkg => ("/bin/sh".into(), fs::read_to_string(self.root.join("path")).unwrap()),
        };
        let output = run(Command::new(shell).arg(self.root.join("etc/init.d")).arg(action).env("PATH", path));
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn expect(&self, action: &str, code: i32, text: &str) {
        let (got, said) = self.service(action);
        assert!(got == code && said.contains(text), "{:?}, {action}: exit code {got}\n{said}{}", self.tools, self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap()
    }

    /// The agent's process, once that is the agent.
    fn agent(&self) -> u32 {
        let process: u32 = fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap();
        wait_for("the shell to become the agent", || {
            fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|program| program == self.program())
        });
        process
    }

    /// Processes that have this directory in their command line: the agent, and its logger.
    fn processes(&self) -> Vec<Pid> {
        let ours = self.root.path().as_os_str().as_encoded_bytes();
        let is_ours =
            |dir: &Path| fs::read(dir.join("cmdline")).is_ok_and(|line| line.windows(ours.len()).any(|part| part == ours));
        let dirs = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        dirs.filter(|dir| is_ours(dir)).filter_map(|dir| dir.file_name()?.to_str()?.parse().ok().map(Pid::from_raw)).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // The logger ends with the agent, but not at the same instant.
        let agents =
            |process: &Pid| fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|path| path.starts_with(self.root.path()));
        let left: Vec<Pid> = self.processes().into_iter().filter(agents).collect();
        for process in &left {
            let _ = kill(*process, Signal::SIGKILL);
        }
        assert!(left.is_empty() || std::thread::panicking(), "the test left an agent behind");
    }
}

/// A program, made by a process of its own, as in [`System::install`].
fn executable(path: &Path, text: &str) {
    let made = run_with_input(Command::new("sh").args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path), text);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn with_both(test: fn(&System)) {
    test(&System::new(Tools::Dpkg));
    test(&System::new(Tools::Busybox));
}

#[test]
fn the_script_starts_reloads_and_stops_the_agent() {
    with_both(|system| {
        system.expect("status", 3, "does not run");
        system.expect("stop", 0, "");
        system.expect("reload", 7, "does not run");
        system.expect("sing", 2, "usage");

        system.expect("start", 0, "");
        let process = system.agent();
        system.expect("status", 0, &format!("process {process}"));
        let owner = if nix::unistd::geteuid().is_root() { OTHER.2 } else { nix::unistd::geteuid().as_raw() };
        assert_eq!(fs::metadata(format!("/proc/{process}")).unwrap().uid(), owner);
        wait_for("the agent's log", || system.log().contains("no connection"));
        assert_eq!(fs::metadata(system.root.join("var/lib/boundkey")).unwrap().mode() & 0o777, 0o700);
        system.expect("start", 0, "");
        system.expect("reload", 0, "");
        assert_eq!(system.agent(), process);

        system.expect("restart", 0, "");
        assert_ne!(system.agent(), process);
        system.expect("stop", 0, "");
        system.expect("status", 3, "does not run");
        system.expect("stop", 0, "");
        wait_for("the logger to end with the agent", || system.processes().is_empty());
    });
}

/// After an upgrade, the path of the agent's program reads "... (deleted)": stop found nothing to stop, and restart started a
/// second agent.
#[test]
fn an_agent_whose_program_was_replaced_is_stopped_and_restarted() {
    with_both(|system| {
        system.expect("start", 0, "");
        let process = system.agent();
        wait_for("the agent to take signals", || system.log().contains("no connection"));
        system.install();
        system.expect("status", 0, &format!("process {process}"));
        system.expect("reload", 0, "");
        system.expect("restart", 0, "");
        assert_ne!(system.agent(), process);
        wait_for("one agent and one logger", || system.processes().len() == 2);
        assert!(!system.log().contains("in use by another"), "{}", system.log());
        system.expect("stop", 0, "");
    });
}

#[test]
fn an_agent_that_ends_at_once_was_not_started() {
    with_both(|system| {
        system.expect("start", 0, "");
        wait_for("the agent to have its storage", || system.log().contains("no connection"));
        // Forgotten, as by a crash of the script, and still on its storage.
        let aside = system.root.join("run/aside");
        fs::rename(system.pid_file(), &aside).unwrap();
        system.sleep_until_the_end();
        system.expect("start", 1, "ended at once");
        wait_for("the reason", || system.log().contains("in use by another"));
        system.expect("status", 3, "does not run");
        fs::rename(&aside, system.pid_file()).unwrap();
        system.expect("stop", 0, "");

        fs::remove_file(system.root.join("etc/boundkey.yaml")).unwrap();
        system.expect("start", 6, "write one");
    });
}

/// The process is a shell before it is the agent; and its number may be another's after a crash.
#[test]
fn a_process_is_the_agents_by_its_command_line() {
    with_both(|system| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read line", "boundkey", "/run/boundkey.log"]).arg(system.program());
        let mut early = Running(shell.stdin(Stdio::piped()).spawn().unwrap());
        fs::write(system.pid_file(), format!("{}\n", early.0.id())).unwrap();
        system.expect("stop", 0, "");
        wait_for("its end", || early.0.try_wait().unwrap().is_some());

        let mut stranger = Running(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
        fs::write(system.pid_file(), format!("{}\n", stranger.0.id())).unwrap();
        system.expect("status", 3, "does not run");
        system.expect("stop", 0, "");
        system.expect("start", 0, "");
        assert_ne!(system.agent(), stranger.0.id());
        assert!(stranger.0.try_wait().unwrap().is_none());
        system.expect("stop", 0, "");
    });
}
