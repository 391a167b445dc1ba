//! The TPM backend on swtpm: the conformance suite, what other programs make of its files, and what its users rely on.
//! Faults have a file of their own.
#![cfg(feature = "tpm")]

mod conformance;
mod support {
    #[allow(dead_code, reason = "shared with the PKCS#11 tests")]
    pub(crate) mod abrmd;
    #[allow(dead_code, reason = "tests take one port or two")]
    pub(crate) mod port;
    #[allow(dead_code, reason = "shared with the PKCS#11 tests")]
    pub(crate) mod process;
    #[allow(dead_code, reason = "shared with the fault tests")]
    pub(crate) mod swtpm;
    #[allow(dead_code, reason = "shared with the fault tests")]
    pub(crate) mod tpm_proxy;
}

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use boundkey_hal::tpm::{AuthSource, Config, Counter, Name, Tcti, TpmStore, counter};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _, Reference, verify};
use conformance::{assert_kind, assert_signs, id};
use support::abrmd::{self, Abrmd};
use support::process::{self, library, run, tool};
use support::swtpm::Swtpm;
use support::tpm_proxy::{TpmProxy, code, command};

/// A TPM, and a directory for keys.
fn setup() -> (Swtpm, tempfile::TempDir) {
    (Swtpm::alone(), tempfile::tempdir().expect("temporary directory"))
}

/// An auth value in a file of `dir`.
fn auth_file(dir: &Path) -> (AuthSource, &'static [u8]) {
    let path = dir.join("auth");
    fs::write(&path, "correct horse battery\n").expect("write");
    (AuthSource::File(path), b"correct horse battery")
}

/// The parent in a key file: the number in its INTEGER.
fn parent(path: &Path) -> u32 {
    let text = run(tool("openssl", "openssl").args(["asn1parse", "-in"]).arg(path));
    let line = text.lines().find(|l| l.contains("INTEGER")).unwrap_or_else(|| panic!("no INTEGER in {text}"));
    u32::from_str_radix(line.rsplit(':').next().expect("a value").trim(), 16).expect("a handle")
}

