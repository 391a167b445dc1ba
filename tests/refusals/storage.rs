//! Storage, state and keys that are not as they should be.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::expect;
use super::support::said::{expect_unwritten, said};
use super::support::{Device, Server, not_tried, run, tool, wait_for, wrapped};

/// `command` without root's power over file modes.
fn without_override(command: &Command) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return wrapped(Command::new(tool("env", "coreutils")), command);
    }
    let mut wrapper = Command::new(tool("setpriv", "util-linux"));
    wrapper.arg("--bounding-set=-dac_override,-dac_read_search");
    wrapped(wrapper, command)
}

/// `command` with a file system of its own on `dir`, which goes with it. `None` where the system does not let tests mount.
fn with_mount(command: &Command, dir: &Path, options: &str) -> Option<Command> {
    let root = nix::unistd::geteuid().is_root();
    // A tmpfs is for all to write, unless it is told otherwise; the agent uses none that is.
    let options = format!("mode=0700,{options}");
    let namespace = |script: &str| {
        let mut unshare = Command::new(tool("unshare", "util-linux"));
        unshare.args([if root { "-m" } else { "-rm" }, "sh", "-c", script]).arg(&options).arg(dir);
        unshare
    };
    std::fs::create_dir_all(dir).unwrap();
    if !run(&mut namespace("mount -t tmpfs -o \"$0\" boundkey-test \"$1\"")).status.success() {
        return None;
    }
    Some(wrapped(namespace("mount -t tmpfs -o \"$0\" boundkey-test \"$1\" && shift && exec \"$@\""), command))
}

#[test]
fn storage_that_may_not_be_used() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = || device.command(&["start", "--oneshot"]);
    let denied = "run it as the user that boundkey runs as; let that user read and write storage.path";
    let mode = |mode| std::fs::set_permissions(device.storage(), std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::create_dir(device.storage()).unwrap();
    for forbidden in [0o000, 0o500] {
        mode(forbidden);
        expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    }
    mode(0o700);
    device.join();
    mode(0o000);
    expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    expect_unwritten(&run(&mut without_override(&device.command(&["status"]))), 8, "Permission denied", denied);
    mode(0o700);
    std::fs::set_permissions(device.storage().join("state"), std::fs::Permissions::from_mode(0o000)).unwrap();
    expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    assert_eq!(server.events("gw"), ["join.first"], "unreadable is never taken for absent");
}

#[test]
fn storage_that_is_read_only() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    if let Some(mut join) = with_mount(&join, &device.storage(), "ro") {
        expect_unwritten(&run(&mut join), 8, "Read-only file system", "mount the file system of storage.path writable");
    } else {
        // Where nothing can be mounted there is still a file system that cannot be written to.
        let yaml = std::fs::read_to_string(device.config()).unwrap();
        std::fs::write(device.config(), yaml.replace(&device.storage().display().to_string(), "/proc/boundkey")).unwrap();
        let said = said(&run(&mut device.command(&["start", "--oneshot"])));
        assert_eq!(said.code, 8, "{said:?}");
    }
    assert_eq!(server.events("gw"), [""; 0], "it did not begin what it could not finish");
}

#[test]
fn a_limit_on_the_size_of_files() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    // The key is what it writes first; where there is one, the state.
    for advice in ["make room", "lift the limit on the size of files"] {
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
        expect_unwritten(&run(&mut wrapped(limited, &join)), 8, "File too large", advice);
        assert!(run(&mut device.command(&["keypair", "create"])).status.success());
    }
    assert_eq!(server.events("gw"), [""; 0]);
    device.join();
}

/// A file system with room for less and less of what a join writes: whatever does not fit, it is said, and the device goes on later.
#[test]
fn storage_that_is_full() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    let mut refusals = 0;
    for pages in 1.. {
        let options = format!("size={}k", 4 * pages);
        let Some(mut small) = with_mount(&join, &device.storage(), &options) else {
            eprintln!("NOT TRIED: nothing can be mounted here");
            return;
        };
        let output = run(&mut small);
        if output.status.success() {
            break;
        }
        expect_unwritten(&output, 8, "No space left on device", "make room on the file system of storage.path; nothing was lost");
        refusals += 1;
        // The storage went with its namespace, and with it the key: another token for the next.
        server.ctl(&["reset", "token/gw"]);
        let secret = server.status("gw")["registration_secret"].as_str().unwrap().to_owned();
        device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
    }
    assert!(refusals >= 3, "key, state and identity each had to fit");
}

