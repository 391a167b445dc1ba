//! The PKCS#11 backend on a TPM behind tpm2-pkcs11: other limits than SoftHSM2's, and a PIN that can lock for real.
#![cfg(feature = "pkcs11")]

mod conformance;
mod support;

use std::fs;
use std::path::Path;

use boundkey_hal::pkcs11::{Config, PinSource, Pkcs11Store, TokenMatch};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _};
use conformance::{assert_kind, assert_signs, id};
use support::process;
use support::tpm2_pkcs11::{self, LABEL, Tpm2Pkcs11};

/// Runs a test in its own process with a TPM.
fn with_tpm(name: &str, body: impl FnOnce(&Path, Tpm2Pkcs11)) {
    process::isolated(name, tpm2_pkcs11::environment, |dir| body(dir, Tpm2Pkcs11::start(dir)));
}

fn open(pin: &Path) -> Pkcs11Store {
    let config = Config::new(tpm2_pkcs11::module(), TokenMatch::label(LABEL));
    Pkcs11Store::new(Config { pin: Some(PinSource::File(pin.into())), ..config }).expect("store")
}

#[test]
fn conformance() {
    with_tpm("conformance", |dir, _tpm| {
        let pin = tpm2_pkcs11::pin_file(dir);
        let can = open(&pin).capabilities().expect("capabilities");
        assert_eq!(can.algorithms[..], [Algorithm::EcdsaP256]);
        assert!(can.hardware);
        conformance::run(&|| Box::new(open(&pin)));
    });
}

#[test]
fn a_wrong_pin_costs_one_try_of_the_tpm() {
    with_tpm("a_wrong_pin_costs_one_try_of_the_tpm", |dir, tpm| {
        let (right, key) = (open(&tpm2_pkcs11::pin_file(dir)), id("device"));
        let public = right.generate(&key, Algorithm::EcdsaP256).expect("generate");
        let wrong_pin = dir.join("wrong-pin");
        fs::write(&wrong_pin, "wrong-pin").expect("write");
        let wrong = open(&wrong_pin);
        let tries = || tpm.swtpm.property("TPM2_PT_LOCKOUT_COUNTER");
        let before = tries();
        for _ in 0..5 {
            assert_kind(wrong.sign(&key, b"message"), ErrorKind::Denied);
            assert_eq!(tries(), before + 1, "a wrong PIN is not tried again");
        }
        assert_signs(&right, &key, &public);
        // Three wrong ones in a row lock the TPM, for the right one too; this token never says that the last try is near.
        while tries() < 3 {
            fs::write(&wrong_pin, format!("wrong-pin-{}", tries())).expect("write");
            assert_kind(wrong.sign(&key, b"message"), ErrorKind::Denied);
        }
        fs::write(&wrong_pin, "yet-another").expect("write");
        for store in [&wrong, &right] {
            assert_kind(store.sign(&key, b"message"), ErrorKind::Locked);
        }
        assert_eq!(tries(), 3);
    });
}

#[test]
fn a_tpm_that_goes_and_comes_back() {
    with_tpm("a_tpm_that_goes_and_comes_back", |dir, mut tpm| {
        let (store, key) = (open(&tpm2_pkcs11::pin_file(dir)), id("device"));
        let public = store.generate(&key, Algorithm::EcdsaP256).expect("generate");
        for _ in 0..2 {
            // A program that outlives the daemon notices at its next call, asked in between or not.
            tpm.down();
            tpm.up();
            assert_signs(&store, &key, &public);
            tpm.down();
            assert_kind(store.sign(&key, b"message"), ErrorKind::Unreachable);
            assert_kind(store.capabilities(), ErrorKind::Unreachable);
            tpm.up();
            assert_signs(&store, &key, &public);
        }
        assert_eq!(tpm.swtpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
    });
}
