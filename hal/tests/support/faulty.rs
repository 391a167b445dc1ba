//! A PKCS#11 module that passes everything on to SoftHSM2, writes down what it was asked, and fails on demand.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::process::{run, tool};
use super::softhsm;

/// Token flags (PKCS#11 2.40, table 8).
pub(crate) const USER_PIN_FINAL_TRY: u64 = 0x2_0000;
pub(crate) const USER_PIN_LOCKED: u64 = 0x4_0000;
pub(crate) const SO_PIN_FINAL_TRY: u64 = 0x20_0000;

/// Return values (PKCS#11 2.40, section 6.1.1 and onwards).
pub(crate) const GENERAL_ERROR: u64 = 0x05;
pub(crate) const FUNCTION_FAILED: u64 = 0x06;
pub(crate) const DEVICE_REMOVED: u64 = 0x32;
pub(crate) const PIN_LOCKED: u64 = 0xa4;

/// The module and its orders, in a directory.
pub(crate) struct Faulty {
    dir: PathBuf,
}

impl Faulty {
    /// Builds the module.
    pub(crate) fn new(dir: &Path) -> Self {
        let this = Self::at(dir);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faulty.c");
        fs::create_dir_all(&this.dir).expect("directory");
        run(tool("cc", "gcc").args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(this.module()).arg(source).arg("-ldl"));
        this
    }

    /// The one that [`Faulty::new`] built under `dir`.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.join("faulty") }
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![("FAULTY_DIR", self.dir.clone().into()), ("FAULTY_MODULE", softhsm::module().into())]
    }

    pub(crate) fn module(&self) -> PathBuf {
        self.dir.join("module.so")
    }

    /// Lets the next `times` calls of `function` return `code` without being passed on.
    pub(crate) fn refuse(&self, function: &str, code: u64, times: usize) {
        self.order(function, code, times);
    }

    /// Passes the next `times` calls of `function` on, and then returns `code` though they may have worked.
    pub(crate) fn lose_answer(&self, function: &str, code: u64, times: usize) {
        self.order(&format!("{function}.after"), code, times);
    }

    /// Flips a bit in the next `times` signatures.
    pub(crate) fn flip_signatures(&self, times: usize) {
        self.order("flip", 0, times);
    }

    /// Reports private keys as extractable, the next `times` times.
    pub(crate) fn claim_extractable(&self, times: usize) {
        self.order("extractable", 0, times);
    }

    /// Adds `flags` to those of every token.
    pub(crate) fn token_flags(&self, flags: u64) {
        self.order("flags", flags, 1_000_000);
    }

    /// How often `function` was called since the last [`Faulty::forget`].
    pub(crate) fn calls(&self, function: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        log.lines().filter(|line| *line == function).count()
    }

    /// Starts counting from nothing.
    pub(crate) fn forget(&self) {
        fs::write(self.dir.join("calls"), "").expect("write");
    }

    fn order(&self, name: &str, code: u64, times: usize) {
        fs::write(self.dir.join(name), format!("{code} {times}")).expect("write");
    }
}
