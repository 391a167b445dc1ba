//! A software TPM as a PKCS#11 token: swtpm, a resource manager on a bus of its own, and tpm2-pkcs11.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::abrmd::{self, Abrmd, TCTI};
use super::process::{Environment, library, run, tool};
use super::swtpm::Swtpm;

/// Label, user PIN and security officer's PIN of the token.
pub(crate) const LABEL: &str = "edge-tpm";
pub(crate) const PIN: &str = "right-pin";
const SO_PIN: &str = "officer-pin";

/// The running daemons. The process that uses the token must have been started with [`environment`].
pub(crate) struct Tpm2Pkcs11 {
    pub(crate) swtpm: Swtpm,
    /// Without it, tpm2-pkcs11 runs out of the TPM's slots while it makes keys.
    resource_manager: Abrmd,
}

impl Tpm2Pkcs11 {
    /// Starts all and makes one token, its store in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let swtpm = Swtpm::start();
        let resource_manager = Abrmd::start(&swtpm, dir);
        fs::create_dir_all(dir.join("store")).expect("directory");
        run(&mut ptool(dir, "init"));
        run(ptool(dir, "addtoken").args(["--pid=1", "--label", LABEL, "--sopin", SO_PIN, "--userpin", PIN]));
        fs::write(pin_file(dir), PIN).expect("PIN file");
        Self { swtpm, resource_manager }
    }

    /// Takes TPM and resource manager away.
    pub(crate) fn down(&mut self) {
        self.resource_manager.stop();
        // In order, as at a reboot: after a sudden cut, the TPM counts a failed try.
        run(self.swtpm.tool("tpm2_shutdown").arg("--clear"));
        self.swtpm.cut_power();
    }

    /// Brings both back.
    pub(crate) fn up(&mut self) {
        self.swtpm.power_on();
        self.resource_manager.start_again(&self.swtpm);
    }
}

/// What a process needs to use the token whose store is in `dir`.
pub(crate) fn environment(dir: &Path) -> Environment {
    let set = |name, value: &str| (name, OsString::from(value));
    let [bus] = abrmd::environment(dir);
    vec![
        bus,
        ("TPM2_PKCS11_STORE", dir.join("store").into()),
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

fn ptool(dir: &Path, verb: &str) -> Command {
    let mut command = tool("tpm2_ptool", "libtpm2-pkcs11-tools");
    command.arg(verb).arg("--path").arg(dir.join("store")).env("TPM2TOOLS_TCTI", TCTI);
    command
}
