//! SoftHSM2 (package softhsm2): a PKCS#11 token in a directory, one per test.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{library, run, tool};

/// Label of the token that [`SoftHsm::new`] makes.
pub(crate) const LABEL: &str = "edge";
/// Its user PIN.
pub(crate) const PIN: &str = "right-pin";
/// Its security officer's PIN.
pub(crate) const SO_PIN: &str = "officer-pin";

/// A token store under a directory.
pub(crate) struct SoftHsm {
    dir: PathBuf,
}

impl SoftHsm {
    /// A store without tokens.
    pub(crate) fn blank(dir: &Path) -> Self {
        let this = Self::at(dir);
        fs::create_dir_all(this.tokens()).expect("token directory");
        let conf = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", this.tokens().display());
        fs::write(this.conf(), conf).expect("configuration");
        fs::write(this.pin_file(), format!("{PIN}\n")).expect("PIN file");
        this
    }

    /// A store with one token.
    pub(crate) fn new(dir: &Path) -> Self {
        let this = Self::blank(dir);
        this.add_token(LABEL);
        this
    }

    /// The store that one of the others made under `dir`.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// One more token.
    pub(crate) fn add_token(&self, label: &str) {
        let mut command = self.command("softhsm2-util", "softhsm2");
        run(command.args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN]));
    }

    /// A tool that sees this store.
    pub(crate) fn command(&self, name: &str, package: &str) -> Command {
        let mut command = tool(name, package);
        command.envs(self.environment());
        command
    }

    /// `pkcs11-tool`, logged in to the token.
    pub(crate) fn pkcs11_tool(&self) -> Command {
        let mut command = self.command("pkcs11-tool", "opensc");
        command.arg("--module").arg(module()).args(["--token-label", LABEL, "--login", "--pin", PIN]);
        command
    }

    /// What a process needs to see this store.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![("SOFTHSM2_CONF", self.conf().into())]
    }

    /// The configuration file.
    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    /// Where the tokens are, each a directory.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    /// A file with the right PIN.
    pub(crate) fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    /// The token as a URI, PIN and module included.
    pub(crate) fn uri(&self) -> String {
        format!("pkcs11:token={LABEL}?module-path={}&pin-source=file:{}", module().display(), self.pin_file().display())
    }
}

/// The module.
pub(crate) fn module() -> PathBuf {
    library(
        &[
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
            "/usr/lib64/pkcs11/libsofthsm2.so",
            "/usr/local/lib/softhsm/libsofthsm2.so",
        ],
        "softhsm2",
    )
}
