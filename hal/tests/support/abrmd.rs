//! tpm2-abrmd: a resource manager in front of a software TPM, on a bus of its own.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::process::{library, tool};
use super::swtpm::Swtpm;

/// Where libtss2 finds it, in the right [`environment`].
pub(crate) const TCTI: &str = "tabrmd:bus_type=session";

/// The running daemons.
pub(crate) struct Abrmd {
    address: OsString,
    bus: Child,
    manager: Child,
}

impl Abrmd {
    /// In front of `tpm`, the bus in `dir`.
    pub(crate) fn start(tpm: &Swtpm, dir: &Path) -> Self {
        let [(_, address)] = environment(dir);
        let bus = quiet(tool("dbus-daemon", "dbus").args(["--session", "--nofork", &format!("--address={}", address.display())]));
        // Its name is there before it listens.
        wait_until("the bus listens", || UnixStream::connect(dir.join("bus")).is_ok());
        let manager = launch(tpm, &address);
        Self { address, bus, manager }
    }

    /// One of tpm2-tools, to be run through it.
    pub(crate) fn tool(&self, name: &str) -> Command {
        tools(name, &self.address)
    }

    pub(crate) fn stop(&mut self) {
        end(&mut self.manager);
    }

    pub(crate) fn start_again(&mut self, tpm: &Swtpm) {
        self.manager = launch(tpm, &self.address);
    }
}

impl Drop for Abrmd {
    fn drop(&mut self) {
        self.stop();
        end(&mut self.bus);
    }
}

/// What a process needs to find the one that has its bus in `dir`.
pub(crate) fn environment(dir: &Path) -> [(&'static str, OsString); 1] {
    [("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", dir.join("bus").display()).into())]
}

fn launch(tpm: &Swtpm, address: &OsString) -> Child {
    library(
        &["/usr/lib/x86_64-linux-gnu/libtss2-tcti-tabrmd.so.0", "/usr/lib/aarch64-linux-gnu/libtss2-tcti-tabrmd.so.0"],
        "libtss2-tcti-tabrmd0",
    );
    let mut command = tool("tpm2-abrmd", "tpm2-abrmd");
    command.args(["--session", "--allow-root", &format!("--tcti={}", tpm.tcti())]).env("DBUS_SESSION_BUS_ADDRESS", address);
    let manager = quiet(&mut command);
    wait_until("the resource manager answers", || {
        let mut ask = tools("tpm2_getcap", address);
        ask.arg("properties-fixed").stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run").success()
    });
    manager
}

fn tools(name: &str, address: &OsString) -> Command {
    let mut command = tool(name, "tpm2-tools");
    command.env("DBUS_SESSION_BUS_ADDRESS", address).env("TPM2TOOLS_TCTI", TCTI).env("TSS2_LOG", "all+none");
    command
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start")
}

fn end(child: &mut Child) {
    // It may have ended by itself, when what it talks to did.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("still waiting after a minute, until {what}");
}
