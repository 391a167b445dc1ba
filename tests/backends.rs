//! The whole agent on each key store: file, TPM (swtpm) and PKCS#11 (SoftHSM2, and tpm2-pkcs11 over swtpm). One suite, and what
//! each store can do wrong.
#![cfg(all(feature = "agent", feature = "auth", feature = "tpm", feature = "pkcs11"))]

#[path = "backends/faults.rs"]
mod faults;
#[path = "../hal/tests/support/mod.rs"]
mod hal_support;
#[path = "backends/rollback.rs"]
mod rollback;
mod support;

use std::path::PathBuf;

use hal_support::process;
use hal_support::softhsm::SoftHsm;
use hal_support::swtpm::Swtpm;
use hal_support::tpm2_pkcs11::{self as tpm2_token, Tpm2Pkcs11};
use serde_json::{Value, json};
use support::proxy::{Proxy, Way};
use support::{Device, Server, TempDir, agent, success, wait_for};

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
    a_recovery_code,
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

/// The key of a recovery code is made while a daemon has the key store open, and without one; the device rotates to the newest.
fn a_recovery_code(backend: &Backend) {
    let server = Server::start();
    let device = backend.device(&server, "gw", 1);
    let daemon = device.daemon();
    wait_for("a join", || device.status()["generation"].is_u64());
    let codes = [true, false].map(|beside_the_daemon| {
        if !beside_the_daemon {
            daemon.signal(nix::sys::signal::Signal::SIGTERM);
            wait_for("the daemon's end", || device.log().ends_with("INFO stopped\n"));
        }
        let printed = success(&mut device.command(&["recovery-code", "--format", "json"])).stdout;
        serde_json::from_slice::<Value>(&printed).expect("JSON")
    });
    assert_eq!(codes.each_ref().map(|code| code["key"].clone()), ["bound-2", "bound-3"].map(Value::from));
    server.ctl(&["rotate", "token/gw"]);
    device.join();
    let status = device.status();
    assert_eq!((&status["keystore"]["thumbprint"], &status["recovery_code"]), (&codes[1]["thumbprint"], &Value::Null));
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

/// The keys are all that is left; they are taken up, and one command lets the device back in, with a new key.
fn a_lost_state_file(backend: &Backend) {
    let server = Server::start();
    let device = backend.device(&server, "gw", 1);
    device.join();
    let key = server.status("gw")["bound_public_key"].clone();
    std::fs::remove_file(device.storage().join("state")).expect("a state file");
    server.ctl(&["exempt", "token/gw"]);
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("taken up"), "{code} {said}");
    assert_ne!(server.status("gw")["bound_public_key"], key);
    device.join();
}
