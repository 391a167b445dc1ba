//! The PKCS#11 backend on SoftHSM2: the conformance suite, and what can go wrong with tokens, PINs and modules.
#![cfg(feature = "pkcs11")]

mod conformance;
mod support;

use std::fs;
use std::path::Path;

use boundkey_hal::pkcs11::{Config, PinSource, Pkcs11Store, TokenMatch};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _, Reference};
use conformance::{assert_kind, assert_signs, id, names};
use support::process::{self, run};
use support::softhsm::{self, LABEL, PIN, SoftHsm};

/// Runs a test in its own process with one token.
fn with_token(name: &str, body: impl FnOnce(&SoftHsm)) {
    process::isolated(name, |dir| SoftHsm::new(dir).environment(), |dir| body(&SoftHsm::at(dir)));
}

fn open(hsm: &SoftHsm) -> Pkcs11Store {
    store(Config::from_uri(&hsm.uri()).expect("configuration"))
}

fn store(config: Config) -> Pkcs11Store {
    Pkcs11Store::new(config).expect("store")
}

/// A configuration without a PIN.
fn config() -> Config {
    Config::new(softhsm::module(), TokenMatch::label(LABEL))
}

#[test]
fn conformance() {
    with_token("conformance", |hsm| conformance::run(&|| Box::new(open(hsm))));
}

#[test]
fn capabilities_need_no_pin() {
    with_token("capabilities_need_no_pin", |_| {
        let can = store(config()).capabilities().expect("capabilities");
        assert_eq!(can.algorithms[..], [Algorithm::EcdsaP256, Algorithm::Ed25519]);
        // SoftHSM keeps keys in files, and says so.
        assert!(!can.hardware);
        assert!(can.place.starts_with("PKCS#11 token=edge;serial="), "{}", can.place);
    });
}

#[test]
fn label_serial_and_uri_name_the_same_token() {
    with_token("label_serial_and_uri_name_the_same_token", |hsm| {
        let public = open(hsm).generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        let tokens = boundkey_hal::pkcs11::tokens(&softhsm::module()).expect("tokens");
        let token = tokens.iter().find(|t| t.label == LABEL).expect("our token");
        let pin = Some(PinSource::File(hsm.pin_file()));
        let by_serial = Config { token: TokenMatch::serial(&token.serial), pin: pin.clone(), ..config() };
        let by_uri =
            Config::from_uri(&format!("{}?module-path={}", token.uri, softhsm::module().display())).expect("configuration");
        for config in [by_serial, Config { pin, ..by_uri }] {
            assert_eq!(store(config).public_key(&id("device")).expect("public key"), public);
        }
        for other in ["edg", "edge2", "EDGE", "*"] {
            assert_kind(store(Config { token: TokenMatch::label(other), ..config() }).capabilities(), ErrorKind::Unreachable);
        }
    });
}

#[test]
fn a_pin_comes_from_a_file_the_environment_or_a_credential() {
    let name = "a_pin_comes_from_a_file_the_environment_or_a_credential";
    let prepare = |dir: &Path| {
        let hsm = SoftHsm::new(dir);
        let credentials = dir.join("credentials");
        fs::create_dir(&credentials).expect("directory");
        fs::write(credentials.join("token-pin"), PIN).expect("write");
        let mut environment = hsm.environment();
        environment.extend([("TOKEN_PIN", PIN.into()), ("CREDENTIALS_DIRECTORY", credentials.into())]);
        environment
    };
    process::isolated(name, prepare, |dir| {
        let with = |pin| store(Config { pin: Some(pin), ..config() });
        let file = PinSource::File(SoftHsm::at(dir).pin_file());
        for pin in [file, PinSource::Environment("TOKEN_PIN".into()), PinSource::Credential("token-pin".into())] {
            assert_eq!(names(&with(pin)), [""; 0]);
        }
        // None of these is `NotFound`: that would say that a key is absent.
        assert_kind(with(PinSource::Environment("NO_SUCH".into())).public_key(&id("device")), ErrorKind::Denied);
        assert_kind(with(PinSource::Credential("no-such".into())).public_key(&id("device")), ErrorKind::Unreachable);
        assert_kind(with(PinSource::File(dir.join("no-such"))).public_key(&id("device")), ErrorKind::Unreachable);
        assert_kind(with(PinSource::File(dir.into())).public_key(&id("device")), ErrorKind::Unreachable);
        assert_kind(store(config()).public_key(&id("device")), ErrorKind::Denied);
    });
}

