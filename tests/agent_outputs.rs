//! Outputs as programs on the device see them: files that change together, and reloads.
#![cfg(feature = "agent")]

#[path = "agent_outputs/others.rs"]
mod others;
#[path = "agent_outputs/pid_files.rs"]
mod pid_files;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boundkey::agent::config::{Account, Destination, Form, KeyPlace, Mode, Output, Reload};
use boundkey::agent::outputs::{self, Fault, Fresh, Reloads, Requested};
use boundkey::join::message::{IssuedCertificate, JoinAnswer, JoinKind, Recoveries, RecoveryMode};
use boundkey::join::{Id, Step, Thumbprint, base64url};
use boundkey::platform::time::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;

const BOOT: Duration = Duration::from_secs(100);

fn output(path: &Path) -> Output {
    Output {
        name: "mqtt".into(),
        destination: Destination { path: path.into(), mode: Mode(0o640), owner: None, group: None },
        form: Form::X509,
        dns_names: vec!["gateway.example.com".into()],
        uris: Vec::new(),
        ip_addresses: Vec::new(),
        lifetime: None,
        key: KeyPlace::File,
        crl: false,
        reload: None,
    }
}

/// A request for `output`, whose key is not in the key store.
fn prepare(output: &Output) -> Vec<Requested> {
    let keys = boundkey_hal::file::FileStore::new("/nonexistent");
    outputs::prepare(std::slice::from_ref(output), &keys).expect("request").requested
}

/// A CA that signs whatever key a request has.
struct Ca(CertifiedIssuer<'static, KeyPair>);

struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        Self(CertifiedIssuer::self_signed(CertificateParams::default(), key).expect("CA"))
    }

    fn bundle(&self) -> Vec<Vec<u8>> {
        vec![self.0.der().to_vec()]
    }

    fn certify(&self, request: &Requested) -> Vec<u8> {
        let csr = base64url::decode(&request.request.csr).expect("base64url");
        // A P-256 point in a BIT STRING.
        let at = csr.windows(4).position(|w| w == [3, 0x42, 0, 4]).expect("public key") + 3;
        let point = Point(csr[at..at + 65].to_vec());
        CertificateParams::default().signed_by(&point, &self.0).expect("certificate").der().to_vec()
    }

    fn fresh(&self, output: &Output) -> Fresh {
        let requested = prepare(output);
        let certificates = requested.iter().map(|r| self.certify(r)).collect::<Vec<_>>();
        outputs::attach(requested, &answer(&certificates)).expect("certificate").remove(0)
    }

    fn install(&self, output: &Output) {
        self.fresh(output).install(&self.bundle(), &[]).expect("install");
    }
}

fn answer(certificates: &[Vec<u8>]) -> JoinAnswer {
    let issued = |der: &Vec<u8>| IssuedCertificate {
        certificate: base64url::encode(der),
        serial: "01".into(),
        not_before: Timestamp::default(),
        not_after: Timestamp::default(),
    };
    let id: Id = "00000000-0000-0000-0000-000000000000".parse().expect("id");
    JoinAnswer {
        kind: JoinKind::First,
        cluster: "test".into(),
        incarnation: id,
        step: Step { instance: id, recovery: 1, generation: 1 },
        key: Thumbprint::of(&boundkey_hal::PublicKey::new(boundkey_hal::Algorithm::Ed25519, &[1; 32]).expect("key")),
        join_state: String::new(),
        recoveries: Recoveries { count: 1, limit: 1, mode: RecoveryMode::Standard },
        identity: issued(&Vec::new()),
        outputs: certificates.iter().map(issued).collect(),
        bundle: None,
        warnings: Vec::new(),
        time: Timestamp::default(),
    }
}

/// Whether key and certificate of a directory belong together.
fn pair_matches(dir: &Path) -> std::io::Result<bool> {
    let (key, certificate) = (fs::read(dir.join("tls.key"))?, fs::read(dir.join("tls.crt"))?);
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key).expect("whole key");
    let certificate = CertificateDer::from_pem_slice(&certificate).expect("whole certificate");
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256).expect("P-256 key");
    let parsed = ParsedCertificate::try_from(&certificate).expect("certificate");
    Ok(*parsed.subject_public_key_info() == *key.subject_public_key_info())
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).expect("file").permissions().mode() & 0o7777
}

