//! One black-box suite for every backend: what the `KeyStore` contract promises, seen from outside.
//!
//! A backend's test calls [`run`] with a closure that opens the store again, as a restarted program would. The store
//! must be empty at first, and is empty again at the end.

use boundkey_hal::{Algorithm, Error, ErrorKind, KeyId, KeyStore, PublicKey, verify};

/// Opens the store under test, each time anew.
pub(crate) type Open<'a> = &'a dyn Fn() -> Box<dyn KeyStore>;

/// The whole suite.
pub(crate) fn run(open: Open<'_>) {
    assert_eq!(names(&*open()), [""; 0], "the suite starts with an empty store");
    capabilities_name_an_algorithm_and_a_place(&*open());
    an_absent_key_is_not_found(&*open());
    an_algorithm_not_offered_is_unsupported(&*open());
    for algorithm in algorithms(&*open()) {
        a_key_signs_messages_of_all_sizes(&*open(), algorithm);
        a_key_survives_reopening(open, algorithm);
        a_key_is_never_overwritten(open, algorithm);
        two_keys_are_independent(&*open(), algorithm);
    }
    list_and_delete_agree(&*open());
    names_of_all_shapes_work(&*open());
    an_open_store_sees_what_another_does(open);
    a_reference_stays_the_same(open);
    a_fingerprint_stays_the_same(open);
    threads_share_one_store(&*open());
    nothing_is_left_open(&*open());
    assert_eq!(names(&*open()), [""; 0], "the suite leaves an empty store");
}

fn capabilities_name_an_algorithm_and_a_place(store: &dyn KeyStore) {
    let can = store.capabilities().expect("capabilities");
    assert!(!can.algorithms.is_empty(), "a store that can sign nothing");
    assert!(!can.place.is_empty(), "a technician must learn where the keys are");
    for (i, a) in can.algorithms.iter().enumerate() {
        assert!(!can.algorithms[..i].contains(a), "{a} is listed twice");
    }
    assert_eq!(store.capabilities().expect("capabilities again"), can, "capabilities do not change by asking");
}

fn an_absent_key_is_not_found(store: &dyn KeyStore) {
    let absent = id("absent");
    assert_kind(store.public_key(&absent), ErrorKind::NotFound);
    assert_kind(store.sign(&absent, b"message"), ErrorKind::NotFound);
    assert_kind(store.delete(&absent), ErrorKind::NotFound);
}

fn an_algorithm_not_offered_is_unsupported(store: &dyn KeyStore) {
    let offered = algorithms(store);
    for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
        if !offered.contains(&algorithm) {
            assert_kind(store.generate(&id("not-offered"), algorithm), ErrorKind::Unsupported);
            assert_kind(store.public_key(&id("not-offered")), ErrorKind::NotFound);
        }
    }
}

fn a_key_signs_messages_of_all_sizes(store: &dyn KeyStore, algorithm: Algorithm) {
    let key = id("sizes");
    let public = store.generate(&key, algorithm).expect("generate");
    assert_eq!(public.algorithm(), algorithm);
    assert_eq!(store.public_key(&key).expect("public key"), public, "generate and public_key name the same key");
    // Around digest, block and command buffer sizes, where a backend could truncate or take a message for a digest.
    for size in [0, 1, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 4096, 65535, 65536] {
        let message = message(size);
        let signature = store.sign(&key, &message).expect("sign");
        verify::verify(&public, &message, signature.as_bytes()).unwrap_or_else(|e| panic!("{algorithm}, {size} bytes: {e}"));
        let other = [&message[..], b"!"].concat();
        assert!(verify::verify(&public, &other, signature.as_bytes()).is_err(), "{size} bytes: the end is not signed");
    }
    store.delete(&key).expect("delete");
}

fn a_key_survives_reopening(open: Open<'_>, algorithm: Algorithm) {
    let key = id("lasting");
    let public = open().generate(&key, algorithm).expect("generate");
    let store = open();
    assert_eq!(store.public_key(&key).expect("public key"), public);
    assert_signs(&*store, &key, &public);
    assert_eq!(names(&*store), ["lasting"]);
    store.delete(&key).expect("delete");
    assert_kind(open().public_key(&key), ErrorKind::NotFound);
}

