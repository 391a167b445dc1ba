//! The cluster's CAs: what devices trust, how that is replaced, and what is never believed.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::path::{Path, PathBuf};

use boundkey::join::trust::Contents;
use boundkey::join::{TrustBundle, base64url};
use boundkey_hal::file::PrivateKey;
use serde_json::{Value, json};
use support::company::{AS_CA, Company};
use support::strace::{count_calls, killed_aside_at, killed_at, was_killed};
use support::{Device, Server, run, success, tool, wait_for};

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

fn trust_file(device: &Device) -> Vec<u8> {
    std::fs::read(device.storage().join("trust")).expect("trust")
}

/// Files that hold what a device knows, and their content.
fn stored(device: &Device) -> Vec<(String, Vec<u8>)> {
    ["identity.pem", "trust"].map(|name| (name.into(), std::fs::read(device.storage().join(name)).expect(name))).into()
}

/// A bundle with these roots, signed by the first CA of the cluster.
fn signed_by_first(server: &Server, sequence: u64, roots: &[Vec<Vec<u8>>]) -> String {
    let pem = std::fs::read_to_string(server.dir.join("data/keys/key-ca-x509.pem")).expect("the key");
    let key = PrivateKey::from_pem(&pem).expect("a key");
    let contents = Contents { cluster: "test.example", sequence, roots, ssh_host: &[] };
    TrustBundle::sign(contents, &key.public_key().expect("its half"), |message| key.sign(message)).expect("signed")
}

#[test]
fn a_device_takes_the_bundle_and_an_earlier_storage_comes_through() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = bundle(&device);
    assert_eq!((first.cluster(), first.roots().len()), ("test.example", 1));
    let written = std::fs::metadata(device.storage().join("trust")).expect("trust").modified().expect("time");
    device.join();
    assert_eq!(std::fs::metadata(device.storage().join("trust")).expect("trust").modified().expect("time"), written);
    // Versions before this one kept the CA's certificate behind the identity, and no trust file.
    std::fs::remove_file(device.storage().join("trust")).expect("remove");
    let identity = std::fs::read_to_string(device.storage().join("identity.pem")).expect("identity");
    let ca = std::fs::read_to_string(server.dir.join("data/ca.pem")).expect("ca.pem");
    std::fs::write(device.storage().join("identity.pem"), identity + &ca).expect("write");
    device.join();
    assert_eq!(bundle(&device), first);
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal"]);
}

#[test]
fn a_cluster_made_before_there_were_trust_bundles_goes_on() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    server.stop();
    std::fs::remove_file(ca_json(&server)).expect("remove");
    std::fs::remove_file(device.storage().join("trust")).expect("remove");
    server.run();
    device.join();
    server.stop();
    let (text, newest) = (std::fs::read(ca_json(&server)).expect("made"), bundle(&device));
    server.run();
    device.join();
    assert_eq!((std::fs::read(ca_json(&server)).expect("kept"), bundle(&device)), (text, newest));
}

#[test]
fn a_bundle_that_is_not_to_be_taken_is_refused_and_nothing_is_stored() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let stranger = Server::init(&[]);
    device.join();
    let (before, held) = (stored(&device), bundle(&device).sequence());
    let own = bundle(&device).roots()[0].chain.clone();
    let foreign = read_ca(&stranger)["cas"][0]["chain"][0].as_str().map(base64url::decode).expect("a chain").expect("DER");
    let strangers_bundle = read_ca(&stranger)["bundles"][0].as_str().expect("a bundle").to_owned();
    // Of strangers, who may have made theirs later; and without the CA of the server that gives it.
    let without_ours = signed_by_first(&server, held + 2, &[own.clone(), vec![foreign.clone()]]);
    let orders = [
        (vec![renumbered(&stranger, held + 1)], "no CA that this device trusts"),
        (vec![without_ours.clone(), strangers_bundle.replace('.', "")], "it is malformed"),
        (vec![renumbered(&stranger, held + 1), renumbered(&stranger, held + 2)], "no CA that this device trusts"),
    ];
    for (bundles, why) in orders {
        server.stop();
        let mut ca = read_ca(&server);
        let kept = ca["bundles"].clone();
        ca["bundles"] = json!(bundles);
        // The server itself refuses what is no bundle at all.
        std::fs::write(ca_json(&server), ca.to_string()).expect("write");
        if TrustBundle::open(bundles.last().expect("one")).is_err() {
            assert!(!server.run_as(server.command()));
        } else {
            server.run();
            let (code, said) = device.try_join();
            assert!(code == 3 && said.contains(why), "{code}: {said}");
            assert_eq!(stored(&device), before);
            server.stop();
        }
        ca["bundles"] = kept;
        std::fs::write(ca_json(&server), ca.to_string()).expect("write");
        server.run();
    }
    device.join();
    assert_eq!(server.get("token/gw")["status"]["bound_keypair"]["recovery_count"], 1);
}

