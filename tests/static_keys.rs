//! Hosts without writable storage: one static key, recovery mode `insecure`, and nothing written but outputs.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Device, Server, TempDir, run, success, wait_for};

/// A static key as `keypair create --static` makes it.
struct StaticKey {
    dir: TempDir,
    public: String,
    /// Base64 of the PEM.
    private: String,
}

impl StaticKey {
    fn new(device: &Device) -> Self {
        let dir = TempDir::new("static-key");
        let mut create = Command::new(device.command(&[]).get_program());
        // A name alone is a file where one is.
        create
            .args(["keypair", "create", "--static", "--format", "json", "--static-key-path", "key.pem"])
            .current_dir(dir.path());
        let json: Value = serde_json::from_slice(&success(&mut create).stdout).expect("JSON");
        let text = |name: &str| json[name].as_str().expect("a key").to_owned();
        Self { public: text("public_key"), private: text("private_key"), dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("key.pem")
    }
}

/// A host of the token with nothing in its configuration that tells a key.
fn host(server: &Server) -> Device {
    let host = Device::new(server, "fleet", "unused");
    host.configure(server, "", "");
    host
}

fn by_file(server: &Server, key: &StaticKey) -> Device {
    let host = host(server);
    host.configure(server, &format!("  bound_keypair: {{static_private_key_path: {}}}", key.path().display()), "");
    host
}

fn token(server: &Server, key: &str, mode: &str) {
    server.token("fleet", &format!("    onboarding: {{initial_public_key: {key}}}\n    recovery: {{limit: 9, mode: {mode}}}"));
}

fn count(server: &Server, event: &str) -> usize {
    server.events("fleet").iter().filter(|name| *name == event).count()
}

/// Instances of the token: id and generation.
fn instances(server: &Server) -> Vec<(String, u64)> {
    let all: Value = serde_json::from_str(&server.ctl(&["get", "bot_instances", "--format", "json"])).expect("JSON");
    let of = |instance: &Value| {
        let name = instance["metadata"]["name"].as_str().expect("a name").to_owned();
        (name, instance["status"]["generation"].as_u64().expect("a generation"))
    };
    all.as_array().expect("a list").iter().map(of).collect()
}

#[test]
fn three_hosts_share_a_key_and_write_nothing() {
    let server = Server::start();
    let mut hosts: Vec<Device> = (0..3).map(|_| host(&server)).collect();
    let key = StaticKey::new(&hosts[0]);
    token(&server, &key.public, "insecure");
    // Two by the file, where it wins over the environment, and one by the environment.
    for host in &mut hosts[..2] {
        host.configure(&server, &format!("  bound_keypair: {{static_private_key_path: {}}}", key.path().display()), "");
        host.env.push(("BOUNDKEY_STATIC_KEY", "not a key".into()));
    }
    hosts[2].env.push(("BOUNDKEY_STATIC_KEY", key.private.clone().into()));
    let daemons: Vec<_> = hosts.iter().map(Device::daemon).collect();
    wait_for("all to have joined", || count(&server, "join.recovery") == 2);
    assert_eq!(count(&server, "join.first"), 1);
    for renewals in 1..=2 {
        for (turn, daemon) in daemons.iter().enumerate() {
            daemon.signal(Signal::SIGUSR1);
            wait_for("a renewal", || count(&server, "join.renewal") == (renewals - 1) * 3 + turn + 1);
        }
    }
    assert_eq!(instances(&server).iter().map(|(_, generation)| *generation).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(server.status("fleet")["recovery_count"], 3, "renewals use up nothing");
    assert!(hosts.iter().all(|host| !host.storage().exists()), "nothing is written");

    // A lock on one of them stops that one.
    let (first, _) = instances(&server).remove(0);
    server.ctl(&["lock", "--instance", &first]);
    for daemon in &daemons {
        daemon.signal(Signal::SIGUSR1);
    }
    // The one that is refused asks again, sooner or later.
    wait_for("a refusal and two renewals", || count(&server, "join.refused") >= 1 && count(&server, "join.renewal") == 8);
    assert!(server.audit().iter().filter(|event| event["event"] == "join.refused").all(|event| event["problem"] == "locked"));
    assert!(instances(&server).into_iter().all(|(name, generation)| generation == if name == first { 3 } else { 4 }));
    drop(daemons);

    // A host that starts again is another instance.
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    server.ctl(&["rm", &format!("lock/{}", locks[0]["metadata"]["name"].as_str().expect("a name"))]);
    hosts[0].join();
    assert_eq!(instances(&server).len(), 4);
    assert!(!hosts[0].storage().exists());
    let status = run(&mut hosts[0].command(&["status"]));
    assert_eq!(status.status.code(), Some(2));
}

/// Each join makes the challenges of all others stale. Hosts that tried again at once, three times, went under: of 36 that started
/// together, 12 at a time, 10 ended with exit code 1.
#[test]
fn hosts_of_one_key_that_start_together_all_get_in() {
    const HOSTS: usize = 36;
    let server = Server::start();
    let key = StaticKey::new(&host(&server));
    token(&server, &key.public, "insecure");
    let hosts: Vec<Device> = (0..HOSTS).map(|_| by_file(&server, &key)).collect();
    std::thread::scope(|scope| {
        let joins: Vec<_> = hosts.iter().map(|host| scope.spawn(|| host.try_join())).collect();
        for join in joins {
            let (code, stderr) = join.join().expect("a host");
            assert_eq!(code, 0, "{stderr}");
        }
    });
    assert_eq!(count(&server, "join.recovery"), HOSTS - 1);
    assert_eq!(count(&server, "join.refused"), 0, "to wait for a turn is no refusal");
}

#[test]
fn outputs_are_all_that_a_host_writes() {
    let server = Server::start();
    let host = host(&server);
    let key = StaticKey::new(&host);
    token(&server, &key.public, "insecure");
    server.create("kind: role\nversion: v1\nmetadata: {name: any}\nspec: {allow: {dns_names: [\"*.fleet.example\"]}}\n");
    server.create("kind: bot\nversion: v1\nmetadata: {name: fleet}\nspec: {roles: [any]}\n");
    let out = host.dir.join("out");
    host.configure(
        &server,
        &format!("  bound_keypair: {{static_private_key_path: {}}}", key.path().display()),
        &format!(
            "outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n    dns_names: [a.fleet.example]\n    crl: true\n",
            out.display()
        ),
    );
    host.join();
    for name in ["tls.key", "tls.crt", "ca.crt", "ca.crl"] {
        assert!(out.join(name).exists(), "{name}");
    }
    assert!(!host.storage().exists());
}

/// Conformance C159: the first join succeeds, and says that the next will not.
#[test]
fn a_token_of_another_mode_is_told_from_the_first_join_on() {
    for mode in ["standard", "relaxed"] {
        let server = Server::start();
        let key = StaticKey::new(&host(&server));
        token(&server, &key.public, mode);
        let host = by_file(&server, &key);
        let (code, said) = host.try_join();
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("WARN the token is not in recovery mode insecure"), "{said}");
        let (code, said) = host.try_join();
        assert_eq!(code, 6, "{said}");
        assert!(said.contains("the token asks for the join state of the last join"), "{said}");
        assert!(said.contains("recovery.mode: insecure"), "{said}");
        assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]", "no theft");
    }
}

