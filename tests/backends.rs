//! The whole agent on each key store: file, TPM (swtpm) and PKCS#11 (SoftHSM2, and tpm2-pkcs11 over swtpm). One suite, and what
//! each store can do wrong.
#![cfg(all(feature = "agent", feature = "auth", feature = "tpm", feature = "pkcs11"))]

#[path = "../hal/tests/support/mod.rs"]
mod hal_support;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use hal_support::process;
use hal_support::softhsm::{self, SoftHsm};
use hal_support::swtpm::Swtpm;
use hal_support::tpm2_pkcs11::{self as tpm2_token, Tpm2Pkcs11};
use serde_json::{Value, json};
use support::proxy::{Proxy, Way};
use support::{Device, Server, TempDir, agent, run, success, wait_for};

/// A key store with nothing in it.
enum Backend {
    File,
    Pkcs11(SoftHsm, #[expect(dead_code, reason = "goes with the test")] TempDir),
    Tpm(Swtpm),
    Tpm2Pkcs11(#[expect(dead_code, reason = "goes with the test")] Tpm2Pkcs11, PathBuf),
}

impl Backend {
    fn pkcs11() -> Self {
        let dir = TempDir::new("softhsm");
        Self::Pkcs11(SoftHsm::new(dir.path()), dir)
    }

    fn tpm() -> Self {
        Self::Tpm(Swtpm::start())
    }

    /// Runs `test`, named `name`, in a process of its own: its daemons find each other by the environment.
    fn with_tpm2_pkcs11(name: &str, test: fn(&Self)) {
        process::isolated(name, tpm2_token::environment, |dir| test(&Self::Tpm2Pkcs11(Tpm2Pkcs11::start(dir), dir.into())));
    }

    fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        match self {
            Self::File | Self::Tpm(_) => Vec::new(),
            Self::Pkcs11(hsm, _) => hsm.environment(),
            Self::Tpm2Pkcs11(_, dir) => tpm2_token::environment(dir),
        }
    }

    /// The URI of the token, with module and PIN.
    fn uri(&self) -> Option<String> {
        match self {
            Self::File | Self::Tpm(_) => None,
            Self::Pkcs11(hsm, _) => Some(hsm.uri()),
            Self::Tpm2Pkcs11(_, dir) => Some(format!(
                "pkcs11:token={}?module-path={}&pin-source=file:{}",
                tpm2_token::LABEL,
                tpm2_token::module().display(),
                tpm2_token::pin_file(dir).display()
            )),
        }
    }

    /// The configuration's `keystore`.
    fn yaml(&self) -> String {
        match self {
            Self::File => "keystore: {type: file}".into(),
            Self::Tpm(tpm) => tpm_yaml(&tpm.tcti()),
            Self::Pkcs11(..) | Self::Tpm2Pkcs11(..) => pkcs11_yaml(&self.uri().expect("a URI")),
        }
    }

    fn algorithm(&self) -> &'static str {
        if matches!(self, Self::File) { "ssh-ed25519" } else { "ecdsa-sha2-nistp256" }
    }

    /// A device that keeps its keys here.
    fn equip(&self, device: &mut Device, server: &Server, addr: &str, onboarding: &str) {
        device.env = self.environment();
        device.configure_with(addr, &server.ca_pin, onboarding, &self.yaml());
    }

    /// A device with a token and its secret.
    fn device(&self, server: &Server, name: &str, limit: u32) -> Device {
        let mut device = server.device(name, limit);
        self.equip(&mut device, server, &server.addr, &secret(server, name));
        device
    }
}

fn tpm_yaml(tcti: &str) -> String {
    format!("keystore: {{type: tpm, tcti: \"{tcti}\"}}")
}

fn pkcs11_yaml(uri: &str) -> String {
    format!("keystore: {{type: pkcs11, uri: \"{uri}\"}}")
}

/// The configuration's lines for joining with the token's secret.
fn secret(server: &Server, token: &str) -> String {
    let secret = server.status(token)["registration_secret"].clone();
    format!("  bound_keypair: {{registration_secret: {}}}", secret.as_str().expect("a registration secret"))
}

