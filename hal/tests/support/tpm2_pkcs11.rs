//! A software TPM as a PKCS#11 token: swtpm, a resource manager on a bus of its own, and tpm2-pkcs11.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::process::{Environment, library, run, tool};
use super::swtpm::Swtpm;

/// Label, user PIN and security officer's PIN of the token.
pub(crate) const LABEL: &str = "edge-tpm";
pub(crate) const PIN: &str = "right-pin";
const SO_PIN: &str = "officer-pin";

const TCTI: &str = "tabrmd:bus_type=session";

/// The running daemons. The process that uses the token must have been started with [`environment`].
pub(crate) struct Tpm2Pkcs11 {
    pub(crate) swtpm: Swtpm,
    bus: Child,
    resource_manager: Child,
}

impl Tpm2Pkcs11 {
    /// Starts all and makes one token, its store in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let swtpm = Swtpm::start();
        let address = format!("--address={}", bus_address(dir));
        let bus = quiet(tool("dbus-daemon", "dbus").args(["--session", "--nofork", &address]));
        wait_until("the bus listens", || dir.join("bus").exists());
        let resource_manager = resource_manager(&swtpm);
        fs::create_dir_all(dir.join("store")).expect("directory");
        run(&mut ptool(dir, "init"));
        run(ptool(dir, "addtoken").args(["--pid=1", "--label", LABEL, "--sopin", SO_PIN, "--userpin", PIN]));
        fs::write(pin_file(dir), PIN).expect("PIN file");
        Self { swtpm, bus, resource_manager }
    }

    /// Takes TPM and resource manager away.
    pub(crate) fn down(&mut self) {
        stop(&mut self.resource_manager);
        // In order, as at a reboot: after a sudden cut, the TPM counts a failed try.
        run(self.swtpm.tool("tpm2_shutdown").arg("--clear"));
        self.swtpm.cut_power();
    }

    /// Brings both back.
    pub(crate) fn up(&mut self) {
        self.swtpm.power_on();
        self.resource_manager = resource_manager(&self.swtpm);
    }
}

impl Drop for Tpm2Pkcs11 {
    fn drop(&mut self) {
        stop(&mut self.resource_manager);
        stop(&mut self.bus);
    }
}

/// What a process needs to use the token whose store is in `dir`.
pub(crate) fn environment(dir: &Path) -> Environment {
    let set = |name, value: &str| (name, OsString::from(value));
    vec![
        ("TPM2_PKCS11_STORE", dir.join("store").into()),
        set("DBUS_SESSION_BUS_ADDRESS", &bus_address(dir)),
        set("TPM2_PKCS11_TCTI", TCTI),
        set("TPM2_PKCS11_LOG_LEVEL", "0"),
        set("TSS2_LOG", "all+none"),
    ]
}

/// A file with the right PIN.
pub(crate) fn pin_file(dir: &Path) -> PathBuf {
    dir.join("pin")
}

/// The module.
pub(crate) fn module() -> PathBuf {
    library(
        &[
            "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
            "/usr/lib/aarch64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
            "/usr/lib64/pkcs11/libtpm2_pkcs11.so",
        ],
        "libtpm2-pkcs11-1",
    )
}

fn bus_address(dir: &Path) -> String {
    format!("unix:path={}", dir.join("bus").display())
}

fn ptool(dir: &Path, verb: &str) -> Command {
    let mut command = tool("tpm2_ptool", "libtpm2-pkcs11-tools");
    command.arg(verb).arg("--path").arg(dir.join("store")).env("TPM2TOOLS_TCTI", TCTI);
    command
}

/// Without one, tpm2-pkcs11 runs out of the TPM's slots while it makes keys.
fn resource_manager(swtpm: &Swtpm) -> Child {
    library(
        &["/usr/lib/x86_64-linux-gnu/libtss2-tcti-tabrmd.so.0", "/usr/lib/aarch64-linux-gnu/libtss2-tcti-tabrmd.so.0"],
        "libtss2-tcti-tabrmd0",
    );
    let tcti = format!("--tcti={}", swtpm.tcti());
    let child = quiet(tool("tpm2-abrmd", "tpm2-abrmd").args(["--session", "--allow-root", &tcti]));
    let mut ask = tool("tpm2_getcap", "tpm2-tools");
    ask.args(["--tcti", TCTI, "properties-fixed"]).stdout(Stdio::null()).stderr(Stdio::null());
    wait_until("the resource manager answers", || ask.status().expect("run").success());
    child
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start")
}

fn stop(child: &mut Child) {
    // It may have ended by itself, when what it talks to did.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("still waiting after 5 s, until {what}");
}