/// Conformance C056, C157, C158.
#[test]
fn what_a_static_key_cannot_do_is_refused_in_words() {
    let server = Server::start();
    let (key, other) = (StaticKey::new(&host(&server)), StaticKey::new(&host(&server)));
    token(&server, &key.public, "insecure");
    let (code, said) = by_file(&server, &other).try_join();
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("which is not the static key of this host"), "{said}");

    let host = by_file(&server, &key);
    host.join();
    server.ctl(&["rotate", "token/fleet"]);
    let (code, said) = host.try_join();
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("a rotation is due, and a static key cannot be replaced"), "{said}");
    assert!(said.contains("unset rotate_after"), "{said}");

    token(&server, &key.public, "insecure");
    host.join();
    token(&server, &key.public, "standard");
    let (code, said) = host.try_join();
    assert_eq!(code, 6, "join state is asked for again: {said}");
}

#[test]
fn a_key_that_cannot_be_read_is_never_replaced_by_another() {
    let server = Server::start();
    let key = StaticKey::new(&host(&server));
    token(&server, &key.public, "insecure");
    let mut host = by_file(&server, &key);
    std::fs::write(key.path(), "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let (code, said) = host.try_join();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("cannot be used: not a whole PEM file"), "{said}");
    std::fs::remove_file(key.path()).unwrap();
    let (code, said) = host.try_join();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("the static key ") && said.contains("No such file"), "{said}");
    host.configure(&server, "", "");
    host.env.push(("BOUNDKEY_STATIC_KEY", "!".into()));
    let (code, said) = host.try_join();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("BOUNDKEY_STATIC_KEY cannot be used: not base64 of a PEM file"), "{said}");
    assert!(!host.storage().exists());
    assert_eq!(count(&server, "join.first"), 0);
}