fn sets(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("directory").map(|e| e.expect("entry").file_name().into_string().expect("name"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with("..")).collect();
    names.sort();
    names
}

#[test]
fn three_files_with_their_modes() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("run/mqtt");
    let ca = Ca::new();
    ca.install(&output(&path));
    assert_eq!(mode(path.join("tls.key")), 0o640);
    assert_eq!((mode(path.join("tls.crt")), mode(path.join("ca.crt"))), (0o644, 0o644));
    assert_eq!((mode(path.clone()), mode(path.join("..current"))), (0o755, 0o755));
    assert!(pair_matches(&path).expect("files"));
    let bundle = fs::read(path.join("ca.crt")).expect("bundle");
    assert_eq!(CertificateDer::from_pem_slice(&bundle).expect("PEM"), *ca.0.der());
}

#[test]
fn the_set_before_stays_until_the_next_switch() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, output) = (Ca::new(), output(dir.path()));
    let mut keys = Vec::new();
    for expected in [&["..current", "..set-1"][..], &["..current", "..set-1", "..set-2"], &["..current", "..set-2", "..set-3"]] {
        ca.install(&output);
        assert_eq!(sets(dir.path()), expected);
        keys.push(fs::read(dir.path().join("tls.key")).expect("key"));
    }
    keys.dedup();
    assert_eq!(keys.len(), 3, "each certificate has a key of its own");
}

/// A reader that resolves the link once and reads through it must find a whole set, whatever the writer does meanwhile.
#[test]
fn a_reader_never_sees_a_mixed_set() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, output) = (Ca::new(), output(dir.path()));
    ca.install(&output);
    let (reads, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let set = fs::canonicalize(dir.path().join("tls.key")).expect("resolved");
                assert!(pair_matches(set.parent().expect("set")).expect("a resolved set stays readable"));
                reads.fetch_add(1, Ordering::Release);
            }
        });
        for _ in 0..200 {
            ca.install(&output);
            // A set outlives one switch, not two: the read that goes on now may be of the one before, and ends before the next.
            let before = reads.load(Ordering::Acquire);
            while reads.load(Ordering::Acquire) == before && !reader.is_finished() {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(reads.into_inner() >= 200);
    assert_eq!(sets(dir.path()), ["..current", "..set-200", "..set-201"]);
}

#[test]
fn what_a_power_cut_left_is_removed() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, output) = (Ca::new(), output(dir.path()));
    ca.install(&output);
    ca.install(&output);
    // Half written, and the link that was to switch to it.
    fs::create_dir(dir.path().join("..set-3")).expect("set");
    fs::write(dir.path().join("..set-3/tls.key"), "").expect("write");
    symlink("..set-3", dir.path().join("..current.new")).expect("link");
    // A name that was not made yet.
    fs::remove_file(dir.path().join("tls.crt")).expect("remove");
    // Not ours, though it looks like it: what it leads to must stay.
    let elsewhere = tempfile::tempdir().expect("directory");
    fs::write(elsewhere.path().join("precious"), "").expect("write");
    symlink(elsewhere.path(), dir.path().join("..set-77")).expect("link");

    ca.install(&output);
    assert!(pair_matches(dir.path()).expect("files"));
    assert_eq!(sets(dir.path()), ["..current", "..set-2", "..set-3", "..set-77"]);
    assert!(elsewhere.path().join("precious").exists());
}

