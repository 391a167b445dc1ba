//! The agent's configuration: what it accepts, and the exact words with which it refuses.
#![cfg(feature = "agent")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use boundkey::agent::config::{
    Account, Config, ConfigError, ConfigWarning, Keystore, Mode, Reload, SecretSource, TokenSource, Trust,
};
use boundkey::platform::logging::{Format, Level};
use log::LevelFilter;

const PIN: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn minimal() -> String {
    format!("version: v1\nauth_server: auth.example.com\nca_pins: [\"{PIN}\"]\nonboarding:\n  token: gateway-0042\n")
}

fn load_with(text: &str, mode: u32, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("boundkey.yaml");
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    let found = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Config::load(&path, &found)
}

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, 0o600, &[])
}

/// Both lines of the error, with the file's directory left out.
fn refusal(text: &str) -> String {
    let error = load(text).expect_err(text);
    let what = error.to_string();
    let what = what.split_once("boundkey.yaml").map_or(&*what, |(_, rest)| rest);
    format!("boundkey.yaml{what}\n{}", error.advice())
}

#[test]
fn defaults() {
    let config = load(&minimal()).expect("minimal");
    assert_eq!(config.auth_server.to_string(), "auth.example.com:3025");
    assert!(matches!(config.trust, Trust::Pins(ref pins) if pins.len() == 1 && pins[0].0[1] == 0x11));
    assert_eq!(config.onboarding.token, TokenSource::Name("gateway-0042".into()));
    assert_eq!(config.onboarding.registration_secret, None);
    assert_eq!(config.keystore, Keystore::File);
    assert_eq!(config.storage, Path::new("/var/lib/boundkey"));
    assert_eq!((config.credential_ttl, config.renewal_interval), (None, None));
    assert_eq!((config.log.format, config.log.level), (Format::Text, None));
    assert!(config.outputs.is_empty() && config.warnings.is_empty() && config.daemon_warnings().is_empty());
}

