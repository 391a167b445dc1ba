//! Storage on FAT, as on the one partition that many boards can write to: no owners, no modes, no links.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::storage::Mounted;
use super::support::said::said;
use super::support::{Running, Server, is_root, run, success, tool, wait_for};

/// A device with FAT mounted at one of its directories: a real one, served by a process (fuse(4)), for not every kernel that runs tests has vfat.
struct OnFat {
    device: Mounted,
    dir: PathBuf,
    image: PathBuf,
    driver: Running,
}

impl OnFat {
    /// `None` where that cannot be tried.
    fn new(server: &Server, dir: &str) -> Option<Self> {
        if !is_root("FAT") {
            return None;
        }
        let device = Mounted::new(server, "gw")?;
        let [dir, image] = [dir, "fat"].map(|name| device.device.dir.join(name));
        std::fs::create_dir_all(&dir).expect("a directory to mount on");
        std::fs::File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("an image");
        success(Command::new(tool("mkfs.vfat", "dosfstools")).arg(&image));
        let mut driver = Command::new(tool("fusefat", "fusefat"));
        driver.args(["-f", "-o", "rw+"]).arg(&image).arg(&dir);
        let mut driver = device.namespace.enter(&driver);
        let driver = Running(driver.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("fusefat starts"));
        let on_fat = Self { device, dir, image, driver };
        wait_for("FAT", || on_fat.shell("stat --file-system --format %T \"$1\"").starts_with("fuse"));
        Some(on_fat)
    }

    /// Shell with the directory as `$1`.
    fn shell(&self, line: &str) -> String {
        self.device.namespace.shell(line, &[&self.dir.display().to_string()])
    }

    /// Unmounts, and checks the image.
    fn check(self) {
        self.shell("umount \"$1\"");
        assert!(self.driver.wait().success());
        let checked = success(Command::new(tool("fsck.vfat", "dosfstools")).arg("-n").arg(&self.image));
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(!said.contains("differ") && !said.contains("rror"), "{said}");
    }
}

#[test]
fn a_device_with_its_storage_on_fat_joins_renews_rotates_and_recovers() {
    let server = Server::start();
    let Some(fat) = OnFat::new(&server, "storage") else { return };
    let refusals = fat.shell(
        "cd \"$1\"; touch file; test -e FILE
        for call in 'ln -s file link' 'ln file link' 'chmod 640 file'; do $call || echo \"no $call\"; done; rm file",
    );
    assert_eq!(refusals, "no ln -s file link\nno ln file link\nno chmod 640 file\n", "this is FAT");
    for _ in 0..3 {
        fat.device.join();
    }
    server.ctl(&["rotate", "token/gw"]);
    fat.device.join();
    server.token("gw", "    recovery: {limit: 2}");
    fat.shell("rm \"$1\"/identity.pem");
    fat.device.join();
    let kinds = server.events("gw");
    let kinds = kinds.iter().map(String::as_str).filter(|kind| kind.starts_with("join.")).collect::<Vec<_>>();
    assert_eq!(kinds, ["join.first", "join.renewal", "join.renewal", "join.renewal", "join.recovery"]);
    for command in [&["status"][..], &["doctor"], &["keypair", "create"]] {
        let output = run(&mut fat.device.command(command));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // One agent at a time holds there too.
    let log = std::fs::File::create(fat.device.device.dir.join("log")).expect("log");
    let daemon = Running(fat.device.command(&["start"]).stderr(log).spawn().expect("boundkey starts"));
    wait_for("a renewal", || server.events("gw").len() == kinds.len() + 2);
    assert_eq!(said(&run(&mut fat.device.command(&["start", "--oneshot"]))).code, 8);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    fat.check();
}

/// Sets of files that change as one need links: that is said before anything is written, and the identity goes on.
#[test]
fn outputs_on_fat_are_refused_before_a_key_is_written() {
    let server = Server::start();
    let Some(fat) = OnFat::new(&server, "out") else { return };
    server.create(
        "kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\nkind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n",
    );
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    let outputs =
        format!("outputs:\n  - {{name: mqtt, type: x509, destination: {{type: directory, path: {}}}}}\n", fat.dir.display());
    fat.device.device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &outputs);
    for generation in 1..=2 {
        let said = said(&run(&mut fat.device.command(&["start", "--oneshot"])));
        assert_eq!(said.code, 1, "{said:?}");
        assert_eq!(said.error, format!("output mqtt: the file system of {} has no symbolic links", fat.dir.display()));
        assert_eq!(said.advice, "choose a directory on another file system, such as one under /run/boundkey");
        assert_eq!(fat.shell("ls -A \"$1\""), "");
        assert_eq!(server.status("gw")["last_step"]["generation"], generation, "the identity is renewed all the same");
    }
    fat.check();
}
