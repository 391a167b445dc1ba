//! The PKCS#11 backend when modules, tokens and PINs misbehave: what it does, and how often it tries.
#![cfg(feature = "pkcs11")]
#![allow(clippy::result_large_err)] // see lib.rs

mod conformance;
mod support;

use std::fs;
use std::path::Path;

use boundkey_hal::pkcs11::{Config, PinSource, Pkcs11Store, TokenMatch, init_token, tokens};
use boundkey_hal::{Algorithm, Error, ErrorKind, KeyStore as _};
use conformance::{assert_kind, assert_signs, id, names};
use support::faulty::{self, Faulty};
use support::process;
use support::softhsm::{self, LABEL, PIN, SO_PIN, SoftHsm};

/// Runs a test in its own process on one token behind the module that fails on demand. The token has a key `device`.
fn with_faulty(name: &str, body: impl FnOnce(&Faulty, Pkcs11Store)) {
    let prepare = |dir: &Path| [SoftHsm::new(dir).environment(), Faulty::new(dir).environment()].concat();
    process::isolated(name, prepare, |dir| {
        let faulty = Faulty::at(dir);
        let store = open(&faulty, &SoftHsm::at(dir).pin_file());
        store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        faulty.forget();
        body(&faulty, store);
    });
}

fn open(faulty: &Faulty, pin: &Path) -> Pkcs11Store {
    let config = Config::new(faulty.module(), TokenMatch::label(LABEL));
    Pkcs11Store::new(Config { pin: Some(PinSource::File(pin.into())), ..config }).expect("store")
}

/// Every call that logs in, on a key that is there.
fn all_calls(store: &Pkcs11Store) -> [Result<(), Error>; 5] {
    let key = id("device");
    [
        store.public_key(&key).map(drop),
        store.sign(&key, b"message").map(drop),
        store.list(&mut |_| {}),
        store.generate(&id("other"), Algorithm::EcdsaP256).map(drop),
        store.delete(&key),
    ]
}

#[test]
fn one_initialisation_and_no_session_left() {
    let prepare = |dir: &Path| [SoftHsm::new(dir).environment(), Faulty::new(dir).environment()].concat();
    process::isolated("one_initialisation_and_no_session_left", prepare, |dir| {
        let faulty = Faulty::at(dir);
        conformance::run(&|| Box::new(open(&faulty, &SoftHsm::at(dir).pin_file())));
        assert_eq!((faulty.calls("C_Initialize"), faulty.calls("C_Finalize")), (1, 0));
        assert_eq!(faulty.calls("C_OpenSession"), faulty.calls("C_CloseSession"));
        assert_eq!(faulty.calls("C_OpenSession"), faulty.calls("C_Login"));
    });
}

#[test]
fn a_wrong_pin_costs_one_try() {
    with_faulty("a_wrong_pin_costs_one_try", |faulty, _| {
        let wrong = faulty.module().with_file_name("wrong-pin");
        fs::write(&wrong, "wrong-pin").expect("write");
        let results = all_calls(&open(faulty, &wrong));
        assert_eq!(faulty.calls("C_Login"), 1);
        for result in results {
            assert_kind(result, ErrorKind::Denied);
        }
        assert_eq!(faulty.calls("C_Initialize"), 0);
        assert_eq!(faulty.calls("C_OpenSession"), faulty.calls("C_CloseSession"));
    });
}

/// Three wrong tries by a misconfigured agent would turn a truck roll into a dead token.
#[test]
fn the_last_try_is_never_burnt() {
    with_faulty("the_last_try_is_never_burnt", |faulty, store| {
        for (flag, what) in [(faulty::USER_PIN_FINAL_TRY, "one more wrong PIN locks it"), (faulty::USER_PIN_LOCKED, "is locked")]
        {
            faulty.token_flags(flag);
            for result in all_calls(&store) {
                let text = result.as_ref().expect_err("refused").to_string();
                assert!(text.contains(what), "{text}");
                assert_kind(result, ErrorKind::Locked);
            }
        }
        assert_eq!(faulty.calls("C_Login"), 0);
        let listed = tokens(&faulty.module()).expect("tokens");
        assert!(listed.iter().all(|t| t.user_pin_locked));
        // Capabilities need no PIN.
        store.capabilities().expect("capabilities");
    });
}

#[test]
fn a_locked_pin_is_locked() {
    with_faulty("a_locked_pin_is_locked", |faulty, store| {
        faulty.refuse("C_Login", faulty::PIN_LOCKED, 1);
        assert_kind(store.public_key(&id("device")), ErrorKind::Locked);
        assert_eq!(faulty.calls("C_Login"), 1);
    });
}