#[test]
fn every_field() {
    let config = load(
        r#"
version: v1
auth_server: "[fd00::1]:4000"
ca_file: /etc/boundkey/ca.pem
onboarding:
  join_method: bound_keypair
  token: gateway-0042
  bound_keypair:
    registration_secret: 1234567890e123456789012345678901
keystore: {type: file}
storage: {type: directory, path: /var/lib//boundkey/}
credential_ttl: 1h 30m
renewal_interval: 20m
log: {format: json, level: debug}
outputs:
  - type: x509
    name: broker
    destination: {type: directory, path: /run/boundkey/mqtt, mode: "0640", owner: 0, group: mosquitto}
    dns_names: [gateway-0042.fleet.example.com, "*.local"]
    uris: ["spiffe://fleet.example.com/gateway-0042"]
    ip_addresses: [10.0.0.1, "fd00::2"]
    credential_ttl: 24h
    renewal_interval: 8h
    key: file
    reload: {command: [systemctl, reload, mosquitto]}
  - type: x509
    destination: {type: directory, path: /run/boundkey/web, mode: 0600}
    reload: {pid_file: /run/nginx.pid}
"#,
    )
    .expect("full");
    assert_eq!(config.auth_server.to_string(), "[fd00::1]:4000");
    assert_eq!(config.trust, Trust::File("/etc/boundkey/ca.pem".into()));
    // Digits and an e: YAML has it for a number, and it must not be rounded.
    let secret = config.onboarding.registration_secret.as_ref().expect("secret").read().expect("secret");
    assert_eq!(secret.expose(), "1234567890e123456789012345678901");
    assert!(!format!("{config:?}").contains("1234567890e"));
    assert_eq!(config.storage, Path::new("/var/lib/boundkey"));
    assert_eq!(config.credential_ttl, Some(Duration::from_secs(5400)));
    assert_eq!((config.log.format, config.log.level), (Format::Json, Some(Level(LevelFilter::Debug))));

    let [broker, web] = &config.outputs[..] else { panic!("two outputs") };
    assert_eq!(broker.name, "broker");
    assert_eq!(broker.destination.mode, Mode(0o640));
    assert_eq!(broker.destination.owner, Some(Account::Id(0)));
    assert_eq!(broker.destination.group, Some(Account::Name("mosquitto".into())));
    assert_eq!((broker.dns_names.len(), broker.uris.len(), broker.ip_addresses.len()), (2, 1, 2));
    assert_eq!(broker.lifetime.map(|l| l.renewal_interval), Some(Duration::from_secs(8 * 3600)));
    assert_eq!(
        broker.reload,
        Some(Reload::Command { program: "systemctl".into(), args: vec!["reload".into(), "mosquitto".into()] })
    );
    assert_eq!((&*web.name, web.destination.mode), ("/run/boundkey/web", Mode(0o600)));
    assert!(matches!(&web.reload, Some(Reload::Signal { signal, .. }) if signal.as_str() == "SIGHUP"));
}

fn check(cases: &[(&str, &str)]) {
    let wrong: Vec<_> =
        cases.iter().map(|(text, expected)| (text, expected, refusal(text))).filter(|(_, e, r)| r != *e).collect();
    assert!(wrong.is_empty(), "(file, expected, refusal): {wrong:#?}");
}

#[test]
fn a_mistake_in_the_file_is_named_with_line_and_field() {
    let m = minimal();
    check(&[
        ("", "boundkey.yaml:1: nothing is here\ncorrect the line: expected `name: value` lines"),
        ("- a\n", "boundkey.yaml:1: invalid type: sequence\ncorrect the line: expected `name: value` lines"),
        (
            "version: v1\nauth_server: \"a\n",
            "boundkey.yaml:3: found unexpected end of stream at line 3 column 1, while scanning a quoted scalar at line 2 column 14\ncorrect the file, then try again",
        ),
        ("version: v1\n", "boundkey.yaml:1: missing field `auth_server`\ncorrect the file, then try again"),
        (
            &m.replace("v1", "v2"),
            "boundkey.yaml:1: version: \"v2\" is not a version known here\nwrite version: v1, or install the boundkey that this file \
             is for",
        ),
        (
            &format!("{m}outputz: []\n"),
            "boundkey.yaml:6: unknown field `outputz`\ncorrect the line: expected one of `version`, `auth_server`, `ca_pins`, \
             `ca_file`, `onboarding`, `keystore`, `storage`, `credential_ttl`, `renewal_interval`, `crl_interval`, `log`, `outputs`",
        ),
        (&format!("{m}version: v1\n"), "boundkey.yaml:1: duplicate field `version`\ncorrect the file, then try again"),
        (
            &m.replace("auth.example.com", "https://auth.example.com"),
            "boundkey.yaml:2: auth_server: \"https://auth.example.com\" is not HOST:PORT\nwrite it like auth.example.com:3025 or \
             \"[fd00::1]:3025\"",
        ),
        (
            &m.replace("sha256:", "sha1:"),
            "boundkey.yaml:3: ca_pins[0]: \"sha1:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\" is not a CA pin\n\
             copy the pin that `boundkey-auth init` printed: sha256: and 64 digits",
        ),
        (
            &m.replace(&format!("[\"{PIN}\"]"), "[]"),
            "boundkey.yaml:1: `ca_pins` is empty\nwrite the pin that `boundkey-auth init` printed: ca_pins: [\"sha256:...\"]",
        ),
        (
            &m.replace(&format!("ca_pins: [\"{PIN}\"]\n"), ""),
            "boundkey.yaml:1: neither `ca_pins` nor `ca_file` is set\nwrite the pin that `boundkey-auth init` printed: ca_pins: \
             [\"sha256:...\"]",
        ),
        (&format!("{m}ca_file: /ca.pem\n"), "boundkey.yaml:1: `ca_pins` and `ca_file` are both set\nkeep one of them"),
        (
            &m.replace("token: gateway-0042", "join_method: iam"),
            "boundkey.yaml:5: onboarding.join_method: \"iam\" is not a join method known here\nwrite join_method: bound_keypair",
        ),
        (
            &m.replace("token: gateway-0042", "join_method: bound_keypair"),
            "boundkey.yaml:5: onboarding: missing field `token`\ncorrect the file, then try again",
        ),
        (
            &format!("{m}  bound_keypair: {{registration_secret: a, registration_secret_path: /b}}\n"),
            "boundkey.yaml:6: onboarding.bound_keypair: `registration_secret` and `registration_secret_path` are both set\nkeep one of \
             them",
        ),
        (
            &format!("{m}  bound_keypair: hunter2\n"),
            "boundkey.yaml:6: onboarding.bound_keypair: invalid type: text\ncorrect the line: expected `name: value` lines",
        ),
        (
            &format!("{m}  bound_keypair:\n    registration_secret: ' '\n"),
            "boundkey.yaml:7: onboarding.bound_keypair.registration_secret: the secret is empty\ncopy it from `boundkeyctl get \
             token/NAME --with-secrets`",
        ),
    ]);
}

#[test]
fn a_mistake_in_a_section_is_named_with_line_and_field() {
    let m = minimal();
    check(&[
        (
            &format!("{m}keystore: {{type: hsm}}\n"),
            "boundkey.yaml:6: keystore.type: \"hsm\" is not a type of key store\nwrite type: file, tpm or pkcs11",
        ),
        (&format!("{m}keystore: {{}}\n"), "boundkey.yaml:6: keystore: missing field `type`\nwrite type: file, tpm or pkcs11"),
        (
            &format!("{m}keystore:\n  type: file\n  tcti: device\n"),
            "boundkey.yaml:7: keystore: `tcti` does not go with this type of key store\nremove the field, or correct `type`",
        ),
        (
            &format!("{m}storage: {{type: directory, path: state}}\n"),
            "boundkey.yaml:6: storage.path: \"state\" is not an absolute path\nwrite it from the root and without ..",
        ),
        (
            &format!("{m}storage: {{type: memory}}\n"),
            "boundkey.yaml:6: storage.type: \"memory\" is not a type known here\nwrite type: directory",
        ),
        (
            &format!("{m}credential_ttl: -1h\n"),
            "boundkey.yaml:6: credential_ttl: \"-1h\" is not a length of time\nwrite a number and a unit, at least a second: 90s, 20m, \
             1h, 7d",
        ),
        (
            &format!("{m}renewal_interval: 0s\n"),
            "boundkey.yaml:6: renewal_interval: \"0s\" is too short\nwrite a number and a unit, at least a second: 90s, 20m, 1h, 7d",
        ),
        (&format!("{m}crl_interval: 101y\n"), "boundkey.yaml:6: crl_interval: \"101y\" is too long\nwrite 100y at most"),
        (
            &format!("{m}renewal_interval: 1200\n"),
            "boundkey.yaml:6: renewal_interval: \"1200\" is not a length of time\nwrite a number and a unit, at least a second: 90s, \
             20m, 1h, 7d",
        ),
        (
            &format!("{m}log: {{level: loud}}\n"),
            "boundkey.yaml:6: log.level: \"loud\" is not a log level\nwrite error, warn, info, debug, trace or off",
        ),
        (&format!("{m}log: {{format: xml}}\n"), "boundkey.yaml:6: log.format: \"xml\" is not a log format\nwrite text or json"),
    ]);
}

#[test]
fn a_mistake_in_an_output_is_named_with_line_and_field() {
    let m = minimal();
    let output = format!("{m}outputs:\n  - type: x509\n    destination: {{type: directory, path: /run/x}}\n");
    check(&[
        (
            &format!("{m}outputs: none\n"),
            "boundkey.yaml:6: outputs: invalid type: string \"none\"\ncorrect the line: expected a list",
        ),
        (
            &output.replace("x509", "ssh"),
            "boundkey.yaml:7: outputs[0].type: \"ssh\" is not a type of output known here\nwrite type: x509, or ssh_host",
        ),
        (
            &output.replace("type: directory", "type: kubernetes_secret"),
            "boundkey.yaml:8: outputs[0].destination.type: \"kubernetes_secret\" is not a type known here\nwrite type: directory",
        ),
        (
            &output.replace("/run/x", "/run/x, mode: \"0755\""),
            "boundkey.yaml:8: outputs[0].destination.mode: \"0755\" is not a mode for files\nwrite it in octal, such as \"0600\" or \
             \"0640\"",
        ),
        (
            &output.replace("/run/x", "/var/lib/boundkey/x"),
            "boundkey.yaml:1: the output /var/lib/boundkey/x would write into the storage directory\ngive it a directory elsewhere, such \
             as under /run/boundkey",
        ),
        (
            &output.replace("/run/x", "/"),
            "boundkey.yaml:8: outputs[0].destination: `path` is the root directory\nname a directory for this output alone",
        ),
        (
            &format!("{output}  - type: x509\n    destination: {{type: directory, path: /run//x}}\n"),
            "boundkey.yaml:7: outputs: two outputs write to /run/x\ngive each output a directory of its own",
        ),
        (
            &format!("{output}    credential_ttl: 1h\n"),
            "boundkey.yaml:7: outputs[0]: only one of `credential_ttl` and `renewal_interval` is set\nset both for this output, or \
             neither",
        ),
        (
            &format!("{output}    dns_names: [ok, 'a b']\n"),
            "boundkey.yaml:9: outputs[0].dns_names[1]: \"a b\" is not a DNS name\nwrite it like gateway-0042.fleet.example.com",
        ),
        (
            &format!("{output}    ip_addresses: [10.0.0.256]\n"),
            "boundkey.yaml:9: outputs[0].ip_addresses[0]: invalid IP address syntax\ncorrect the file, then try again",
        ),
        (
            &format!("{output}    key: keystore\n"),
            "boundkey.yaml:1: the output /run/x has `key: keystore`, and the key store is files\n\
             write keystore: {type: tpm} or {type: pkcs11}, or leave `key` out",
        ),
        (
            &format!("{output}    key: token\n"),
            "boundkey.yaml:9: outputs[0].key: \"token\" is not a place for a key\nwrite key: file or key: keystore",
        ),
        (
            &format!("{output}    principals: [gw]\n"),
            "boundkey.yaml:7: outputs[0]: `principals` go with type ssh_host\nwrite dns_names, or type: ssh_host",
        ),
        (
            &output.replace("x509", "ssh_host"),
            "boundkey.yaml:7: outputs[0]: type ssh_host takes `principals`, not `dns_names`, `uris` or `crl`\nname what clients call this \
             host, in principals and ip_addresses, and nothing else",
        ),
        (
            &format!("{}    principals: [gw]\n    dns_names: [gw]\n", output.replace("x509", "ssh_host")),
            "boundkey.yaml:7: outputs[0]: type ssh_host takes `principals`, not `dns_names`, `uris` or `crl`\nname what clients call this \
             host, in principals and ip_addresses, and nothing else",
        ),
        (
            &format!("{}    principals: [gw]\n    key: keystore\n", output.replace("x509", "ssh_host")),
            "boundkey.yaml:7: outputs[0]: sshd reads its host key from a file\nwrite key: file, or leave it out",
        ),
        (
            &format!("{}    principals: ['a b']\n", output.replace("x509", "ssh_host")),
            "boundkey.yaml:9: outputs[0].principals[0]: \"a b\" is not a DNS name\nwrite it like gateway-0042.fleet.example.com",
        ),
        (
            &format!("{}    principals: [gw]\n", output.replace("x509", "ssh_host").replace("/run/x", "/run/x, mode: \"0640\"")),
            "boundkey.yaml:7: outputs[0]: sshd takes no host key that others can read\nleave `mode` out of the destination",
        ),
        (
            &format!("{output}    reload: {{command: [a], pid_file: /b}}\n"),
            "boundkey.yaml:9: outputs[0].reload: `command` and `pid_file` are both set\nwrite command: [PROGRAM, ARGUMENT, ...], or \
             pid_file and signal",
        ),
        (
            &format!("{output}    reload:\n      pid_file: /b\n      signal: HANGUP\n"),
            "boundkey.yaml:11: outputs[0].reload.signal: \"HANGUP\" is not a signal\nwrite a name such as HUP or USR1",
        ),
    ]);
}

#[test]
#[cfg(not(feature = "tpm"))]
fn a_key_store_that_is_not_built_in_is_refused() {
    assert_eq!(
        refusal(&format!("{}keystore: {{type: tpm, tcti: \"device:/dev/tpmrm0\"}}\n", minimal())),
        "boundkey.yaml:6: keystore: this boundkey is built without TPM support\ninstall a boundkey built with the cargo feature `tpm`"
    );
}

#[test]
#[cfg(feature = "tpm")]
fn a_tpm() {
    let config = load(&format!("{}keystore: {{type: tpm, tcti: \"device:/dev/tpm0\", auth_credential: pin}}\n", minimal()));
    let Keystore::Tpm { tcti, auth } = config.expect("tpm").keystore else { panic!("a TPM") };
    assert_eq!(tcti.expect("tcti").to_string(), "device:/dev/tpm0");
    assert_eq!(auth, Some(boundkey_hal::tpm::AuthSource::Credential("pin".into())));
    assert_eq!(
        refusal(&format!("{}keystore: {{type: tpm, tcti: \"/dev/tpm0\"}}\n", minimal())),
        "boundkey.yaml:6: keystore: the TCTI /dev/tpm0 is not a TCTI known here; use device:PATH, tabrmd:, swtpm:host=H,port=P or \
         mssim:host=H,port=P\nwrite tcti: \"device:/dev/tpmrm0\""
    );
}

#[test]
#[cfg(feature = "pkcs11")]
fn a_pkcs11_token() {
    let load = |fields: &str| load(&format!("{}keystore: {{type: pkcs11, {fields}}}\n", minimal()));
    let by_uri = load("uri: \"pkcs11:token=edge?module-path=/lib/p11.so\", pin_path: /etc/pin").expect("by URI");
    let by_parts = load("module: /lib/p11.so, token: edge, pin_path: /etc/pin").expect("by parts");
    assert_eq!(by_uri.keystore, by_parts.keystore);
    for fields in ["token: edge", "module: /lib/p11.so", "uri: \"pkcs11:token=edge\"", "uri: \"pkcs11:\", token: edge"] {
        load(fields).expect_err(fields);
    }
}

#[test]
fn the_secret_of_the_file_goes_before_that_of_the_environment() {
    let env = [("BOUNDKEY_REGISTRATION_SECRET", " from-env\n")];
    let secret =
        |config: &Config| config.onboarding.registration_secret.as_ref().map(|s| s.read().expect("secret").expose().to_owned());

    let config = load_with(&minimal(), 0o644, &env).expect("config");
    assert_eq!(secret(&config).as_deref(), Some("from-env"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let with_secret = format!("{}  bound_keypair: {{registration_secret: from-file}}\n", minimal());
    let config = load_with(&with_secret, 0o600, &env).expect("config");
    assert_eq!(secret(&config).as_deref(), Some("from-file"));
    assert_eq!(config.warnings.len(), 1);
    assert!(is_ignored(&config.warnings[0], "BOUNDKEY_REGISTRATION_SECRET"), "{:?}", config.warnings);

    let config = load_with(&minimal(), 0o600, &[("BOUNDKEY_REGISTRATION_SECRET", "")]).expect("config");
    assert_eq!(secret(&config), None);
}

fn is_ignored(warning: &ConfigWarning, name: &str) -> bool {
    matches!(warning, ConfigWarning::IgnoredVariable { variable, .. } if *variable == name)
}

#[test]
fn a_static_key_comes_from_a_file_or_the_environment() {
    let env = [("BOUNDKEY_STATIC_KEY", "a2V5")];
    let config = load_with(&minimal(), 0o600, &env).expect("config");
    assert!(matches!(config.onboarding.static_key, Some(SecretSource::Value(_))));
    assert_eq!(config.warnings, []);
    let with_file = format!("{}  bound_keypair: {{static_private_key_path: /k}}\n", minimal());
    let config = load_with(&with_file, 0o600, &env).expect("config");
    assert_eq!(config.onboarding.static_key, Some(SecretSource::File("/k".into())));
    assert!(is_ignored(&config.warnings[0], "BOUNDKEY_STATIC_KEY"), "{:?}", config.warnings);
    assert_eq!(load_with(&minimal(), 0o600, &[("BOUNDKEY_STATIC_KEY", "")]).expect("config").onboarding.static_key, None);
}

#[test]
fn exposed_secrets_are_warned_of() {
    let with_secret = format!("{}  bound_keypair: {{registration_secret: s}}\n", minimal());
    for (mode, warnings) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
        assert_eq!(load_with(&with_secret, mode, &[]).expect("config").warnings.len(), warnings, "{mode:o}");
    }
    assert!(load_with(&minimal(), 0o644, &[]).expect("config").warnings.is_empty());
    let dir = tempfile::tempdir().expect("directory");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s").expect("write");
    let by_path = format!("{}  bound_keypair: {{registration_secret_path: {}}}\n", minimal(), secret.display());
    for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
        std::fs::set_permissions(&secret, Permissions::from_mode(mode)).expect("mode");
        assert_eq!(load_with(&by_path, 0o644, &[]).expect("config").warnings.len(), warnings, "{mode:o}");
    }
    let shared_key =
        format!("{}outputs:\n  - type: x509\n    destination: {{type: directory, path: /run/x, mode: \"0644\"}}\n", minimal());
    assert_eq!(load(&shared_key).expect("config").warnings.len(), 1);
}

/// doctor once took sentence and advice apart at the last semicolon.
#[test]
fn a_path_with_a_semicolon_takes_nothing_from_the_advice() {
    let dir = tempfile::tempdir().expect("directory");
    let secret = dir.path().join("a; b");
    std::fs::write(&secret, "s").expect("write");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("mode");
    let text = format!("{}  bound_keypair: {{registration_secret_path: \"{}\"}}\n", minimal(), secret.display());
    let warnings = load_with(&text, 0o600, &[]).expect("config").warnings;
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning.advice(), format!("run chmod 600 {}", secret.display()));
    assert!(warning.to_string().starts_with(&*secret.display().to_string()), "{warning}");
}