#[test]
fn conformance_under_the_persistent_storage_key() {
    let (tpm, dir) = setup();
    conformance::run(&|| Box::new(TpmStore::new(tpm.config(dir.path()))));
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn conformance_with_an_auth_value_and_a_pinned_storage_key() {
    let (tpm, dir) = setup();
    let mut config = tpm.config(dir.path());
    config.auth = Some(auth_file(dir.path()).0);
    config.storage_key = Some(TpmStore::new(config.clone()).storage_key_name().expect("name"));
    conformance::run(&|| Box::new(TpmStore::new(config.clone())));
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn conformance_under_the_derived_storage_key() {
    let (tpm, dir) = setup();
    let config = Config { persist_storage_key: false, ..tpm.config(dir.path()) };
    conformance::run(&|| Box::new(TpmStore::new(config.clone())));
    assert_eq!(run(tpm.tool("tpm2_getcap").arg("handles-persistent")), "", "made persistent though it was told not to");
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn conformance_through_the_resource_manager() {
    let mut services = None;
    process::isolated(
        "conformance_through_the_resource_manager",
        |dir| {
            let tpm = Swtpm::alone();
            services = Some((Abrmd::start(&tpm, dir), tpm));
            abrmd::environment(dir).into()
        },
        |dir| {
            let config = Config::new(dir, Tcti::parse(abrmd::TCTI).expect("a TCTI"));
            conformance::run(&|| Box::new(TpmStore::new(config.clone())));
            let with_auth = Config { auth: Some(auth_file(dir).0), ..config };
            conformance::run(&|| Box::new(TpmStore::new(with_auth.clone())));
            // More than the resource manager lets one program hold.
            let store = TpmStore::new(with_auth);
            let public = store.generate(&id("many"), Algorithm::EcdsaP256).expect("generate");
            (0..100).for_each(|_| assert_signs(&store, &id("many"), &public));
        },
    );
}

#[test]
fn openssl_signs_with_the_key_file() {
    library(
        &["/usr/lib/x86_64-linux-gnu/ossl-modules/tpm2.so", "/usr/lib/aarch64-linux-gnu/ossl-modules/tpm2.so"],
        "tpm2-openssl",
    );
    let (tpm, dir) = setup();
    let message = dir.path().join("message");
    fs::write(&message, "a message").expect("write");
    let (auth, value) = auth_file(dir.path());
    for (name, persist_storage_key, auth) in [
        ("persistent", true, None),
        ("derived", false, None),
        ("with-auth", true, Some(auth.clone())),
        ("derived-auth", false, Some(auth)),
    ] {
        if !persist_storage_key {
            // Absent in this round, so that the file names the hierarchy.
            let _ = tpm.tool("tpm2_evictcontrol").args(["-c", "0x81000001"]).output();
        }
        let store = TpmStore::new(Config { persist_storage_key, auth: auth.clone(), ..tpm.config(dir.path()) });
        let public = store.generate(&id(name), Algorithm::EcdsaP256).expect("generate");
        let key = store.path(&id(name));
        assert_eq!(parent(&key), if persist_storage_key { 0x8100_0001 } else { 0x4000_0001 });
        let mut openssl = tool("openssl", "openssl");
        // As another program gets it: by the reference alone, in a file of its own.
        let Reference::Tss2Pem(pem) = store.reference(&id(name)).expect("reference") else { panic!("not a TSS2 PEM") };
        let own = dir.path().join("reference.pem");
        fs::write(&own, pem).expect("write");
        openssl
            .args(["dgst", "-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2", "-sha256", "-sign"])
            .arg(&own);
        if auth.is_some() {
            openssl.args(["-passin", &format!("pass:{}", String::from_utf8_lossy(value))]);
        }
        let output = openssl.arg(&message).env("TPM2OPENSSL_TCTI", tpm.tcti()).output().expect("openssl");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let signature = raw_signature(&output.stdout);
        verify::verify(&public, b"a message", &signature).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_signs(&store, &id(name), &public);
    }
    // The provider's failures would have counted here, had it used another auth value than the key's.
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
}

/// `r || s` of a DER signature whose parts are shorter than 128 bytes.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let integer = |at: usize| &der[at + 2..at + 2 + usize::from(der[at + 1])];
    let r = integer(2);
    let s = integer(4 + r.len());
    let mut raw = vec![0; 64];
    for (part, number) in raw.chunks_mut(32).zip([r, s]) {
        let digits = number.strip_prefix(&[0]).unwrap_or(number);
        part[32 - digits.len()..].copy_from_slice(digits);
    }
    raw
}

/// A key made by tpm2-tools with `attributes`, in the file of the key `name`.
fn made_by_tpm2_tools(tpm: &Swtpm, path: &Path, attributes: &str) {
    run(tpm.tool("tpm2_create").args(["-C", "0x81000001", "-G", "ecc256", "-u", "k.pub", "-r", "k.priv", "-a", attributes]));
    run(tpm.tool("tpm2_encodeobject").args(["-C", "0x81000001", "-u", "k.pub", "-r", "k.priv", "-o"]).arg(path));
    run(tpm.tool("tpm2_flushcontext").arg("-t"));
}

#[test]
fn keys_of_tpm2_tools_are_used_if_they_cannot_leave() {
    let (tpm, dir) = setup();
    let store = TpmStore::new(tpm.config(dir.path()));
    store.generate(&id("own"), Algorithm::EcdsaP256).expect("generate");
    made_by_tpm2_tools(&tpm, &store.path(&id("foreign")), "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign");
    let public = store.public_key(&id("foreign")).expect("public key");
    assert_signs(&store, &id("foreign"), &public);
    made_by_tpm2_tools(&tpm, &store.path(&id("mobile")), "sensitivedataorigin|userwithauth|noda|sign");
    assert_kind(store.sign(&id("mobile"), b"message"), ErrorKind::Corrupt);
}

#[test]
fn a_key_file_is_private_and_its_key_bound() {
    let (tpm, dir) = setup();
    let store = TpmStore::new(tpm.config(dir.path()));
    store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    let path = store.path(&id("device"));
    assert_eq!(path, dir.path().join("key-device.tss2.pem"));
    assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o7777, 0o600);
    // The parts, as tpm2-tools see them.
    let der = raw_der(&path);
    let public = der.windows(4).position(|w| w == [0x00, 0x23, 0x00, 0x0b]).expect("a public area");
    let size = usize::from(u16::from_be_bytes([der[public - 2], der[public - 1]]));
    let file = dir.path().join("pub");
    fs::write(&file, &der[public - 2..public + size]).expect("write");
    let shown = run(tpm.tool("tpm2_print").args(["-t", "TPM2B_PUBLIC"]).arg(&file));
    assert!(shown.contains("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n"), "{shown}");
}

fn raw_der(pem: &Path) -> Vec<u8> {
    let text = fs::read_to_string(pem).expect("read");
    let body: String = text.lines().filter(|l| !l.starts_with("-----")).collect();
    let mut decode = tool("openssl", "openssl")
        .args(["base64", "-d", "-A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl");
    std::io::Write::write_all(decode.stdin.as_mut().expect("stdin"), body.as_bytes()).expect("write");
    decode.wait_with_output().expect("wait").stdout
}

#[test]
fn a_storage_key_that_is_there_is_used_if_it_is_fit() {
    let fit = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    for (attributes, expected) in [(fit, 0x8100_0001), (&fit.replace("noda|", ""), 0x4000_0001)] {
        let (tpm, dir) = setup();
        // Another template than ours: RSA.
        run(tpm.tool("tpm2_createprimary").args(["-C", "o", "-G", "rsa2048", "-c", "srk.ctx", "-a", attributes]));
        run(tpm.tool("tpm2_evictcontrol").args(["-C", "o", "-c", "srk.ctx", "0x81000001"]));
        run(tpm.tool("tpm2_flushcontext").arg("-t"));
        let mut config = tpm.config(dir.path());
        config.storage_key = Some(TpmStore::new(config.clone()).storage_key_name().expect("name"));
        let store = TpmStore::new(config);
        let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        assert_signs(&store, &id("device"), &public);
        assert_eq!(parent(&store.path(&id("device"))), expected, "{attributes}");
        assert_eq!(tpm.loaded(), "");
    }
}

#[test]
fn an_evicted_storage_key_is_derived_again() {
    let (tpm, dir) = setup();
    let store = TpmStore::new(tpm.config(dir.path()));
    let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    run(tpm.tool("tpm2_evictcontrol").args(["-c", "0x81000001"]));
    assert_signs(&store, &id("device"), &public);
}

#[test]
fn with_an_owners_password_the_storage_key_is_used_as_it_is() {
    let (tpm, dir) = setup();
    let mut config = Config { derive_storage_key: false, ..tpm.config(dir.path()) };
    assert_kind(TpmStore::new(config.clone()).generate(&id("device"), Algorithm::EcdsaP256), ErrorKind::Denied);
    TpmStore::new(tpm.config(dir.path())).generate(&id("first"), Algorithm::EcdsaP256).expect("generate");
    run(tpm.tool("tpm2_changeauth").args(["-c", "owner", "owner-password"]));
    config.storage_key = Some(TpmStore::new(config.clone()).storage_key_name().expect("name"));
    config.auth = Some(auth_file(dir.path()).0);
    a_key_works(&config);
    // By default that is no way out: an attacker on the bus could give the same answer.
    config.derive_storage_key = true;
    let error = TpmStore::new(config.clone()).generate(&id("device"), Algorithm::EcdsaP256).expect_err("refused");
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("owner password"), "{error}");
    let error = Counter::new(config, counter::DEFAULT_INDEX, b"auth value").expect("an index").define().expect_err("refused");
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("owner password"), "{error}");
    assert_eq!(tpm.loaded(), "");
}