#[test]
fn private_keys_stay_in_the_token() {
    with_token("private_keys_stay_in_the_token", |hsm| {
        let store = open(hsm);
        let algorithms = [("p256", Algorithm::EcdsaP256), ("ed25519", Algorithm::Ed25519)];
        for (name, algorithm) in algorithms {
            store.generate(&id(name), algorithm).expect("generate");
        }
        // Another program's word for it.
        let listed = run(hsm.pkcs11_tool().args(["--list-objects", "--type", "privkey"]));
        assert_eq!(listed.matches("sensitive, always sensitive, never extractable, local").count(), 2, "{listed}");
        for (name, _) in algorithms {
            assert!(listed.contains(&format!("label:      boundkey-{name}")), "{listed}");
        }
        for (name, _) in algorithms {
            let Reference::Pkcs11Uri(uri) = store.reference(&id(name)).expect("reference") else { panic!("not a URI") };
            // A tool that reads RFC 7512 finds exactly the key that is meant.
            let mut p11tool = hsm.command("p11tool", "gnutls-bin");
            p11tool.arg("--provider").arg(softhsm::module()).args(["--login", "--set-pin", PIN, "--list-all", uri.as_str()]);
            let found = run(&mut p11tool);
            assert_eq!(found.matches("Label: ").count(), 1, "{uri}\n{found}");
            assert!(found.contains(&format!("Label: boundkey-{name}")), "{uri}\n{found}");
        }
    });
}

/// Duplicate labels and ids are legal in PKCS#11. Picking one of several once paired a private half with another key's
/// public half.
#[test]
fn two_keys_of_one_id_are_refused() {
    with_token("two_keys_of_one_id_are_refused", |hsm| {
        let (store, key) = (open(hsm), id("device"));
        store.generate(&key, Algorithm::EcdsaP256).expect("generate");
        foreign_key(hsm, "boundkey-device", "boundkey-device");
        for error in [store.public_key(&key).map(drop), store.sign(&key, b"message").map(drop), store.delete(&key)] {
            assert!(error.as_ref().is_err_and(|e| e.to_string().contains("has 2 private keys")), "{error:?}");
            assert_kind(error, ErrorKind::Corrupt);
        }
        assert_kind(store.generate(&key, Algorithm::EcdsaP256), ErrorKind::Exists);
        assert_eq!(names(&store), ["device"]);
    });
}

/// The id decides; labels are for people, who change them.
#[test]
fn a_label_does_not_make_a_key() {
    with_token("a_label_does_not_make_a_key", |hsm| {
        let store = open(hsm);
        foreign_key(hsm, "boundkey-device", "something else");
        assert_kind(store.public_key(&id("device")), ErrorKind::NotFound);
        assert_eq!(names(&store), [""; 0]);
        foreign_key(hsm, "renamed by a technician", "boundkey-other");
        let public = store.public_key(&id("other")).expect("public key");
        assert_signs(&store, &id("other"), &public);
        assert_eq!(names(&store), ["other"]);
    });
}

