//! The NV counter: only up, believed only if it is one, and named when it is missing.
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

use boundkey_hal::tpm::{Config, Counter, TpmStore, counter};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _};
use conformance::{assert_kind, id};
use support::process::run;
use support::swtpm::Swtpm;
use support::tpm_proxy::{Fault, TpmProxy, command};

/// A TPM, a directory, and the counter of the store there.
fn setup() -> (Swtpm, tempfile::TempDir, Counter) {
    let (tpm, dir) = (Swtpm::alone(), tempfile::tempdir().expect("temporary directory"));
    let counter = Counter::new(tpm.config(dir.path()), counter::DEFAULT_INDEX).expect("an index");
    (tpm, dir, counter)
}

/// The counter's index, as tpm2-tools take it.
fn index() -> String {
    format!("{:#x}", counter::DEFAULT_INDEX)
}

#[test]
fn a_counter_only_goes_up() {
    let (mut tpm, dir, counter) = setup();
    assert_kind(counter.read(), ErrorKind::NotFound);
    assert_kind(counter.increment(), ErrorKind::NotFound);
    let first = counter.define().expect("define");
    assert_eq!(counter.read().expect("read"), first);
    assert_eq!(counter.define().expect("define again"), first, "one that is there keeps its value");
    assert_eq!(counter.increment().expect("increment"), first + 1);
    tpm.cut_power();
    tpm.power_on();
    assert_eq!(counter.read().expect("read"), first + 1);
    // Deleted and made again: missing, then above all values there ever were.
    run(tpm.tool("tpm2_nvundefine").args(["-C", "o", &index()]));
    let error = counter.read().expect_err("deleted");
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("0x180b0cd"), "{error}");
    assert!(counter.define().expect("define") > first + 1);
    assert_eq!(tpm.loaded(), "");
    // Counting needs no owner's password.
    TpmStore::new(tpm.config(dir.path())).generate(&id("device"), Algorithm::EcdsaP256).expect("generate");
    run(tpm.tool("tpm2_changeauth").args(["-c", "owner", "owner-password"]));
    let config = Config { derive_storage_key: false, ..tpm.config(dir.path()) };
    let counter = Counter::new(config, counter::DEFAULT_INDEX).expect("an index");
    let value = counter.read().expect("read");
    assert_eq!(counter.increment().expect("increment"), value + 1);
}

#[test]
fn a_counter_that_lost_power_between_its_steps_is_finished() {
    let (tpm, _dir, counter) = setup();
    run(tpm.tool("tpm2_nvdefine").args(["-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|no_da|nt=counter", &index()]));
    assert_kind(counter.read(), ErrorKind::NotFound);
    let first = counter.define().expect("define");
    assert_eq!(counter.increment().expect("increment"), first + 1);
}

#[test]
fn what_is_not_a_counter_is_not_believed() {
    let (tpm, dir, counter) = setup();
    run(tpm.tool("tpm2_nvdefine").args(["-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|ownerwrite|no_da", &index()]));
    for result in [counter.read(), counter.increment(), counter.define()] {
        assert_kind(result, ErrorKind::Corrupt);
    }
    assert_kind(Counter::new(tpm.config(dir.path()), 0x8100_0001).map(|_| ()), ErrorKind::Unsupported);
}

#[test]
fn an_altered_counter_is_noticed() {
    let (tpm, dir, _) = setup();
    let bus = TpmProxy::start(&tpm);
    let counter = Counter::new(Config { tcti: bus.tcti(), ..tpm.config(dir.path()) }, counter::DEFAULT_INDEX).expect("an index");
    let value = counter.define().expect("define");
    for at in [0, 40, 70] {
        bus.reset();
        bus.inject(command::NV_READ, 1, Fault::Flip(at));
        assert_kind(counter.read(), ErrorKind::Corrupt);
        assert_eq!(bus.count(command::NV_READ), 1, "not tried again silently");
    }
    assert_eq!(counter.read().expect("read"), value);
}
