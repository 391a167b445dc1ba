//! What can happen to a TPM and to the way to it. Each fault ends in a sentence and a kind, and nothing is overwritten.
#![cfg(feature = "tpm")]

#[allow(dead_code, reason = "the suite itself runs in tpm.rs")]
mod conformance;
mod support {
    #[allow(dead_code, reason = "tests take one port or two")]
    pub(crate) mod port;
    #[allow(dead_code, reason = "shared with the PKCS#11 tests")]
    pub(crate) mod process;
    #[allow(dead_code, reason = "shared with tpm.rs")]
    pub(crate) mod swtpm;
    #[allow(dead_code, reason = "shared with tpm.rs")]
    pub(crate) mod tpm_proxy;
}

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use boundkey_hal::tpm::{AuthSource, Config, Tcti, TpmStore};
use boundkey_hal::{Algorithm, Error, ErrorKind, KeyStore as _, PublicKey};
use conformance::{assert_kind, assert_signs, id};
use support::process::{run, tool};
use support::swtpm::Swtpm;
use support::tpm_proxy::{Fault, TpmProxy, command};

/// A TPM, a directory, and a store with the key `device` in it.
fn store_with_key() -> (Swtpm, tempfile::TempDir, TpmStore, PublicKey) {
    let (tpm, dir) = (Swtpm::alone(), tempfile::tempdir().expect("temporary directory"));
    let store = TpmStore::new(tpm.config(dir.path()));
    let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    (tpm, dir, store, public)
}

/// The same store behind a device on the bus.
fn behind_proxy(tpm: &Swtpm, dir: &Path) -> (TpmProxy, TpmStore) {
    let bus = TpmProxy::start(tpm);
    let store = TpmStore::new(Config { tcti: bus.tcti(), ..tpm.config(dir) });
    (bus, store)
}

/// That `result` failed with `kind` and `words` in its text.
fn assert_told<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind, words: &str) {
    let error = result.expect_err("this should have failed");
    assert!(error.to_string().contains(words), "{error}");
    assert_kind::<()>(Err(error), kind);
}

#[test]
fn a_tpm_that_is_gone_is_unreachable_and_is_used_again_when_it_is_back() {
    let (mut tpm, _dir, store, public) = store_with_key();
    tpm.cut_power();
    assert_told(store.sign(&id("device"), b"message"), ErrorKind::Unreachable, "not reachable");
    assert_told(store.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Unreachable, "not reachable");
    assert_kind(store.capabilities(), ErrorKind::Unreachable);
    // What needs no TPM works without: the key is not absent, and its public half is known.
    assert_eq!(store.public_key(&id("device")).expect("public key"), public);
    assert_kind(store.public_key(&id("next")), ErrorKind::NotFound);
    tpm.power_on();
    assert_signs(&store, &id("device"), &public);
}

#[test]
fn a_tpm_killed_in_the_middle_of_an_operation_is_used_again() {
    let (mut tpm, _dir, store, public) = store_with_key();
    let mut failures = 0;
    for round in 0..30 {
        let clone = store.clone();
        let signing = std::thread::spawn(move || clone.sign(&id("device"), b"message").map_err(|e| e.kind()));
        // At another point of the conversation each time: it takes some 5 ms.
        std::thread::sleep(Duration::from_micros(round * 300));
        tpm.cut_power();
        if let Err(kind) = signing.join().expect("no panic") {
            assert!([ErrorKind::Unreachable, ErrorKind::Corrupt].contains(&kind), "{kind:?}");
            failures += 1;
        }
        tpm.power_on();
        assert_signs(&store, &id("device"), &public);
    }
    assert!(failures > 0, "no operation was ever hit");
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn an_answer_cut_short_is_an_error() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    for command in [command::START_AUTH_SESSION, command::LOAD, command::SIGN, command::GET_CAPABILITY] {
        for bytes in [1, 9] {
            bus.inject(command, 1, Fault::Truncate(bytes));
            let error = store.sign(&id("device"), b"message").expect_err("cut short");
            assert!([ErrorKind::Unreachable, ErrorKind::Corrupt].contains(&error.kind()), "{error}");
            assert_signs(&store, &id("device"), &public);
        }
    }
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn an_answer_altered_on_the_bus_is_noticed() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    // In the HMAC, in the nonce, in the signature or Name.
    for command in [command::LOAD, command::SIGN] {
        for from_end in [0, 40, 70, 80] {
            bus.reset();
            bus.inject(command, 1, Fault::Flip(from_end));
            assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Corrupt);
            assert_eq!(bus.count(command), 1, "not tried again silently");
            assert_signs(&store, &id("device"), &public);
        }
    }
    for from_end in [0, 40, 100, 200, 300] {
        bus.inject(command::CREATE, 1, Fault::Flip(from_end));
        assert_kind(store.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Corrupt);
        assert_kind(store.public_key(&id("next")), ErrorKind::NotFound);
    }
    assert_eq!(tpm.loaded(), "", "flushed although the broken conversation could not");
}

