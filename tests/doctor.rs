//! `boundkey doctor`: what is well, what is not, and that looking changes nothing.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "../hal/tests/support/mod.rs"]
#[cfg(all(feature = "pkcs11", feature = "tpm"))]
mod hal_support;
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use support::wall_clock::WallClock;
use support::{Device, Server, run, wait_for};

/// Findings of a doctor: check, outcome, message and advice.
struct Findings(Vec<[String; 4]>, i32);

impl Findings {
    fn of(command: &mut Command) -> Self {
        let output = run(command.args(["--format", "json"]));
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
        let checks = json["checks"].as_array().expect("checks").iter();
        let all: Vec<_> = checks.map(|c| ["check", "outcome", "message", "advice"].map(|field| text(c, field))).collect();
        let code = output.status.code().expect("an exit code");
        assert_eq!(json["ok"], Value::Bool(code == 0));
        assert!(all.iter().all(|[_, outcome, _, advice]| (outcome == "ok") == advice.is_empty()), "advice where it is needed");
        Self(all, code)
    }

    /// There is such a finding, and its advice; the exit code fits.
    #[track_caller]
    fn has(&self, outcome: &str, check: &str, message: &str, advice: &str) {
        let fits = |f: &&[String; 4]| f[0] == check && f[1] == outcome && f[2].contains(message) && f[3].contains(advice);
        assert!(self.0.iter().any(|f| fits(&f)), "no {outcome} {check} {message:?} {advice:?} in {:#?}", self.0);
        assert!(outcome != "fail" || self.1 == 1, "exit code {}", self.1);
    }

    #[track_caller]
    fn is_well(&self) {
        assert!(self.1 == 0 && self.0.iter().all(|[check, outcome, ..]| outcome == "ok" || check == "hardware"), "{:#?}", self.0);
    }
}

fn doctor(device: &Device) -> Findings {
    Findings::of(&mut device.command(&["doctor"]))
}

/// Names and contents of the storage.
fn contents(device: &Device) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(device.storage()).expect("storage").map(|entry| entry.expect("entry"));
    let mut all: Vec<_> = entries.map(|e| (e.file_name(), std::fs::read(e.path()).expect("content"))).collect();
    all.sort();
    all
}

#[test]
fn a_device_from_its_first_day_on() {
    let server = Server::start();
    let device = server.device("gw", 2);
    let first = doctor(&device);
    first.has("warn", "storage", "is not there yet", "nothing to do");
    first.has("ok", "state", "never joined", "");
    first.has("ok", "server", "cluster test.example, version", "");
    assert!(first.1 == 0 && !device.storage().exists());
    device.join();
    let before = contents(&device);
    let well = doctor(&device);
    well.is_well();
    well.has("ok", "key", "bound-1 (Ed25519) signs", "");
    well.has("ok", "key store", "makes a key (Ed25519), signs with it, and deletes it", "");
    well.has("ok", "identity", "certificate until ", "");
    well.has("ok", "recoveries", "1 left of 2", "");
    assert_eq!(contents(&device), before, "looking changes nothing");
    // For a person: a line each.
    let text = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("UTF-8");
    assert!(text.lines().all(|line| line.starts_with("ok  ")), "{text}");
    // Beside a daemon, and the other way round.
    let daemon = device.daemon();
    wait_for("the daemon's join", || server.events("gw").len() > 1 && server.was_heard(&device));
    let pid = daemon.0.id().to_string();
    doctor(&device).has("ok", "storage", &format!("an agent runs on it, process {pid}"), "");
    drop(daemon);
    device.lose_certificate();
    doctor(&device).has("warn", "identity", "missing or damaged", "recoveries");
    device.join();
    doctor(&device).has("warn", "recoveries", "none is left of 2", "raise spec.bound_keypair.recovery.limit of token gw");
}

#[test]
fn storage_that_is_not_well() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    device.join();
    let mode = |mode| std::fs::set_permissions(device.storage(), std::fs::Permissions::from_mode(mode)).expect("mode");
    mode(0o755);
    doctor(&device).has("warn", "storage", "0755: others can look in", "chmod 700");
    mode(0o700);
    let state = device.storage().join("state");
    let whole = std::fs::read(&state).expect("a state file");
    let damaged = |places: &[usize]| {
        let mut bytes = whole.clone();
        for at in places {
            bytes[*at] ^= 1;
        }
        std::fs::write(&state, bytes).expect("write");
        doctor(&device)
    };
    damaged(&[100]).has("warn", "state", "one slot is torn or damaged", "nothing was lost");
    damaged(&[100, 4196]).has("fail", "state", "neither slot holds", "nothing was overwritten");
    damaged(&[]).is_well();
    // A key that was swapped, one that is gone, and what a broken-off doctor left behind.
    let key = device.storage().join("key-bound-1.pem");
    let own = std::fs::read(&key).expect("a key");
    let other = server.device("other", 1);
    other.join();
    std::fs::copy(other.storage().join("key-bound-1.pem"), &key).expect("copy");
    doctor(&device).has("fail", "key", "replaced or of another device", "nothing was overwritten");
    std::fs::remove_file(&key).expect("remove");
    doctor(&device).has("fail", "key", "No such file", "restore the key");
    std::fs::write(&key, &own).expect("write");
    std::fs::write(device.storage().join("key-doctor-throw-away.pem"), &own).expect("write");
    doctor(&device).is_well();
    assert!(!device.storage().join("key-doctor-throw-away.pem").exists());
}

