//! The server's keys in a TPM or a PKCS#11 token: made there, used there, and what happens while it is not there.
#![cfg(all(feature = "agent", feature = "auth", feature = "tpm", feature = "pkcs11"))]

#[path = "../hal/tests/support/mod.rs"]
mod hal_support;
mod support;

use std::path::Path;
use std::process::Command;

use hal_support::process;
use hal_support::softhsm::{self, SoftHsm};
use hal_support::swtpm::Swtpm;
use serde_json::{Value, json};
use support::company::Company;
use support::{Device, Running, Server, TempDir, run, success, tool, wait_for};

/// Names of the cluster's keys.
const KEYS: [&str; 4] = ["ca-ssh-host", "ca-ssh-user", "ca-x509", "join-state"];

/// A key store with nothing in it.
enum Backend {
    Pkcs11(SoftHsm, TempDir),
    Tpm(Swtpm),
}

impl Backend {
    fn pkcs11() -> Self {
        let dir = TempDir::new("softhsm");
        Self::Pkcs11(SoftHsm::new(dir.path()), dir)
    }

    fn tpm() -> Self {
        Self::Tpm(Swtpm::start())
    }

    /// Options of `init`.
    fn options(&self) -> Vec<String> {
        let own = match self {
            Self::Pkcs11(hsm, _) => ["pkcs11", "--uri", &hsm.uri()].map(str::to_owned),
            Self::Tpm(tpm) => ["tpm", "--tcti", &tpm.tcti()].map(str::to_owned),
        };
        std::iter::once("--ca-keystore".to_owned()).chain(own).collect()
    }

    /// A place for a server that can have its keys here.
    fn blank(&self) -> Server {
        Server::blank(match self {
            Self::Pkcs11(hsm, _) => hsm.environment(),
            Self::Tpm(_) => Vec::new(),
        })
    }

    fn init(&self, server: &Server) -> Command {
        server.init_command(&self.options().iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A cluster, running.
    fn server(&self) -> Server {
        let mut server = self.blank();
        server.ca_pin = pin(&success(&mut self.init(&server)).stdout);
        server.run();
        server
    }

    fn take_away(&mut self) {
        match self {
            Self::Pkcs11(hsm, dir) => std::fs::rename(hsm.tokens(), dir.join("away")).expect("rename"),
            Self::Tpm(tpm) => tpm.cut_power(),
        }
    }

    fn bring_back(&mut self) {
        match self {
            Self::Pkcs11(hsm, dir) => std::fs::rename(dir.join("away"), hsm.tokens()).expect("rename"),
            Self::Tpm(tpm) => tpm.power_on(),
        }
    }

    /// Names of the keys that are here.
    fn keys(&self, server: &Server) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Pkcs11(hsm, _) => {
                let mut list = Command::new(env!("CARGO_BIN_EXE_boundkey"));
                list.args(["hsm", "keys", "--format", "json", "--uri", &hsm.uri()]).envs(hsm.environment());
                let keys: Value = serde_json::from_slice(&success(&mut list).stdout).expect("JSON");
                keys.as_array().expect("a list").iter().map(|k| k["name"].as_str().expect("a name").to_owned()).collect()
            }
            Self::Tpm(_) => files(&server.dir.join("data/keys"))
                .iter()
                .map(|name| {
                    name.strip_prefix("key-").and_then(|n| n.strip_suffix(".tss2.pem")).expect("a wrapped key").to_owned()
                })
                .collect(),
        };
        names.sort();
        names
    }

    fn delete(&self, server: &Server, key: &str) {
        match self {
            Self::Pkcs11(hsm, _) => {
                let mut delete = Command::new(env!("CARGO_BIN_EXE_boundkey"));
                success(delete.args(["hsm", "delete-key", "--yes", "--uri", &hsm.uri(), key]).envs(hsm.environment()));
            }
            Self::Tpm(_) => {
                std::fs::remove_file(server.dir.join("data/keys").join(format!("key-{key}.tss2.pem"))).expect("remove");
            }
        }
    }
}

/// The CA pin that `init` printed.
fn pin(stdout: &[u8]) -> String {
    let json: Value = serde_json::from_slice(stdout).expect("init prints JSON");
    json["ca_pin"].as_str().expect("ca_pin").to_owned()
}