/// The stranger's own bundle with another sequence number.
fn renumbered(stranger: &Server, sequence: u64) -> String {
    let chain = read_ca(stranger)["cas"][0]["chain"][0].as_str().map(base64url::decode).expect("a chain").expect("DER");
    signed_by_first(stranger, sequence, &[vec![chain]])
}

#[test]
fn a_bundle_without_the_ca_of_the_server_that_gives_it_is_refused() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let other = Server::init(&[]);
    device.join();
    let (before, held) = (stored(&device), bundle(&device).sequence());
    server.stop();
    // Signed by the root that the device trusts, which has to be in it; the bundle after it, by the next root, leaves that one out.
    let own = bundle(&device).roots()[0].chain.clone();
    let next = read_ca(&other)["cas"][0]["chain"][0].as_str().map(base64url::decode).expect("a chain").expect("DER");
    let mut ca = read_ca(&server);
    let kept = ca["bundles"].clone();
    ca["bundles"] =
        json!([signed_by_first(&server, held + 1, &[own, vec![next.clone()]]), signed_by_first(&other, held + 2, &[vec![next]])]);
    std::fs::write(ca_json(&server), ca.to_string()).expect("write");
    server.run();
    let (code, said) = device.try_join();
    assert!(code == 3 && said.contains("does not hold under the trust bundle"), "{code}: {said}");
    assert_eq!(stored(&device), before);
    server.stop();
    ca["bundles"] = kept;
    std::fs::write(ca_json(&server), ca.to_string()).expect("write");
    server.run();
    device.join();
}

#[test]
fn a_damaged_trust_file_and_a_pin_that_is_no_more_begin_anew() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let whole = std::fs::read(device.storage().join("trust")).expect("trust");
    std::fs::write(device.storage().join("trust"), &whole[..whole.len() / 2]).expect("write");
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("trust is damaged and is not used"), "{code}: {said}");
    assert_eq!(std::fs::read(device.storage().join("trust")).expect("trust"), whole);
    // Of a pin that the configuration does not have: another cluster's, say.
    let text = String::from_utf8(whole.clone()).expect("text");
    let (pin, rest) = text.split_once('\n').expect("lines");
    let other = pin.chars().map(|c| if c == '0' { '1' } else { c }).collect::<String>();
    std::fs::write(device.storage().join("trust"), format!("{other}\n{rest}")).expect("write");
    if other != pin {
        let (code, said) = device.try_join();
        assert!(code == 0 && said.contains("came from a pin that the configuration does not have"), "{code}: {said}");
        assert_eq!(std::fs::read(device.storage().join("trust")).expect("trust"), whole);
    }
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