#[test]
fn a_server_that_is_not_well() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let another = Server::start();
    let secret = "  bound_keypair: {registration_secret: unused}";
    device.configure_with(&server.addr, &another.ca_pin, secret, "");
    doctor(&device).has("fail", "server", "another CA than the pinned one", "compare ca_pins");
    device.configure_with(&another.addr, &another.ca_pin, secret, "");
    // The same cluster name; only the token tells.
    let findings = doctor(&device);
    findings.has("ok", "server", "is the one trusted", "");
    findings.has("fail", "token", "no such token", "check onboarding.token");
    device.configure(&server, secret, "");
    server.stop();
    doctor(&device).has("fail", "server", "no connection", "check the network");
    let (code, _) = device.try_join();
    assert_eq!(code, 3);
    server.run();
    doctor(&device).has("warn", "last join", "no connection", "check the network");
}

#[test]
fn a_token_that_cannot_be_joined_with() {
    let server = Server::start();
    let device = server.device("gw", 1);
    doctor(&device).has("ok", "token", "gw waits for its first join; there is a registration secret, not compared", "");
    let secret = device.dir.join("secret");
    let onboarding = format!("  bound_keypair: {{registration_secret_path: {}}}", secret.display());
    device.configure(&server, &onboarding, "");
    doctor(&device).has("fail", "token", "secret: No such file", "create it");
    std::fs::write(&secret, " \n").expect("write");
    doctor(&device).has("fail", "token", "does not hold one value", "write the registration secret into it");
    device.configure(&server, "", "");
    doctor(&device).has("fail", "token", "no registration secret is configured", "boundkey keypair create");
    assert!(!device.storage().exists(), "nothing was begun");
    let real = server.status("gw")["registration_secret"].clone();
    std::fs::write(&secret, real.as_str().expect("a secret")).expect("write");
    device.configure(&server, &onboarding, "");
    device.join();
    // Once the key is bound, the secret may go.
    std::fs::remove_file(&secret).expect("remove");
    doctor(&device).has("ok", "token", "gw trusts a key of this device", "");
    // A key that nobody but another device has.
    let other = server.device("other", 1);
    other.join();
    let text = std::fs::read_to_string(device.config()).expect("a configuration");
    std::fs::write(device.config(), text.replace("token: gw", "token: other")).expect("write");
    doctor(&device).has("fail", "token", "which this device does not have", "onboarding.token");
    let events = server.events("gw").len() + server.events("other").len();
    assert_eq!(events, 2, "two joins: looking is no event");
}

#[test]
fn configuration_outputs_and_clock() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let file = device.dir.join("file");
    std::fs::write(&file, "").expect("write");
    let output = |path: &str, more: &str| {
        let yaml = format!("outputs:\n  - type: x509\n    destination: {{type: directory, path: {path}{more}}}");
        device.configure(&server, "  bound_keypair: {registration_secret: x}", &yaml);
        doctor(&device)
    };
    let below = device.dir.join("out/mqtt").display().to_string();
    output(&below, "").has("ok", "output", "can be written", "");
    output(&below, ", group: no-such-group").has("fail", "output", "there is no user or group no-such-group", "create it");
    let reload = |program: &str| output(&below, &format!("}}\n    reload: {{command: [{program}]"));
    assert!(reload("sh").0.iter().all(|[check, outcome, ..]| check != "output" || outcome == "ok"));
    for missing in ["no-such-program", &file.display().to_string()] {
        reload(missing).has("warn", "output", &format!("there is no program {missing} to reload by"), "reload.command");
    }
    output(&format!("{}/x", file.display()), "").has("fail", "output", "is not a directory", "correct destination.path");
    device.configure(&server, "  bound_keypair: {registration_secret: x}", "nonsense: 1");
    doctor(&device).has("fail", "config", "nonsense", "");
    std::fs::remove_file(device.config()).expect("remove");
    doctor(&device).has("fail", "config", "No such file", "create it");
}

#[test]
fn a_clock_that_is_wrong() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let by = |clock: &WallClock| Findings::of(device.command(&["doctor"]).envs(clock.env()));
    let unset = by(&WallClock::showing(60));
    unset.has("warn", "clock", "the system clock says 1970-01-01T", "set up time synchronisation");
    unset.has("warn", "clock", "behind the server's", "goes by the server's time");
    unset.has("ok", "server", "is the one trusted", "");
    by(&WallClock::off_by(2 * 60 * 60)).has("warn", "clock", " ahead of the server's", "NTP");
}