/// `boundkey keypair create`: the public key.
fn create(device: &Device, more: &[&str]) -> String {
    let output = success(&mut device.command(&[&["keypair", "create", "--format", "json"], more].concat()));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    json["public_key"].as_str().expect("public_key").to_owned()
}

/// Every key store, the same tests.
macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        suite!(file, |_, test| test(&Backend::File), $($test),*);
        suite!(pkcs11, |_, test| test(&Backend::pkcs11()), $($test),*);
        suite!(tpm, |_, test| test(&Backend::tpm()), $($test),*);
        suite!(tpm2_pkcs11, Backend::with_tpm2_pkcs11, $($test),*);
    };
    ($store:ident, $run:expr, $($test:ident),*) => {
        mod $store {
            use super::Backend;
            $(#[test]
            fn $test() {
                let run: fn(&str, fn(&Backend)) = $run;
                run(concat!(stringify!($store), "::", stringify!($test)), super::$test);
            })*
        }
    };
}

suite!(
    a_registered_key,
    a_secret_renewals_and_a_recovery,
    rotation_and_key_history,
    a_lost_answer_costs_nothing,
    a_lost_state_file,
);

/// The key is printed, kept at the second call, and joins.
fn a_registered_key(backend: &Backend) {
    let server = Server::start();
    let mut device = Device::new(&server, "gw", "unused");
    backend.equip(&mut device, &server, &server.addr, "");
    let key = create(&device, &[]);
    assert!(key.starts_with(backend.algorithm()), "{key}");
    assert_eq!(create(&device, &[]), key, "the second call keeps the key");
    assert_ne!(create(&device, &["--overwrite"]), key);
    let document = success(&mut device.command(&["keypair", "create"])).stdout;
    server.create(&String::from_utf8(document).expect("UTF-8"));
    device.join();
    assert_eq!(server.events("gw"), ["join.first"]);
    let status = device.status();
    assert_eq!((&status["keystore"]["key"], &status["recovery"]["remaining"]), (&json!("bound-2"), &json!(0)));
    assert_says_where(backend, &device, &status["keystore"]);
}

/// `boundkey status` says where the key lives.
fn assert_says_where(backend: &Backend, device: &Device, keystore: &Value) {
    let place = keystore["place"].as_str().expect("a place");
    let file = keystore["file"].as_str().unwrap_or_default();
    let text = String::from_utf8(success(&mut device.command(&["status"])).stdout).expect("UTF-8");
    match backend {
        Backend::File => assert_eq!(file, device.storage().join("key-bound-2.pem").to_str().expect("UTF-8")),
        Backend::Pkcs11(..) | Backend::Tpm2Pkcs11(..) => {
            assert!(place.contains("token=edge") && place.contains("serial="), "{place}");
            let module = keystore["module"].as_str().expect("a module");
            assert!(backend.uri().expect("a URI").contains(module) && text.contains(module), "{text}");
        }
        Backend::Tpm(_) => {
            assert!(place.starts_with("TPM 2.0 IBM") && place.contains("firmware "), "{place}");
            assert_eq!(file, device.storage().join("key-bound-2.tss2.pem").to_str().expect("UTF-8"));
            assert!(text.contains(file), "{text}");
        }
    }
    let hardware = matches!(backend, Backend::Tpm(_) | Backend::Tpm2Pkcs11(..));
    assert_eq!(keystore["hardware"], json!(hardware), "SoftHSM2 says that it is software");
}

fn a_secret_renewals_and_a_recovery(backend: &Backend) {
    let server = Server::start();
    let device = backend.device(&server, "gw", 2);
    for _ in 0..3 {
        device.join();
    }
    device.lose_certificate();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.recovery"]);
    device.lose_certificate();
    let (code, said) = device.try_join();
    assert_eq!(code, 5, "{said}");
    server.ctl(&["exempt", "token/gw"]);
    device.join();
    assert_eq!(server.events("gw").last().expect("an event"), "exemption.used");
}

