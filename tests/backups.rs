//! A server restored from a backup, and its fleet: every honest device is back by itself, every copy is still caught.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{Device, Server, run, success, wait_for};

fn auth(command: &str, server: &Server, backup: &Path) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
    run(program.args([command, "--data-dir"]).arg(server.dir.join("data")).arg(backup))
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn backup(server: &Server) -> PathBuf {
    let dir = server.dir.join("backup");
    done(&auth("backup", server, &dir));
    dir
}

fn restore(server: &mut Server, backup: &Path) {
    assert!(server.stop().success());
    done(&auth("restore", server, backup));
    server.run();
}

fn recoveries(server: &Server, name: &str) -> u64 {
    server.status(name)["recovery_count"].as_u64().expect("a count")
}

/// What the fleet did since the backup: renewals, a recovery, a rotation, a first join, or nothing at all.
#[test]
fn every_device_of_the_fleet_is_back_by_itself() {
    let mut server = Server::start();
    let fleet = ["idle", "renewed", "recovered", "rotated", "new"].map(|name| server.device(name, 3));
    let [idle, renewed, recovered, rotated, new] = &fleet;
    for device in [idle, renewed, recovered, rotated] {
        device.join();
    }
    let backup = backup(&server);

    (0..3).for_each(|_| renewed.join());
    recovered.lose_certificate();
    recovered.join();
    server.ctl(&["rotate", "token/rotated"]);
    rotated.join();
    rotated.join();
    new.join();
    let before = fleet.each_ref().map(|device| (recoveries(&server, &device.token), device.status()));

    restore(&mut server, &backup);
    for (device, (count, status)) in fleet.iter().zip(before) {
        device.join();
        let followed = server.events(&device.token).iter().filter(|event| *event == "join.rolled_forward").count();
        assert_eq!(followed, usize::from(device.token != "idle"), "{}", device.token);
        assert_eq!(recoveries(&server, &device.token), count, "{}: a restore consumes nothing", device.token);
        let now = device.status();
        assert_eq!(now["instance_id"], status["instance_id"], "{}", device.token);
        assert_eq!(now["keystore"]["thumbprint"], status["keystore"]["thumbprint"], "{}", device.token);
        device.join();
        assert_eq!(server.events(&device.token).iter().filter(|e| *e == "join.rolled_forward").count(), followed);
    }
    assert!(server.ctl(&["get", "lock", "--format", "json"]).trim().starts_with("[]"));
}

/// Whichever of the two comes first after the restore, the other's join locks the token.
#[test]
fn a_copy_made_before_is_still_caught() {
    for thief_first in [false, true] {
        let mut server = Server::start();
        let device = server.device("gw", 9);
        device.join();
        let backup = backup(&server);
        device.join();
        let thief = device.copy();
        device.join();
        restore(&mut server, &backup);
        let (first, second) = if thief_first { (&thief, &device) } else { (&device, &thief) };
        first.join();
        assert_eq!(second.try_join().0, 4, "two holders of one key");
        assert_eq!(first.try_join().0, 4, "the lock is for both");
    }
}

/// The backup is consistent while devices join, and is a data directory that starts.
#[test]
fn a_backup_is_made_beside_a_running_server() {
    let mut server = Server::start();
    let devices = ["a", "b"].map(|name| server.device(name, 1));
    devices.iter().for_each(Device::join);
    let daemons = devices.each_ref().map(|device| {
        device.configure(&server, "", "renewal_interval: 1s\n");
        device.daemon()
    });
    wait_for("renewals", || server.events("a").len() > 2);
    let backup = backup(&server);
    drop(daemons);
    for file in ["boundkey.db", "challenge.key", "tls.pem", "keys", "."] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(backup.join(file)).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "{file} is private");
    }
    let said = fails(&auth("backup", &server, &backup));
    assert!(said.contains("backup is not empty\n  name a new directory for each backup"), "{said}");

    // All else is lost: the copy takes the place of the data directory.
    server.kill();
    std::fs::remove_dir_all(server.dir.join("data")).unwrap();
    std::fs::rename(&backup, server.dir.join("data")).unwrap();
    server.run();
    devices.iter().for_each(Device::join);
}

/// What the server wrote last stands beside its database; put back into another one it would be nonsense.
#[test]
fn nothing_of_the_replaced_database_comes_back() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let backup = backup(&server);
    server.device("later", 1);
    server.kill();
    let data = server.dir.join("data");
    assert!(data.join("boundkey.db-wal").exists());
    let said = done(&auth("restore", &server, &backup));
    assert!(said.contains("the database that was there: ") && said.contains("put locks on again"), "{said}");
    server.run();
    assert!(!server.ctl(&["get", "token", "--format", "json"]).contains("later"));
    // It is kept, whole.
    server.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(data.join(format!("boundkey.db{suffix}")));
        let kept = data.join(format!("boundkey.db.replaced{suffix}"));
        if kept.exists() {
            std::fs::rename(kept, data.join(format!("boundkey.db{suffix}"))).unwrap();
        }
    }
    server.run();
    assert!(server.ctl(&["get", "token", "--format", "json"]).contains("later"));
}