#[test]
fn an_interval_longer_than_the_lifetime_is_warned_of_in_a_daemon() {
    let config = load(&format!("{}credential_ttl: 10m\n", minimal())).expect("config");
    assert!(config.warnings.is_empty());
    assert_eq!(
        config.daemon_warnings(),
        [ConfigWarning::LateRenewal {
            name: "the identity".into(),
            credential_ttl: Duration::from_secs(600),
            renewal_interval: Duration::from_secs(1200),
        }]
    );
}

#[test]
fn files_are_read_when_needed() {
    let dir = tempfile::tempdir().expect("directory");
    let (token, secret) = (dir.path().join("token"), dir.path().join("secret"));
    let text = minimal().replace("gateway-0042", &token.display().to_string())
        + &format!("  bound_keypair: {{registration_secret_path: {}}}\n", secret.display());
    let onboarding = load(&text).expect("neither file is there yet").onboarding;
    assert_eq!(onboarding.registration_secret, Some(SecretSource::File(secret.clone())));
    let source = onboarding.registration_secret.expect("secret");

    let error = onboarding.token.read().expect_err("no file");
    assert_eq!(error.to_string(), format!("the token file {}: No such file or directory (os error 2)", token.display()));
    assert_eq!(error.advice(), "create it, or correct the path");

    std::fs::write(&token, "gateway-0042\n").expect("write");
    std::fs::write(&secret, "\n").expect("write");
    assert_eq!(onboarding.token.read().expect("token"), "gateway-0042");
    assert_eq!(source.read().expect_err("empty").advice(), "write the registration secret into it, and nothing else");
    std::fs::write(&secret, " s3cret \n").expect("write");
    assert_eq!(source.read().expect("secret").expose(), "s3cret");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let env = |_: &str| None;
    let error = Config::load(Path::new("/nonexistent/boundkey.yaml"), &env).expect_err("no file");
    assert_eq!(error.to_string(), "the configuration /nonexistent/boundkey.yaml: No such file or directory (os error 2)");
    assert_eq!(load(&"#".repeat(70_000)).expect_err("too large").advice(), "see that it is the right file");
}

