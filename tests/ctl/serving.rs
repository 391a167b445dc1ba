//! The audit log as it is shown, operators beside each other, and a server that is not there or not theirs.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::{Running, Server, TempDir, copy_program, is_root, run};
use super::{BOT, bound, fails, fails_in_two_lines, token};

#[test]
fn audit_shows_what_is_asked_for_in_pages_too_long_for_one_answer() {
    let server = Server::start();
    let many: String = (0..1100).map(|n| BOT.replace("gw", &format!("gw{n}"))).collect();
    server.create(&many);
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    assert_eq!(server.audit().len(), 1102);
    let lines = server.ctl(&["audit", "--token", "t"]);
    assert!(lines.lines().count() == 1 && lines.contains("resource.created    token=t bot=gw by=local:"), "{lines}");
    assert_eq!(server.ctl(&["audit", "--since", "1h"]).lines().count(), 1102);
    assert_eq!(server.ctl(&["audit", "--since", "2100-01-01T00:00:00Z"]), "");
    fails(&run(&mut server.ctl_command(&["audit", "--since", "yesterday"])), 2);
}

/// `audit --follow` with its lines.
fn follow(server: &Server, args: &[&str]) -> (Running, impl Iterator<Item = Value> + use<>) {
    let mut command = server.ctl_command(&[&["audit", "--follow", "--format", "json"], args].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (Running(child), lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()))
}

#[test]
fn audit_follows_events_as_they_come() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    let (_process, mut lines) = follow(&server, &["--since", "1h", "--token", "t"]);
    assert_eq!(lines.next().unwrap()["event"], "resource.created");
    server.ctl(&["lock", "--bot", "gw"]);
    server.ctl(&["lock", "--token", "t"]);
    assert_eq!(lines.next().unwrap()["event"], "lock.created");
    server.ctl(&["rm", "token/t"]);
    assert_eq!(lines.next().unwrap()["event"], "resource.deleted");
}

#[test]
fn a_follower_does_not_hold_up_the_servers_end() {
    let mut server = Server::start();
    server.create(BOT);
    let (process, mut lines) = follow(&server, &["--since", "1h"]);
    assert!(lines.next().is_some());
    assert!(server.stop().success());
    assert!(!server.log().contains("still open"), "the wait of a follower ends with the server: {}", server.log());
    assert!(lines.next().is_none());
    assert_eq!(process.wait().code(), Some(3));
}

#[test]
fn operators_at_the_same_time_all_get_their_way() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound())));
    let told = server.audit().len();
    let others: Vec<_> = (0..12)
        .map(|n| {
            let args: &[&str] = if n % 2 == 0 { &["rotate", "token/t"] } else { &["exempt", "token/t"] };
            server.ctl_command(args).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    assert_eq!(server.audit().len(), told + 12);
}

#[test]
fn no_server_is_an_exit_code_of_its_own() {
    let dir = TempDir::new("ctl");
    let ctl = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boundkeyctl"));
        command.args(args).env_remove("BOUNDKEY_DATA_DIR").env_remove("BOUNDKEY_SOCKET");
        command
    };
    let data = dir.path().to_str().unwrap();
    let said = fails_in_two_lines(&run(&mut ctl(&["get", "token", "--data-dir", data])), 3);
    assert!(said.contains("is boundkey-auth running") && said.contains(&format!("{data}/operator.sock")), "{said}");
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(dir.join("operator.sock")).unwrap());
    fails_in_two_lines(&run(&mut ctl(&["--data-dir", data, "get", "token"])), 3);
    assert!(fails(&run(&mut ctl(&["get", "token"])), 3).contains("/var/lib/boundkey-auth/operator.sock"));

    let server = Server::start();
    let served = server.dir.join("data");
    let socket = served.join("operator.sock");
    let succeeds = |command: &mut Command| assert!(run(command).status.success(), "{command:?}");
    succeeds(ctl(&["get", "token"]).env("BOUNDKEY_DATA_DIR", &served));
    succeeds(ctl(&["get", "token"]).env("BOUNDKEY_SOCKET", &socket).env("BOUNDKEY_DATA_DIR", data));
    succeeds(ctl(&["get", "token", "--socket"]).arg(&socket).env("BOUNDKEY_DATA_DIR", data));
    succeeds(ctl(&["get", "token", "--data-dir"]).arg(&served).env("BOUNDKEY_SOCKET", "/nowhere"));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let server = Server::start();
    let many: String = (0..500).map(|n| BOT.replace("gw", &format!("gw{n}"))).collect();
    server.create(&many);
    let mut child =
        server.ctl_command(&["get", "bot", "--format", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &[][..]));
}

/// Needs root, to be somebody else. The file modes are opened first: the check behind them is what is tested.
#[test]
fn only_root_and_the_servers_own_user_are_let_in() {
    if !is_root("another user at the operator's socket") {
        return;
    }
    let server = Server::start();
    let socket = server.dir.join("data").join("operator.sock");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    for (path, mode) in [(server.dir.path(), 0o755), (&server.dir.join("data"), 0o755), (&socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = server.dir.join("boundkeyctl");
    copy_program(env!("CARGO_BIN_EXE_boundkeyctl"), &program);
    let mut command = Command::new(&program);
    command.args(["get", "token", "--socket"]).arg(&socket).uid(65534).gid(65534);
    let said = fails_in_two_lines(&run(&mut command), 1);
    assert!(said.contains("uid 65534 is neither root nor the user"), "{said}");
}