#[test]
fn a_key_of_another_kind_is_refused() {
    with_token("a_key_of_another_kind_is_refused", |hsm| {
        for (name, kind) in [("rsa", "rsa:2048"), ("p384", "EC:secp384r1")] {
            let mut tool = hsm.pkcs11_tool();
            run(tool.args(["--keypairgen", "--key-type", kind, "--id", &hex(&format!("boundkey-{name}"))]));
            assert_kind(open(hsm).public_key(&id(name)), ErrorKind::Corrupt);
            assert_kind(open(hsm).sign(&id(name), b"message"), ErrorKind::Corrupt);
        }
    });
}

#[test]
fn a_pair_without_its_other_half() {
    with_token("a_pair_without_its_other_half", |hsm| {
        let (store, key) = (open(hsm), id("device"));
        let first = store.generate(&key, Algorithm::EcdsaP256).expect("generate");
        // Only the public half is left, as after a power cut while the pair was made: that is no key, and in nobody's way.
        delete_half(hsm, "privkey");
        assert_kind(store.public_key(&key), ErrorKind::NotFound);
        assert_kind(store.delete(&key), ErrorKind::NotFound);
        assert_eq!(names(&store), [""; 0]);
        let second = store.generate(&key, Algorithm::EcdsaP256).expect("generate");
        assert_ne!(first, second);
        assert_eq!(store.public_key(&key).expect("public key"), second);
        // Only the private half is left: that is a key, and damaged.
        delete_half(hsm, "pubkey");
        assert_kind(store.public_key(&key), ErrorKind::Corrupt);
        assert_kind(store.sign(&key, b"message"), ErrorKind::Corrupt);
        assert_kind(store.generate(&key, Algorithm::EcdsaP256), ErrorKind::Exists);
        assert_eq!(names(&store), ["device"]);
    });
}

#[test]
fn other_programs_come_and_go() {
    with_token("other_programs_come_and_go", |hsm| {
        let (store, key) = (open(hsm), id("device"));
        foreign_key(hsm, "boundkey-device", "boundkey-device");
        let public = store.public_key(&key).expect("a key that another process made");
        assert_signs(&store, &key, &public);
        delete_half(hsm, "privkey");
        delete_half(hsm, "pubkey");
        assert_kind(store.sign(&key, b"message"), ErrorKind::NotFound);
        assert_kind(store.delete(&key), ErrorKind::NotFound);
    });
}

#[test]
fn processes_and_threads_sign_at_the_same_time() {
    let name = "processes_and_threads_sign_at_the_same_time";
    with_token(name, |hsm| {
        let key = id("device");
        if process::role().is_none() {
            open(hsm).generate(&key, Algorithm::EcdsaP256).expect("generate");
        }
        let others: Vec<_> =
            if process::role().is_some() { vec![] } else { (0..2).map(|_| process::another(name, "sign")).collect() };
        let public = open(hsm).public_key(&key).expect("public key");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..50).for_each(|_| assert_signs(&open(hsm), &key, &public)));
            }
        });
        others.into_iter().for_each(process::finish);
    });
}

#[test]
fn agents_with_prefixes_of_their_own_share_a_token() {
    with_token("agents_with_prefixes_of_their_own_share_a_token", |hsm| {
        let agent =
            |prefix: &str| store(Config { prefix: prefix.into(), ..Config::from_uri(&hsm.uri()).expect("configuration") });
        // One prefix is the beginning of the other.
        let (one, two) = (agent("a-"), agent("a-b-"));
        let public = one.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        assert_kind(two.public_key(&id("device")), ErrorKind::NotFound);
        assert_ne!(two.generate(&id("device"), Algorithm::EcdsaP256).expect("generate"), public);
        two.delete(&id("device")).expect("delete");
        assert_signs(&one, &id("device"), &public);
        assert_eq!(names(&two), [""; 0]);
        for bad in ["a b", "é", "a/", "123456789012345678901234567890123"] {
            let config = Config { prefix: bad.into(), ..config() };
            assert_kind(Pkcs11Store::new(config).map(drop), ErrorKind::Other);
        }
    });
}

