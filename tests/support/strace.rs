//! Processes that die before a system call of the test's choice, or see it fail, by strace(1).

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::{TempDir, run, tool, wrapped};

/// `command`, under strace with these options.
fn traced(command: &Command, options: &[&str]) -> Command {
    let mut strace = Command::new(tool("strace", "strace"));
    strace.args(["-f", "-qq"]).args(options).arg("--");
    wrapped(strace, command)
}

/// How often `command` makes each of `calls`, where it makes any. It must succeed.
pub fn count_calls(command: &Command, calls: &[&str]) -> BTreeMap<String, usize> {
    count_calls_on(command, calls, &[])
}

/// The same, of calls that have to do with one of these files or directories.
pub fn count_calls_on(command: &Command, calls: &[&str], paths: &[PathBuf]) -> BTreeMap<String, usize> {
    let dir = TempDir::new("strace");
    let log = dir.join("log");
    let (trace, log_path) = (format!("trace={}", calls.join(",")), log.display().to_string());
    let paths = path_options(paths);
    let options = ["-e", &trace, "-o", &log_path].into_iter().chain(paths.iter().map(String::as_str)).collect::<Vec<_>>();
    let output = run(&mut traced(command, &options));
    assert!(output.status.success(), "strace: {}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(log).expect("strace's log");
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        // "PID call(arguments) = result"; a call that was interrupted by a line of another thread goes on later in brackets.
        let call = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('(')).map(|(call, _)| call);
        if let Some(call) = call.filter(|call| calls.contains(call)) {
            *counts.entry(call.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

/// `command`, killed with SIGKILL when it is about to make `call` for the `nth` time, counted by thread.
pub fn killed_at(command: &Command, call: &str, nth: usize) -> Command {
    let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
    traced(command, &["-e", &format!("trace={call}"), "-e", &inject, "-o", "/dev/null"])
}

/// The same, where the process itself is to be the child, so that it can be waited for and killed: strace stays aside.
pub fn killed_aside_at(command: &Command, call: &str, nth: usize) -> Command {
    let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
    traced(command, &["-D", "-e", &format!("trace={call}"), "-e", &inject, "-o", "/dev/null"])
}

/// `command`, of which the `nth` `call` on these files and directories fails with `error` and does nothing.
pub fn failing_at(command: &Command, call: &str, nth: usize, error: &str, paths: &[PathBuf]) -> Command {
    failing(command, &[], call, nth, error, paths)
}

/// The same, where the process itself is to be the child, so that it can be signalled and waited for: strace stays aside.
pub fn failing_aside_at(command: &Command, call: &str, nth: usize, error: &str, paths: &[PathBuf]) -> Command {
    failing(command, &["-D"], call, nth, error, paths)
}

fn failing(command: &Command, more: &[&str], call: &str, nth: usize, error: &str, paths: &[PathBuf]) -> Command {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={nth}"));
    let paths = path_options(paths);
    let options = ["-e", &trace, "-e", &inject, "-o", "/dev/null"];
    let options = more.iter().copied().chain(options).chain(paths.iter().map(String::as_str));
    traced(command, &options.collect::<Vec<_>>())
}

fn path_options(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().flat_map(|path| ["-P".to_owned(), path.display().to_string()]).collect()
}

/// Whether it came to that: strace ends as the command did.
pub fn was_killed(output: &Output) -> bool {
    output.status.signal() == Some(9)
}
