//! What a TPM or token can do wrong: each ends in a sentence, exit code 7, and nothing is overwritten.

use std::time::Duration;

use serde_json::json;

use super::hal_support::softhsm;
use super::support::{Device, Running, Server, run, success, wait_for};
use super::{Backend, Swtpm, create, pkcs11_yaml, process, secret, tpm_yaml};

/// A join that must fail for the key store: exit code 7, the sentence, and advice on a second line.
fn refused(device: &Device, sentence: &str, advice: &str) {
    let (code, said) = device.try_join();
    assert_eq!(code, 7, "{said}");
    let error = said.split("error: ").nth(1).expect("an error");
    let (first, second) = error.split_once('\n').expect("two lines");
    assert!(first.contains(sentence), "{first:?} lacks {sentence:?}");
    assert!(second.contains(advice), "{second:?} lacks {advice:?}");
}

/// What the storage holds, the report aside.
fn contents(device: &Device) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(device.storage()).expect("storage").map(|entry| entry.expect("entry").path());
    let name = |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let kept = entries.filter(|path| name(path) != "status.json");
    let mut contents: Vec<_> = kept.map(|path| (name(&path), std::fs::read(&path).expect("content"))).collect();
    contents.sort();
    contents
}

fn renewals(server: &Server) -> usize {
    server.events("gw").iter().filter(|event| *event == "join.renewal").count()
}

/// A device with its key in the TPM, and its daemon, which renews every second and has begun to.
fn renewing(server: &Server, tpm: &Swtpm) -> (Device, Running) {
    let device = server.device("gw", 1);
    let more = format!("{}\ncredential_ttl: 10m\nrenewal_interval: 1s", tpm_yaml(&tpm.tcti()));
    device.configure(server, &secret(server, "gw"), &more);
    let daemon = device.daemon();
    wait_for("a renewal", || renewals(server) > 0);
    (device, daemon)
}

#[test]
fn a_tpm_that_is_not_there() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let mut device = server.device("gw", 1);
    let onboarding = secret(&server, "gw");
    device.configure(&server, &onboarding, &tpm_yaml(&tpm.tcti()));
    tpm.cut_power();
    refused(&device, "is not reachable", "try again");
    tpm.power_on();
    device.join();
    let before = contents(&device);
    tpm.cut_power();
    refused(&device, "is not reachable", "try again");
    assert_eq!(device.status()["keystore"]["error"].as_str().map(|e| e.contains("not reachable")), Some(true));
    assert_eq!(device.status()["last_error"]["type"], json!("keystore"));
    // Another TPM in its place is not taken for it, and nothing is made in it.
    let other = Swtpm::start();
    device.configure(&server, &onboarding, &tpm_yaml(&other.tcti()));
    refused(&device, "another Name than at enrolment", "keypair create --overwrite");
    let strip = |contents: Vec<(String, Vec<u8>)>| contents.into_iter().filter(|(name, _)| name != "state").collect::<Vec<_>>();
    assert_eq!(strip(contents(&device)), strip(before), "nothing was overwritten");
    device.configure(&server, &onboarding, "keystore: {type: tpm, tcti: \"device:/dev/tpm-of-nobody\"}");
    refused(&device, "/dev/tpm-of-nobody does not exist", "try again");
    device.env.push(("TSS2_LOG", "all+error".into()));
    tpm.power_on();
    device.configure(&server, &onboarding, &tpm_yaml(&tpm.tcti()));
    device.join();
}

/// The library's own reports of what is no error stay out of the way, unless somebody asks for them.
#[test]
fn stderr_is_ours() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    let output = success(device.command(&["start", "--oneshot"]).env_remove("TSS2_LOG"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.lines().all(|line| line.contains(" INFO ") || line.contains("the server says")), "{said}");
    tpm.cut_power();
    let output = run(device.command(&["start", "--oneshot"]).env_remove("TSS2_LOG"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(7) && !said.contains("tcti:"), "{said}");
    let output = run(device.command(&["start", "--oneshot"]).env("TSS2_LOG", "all+error"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("tcti:"), "{said}");
}

#[test]
fn a_key_of_another_tpm_and_a_truncated_one() {
    let (server, backend) = (Server::start(), Backend::tpm());
    let device = backend.device(&server, "gw", 1);
    device.join();
    let other = Backend::tpm();
    let foreign = other.device(&server, "foreign", 1);
    foreign.join();
    let file = device.storage().join("key-bound-1.tss2.pem");
    let own = std::fs::read(&file).expect("a key");
    std::fs::copy(foreign.storage().join("key-bound-1.tss2.pem"), &file).expect("copy");
    refused(&device, "replaced or of another device", "nothing was overwritten");
    std::fs::write(&file, &own[..own.len() / 2]).expect("write");
    refused(&device, "key-bound-1.tss2.pem", "nothing was overwritten");
    std::fs::write(&file, own).expect("write");
    device.join();
}

/// Keys with an auth value of their own, from a file or the environment; a wrong one locks nothing.
#[test]
fn a_tpm_key_with_an_auth_value() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let mut device = server.device("gw", 1);
    let file = device.dir.join("auth");
    std::fs::write(&file, "open sesame\n").expect("write");
    let keystore = format!("keystore: {{type: tpm, tcti: \"{}\", auth_path: {}}}", tpm.tcti(), file.display());
    device.configure(&server, &secret(&server, "gw"), &keystore);
    device.join();
    std::fs::write(&file, "close sesame").expect("write");
    for _ in 0..5 {
        refused(&device, "the TPM refused the auth value", "PIN");
    }
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
    device.configure(&server, "", &tpm_yaml(&tpm.tcti()));
    refused(&device, "the TPM refused the auth value", "PIN");
    device.env.push(("BOUNDKEY_TPM_AUTH", "open sesame".into()));
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// The key is gone. An operator's way back is two commands, and nothing less.
#[test]
fn a_tpm_that_was_cleared() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    device.join();
    process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
    refused(&device, "cleared", "boundkey keypair create --overwrite");
    server.ctl(&["reset", "token/gw"]);
    refused(&device, "another Name than at enrolment", "boundkeyctl reset");
    let shown = run(&mut device.command(&["keypair", "create"]));
    assert!(
        shown.status.code() == Some(7) && shown.stdout.is_empty(),
        "a key that is gone is not shown to be registered: {shown:?}"
    );
    create(&device, &["--overwrite"]);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    device.join();
    assert_eq!(device.status()["keystore"]["key"], json!("bound-2"));
}

#[test]
fn power_cuts_after_signing_lock_nothing() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let device = server.device("gw", 1);
    device.configure(&server, &secret(&server, "gw"), &tpm_yaml(&tpm.tcti()));
    for _ in 0..12 {
        device.join();
        tpm.cut_power();
        tpm.power_on();
    }
    device.join();
    assert_eq!(tpm.property("TPM2_PT_LOCKOUT_COUNTER"), 0);
}