fn files(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).expect("directory").map(|e| e.expect("entry").file_name().into_string().expect("a name")).collect()
}

/// A command that must fail with this exit code: what failed and what to do, each on a line.
#[track_caller]
fn fails(command: &mut Command, code: i32, what: &str, advice: &str) {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.split("error: ").nth(1).unwrap_or_else(|| panic!("no error: {said}"));
    let (first, second) = error.split_once('\n').expect("two lines");
    assert!(output.status.code() == Some(code) && first.contains(what) && second.contains(advice), "{:?} {said}", output.status);
}

/// A join that fails for want of the server's key: it tells the device to try again, and is no refusal.
#[track_caller]
fn postponed(device: &Device) {
    let (code, said) = device.try_join();
    assert!(
        code == 1 && said.contains("does not sign now; nothing was consumed") && said.contains("try again"),
        "{code}: {said}"
    );
}

/// Every key store, the same tests.
macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        suite!(in pkcs11: $($test),*);
        suite!(in tpm: $($test),*);
    };
    (in $store:ident: $($test:ident),*) => {
        mod $store {
            $(#[test]
            fn $test() {
                super::$test(super::Backend::$store());
            })*
        }
    };
}

suite!(
    devices_join_and_renew,
    a_store_that_goes_and_comes_back_costs_nothing,
    a_missing_key_is_told_at_the_start,
    an_init_that_is_killed_goes_on_where_it_stopped,
    a_backup_starts_where_its_keys_are_and_only_there,
    a_ca_is_replaced_by_one_with_keys_beside_the_old_ones,
    a_ca_stands_under_another_s_root,
);

#[expect(clippy::needless_pass_by_value, reason = "one signature for the suite")]
fn devices_join_and_renew(backend: Backend) {
    let mut server = backend.server();
    assert_eq!(backend.keys(&server), KEYS);
    let files = files(&server.dir.join("data/keys"));
    assert!(files.iter().all(|name| name.ends_with(".tss2.pem")), "no key in a file: {files:?}");
    assert!(!server.dir.join("data/init.json").exists());
    let device = server.device("gw", 2);
    device.join();
    device.join();
    // Another process, with nothing but what init left.
    assert!(server.stop().success());
    server.run();
    device.join();
    device.lose_certificate();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.recovery"]);
    // An init of before tells the pin, as one with keys in files does.
    let again = run(&mut server.init_command(&[]));
    assert!(String::from_utf8_lossy(&again.stderr).contains(&server.ca_pin), "{again:?}");
}

fn a_store_that_goes_and_comes_back_costs_nothing(mut backend: Backend) {
    let server = backend.server();
    let device = server.device("gw", 2);
    device.join();
    for lost in [false, true] {
        if lost {
            device.lose_certificate();
        }
        let (before, events) = (server.status("gw"), server.events("gw"));
        backend.take_away();
        for _ in 0..3 {
            postponed(&device);
        }
        assert_eq!(server.status("gw"), before, "nothing was consumed");
        assert_eq!(server.events("gw"), events);
        backend.bring_back();
        device.join();
    }
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.recovery"]);
    assert_eq!(server.status("gw")["recovery_count"], json!(2));
    assert!(server.log().contains("CA key: "), "{}", server.log());
}

#[expect(clippy::needless_pass_by_value, reason = "one signature for the suite")]
fn a_ca_is_replaced_by_one_with_keys_beside_the_old_ones(backend: Backend) {
    let mut server = backend.server();
    let (device, off) = (server.device("gw", 1), server.device("off", 1));
    device.join();
    off.join();
    for step in
        [&["ca", "rotate"][..], &["ca", "rotate", "--to", "active", "--yes"], &["ca", "rotate", "--to", "retired", "--yes"]]
    {
        server.ctl(step);
        device.join();
    }
    let next = KEYS.map(|name| format!("{name}-2"));
    assert!(next.iter().all(|name| backend.keys(&server).contains(name)), "{:?}", backend.keys(&server));
    server.stop();
    server.run();
    off.join();
    assert_eq!(server.events("off"), ["join.first", "join.renewal"]);
}