#[cfg(all(feature = "pkcs11", feature = "tpm"))]
mod hardware {
    use super::hal_support::process;
    use super::hal_support::softhsm::{self, SoftHsm};
    use super::hal_support::swtpm::Swtpm;
    use super::support::{Device, Server, TempDir};
    use super::{contents, doctor};

    fn configure(device: &Device, server: &Server, keystore: &str) {
        let secret = server.status(&device.token)["registration_secret"].clone();
        let secret = secret.as_str().unwrap_or("used");
        let onboarding = format!("  bound_keypair: {{registration_secret: {secret}}}");
        device.configure(server, &onboarding, &format!("keystore: {{{keystore}}}"));
    }

    #[test]
    fn a_tpm() {
        let (server, mut tpm) = (Server::start(), Swtpm::start());
        let device = server.device("gw", 2);
        let keystore = format!("type: tpm, tcti: \"{}\"", tpm.tcti());
        configure(&device, &server, &keystore);
        let first = doctor(&device);
        first.has("ok", "key store", "TPM 2.0 IBM SW TPM, firmware ", "");
        first.has("warn", "key store", "not tried whether it makes keys", "mend the storage first");
        let persistent = || process::run(tpm.tool("tpm2_getcap").arg("handles-persistent"));
        assert_eq!(persistent(), "", "looking leaves nothing in the TPM");
        device.join();
        let before = contents(&device);
        doctor(&device).is_well();
        assert_eq!(contents(&device), before);
        assert_eq!(tpm.loaded(), "");

        // Locked by another program: ours goes on, and says so.
        lock(&tpm);
        let locked = doctor(&device);
        locked.has("warn", "key store", "the TPM is in dictionary-attack lockout (", "--clear-lockout");
        locked.has("ok", "key", "bound-1 (P-256) signs", "");
        device.join();

        tpm.cut_power();
        doctor(&device).has("fail", "key store", "is not reachable", "try again");
        tpm.power_on();
        process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
        doctor(&device).has("fail", "key", "TPM cleared", "boundkey keypair create --overwrite");
        configure(&device, &server, "type: tpm, tcti: \"device:/dev/no-tpm-here\"");
        doctor(&device).has("fail", "key store", "/dev/no-tpm-here does not exist", "see that the device");
    }

    /// Wrong tries of a key under dictionary-attack protection, until the TPM has enough of them.
    fn lock(tpm: &Swtpm) {
        process::run(tpm.tool("tpm2_createprimary").args(["-Q", "-C", "o", "-c", "primary.ctx"]));
        process::run(tpm.tool("tpm2_create").args([
            "-Q",
            "-C",
            "primary.ctx",
            "-G",
            "ecc",
            "-p",
            "right",
            "-u",
            "k.pub",
            "-r",
            "k.priv",
        ]));
        process::run(tpm.tool("tpm2_flushcontext").arg("-t"));
        process::run(tpm.tool("tpm2_load").args(["-Q", "-C", "primary.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx"]));
        process::run(tpm.tool("tpm2_flushcontext").arg("-t"));
        std::fs::write(tpm.state().join("message"), "x").expect("write");
        for _ in 0..4 {
            let mut sign = tpm.tool("tpm2_sign");
            let output = sign.args(["-Q", "-c", "k.ctx", "-p", "wrong", "-o", "signature", "message"]).output().expect("run");
            assert!(!output.status.success());
            process::run(tpm.tool("tpm2_flushcontext").arg("-t"));
        }
    }

    #[test]
    fn a_token() {
        let (server, dir) = (Server::start(), TempDir::new("softhsm"));
        let hsm = SoftHsm::new(dir.path());
        let mut device = server.device("gw", 1);
        device.env = hsm.environment();
        let keystore = format!("type: pkcs11, uri: \"{}\"", hsm.uri());
        configure(&device, &server, &keystore);
        device.join();
        doctor(&device).has("ok", "key", "bound-1 (Ed25519) signs", "");
        doctor(&device).has("ok", "hardware", "libsofthsm2.so: PKCS#11 module", "");
        let listed = process::run(hsm.pkcs11_tool().args(["--list-objects", "--type", "privkey"]));
        assert!(listed.contains("boundkey-bound-1") && !listed.contains("doctor"), "{listed}");

        let right = std::fs::read(hsm.pin_file()).expect("a PIN");
        std::fs::write(hsm.pin_file(), "wrong").expect("write");
        let wrong = doctor(&device);
        wrong.has("fail", "key", "the PIN is wrong", "PIN");
        assert_eq!(wrong.0.iter().filter(|f| f[2].contains("PIN")).count(), 1, "tried once: {:#?}", wrong.0);
        std::fs::write(hsm.pin_file(), right).expect("write");
        let module = softhsm::module().display().to_string();
        configure(&device, &server, &keystore.replace(&module, "/usr/lib/no-such-module.so"));
        doctor(&device).has("fail", "key store", "there is no PKCS#11 module", "library");
    }
}