/// Number of CA certificates that a device trusts.
fn trusts(device: &Device) -> usize {
    bundle(device).roots().len()
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

fn next_pin(server: &Server, number: usize) -> String {
    ca(server, &["status"])["cas"][number - 1]["pin"].as_str().expect("a pin").to_owned()
}

#[test]
fn a_ca_is_replaced_in_phases_with_the_fleet_running() {
    let server = Server::start();
    let (one, two) = (device_with_output(&server, "one"), device_with_output(&server, "two"));
    one.join();
    two.join();
    assert_eq!(phases(&server), is(&[(1, "active")]));

    ca(&server, &["rotate"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "announced")]));
    assert!(ca_refused(&server, &["rotate"]).contains("CA 2 is announced"));
    // Nobody knows it yet.
    let refused = ca_refused(&server, &["rotate", "--to", "active"]);
    assert!(refused.contains("2 of 2 bound tokens have not told yet") && refused.contains("--yes"), "{refused}");
    one.join();
    assert_eq!((trusts(&one), trusts(&two)), (2, 1));
    one.join();
    let known = &ca(&server, &["status"])["cas"][1]["known"];
    assert_eq!(*known, json!({"tokens": 2, "have": 1}));
    assert!(ca_refused(&server, &["rotate", "--to", "active"]).contains("1 of 2 bound tokens"));
    two.join();
    two.join();
    ca(&server, &["rotate", "--to", "active"]);
    assert_eq!(phases(&server), is(&[(1, "superseded"), (2, "active")]));

    // While both count, programs verify what either issued.
    one.join();
    assert!(verifies(&one, &two) && verifies(&two, &one) && verifies(&one, &one));
    let refused = ca_refused(&server, &["rotate", "--to", "retired"]);
    assert!(refused.contains("2 of 2 bound tokens"), "{refused}");
    one.join();
    two.join();
    two.join();
    ca(&server, &["rotate", "--to", "retired"]);
    assert_eq!(phases(&server), is(&[(1, "retired"), (2, "active")]));
    one.join();
    two.join();
    assert_eq!((trusts(&one), trusts(&two)), (1, 1));
    assert!(verifies(&one, &two) && verifies(&two, &one));
    assert_eq!(std::fs::read_to_string(one.dir.join("out/ca.crt")).expect("ca.crt").matches("BEGIN").count(), 1);
    // All of it were renewals, of which the log tells, and of each step.
    assert!(server.events("one").iter().skip(1).all(|event| event == "join.renewal"), "{:?}", server.events("one"));
    let steps: Vec<_> =
        server.audit().into_iter().filter(|e| e["event"].as_str().is_some_and(|e| e.starts_with("ca."))).collect();
    assert_eq!(steps.iter().map(|e| e["event"].clone()).collect::<Vec<_>>(), ["ca.announced", "ca.activated", "ca.retired"]);
    assert_eq!((&steps[1]["ca"], &steps[1]["tokens_ready"], &steps[1]["forced"]), (&json!(2), &json!(2), &json!(false)));
}