#[test]
fn files_that_are_not_ours_are_not_touched() {
    let ca = Ca::new();
    for name in ["tls.key", "tls.crt", "ca.crt", "..current"] {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join(name);
        fs::write(&path, "precious").expect("write");
        let error = ca.fresh(&output(dir.path())).install(&ca.bundle(), &[]).expect_err(name);
        assert_eq!(error.to_string(), format!("output mqtt: {} is not boundkey's and is not overwritten", path.display()));
        assert_eq!(error.advice(), "move it away, or give the output a directory of its own");
        assert_eq!(fs::read(&path).expect("file"), b"precious");
        assert_eq!(fs::read_dir(dir.path()).expect("directory").count(), 1, "nothing else was written");
    }
    let dir = tempfile::tempdir().expect("directory");
    symlink("/etc/ssl/key.pem", dir.path().join("tls.key")).expect("link");
    assert!(matches!(ca.fresh(&output(dir.path())).install(&ca.bundle(), &[]).expect_err("a link").fault, Fault::NotOurs(_)));
}

#[test]
fn an_error_leaves_the_set_before() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, mut output) = (Ca::new(), output(dir.path()));
    ca.install(&output);
    let key = fs::read(dir.path().join("tls.key")).expect("key");

    output.destination.group = Some(Account::Name("no-such-group".into()));
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("no group");
    assert_eq!(error.to_string(), "output mqtt: there is no group no-such-group");
    output.destination.owner = Some(Account::Name("no-such-user".into()));
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("no user");
    assert_eq!(error.to_string(), "output mqtt: there is no user no-such-user");

    assert_eq!(fs::read(dir.path().join("tls.key")).expect("key"), key);
    assert_eq!(sets(dir.path()), ["..current", "..set-1"]);

    output.destination.path = dir.path().join("tls.crt");
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("a file");
    assert!(matches!(error.fault, Fault::NoUser(_)), "nothing is made for nobody");
    output.destination = Destination { owner: None, group: None, ..output.destination };
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("a file");
    assert_eq!(error.advice(), "move away what is in its place, or choose another directory");
}

/// A small file system in memory, unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// `None` where this process may not mount.
    fn new(dir: &'a Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(dir).stderr(Stdio::null()).status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_or_read_only_file_system_leaves_the_set_before() {
    let dir = tempfile::tempdir().expect("directory");
    // Four pages: room for the three files of one set, and not for those of two.
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().expect("page size");
    let Some(_mounted) = Mounted::new(dir.path(), &format!("mode=0755,size={}", 4 * page)) else {
        assert!(!is_root("an output's file system that is full or read-only"), "root may not mount");
        return;
    };
    let (ca, output) = (Ca::new(), output(dir.path()));
    ca.install(&output);
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("full");
    assert_eq!(error.advice(), "make room on that file system");
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(dir.path()).status().expect("mount");
    assert!(remounted.success());
    let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("read-only");
    assert!(error.advice().starts_with("mount it writable"), "{error}");
    assert!(pair_matches(dir.path()).expect("files"));
    assert_eq!(sets(dir.path()), ["..current", "..set-1"]);
}

