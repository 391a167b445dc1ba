//! `storage.rollback_protection: tpm`.

use std::path::Path;

use boundkey::join::device::Memory;
use boundkey::state::{DirStorage, StateFile};

use super::support::{Device, Server, run, success, tool};
use super::{Swtpm, create, process, secret, tpm_yaml};

/// The counter's index, as tpm2-tools write it.
const INDEX: &str = "0x180b0cd";

fn protected(server: &Server, tpm: &Swtpm, limit: u32) -> Device {
    let device = server.device("gw", limit);
    device.configure(server, &secret(server, "gw"), &tpm_yaml(&tpm.tcti()));
    let yaml = std::fs::read_to_string(device.config()).expect("configuration");
    let yaml = yaml.replace("{type: directory, path:", "{type: directory, rollback_protection: tpm, path:");
    std::fs::write(device.config(), yaml).expect("configuration");
    device
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    success(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A join that must be refused, with exit code 8 and advice, before the server hears of it.
fn refused(server: &Server, device: &Device, why: &str) {
    let before = server.events("gw");
    let (code, said) = device.try_join();
    assert!(code == 8 && said.contains(why) && said.contains("boundkeyctl exempt"), "{code} {why}: {said}");
    assert_eq!(server.events("gw"), before, "the old join state was not presented");
    let doctor = run(&mut device.command(&["doctor"]));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("fail  rollback"), "{doctor:?}");
}

fn value(tpm: &Swtpm) -> u64 {
    value_with(tpm, &[])
}

fn value_with(tpm: &Swtpm, owner: &[&str]) -> u64 {
    let output = tpm.tool("tpm2_nvread").args([INDEX, "-C", "o"]).args(owner).output().expect("run");
    assert!(output.status.success(), "{output:?}");
    u64::from_be_bytes(output.stdout.try_into().expect("8 bytes"))
}

#[test]
fn it_goes_with_keys_in_a_tpm() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let yaml = std::fs::read_to_string(device.config()).expect("configuration");
    for (word, why) in [("tpm", "goes with keys in a TPM"), ("file", "is no protection from rollback")] {
        let protection = format!("{{type: directory, rollback_protection: {word}, path:");
        std::fs::write(device.config(), yaml.replace("{type: directory, path:", &protection)).expect("configuration");
        let (code, said) = device.try_join();
        assert!(code == 2 && said.contains(why), "{code}: {said}");
    }
}

/// A recovery code is no join, so the counter stays; and an old copy makes none.
#[test]
fn a_recovery_code_leaves_the_counter_alone() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 1);
    device.join();
    let old = device.dir.join("old");
    copy(&device.storage(), &old);
    device.join();
    let at = value(&tpm);
    success(&mut device.command(&["recovery-code"]));
    assert_eq!(value(&tpm), at);
    device.join();
    let new = device.dir.join("new");
    copy(&device.storage(), &new);
    copy(&old, &device.storage());
    let refused = run(&mut device.command(&["recovery-code"]));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(8) && said.contains("joins old by the TPM's counter"), "{refused:?}");
    copy(&new, &device.storage());
    device.join();
}

#[test]
fn an_old_copy_is_noticed_by_the_device() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 3);
    device.join();
    let old = device.dir.join("old");
    copy(&device.storage(), &old);
    let at = value(&tpm);
    for _ in 0..3 {
        device.join();
    }
    assert_eq!(value(&tpm), at + 3, "one bump a join");
    let new = device.dir.join("new");
    copy(&device.storage(), &new);
    copy(&old, &device.storage());
    refused(&server, &device, "it is 3 joins old by the TPM's counter");
    copy(&new, &device.storage());
    device.join();
    // Where the right one cannot be had back: the key is all it takes.
    copy(&old, &device.storage());
    std::fs::remove_file(device.storage().join("state")).expect("remove");
    server.ctl(&["exempt", "token/gw"]);
    device.join();
    device.join();
    assert!(server.events("gw").iter().all(|event| event != "lock.created"));
}

#[test]
fn a_counter_that_is_missing_or_made_anew_is_tampering() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 1);
    device.join();
    device.join();
    process::run(tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]));
    refused(&server, &device, "the TPM's counter is gone");
    // Made anew it goes on where the old one was, and then counts once: the device is behind it.
    make_open(&tpm);
    refused(&server, &device, "in the place of the TPM's counter is another");
    // The auth value that goes with it is lost: the same.
    std::fs::remove_file(device.storage().join("counter.auth")).expect("remove");
    refused(&server, &device, "joins old by the TPM's counter");
    back(&server, &device);
}

/// A counter as older versions made it, and as anybody can who may use the TPM.
fn make_open(tpm: &Swtpm) {
    let attributes = "authread|authwrite|ownerread|no_da|nt=counter";
    process::run(tpm.tool("tpm2_nvdefine").args([INDEX, "-C", "o", "-s", "8", "-a", attributes]));
    process::run(tpm.tool("tpm2_nvincrement").args([INDEX, "-C", INDEX]));
}

/// The way back that the agent advises: for whatever was done to the counter, it is one.
fn back(server: &Server, device: &Device) {
    std::fs::rename(device.storage().join("state"), device.dir.join("state")).expect("move away");
    server.ctl(&["exempt", "token/gw"]);
    device.join();
    device.join();
    let doctor = run(&mut device.command(&["doctor"]));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    rollback    the state fits"), "{doctor:?}");
}