#[test]
fn a_device_that_was_off_throughout_comes_back_by_itself() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let fresh = server.device("new", 1);
    device.join();
    let pins: Vec<_> = (1..=5)
        .map(|number| {
            if number > 1 {
                ca(&server, &["rotate"]);
                ca(&server, &["rotate", "--to", "active", "--yes"]);
                ca(&server, &["rotate", "--to", "retired", "--yes"]);
            }
            next_pin(&server, number)
        })
        .collect();
    // What it had was issued by the first CA, and so were its join state and its pin: still a renewal, and no recovery.
    server.stop();
    server.run();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    assert_eq!((trusts(&device), bundle(&device).roots()[0].pins()), (1, vec![pin_of(&pins[4])]));
    device.join();
    // New devices join by any pin there ever was.
    fresh.join();
    for (number, pin) in pins.iter().enumerate() {
        let name = format!("pinned-{number}");
        server.token(&name, "    recovery: {limit: 1}");
        let secret = server.status(&name)["registration_secret"].as_str().expect("a secret").to_owned();
        let device = Device::new(&server, &name, &secret);
        device.configure_with(&server.addr, pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
        device.join();
        assert_eq!(bundle(&device).sequence(), bundle(&fresh).sequence());
    }
    // But not a device that was told that the first CA is retired, and meets a server that has nothing but that one's keys.
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

fn pin_of(text: &str) -> [u8; 32] {
    let hex = text.strip_prefix("sha256:").expect("a pin");
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal"))
}

#[test]
fn every_step_can_be_taken_back() {
    let server = Server::start();
    let (device, sleeper) = (device_with_output(&server, "gw"), device_with_output(&server, "off"));
    let follow = || device.join();
    follow();
    sleeper.join();
    assert!(ca_refused(&server, &["rotate", "--cancel"]).contains("no CA is announced"));
    assert!(ca_refused(&server, &["rotate", "--to", "active"]).contains("no CA is announced"));
    assert!(ca_refused(&server, &["rotate", "--to", "retired"]).contains("none to retire"));
    // Announced, and withdrawn.
    ca(&server, &["rotate"]);
    follow();
    ca(&server, &["rotate", "--cancel"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired")]));
    follow();
    assert_eq!(trusts(&device), 1);
    // Active, and back; then active again.
    ca(&server, &["rotate"]);
    follow();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    follow();
    let meanwhile = trust_file(&device);
    ca(&server, &["rotate", "--to", "announced", "--yes"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired"), (3, "announced")]));
    follow();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    follow();
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    follow();
    assert_eq!((phases(&server), trusts(&device)), (is(&[(1, "retired"), (2, "retired"), (3, "active")]), 1));
    // Retired, and back to where it began; for the device that was off all the time, and for one that was off since it was told that
    // the first CA does not count.
    let told = trust_file(&device);
    ca(&server, &["rotate", "--to", "active"]);
    assert_eq!(phases(&server), is(&[(1, "superseded"), (2, "retired"), (3, "active")]));
    ca(&server, &["rotate", "--to", "announced", "--yes"]);
    for trust in [&told, &meanwhile] {
        std::fs::write(device.storage().join("trust"), trust).expect("write");
        device.join();
        assert_eq!(trusts(&device), 2);
    }
    ca(&server, &["rotate", "--cancel", "--yes"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired"), (3, "retired")]));
    follow();
    sleeper.join();
    assert!(verifies(&sleeper, &device) && verifies(&device, &sleeper));
    // Joins that were too many at a time were told to wait.
    let fault = |event: &Value| event["event"] == "join.refused" && event["problem"] != "pace-exceeded";
    assert!(!server.audit().iter().any(|event| fault(event) || event["event"] == "join.recovery"));
}

#[test]
fn a_compromised_ca_is_believed_in_nothing() {
    let mut server = Server::start();
    let (device, off) = (server.device("gw", 2), server.device("off", 2));
    device.join();
    off.join();
    assert!(ca_refused(&server, &["rotate", "--to", "retired", "--compromised"]).contains("none to retire"));
    ca(&server, &["rotate"]);
    device.join();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    device.join();
    ca(&server, &["rotate", "--to", "retired", "--compromised", "--yes"]);
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.renewal"]);
    // A join state by the old keys may be anybody's: the device that was off is told from a forger by an operator.
    let (code, said) = off.try_join();
    assert_eq!(code, 4, "{said}");
    server.ctl(&["exempt", "token/off"]);
    off.join();
    assert!(
        ca_refused(&server, &["rotate", "--to", "active"]).contains("no CA is announced"),
        "a compromised CA does not come back"
    );
    // Its keys are not needed any more.
    server.stop();
    for name in ["ca-x509", "join-state", "ca-ssh-host", "ca-ssh-user"] {
        std::fs::remove_file(server.dir.join("data/keys").join(format!("key-{name}.pem"))).expect("a key");
    }
    server.run();
    device.join();
}

/// The daemon follows each step without a restart.
#[test]
fn a_running_daemon_follows_each_step() {
    let server = Server::start();
    let device = device_with_output(&server, "gw");
    let daemon = device.daemon();
    let generation = |device: &Device| device.status()["generation"].as_u64();
    wait_for("the first join", || device.storage().join("identity.pem").exists() && generation(&device).is_some());
    let renews = |roots: usize| {
        let before = generation(&device);
        daemon.signal(nix::sys::signal::Signal::SIGUSR1);
        wait_for("a renewal", || generation(&device) > before && trusts(&device) == roots);
    };
    ca(&server, &["rotate"]);
    renews(2);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    renews(2);
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    renews(1);
    renews(1);
    wait_for("the output", || {
        std::fs::read_to_string(device.dir.join("out/ca.crl")).is_ok_and(|lists| lists.matches("BEGIN").count() == 1)
    });
    assert!(verifies(&device, &device));
    assert!(!device.log().contains("error:"), "{}", device.log());
}

/// What a host tells its SSH clients to trust.
#[test]
fn a_host_names_both_ssh_authorities_while_both_count() {
    let server = Server::with_names(&["127.0.0.1"]);
    server.create("kind: role\nversion: v1\nmetadata: {name: ssh}\nspec: {allow: {ssh_principals: [node.fleet.test]}}");
    server.host_token("node", "[Node]", "[ssh]", "    recovery: {limit: 3}");
    let secret = server.status("node")["registration_secret"].as_str().expect("a secret").to_owned();
    let device = Device::new(&server, "node", &secret);
    let output = format!(
        "outputs:\n  - type: ssh_host\n    destination: {{type: directory, path: {}}}\n    principals: [node.fleet.test]",
        device.dir.join("ssh").display()
    );
    device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &output);
    let mut authorities = Vec::new();
    for step in [&[][..], &["rotate"], &["rotate", "--to", "active", "--yes"], &["rotate", "--to", "retired", "--yes"]] {
        if !step.is_empty() {
            ca(&server, step);
        }
        device.join();
        let told = String::from_utf8(server.http_get("/v1/ca/ssh-host").1).expect("text");
        let has = std::fs::read_to_string(device.dir.join("ssh/ssh_host_ca.pub")).expect("the authorities");
        let keys = |text: &str| text.lines().map(|line| line.split(' ').nth(1).expect("a key").to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&told), keys(&has));
        authorities.push(keys(&has).len());
    }
    assert_eq!(authorities, [1, 2, 2, 1]);
}

#[test]
fn ssh_clients_are_told_of_both_authorities_while_both_count() {
    let server = Server::start();
    let lines = |server: &Server| String::from_utf8(server.http_get("/v1/ca/ssh-host").1).expect("text").lines().count();
    assert_eq!(lines(&server), 1);
    ca(&server, &["rotate"]);
    assert_eq!(lines(&server), 2);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    assert_eq!(lines(&server), 1);
}

/// Devices that take turns: a token makes no more than ten joins in a row.
#[derive(Default)]
struct Turns {
    made: usize,
    joins: usize,
    device: Option<Device>,
}

impl Turns {
    /// The device whose turn it is, for a join that may have to be done twice. It has joined before.
    fn next(&mut self, server: &Server) -> &Device {
        if self.joins >= 6 || self.device.is_none() {
            self.made += 1;
            let device = server.device(&format!("gw-{}", self.made), 1);
            device.join();
            (self.joins, self.device) = (0, Some(device));
        }
        self.joins += 2;
        self.device.as_ref().expect("just made")
    }

    /// That nothing but this was told of any of them, first joins apart.
    fn told_only(&self, server: &Server, events: &[&str]) {
        for device in 1..=self.made {
            let told = server.events(&format!("gw-{device}"));
            assert!(told.iter().skip(1).all(|event| events.contains(&event.as_str())), "{told:?}");
        }
    }
}

/// Kills the server before each of its calls in a step, the first of `steps` and the second in turns; `of` tells which phases of the last
/// CA they lead to. Each step was made or was not, the audit log has it if it was made, and devices join all the same.
fn kill_the_server_in(steps: [&[&str]; 2], lead_to: [&str; 2]) {
    let mut server = Server::start();
    let mut turns = Turns::default();
    turns.next(&server);
    if steps[0].len() > 1 {
        ca(&server, &["rotate"]);
    }
    let phase = |server: &Server| phases(server).pop().expect("a CA").1;
    let (mut deaths, mut made, mut undone) = (0, 0, 0);
    for call in ["fsync", "rename", "pwrite64", "fdatasync"] {
        let mut survived = 0;
        for nth in 1.. {
            assert!(nth < 80, "{call}: no end");
            let which = usize::from(phase(&server) == lead_to[0]);
            let before = read_ca(&server);
            server.kill();
            // Calls are counted by thread.
            let mut command = server.command();
            command.env("TOKIO_WORKER_THREADS", "1");
            if server.run_as(killed_aside_at(&command, call, nth)) {
                let args: Vec<_> = ["ca", "rotate"].iter().chain(steps[which]).copied().collect();
                survived += usize::from(run(&mut server.ctl_command(&args)).status.success());
            }
            deaths += usize::from(!server.is_running());
            server.kill();
            server.run();
            let after = read_ca(&server);
            if phase(&server) == lead_to[which] {
                made += 1;
                let sequence = &ca(&server, &["status"])["sequence"];
                assert!(server.audit().iter().any(|event| event["sequence"] == *sequence), "{call} {nth}: no event");
            } else {
                undone += 1;
                assert_eq!(after, before, "{call} {nth}: neither made nor not");
            }
            let device = turns.next(&server);
            device.join();
            assert_eq!(bundle(device).sequence(), ca(&server, &["status"])["sequence"].as_u64().expect("a number"));
            if survived == 2 {
                break;
            }
        }
    }
    println!("{deaths} deaths; {made} steps made, {undone} not");
    assert!(deaths >= 10 && made > 0 && undone > 0, "{deaths} deaths; {made} steps made, {undone} not");
    turns.told_only(&server, &["join.renewal"]);
}

#[test]
fn announcing_and_withdrawing_survive_the_death_of_the_server() {
    kill_the_server_in([&[], &["--cancel"]], ["announced", "retired"]);
}

#[test]
fn taking_over_and_going_back_survive_the_death_of_the_server() {
    kill_the_server_in([&["--to", "active", "--yes"], &["--to", "announced", "--yes"]], ["active", "announced"]);
}

/// The power fails before each call by which the agent stores another trust bundle, and what comes with it.
#[test]
fn taking_another_bundle_survives_the_death_of_the_agent() {
    const CALLS: [&str; 9] = ["fsync", "fdatasync", "pwrite64", "recvfrom", "rename", "sendto", "unlink", "unlinkat", "write"];
    let server = Server::start();
    let mut turns = Turns::default();
    let start = |device: &Device| device.command(&["start", "--oneshot"]);
    turns.next(&server);
    let mut announced = false;
    let mut another = || {
        ca(&server, if announced { &["rotate", "--cancel"] } else { &["rotate"] });
        announced = !announced;
    };
    another();
    let counts = count_calls(&start(turns.next(&server)), &CALLS);
    let mut deaths = 0;
    for (call, count) in counts {
        for nth in 1..=count {
            let device = turns.next(&server);
            another();
            let output = run(&mut killed_at(&start(device), &call, nth));
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(was_killed(&output) || output.status.success(), "{call} {nth}: {}: {text}", output.status);
            deaths += usize::from(was_killed(&output));
            device.join();
            assert_eq!(bundle(device).sequence(), ca(&server, &["status"])["sequence"].as_u64().expect("a number"));
        }
    }
    assert!(deaths >= 10, "{deaths} deaths");
    turns.told_only(&server, &["join.renewal", "join.replay"]);
}

/// Names and content of all files in a data directory.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push((path.clone(), std::fs::read(&path).expect("content")));
        }
    }
    all.sort();
    all
}

#[test]
fn a_ca_may_stand_under_a_company_s_root() {
    let (company, mut server) = (Company::new(), Server::blank(Vec::new()));
    let request = server.dir.join("ca.csr");
    success(&mut server.init_command(&["--ca-request", &request.display().to_string()]));
    let chain = server.dir.join("chain.pem");
    std::fs::write(&chain, company.chain(&request)).expect("write");
    let made = success(&mut server.init_command(&["--ca-chain", &chain.display().to_string()])).stdout;
    let made: Value = serde_json::from_slice(&made).expect("JSON");
    assert_eq!(made["ca_pin"], company.pin());
    server.ca_pin = company.pin();
    server.run();
    let (one, two) = (device_with_output(&server, "one"), device_with_output(&server, "two"));
    for device in [&one, &two, &one] {
        device.join();
    }
    assert!(verifies(&one, &two) && verifies(&two, &one));
    assert_eq!(
        std::fs::read_to_string(one.dir.join("out/ca.crt")).expect("ca.crt"),
        std::fs::read_to_string(&chain).expect("a chain")
    );
    // From the first join on the cluster's own CA is trusted, and no other of the company's.
    assert_eq!(bundle(&one).roots().iter().map(|root| root.chain.len()).collect::<Vec<_>>(), [2]);
    assert_eq!(ca(&server, &["status"])["cas"][0]["root_pin"], company.pin());
    assert!(ca_refused(&server, &["rotate"]).contains("stands under another's root"));
    assert_eq!(server.events("one"), ["join.first", "join.renewal"]);
}

#[test]
fn a_chain_that_devices_would_not_take_is_refused_and_nothing_is_written() {
    let (company, other, server) = (Company::new(), Company::new(), Server::blank(Vec::new()));
    let chain = server.dir.join("chain.pem");
    let init = |text: &str| {
        std::fs::write(&chain, text).expect("write");
        run(&mut server.init_command(&["--ca-chain", &chain.display().to_string()]))
    };
    let early = init("nothing");
    assert!(String::from_utf8_lossy(&early.stderr).contains("no request for it was made here"));
    assert!(!server.dir.join("data").exists());
    let request = server.dir.join("ca.csr");
    let ask = ["--ca-request", &request.display().to_string()].map(str::to_owned);
    success(&mut server.init_command(&ask.each_ref().map(String::as_str)));
    let strange = Server::blank(Vec::new());
    let strange_request = strange.dir.join("ca.csr");
    success(&mut strange.init_command(&["--ca-request", &strange_request.display().to_string()]));
    let root = std::fs::read_to_string(company.root()).expect("the root");
    let rsa = Company::with_key(&["rsa:2048"]);
    let with = |extensions: &str, days: &str| company.issue(&request, extensions, days) + &root;
    let good = company.chain(&request);
    let cases = [
        (String::new(), "it holds no certificate in PEM"),
        (company.issue(&request, AS_CA, "9"), "it holds one certificate"),
        (with(&AS_CA.replace("CA:TRUE,pathlen:0", "CA:FALSE"), "9"), "certificate 1: it is not that of a CA"),
        (with(&AS_CA.replace("keyCertSign,", ""), "9"), "certificate 1: its key usage lacks keyCertSign"),
        (with(&AS_CA.replace(",cRLSign", ""), "9"), "certificate 1: its key usage lacks cRLSign"),
        (with(&format!("{AS_CA}extendedKeyUsage=serverAuth\n"), "9"), "certificate 1: it has an extended key usage"),
        (with(&format!("{AS_CA}nameConstraints=critical,permitted;DNS:example.com\n"), "9"), "does not hold under its root"),
        (with(AS_CA, "0"), "certificate 1: it has ended"),
        (company.chain(&strange_request), "is not for the key that the request was for"),
        (
            company.issue(&request, AS_CA, "9") + &std::fs::read_to_string(other.root()).expect("another root"),
            "certificate 1 is not signed by the key of certificate 2",
        ),
        (rsa.chain(&request), "certificate 1 is not signed by the key of certificate 2 with ECDSA on P-256"),
        (format!("{root}{good}"), "its first certificate is not for the key"),
        (good.replace("MII", "MIJ"), "cannot be read"),
        (format!("{good}{root}{root}{root}"), "it holds 5 certificates"),
    ];
    let before = files(&server.dir.join("data"));
    for (text, why) in cases {
        let output = init(&text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why) && said.contains("nothing was written"), "{why}: {said}");
        assert!(files(&server.dir.join("data")) == before, "{why}: something was written");
    }
    assert!(init(&good).status.success());
}

/// A restore brings back tokens and locks as they were, not whom devices trust: that stays as it is, and so do the keys that go with it.
#[test]
fn a_restored_database_takes_no_step_back() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let auth = |command: &str, server: &Server, backup: &Path| {
        let mut auth = std::process::Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
        success(auth.arg(command).arg("--data-dir").arg(server.dir.join("data")).arg(backup));
    };
    let (before, after) = (server.dir.join("before"), server.dir.join("after"));
    auth("backup", &server, &before);
    ca(&server, &["rotate"]);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    device.join();
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    device.join();
    let (stood, held) = (phases(&server), bundle(&device).sequence());
    auth("backup", &server, &after);
    server.stop();
    auth("restore", &server, &before);
    server.run();
    assert_eq!(phases(&server), stood);
    device.join();
    assert_eq!(bundle(&device).sequence(), held);
    assert!(server.events("gw").iter().any(|event| event == "join.rolled_forward"), "{:?}", server.events("gw"));
    // Where all is lost, a backup from after the steps is the whole server.
    server.stop();
    std::fs::remove_dir_all(server.dir.join("data")).expect("remove");
    success(std::process::Command::new("cp").arg("-a").arg(&after).arg(server.dir.join("data")));
    server.run();
    assert_eq!(phases(&server), stood);
    device.join();
    assert_eq!(bundle(&device).sequence(), held);
}