/// A challenge names a revision that the restored database may give again: those given before are void.
#[test]
fn challenges_of_before_are_void() {
    let mut server = Server::start();
    let key = || std::fs::read(server.dir.join("data/challenge.key")).unwrap();
    let before = key();
    let backup = backup(&server);
    assert_eq!(std::fs::read(backup.join("challenge.key")).unwrap(), before);
    assert!(server.stop().success());
    done(&auth("restore", &server, &backup));
    assert_ne!(std::fs::read(server.dir.join("data/challenge.key")).unwrap(), before);
}

#[test]
fn what_is_no_backup_of_ours_is_refused_and_changes_nothing() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let backup = backup(&server);
    let said = fails(&auth("restore", &server, &backup));
    assert!(said.contains("is in use by another boundkey-auth\n  stop the other server first"), "{said}");
    assert!(server.stop().success());

    let said = fails(&auth("restore", &server, &server.dir.join("nothing")));
    assert!(said.contains("nothing holds no backup\n  name a directory that `boundkey-auth backup` made"), "{said}");
    let other = Server::init(&[]);
    let said = fails(&auth("restore", &server, &other.dir.join("data")));
    assert!(said.contains("is a backup of another cluster\n  restore a backup of this cluster"), "{said}");
    let mut bytes = std::fs::read(backup.join("boundkey.db")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff);
    std::fs::write(backup.join("boundkey.db"), bytes).unwrap();
    let said = fails(&auth("restore", &server, &backup));
    assert!(said.contains("damaged"), "{said}");
    server.run();
    device.join();
}

/// What is restored says which key each device has, and the data directory has the keys of all: neither is for others to write.
#[test]
fn directories_that_others_may_write_are_not_used() {
    let mut server = Server::start();
    let backup = backup(&server);
    let mode = |path: &Path, bits| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(bits)).expect("mode");
    };
    assert!(server.stop().success());
    mode(&backup, 0o770);
    let said = fails(&auth("restore", &server, &backup));
    assert!(said.contains("mode 0770) lets other users write") && said.contains("no other user may write in it"), "{said}");
    mode(&backup, 0o700);
    let data = server.dir.join("data");
    mode(&data, 0o707);
    let commands =
        [auth("restore", &server, &backup), auth("backup", &server, &server.dir.join("no")), run(&mut server.command())];
    for output in commands {
        let said = fails(&output);
        assert!(said.contains("mode 0707) lets other users write") && said.contains("runuser -u boundkey-auth"), "{said}");
    }
    mode(&data, 0o700);
    // A link in the data directory is not what is copied.
    std::os::unix::fs::symlink("/etc/hostname", data.join("keys/key-planted.pem")).expect("link");
    let tls = data.join("tls.pem");
    let tls = if tls.exists() { tls } else { data.join("challenge.key") };
    let kept = std::fs::read(&tls).expect("a file");
    std::fs::remove_file(&tls).expect("remove");
    std::os::unix::fs::symlink(&backup, &tls).expect("link");
    let said = fails(&auth("backup", &server, &server.dir.join("second")));
    assert!(said.contains("a symbolic link, which is not followed here"), "{said}");
    std::fs::remove_file(&tls).expect("remove");
    std::fs::write(&tls, kept).expect("write");
    mode(&tls, 0o600);
    done(&auth("backup", &server, &server.dir.join("third")));
    assert!(!server.dir.join("third/keys/key-planted.pem").exists());
    server.run();
}

/// Killed at any of its steps, it can be done again, and no server starts on half of it.
#[test]
fn a_restore_that_is_cut_off_is_done_again() {
    let strace = support::tool("strace", "strace");
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let backup = backup(&server);
    device.join();
    assert!(server.stop().success());
    let mut cuts = 0;
    for call in ["rename", "renameat", "unlink", "unlinkat", "fsync", "fdatasync", "pwrite64"] {
        for nth in 1..200 {
            let mut cut = Command::new(&strace);
            cut.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
            cut.arg(format!("inject={call}:signal=KILL:when={nth}")).arg(env!("CARGO_BIN_EXE_boundkey-auth"));
            let status = run(cut.args(["restore", "--data-dir"]).arg(server.dir.join("data")).arg(&backup)).status;
            if status.success() {
                break;
            }
            cuts += 1;
            assert!(nth < 199, "{call} goes on");
            let start = server.command();
            if server.run_as(start) {
                device.join();
                assert!(server.stop().success());
            }
        }
    }
    assert!(cuts > 10, "{cuts} cuts");
    done(&auth("restore", &server, &backup));
    server.run();
    device.join();
    success(&mut server.ctl_command(&["get", "token/gw"]));
}
