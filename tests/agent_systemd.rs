//! The unit that `boundkey install systemd` makes: what is in it, and what systemd itself says of it.
#![cfg(feature = "agent")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use boundkey::agent::config::{Config, ConfigError};
use boundkey::agent::systemd::{self, Installation, Needs, Unit, Written};

const MINIMAL: &str = "version: v1\nauth_server: auth.example.com\nonboarding: {token: gateway}\nca_pins: \
                       [\"sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"]\n";
const OUTPUTS: &str = r"
outputs:
  - type: x509
    destination: {type: directory, path: /run/boundkey/mqtt, group: mosquitto, mode: 0640}
    reload: {command: [systemctl, reload, mosquitto]}
  - type: x509
    destination: {type: directory, path: '/srv/web certs/50%'}
    reload: {pid_file: /run/nginx.pid}
";

fn config(text: &str) -> Config {
    load(text).expect("configuration")
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("boundkey.yaml");
    fs::write(&path, text).expect("write");
    Config::load(&path, &|_| None)
}

fn unit(config: &Config, user: Option<&str>) -> String {
    let (program, config_path) = (Path::new("/bin/true"), Path::new("/etc/boundkey.yaml"));
    Unit { name: "boundkey", program, config_path, user, installation: Installation::Configuration, needs: &Needs::of(config) }
        .text()
}

#[track_caller]
fn assert_has(unit: &str, lines: &[&str]) {
    for line in lines {
        assert!(unit.lines().any(|l| l == *line), "no line {line:?} in:\n{unit}");
    }
}

#[track_caller]
fn assert_lacks(unit: &str, beginnings: &[&str]) {
    for beginning in beginnings {
        assert!(!unit.lines().any(|l| l.starts_with(beginning)), "{beginning:?} in:\n{unit}");
    }
}

#[test]
fn a_plain_configuration_needs_next_to_nothing() {
    let unit = unit(&config(MINIMAL), None);
    assert_has(
        &unit,
        &[
            "Type=notify",
            "ExecStart=/bin/true start -c /etc/boundkey.yaml",
            "StateDirectory=boundkey",
            "CapabilityBoundingSet=",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectProc=invisible",
        ],
    );
    assert_lacks(
        &unit,
        &["RuntimeDirectory", "ReadWritePaths", "ExecStartPre", "User", "AmbientCapabilities", "Environment", "DeviceAllow"],
    );
}

#[test]
fn what_outputs_need_is_granted() {
    let text = format!("{MINIMAL}storage: {{type: directory, path: /home/gw/boundkey}}{OUTPUTS}");
    let root = unit(&config(&text), None);
    assert_has(
        &root,
        &[
            "RuntimeDirectory=boundkey/mqtt",
            "RuntimeDirectoryPreserve=yes",
            "ExecStartPre=+mkdir -p -m 0700 /home/gw/boundkey",
            "ReadWritePaths=/home/gw/boundkey",
            "ExecStartPre=+sh -c 'umask 022; mkdir -p \"$$0\"' \"/srv/web certs/50%%\"",
            "ReadWritePaths=\"/srv/web certs/50%%\"",
            "CapabilityBoundingSet=CAP_CHOWN CAP_KILL",
            "ProtectHome=read-only",
            "SystemCallFilter=@chown",
        ],
    );
    assert_lacks(&root, &["StateDirectory", "ProtectProc", "ProcSubset", "AmbientCapabilities"]);
    let user = unit(&config(&text), Some("gw"));
    assert_has(&user, &["User=gw", "AmbientCapabilities=CAP_CHOWN CAP_KILL", "ReadWritePaths=/home/gw/boundkey"]);
    assert_lacks(&user, &["ExecStartPre"]);
}

/// Whose process a PID file names has to be seen, though not what else the kernel tells.
#[test]
fn signals_need_a_look_at_the_processes_of_others() {
    let output = "outputs:\n  - type: x509\n    destination: {type: directory, path: /run/boundkey/web}\n    reload: {pid_file: /run/nginx.pid}\n";
    let unit = unit(&config(&format!("{MINIMAL}{output}")), Some("gw"));
    assert_has(&unit, &["ProcSubset=pid", "AmbientCapabilities=CAP_KILL"]);
    assert_lacks(&unit, &["ProtectProc"]);
}

/// A user of its own has no right to anything but its own files: where packages made one, the unit takes it.
#[test]
fn a_user_without_rights_is_preferred() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("boundkey.yaml");
    fs::write(&path, MINIMAL).expect("write");
    let install = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boundkey"));
        let output = command.args(["install", "systemd", "-c"]).arg(&path).args(more).output().expect("boundkey");
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).expect("text"), String::from_utf8(output.stderr).expect("text"))
    };
    let (unit, said) = install(&[]);
    if matches!(nix::unistd::User::from_name("boundkey"), Ok(Some(_))) {
        assert_has(&unit, &["User=boundkey"]);
        assert!(!said.contains("useradd"), "{said}");
    } else {
        assert_lacks(&unit, &["User="]);
        assert!(said.contains("WARN the service runs as root") && said.contains("useradd --system"), "{said}");
    }
    let (unit, said) = install(&["--user", "root"]);
    assert_lacks(&unit, &["User="]);
    assert!(!said.contains("useradd"), "{said}");
    assert_has(&install(&["--user", "gw"]).0, &["User=gw"]);
}

#[test]
#[cfg(feature = "tpm")]
fn a_tpm_is_the_only_device() {
    let unit = unit(&config(&format!("{MINIMAL}keystore: {{type: tpm, tcti: \"device:/dev/tpm0\"}}\n")), Some("gw"));
    assert_has(
        &unit,
        &["DevicePolicy=closed", "DeviceAllow=/dev/tpm0 rw", "SupplementaryGroups=tss", "Environment=TSS2_LOG=all+none"],
    );
    assert_lacks(&unit, &["PrivateDevices"]);
}

const DIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cross/dist");

/// A package is installed before there is a configuration, and its user has no powers at all.
#[test]
fn the_packages_unit_waits_for_a_configuration() {
    let unit = systemd::packaged();
    assert_has(
        &unit,
        &[
            "ConditionPathExists=/etc/boundkey.yaml",
            "ExecStart=/usr/bin/boundkey start -c /etc/boundkey.yaml",
            "User=boundkey",
            "StateDirectory=boundkey",
            "RuntimeDirectory=boundkey",
            "AmbientCapabilities=",
            "CapabilityBoundingSet=",
            "DeviceAllow=/dev/tpmrm0 rw",
            "SystemCallFilter=@chown",
        ],
    );
    // A group that is not there would keep the service from starting.
    assert_lacks(&unit, &["SupplementaryGroups", "ReadWritePaths", "ExecStartPre"]);
}

/// Packages take the unit from `cross/dist`, for they are built where the agent's own programs do not run.
#[test]
fn the_packages_unit_is_the_one_that_the_agent_makes() {
    let file = fs::read_to_string(format!("{DIST}/boundkey.service")).expect("cross/dist/boundkey.service");
    assert_eq!(file, systemd::packaged(), "run: cargo run --example boundkey-dist -- unit >cross/dist/boundkey.service");
}

/// Copied and forgotten, the example is refused by name of the line; with a pin it is a configuration, also with all that it
/// has switched off.
#[test]
fn the_example_is_a_configuration_but_for_the_pin() {
    let example = fs::read_to_string(format!("{DIST}/boundkey.yaml")).expect("cross/dist/boundkey.yaml");
    let pinned = example.replace("sha256:...", &format!("sha256:{}", "0123456789abcdef".repeat(4)));
    let refused = load(&example).expect_err("no pin");
    assert!(refused.to_string().contains("boundkey.yaml:8:"), "{refused}");
    assert_eq!(load(&pinned).expect("the example").warnings, []);

    // `# Words` are words, `#setting` and `#  - more of it` are settings. The last of several key stores counts: one is left on.
    let on = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => {
            (!rest.starts_with("keystore")).then(|| rest.to_owned())
        }
        _ => Some(line.to_owned()),
    };
    let all: Vec<_> = pinned.lines().filter_map(on).collect();
    let full = load(&all.join("\n")).expect("all settings");
    assert_eq!((full.outputs.len(), full.log.level.is_some()), (1, true));
    for keystore in pinned.lines().filter_map(|line| line.strip_prefix("#keystore")) {
        let other = load(&pinned.replace("\nkeystore: {type: file}\n", &format!("\nkeystore{keystore}\n")));
        let kind = |name| keystore.contains(&format!("type: {name},"));
        let built_in = (kind("tpm") && cfg!(feature = "tpm")) || (kind("pkcs11") && cfg!(feature = "pkcs11"));
        assert_eq!(other.is_ok(), built_in, "{keystore}: {other:?}");
    }
}

#[test]
fn a_unit_file_that_differs_is_not_replaced_unasked() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("boundkey.service");
    assert_eq!(systemd::write(&file, "[Unit]\n", false), Ok(Written::New));
    assert_eq!(fs::metadata(&file).expect("file").permissions().mode() & 0o777, 0o644);
    assert_eq!(systemd::write(&file, "[Unit]\n", false), Ok(Written::Same));
    let error = systemd::write(&file, "[Service]\n", false).expect_err("it differs");
    assert_eq!(error.to_string(), format!("{} is there and differs", file.display()));
    assert_eq!(fs::read(&file).expect("file"), b"[Unit]\n");
    assert_eq!(systemd::write(&file, "[Service]\n", true), Ok(Written::Replaced));
    let error = systemd::write(&dir.path().join("none/x.service"), "", false).expect_err("no directory");
    assert_eq!(error.advice(), "create the directory, or name another by --unit-dir");
}

/// Exposure as `systemd-analyze security` reckons it, from 0 to 100: below 50 it calls a unit OK, and most are near 96.
const MOST_EXPOSURE: &str = "25";

/// systemd reads the unit without a complaint but for settings newer than it, and finds little exposed.
#[test]
fn systemd_itself_is_content() {
    let full = config(&format!("{MINIMAL}{OUTPUTS}"));
    // The package's user and program may not be on this system.
    let packaged = systemd::packaged().replace("User=boundkey", "User=daemon").replace("/usr/bin/boundkey", "/bin/true");
    for text in [unit(&config(MINIMAL), None), unit(&full, None), unit(&full, Some("daemon")), packaged] {
        let dir = tempfile::tempdir().expect("directory");
        let file: PathBuf = dir.path().join("boundkey.service");
        systemd::write(&file, &text, false).expect("written");
        let run = |args: &[&str]| {
            Command::new("systemd-analyze").args(args).arg(&file).output().expect("systemd-analyze, of the package systemd")
        };

        let verified = run(&["verify", "--man=no"]);
        let complaints = String::from_utf8_lossy(&verified.stderr);
        let ours = complaints.lines().filter(|line| line.contains("boundkey"));
        let serious: Vec<_> = ours.filter(|l| !l.contains("'RestartSteps'") && !l.contains("'RestartMaxDelaySec'")).collect();
        assert!(verified.status.success() && serious.is_empty(), "{complaints}");

        let security = run(&["security", "--offline=true", "--no-pager", &format!("--threshold={MOST_EXPOSURE}")]);
        assert!(security.status.success(), "{}", String::from_utf8_lossy(&security.stdout));
    }
}
