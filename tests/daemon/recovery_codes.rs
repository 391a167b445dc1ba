//! `boundkey recovery-code`: a new key at that moment, beside a daemon and without one.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use boundkey::join::{RecoveryCode, Thumbprint};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::support::said::said;
use super::support::strace::failing_at;
use super::support::{Device, Running, Server, TempDir, copy_program, is_root, run, success, tool, wait_for};
use super::{count, end};

/// What the command prints as JSON; it must succeed.
pub fn recovery_code(device: &Device) -> Value {
    let printed = success(&mut device.command(&["recovery-code", "--format", "json"]));
    let told: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    let thumbprint: Thumbprint = told["thumbprint"].as_str().expect("a thumbprint").parse().expect("a thumbprint");
    let code: RecoveryCode = told["code"].as_str().expect("a code").parse().expect("a code");
    assert!(code.matches(thumbprint), "{told}");
    assert_eq!(told["command"], format!("boundkeyctl exempt token/{} --key {code}", device.token));
    assert_eq!(device.status()["recovery_code"], told["code"], "status shows it");
    told
}

fn has_joined(device: &Device) -> bool {
    device.status()["generation"].is_u64()
}

/// Files of the storage that begin so.
fn files(device: &Device, start: &str) -> Vec<String> {
    let names = std::fs::read_dir(device.storage()).expect("a directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    names
}

fn no_request_is_left(device: &Device) {
    assert_eq!(files(device, "recovery-code"), [""; 0], "nothing is left of it");
}

/// Has the device rotate its key, and expects it to take this one.
fn rotates_to(server: &Server, device: &Device, key: &Value) {
    server.ctl(&["rotate", &format!("token/{}", device.token)]);
    device.join();
    let status = device.status();
    assert_eq!((&status["keystore"]["thumbprint"], &status["recovery_code"]), (key, &Value::Null));
}

#[test]
fn a_daemon_makes_the_key_at_once_whatever_it_waits_for() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let daemon = device.daemon();
    wait_for("a join", || has_joined(&device));
    let lock = server.ctl(&["lock", "--token", "gw"]);
    let first = recovery_code(&device);
    no_request_is_left(&device);
    // Refused, it waits with backoff, and is asked again.
    wait_for("a refusal", || device.status()["last_error"]["type"] == "locked");
    let second = recovery_code(&device);
    assert_ne!(first["code"], second["code"], "each is of a key of its own");
    assert_eq!(files(&device, "key-").len(), 3, "no key is deleted");
    server.ctl(&["rm", lock.split(' ').next().expect("a lock")]);
    server.ctl(&["rotate", "token/gw"]);
    daemon.signal(Signal::SIGUSR1);
    wait_for("a rotation", || count(&server, "gw", "key.rotated") == 1 && server.was_heard(&device));
    assert_eq!(device.status()["keystore"]["thumbprint"], second["thumbprint"]);
    assert_eq!(device.status()["recovery_code"], Value::Null, "it was used");
    end(daemon, Signal::SIGTERM, &device);
}

#[test]
fn without_a_daemon_the_command_makes_the_key_itself() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = recovery_code(&device);
    let text = String::from_utf8(success(&mut device.command(&["recovery-code"])).stdout).expect("UTF-8");
    let code = device.status()["recovery_code"].as_str().expect("a code").to_owned();
    assert!(text.contains(&format!("boundkeyctl exempt token/gw --key {code}")), "{text}");
    assert_ne!(first["code"], code);
    let status = String::from_utf8(success(&mut device.command(&["status"])).stdout).expect("UTF-8");
    assert!(status.contains(&format!("recovery code {code}")), "{status}");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("UTF-8");
    assert!(doctor.contains(&format!("{code} waits for `boundkeyctl exempt token/gw --key {code}`")), "{doctor}");
    // What was used before goes on until the server asks for another.
    device.join();
    assert_eq!(device.status()["recovery_code"], json!(code));
    let newest = recovery_code(&device);
    rotates_to(&server, &device, &newest["thumbprint"]);
}

/// A technician who is not sure calls again and again: the bound key stays, and there is an end to keys.
#[test]
fn codes_without_end_cost_no_key_that_was_bound() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    for _ in 0..12 {
        recovery_code(&device);
    }
    assert_eq!(files(&device, "key-").len(), 10);
    assert!(files(&device, "key-").contains(&"key-bound-1.pem".into()), "the bound key");
    device.join();
    let last = recovery_code(&device);
    rotates_to(&server, &device, &last["thumbprint"]);
}