#[test]
fn two_tokens_of_one_label_are_refused() {
    let prepare = |dir: &Path| {
        let hsm = SoftHsm::new(dir);
        hsm.add_token(LABEL);
        hsm.environment()
    };
    process::isolated("two_tokens_of_one_label_are_refused", prepare, |dir| {
        let hsm = SoftHsm::at(dir);
        let error = open(&hsm).public_key(&id("device")).expect_err("two tokens");
        assert!(error.to_string().contains("2 tokens are token=edge, and it must be one: add serial=NUMBER"), "{error}");
        assert_kind::<()>(Err(error), ErrorKind::Other);
        let tokens = boundkey_hal::pkcs11::tokens(&softhsm::module()).expect("tokens");
        let ready: Vec<_> = tokens.iter().filter(|t| t.initialized).collect();
        assert_eq!(ready.len(), 2);
        let one = Config { token: TokenMatch::serial(&ready[1].serial), ..Config::from_uri(&hsm.uri()).expect("configuration") };
        store(one).generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    });
}

#[test]
fn a_token_that_is_pulled_out_and_put_back() {
    with_token("a_token_that_is_pulled_out_and_put_back", |hsm| {
        let (store, key) = (open(hsm), id("device"));
        let public = store.generate(&key, Algorithm::EcdsaP256).expect("generate");
        let away = hsm.tokens().with_extension("away");
        for _ in 0..2 {
            fs::rename(hsm.tokens(), &away).expect("pull out");
            fs::create_dir(hsm.tokens()).expect("an empty slot");
            for error in [store.sign(&key, b"message").map(drop), store.public_key(&key).map(drop), store.delete(&key)] {
                assert_kind(error, ErrorKind::Unreachable);
            }
            assert_kind(store.generate(&key, Algorithm::EcdsaP256), ErrorKind::Unreachable);
            assert_kind(store.capabilities(), ErrorKind::Unreachable);
            fs::remove_dir_all(hsm.tokens()).expect("remove");
            fs::rename(&away, hsm.tokens()).expect("put back");
            assert_signs(&store, &key, &public);
        }
    });
}

#[test]
fn a_wrong_pin_is_denied_and_tried_once() {
    with_token("a_wrong_pin_is_denied_and_tried_once", |hsm| {
        let (right, key) = (open(hsm), id("device"));
        let public = right.generate(&key, Algorithm::EcdsaP256).expect("generate");
        let wrong_pin = hsm.conf().with_file_name("wrong-pin");
        for pin in ["wrong-pin", "x"] {
            fs::write(&wrong_pin, pin).expect("write");
            let wrong = store(Config { pin: Some(PinSource::File(wrong_pin.clone())), ..config() });
            let error = wrong.sign(&key, b"message").expect_err("a wrong PIN");
            assert!(error.to_string().contains("the PIN is wrong"), "{error}");
            assert!(!error.to_string().contains(pin) || pin == "x", "{error}");
            for error in [wrong.public_key(&key).map(drop), wrong.delete(&key), wrong.list(&mut |_| panic!("no key"))] {
                assert_kind(error, ErrorKind::Denied);
            }
            assert_kind(wrong.generate(&key, Algorithm::EcdsaP256), ErrorKind::Denied);
        }
        let low = || boundkey_hal::pkcs11::tokens(&softhsm::module()).expect("tokens").iter().any(|t| t.user_pin_count_low);
        assert!(low());
        assert_signs(&right, &key, &public);
        assert!(!low());
    });
}

/// A key made by another program.
fn foreign_key(hsm: &SoftHsm, label: &str, id: &str) {
    let mut tool = hsm.pkcs11_tool();
    run(tool.args(["--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id", &hex(id)]));
}

fn delete_half(hsm: &SoftHsm, half: &str) {
    run(hsm.pkcs11_tool().args(["--delete-object", "--type", half, "--id", &hex("boundkey-device")]));
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat()
}
