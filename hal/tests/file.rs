//! The file backend: the conformance suite, and what can happen to files.
#![cfg(feature = "file")]

mod conformance;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use boundkey_hal::file::{FileStore, LoadedFileStore};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _, Reference, verify};
use conformance::{assert_kind, assert_signs, id, names};

#[test]
fn conformance() {
    let dir = tempfile::tempdir().expect("temporary directory");
    conformance::run(&|| Box::new(FileStore::new(dir.path())));
}

/// A server that is out of descriptors, or whose disk fails, goes on signing.
#[test]
fn a_loaded_key_signs_without_its_file() {
    let (dir, store) = store_with_key();
    let loaded = LoadedFileStore::new(dir.path());
    let key = loaded.public_key(&id("device")).expect("public key");
    fs::remove_file(store.path(&id("device"))).expect("remove");
    assert_signs(&loaded, &id("device"), &key);
    assert_kind(loaded.sign(&id("other"), b"message"), ErrorKind::NotFound);
}

/// Threads sign with one parsed key; once it is deleted, it is gone for all.
#[test]
fn a_loaded_store_signs_for_threads() {
    let (dir, _) = store_with_key();
    let loaded = LoadedFileStore::new(dir.path());
    for (name, algorithm) in [("p256", Algorithm::EcdsaP256), ("ed25519", Algorithm::Ed25519)] {
        let public = loaded.generate(&id(name), algorithm).expect("generate");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| assert_signs(&loaded, &id(name), &public)));
            }
        });
        loaded.delete(&id(name)).expect("delete");
        assert_kind(loaded.sign(&id(name), b"message"), ErrorKind::NotFound);
    }
}

#[test]
fn openssl_signs_with_the_file_that_the_reference_names() {
    let (dir, store) = store_with_key();
    let public = store.public_key(&id("device")).expect("public key");
    let Reference::Path(path) = store.reference(&id("device")).expect("reference") else { panic!("not a path") };
    let message = dir.path().join("message");
    fs::write(&message, b"a message").expect("write");
    let mut openssl = std::process::Command::new("openssl");
    let signed = openssl.args(["pkeyutl", "-sign", "-rawin", "-inkey", path.as_str(), "-in"]).arg(&message).output();
    let signed = signed.expect("openssl, of the Debian package of that name");
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    verify::verify(&public, b"a message", &signed.stdout).expect("verify");
    assert_kind(store.reference(&id("other")), ErrorKind::NotFound);
}

#[test]
fn a_path_that_is_too_long_to_be_told_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let deep = (0..5).fold(dir.path().to_owned(), |path, _| path.join("d".repeat(250)));
    fs::create_dir_all(&deep).expect("directory");
    let store = FileStore::new(deep);
    store.generate(&id("device"), Algorithm::Ed25519).expect("generate");
    assert_kind(store.reference(&id("device")), ErrorKind::Unsupported);
}

/// A store in a fresh directory, with one key.
fn store_with_key() -> (tempfile::TempDir, FileStore) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path());
    store.generate(&id("device"), Algorithm::Ed25519).expect("generate");
    (dir, store)
}

#[test]
fn a_key_file_is_private() {
    let (_dir, store) = store_with_key();
    let mode = fs::metadata(store.path(&id("device"))).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_truncated_file_is_corrupt_at_every_length() {
    let (_dir, store) = store_with_key();
    let path = store.path(&id("device"));
    let whole = fs::read(&path).expect("read");
    // The last byte is the line feed after the END line: without it the key is still whole.
    for len in 0..whole.len() - 1 {
        fs::write(&path, &whole[..len]).expect("write");
        assert_kind(store.public_key(&id("device")), ErrorKind::Corrupt);
        assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Corrupt);
    }
    assert_kind(store.generate(&id("device"), Algorithm::Ed25519), ErrorKind::Exists);
    assert_eq!(fs::read(&path).expect("read"), whole[..whole.len() - 2], "a damaged key is left for a person to look at");
}