/// A key that a power cut left without a name may have been copied since: it is not the key of a code.
#[test]
fn a_key_that_was_there_already_is_passed_over() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let left = device.storage().join("key-bound-2.pem");
    std::fs::copy(device.storage().join("key-bound-1.pem"), &left).expect("a key");
    assert_eq!(recovery_code(&device)["key"], "bound-3");
    assert!(left.exists(), "nothing is deleted");
}

/// A command that was ended leaves its request: it is not to make a later code void.
#[test]
fn a_request_that_was_left_behind_makes_no_code_void() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let request = device.storage().join("recovery-code.request");
    for left in ["00112233-4455-6677-8899-aabbccddeeff", "", "\u{1b}"] {
        std::fs::write(&request, left).expect("a request");
        let code = recovery_code(&device)["code"].clone();
        no_request_is_left(&device);
        device.join();
        assert_eq!(device.status()["recovery_code"], code);
    }
    // One that cannot be read costs no join.
    std::fs::write(&request, "rubbish").expect("a request");
    device.join();
    assert!(!request.exists());
}

/// An operator had ordered a rotation, and nothing keeps the device out: the key that the daemon makes is bound by its next join, and its
/// code would keep the device out for good. It is either printed before, and refused at the desk, or not printed.
#[test]
fn a_key_that_the_server_took_at_once_is_no_way_back() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let daemon = device.daemon();
    wait_for("a join", || has_joined(&device));
    server.ctl(&["rotate", "token/gw"]);
    let output = run(&mut device.command(&["recovery-code", "--format", "json"]));
    wait_for("the rotation", || count(&server, "gw", "key.rotated") == 1 && server.was_heard(&device));
    if output.status.success() {
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let code = told["code"].as_str().expect("a code");
        let refused = run(&mut server.ctl_command(&["exempt", "token/gw", "--key", code]));
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    } else {
        assert!(said(&output).error.contains("the server took the new key at once"));
    }
    end(daemon, Signal::SIGTERM, &device);
    assert_eq!(device.status()["recovery_code"], Value::Null);
    let next = recovery_code(&device);
    rotates_to(&server, &device, &next["thumbprint"]);
}

/// What keeps the daemon from making a key is told where the command was given, and the daemon goes on.
#[test]
fn what_the_daemon_could_not_do_is_told() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let daemon = device.daemon();
    wait_for("a join", || has_joined(&device));
    for number in 2..20 {
        std::fs::write(device.storage().join(format!("key-bound-{number}.pem")), "no key").expect("written");
    }
    let told = said(&run(&mut device.command(&["recovery-code"])));
    assert_eq!(told.code, 7, "{told:?}");
    assert!(told.error.starts_with("key store: "), "{told:?}");
    no_request_is_left(&device);
    daemon.signal(Signal::SIGUSR1);
    wait_for("a renewal", || count(&server, "gw", "join.renewal") >= 1);
    end(daemon, Signal::SIGTERM, &device);
}

/// A medium that is full or cannot be written to, without a daemon and beside one: a sentence, no code, and nothing is lost.
#[test]
fn a_medium_that_takes_nothing_is_named() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let refused = |error: &str, advice: &str| {
        let command = device.command(&["recovery-code"]);
        let told = said(&run(&mut failing_at(&command, "renameat", 1, error, &[])));
        assert!(told.code == 8 && told.advice.contains(advice), "{told:?}");
        assert_eq!(device.status()["recovery_code"], Value::Null);
    };
    refused("ENOSPC", "make room on the file system of storage.path");
    refused("EROFS", "writable");
    let daemon = device.daemon();
    wait_for("a renewal", || server.events("gw").len() == 2 && server.was_heard(&device));
    refused("ENOSPC", "make room on the file system of storage.path");
    refused("EROFS", "writable");
    assert!(!device.storage().join("recovery-code.request").exists());
    recovery_code(&device);
    no_request_is_left(&device);
    end(daemon, Signal::SIGTERM, &device);
}