fn count_up(tpm: &Swtpm) -> bool {
    tpm.tool("tpm2_nvincrement").args([INDEX, "-C", INDEX]).output().expect("run").status.success()
}

/// A user who may talk to the TPM counted up, and the agent refused its own memory until an operator acted.
#[test]
fn a_user_of_the_tpm_cannot_count_up_and_what_he_can_do_is_mended() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 2);
    device.join();
    let file = std::fs::metadata(device.storage().join("counter.auth")).expect("the counter's auth value");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&file) & 0o777, 0o600);
    let at = value(&tpm);
    assert!(!count_up(&tpm), "not without the auth value");
    device.join();
    assert_eq!(value(&tpm), at + 1);
    // Deleting takes the owner's password, where there is one.
    process::run(tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]));
    refused(&server, &device, "the TPM's counter is gone");
    back(&server, &device);
    // Another index in its place, of another kind.
    process::run(tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]));
    process::run(tpm.tool("tpm2_nvdefine").args([INDEX, "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite"]));
    refused(&server, &device, "in the place of the TPM's counter is another");
    back(&server, &device);
    process::run(tpm.tool("tpm2_changeauth").args(["-c", "owner", "owner-password"]));
    assert!(!tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]).output().expect("run").status.success());
    let at = value_with(&tpm, &["-P", "owner-password"]);
    device.join();
    assert_eq!(value_with(&tpm, &["-P", "owner-password"]), at + 1, "the agent needs no password");
    assert!(server.events("gw").iter().all(|event| event != "lock.created"));
}

/// What the memory says of the counter, written as another version would have.
fn remember_counter(device: &Device, value: u64) {
    let mut state = StateFile::open(DirStorage::open(&device.storage())).expect("a state file");
    let memory = Memory { rollback_counter: Some(value), ..state.memory().clone() };
    state.store(&memory).expect("written");
}

/// A counter of an older version takes no auth value. It counts on, and is made anew with one before the next join.
#[test]
fn a_counter_of_an_older_version_goes_on_and_gets_an_auth_value() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 1);
    device.join();
    process::run(tpm.tool("tpm2_nvundefine").args(["-C", "o", INDEX]));
    make_open(&tpm);
    remember_counter(&device, value(&tpm));
    std::fs::remove_file(device.storage().join("counter.auth")).expect("remove");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
    assert!(doctor.contains("warn  rollback") && doctor.contains("group tss) can count up"), "{doctor}");
    assert!(count_up(&tpm));
    refused(&server, &device, "1 joins old by the TPM's counter, which anybody who may use the TPM can count up");
    remember_counter(&device, value(&tpm));
    device.join();
    assert!(!count_up(&tpm), "it has an auth value now");
    device.join();
    assert!(server.events("gw").iter().all(|event| event == "join.first" || event == "join.renewal"));
}

/// An operator's way back from a cleared TPM is the same as without protection, and protection goes on.
#[test]
fn a_tpm_that_was_cleared() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 1);
    device.join();
    process::run(tpm.tool("tpm2_clear").args(["-c", "p"]));
    let (code, said) = device.try_join();
    assert!(code == 7 && said.contains("TPM cleared"), "{code}: {said}");
    server.ctl(&["reset", "token/gw"]);
    create(&device, &["--overwrite"]);
    let old = std::fs::read_to_string(device.config()).expect("configuration");
    let secrets = old.lines().map(|line| if line.contains("registration_secret") { secret(&server, "gw") } else { line.into() });
    std::fs::write(device.config(), secrets.collect::<Vec<_>>().join("\n")).expect("configuration");
    device.join();
    let at = value(&tpm);
    device.join();
    assert_eq!(value(&tpm), at + 1);
}

/// Turned on for a device that has joined long ago; a copy from before does not get round it.
#[test]
fn a_copy_from_before_the_protection() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 1);
    let yaml = std::fs::read_to_string(device.config()).expect("configuration");
    std::fs::write(device.config(), yaml.replace("rollback_protection: tpm, ", "")).expect("configuration");
    device.join();
    let old = device.dir.join("old");
    copy(&device.storage(), &old);
    std::fs::write(device.config(), yaml).expect("configuration");
    device.join();
    copy(&old, &device.storage());
    refused(&server, &device, "it is from before the TPM's counter was made");
}

/// The agent is killed at each of its writes and syncs in turn: with the memory written and the counter not, it goes on.
#[test]
fn a_power_cut_between_memory_and_counter_locks_nobody_out() {
    let (server, tpm) = (Server::start(), Swtpm::start());
    let device = protected(&server, &tpm, 2);
    device.join();
    let strace = tool("strace", "strace");
    let (mut killed, mut before) = (0, value(&tpm));
    for call in ["fdatasync", "sendto", "fsync"] {
        for nth in 1..40 {
            let agent = device.command(&["start", "--oneshot"]);
            let mut traced = std::process::Command::new(&strace);
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            traced.args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")]);
            traced.arg(agent.get_program()).args(agent.get_args()).env("TSS2_LOG", "all+none");
            let ended = run(&mut traced);
            device.join();
            assert!(value(&tpm) <= before + 2, "at most one bump a join");
            before = value(&tpm);
            if ended.status.success() {
                break;
            }
            killed += 1;
        }
    }
    assert!(killed >= 6, "{killed}");
    assert!(server.events("gw").iter().all(|event| event != "lock.created" && event != "join.recovery"));
}