fn rotation_and_key_history(backend: &Backend) {
    let server = Server::start();
    let device = backend.device(&server, "gw", 1);
    device.join();
    let mut keys = vec![server.status("gw")["bound_public_key"].clone()];
    for n in 2..=3 {
        server.ctl(&["rotate", "token/gw"]);
        device.join();
        let status = device.status();
        assert_eq!(status["keystore"]["key"], json!(format!("bound-{n}")));
        keys.push(server.status("gw")["bound_public_key"].clone());
        device.join();
    }
    keys.dedup();
    assert_eq!(keys.len(), 3, "three keys, one after the other");
    // An operator who restores the server from a backup goes back to an older key: all are still there.
    let found = if let Some(uri) = backend.uri() {
        let mut list = agent();
        let list = list.args(["hsm", "keys", "--format", "json", "--uri", &uri]).envs(backend.environment());
        let keys: Value = serde_json::from_slice(&success(list).stdout).expect("JSON");
        keys.as_array().expect("a list").len()
    } else {
        let names = std::fs::read_dir(device.storage()).expect("storage").map(|e| e.expect("entry").file_name());
        names.filter(|name| name.to_string_lossy().starts_with("key-")).count()
    };
    assert!(found >= 3, "{found}");
}

/// The link breaks in the middle of the answer: to a first join, a renewal, a rotation and a recovery.
fn a_lost_answer_costs_nothing(backend: &Backend) {
    let server = Server::start();
    let link = Proxy::to(&server.addr);
    // The twin takes the same steps undisturbed, and so tells how many bytes come back.
    let [device, twin] = ["one", "two"].map(|name| {
        let mut device = server.device(name, 2);
        backend.equip(&mut device, &server, &link.addr, &secret(&server, name));
        device
    });
    let lose = |what: &str, prepare: &dyn Fn(&Device)| {
        link.mend();
        prepare(&twin);
        twin.join();
        let whole = link.passed(Way::Down);
        link.mend();
        link.cut_after(Way::Down, whole - 300);
        prepare(&device);
        let (code, said) = device.try_join();
        assert!(link.is_broken() && code == 3, "{what}: {code} {said}");
        let joins: Vec<_> = server.events("one").into_iter().filter(|e| e.starts_with("join.")).collect();
        assert_eq!(joins.last().expect("a join"), what, "the server took the step");
        assert_eq!(device.status()["attempt_in_flight"], json!(true));
        link.mend();
        device.join();
        assert_eq!(server.events("one").pop().expect("an event"), "join.replay");
    };
    lose("join.first", &|_| {});
    lose("join.renewal", &|_| {});
    let before = server.status("one")["bound_public_key"].clone();
    lose("join.renewal", &|device| drop(server.ctl(&["rotate", &format!("token/{}", device.token)])));
    assert_ne!(server.status("one")["bound_public_key"], before);
    assert_eq!(device.status()["keystore"]["key"], json!("bound-2"), "the key whose answer was lost, not a third one");
    lose("join.recovery", &Device::lose_certificate);
    assert_eq!(server.status("one")["recovery_count"], json!(2), "the lost answer cost nothing");
    device.join();
    assert_eq!(server.events("one").iter().filter(|e| *e == "lock.created").count(), 0);
}

/// The keys are all that is left; they are taken up, and one command lets the device back in.
fn a_lost_state_file(backend: &Backend) {
    let server = Server::start();
    let device = backend.device(&server, "gw", 1);
    device.join();
    let key = server.status("gw")["bound_public_key"].clone();
    std::fs::remove_file(device.storage().join("state")).expect("a state file");
    server.ctl(&["exempt", "token/gw"]);
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("taken up"), "{code} {said}");
    assert_eq!(server.status("gw")["bound_public_key"], key);
}

/// A join that must fail for the key store: exit code 7, the sentence, and advice on a second line.
fn refused(device: &Device, sentence: &str, advice: &str) {
    let (code, said) = device.try_join();
    assert_eq!(code, 7, "{said}");
    let error = said.split("error: ").nth(1).expect("an error");
    let (first, second) = error.split_once('\n').expect("two lines");
    assert!(first.contains(sentence), "{first:?} lacks {sentence:?}");
    assert!(second.contains(advice), "{second:?} lacks {advice:?}");
}