#[expect(clippy::needless_pass_by_value, reason = "one signature for the suite")]
fn a_ca_stands_under_another_s_root(backend: Backend) {
    let (company, mut server) = (Company::new(), backend.blank());
    let (request, chain) = (server.dir.join("ca.csr"), server.dir.join("chain.pem"));
    success(backend.init(&server).arg("--ca-request").arg(&request));
    std::fs::write(&chain, company.chain(&request)).expect("write");
    server.ca_pin = pin(&success(backend.init(&server).arg("--ca-chain").arg(&chain)).stdout);
    assert_eq!((server.ca_pin.clone(), backend.keys(&server)), (company.pin(), KEYS.map(str::to_owned).to_vec()));
    server.run();
    server.device("gw", 1).join();
}

fn a_missing_key_is_told_at_the_start(mut backend: Backend) {
    let mut server = backend.server();
    server.stop();
    backend.take_away();
    fails(&mut server.command(), 1, "CA key: ", "see that the TPM or token is there");
    backend.bring_back();
    backend.delete(&server, "ca-x509");
    fails(&mut server.command(), 1, "ca-x509", "nothing was overwritten");
    assert_eq!(backend.keys(&server).len(), 3, "none is made anew");
}

/// Killed at each of its syncs in turn, and at each of its writes to TPM and lock.
#[expect(clippy::needless_pass_by_value, reason = "one signature for the suite")]
fn an_init_that_is_killed_goes_on_where_it_stopped(backend: Backend) {
    let strace = tool("strace", "strace");
    let mut server = backend.blank();
    let mut killed = 0;
    for nth in 1.. {
        let init = backend.init(&server);
        let mut traced = Command::new(&strace);
        traced.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync",
            "-e",
            &format!("inject=fsync:signal=SIGKILL:when={nth}"),
        ]);
        traced.arg(init.get_program()).args(init.get_args()).envs(server.env.iter().cloned()).env("TSS2_LOG", "all+none");
        let output = run(&mut traced);
        if output.status.success() {
            server.ca_pin = pin(&output.stdout);
            break;
        }
        assert_eq!(output.status.code(), None, "killed, and not refused: {output:?}");
        killed += 1;
        if server.dir.join("data/cluster.json").exists() {
            let told = run(&mut backend.init(&server));
            let said = String::from_utf8_lossy(&told.stderr).into_owned();
            let at = said.find("sha256:").unwrap_or_else(|| panic!("no pin: {said}"));
            said[at..at + 71].clone_into(&mut server.ca_pin);
            break;
        }
    }
    assert!(killed >= 5, "{killed}");
    assert_eq!(backend.keys(&server), KEYS, "no key twice, and none lost");
    server.run();
    server.device("gw", 1).join();
}