/// swtpm is killed and comes back; the daemon joins again by itself, and says what happened.
#[test]
fn a_daemon_outlives_its_tpm() {
    let (server, mut tpm) = (Server::start(), Swtpm::start());
    let (device, daemon) = renewing(&server, &tpm);
    let renewals = || renewals(&server);
    tpm.cut_power();
    wait_for("the daemon to notice", || device.log().contains("is not reachable"));
    tpm.power_on();
    let before = renewals();
    wait_for("a renewal after the TPM came back", || renewals() > before);
    wait_for("the daemon to say so", || device.log().contains("the key store works again"));
    // Stopped for a while: given up after the time limit, not for ever. Shorter stops pass unnoticed.
    tpm.signal("-STOP");
    std::thread::sleep(Duration::from_secs(3));
    tpm.signal("-CONT");
    let before = renewals();
    wait_for("a renewal after the TPM went on", || renewals() > before);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

/// Longer than a conversation may take: it is given up and named, and the TPM is left in peace until it goes on. The minute passes
/// beside the other tests.
#[test]
fn a_daemon_outlives_a_tpm_that_hangs_for_a_minute() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let (device, daemon) = renewing(&server, &tpm);
    let renewals = || renewals(&server);
    tpm.signal("-STOP");
    let stopped = std::time::Instant::now();
    wait_for("the daemon to give up", || device.log().contains("the TPM gave no answer within 30s when asked to "));
    wait_for("the next try", || device.log().contains("the TPM is still hanging since it was asked to "));
    std::thread::sleep(Duration::from_secs(60).saturating_sub(stopped.elapsed()));
    assert_eq!(device.log().matches("gave no answer").count(), 1, "it is not asked again: {}", device.log());
    tpm.signal("-CONT");
    let before = renewals();
    wait_for("a renewal after the TPM went on", || renewals() > before);
    wait_for("the daemon to say so", || device.log().contains("the key store works again"));
    assert!(server.events("gw").iter().all(|event| event == "join.first" || event == "join.renewal"));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_token_with_a_wrong_pin_a_missing_module_and_no_token() {
    let server = Server::start();
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let device = backend.device(&server, "gw", 1);
    device.join();
    let onboarding = "";
    let wrong = device.dir.join("wrong-pin");
    std::fs::write(&wrong, "not-it").expect("write");
    let uri = hsm.uri().replace(&hsm.pin_file().display().to_string(), &wrong.display().to_string());
    device.configure(&server, onboarding, &pkcs11_yaml(&uri));
    refused(&device, "the PIN is wrong", "PIN");
    let module = softhsm::module().display().to_string();
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace(&module, "/usr/lib/no-such-module.so")));
    refused(&device, "there is no PKCS#11 module /usr/lib/no-such-module.so", "library");
    let libc = device.dir.join("not-a-module.so");
    std::fs::write(&libc, "text").expect("write");
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace(&module, &libc.display().to_string())));
    refused(&device, "is not a library", "library");
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri().replace("token=edge", "token=other")));
    refused(&device, "no token is token=other", "try again");
    // Out, and back.
    device.configure(&server, onboarding, &pkcs11_yaml(&hsm.uri()));
    let away = hsm.tokens().with_extension("away");
    std::fs::rename(hsm.tokens(), &away).expect("rename");
    std::fs::create_dir(hsm.tokens()).expect("directory");
    refused(&device, "no token is token=edge", "try again");
    std::fs::remove_dir(hsm.tokens()).expect("remove");
    std::fs::rename(&away, hsm.tokens()).expect("rename");
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// A daemon asks again and again; a token that counts wrong PINs would be locked by it.
#[test]
fn a_daemon_tries_a_wrong_pin_once_and_takes_the_right_one_later() {
    let server = Server::start();
    let backend = Backend::pkcs11();
    let Backend::Pkcs11(hsm, _) = &backend else { unreachable!() };
    let device = backend.device(&server, "gw", 1);
    let right = std::fs::read(hsm.pin_file()).expect("a PIN");
    std::fs::write(hsm.pin_file(), "not-it").expect("write");
    let daemon = device.daemon();
    wait_for("a second refusal", || device.log().contains("so it is not tried again"));
    assert_eq!(device.log().matches("PinIncorrect").count(), 1, "{}", device.log());
    std::fs::write(hsm.pin_file(), right).expect("write");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    wait_for("the join", || server.events("gw") == ["join.first"]);
    drop(daemon);
}