/// What the storage holds, the report aside.
fn contents(device: &Device) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(device.storage()).expect("storage").map(|entry| entry.expect("entry").path());
    let name = |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let kept = entries.filter(|path| name(path) != "status.json");
    let mut contents: Vec<_> = kept.map(|path| (name(&path), std::fs::read(&path).expect("content"))).collect();
    contents.sort();
    contents
}

#[test]
fn a_tpm_that_is_not_there() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let mut device = server.device("gw", 1);
    let onboarding = secret(&server, "gw");
    device.configure(&server, &onboarding, &tpm_yaml(&tpm.tcti()));
    tpm.cut_power();
    refused(&device, "is not reachable", "try again");
    tpm.power_on();
    device.join();
    let before = contents(&device);
    tpm.cut_power();
    refused(&device, "is not reachable", "try again");
    assert_eq!(device.status()["keystore"]["error"].as_str().map(|e| e.contains("not reachable")), Some(true));
    assert_eq!(device.status()["last_error"]["type"], json!("keystore"));
    // Another TPM in its place is not taken for it, and nothing is made in it.
    let other = Swtpm::start();
    device.configure(&server, &onboarding, &tpm_yaml(&other.tcti()));
    refused(&device, "another Name than at enrolment", "keypair create --overwrite");
    let strip = |contents: Vec<(String, Vec<u8>)>| contents.into_iter().filter(|(name, _)| name != "state").collect::<Vec<_>>();
    assert_eq!(strip(contents(&device)), strip(before), "nothing was overwritten");
    device.configure(&server, &onboarding, "keystore: {type: tpm, tcti: \"device:/dev/tpm-of-nobody\"}");
    refused(&device, "/dev/tpm-of-nobody does not exist", "try again");
    device.env.push(("TSS2_LOG", "all+error".into()));
    tpm.power_on();
    device.configure(&server, &onboarding, &tpm_yaml(&tpm.tcti()));
    device.join();
}

/// The library's own reports of what is no error stay out of the way, unless somebody asks for them.
#[test]
fn stderr_is_ours() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    let output = success(device.command(&["start", "--oneshot"]).env_remove("TSS2_LOG"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.lines().all(|line| line.contains(" INFO ") || line.contains("the server says")), "{said}");
    tpm.cut_power();
    let output = run(device.command(&["start", "--oneshot"]).env_remove("TSS2_LOG"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(7) && !said.contains("tcti:"), "{said}");
    let output = run(device.command(&["start", "--oneshot"]).env("TSS2_LOG", "all+error"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("tcti:"), "{said}");
}

#[test]
fn a_key_of_another_tpm_and_a_truncated_one() {
    let (server, backend) = (Server::start(), Backend::tpm());
    let device = backend.device(&server, "gw", 1);
    device.join();
    let other = Backend::tpm();
    let foreign = other.device(&server, "foreign", 1);
    foreign.join();
    let file = device.storage().join("key-bound-1.tss2.pem");
    let own = std::fs::read(&file).expect("a key");
    std::fs::copy(foreign.storage().join("key-bound-1.tss2.pem"), &file).expect("copy");
    refused(&device, "replaced or of another device", "nothing was overwritten");
    std::fs::write(&file, &own[..own.len() / 2]).expect("write");
    refused(&device, "key-bound-1.tss2.pem", "nothing was overwritten");
    std::fs::write(&file, own).expect("write");
    device.join();
}

/// Keys with an auth value of their own, from a file or the environment; a wrong one locks nothing.
#[test]
fn a_tpm_key_with_an_auth_value() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let mut device = server.device("gw", 1);
    let file = device.dir.join("auth");
    std::fs::write(&file, "open sesame\n").expect("write");
    let keystore = format!("keystore: {{type: tpm, tcti: \"{}\", auth_path: {}}}", tpm.tcti(), file.display());
    device.configure(&server, &secret(&server, "gw"), &keystore);
    device.join();
    std::fs::write(&file, "close sesame").expect("write");
    for _ in 0..5 {
        refused(&device, "the TPM refused the auth value", "PIN");
    }
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
    device.configure(&server, "", &tpm_yaml(&tpm.tcti()));
    refused(&device, "the TPM refused the auth value", "PIN");
    device.env.push(("BOUNDKEY_TPM_AUTH", "open sesame".into()));
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// The key is gone. An operator's way back is two commands, and nothing less.
#[test]
fn a_tpm_that_was_cleared() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    device.join();
    process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
    refused(&device, "cleared", "boundkey keypair create --overwrite");
    server.ctl(&["reset", "token/gw"]);
    refused(&device, "another Name than at enrolment", "boundkeyctl reset");
    create(&device, &["--overwrite"]);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    device.join();
    assert_eq!(device.status()["keystore"]["key"], json!("bound-2"));
}

#[test]
fn power_cuts_after_signing_lock_nothing() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    for _ in 0..12 {
        device.join();
        tpm.cut_power();
        tpm.power_on();
    }
    device.join();
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
}