#[test]
fn a_device_without_a_key_to_replace_is_refused_in_words() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let expect = |code: i32, error: &str| {
        let told = said(&run(&mut device.command(&["recovery-code"])));
        assert_eq!(told.code, code, "{told:?}");
        assert!(told.error.contains(error), "{told:?}");
    };
    expect(1, "remembers no join with token gw");
    assert!(!device.storage().exists(), "nothing is made");
    success(&mut device.command(&["keypair", "create"]));
    expect(1, "remembers no join with token gw");
    assert_eq!(files(&device, "key-").len(), 1);
    device.configure(&server, "  bound_keypair: {static_private_key_path: /nonexistent}", "");
    expect(2, "a host with a static key makes no other key");
}

/// A user with no rights at all, on Debian `nobody`.
const USER: u32 = 65_534;

/// The daemon of a package runs as its own user, and the technician is root.
#[test]
fn roots_command_leaves_the_daemons_user_its_files() {
    if !is_root("a daemon of another user") {
        return;
    }
    let server = Server::start();
    let device = server.device("gw", 1);
    let own = |path: &std::path::Path| std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("chown");
    own(device.dir.path());
    own(&device.config());
    // The program may stand where another user does not get to.
    let programs = TempDir::new("program");
    std::os::unix::fs::chown(programs.path(), Some(USER), None).expect("chown");
    let program = programs.join("boundkey");
    copy_program(device.command(&[]).get_program(), &program);
    let start = |args: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(args).arg("-c").arg(device.config()).uid(USER).gid(USER);
        command
    };
    let log = std::fs::File::create(device.dir.join("log")).expect("log");
    let daemon = Running(start(&["start"]).stderr(log).spawn().expect("the daemon"));
    wait_for("a join", || has_joined(&device));
    let mut strict = std::process::Command::new("sh");
    strict.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(&program);
    strict.args(["recovery-code", "--format", "json", "-c"]).arg(device.config());
    let told: Value = serde_json::from_slice(&success(&mut strict).stdout).expect("JSON");
    let owner = |name: &str| std::os::unix::fs::MetadataExt::uid(&device.storage().join(name).metadata().expect("a file"));
    assert_eq!(owner("key-bound-2.pem"), USER);
    drop(daemon);
    // Without the daemon, root's key would be a file that the daemon cannot read.
    let refused = said(&run(&mut device.command(&["recovery-code"])));
    assert_eq!(refused.code, 8, "{refused:?}");
    assert!(refused.advice.contains("runuser -u nobody"), "{refused:?}");
    assert_eq!(device.status()["recovery_code"], told["code"]);
    success(&mut start(&["recovery-code"]));
    success(&mut start(&["start", "--oneshot"]));
}

/// Another user's process that calls itself boundkey and holds the lock, as one with a file of the same number on another file system
/// seems to. It is not the agent that runs here, so it is sent nothing.
#[test]
fn roots_command_wakes_no_process_of_another_user() {
    if !is_root("a process of another user") {
        return;
    }
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let lock = std::fs::File::options().read(true).write(true).open(device.storage().join("lock")).expect("the lock");
    // Keeps SIGUSR1 from ending it, as the daemon does: whether it was sent shows in /proc.
    let script = "use POSIX; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1)); $0 = 'boundkey'; flock(STDIN, 2) or die; \
                  syswrite(STDOUT, qq(held\\n)); sleep 600 while 1";
    let mut perl = std::process::Command::new(tool("perl", "perl-base"));
    perl.args(["-e", script]).uid(USER).gid(USER).stdin(lock).stdout(Stdio::piped());
    let mut stranger = Running(perl.spawn().expect("perl"));
    // Our own descriptor, which holds the lock too.
    drop(perl);
    let mut line = String::new();
    BufReader::new(stranger.0.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    assert_eq!(line, "held\n");
    let log = std::fs::File::create(device.dir.join("log")).expect("log");
    let mut command = device.command(&["recovery-code"]);
    let command = Running(command.stdout(Stdio::null()).stderr(log).spawn().expect("boundkey"));
    wait_for("its word", || device.log().contains("the agent that runs could not be woken"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", stranger.0.id())).expect("a process");
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("signals");
    assert_eq!(pending.trim(), "0000000000000000", "it was sent nothing");
    drop(stranger);
    assert!(command.wait().success(), "without it, the command makes the key itself: {}", device.log());
}