#[test]
fn an_unclear_login_is_not_repeated() {
    with_faulty("an_unclear_login_is_not_repeated", |faulty, store| {
        faulty.refuse("C_Login", faulty::FUNCTION_FAILED, 1);
        assert_kind(store.public_key(&id("device")), ErrorKind::Other);
        assert_eq!(faulty.calls("C_Login"), 1);
    });
}

#[test]
fn one_fresh_start_for_everything_else() {
    with_faulty("one_fresh_start_for_everything_else", |faulty, store| {
        let key = id("device");
        let public = store.public_key(&key).expect("public key");
        for code in [faulty::GENERAL_ERROR, faulty::DEVICE_REMOVED, faulty::FUNCTION_FAILED] {
            for function in ["C_OpenSession", "C_FindObjectsInit", "C_GetAttributeValue", "C_SignInit", "C_Sign"] {
                // What failed before has left the module stopped; this call starts from nothing, and works.
                assert_signs(&store, &key, &public);
                faulty.forget();
                faulty.refuse(function, code, 1);
                assert_signs(&store, &key, &public);
                assert_eq!((faulty.calls("C_Initialize"), faulty.calls("C_Finalize")), (1, 1), "{function}");

                faulty.forget();
                faulty.refuse(function, code, 2);
                let kind = if code == faulty::FUNCTION_FAILED { ErrorKind::Other } else { ErrorKind::Unreachable };
                assert_kind(store.sign(&key, b"message"), kind);
                assert_eq!((faulty.calls("C_Initialize"), faulty.calls("C_Finalize")), (1, 2), "{function}");
                assert!(faulty.calls("C_Login") <= 2, "{function}");
            }
        }
    });
}

#[test]
fn a_token_that_shows_late_is_waited_for() {
    with_faulty("a_token_that_shows_late_is_waited_for", |faulty, store| {
        let public = store.public_key(&id("device")).expect("public key");
        faulty.forget();
        // Two slots, the token's and a blank one, each unreadable twice.
        faulty.refuse("C_GetTokenInfo", faulty::DEVICE_REMOVED, 4);
        assert_signs(&store, &id("device"), &public);
        assert_eq!((faulty.calls("C_Initialize"), faulty.calls("C_Login")), (2, 1));
    });
}

#[test]
fn a_signature_changed_on_its_way_is_corrupt() {
    with_faulty("a_signature_changed_on_its_way_is_corrupt", |faulty, store| {
        faulty.flip_signatures(1);
        assert_kind(store.sign(&id("device"), b"message"), ErrorKind::Corrupt);
        assert_eq!(faulty.calls("C_Login"), 1, "it is told, not tried again in silence");
        store.sign(&id("device"), b"message").expect("sign");
    });
}

#[test]
fn a_new_key_that_does_not_work_is_removed() {
    with_faulty("a_new_key_that_does_not_work_is_removed", |faulty, store| {
        let key = id("other");
        let expect = |kind| {
            assert_kind(store.generate(&key, Algorithm::EcdsaP256), kind);
            assert_kind(store.public_key(&key), ErrorKind::NotFound);
            assert_eq!(names(&store), ["device"]);
            assert_eq!(faulty.calls("C_GenerateKeyPair"), 1, "nothing is made twice");
            assert_eq!(faulty.calls("C_DestroyObject"), 2, "both halves are removed");
            faulty.forget();
        };
        faulty.flip_signatures(1);
        expect(ErrorKind::Corrupt);
        faulty.claim_extractable(1);
        expect(ErrorKind::Unsupported);
        faulty.refuse("C_Sign", faulty::GENERAL_ERROR, 1);
        expect(ErrorKind::Unreachable);
        store.generate(&key, Algorithm::EcdsaP256).expect("generate");
    });
}

#[test]
fn a_lost_answer_makes_nothing_twice() {
    with_faulty("a_lost_answer_makes_nothing_twice", |faulty, store| {
        let key = id("other");
        faulty.lose_answer("C_GenerateKeyPair", faulty::DEVICE_REMOVED, 1);
        assert_kind(store.generate(&key, Algorithm::EcdsaP256), ErrorKind::Unreachable);
        assert_eq!(faulty.calls("C_GenerateKeyPair"), 1);
        // It was made after all: the caller finds it.
        assert_kind(store.generate(&key, Algorithm::EcdsaP256), ErrorKind::Exists);
        let public = store.public_key(&key).expect("public key");
        assert_signs(&store, &key, &public);

        faulty.forget();
        faulty.lose_answer("C_DestroyObject", faulty::DEVICE_REMOVED, 1);
        assert_kind(store.delete(&key), ErrorKind::Unreachable);
        assert_eq!(faulty.calls("C_DestroyObject"), 1);
        assert_kind(store.delete(&key), ErrorKind::NotFound);
    });
}

