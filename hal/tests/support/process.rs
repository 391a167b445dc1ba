//! Tests in a process of their own, and the tools they need.
//!
//! A PKCS#11 module is configured by environment variables and initialised once per process, so tests that need
//! different configurations cannot share one. Each runs the test program again, for itself alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Set in the inner process: the directory of the test.
const DIR: &str = "BOUNDKEY_TEST_DIR";
/// Set in further processes that a test starts: what they are to do.
const ROLE: &str = "BOUNDKEY_TEST_ROLE";

/// Environment variables for the inner process.
pub(crate) type Environment = Vec<(&'static str, OsString)>;

/// Runs `body`, the test `name`, in a process of its own, in a fresh directory and the environment that `prepare` made there.
pub(crate) fn isolated(name: &str, prepare: impl FnOnce(&Path) -> Environment, body: impl FnOnce(&Path)) {
    if let Some(dir) = std::env::var_os(DIR) {
        return body(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let environment = prepare(dir.path());
    let output = again(name).env(DIR, dir.path()).envs(environment).output().expect("run the test program again");
    let text = text(&output);
    // A misspelt name would run no test at all, successfully.
    assert!(output.status.success() && text.contains("test result: ok. 1 passed"), "{name} in its own process:\n{text}");
}

/// Another process of the running test `name`, for which [`role`] is `role`.
pub(crate) fn another(name: &str, role: &str) -> Child {
    again(name).env(ROLE, role).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the test program again")
}

/// What this process is to do, where it is one that [`another`] started.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Waits for a process that must succeed.
pub(crate) fn finish(child: Child) {
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}", text(&output));
}

/// The program `name`; a sentence says what to install where it is missing.
pub(crate) fn tool(name: &str, package: &str) -> Command {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&dirs).chain(["/usr/sbin".into(), "/sbin".into()]).map(|d| d.join(name)).find(|p| p.exists());
    Command::new(found.unwrap_or_else(|| panic!("this test needs {name}: apt-get install {package}")))
}

/// The first of `paths` that exists; a sentence says what to install where none does.
pub(crate) fn library(paths: &[&str], package: &str) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("this test needs {}: apt-get install {package}", paths[0]))
}

/// Runs `command`, which must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}:\n{}", text(&output));
    text(&output)
}

fn again(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}
