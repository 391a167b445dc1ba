//! File systems of a device that joined before: full, read-only, on a block device that fails. And many agents at once.

use std::path::Path;
use std::process::Command;

use super::support::namespace::{Kind, Namespace};
use super::support::said::{expect_unwritten, said};
use super::support::{Device, Running, Server, is_root, run, tool, wait_for};

/// A device whose storage is a file system of its own.
pub struct Mounted {
    pub namespace: Namespace,
    pub device: Device,
}

impl Mounted {
    /// `None` where that cannot be tried.
    pub fn new(server: &Server, name: &str) -> Option<Self> {
        let namespace = Namespace::new(&[Kind::Mounts])?;
        let device = server.device(name, 1);
        std::fs::create_dir(device.storage()).expect("a directory to mount on");
        Some(Self { namespace, device })
    }

    /// Shell with the storage directory as `$1`.
    pub fn shell(&self, line: &str) -> String {
        self.namespace.shell(line, &[&self.device.storage().display().to_string()])
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.namespace.enter(&self.device.command(args))
    }

    pub fn join(&self) {
        let output = run(&mut self.command(&["start", "--oneshot"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The server made its step, and the device has no room for the answer: it is given again until there is.
#[test]
fn a_renewal_that_finds_the_storage_full_is_repeated_until_there_is_room() {
    let server = Server::start();
    let Some(device) = Mounted::new(&server, "gw") else { return };
    device.shell("mount -t tmpfs -o size=64k,mode=700 boundkey-test \"$1\"");
    device.join();
    device.shell("head -c 1M /dev/zero >\"$1\"/filler || true");
    for _ in 0..3 {
        expect_unwritten(
            &run(&mut device.command(&["start", "--oneshot"])),
            8,
            "No space left on device",
            "make room on the file system of storage.path; nothing was lost",
        );
    }
    device.shell("rm \"$1\"/filler");
    device.join();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.replay", "join.replay", "join.replay", "join.renewal"]);
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// What ext4 with `errors=remount-ro` does to a device in the middle of its life. The daemon takes it up when it is mended.
#[test]
fn storage_that_becomes_read_only_stops_nothing_for_good() {
    let server = Server::start();
    let Some(device) = Mounted::new(&server, "gw") else { return };
    device.shell("mount -t tmpfs -o size=1m,mode=700 boundkey-test \"$1\"");
    device.join();
    // Named with its directory: else mount(8) repeats the options, of which the uid of a user that is not root's is none in here.
    device.shell("mount -o remount,ro boundkey-test \"$1\"");
    let log = device.device.dir.join("log");
    let file = std::fs::File::create(&log).expect("log");
    let daemon = Running(device.command(&["start"]).stderr(file).spawn().expect("boundkey starts"));
    wait_for("a failure", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ERROR storage: ")));
    let text = std::fs::read_to_string(&log).expect("log");
    assert!(text.contains("Read-only file system") && text.contains("mount the file system of storage.path writable"), "{text}");
    assert_eq!(server.events("gw"), ["join.first"], "it asks for nothing that it could not keep");
    device.shell("mount -o remount,rw boundkey-test \"$1\"");
    wait_for("a renewal", || server.events("gw") == ["join.first", "join.renewal"]);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

/// All is read-only but the storage and the outputs: that is a whole device to the agent.
#[test]
fn a_read_only_root_takes_the_storage_directory_and_the_outputs_alone() {
    let server = Server::start();
    if !is_root("a read-only root") {
        return;
    }
    let Some(device) = Mounted::new(&server, "gw") else { return };
    server.create("kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\nkind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n");
    let out = device.device.dir.join("out");
    std::fs::create_dir(&out).expect("a directory");
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    let outputs = format!("outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n", out.display());
    device.device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &outputs);
    // Every mount, then the two directories on it.
    let dirs = [device.device.storage(), out.clone()].map(|dir| dir.display().to_string());
    device.namespace.shell(
        "for dir in \"$@\"; do mount --bind \"$dir\" \"$dir\"; done
        findmnt --noheadings --list --output TARGET | while read -r target; do
            case \" $* \" in *\" $target \"*) ;; *) mount -o remount,bind,ro \"$target\" ;; esac
        done
        for dir in / /tmp \"$(dirname \"$1\")\"; do if touch \"$dir\"/boundkey-test; then exit 1; fi; done",
        &[&dirs[0], &dirs[1]],
    );
    device.join();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    assert!(out.join("tls.crt").exists());
}

/// A block device that cannot take any more: its blocks are those of a file in a file system that is full. The kernel reports errors
/// of the device (dmesg), ext4 gives up and becomes read-only.
#[test]
fn a_block_device_that_fails_costs_nothing_once_it_is_replaced_or_mended() {
    let server = Server::start();
    if !is_root("a block device that fails") {
        return;
    }
    let Some(device) = Mounted::new(&server, "gw") else { return };
    let flash = device.device.dir.join("flash");
    std::fs::create_dir(&flash).expect("a directory");
    let names = [device.device.storage(), flash].map(|path| path.display().to_string());
    let shell = |line: &str| device.namespace.shell(line, &[&names[0], &names[1]]);
    // Blocks of the image that were never written have no room of their own yet.
    tool("mkfs.ext4", "e2fsprogs");
    shell(
        "mount -t tmpfs -o size=12m boundkey-test \"$2\"; truncate -s 16M \"$2\"/image
        mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -J size=4 \"$2\"/image >&2
        mount -o loop,errors=remount-ro,data=ordered \"$2\"/image \"$1\"; chmod 700 \"$1\"",
    );
    device.join();
    device.join();
    shell("sync; head -c 1G /dev/zero >\"$2\"/filler || true");
    let mut failures = 0;
    for _ in 0..12 {
        let output = run(&mut device.command(&["start", "--oneshot"]));
        if !output.status.success() {
            let said = said(&output);
            assert_eq!(said.code, 8, "{said:?}");
            failures += 1;
        }
    }
    assert!(failures >= 3, "{failures} failures");
    // The device is as good as new after a check, as at the next boot.
    shell("umount \"$1\"; rm \"$2\"/filler; e2fsck -f -y \"$2\"/image >&2 || test $? -le 2; mount -o loop \"$2\"/image \"$1\"");
    device.join();
    shell("umount \"$1\"");
    let events = server.events("gw");
    assert_eq!(server.status("gw")["recovery_count"], 1, "{events:?}");
    assert!(!events.contains(&"join.refused".to_owned()), "{events:?}");
    println!("{failures} failures; {events:?}");
}

/// Started all at once, as by a boot script and a unit: one runs, the others say so and leave.
#[test]
fn of_many_agents_that_start_at_once_one_runs() {
    const AGENTS: usize = 6;
    let server = Server::start();
    let device = server.device("gw", 1);
    let start = |n: usize| {
        let log = std::fs::File::create(device.dir.join(&format!("log-{n}"))).expect("log");
        Running(device.command(&["start"]).stderr(log).spawn().expect("boundkey starts"))
    };
    let mut agents = (0..AGENTS).map(start).collect::<Vec<_>>();
    let mut ended = [false; AGENTS];
    wait_for("all but one to end", || {
        for (agent, ended) in agents.iter_mut().zip(&mut ended) {
            let status = agent.0.try_wait().expect("wait");
            assert!(status.is_none_or(|status| status.code() == Some(8)), "{status:?}");
            *ended = status.is_some();
        }
        ended.iter().filter(|ended| **ended).count() == AGENTS - 1
    });
    wait_for("the join", || server.events("gw") == ["join.first"]);
    for n in (0..AGENTS).filter(|n| ended[*n]) {
        let log = std::fs::read_to_string(device.dir.join(&format!("log-{n}"))).expect("log");
        assert!(log.contains("is in use by another boundkey") && log.contains("stop the other agent"), "{log}");
    }
    drop(agents);
    assert!(Path::new(&device.storage()).exists());
    device.join();
    // The one that ran may have been ended before it had its answer.
    let events = server.events("gw");
    assert!(events[1..] == ["join.renewal"] || events[1..] == ["join.replay"], "{events:?}");
}
