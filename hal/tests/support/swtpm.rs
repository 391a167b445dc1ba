//! A software TPM for one test: on loopback, its state in a temporary directory, killed when the test ends.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::port::Port;
use super::process::{run, tool};

pub(crate) struct Swtpm {
    // An absolute path: with a relative one every command of swtpm fails.
    state: tempfile::TempDir,
    port: u16,
    _ports: [Port; 2],
    child: Child,
    /// What it finds in its environment.
    environment: Vec<(&'static str, OsString)>,
    turn: Option<MutexGuard<'static, ()>>,
}

/// libtss2 opens its sockets without O_CLOEXEC. A program that one test starts inherits the conversation of another, and
/// swtpm, which serves one at a time, waits for that program to end. So one test after the other.
static TURN: Mutex<()> = Mutex::new(());

/// For the same reason, a program started while a thread of the test talks to the TPM: it would wait for itself.
const WITHOUT_OTHERS_FILES: &str = r#"for file in /proc/self/fd/*; do
    number=${file##*/}
    if [ "$number" -gt 2 ]; then eval "exec $number>&-"; fi
done
exec "$0" "$@""#;

impl Swtpm {
    /// A new TPM, while no other test of this program that asks for its turn runs.
    pub(crate) fn alone() -> Self {
        Self::alone_in(Vec::new())
    }

    /// The same, in this environment.
    pub(crate) fn alone_in(environment: Vec<(&'static str, OsString)>) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tpm = Self::start_in(environment);
        tpm.turn = Some(turn);
        tpm
    }

    /// A new TPM, started.
    pub(crate) fn start() -> Self {
        Self::start_in(Vec::new())
    }

    fn start_in(environment: Vec<(&'static str, OsString)>) -> Self {
        let state = tempfile::tempdir().expect("temporary directory");
        // libtss2 expects the control channel on the second.
        let (port, ports) = Port::two();
        let child = launch(state.path(), port, &environment);
        Self { state, port, _ports: ports, child, environment, turn: None }
    }

    /// Where libtss2 finds it.
    pub(crate) fn tcti(&self) -> String {
        tcti(self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its state is, and where [`Swtpm::tool`] runs.
    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// A store with the key files in `dir`, that gives up later than the default: the machine may be slow.
    #[cfg(feature = "tpm")]
    pub(crate) fn config(&self, dir: &Path) -> boundkey_hal::tpm::Config {
        let tcti = boundkey_hal::tpm::Tcti::parse(&self.tcti()).expect("a TCTI");
        boundkey_hal::tpm::Config { time_limit: Duration::from_secs(120), ..boundkey_hal::tpm::Config::new(dir, tcti) }
    }

    /// A power cut: no shutdown command, no saved state.
    pub(crate) fn cut_power(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Power is back: the same TPM, at the same place.
    pub(crate) fn power_on(&mut self) {
        self.child = launch(self.state.path(), self.port, &self.environment);
    }

    /// Makes it hang, or go on.
    pub(crate) fn signal(&self, signal: &str) {
        run(tool("kill", "procps").arg(signal).arg(self.child.id().to_string()));
    }

    /// One of tpm2-tools, to be run on it.
    pub(crate) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", WITHOUT_OTHERS_FILES]).arg(tool(name, "tpm2-tools").get_program());
        command.env("TPM2TOOLS_TCTI", self.tcti()).env("TSS2_LOG", "all+none").current_dir(self.state.path());
        command
    }

    /// Handles of all loaded objects and sessions.
    pub(crate) fn loaded(&self) -> String {
        ["handles-transient", "handles-loaded-session", "handles-saved-session"]
            .map(|kind| run(self.tool("tpm2_getcap").arg(kind)))
            .concat()
    }

    /// A variable property, such as the number of failed tries.
    pub(crate) fn property(&self, name: &str) -> u32 {
        let all = run(self.tool("tpm2_getcap").arg("properties-variable"));
        let line = all.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("no {name} in {all}"));
        let number = line.rsplit(' ').next().expect("a value");
        u32::from_str_radix(number.trim_start_matches("0x"), 16).expect("a hexadecimal number")
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // It may be dead already, by the test's doing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn tcti(port: u16) -> String {
    format!("swtpm:host=127.0.0.1,port={port}")
}

/// Starts swtpm and waits until it answers.
fn launch(state: &Path, port: u16, environment: &[(&str, OsString)]) -> Child {
    // Written once swtpm has both ports: that something answers there would not tell whose swtpm it is.
    let ready = state.join("pid");
    let _ = std::fs::remove_file(&ready);
    let mut child = tool("swtpm", "swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
        .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
        .arg("--pid")
        .arg(format!("file={}", ready.display()))
        .envs(environment.iter().cloned())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start swtpm");
    for _ in 0..3000 {
        if let Some(status) = child.try_wait().expect("state of swtpm") {
            panic!("swtpm does not start: {status}");
        }
        if ready.exists() {
            return child;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("swtpm runs but does not listen");
}