/// swtpm is killed and comes back; the daemon joins again by itself, and says what happened.
#[test]
fn a_daemon_outlives_its_tpm() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    let more = format!("{}\ncredential_ttl: 10m\nrenewal_interval: 1s", tpm_yaml(&tpm.tcti()));
    device.configure(&server, &secret(&server, "gw"), &more);
    let daemon = device.daemon();
    let renewals = || server.events("gw").iter().filter(|e| *e == "join.renewal").count();
    wait_for("a renewal", || renewals() > 0);
    tpm.cut_power();
    wait_for("the daemon to notice", || device.log().contains("is not reachable"));
    tpm.power_on();
    let before = renewals();
    wait_for("a renewal after the TPM came back", || renewals() > before);
    wait_for("the daemon to say so", || device.log().contains("the key store works again"));
    // Stopped for a while: given up after the time limit, not for ever. Shorter stops pass unnoticed.
    tpm.signal("-STOP");
    std::thread::sleep(Duration::from_secs(3));
    tpm.signal("-CONT");
    let before = renewals();
    wait_for("a renewal after the TPM went on", || renewals() > before);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

/// Longer than a conversation may take: it is given up and named, and the TPM is left in peace until it goes on. The minute passes
/// beside the other tests.
#[test]
fn a_daemon_outlives_a_tpm_that_hangs_for_a_minute() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    let more = format!("{}\ncredential_ttl: 10m\nrenewal_interval: 1s", tpm_yaml(&tpm.tcti()));
    device.configure(&server, &secret(&server, "gw"), &more);
    let daemon = device.daemon();
    let renewals = || server.events("gw").iter().filter(|e| *e == "join.renewal").count();
    wait_for("a renewal", || renewals() > 0);
    tpm.signal("-STOP");
    let stopped = std::time::Instant::now();
    wait_for("the daemon to give up", || device.log().contains("the TPM gave no answer within 30s when asked to "));
    wait_for("the next try", || device.log().contains("the TPM is still hanging since it was asked to "));
    std::thread::sleep(Duration::from_secs(60).saturating_sub(stopped.elapsed()));
    assert_eq!(device.log().matches("gave no answer").count(), 1, "it is not asked again: {}", device.log());
    tpm.signal("-CONT");
    let before = renewals();
    wait_for("a renewal after the TPM went on", || renewals() > before);
    wait_for("the daemon to say so", || device.log().contains("the key store works again"));
    assert!(server.events("gw").iter().all(|event| event == "join.first" || event == "join.renewal"));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_token_with_a_wrong_pin_a_missing_module_and_no_token() {
    let server = Server::start();
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let device = backend.device(&server, "gw", 1);
    device.join();
    let onboarding = "";
    let wrong = device.dir.join("wrong-pin");
    std::fs::write(&wrong, "not-it").expect("write");
    let uri = hsm.uri().replace(&hsm.pin_file().display().to_string(), &wrong.display().to_string());
    device.configure(&server, onboarding, &pkcs11_yaml(&uri));
    refused(&device, "the PIN is wrong", "PIN");
    let module = softhsm::module().display().to_string();
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace(&module, "/usr/lib/no-such-module.so")));
    refused(&device, "there is no PKCS#11 module /usr/lib/no-such-module.so", "library");
    let libc = device.dir.join("not-a-module.so");
    std::fs::write(&libc, "text").expect("write");
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace(&module, &libc.display().to_string())));
    refused(&device, "is not a library", "library");
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace("token=edge", "token=other")));
    refused(&device, "no token is token=other", "try again");
    // Out, and back.
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri()));
    let away = hsm.tokens().with_extension("away");
    std::fs::rename(hsm.tokens(), &away).expect("rename");
    std::fs::create_dir(hsm.tokens()).expect("directory");
    refused(&device, "no token is token=edge", "try again");
    std::fs::remove_dir(hsm.tokens()).expect("remove");
    std::fs::rename(&away, hsm.tokens()).expect("rename");
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// A daemon asks again and again; a token that counts wrong PINs would be locked by it.
#[test]
fn a_daemon_tries_a_wrong_pin_once_and_takes_the_right_one_later() {
    let server = Server::start();
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let device = backend.device(&server, "gw", 1);
    let right = std::fs::read(hsm.pin_file()).expect("a PIN");
    std::fs::write(hsm.pin_file(), "not-it").expect("write");
    let daemon = device.daemon();
    wait_for("a second refusal", || device.log().contains("so it is not tried again"));
    assert_eq!(device.log().matches("PinIncorrect").count(), 1, "{}", device.log());
    std::fs::write(hsm.pin_file(), right).expect("write");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    wait_for("the join", || server.events("gw") == ["join.first"]);
    drop(daemon);
}