/// Who may write these says with which token to join, with what, and by which PIN: a wrong one locks the token of a key store.
#[test]
fn files_that_others_may_write_are_warned_of() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("write");
    let path = file.display().to_string();
    let with = |more: &str| minimal() + more;
    let mut texts = vec![
        minimal().replace("gateway-0042", &path),
        with(&format!("  bound_keypair: {{registration_secret_path: {path}}}\n")),
        with(&format!("  bound_keypair: {{static_private_key_path: {path}}}\n")),
    ];
    if cfg!(feature = "pkcs11") {
        texts.push(with(&format!("keystore: {{type: pkcs11, module: /lib/p11.so, token: t, pin_path: {path}}}\n")));
    }
    if cfg!(feature = "tpm") {
        texts.push(with(&format!("keystore: {{type: tpm, auth_path: {path}}}\n")));
    }
    for text in texts {
        for (mode, is_exposed) in [(0o600, false), (0o620, true)] {
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("chmod");
            let warnings = load(&text).expect("configuration").warnings;
            let exposed = |warning: &ConfigWarning| match warning {
                ConfigWarning::ExposedFile(exposed) => exposed.mode & 0o777 == mode && warning.advice().contains(&*path),
                _ => false,
            };
            assert_eq!(warnings.iter().any(exposed), is_exposed, "{text}: {warnings:?}");
        }
    }
}
