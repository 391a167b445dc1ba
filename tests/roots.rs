//! The cluster's CAs: what devices trust, how that is replaced, and what is never believed.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "roots/believed.rs"]
mod believed;
#[path = "roots/bundles.rs"]
mod bundles;
#[path = "roots/company.rs"]
mod company;
#[path = "roots/deaths.rs"]
mod deaths;
#[path = "roots/restore.rs"]
mod restore;
#[path = "roots/rotation.rs"]
mod rotation;
#[path = "roots/ssh.rs"]
mod ssh;
mod support;

use std::path::PathBuf;

use boundkey::join::TrustBundle;
use serde_json::Value;
use support::{Device, Server, run, tool};

fn ca_json(server: &Server) -> PathBuf {
    server.dir.join("data/ca.json")
}

fn read_ca(server: &Server) -> Value {
    serde_json::from_slice(&std::fs::read(ca_json(server)).expect("ca.json")).expect("JSON")
}

/// The trust bundle of a device.
fn bundle(device: &Device) -> TrustBundle {
    let text = std::fs::read_to_string(device.storage().join("trust")).expect("a trust file");
    TrustBundle::open(text.lines().nth(1).expect("two lines")).expect("a bundle")
}

/// Number of CA certificates that a device trusts.
fn trusts(device: &Device) -> usize {
    bundle(device).roots().len()
}

/// `boundkeyctl ca` with these arguments, which must succeed; its JSON.
fn ca(server: &Server, args: &[&str]) -> Value {
    let all: Vec<_> = ["ca"].iter().chain(args).chain(&["--format", "json"]).copied().collect();
    serde_json::from_str(&server.ctl(&all)).expect("JSON")
}

/// What `boundkeyctl ca` says when it refuses.
fn ca_refused(server: &Server, args: &[&str]) -> String {
    let all: Vec<_> = ["ca"].iter().chain(args).copied().collect();
    let output = run(&mut server.ctl_command(&all));
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Number and phase of each CA.
fn phases(server: &Server) -> Vec<(u64, String)> {
    let report = ca(server, &["status"]);
    let of = |ca: &Value| (ca["number"].as_u64().expect("a number"), ca["phase"].as_str().expect("a phase").to_owned());
    report["cas"].as_array().expect("CAs").iter().map(of).collect()
}

fn is(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(number, phase)| (*number, (*phase).to_owned())).collect()
}

/// A device with an output, and a role that allows it.
fn device_with_output(server: &Server, name: &str) -> Device {
    server.create("kind: role\nversion: v1\nmetadata: {name: any}\nspec: {allow: {dns_names: ['*.fleet.test']}}");
    server.create(&format!(
        "kind: bot\nversion: v1\nmetadata: {{name: {name}}}\nspec: {{roles: [any]}}\n---\nkind: token\nversion: v2\n\
         metadata: {{name: {name}}}\nspec:\n  roles: [Bot]\n  bot_name: {name}\n  join_method: bound_keypair\n  \
         bound_keypair: {{recovery: {{limit: 1}}}}\n"
    ));
    let secret = server.status(name)["registration_secret"].as_str().expect("a secret").to_owned();
    let device = Device::new(server, name, &secret);
    configure(&device, server, &server.ca_pin, &secret);
    device
}

fn configure(device: &Device, server: &Server, pin: &str, secret: &str) {
    let more = format!(
        "outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n    dns_names: [{}.fleet.test]\n    crl: true",
        device.dir.join("out").display(),
        device.token
    );
    device.configure_with(&server.addr, pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &more);
}

/// Whether openssl, knowing what the output of `verifier` has, takes the certificate of `peer`'s output; revocation is looked at.
fn verifies(verifier: &Device, peer: &Device) -> bool {
    let mut verify = std::process::Command::new(tool("openssl", "openssl"));
    verify.arg("verify").arg("-crl_check").arg("-CAfile").arg(verifier.dir.join("out/ca.crt"));
    verify.arg("-CRLfile").arg(verifier.dir.join("out/ca.crl")).arg(peer.dir.join("out/tls.crt"));
    run(&mut verify).status.success()
}