#[test]
fn files_are_given_to_owner_and_group() {
    let dir = tempfile::tempdir().expect("directory");
    let mut output = output(dir.path());
    let root = nix::unistd::geteuid().is_root();
    let (user, group) = if root { (4242, 4243) } else { (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()) };
    output.destination.owner = Some(Account::Id(user));
    output.destination.group = Some(Account::Id(group));
    Ca::new().install(&output);
    for (name, expected) in [("tls.key", 0o640), ("tls.crt", 0o644), ("ca.crt", 0o644)] {
        let file = fs::metadata(dir.path().join(name)).expect("file");
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (user, group, expected), "{name}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, output) = (Ca::new(), output(dir.path()));
    let other = ca.certify(&prepare(&output)[0]);
    for (certificates, why) in [
        (vec![], "it has no certificate"),
        (vec![b"no certificate".to_vec()], "its certificate cannot be read"),
        (vec![other], "its certificate is for another key"),
    ] {
        let Err(error) = outputs::attach(prepare(&output), &answer(&certificates)) else { panic!("{why}") };
        assert_eq!(error.to_string(), format!("output mqtt: the server's answer cannot be used: {why}"));
    }
}

#[test]
fn one_output_that_fails_does_not_stop_the_others() {
    let dir = tempfile::tempdir().expect("directory");
    let ca = Ca::new();
    let mut outputs = ["a", "b", "c"].map(|name| output(&dir.path().join(name)));
    fs::create_dir(dir.path().join("b")).expect("directory");
    fs::write(dir.path().join("b/tls.key"), "").expect("write");
    for output in &mut outputs {
        output.reload =
            Some(Reload::Command { program: "true".into(), args: vec![output.destination.path.display().to_string()] });
    }
    let fresh = outputs.iter().map(|output| ca.fresh(output)).collect::<Vec<_>>();
    let mut reloads = Reloads::default();
    let error = outputs::install(&fresh, &ca.bundle(), &[], &mut reloads).expect_err("b fails");
    assert!(error.to_string().ends_with("b/tls.key is not boundkey's and is not overwritten"), "{error}");
    assert!(pair_matches(&dir.path().join("a")).expect("files") && pair_matches(&dir.path().join("c")).expect("files"));
    let now = boundkey::agent::clock::since_boot();
    assert!(reloads.run_due(now).is_some_and(|due| due <= now), "the first of two is done");
    assert_eq!(reloads.run_due(now), None, "the second is done");
}

/// Whether root runs the tests; if not, says what is not tried for that.
fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Not by eprintln!, which shows nothing of a test that passes.
        writeln!(std::io::stderr(), "NOT TRIED: {what}, which takes root's rights").expect("stderr");
    }
    root
}

fn reload_by(reload: Reload) -> (Reloads, Output) {
    let output = Output { reload: Some(reload), ..output(Path::new("/run/mqtt")) };
    let mut reloads = Reloads::default();
    reloads.add(&output, BOOT);
    (reloads, output)
}

fn shell(script: &str) -> Reload {
    Reload::Command { program: "sh".into(), args: vec!["-c".into(), script.into()] }
}

#[test]
fn outputs_with_one_reload_share_a_run() {
    let dir = tempfile::tempdir().expect("directory");
    let log = dir.path().join("log");
    let (mut reloads, mut output) = reload_by(shell(&format!("echo run >> {}", log.display())));
    output.name = "web".into();
    reloads.add(&output, BOOT);
    assert_eq!(reloads.run_due(BOOT), None);
    assert_eq!(fs::read_to_string(&log).expect("log"), "run\n");
}

#[test]
fn a_reload_that_fails_is_tried_again_with_growing_pauses() {
    let dir = tempfile::tempdir().expect("directory");
    let flag = dir.path().join("flag");
    let (mut reloads, output) = reload_by(shell(&format!("test -e {}", flag.display())));
    let mut now = BOOT;
    for pause in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        let due = reloads.run_due(now).expect("still to be done");
        assert_eq!(due, now + Duration::from_secs(pause));
        assert_eq!(reloads.run_due(now), Some(due), "not before it is due");
        now = due;
    }
    // New files begin anew, without a pause.
    reloads.add(&output, now);
    assert_eq!(reloads.run_due(now), Some(now + Duration::from_secs(2)));
    fs::write(flag, "").expect("write");
    assert_eq!(reloads.run_due(now + Duration::from_secs(2)), None);
}

#[test]
fn a_command_that_fails_is_quoted() {
    let script = "i=0; while [ $i -lt 99 ]; do i=$((i+1)); echo line $i; done; echo it is broken >&2; exit 3";
    let error = reload_by(shell(script)).0.run_all().expect_err("failed");
    assert_eq!(
        error.to_string(),
        "output mqtt: reload by command sh failed: exit status: 3, and said: line 96\nline 97\nline 98\nline 99\nit is broken"
    );
    assert_eq!(error.advice(), "run it by hand, as boundkey's user, to see why");
    let error = reload_by(Reload::Command { program: "/nonexistent".into(), args: Vec::new() }).0.run_all().expect_err("failed");
    assert_eq!(error.to_string(), "output mqtt: reload by command /nonexistent failed: No such file or directory (os error 2)");
}

/// Longer than any machine takes for what these tests do, shorter than what they leave asleep.
const SOON: Duration = Duration::from_secs(120);