/// The salt is encrypted to the storage key's public half: were another one put in, all that is said could be read.
#[test]
fn an_altered_storage_key_is_noticed() {
    let (tpm, dir, _, _) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    // In the attributes, the coordinates and the curve of the public area, which starts at byte 20 of the answer.
    for at in [26, 39, 50, 90] {
        bus.inject(command::CREATE_PRIMARY, 1, Fault::FlipAt(at));
        assert_kind(store.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Corrupt);
        assert_kind(store.public_key(&id("next")), ErrorKind::NotFound);
    }
    store.generate(&id("next"), Algorithm::EcdsaP256).expect("generate");
    assert_eq!(tpm.loaded(), "");
}

/// A refused derivation must not lead to the persistent key, whose public half libtss2 does not check.
#[test]
fn a_refusal_put_in_on_the_bus_does_not_weaken_sessions() {
    let (tpm, dir, _, _) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    bus.inject(command::CREATE_PRIMARY, 1, Fault::Answer(0x9a2));
    assert_told(store.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Denied, "owner password");
    assert_eq!((bus.count(command::CREATE), bus.count(command::START_AUTH_SESSION)), (0, 0));
}

#[test]
fn a_hanging_tpm_is_given_up_and_not_asked_again_until_it_answers() {
    let (tpm, dir, _, public) = store_with_key();
    let store = TpmStore::new(Config { time_limit: Duration::from_millis(500), ..tpm.config(dir.path()) });
    tpm.signal("-STOP");
    let begin = Instant::now();
    assert_told(store.sign(&id("device"), b"message"), ErrorKind::Unreachable, "no answer within 500ms when asked to sign");
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    // No second thread joins the first, whichever store asks.
    let threads = || fs::read_dir("/proc/self/task").expect("threads").filter_map(Result::ok).filter(is_worker).count();
    let stuck = threads();
    let begin = Instant::now();
    for _ in 0..100 {
        assert_told(store.sign(&id("device"), b"message"), ErrorKind::Unreachable, "still hanging");
        let another = TpmStore::new(tpm.config(dir.path()));
        assert_told(another.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Unreachable, "still hanging");
    }
    // The one store would wait for half a second each time, the other for two minutes.
    assert!(begin.elapsed() < Duration::from_secs(45), "each was waited for: {:?}", begin.elapsed());
    // Tests in parallel have threads of this name too, but few, and none for long.
    assert!(threads() < stuck + 50, "threads pile up");
    tpm.signal("-CONT");
    let begin = Instant::now();
    while store.sign(&id("device"), b"message").is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not used again after it went on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_signs(&TpmStore::new(tpm.config(dir.path())), &id("device"), &public);
    assert_eq!(tpm.loaded(), "", "what was given up has cleaned up after itself");
}

/// Whether a thread of this process is one that talks to a TPM.
fn is_worker(thread: &fs::DirEntry) -> bool {
    fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "tpm")
}