/// A key is made, signs, and goes.
fn a_key_works(config: &Config) {
    let store = TpmStore::new(config.clone());
    let public = store.generate(&id("in-use"), Algorithm::EcdsaP256).expect("generate");
    assert_signs(&store, &id("in-use"), &public);
    store.delete(&id("in-use")).expect("delete");
}

#[test]
fn an_auth_value_comes_from_file_environment_or_credential() {
    process::isolated(
        "an_auth_value_comes_from_file_environment_or_credential",
        |dir| {
            fs::write(dir.join("tpm-auth"), "secret\n").expect("write");
            vec![("CREDENTIALS_DIRECTORY", dir.into()), ("TPM_AUTH", "secret".into())]
        },
        |dir| {
            let tpm = Swtpm::alone();
            let sources = [
                AuthSource::File(dir.join("tpm-auth")),
                AuthSource::Environment("TPM_AUTH".into()),
                AuthSource::Credential("tpm-auth".into()),
            ];
            let store = |auth: &AuthSource| TpmStore::new(Config { auth: Some(auth.clone()), ..tpm.config(dir) });
            let public = store(&sources[0]).generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
            for source in &sources {
                assert_signs(&store(source), &id("device"), &public);
            }
            // Without it the key is there, and of no use.
            let without = TpmStore::new(tpm.config(dir));
            assert_eq!(without.public_key(&id("device")).expect("public key"), public);
            assert_kind(without.sign(&id("device"), b"message"), ErrorKind::Denied);
            assert_kind(
                store(&AuthSource::Credential("../tpm-auth".into())).sign(&id("device"), b"message"),
                ErrorKind::Unsupported,
            );
            assert_kind(store(&AuthSource::Credential("other".into())).sign(&id("device"), b"message"), ErrorKind::Unreachable);
        },
    );
}