/// The process of a shell's child that sleeps for ten minutes, as the shell wrote it down.
fn sleeper(pid_file: &Path) -> Option<Pid> {
    fs::read_to_string(pid_file).ok()?.strip_suffix('\n')?.parse().ok().map(Pid::from_raw)
}

/// Also one that talks without end, or leaves the waiting to a child of its own.
#[test]
fn a_command_that_does_not_end_is_killed_with_its_children() {
    let dir = tempfile::tempdir().expect("directory");
    let pid_file = dir.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; while :; do echo busy; done", pid_file.display());
    let output = Output { reload: Some(shell(&script)), ..output(Path::new("/run/mqtt")) };
    let started = Instant::now();
    let mut limit = Duration::from_millis(300);
    let child = loop {
        let mut reloads = Reloads::with_time_limit(limit);
        reloads.add(&output, BOOT);
        let error = reloads.run_all().expect_err("killed").to_string();
        let killed = format!("output mqtt: reload by command sh failed: killed after {}", humantime::format_duration(limit));
        assert!(error.starts_with(&killed), "{error}");
        assert!(started.elapsed() < SOON);
        // Where the machine is slow, it was killed before it was what this is about.
        if let Some(child) = sleeper(&pid_file).filter(|_| error.contains(", and said: busy")) {
            break child;
        }
        limit *= 4;
    };
    let ended = || match fs::read_to_string(format!("/proc/{child}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    // It dies of a signal that was sent; when, is the scheduler's choice.
    while !ended() {
        assert!(started.elapsed() < SOON, "the child lives");
        std::thread::yield_now();
    }
}

/// A relative name in a command, or a program that reads its directory, must not depend on where somebody started the agent.
#[test]
fn a_command_runs_in_the_root_directory() {
    let error = reload_by(shell("pwd; exit 1")).0.run_all().expect_err("failed");
    assert!(error.to_string().ends_with("and said: /"), "{error}");
}

#[test]
fn a_daemon_that_a_command_leaves_behind_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("directory");
    let pid_file = dir.path().join("pid");
    let started = Instant::now();
    let done = reload_by(shell(&format!("sleep 600 & echo $! > {}", pid_file.display()))).0.run_all();
    kill(sleeper(&pid_file).expect("a daemon"), Signal::SIGKILL).expect("it lives");
    done.expect("done");
    assert!(started.elapsed() < SOON);
}

#[test]
fn a_signal_reaches_the_process_of_the_pid_file() {
    let dir = tempfile::tempdir().expect("directory");
    let pid_file = dir.path().join("pid");
    // A shell cannot trap what it was started with ignored, as under nohup.
    let mut program = Command::new("env")
        .args(["--default-signal=HUP", "sh", "-c", "trap 'exit 7' HUP; echo ready; while :; do sleep 0.01; done"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("stdout")).read_line(&mut line).expect("ready");
    fs::write(&pid_file, format!("{}\n", program.id())).expect("write");
    reload_by(Reload::Signal { pid_file: pid_file.clone(), signal: Signal::SIGHUP }).0.run_all().expect("sent");
    assert_eq!(program.wait().expect("ended").code(), Some(7));

    let error = reload_by(Reload::Signal { pid_file, signal: Signal::SIGHUP }).0.run_all().expect_err("it has ended");
    assert_eq!(error.to_string(), format!("output mqtt: reload by SIGHUP failed: process {}: No such process", program.id()));
}

#[test]
fn a_pid_file_that_names_no_other_program_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let pid_file = dir.path().join("pid");
    let send =
        || reload_by(Reload::Signal { pid_file: pid_file.clone(), signal: Signal::SIGHUP }).0.run_all().expect_err("refused");
    assert!(send().to_string().ends_with("pid: No such file or directory (os error 2)"));
    for content in ["", "0", "1", "-1", "x", "12 13", "99999999999", &std::process::id().to_string()] {
        fs::write(&pid_file, content).expect("write");
        assert!(send().to_string().ends_with("pid has no process id of another program"), "{content}");
    }
}
