//! What reads stderr, such as a log collector, may hang, be gone, or have no room: no program stops for it, or ends otherwise.

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use super::support::strace::failing_aside_at;
use super::support::{Device, PATIENCE, Running, Server, TempDir, agent, run, wait_for};
use super::{count, device};

/// A pipe that is full, of empty lines.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let again = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(again).expect("the same pipe");
    while filler.write(&[b'\n'; 4096]).is_ok() {}
    (reader, writer.into())
}

/// A socket that is full, such as the journal's when it hangs.
fn full_socket() -> (UnixStream, Stdio) {
    let (reader, mut writer) = UnixStream::pair().expect("sockets");
    writer.set_nonblocking(true).expect("non-blocking");
    while writer.write(b"\n").is_ok() {}
    writer.set_nonblocking(false).expect("blocking");
    (reader, OwnedFd::from(writer).into())
}

fn renewing(server: &Server) -> Device {
    device(server, "gw", 1, "renewal_interval: 1s\nlog: {level: debug}")
}

fn renews_and_ends(server: &Server, daemon: Running) {
    let before = count(server, "gw", "join.renewal");
    wait_for("two renewals", || count(server, "gw", "join.renewal") >= before + 2);
    daemon.signal(Signal::SIGTERM);
    let status = daemon.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_daemon_whose_log_nobody_reads_renews_and_ends_when_told() {
    let server = Server::start();
    let device = renewing(&server);
    let start = |stderr: Stdio| Running(device.command(&["start"]).stderr(stderr).spawn().expect("boundkey starts"));
    let (_reader, pipe) = full_pipe();
    renews_and_ends(&server, start(pipe));
    let (_reader, socket) = full_socket();
    renews_and_ends(&server, start(socket));
}

/// A pipe of another user's process cannot be opened a second time: then it is asked whether it has room.
#[test]
fn a_pipe_that_cannot_be_opened_again_does_not_stop_a_daemon_either() {
    let server = Server::start();
    let device = renewing(&server);
    let (_reader, stderr) = full_pipe();
    let mut command = failing_aside_at(&device.command(&["start"]), "openat", 1, "EACCES", &["/proc/self/fd/2".into()]);
    renews_and_ends(&server, Running(command.stderr(stderr).spawn().expect("strace starts")));
}

#[test]
fn lines_that_nobody_took_are_counted_and_the_count_is_logged() {
    let server = Server::start();
    let device = renewing(&server);
    let (reader, stderr) = full_pipe();
    let daemon = Running(device.command(&["start"]).stderr(stderr).spawn().expect("boundkey starts"));
    wait_for("two renewals", || count(&server, "gw", "join.renewal") >= 2);
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines.filter(|line| !line.is_empty()).try_for_each(|line| send.send(line))
    });
    let first = lines.recv_timeout(PATIENCE).expect("a line");
    let (_, told) = first.split_once(" WARN ").expect("a warning");
    let (dropped, text) = told.split_once(' ').expect("a number");
    assert!(dropped.parse::<u32>().expect("a number") >= 3, "{told}");
    assert_eq!(text, "log lines were dropped: what reads stderr did not take them");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let rest: Vec<_> = lines.iter().collect();
    assert!(rest.iter().all(|line| !line.contains("dropped")), "told once: {rest:?}");
    assert!(rest.last().is_some_and(|line| line.ends_with("INFO stopped")), "{rest:?}");
}

#[test]
fn a_server_whose_log_nobody_reads_serves_and_ends_when_told() {
    let server = Server::init(&[]);
    let (_reader, stderr) = full_pipe();
    let process = Running(server.command().stderr(stderr).spawn().expect("boundkey-auth starts"));
    wait_for("the server's address", || server.dir.join("addr").exists());
    for name in ["gw-1", "gw-2", "gw-3"] {
        server.device(name, 1).join();
    }
    process.signal(Signal::SIGTERM);
    let status = process.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_final_error_that_cannot_be_written_gives_its_exit_code() {
    let dir = TempDir::new("stderr");
    let missing = dir.join("missing");
    let commands = || {
        let mut join = agent();
        join.args(["start", "-c"]).arg(&missing);
        let mut serve = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
        serve.args(["start", "--data-dir"]).arg(&missing);
        let mut operate = Command::new(env!("CARGO_BIN_EXE_boundkeyctl"));
        operate.args(["get", "token", "--socket"]).arg(&missing);
        [(join, 2), (serve, 1), (operate, 3)]
    };
    for (mut command, code) in commands() {
        let name = Path::new(command.get_program()).display().to_string();
        let mut ends = |how: &str, stderr: Stdio| {
            let output = run(command.stderr(stderr));
            assert_eq!(output.status.code(), Some(code), "{name}: {how}");
        };
        ends("a full disk", File::options().write(true).open("/dev/full").expect("/dev/full").into());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        ends("a reader that has gone", writer.into());
        let (_reader, full) = full_pipe();
        ends("a reader that hangs", full);
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 2>&-", "sh"]).arg(command.get_program()).args(command.get_args());
        assert_eq!(shell.status().expect("sh").code(), Some(code), "{name}: closed");
    }
}