mod rollback {
    //! `storage.rollback_protection: tpm`.

    use std::path::Path;

    use super::support::{Device, Server, success};
    use super::{Swtpm, process, secret, tpm_yaml};

    /// The counter's index, as tpm2-tools write it.
    const INDEX: &str = "0x180b0cd";

    fn protected(server: &Server, tpm: &Swtpm, limit: u32) -> Device {
        let device = server.device("gw", limit);
        device.configure(server, &secret(server, "gw"), &tpm_yaml(&tpm.tcti()));
        let yaml = std::fs::read_to_string(device.config()).expect("configuration");
        let yaml = yaml.replace("{type: directory, path:", "{type: directory, rollback_protection: tpm, path:");
        std::fs::write(device.config(), yaml).expect("configuration");
        device
    }

    fn copy(from: &Path, to: &Path) {
        let _ = std::fs::remove_dir_all(to);
        success(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
    }

    /// A join that must be refused, with exit code 8 and advice, before the server hears of it.
    fn refused(server: &Server, device: &Device, why: &str) {
        let before = server.events("gw");
        let (code, said) = device.try_join();
        assert!(code == 8 && said.contains(why) && said.contains("boundkeyctl exempt"), "{code} {why}: {said}");
        assert_eq!(server.events("gw"), before, "the old join state was not presented");
        let doctor = super::run(&mut device.command(&["doctor"]));
        assert!(String::from_utf8_lossy(&doctor.stdout).contains("fail  rollback"), "{doctor:?}");
    }

    fn value(tpm: &Swtpm) -> u64 {
        let output = tpm.tool("tpm2_nvread").args([INDEX, "-C", INDEX]).output().expect("run");
        assert!(output.status.success(), "{output:?}");
        u64::from_be_bytes(output.stdout.try_into().expect("8 bytes"))
    }

    #[test]
    fn it_goes_with_keys_in_a_tpm() {
        let server = Server::start();
        let device = server.device("gw", 1);
        let yaml = std::fs::read_to_string(device.config()).expect("configuration");
        for (word, why) in [("tpm", "goes with keys in a TPM"), ("file", "is no protection from rollback")] {
            let protection = format!("{{type: directory, rollback_protection: {word}, path:");
            std::fs::write(device.config(), yaml.replace("{type: directory, path:", &protection)).expect("configuration");
            let (code, said) = device.try_join();
            assert!(code == 2 && said.contains(why), "{code}: {said}");
        }
    }

    #[test]
    fn an_old_copy_is_noticed_by_the_device() {
        let (server, tpm) = (Server::start(), Swtpm::start());
        let device = protected(&server, &tpm, 3);
        device.join();
        let old = device.dir.join("old");
        copy(&device.storage(), &old);
        let at = value(&tpm);
        for _ in 0..3 {
            device.join();
        }
        assert_eq!(value(&tpm), at + 3, "one bump a join");
        let new = device.dir.join("new");
        copy(&device.storage(), &new);
        copy(&old, &device.storage());
        refused(&server, &device, "it is 3 joins old by the TPM's counter");
        copy(&new, &device.storage());
        device.join();
        // Where the right one cannot be had back: the key is all it takes.
        copy(&old, &device.storage());
        std::fs::remove_file(device.storage().join("state")).expect("remove");
        server.ctl(&["exempt", "token/gw"]);
        device.join();
        device.join();
        assert!(server.events("gw").iter().all(|event| event != "lock.created"));
    }

    #[test]
    fn a_counter_that_is_missing_or_made_anew_is_tampering() {
        let (server, tpm) = (Server::start(), Swtpm::start());
        let device = protected(&server, &tpm, 1);
        device.join();
        device.join();
        process::run(tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]));
        refused(&server, &device, "the TPM's counter is gone");
        // Made anew it goes on where the old one was, and then counts once: the device is behind it.
        process::run(tpm.tool("tpm2_nvdefine").args([
            INDEX,
            "-C",
            "o",
            "-s",
            "8",
            "-a",
            "authread|authwrite|ownerread|no_da|nt=counter",
        ]));
        process::run(tpm.tool("tpm2_nvincrement").args([INDEX, "-C", INDEX]));
        refused(&server, &device, "joins old by the TPM's counter");
    }

    /// An operator's way back from a cleared TPM is the same as without protection, and protection goes on.
    #[test]
    fn a_tpm_that_was_cleared() {
        let (server, tpm) = (Server::start(), Swtpm::start());
        let device = protected(&server, &tpm, 1);
        device.join();
        process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
        let (code, said) = device.try_join();
        assert!(code == 7 && said.contains("TPM cleared"), "{code}: {said}");
        server.ctl(&["reset", "token/gw"]);
        super::create(&device, &["--overwrite"]);
        let old = std::fs::read_to_string(device.config()).expect("configuration");
        let secrets =
            old.lines().map(|line| if line.contains("registration_secret") { secret(&server, "gw") } else { line.into() });
        std::fs::write(device.config(), secrets.collect::<Vec<_>>().join("\n")).expect("configuration");
        device.join();
        let at = value(&tpm);
        device.join();
        assert_eq!(value(&tpm), at + 1);
    }

    /// Turned on for a device that has joined long ago; a copy from before does not get round it.
    #[test]
    fn a_copy_from_before_the_protection() {
        let (server, tpm) = (Server::start(), Swtpm::start());
        let device = protected(&server, &tpm, 1);
        let yaml = std::fs::read_to_string(device.config()).expect("configuration");
        std::fs::write(device.config(), yaml.replace("rollback_protection: tpm, ", "")).expect("configuration");
        device.join();
        let old = device.dir.join("old");
        copy(&device.storage(), &old);
        std::fs::write(device.config(), yaml).expect("configuration");
        device.join();
        copy(&old, &device.storage());
        refused(&server, &device, "it is from before the TPM's counter was made");
    }

    /// The agent is killed at each of its writes and syncs in turn: with the memory written and the counter not, it goes on.
    #[test]
    fn a_power_cut_between_memory_and_counter_locks_nobody_out() {
        let (server, tpm) = (Server::start(), Swtpm::start());
        let device = protected(&server, &tpm, 2);
        device.join();
        let strace = super::support::tool("strace", "strace");
        let (mut killed, mut before) = (0, value(&tpm));
        for call in ["fdatasync", "sendto", "fsync"] {
            for nth in 1..40 {
                let agent = device.command(&["start", "--oneshot"]);
                let mut traced = std::process::Command::new(&strace);
                traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
                traced.args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")]);
                traced.arg(agent.get_program()).args(agent.get_args()).env("TSS2_LOG", "all+none");
                let ended = super::run(&mut traced);
                device.join();
                assert!(value(&tpm) <= before + 2, "at most one bump a join");
                before = value(&tpm);
                if ended.status.success() {
                    break;
                }
                killed += 1;
            }
        }
        assert!(killed >= 6, "{killed}");
        assert!(server.events("gw").iter().all(|event| event != "lock.created" && event != "join.recovery"));
    }
}