#[test]
fn another_pem_is_corrupt() {
    let (_dir, store) = store_with_key();
    let path = store.path(&id("device"));
    let public =
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    let whole = fs::read_to_string(&path).expect("read");
    let relabelled = whole.replace("PRIVATE KEY", "TSS2 PRIVATE KEY");
    // DER of nothing we know.
    let unknown = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    let invalid_utf8 = b"\xff\xfe";
    let too_long = "x".repeat(1 << 20);
    for other in [public.as_bytes(), relabelled.as_bytes(), unknown.as_bytes(), invalid_utf8, too_long.as_bytes()] {
        fs::write(&path, other).expect("write");
        assert_kind(store.public_key(&id("device")), ErrorKind::Corrupt);
        assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Corrupt);
    }
}

#[test]
fn both_algorithms_are_known_by_their_file() {
    let (_dir, store) = store_with_key();
    let public = store.generate(&id("other"), Algorithm::EcdsaP256).expect("generate");
    assert_eq!(store.public_key(&id("other")).expect("public key"), public);
    fs::rename(store.path(&id("other")), store.path(&id("device"))).expect("rename");
    assert_eq!(store.public_key(&id("device")).expect("public key"), public);
}

#[test]
fn unreadable_is_not_absent() {
    let (dir, store) = store_with_key();
    let path = store.path(&id("device"));
    // A directory under the key's name cannot be read by anyone, root included.
    fs::remove_file(&path).expect("remove");
    fs::create_dir(&path).expect("create directory");
    assert_kind(store.public_key(&id("device")), ErrorKind::Other);
    assert_kind(store.generate(&id("device"), Algorithm::Ed25519), ErrorKind::Exists);
    // Nor is a dangling link free to be written through.
    std::os::unix::fs::symlink(dir.path().join("nowhere"), store.path(&id("linked"))).expect("symlink");
    assert_kind(store.generate(&id("linked"), Algorithm::Ed25519), ErrorKind::Exists);
    // A file where the directory should be: no key is absent, the store is.
    let under_a_file = FileStore::new(store.path(&id("nowhere")).join("dir"));
    fs::write(store.path(&id("nowhere")), "").expect("write");
    let error = under_a_file.public_key(&id("device")).expect_err("no directory");
    assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// File modes do not bind root, so this runs as another user where the tests run as root.
#[test]
fn a_forbidden_file_is_denied() {
    let (dir, store) = store_with_key();
    let path = store.path(&id("device"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("chmod");
    if fs::read(&path).is_ok() {
        return as_nobody("a_forbidden_file_is_denied", dir.path());
    }
    assert_kind(store.public_key(&id("device")), ErrorKind::Denied);
    assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Denied);
    assert_kind(store.generate(&id("device"), Algorithm::Ed25519), ErrorKind::Exists);
}

/// Runs the test `name` of this file again, without root's rights.
fn as_nobody(name: &str, dir: &std::path::Path) {
    use std::os::unix::process::CommandExt as _;
    // The build directory may be closed to others, so the program moves to where `nobody` can start it.
    let program = dir.join("test");
    fs::copy(std::env::current_exe().expect("own path"), &program).expect("copy");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let status = std::process::Command::new(&program)
        .args(["--exact", name])
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .gid(65534)
        .uid(65534)
        .status()
        .expect("run as nobody");
    assert!(status.success(), "{name} failed as nobody");
}

#[test]
fn a_staged_file_is_no_key_and_is_in_nobodys_way() {
    let (dir, store) = store_with_key();
    // What a power cut leaves between writing and renaming.
    let staged = store.path(&id("next")).with_extension("pem.new");
    fs::write(&staged, "-----BEGIN PRIV").expect("write");
    assert_eq!(names(&store), ["device"]);
    assert_kind(store.public_key(&id("next")), ErrorKind::NotFound);
    let public = store.generate(&id("next"), Algorithm::Ed25519).expect("generate");
    assert_signs(&store, &id("next"), &public);
    assert!(!staged.exists());
    assert_eq!(fs::read_dir(dir.path()).expect("read directory").count(), 2);
}

#[test]
fn foreign_files_are_not_keys() {
    let (dir, store) = store_with_key();
    for name in ["key-.pem", "key-UPPER.pem", "key-a b.pem", "state", "key-device.pem.new", "key-x.pem~"] {
        fs::write(dir.path().join(name), "").expect("write");
    }
    assert_eq!(names(&store), ["device"]);
}

#[test]
fn no_directory_holds_no_keys() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path().join("later"));
    assert_eq!(names(&store), [""; 0]);
    assert_kind(store.public_key(&id("device")), ErrorKind::NotFound);
}