fn a_key_is_never_overwritten(open: Open<'_>, algorithm: Algorithm) {
    let key = id("taken");
    let store = open();
    let public = store.generate(&key, algorithm).expect("generate");
    for other in algorithms(&*store) {
        assert_kind(store.generate(&key, other), ErrorKind::Exists);
        assert_kind(open().generate(&key, other), ErrorKind::Exists);
    }
    assert_eq!(store.public_key(&key).expect("public key"), public, "the first key is still there");
    assert_signs(&*store, &key, &public);
    store.delete(&key).expect("delete");
    // A name is free again once its key is gone, and gets another key.
    assert_ne!(store.generate(&key, algorithm).expect("generate"), public);
    store.delete(&key).expect("delete");
}

fn two_keys_are_independent(store: &dyn KeyStore, algorithm: Algorithm) {
    let (one, two) = (id("pair-1"), id("pair-2"));
    let public_one = store.generate(&one, algorithm).expect("generate");
    let public_two = store.generate(&two, algorithm).expect("generate");
    assert_ne!(public_one, public_two);
    assert_signs(store, &one, &public_one);
    assert_signs(store, &two, &public_two);
    let signature = store.sign(&one, b"message").expect("sign");
    assert!(verify::verify(&public_two, b"message", signature.as_bytes()).is_err(), "one key signs for the other");
    store.delete(&one).expect("delete");
    assert_kind(store.sign(&one, b"message"), ErrorKind::NotFound);
    assert_signs(store, &two, &public_two);
    store.delete(&two).expect("delete");
}

fn list_and_delete_agree(store: &dyn KeyStore) {
    let algorithm = algorithms(store)[0];
    for name in ["b", "a", "c"] {
        store.generate(&id(name), algorithm).expect("generate");
    }
    assert_eq!(names(store), ["a", "b", "c"]);
    store.delete(&id("b")).expect("delete");
    assert_eq!(names(store), ["a", "c"]);
    assert_kind(store.delete(&id("b")), ErrorKind::NotFound);
    assert_kind(store.sign(&id("b"), b"message"), ErrorKind::NotFound);
    for name in ["a", "c"] {
        store.delete(&id(name)).expect("delete");
    }
}

fn names_of_all_shapes_work(store: &dyn KeyStore) {
    let algorithm = algorithms(store)[0];
    // One name is the start or the end of another, and one is as long as a name can be.
    let mut shapes = ["-", "0", "device", "device-2", "my-device", "abcdefghijklmnopqrstuvwxyz-01234"];
    let publics = shapes.map(|name| store.generate(&id(name), algorithm).expect("generate"));
    for (name, public) in shapes.iter().zip(&publics) {
        assert_eq!(store.public_key(&id(name)).expect("public key"), *public, "{name}");
        assert_signs(store, &id(name), public);
    }
    shapes.sort_unstable();
    assert_eq!(names(store), shapes);
    for name in shapes {
        store.delete(&id(name)).expect("delete");
    }
}

fn an_open_store_sees_what_another_does(open: Open<'_>) {
    let key = id("shared");
    let (one, two) = (open(), open());
    let algorithm = algorithms(&*one)[0];
    let public = one.generate(&key, algorithm).expect("generate");
    for _ in 0..3 {
        assert_signs(&*two, &key, &public);
        assert_signs(&*one, &key, &public);
    }
    two.delete(&key).expect("delete");
    assert_kind(one.sign(&key, b"message"), ErrorKind::NotFound);
    let public = two.generate(&key, algorithm).expect("generate");
    assert_eq!(one.public_key(&key).expect("public key"), public, "an old public half was kept");
    assert_signs(&*one, &key, &public);
    one.delete(&key).expect("delete");
}