#[test]
fn the_environment_names_the_tpm() {
    process::isolated(
        "the_environment_names_the_tpm",
        |_| vec![("TPM2TOOLS_TCTI", "device:/dev/tpm7".into()), ("TCTI", "device:/dev/tpm8".into())],
        |_| {
            assert_eq!(Tcti::configured(None).expect("a TCTI").to_string(), "device:/dev/tpm7");
            assert_eq!(Tcti::configured(Some("device:/dev/tpm9")).expect("a TCTI").to_string(), "device:/dev/tpm9");
        },
    );
}

#[test]
fn an_environment_that_is_not_understood_is_refused() {
    process::isolated(
        "an_environment_that_is_not_understood_is_refused",
        |_| vec![("TCTI", "swtpm:path=/run/swtpm".into())],
        |_| assert_kind(Tcti::configured(None), ErrorKind::Unsupported),
    );
}

#[test]
fn a_technician_learns_which_tpm_it_is() {
    let (tpm, dir) = setup();
    let can = TpmStore::new(tpm.config(dir.path())).capabilities().expect("capabilities");
    assert!(can.hardware);
    let place = can.place.as_str();
    assert!(place.starts_with("TPM 2.0 IBM SW TPM, firmware 8217."), "{place}");
    assert!(place.contains(&tpm.tcti()) && place.contains(&dir.path().display().to_string()), "{place}");
}

/// The auth value must not cross the bus, in whatever it is used for. The same record shows a control: the key's public half.
#[test]
fn a_probe_on_the_bus_does_not_see_the_auth_value() {
    let (tpm, dir) = setup();
    let bus = TpmProxy::start(&tpm);
    let (auth, value) = auth_file(dir.path());
    let store = TpmStore::new(Config { auth: Some(auth), tcti: bus.tcti(), ..tpm.config(dir.path()) });
    let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    assert_signs(&store, &id("device"), &public);
    assert!(bus.saw(&public.as_bytes()[1..33]), "the probe sees nothing at all");
    assert!(!bus.saw(value) && !bus.saw(&value[..8]));
}

/// libtss2 does not check the public half of a persistent key against its Name, so a session that protects something
/// must not be salted to one: see the text of `tpm/esys.rs`.
#[test]
fn sessions_that_protect_something_are_salted_to_a_key_just_derived() {
    let (tpm, dir) = setup();
    let bus = TpmProxy::start(&tpm);
    let config = Config { tcti: bus.tcti(), ..tpm.config(dir.path()) };
    let plain = TpmStore::new(config.clone());
    let with_auth = TpmStore::new(Config { auth: Some(auth_file(dir.path()).0), ..config.clone() });
    let counter = Counter::new(config, counter::DEFAULT_INDEX, b"auth value").expect("an index");
    plain.generate(&id("plain"), Algorithm::EcdsaP256).expect("generate");
    assert_eq!(salted_to(&bus), DERIVED);
    with_auth.generate(&id("with-auth"), Algorithm::EcdsaP256).expect("generate");
    assert_eq!(salted_to(&bus), DERIVED);
    with_auth.sign(&id("with-auth"), b"message").expect("sign");
    assert_eq!(salted_to(&bus), DERIVED);
    counter.define().expect("define");
    assert_eq!(salts(&bus)[0], DERIVED, "its auth value crosses the bus once, when it is made");
    counter.increment().expect("increment");
    assert_eq!(salted_to(&bus), PERSISTENT, "after that it is a key of the HMAC");
    // Nothing secret, and verified in software: here the key that costs no derivation will do.
    plain.sign(&id("plain"), b"message").expect("sign");
    assert_eq!(salted_to(&bus), PERSISTENT);
}