fn a_backup_starts_where_its_keys_are_and_only_there(mut backend: Backend) {
    let mut server = backend.server();
    let device = server.device("gw", 1);
    device.join();
    let (data, backup) = (server.dir.join("data"), server.dir.join("backup"));
    let mut copy = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
    success(copy.arg("backup").arg("--data-dir").arg(&data).arg(&backup));
    let keys = files(&backup.join("keys"));
    assert!(keys.iter().all(|name| name.ends_with(".tss2.pem")), "no key in a file: {keys:?}");
    assert!(server.stop().success());
    std::fs::remove_dir_all(&data).expect("remove");
    std::fs::rename(&backup, &data).expect("rename");
    backend.take_away();
    fails(&mut server.command(), 1, "CA key: ", "see that the TPM or token is there");
    backend.bring_back();
    server.run();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// A TPM that hangs holds up joins, and nothing else; they go on when it does.
#[test]
fn a_tpm_that_hangs_holds_up_joins_alone() {
    let backend = Backend::tpm();
    let server = backend.server();
    let Backend::Tpm(tpm) = &backend else { unreachable!() };
    // More of them than the server has threads for its work.
    let devices: Vec<_> = (0..6).map(|n| server.device(&format!("gw-{n}"), 1)).collect();
    tpm.signal("-STOP");
    let log = |device: &Device| std::fs::File::create(device.dir.join("log")).expect("log");
    let joins: Vec<_> = devices
        .iter()
        .map(|device| Running(device.command(&["start", "--oneshot"]).stderr(log(device)).spawn().expect("boundkey")))
        .collect();
    let waiting = |device: &Device| device.storage().join("state").exists();
    wait_for("the joins to be under way", || devices.iter().all(waiting));
    // Not for long: a server gives up a TPM that hangs for 30 s.
    for _ in 0..5 {
        server.ctl(&["get", "token/gw-0"]);
        let doctor = run(&mut devices[0].command(&["doctor"]));
        assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    server"), "{doctor:?}");
    }
    assert!(devices.iter().all(|device| server.events(&device.token).is_empty()), "none has joined");
    tpm.signal("-CONT");
    for (join, device) in joins.into_iter().zip(&devices) {
        assert!(join.wait().success(), "{}", device.log());
    }
}

#[test]
fn a_tpm_that_was_cleared_is_told_at_the_start() {
    let backend = Backend::tpm();
    let mut server = backend.server();
    server.stop();
    let Backend::Tpm(tpm) = &backend else { unreachable!() };
    process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
    fails(&mut server.command(), 1, "CA key: ", "bring back the TPM or token");
    let other = Swtpm::start();
    let path = server.dir.join("data/cluster.json");
    let cluster = std::fs::read_to_string(&path).expect("cluster.json").replace(&tpm.tcti(), &other.tcti());
    std::fs::write(&path, cluster).expect("write");
    fails(&mut server.command(), 1, "another Name than at enrolment", "bring back the TPM or token");
}

#[test]
fn a_wrong_pin_is_told_and_tried_once() {
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let server = backend.blank();
    let right = std::fs::read(hsm.pin_file()).expect("a PIN");
    std::fs::write(hsm.pin_file(), "not-it").expect("write");
    fails(&mut backend.init(&server), 1, "the PIN is wrong", "PIN or auth value");
    std::fs::write(hsm.pin_file(), &right).expect("write");
    success(&mut backend.init(&server));
    std::fs::write(hsm.pin_file(), "not-it").expect("write");
    fails(&mut server.command(), 1, "the PIN is wrong", "PIN or auth value");
    std::fs::remove_file(hsm.pin_file()).expect("remove");
    fails(&mut server.command(), 1, "the PIN file", "the TPM or token is there");
}

/// The PIN from the environment, the token by its parts.
#[test]
fn a_pin_in_the_environment() {
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let mut server = backend.blank();
    let module = softhsm::module().display().to_string();
    let options = ["--ca-keystore", "pkcs11", "--module", &module, "--token", softhsm::LABEL];
    fails(&mut server.init_command(&options), 1, "wants a PIN", "PIN or auth value");
    server.env.push(("BOUNDKEY_PIN", softhsm::PIN.into()));
    server.ca_pin = pin(&success(&mut server.init_command(&options)).stdout);
    let remembered = std::fs::read_to_string(server.dir.join("data/cluster.json")).expect("cluster.json");
    assert!(remembered.contains(softhsm::LABEL) && !remembered.contains(softhsm::PIN), "{remembered}");
    server.run();
    server.device("gw", 1).join();
    assert_eq!(backend.keys(&server), KEYS);
    let _ = hsm;
}

/// Two clusters on one token would be one: the second is refused, and the first is left as it is.
#[test]
fn a_token_with_the_keys_of_another_cluster() {
    let backend = Backend::pkcs11();
    let server = backend.server();
    let second = backend.blank();
    fails(&mut backend.init(&second), 1, "the token has keys of another cluster: ca-", "use another token");
    assert!(!second.dir.join("data/cluster.json").exists());
    server.device("gw", 1).join();
}

#[test]
fn options_that_do_not_go_together() {
    let server = Server::blank(Vec::new());
    for (options, what) in [
        (&["--tcti", "device:/dev/tpmrm0"][..], "`tcti` does not go with this type of key store"),
        (&["--ca-keystore", "hsm"], "\"hsm\" is not a type of key store"),
        (&["--ca-keystore", "pkcs11"], "no PKCS#11 module is named"),
        (&["--ca-keystore", "tpm", "--auth-path", "auth"], "\"auth\" is not an absolute path"),
    ] {
        fails(&mut server.init_command(options), 2, what, "");
    }
    assert!(!server.dir.join("data").exists());
}