#[test]
fn what_another_part_of_the_process_started_is_not_stopped() {
    let prepare = |dir: &Path| [SoftHsm::new(dir).environment(), Faulty::new(dir).environment()].concat();
    process::isolated("what_another_part_of_the_process_started_is_not_stopped", prepare, |dir| {
        use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
        let faulty = Faulty::at(dir);
        let other = Pkcs11::new(faulty.module()).expect("load");
        other.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialise");
        let store = open(&faulty, &SoftHsm::at(dir).pin_file());
        let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        // It is logged in, too, which is the whole process's login.
        let slots = other.get_slots_with_initialized_token().expect("slots");
        let session = other.open_ro_session(slots[0]).expect("session");
        session.login(cryptoki::session::UserType::User, Some(&cryptoki::types::AuthPin::new(PIN.into()))).expect("log in");
        assert_signs(&store, &id("device"), &public);
        faulty.refuse("C_Sign", faulty::GENERAL_ERROR, 1);
        assert_signs(&store, &id("device"), &public);
        assert_eq!(faulty.calls("C_Finalize"), 0);
        session.logout().expect("still logged in");
    });
}

#[test]
fn what_is_not_a_module_says_what_it_is() {
    let prepare = |dir: &Path| {
        fs::write(dir.join("text.so"), "not a library\n").expect("write");
        let mut environment = SoftHsm::new(dir).environment();
        environment[0].1 = dir.join("no-such.conf").into();
        environment
    };
    process::isolated("what_is_not_a_module_says_what_it_is", prepare, |dir| {
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        let libc = maps.split_whitespace().find(|word| word.contains("/libc.so") || word.contains("/libc-")).expect("a libc");
        let text = dir.join("text.so").display().to_string();
        for (module, why) in [
            ("/no/such/module.so", "there is no PKCS#11 module /no/such/module.so"),
            ("/etc/hostname/module.so", "cannot be read"),
            (&text, "is not a library that can be loaded here"),
            ("/bin/true", "is not a library that can be loaded here"),
            ("/", "is not a library that can be loaded here"),
            (libc, "is a library but no PKCS#11 module"),
            (&softhsm::module().display().to_string(), "does not start (C_Initialize: GeneralError)"),
        ] {
            let config = Config::new(module, TokenMatch::label(LABEL));
            let error = Pkcs11Store::new(config).expect("store").public_key(&id("device")).expect_err(module);
            assert!(error.to_string().contains(why), "{module}: {error}");
            assert_kind::<()>(Err(error), ErrorKind::Unreachable);
        }
        let relative = Config::new("libsofthsm2.so", TokenMatch::label(LABEL));
        assert_kind(Pkcs11Store::new(relative).map(drop), ErrorKind::Other);
    });
}

#[test]
fn a_blank_token_is_initialised_once() {
    let prepare = |dir: &Path| {
        fs::write(dir.join("so-pin"), SO_PIN).expect("write");
        [SoftHsm::blank(dir).environment(), Faulty::new(dir).environment()].concat()
    };
    process::isolated("a_blank_token_is_initialised_once", prepare, |dir| {
        let faulty = Faulty::at(dir);
        let (so_pin, pin) = (PinSource::File(dir.join("so-pin")), PinSource::File(dir.join("pin")));
        let init = |so_pin: &PinSource| init_token(&faulty.module(), LABEL, so_pin, &pin);
        assert!(tokens(&faulty.module()).expect("tokens").iter().all(|t| !t.initialized));
        // Cut short between the two steps: no user PIN yet, and that is said.
        faulty.refuse("C_InitPIN", faulty::DEVICE_REMOVED, 1);
        assert_kind(init(&so_pin), ErrorKind::Unreachable);
        assert_kind(open(&faulty, &dir.join("pin")).public_key(&id("device")), ErrorKind::Denied);
        // Completed, but not with a wrong PIN, nor where that would be the last try.
        faulty.forget();
        assert_kind(init(&pin), ErrorKind::Denied);
        faulty.token_flags(faulty::SO_PIN_FINAL_TRY);
        assert_kind(init(&so_pin), ErrorKind::Locked);
        assert_eq!(faulty.calls("C_Login"), 1);
        faulty.token_flags(0);
        let token = init(&so_pin).expect("initialise");
        assert!(token.initialized && token.user_pin_set && token.login_required && token.label == LABEL, "{token:?}");
        let store = open(&faulty, &dir.join("pin"));
        let public = store.generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
        // Again, and nothing happens to it.
        assert_kind(init(&so_pin), ErrorKind::Exists);
        assert_eq!(faulty.calls("C_InitToken"), 0);
        assert_signs(&store, &id("device"), &public);
        for label in ["", "ends with space ", "123456789012345678901234567890123", "\u{e9}"] {
            assert_kind(init_token(&faulty.module(), label, &so_pin, &pin), ErrorKind::Other);
        }
    });
}