/// The same for the number of files: it is a key that does not fit then, and still the storage's fault.
#[test]
fn storage_without_room_for_a_key() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    // The directory and its lock file. Where nothing can be mounted, `storage_that_is_full` has to do.
    if let Some(mut small) = with_mount(&join, &device.storage(), "nr_inodes=2") {
        expect_unwritten(&run(&mut small), 8, "No space left on device", "make room on the file system of storage.path");
    } else {
        not_tried("storage without inodes: this user may not mount");
    }
    device.join();
}

#[test]
fn a_state_file_of_which_nothing_holds_is_left_alone() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let state = device.storage().join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    for slot in [0, 4096] {
        bytes[slot + 100] ^= 1;
    }
    std::fs::write(&state, &bytes).unwrap();
    for command in [&["start", "--oneshot"][..], &["status"], &["keypair", "create"]] {
        expect_unwritten(
            &run(&mut device.command(command)),
            8,
            "state: neither slot holds; the first is torn or damaged",
            "nothing was overwritten",
        );
        assert_eq!(std::fs::read(&state).unwrap(), bytes);
    }
    assert_eq!(server.events("gw"), ["join.first"]);
    // What the advice says works.
    std::fs::rename(&state, device.dir.join("state.bad")).unwrap();
    server.ctl(&["exempt", "token/gw", "--recoveries", "1"]);
    device.join();
    assert_eq!(server.status("gw")["recovery_count"], 2);
}

#[test]
fn one_damaged_slot_is_told_and_costs_nothing() {
    let server = Server::start();
    let device = server.device("gw", 1);
    for slot in [0, 4096] {
        device.join();
        device.join();
        let state = device.storage().join("state");
        let good = std::fs::read(&state).unwrap();
        let mut bytes = good.clone();
        bytes[slot + 100] ^= 1;
        std::fs::write(&state, &bytes).unwrap();
        let (code, stderr) = device.try_join();
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("WARN one of the two slots of the state file is torn or damaged"), "{stderr}");
    }
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

#[test]
fn a_second_agent_on_the_same_storage() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let daemon = device.daemon();
    wait_for("the first join", || server.events("gw") == ["join.first"]);
    for command in [&["start", "--oneshot"][..], &["start"], &["keypair", "create", "--overwrite"]] {
        expect_unwritten(&run(&mut device.command(command)), 8, "is in use by another boundkey", "stop the other agent");
    }
    drop(daemon);
    device.join();
}

/// FAT may keep the name of a file that is renamed in a power cut, and nothing of its content; some tokens one half of a key. What was
/// never whole was never used: it keeps nobody out, and is left alone.
#[test]
fn a_new_key_that_was_made_in_part_is_passed_over() {
    let server = Server::start();
    let device = server.device("gw", 1);
    std::fs::create_dir(device.storage()).unwrap();
    let part = |n: u32, content: &[u8]| {
        let file = device.storage().join(format!("key-bound-{n}.pem"));
        std::fs::write(&file, content).unwrap();
        file
    };
    let parts = [part(1, b""), part(3, b"-----BEGIN PRIV")];
    std::fs::rename(&parts[1], parts[1].with_extension("later")).unwrap();
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("key bound-1 was not made whole, and is passed over: "), "{code} {said}");
    std::fs::rename(parts[1].with_extension("later"), &parts[1]).unwrap();
    server.ctl(&["rotate", "token/gw"]);
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("key bound-3 was not made whole"), "{code} {said}");
    assert_eq!(device.status()["keystore"]["key"], "bound-4");
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "key.rotated"]);
    assert_eq!(parts.map(|file| std::fs::read(file).unwrap()), [&b""[..], b"-----BEGIN PRIV"]);
}

#[test]
fn a_key_that_cannot_be_used() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let key = std::fs::read_dir(device.storage()).unwrap().map(|entry| entry.unwrap().path());
    let key = key.into_iter().find(|path| path.to_string_lossy().contains("bound-1")).expect("a key file");
    let whole = std::fs::read(&key).unwrap();
    let kept = |device: &Device| std::fs::read_dir(device.storage()).unwrap().count();
    let files = kept(&device);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o000)).unwrap();
    let output = run(&mut without_override(&device.command(&["start", "--oneshot"])));
    expect_unwritten(&output, 7, "key store: ", "let the user that boundkey runs as use it: file mode");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::write(&key, &whole[..whole.len() / 2]).unwrap();
    expect(&device, 7, "keystore", "key store: ", "nothing was overwritten; restore the key");
    std::fs::remove_file(&key).unwrap();
    expect(&device, 7, "keystore", "key store: ", "restore the key, or run `boundkeyctl reset token/NAME`");
    assert!(kept(&device) <= files, "no new key was made in its place");

    std::fs::write(&key, &whole).unwrap();
    device.join();
    assert_eq!(server.status("gw")["recovery_count"], 1);
}