/// First bytes of handles: of a transient object, of a persistent one.
const DERIVED: u8 = 0x80;
const PERSISTENT: u8 = 0x81;

/// Which kinds of key the sessions since the last reset were salted to.
fn salts(bus: &TpmProxy) -> Vec<u8> {
    let keys = bus.commands().iter().filter(|c| code(c) == command::START_AUTH_SESSION).map(|c| c[10]).collect();
    bus.reset();
    keys
}

/// Which kind of key all sessions since the last reset were salted to.
fn salted_to(bus: &TpmProxy) -> u8 {
    let keys = salts(bus);
    assert!(!keys.is_empty() && keys.iter().all(|k| *k == keys[0]), "{keys:x?}");
    keys[0]
}

#[test]
fn the_storage_keys_name_is_that_of_tpm2_tools() {
    let (tpm, dir) = setup();
    let store = TpmStore::new(tpm.config(dir.path()));
    let name = store.storage_key_name().expect("name");
    store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    assert_eq!(store.storage_key_name().expect("name"), name, "making it persistent is no change");
    let shown = run(tpm.tool("tpm2_readpublic").args(["-c", "0x81000001", "-n", "name"]));
    assert!(shown.contains(&name.to_string()), "{shown}");
    assert_eq!(name.to_string().parse::<Name>().expect("a name"), name);
}

#[test]
fn a_thousand_operations_leave_nothing_in_the_tpm() {
    let (tpm, dir) = setup();
    let bus = TpmProxy::start(&tpm);
    let (auth, _) = auth_file(dir.path());
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "wrong").expect("write");
    let config = Config { auth: Some(auth), ..tpm.config(dir.path()) };
    let store = TpmStore::new(config.clone());
    let wrong = TpmStore::new(Config { auth: Some(AuthSource::File(wrong)), ..config.clone() });
    let through = TpmStore::new(Config { tcti: bus.tcti(), ..config.clone() });
    let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    let plain = TpmStore::new(tpm.config(dir.path()));
    let plain_public = plain.generate(&id("plain"), Algorithm::EcdsaP256).expect("generate");
    let before = tpm.loaded();
    for round in 0..1000 {
        match round % 10 {
            0..5 => assert_signs(&plain, &id("plain"), &plain_public),
            5..7 => assert_signs(&store, &id("device"), &public),
            7 => assert_kind(wrong.sign(&id("device"), b"message"), ErrorKind::Denied),
            8 => {
                // An answer that fails its HMAC, which leaves libtss2's context of no use for flushing.
                bus.inject([command::LOAD, command::SIGN][round / 10 % 2], 1, support::tpm_proxy::Fault::Flip(0));
                assert_kind(through.sign(&id("device"), b"message"), ErrorKind::Corrupt);
            }
            _ => {
                store.generate(&id("short-lived"), Algorithm::EcdsaP256).expect("generate");
                store.delete(&id("short-lived")).expect("delete");
            }
        }
    }
    assert_eq!(tpm.loaded(), before);
    assert_eq!(before, "");
}

/// Its own line in the listing, for a machine that lacks a package.
#[test]
fn the_packages_of_these_tests_are_there() {
    for (name, package) in [
        ("swtpm", "swtpm"),
        ("tpm2_clear", "tpm2-tools"),
        ("openssl", "openssl"),
        ("tpm2-abrmd", "tpm2-abrmd"),
        ("dbus-daemon", "dbus"),
    ] {
        let program: PathBuf = tool(name, package).get_program().into();
        assert!(program.exists());
    }
}
