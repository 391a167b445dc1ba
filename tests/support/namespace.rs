//! Mounts and networks of a test's own (namespaces(7)): nobody else sees them, and they go with the test.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::{Running, not_tried, path, success, tool, wrapped};

/// What a namespace is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Mounts,
    Network,
}

impl Kind {
    fn option(self) -> &'static str {
        match self {
            Self::Mounts => "--mount",
            Self::Network => "--net",
        }
    }
}

/// Namespaces that live as long as this value, or as a process in them.
pub struct Namespace {
    kinds: Vec<Kind>,
    holder: Running,
    /// Whether a namespace of users lets us do what is root's.
    has_users: bool,
}

impl Namespace {
    /// New namespaces. `None`, which says so, where this user may not have any; root must.
    pub fn new(kinds: &[Kind]) -> Option<Self> {
        let has_users = !nix::unistd::geteuid().is_root();
        let mut unshare = unshare(kinds);
        if has_users {
            unshare.args(["--user", "--map-root-user"]);
        }
        let Some(holder) = held(unshare) else {
            assert!(has_users, "root has no namespaces of {kinds:?}");
            not_tried(&format!("this user may not have namespaces of {kinds:?}"));
            return None;
        };
        Some(Self { kinds: kinds.to_vec(), holder, has_users })
    }

    /// More namespaces of these kinds, with the same users: who is root in the one is root in the other, and may lay a cable between.
    pub fn beside(&self) -> Self {
        let holder = held(self.enter(&unshare(&self.kinds)));
        Self { kinds: self.kinds.clone(), holder: holder.expect("root in here may have namespaces"), has_users: self.has_users }
    }

    /// `command`, run in here. It becomes the process that is started, and takes its signals.
    pub fn enter(&self, command: &Command) -> Command {
        let mut nsenter = Command::new(tool("nsenter", "util-linux"));
        nsenter.args(["--target", &self.holder.0.id().to_string()]).args(self.kinds.iter().map(|kind| kind.option()));
        if self.has_users {
            nsenter.args(["--user", "--preserve-credentials"]);
        }
        nsenter.arg("--");
        wrapped(nsenter, command)
    }

    /// Runs a line of shell in here, with `$1` and so on; it must succeed. It finds root's programs, whatever user runs the test.
    pub fn shell(&self, line: &str, args: &[&str]) -> String {
        let mut shell = Command::new("sh");
        shell.args(["-euc", line, "sh"]).args(args).env("PATH", std::env::join_paths(path()).expect("a path"));
        String::from_utf8(success(&mut self.enter(&shell)).stdout).expect("UTF-8")
    }

    /// The process that holds the namespaces: `ip link set DEVICE netns PID`.
    pub fn pid(&self) -> String {
        self.holder.0.id().to_string()
    }
}

fn unshare(kinds: &[Kind]) -> Command {
    let mut unshare = Command::new(tool("unshare", "util-linux"));
    unshare.args(kinds.iter().map(|kind| kind.option()));
    unshare
}

/// The process that holds the namespaces of `unshare`; `None` where there are none.
fn held(mut unshare: Command) -> Option<Running> {
    // Ends with its input, so also with a test that was killed.
    unshare.args(["sh", "-c", "echo ready && exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Running(unshare.spawn().expect("unshare starts"));
    let mut line = String::new();
    BufReader::new(holder.0.stdout.take().expect("stdout")).read_line(&mut line).expect("output");
    (line == "ready\n").then_some(holder)
}