#[test]
fn a_cleared_tpm_says_that_the_key_is_gone() {
    let (tpm, dir, store, _) = store_with_key();
    let name = store.storage_key_name().expect("name");
    let path = store.path(&id("device"));
    let file = fs::read(&path).expect("read");
    run(tpm.tool("tpm2_clear").args(["-c", "p"]));
    let pinned = TpmStore::new(Config { storage_key: Some(name), ..tpm.config(dir.path()) });
    for (store, words) in [(store, "TPM cleared or replaced"), (pinned.clone(), "TPM cleared")] {
        assert_told(store.sign(&id("device"), b"message"), ErrorKind::Corrupt, words);
        assert_kind(store.generate(&id("device"), Algorithm::EcdsaP256), ErrorKind::Exists);
        assert_eq!(fs::read(&path).expect("read"), file, "left for a person to look at");
    }
    assert_kind(pinned.storage_key_name(), ErrorKind::Corrupt);
    // With the new Name, which an operator has looked at, the device goes on with a new key.
    let store = TpmStore::new(tpm.config(dir.path()));
    assert_ne!(store.storage_key_name().expect("name"), name);
    let public = store.generate(&id("new"), Algorithm::EcdsaP256).expect("generate");
    assert_signs(&store, &id("new"), &public);
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn another_tpm_does_not_take_the_key() {
    let (first, dir, store, _) = store_with_key();
    let name = store.storage_key_name().expect("name");
    let second = Swtpm::start();
    let moved = TpmStore::new(second.config(dir.path()));
    assert_told(moved.sign(&id("device"), b"message"), ErrorKind::Corrupt, "key of another TPM");
    // The same with a storage key of its own at the same place.
    moved.generate(&id("own"), Algorithm::EcdsaP256).expect("generate");
    assert_told(moved.sign(&id("device"), b"message"), ErrorKind::Corrupt, "key of another TPM");
    // With the Name pinned nothing is made there either.
    let pinned = TpmStore::new(Config { storage_key: Some(name), ..second.config(dir.path()) });
    assert_told(pinned.generate(&id("next"), Algorithm::EcdsaP256), ErrorKind::Corrupt, "a device on the bus");
    assert_told(pinned.sign(&id("own"), b"message"), ErrorKind::Corrupt, "a device on the bus");
    assert_eq!((first.loaded(), second.loaded()), (String::new(), String::new()));
}

/// Under dictionary-attack protection a key that was used when the power went counts as one failed try, and a few lock the TPM.
#[test]
fn dozens_of_power_cuts_after_signing_lock_nothing() {
    let (mut tpm, dir, plain, plain_public) = store_with_key();
    fs::write(dir.path().join("auth"), "secret").expect("write");
    let auth = Some(AuthSource::File(dir.path().join("auth")));
    let store = TpmStore::new(Config { auth, ..tpm.config(dir.path()) });
    let public = store.generate(&id("with-auth"), Algorithm::EcdsaP256).expect("generate");
    for _ in 0..40 {
        assert_signs(&store, &id("with-auth"), &public);
        assert_signs(&plain, &id("device"), &plain_public);
        tpm.cut_power();
        tpm.power_on();
    }
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
    assert_signs(&store, &id("with-auth"), &public);
}

#[test]
fn a_wrong_auth_value_is_denied_once_and_counts_for_nothing() {
    let (tpm, dir, _, _) = store_with_key();
    let (bus, _) = behind_proxy(&tpm, dir.path());
    let with = |value: &str| {
        let path = dir.path().join(value);
        fs::write(&path, value).expect("write");
        TpmStore::new(Config { auth: Some(AuthSource::File(path)), tcti: bus.tcti(), ..tpm.config(dir.path()) })
    };
    let public = with("right").generate(&id("with-auth"), Algorithm::EcdsaP256).expect("generate");
    for _ in 0..10 {
        bus.reset();
        assert_told(with("wrong").sign(&id("with-auth"), b"message"), ErrorKind::Denied, "refused the auth value");
        assert_eq!(bus.count(command::SIGN), 1, "tried again");
    }
    assert_signs(&with("right"), &id("with-auth"), &public);
    assert_eq!((tpm.property("TPM2_PT_LOCKOUT_COUNTER"), tpm.loaded()), (0, String::new()));
}

#[test]
fn a_lockout_that_is_there_does_not_concern_our_keys_and_is_named_for_others() {
    let (tpm, dir, store, public) = store_with_key();
    // A key that somebody made with dictionary-attack protection, and a lockout.
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
    run(tpm.tool("tpm2_create").args([
        "-C",
        "0x81000001",
        "-G",
        "ecc256",
        "-u",
        "k.pub",
        "-r",
        "k.priv",
        "-p",
        "secret",
        "-a",
        attributes,
    ]));
    run(tpm
        .tool("tpm2_encodeobject")
        .args(["-C", "0x81000001", "-u", "k.pub", "-r", "k.priv", "-p", "-o"])
        .arg(store.path(&id("protected"))));
    // tpm2-tools leave what they load, a session here as well.
    run(tpm.tool("tpm2_flushcontext").arg("-t"));
    run(tpm.tool("tpm2_flushcontext").arg("-l"));
    run(tpm.tool("tpm2_dictionarylockout").args(["-s", "-n", "2", "-t", "777", "-l", "1000"]));
    let (bus, _) = behind_proxy(&tpm, dir.path());
    fs::write(dir.path().join("wrong"), "wrong").expect("write");
    let auth = Some(AuthSource::File(dir.path().join("wrong")));
    let wrong = TpmStore::new(Config { auth, tcti: bus.tcti(), ..tpm.config(dir.path()) });
    for _ in 0..2 {
        assert_told(wrong.sign(&id("protected"), b"message"), ErrorKind::Denied, "lockout counter went up");
    }
    bus.reset();
    assert_told(wrong.sign(&id("protected"), b"message"), ErrorKind::Locked, "next try in up to 777 s");
    assert_eq!(bus.count(command::SIGN), 1, "a retry storm");
    assert_signs(&store, &id("device"), &public);
    let public = store.generate(&id("new"), Algorithm::EcdsaP256).expect("generate");
    assert_signs(&store, &id("new"), &public);
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn a_tpm_that_asks_for_patience_gets_it() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    for code in [0x922, 0x90a, 0x908] {
        for command in [command::START_AUTH_SESSION, command::LOAD, command::SIGN] {
            // More than libtss2's own five tries.
            bus.inject(command, 13, Fault::Answer(code));
            assert_signs(&store, &id("device"), &public);
        }
    }
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn patience_has_an_end() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    bus.inject(command::SIGN, usize::MAX, Fault::Answer(0x922));
    let begin = Instant::now();
    assert_told(store.sign(&id("device"), b"message"), ErrorKind::Busy, "the TPM is busy");
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(bus.count(command::SIGN) < 100, "{} tries", bus.count(command::SIGN));
    bus.reset();
    assert_signs(&store, &id("device"), &public);
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn other_answers_are_told_once() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    for (code, kind, words) in [
        (0x100, ErrorKind::Unreachable, "not started"),
        (0x101, ErrorKind::Other, "failure mode"),
        (0x920, ErrorKind::Busy, "how often"),
        (0x923, ErrorKind::Busy, "cannot be written"),
        (0x12f, ErrorKind::Denied, "boot state"),
        (0x2d5, ErrorKind::Other, "0x2d5"),
    ] {
        bus.reset();
        bus.inject(command::SIGN, 1, Fault::Answer(code));
        assert_told(store.sign(&id("device"), b"message"), kind, words);
        assert_eq!(bus.count(command::SIGN), 1, "{code:#x} was tried again");
    }
    assert_signs(&store, &id("device"), &public);
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn what_a_crashed_program_left_is_cleared_away() {
    let (tpm, _dir, store, public) = store_with_key();
    // Without a resource manager tpm2-tools leave what they load, as a program does that is killed.
    for _ in 0..3 {
        run(tpm.tool("tpm2_createprimary").args(["-C", "o", "-G", "ecc256", "-c", "stale.ctx"]));
    }
    assert_signs(&store, &id("device"), &public);
    assert_eq!(tpm.loaded(), "");
    for _ in 0..3 {
        run(tpm.tool("tpm2_startauthsession").args(["-S", "stale.session", "--policy-session"]));
        // Saved by tpm2-tools at their end: load it, and leave it.
        run(tpm.tool("tpm2_sessionconfig").arg("stale.session"));
    }
    assert_signs(&store, &id("device"), &public);
}

#[test]
fn a_tpm_that_others_are_using_is_busy_and_theirs_is_left_alone() {
    let (tpm, dir, _, public) = store_with_key();
    let (bus, store) = behind_proxy(&tpm, dir.path());
    for code in [0x902, 0x903] {
        bus.inject(command::START_AUTH_SESSION, usize::MAX, Fault::Answer(code));
        assert_told(store.sign(&id("device"), b"message"), ErrorKind::Busy, "of other programs");
        bus.reset();
    }
    // Full to the end: what was not there from the start is somebody's.
    bus.inject(command::START_AUTH_SESSION, usize::MAX, Fault::Answer(0x902));
    let signing = std::thread::spawn(move || (store.sign(&id("device"), b"message").map_err(|e| e.kind()), store));
    // Between the first tries it looks at what is there.
    while bus.count(command::START_AUTH_SESSION) < 3 && !signing.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    run(tpm.tool("tpm2_createprimary").args(["-C", "o", "-G", "ecc256", "-c", "theirs.ctx"]));
    let (result, store) = signing.join().expect("no panic");
    assert_eq!(result, Err(ErrorKind::Busy));
    assert_eq!(tpm.loaded().lines().count(), 1, "flushed what belongs to somebody");
    run(tpm.tool("tpm2_flushcontext").arg("-t"));
    bus.reset();
    // Full for a moment only: what comes and goes meanwhile is somebody's, not stale.
    bus.inject(command::START_AUTH_SESSION, 3, Fault::Answer(0x902));
    run(tpm.tool("tpm2_createprimary").args(["-C", "o", "-G", "ecc256", "-c", "theirs.ctx"]));
    assert_signs(&store, &id("device"), &public);
    assert_eq!(tpm.loaded().lines().count(), 1, "flushed what belongs to somebody");
}

#[test]
fn a_truncated_key_file_is_corrupt_at_every_length() {
    let (_tpm, _dir, store, _) = store_with_key();
    let path = store.path(&id("device"));
    let whole = fs::read(&path).expect("read");
    // The last byte is the line feed after the END line: without it the key is still whole.
    for len in 0..whole.len() - 1 {
        fs::write(&path, &whole[..len]).expect("write");
        assert_kind(store.public_key(&id("device")), ErrorKind::Corrupt);
        assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Corrupt);
    }
    assert_kind(store.generate(&id("device"), Algorithm::EcdsaP256), ErrorKind::Exists);
}

#[test]
fn a_key_file_with_any_bit_flipped_never_signs_wrongly() {
    let (tpm, _dir, store, public) = store_with_key();
    let path = store.path(&id("device"));
    let whole = fs::read(&path).expect("read");
    for at in (0..whole.len()).step_by(3) {
        let mut other = whole.clone();
        other[at] ^= 1;
        fs::write(&path, &other).expect("write");
        match store.sign(&id("device"), b"message") {
            // Bits that carry nothing, such as the hint about the auth value.
            Ok(signature) => boundkey_hal::verify::verify(&public, b"message", signature.as_bytes()).expect("verify"),
            Err(error) => assert_ne!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn a_device_node_that_is_missing_or_none_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = |node: &Path| {
        let tcti = Tcti::parse(&format!("device:{}", node.display())).expect("a TCTI");
        TpmStore::new(Config::new(dir.path(), tcti))
    };
    assert_told(store(Path::new("/dev/tpmrm99")).capabilities(), ErrorKind::Unreachable, "/dev/tpmrm99 does not exist");
    let file = dir.path().join("tpm0");
    fs::write(&file, "mine").expect("write");
    assert_told(store(&file).capabilities(), ErrorKind::Unsupported, "not a device node");
    assert_eq!(fs::read(&file).expect("read"), b"mine", "a command was written into a file");
}

/// Modes of device nodes do not bind root, so this runs as another user where the tests run as root.
#[test]
fn a_device_node_without_permission_names_the_group() {
    if fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0) {
        return as_nobody("a_device_node_without_permission_names_the_group");
    }
    let closed =
        |node: &&Path| node.metadata().is_ok_and(|m| m.file_type().is_char_device() && m.uid() == 0 && m.mode() % 8 == 0);
    let nodes = ["/dev/console", "/dev/tty1", "/dev/mem", "/dev/loop-control"].map(Path::new);
    let node =
        nodes.iter().find(|n| closed(n)).expect("this test needs a device node that is closed to it, such as /dev/console");
    let tcti = Tcti::parse(&format!("device:{}", node.display())).expect("a TCTI");
    assert_told(TpmStore::new(Config::new("/nonexistent", tcti)).capabilities(), ErrorKind::Denied, "group tss");
}

fn as_nobody(name: &str) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().expect("own path"), &program).expect("copy");
    for path in [dir.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let status = Command::new(&program).args(["--exact", name]).current_dir("/").gid(65534).uid(65534).status();
    assert!(status.expect("run as nobody").success(), "{name} failed as nobody");
}

#[test]
fn a_resource_manager_that_is_not_running_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = TpmStore::new(Config::new(dir.path(), Tcti::parse("tabrmd:bus_name=not.there").expect("a TCTI")));
    assert_told(store.capabilities(), ErrorKind::Unreachable, "tpm2-abrmd");
}

/// A defect of the TPM itself, which no HMAC on the bus shows. Software that believed it would hand on a worthless signature.
#[test]
fn a_tpm_that_signs_something_else_is_not_believed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (library, order) = (dir.path().join("wrong_digest.so"), dir.path().join("order"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/wrong_digest.c");
    run(tool("cc", "gcc").args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl"));
    let tpm = Swtpm::alone_in(vec![("LD_PRELOAD", library.into()), ("WRONG_DIGEST", order.clone().into())]);
    let store = TpmStore::new(tpm.config(dir.path()));
    let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    assert_signs(&store, &id("device"), &public);
    std::fs::write(&order, "").expect("write");
    let error = store.sign(&id("device"), b"a message").expect_err("it signed something else");
    assert_eq!((error.kind(), error.to_string().contains("does not fit its public key")), (ErrorKind::Corrupt, true), "{error}");
    std::fs::remove_file(&order).expect("remove");
    assert_signs(&store, &id("device"), &public);
}