fn a_reference_stays_the_same(open: Open<'_>) {
    let (key, other) = (id("referred"), id("other"));
    let store = open();
    let algorithm = algorithms(&*store)[0];
    assert_kind(store.reference(&key), ErrorKind::NotFound);
    for id in [&key, &other] {
        store.generate(id, algorithm).expect("generate");
    }
    let reference = store.reference(&key).expect("reference");
    assert!(!reference.as_str().is_empty());
    assert_eq!(open().reference(&key).expect("reference"), reference);
    assert_ne!(store.reference(&other).expect("reference"), reference, "two keys, one reference");
    for id in [&key, &other] {
        store.delete(id).expect("delete");
        assert_kind(store.reference(id), ErrorKind::NotFound);
    }
}

fn a_fingerprint_stays_the_same(open: Open<'_>) {
    let store = open();
    let before = store.fingerprint().expect("fingerprint");
    store.generate(&id("marked"), algorithms(&*store)[0]).expect("generate");
    assert_eq!(store.fingerprint().expect("fingerprint"), before, "a new key changes it");
    assert_eq!(open().fingerprint().expect("fingerprint"), before, "a new start changes it");
    store.delete(&id("marked")).expect("delete");
    assert_eq!(store.fingerprint().expect("fingerprint"), before, "a key less changes it");
}

/// Threads sign with two keys, one makes and deletes others and one lists, all with the same store.
fn threads_share_one_store(store: &dyn KeyStore) {
    let algorithm = algorithms(store)[0];
    let keys = [id("thread-1"), id("thread-2")];
    let publics = keys.each_ref().map(|key| store.generate(key, algorithm).expect("generate"));
    std::thread::scope(|scope| {
        for (key, public) in keys.iter().zip(&publics).cycle().take(4) {
            scope.spawn(move || (0..10).for_each(|_| assert_signs(store, key, public)));
        }
        scope.spawn(|| {
            for _ in 0..3 {
                let public = store.generate(&id("thread-3"), algorithm).expect("generate");
                assert_signs(store, &id("thread-3"), &public);
                store.delete(&id("thread-3")).expect("delete");
            }
        });
        scope.spawn(|| {
            for _ in 0..3 {
                let names = names(store);
                assert!(["thread-1", "thread-2"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
            }
        });
    });
    for key in &keys {
        store.delete(key).expect("delete");
    }
}

/// More calls than any device has slots for objects or sessions, failing ones included.
fn nothing_is_left_open(store: &dyn KeyStore) {
    let (key, absent) = (id("many"), id("absent"));
    let algorithm = algorithms(store)[0];
    let public = store.generate(&key, algorithm).expect("generate");
    for _ in 0..20 {
        assert_kind(store.sign(&absent, b"message"), ErrorKind::NotFound);
        assert_kind(store.generate(&key, algorithm), ErrorKind::Exists);
        assert_signs(store, &key, &public);
    }
    store.delete(&key).expect("delete");
}

/// The key `name`.
pub(crate) fn id(name: &str) -> KeyId {
    name.parse().expect("a valid key name")
}

/// That `result` failed with `kind`, told in one line that fits after "key store: ".
pub(crate) fn assert_kind<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind) {
    let error = result.expect_err("this should have failed");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.is_empty() && !text.contains('\n') && !text.ends_with('.'), "not a one-line message: {text:?}");
}

/// That `key` signs, and that `public` is its public half.
pub(crate) fn assert_signs(store: &dyn KeyStore, key: &KeyId, public: &PublicKey) {
    let signature = store.sign(key, b"a message").expect("sign");
    verify::verify(public, b"a message", signature.as_bytes()).expect("verify");
}

/// The names of all keys, sorted.
pub(crate) fn names(store: &dyn KeyStore) -> Vec<String> {
    let mut names = Vec::new();
    store.list(&mut |id| names.push(id.to_string())).expect("list");
    names.sort_unstable();
    names
}

fn algorithms(store: &dyn KeyStore) -> Vec<Algorithm> {
    store.capabilities().expect("capabilities").algorithms.to_vec()
}

/// `size` bytes without a pattern that repeats at a block size.
fn message(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}
