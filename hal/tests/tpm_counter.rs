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

const AUTH: &[u8] = b"an auth value of 32 bytes, of us";
/// What older versions made: everybody who may use the TPM can count it up.
const OPEN: [&str; 6] = ["-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|no_da|nt=counter"];

/// A TPM, a directory, and the counter of the store there.
fn setup() -> (Swtpm, tempfile::TempDir, Counter) {
    let (tpm, dir) = (Swtpm::alone(), tempfile::tempdir().expect("temporary directory"));
    let counter = Counter::new(tpm.config(dir.path()), counter::DEFAULT_INDEX, AUTH).expect("an index");
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
    let value = counter.read().expect("read");
    assert_eq!(counter.increment().expect("increment"), value + 1);
}

#[test]
fn a_counter_that_lost_power_between_its_steps_is_finished() {
    let (tpm, _dir, counter) = setup();
    let auth = format!("str:{}", str::from_utf8(AUTH).expect("text"));
    run(tpm.tool("tpm2_nvdefine").args(OPEN).args(["-p", &auth, &index()]));
    assert_kind(counter.read(), ErrorKind::NotFound);
    let first = counter.define().expect("define");
    assert_eq!(counter.increment().expect("increment"), first + 1);
}

/// A member of the group that may use the TPM counted it up, and the agent refused its own memory.
#[test]
fn nobody_counts_up_without_the_auth_value() {
    let (tpm, dir, counter) = setup();
    let first = counter.define().expect("define");
    let index = index();
    for (tool, arguments) in [
        ("tpm2_nvincrement", &["-C", &index, &index][..]),
        ("tpm2_nvincrement", &["-C", "o", &index]),
        ("tpm2_nvincrement", &["-C", &index, "-P", "guessed", &index]),
        ("tpm2_nvread", &["-C", &index, &index]),
    ] {
        let output = tpm.tool(tool).args(arguments).output().expect("run");
        assert!(!output.status.success(), "{tool} {arguments:?}: {output:?}");
    }
    // Guesses lock nothing: neither the counter nor the keys of others.
    for _ in 0..40 {
        assert!(
            !tpm.tool("tpm2_nvincrement").args(["-C", &index, "-P", "guessed", &index]).output().expect("run").status.success()
        );
    }
    assert_eq!(counter.increment().expect("increment"), first + 1);
    assert!(!TpmStore::new(tpm.config(dir.path())).lockout().expect("lockout").is_locked);
    // The owner may look.
    run(tpm.tool("tpm2_nvread").args(["-C", "o", &index]));
    for auth in [&b""[..], b"another"] {
        let other = Counter::new(tpm.config(dir.path()), counter::DEFAULT_INDEX, auth).expect("an index");
        assert_kind(other.read(), ErrorKind::Exists);
        assert_kind(other.increment(), ErrorKind::Exists);
    }
    assert_eq!(tpm.loaded(), "");
}

#[test]
fn what_is_not_our_counter_is_not_believed_and_is_replaced_when_one_is_made() {
    let (tpm, dir, counter) = setup();
    let highest = counter.define().expect("define");
    let index = index();
    let foreign: [&[&str]; 4] = [
        &["-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|ownerwrite|no_da"],
        &["-C", "o", "-s", "8", "-a", "ownerread|ownerwrite|nt=counter"],
        &["-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|no_da|nt=counter", "-p", "another"],
        &OPEN,
    ];
    for arguments in foreign {
        run(tpm.tool("tpm2_nvundefine").args(["-C", "o", &index]));
        run(tpm.tool("tpm2_nvdefine").args(arguments).arg(&index));
        for result in [counter.read(), counter.increment()] {
            assert_kind(result, ErrorKind::Exists);
        }
        assert!(counter.define().expect("define") > highest, "above all that were");
        counter.increment().expect("ours");
    }
    run(tpm.tool("tpm2_changeauth").args(["-c", "owner", "owner-password"]));
    assert!(!tpm.tool("tpm2_nvundefine").args(["-C", "o", &index]).output().expect("run").status.success(), "now it stays");
    assert_kind(Counter::new(tpm.config(dir.path()), 0x8100_0001, AUTH).map(|_| ()), ErrorKind::Unsupported);
    for auth in [&[1; 33][..], b"zero\0"] {
        assert_kind(Counter::new(tpm.config(dir.path()), counter::DEFAULT_INDEX, auth).map(|_| ()), ErrorKind::Unsupported);
    }
}

/// A counter of an older version takes no auth value, and goes on.
#[test]
fn a_counter_without_an_auth_value_still_counts() {
    let (tpm, dir, _) = setup();
    run(tpm.tool("tpm2_nvdefine").args(OPEN).arg(index()));
    run(tpm.tool("tpm2_nvincrement").args(["-C", &index(), &index()]));
    let counter = Counter::new(tpm.config(dir.path()), counter::DEFAULT_INDEX, b"").expect("an index");
    let value = counter.read().expect("read");
    assert_eq!(counter.increment().expect("increment"), value + 1);
}

#[test]
fn an_altered_counter_is_noticed() {
    let (tpm, dir, _) = setup();
    let bus = TpmProxy::start(&tpm);
    let config = Config { tcti: bus.tcti(), ..tpm.config(dir.path()) };
    let counter = Counter::new(config, counter::DEFAULT_INDEX, AUTH).expect("an index");
    let value = counter.define().expect("define");
    for at in [0, 40, 70] {
        bus.reset();
        bus.inject(command::NV_READ, 1, Fault::Flip(at));
        assert_kind(counter.read(), ErrorKind::Corrupt);
        assert_eq!(bus.count(command::NV_READ), 1, "not tried again silently");
    }
    assert_eq!(counter.read().expect("read"), value);
}
