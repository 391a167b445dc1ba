//! Joining from end to end with the real programs: first joins, renewals, recoveries, roles, outputs, and what undoes a binding.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "joining/copies.rs"]
mod copies;
mod support;

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::proxy::{Proxy, Way};
use support::wall_clock::{WallClock, YEAR};
use support::{Device, Server, agent, run, run_with_input, success, tool, wait_for};

const ROLE: &str = "kind: role\nversion: v1\nmetadata: {name: mqtt}\nspec:\n  allow:\n    dns_names: [\"{{token.name}}.fleet.example\"]\n    \
                    uris: [\"urn:fleet:{{bot.name}}/*\"]\n    ip_addresses: [10.1.0.0/16]\n  max_ttl: 30m\n";

/// The bot of `token` gets role `mqtt`.
fn grant(server: &Server, token: &str) {
    server.create(&format!("{ROLE}---\nkind: bot\nversion: v1\nmetadata: {{name: {token}}}\nspec: {{roles: [mqtt]}}\n"));
}

/// The secret of a new token.
fn secret_of(server: &Server, token: &str) -> String {
    server.status(token)["registration_secret"].as_str().expect("a registration secret").to_owned()
}

/// `outputs` with one output into directory `dir`; `more` are further fields, indented by four.
fn output(device: &Device, dir: &str, more: &str) -> String {
    format!("  - type: x509\n    destination: {{type: directory, path: {}}}\n{more}", device.dir.join(dir).display())
}

/// What `openssl` says; it must agree.
fn openssl(args: &[&str]) -> String {
    let output = success(Command::new(tool("openssl", "openssl")).args(args));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// OpenSSL's word that `leaf` is a certificate of the cluster for TLS clients and, if `server`, for TLS servers.
fn verify(ca: &Path, leaf: &Path, server: bool) {
    for purpose in ["sslclient", "sslserver"].iter().take(1 + usize::from(server)) {
        openssl(&[
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            &ca.display().to_string(),
            &leaf.display().to_string(),
        ]);
    }
}

/// The public key of a file with a private key or a certificate.
fn public_key(args: &[&str], file: &Path) -> String {
    openssl(&[args, &["-in", &file.display().to_string()]].concat())
}

#[test]
fn first_join_by_a_secret_given_in_each_way() {
    let server = Server::start();
    for way in ["value", "path", "environment"] {
        server.token(way, "    recovery: {limit: 1}");
        let secret = secret_of(&server, way);
        assert_eq!(secret.len(), 32, "16 random bytes in hexadecimal");
        let device = Device::new(&server, way, &secret);
        let file = device.dir.join("secret");
        std::fs::write(&file, format!("\n {secret} \n")).unwrap();
        match way {
            "path" => {
                device.configure(&server, &format!("  bound_keypair: {{registration_secret_path: {}}}", file.display()), "");
            }
            "environment" => device.configure(&server, "", ""),
            _ => {}
        }
        let mut command = device.command(&["start", "--oneshot"]);
        if way == "environment" {
            command.env("BOUNDKEY_REGISTRATION_SECRET", &secret);
        }
        let said = String::from_utf8(success(command.env("BOUNDKEY_LOG", "trace")).stderr).unwrap();
        assert!(said.contains("joined for the first time: instance "), "{said}");
        assert!(!said.contains(&secret) && !server.log().contains(&secret), "a secret in a log: {said}");

        let (token, status) = (server.status(way), device.status());
        assert_eq!((&token["recovery_count"], &token["registration_secret"]), (&json!(1), &Value::Null), "the secret is used up");
        assert_eq!(token["last_rotated_at"], Value::Null, "a first registration is no rotation");
        assert_eq!(token["bound_bot_instance_id"], status["instance_id"]);
        assert_eq!(
            (&status["token"], &status["cluster"], &status["generation"]),
            (&json!(way), &json!("test.example"), &json!(1))
        );
        assert_eq!(status["recovery"], json!({"count": 1, "limit": 1, "mode": "standard", "remaining": 0}));
        assert_eq!(server.events(way), ["join.first"]);
        for entry in std::fs::read_dir(device.storage()).unwrap().map(|entry| entry.unwrap().path()) {
            let text = String::from_utf8_lossy(&std::fs::read(&entry).unwrap()).into_owned();
            assert!(!text.contains(&secret), "{} holds the secret", entry.display());
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{}", entry.display());
        }
        assert_eq!(device.storage().metadata().unwrap().mode() & 0o777, 0o700);

        // From now on the secret is not needed, nor read.
        std::fs::remove_file(&file).unwrap();
        device.join();
        assert_eq!(server.events(way), ["join.first", "join.renewal"]);
    }
}

#[test]
fn a_configured_secret_goes_before_that_of_the_environment() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let output = success(device.command(&["start", "--oneshot"]).env("BOUNDKEY_REGISTRATION_SECRET", "another"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("WARN BOUNDKEY_REGISTRATION_SECRET is not used"), "{said}");
}

#[test]
fn first_join_by_a_registered_key_whose_token_is_applied_as_printed() {
    let server = Server::start();
    let device = Device::new(&server, "gw", "unused");
    device.configure(&server, "", "");
    let create = |more: &[&str]| success(&mut device.command(&[&["keypair", "create"], more].concat()));
    let document = String::from_utf8(create(&[]).stdout).unwrap();
    let key: Value = serde_json::from_slice(&create(&["--format", "json"]).stdout).unwrap();
    let key = key["public_key"].as_str().unwrap();
    assert!(key.starts_with("ssh-ed25519 ") && document.contains(key), "{document}");
    server.create(&document);
    assert_eq!(server.status("gw")["registration_secret"], Value::Null, "a key needs no secret");
    device.join();
    assert_eq!((&server.status("gw")["recovery_count"], &server.status("gw")["bound_public_key"]), (&json!(1), &json!(key)));
    assert_eq!(server.events("gw"), ["join.first"]);
}

#[test]
fn keypair_create_keeps_a_key_unless_told_otherwise() {
    let server = Server::start();
    let device = Device::new(&server, "gw", "unused");
    let storage = device.dir.join("deep/down");
    let create = |more: &[&str]| {
        let mut command = agent();
        let output = success(command.args(["keypair", "create", "--format", "json", "--storage"]).arg(&storage).args(more));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["public_key"].as_str().unwrap().to_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (first, said) = create(&[]);
    assert_eq!(said, "");
    let (again, said) = create(&[]);
    assert_eq!(again, first);
    assert!(said.contains("WARN key bound-1 exists and is kept; --overwrite makes a new one"), "{said}");
    let (second, said) = create(&["--overwrite"]);
    assert_ne!(second, first);
    assert!(said.contains("WARN making a new key in place of bound-1"), "{said}");
    let (third, _) = create(&["--overwrite", "--algorithm", "p256"]);
    assert!(third.starts_with("ecdsa-sha2-nistp256 "), "{third}");
}

/// Without a word where the key is to be, it is where the configuration says, and nowhere else.
#[test]
fn c173_keypair_create_needs_a_place() {
    let server = Server::start();
    let device = Device::new(&server, "gw", "unused");
    let create = |config: Option<&Path>| {
        let mut command = agent();
        command.env_remove("BOUNDKEY_CONFIG").current_dir(device.dir.path()).args(["keypair", "create"]);
        command.args(config.map(|config| [OsStr::new("-c"), config.as_os_str()]).into_iter().flatten());
        command.output().expect("it runs")
    };
    let created = create(Some(&device.config()));
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    assert!(device.storage().join("key-bound-1.pem").exists());

    assert!(!Path::new("/etc/boundkey.yaml").exists(), "this machine has a device's configuration: its keys are not for tests");
    let before = std::fs::read_dir(device.dir.path()).expect("a directory").count();
    let output = create(None);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "error: neither a configuration nor a storage directory\n  give -c FILE, --storage DIR or --static\n");
    assert_eq!(std::fs::read_dir(device.dir.path()).expect("a directory").count(), before, "nothing is made");
}

#[test]
fn a_renewal_keeps_the_instance_and_consumes_nothing() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = device.status();
    let key = || public_key(&["pkey", "-pubout"], &device.storage().join("identity.pem"));
    let mut keys = vec![key()];
    for generation in 2..=4 {
        device.join();
        let status = device.status();
        assert_eq!((&status["instance_id"], &status["generation"]), (&first["instance_id"], &json!(generation)));
        assert_eq!(status["keystore"], first["keystore"], "the bound key stays");
        keys.push(key());
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4, "a fresh key for each certificate");
    assert_eq!(server.status("gw")["recovery_count"], 1);
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.renewal"]);
}

#[test]
fn a_device_without_certificate_recovers_until_the_limit_and_again_when_it_is_raised() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let first = device.status();
    device.lose_certificate();
    device.join();
    let second = device.status();
    assert_ne!(second["instance_id"], first["instance_id"]);
    assert_eq!((&second["generation"], &second["recovery"]["remaining"]), (&json!(1), &json!(0)));
    let instance = server.get(&format!("bot_instance/{}", second["instance_id"].as_str().unwrap()));
    assert_eq!(instance["spec"]["previous_instance"], first["instance_id"]);

    device.lose_certificate();
    let before = server.status("gw");
    let (code, said) = device.try_join();
    assert_eq!(code, 5, "{said}");
    assert_eq!(server.status("gw"), before, "a refusal changes nothing");
    server.token("gw", "    recovery: {limit: 3}");
    device.join();
    assert_eq!(server.status("gw")["recovery_count"], 3);
    assert_eq!(server.events("gw"), ["join.first", "join.recovery", "join.refused", "join.recovery"]);
}

#[test]
fn an_expired_certificate_is_a_recovery() {
    let server = Server::start();
    let device = server.device("gw", 2);
    let secret = secret_of(&server, "gw");
    device.configure(
        &server,
        &format!("  bound_keypair: {{registration_secret: {secret}}}"),
        "credential_ttl: 2s\nrenewal_interval: 1s",
    );
    device.join();
    let first = device.status()["instance_id"].clone();
    let shown = || String::from_utf8(success(&mut device.command(&["status"])).stdout).unwrap();
    wait_for("the certificate to expire", || shown().contains("(expired)"));
    device.join();
    assert_ne!(device.status()["instance_id"], first);
    assert_eq!(server.status("gw")["recovery_count"], 2);
    assert_eq!(server.events("gw"), ["join.first", "join.recovery"]);
}

#[test]
fn a_token_applied_again_keeps_its_binding() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let bound = server.status("gw");
    server.token("gw", "    recovery: {limit: 5, mode: relaxed}");
    assert_eq!(server.status("gw"), bound);
    device.join();
    assert_eq!(device.status()["generation"], 2);
    assert_eq!(device.status()["recovery"]["limit"], 5);
}

#[test]
fn rm_and_create_or_reset_undo_a_binding() {
    let server = Server::start();
    for way in ["rm", "reset"] {
        let device = server.device(way, 3);
        device.join();
        let (old, bound) = (device.status(), server.status(way));
        if way == "rm" {
            server.ctl(&["rm", "token/rm"]);
            let (code, said) = device.try_join();
            assert_eq!((code, said.contains("no such token")), (1, true), "{said}");
            server.token("rm", "    recovery: {limit: 3}");
        } else {
            server.ctl(&["reset", "token/reset"]);
        }
        let fresh = server.status(way);
        assert_eq!((&fresh["bound_public_key"], &fresh["bound_bot_instance_id"]), (&Value::Null, &Value::Null));
        assert_ne!(fresh["incarnation"], bound["incarnation"]);
        // Neither the old secret nor the old binding is worth anything.
        let (code, said) = device.try_join();
        assert_eq!(code, 6, "{said}");
        device.configure(&server, &format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, way)), "");
        device.join();
        let status = device.status();
        assert_eq!((&status["generation"], &status["recovery"]["count"]), (&json!(1), &json!(1)));
        assert_ne!(status["instance_id"], old["instance_id"]);
        assert_ne!(server.status(way)["bound_public_key"], bound["bound_public_key"], "a first join brings a key of its own");
    }
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]", "nobody was taken for a thief");
}

#[test]
fn a_role_says_what_its_bots_may_ask_for() {
    let server = Server::start();
    let device = server.device("gw", 1);
    grant(&server, "gw");
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    let names = |dns: &str, uri: &str, ip: &str| {
        format!(
            "outputs:\n{}",
            output(&device, "out", &format!("    dns_names: [{dns}]\n    uris: [\"{uri}\"]\n    ip_addresses: [{ip}]\n"))
        )
    };
    for (outputs, refused) in [
        (names("other.fleet.example", "urn:fleet:gw/a", "10.1.2.3"), "other.fleet.example"),
        (names("gw.fleet.example", "urn:fleet:other/a", "10.1.2.3"), "urn:fleet:other/a"),
        (names("gw.fleet.example", "urn:fleet:gw/a", "10.2.0.1"), "10.2.0.1"),
    ] {
        device.configure(&server, &secret, &outputs);
        let (code, said) = device.try_join();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("{refused} is not allowed by role mqtt of bot gw")), "{said}");
        assert!(said.contains("boundkeyctl edit role/NAME"), "{said}");
    }
    assert_eq!(server.status("gw")["recovery_count"], 0, "a refusal costs no recovery");
    assert!(!device.dir.join("out").exists());

    let outputs = names("gw.fleet.example", "urn:fleet:gw/a", "10.1.2.3");
    device.configure(&server, &secret, &format!("credential_ttl: 1h\n{outputs}"));
    let (code, said) = device.try_join();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("lifetime shortened from 1h to 30m, the longest allowed"), "{said}");
    assert!(device.status()["warnings"][0].as_str().unwrap().contains("shortened"), "status tells it too");
    let (crt, ca) = (device.dir.join("out/tls.crt"), device.dir.join("out/ca.crt"));
    let text = openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in", &crt.display().to_string()]);
    for name in ["DNS:gw.fleet.example", "URI:urn:fleet:gw/a", "IP Address:10.1.2.3"] {
        assert!(text.contains(name), "{text}");
    }
    // checkend succeeds while the certificate still holds in so many seconds.
    let path = crt.display().to_string();
    openssl(&["x509", "-noout", "-checkend", "1500", "-in", &path]);
    assert!(!run(Command::new("openssl").args(["x509", "-noout", "-checkend", "1801", "-in", &path])).status.success());
    verify(&ca, &crt, true);
}

/// `spiffe://fleet/{{bot.name}}` gave one bot the URI of another, and `*` stood for another host.
#[test]
fn names_are_compared_by_their_parts_and_bad_ones_are_told() {
    let server = Server::start();
    let device = server.device("gw", 1);
    server.create(
        "kind: role\nversion: v1\nmetadata: {name: uris}\nspec: {allow: {uris: [\"spiffe://fleet/{{bot.name}}\", \
         \"https://*.example.com/\"], dns_names: [\"*.example.com\"]}}\n---\n\
         kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [uris]}\n",
    );
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    let asks = |names: &str| {
        device.configure(&server, &secret, &format!("outputs:\n{}", output(&device, "out", &format!("    {names}\n"))));
        device.try_join()
    };
    for (names, said_of_it) in [
        ("uris: [\"spiffe://fleet/GW\"]", "spiffe://fleet/GW is not allowed by role uris of bot gw"),
        ("uris: [\"https://evil.org#.example.com/\"]", "https://evil.org#.example.com/ is not allowed"),
        ("uris: [\"https://user@evil.org:1#.example.com/\"]", "has user information before its host"),
        ("uris: [\"https://a.example.com/50%off\"]", "is not a URI"),
        ("uris: [\"spiffe://fleet/gw\", \"https://a.example.com/\"]", "no other URI"),
        ("dns_names: [a.b.example.com]", "a.b.example.com is not allowed"),
        ("ip_addresses: [\"::ffff:10.0.0.1\"]", "write 10.0.0.1"),
    ] {
        let (code, said) = asks(names);
        assert!(code != 0 && said.contains(said_of_it), "{names}: {said}");
    }
    for names in ["uris: [\"spiffe://fleet/gw\"]", "uris: [\"HTTPS://a.Example.com/\"]\n    dns_names: [A.example.com]"] {
        let (code, said) = asks(names);
        assert_eq!(code, 0, "{names}: {said}");
    }
}

/// A cluster and its devices by a clock that the test sets.
fn by_clock(clock: &WallClock) -> Server {
    let mut server = Server::blank(clock.env().into_iter().map(|(name, value)| (name, value.into())).collect());
    let made: Value = serde_json::from_slice(&success(&mut server.init_command(&[])).stdout).unwrap();
    made["ca_pin"].as_str().unwrap().clone_into(&mut server.ca_pin);
    server
}

/// A device with an output of five minutes joins twice through `proxy`; the answer to its third join is lost.
fn lose_an_answer_with_a_short_output(server: &Server, proxy: &Proxy) -> Device {
    let mut device = server.device("gw", 1);
    grant(server, "gw");
    device.env.clone_from(&server.env);
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(server, "gw"));
    let short = output(&device, "out", "    credential_ttl: 5m\n    renewal_interval: 1m\n");
    device.configure_with(&proxy.addr, &server.ca_pin, &secret, &format!("outputs:\n{short}"));
    device.join();
    proxy.cut_answers_of(|| device.join(), 100);
    assert_eq!(device.try_join().0, 3);
    device
}

/// A lost answer's output of five minutes was given again for as long as the identity, which may be 30 days.
#[test]
fn an_output_of_a_lost_answer_ends_when_it_would_have() {
    let clock = WallClock::new();
    let mut server = by_clock(&clock);
    server.run();
    let proxy = Proxy::to(&server.addr);
    let device = lose_an_answer_with_a_short_output(&server, &proxy);
    proxy.mend();
    clock.jump_to(600);
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.replay"]);
    // By this machine's own clock, by which the lost answer was made a moment ago.
    let (crt, ca) = (device.dir.join("out/tls.crt"), device.dir.join("out/ca.crt"));
    let path = crt.display().to_string();
    openssl(&["x509", "-noout", "-checkend", "200", "-in", &path]);
    assert!(!run(Command::new("openssl").args(["x509", "-noout", "-checkend", "301", "-in", &path])).status.success());
    verify(&ca, &crt, true);
}

/// An output that ended while its answer was lost is not left to the daemon's usual interval.
#[test]
fn a_lost_answer_whose_output_has_ended_is_followed_by_a_renewal() {
    let clock = WallClock::new();
    let mut server = by_clock(&clock);
    server.run();
    let proxy = Proxy::to(&server.addr);
    let device = lose_an_answer_with_a_short_output(&server, &proxy);
    clock.jump_to(600);
    proxy.mend();
    let started = std::time::Instant::now();
    let _daemon = device.daemon();
    wait_for("a renewal after the replay", || server.events("gw").ends_with(&["join.replay".into(), "join.renewal".into()]));
    assert!(started.elapsed().as_secs() < 50, "not by the interval of a minute");
}

/// No certificate outlives the CA that signed it, and a shorter one is told of.
#[test]
fn lifetimes_end_with_the_ca_and_every_shortening_is_told() {
    let clock = WallClock::new();
    let mut server = by_clock(&clock);
    clock.jump_to(20 * YEAR - 100 * 86_400);
    server.run();
    let mut device = server.device("gw", 1);
    device.env.clone_from(&server.env);
    server.create(&ROLE.replace("30m", "200d"));
    server.create("kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [mqtt]}\n");
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    let outputs = output(&device, "out", "    credential_ttl: 201d\n    renewal_interval: 1d\n")
        + &output(&device, "other", "    credential_ttl: 10d\n    renewal_interval: 1d\n");
    device.configure(&server, &secret, &format!("credential_ttl: 150d\noutputs:\n{outputs}"));
    device.join();
    let status = device.status();
    let warnings: Vec<_> = status["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert!(warnings[0].starts_with("lifetime shortened: the cluster's CA ends at "), "{warnings:?}");
    assert!(warnings[1].starts_with("output 1: lifetime shortened: the cluster's CA ends at "), "{warnings:?}");
    assert_eq!(warnings.iter().filter(|warning| warning.contains("lifetime")).count(), 2, "{warnings:?}");
    let end = |file: &Path| openssl(&["x509", "-noout", "-enddate", "-in", &file.display().to_string()]);
    let ca = end(&server.dir.join("data/ca.pem"));
    assert_eq!(end(&device.storage().join("identity.pem")), ca);
    assert_eq!(end(&device.dir.join("out/tls.crt")), ca);
    assert_ne!(end(&device.dir.join("other/tls.crt")), ca);

    let long = output(&device, "out", "    credential_ttl: 2d\n    renewal_interval: 1h\n");
    device.configure(&server, &secret, &format!("outputs:\n{long}"));
    server.create(&ROLE.replace("30m", "1d"));
    device.join();
    let warned = device.status()["warnings"].to_string();
    assert!(warned.contains("\"output 1: lifetime shortened from 2days to 1day, the longest allowed\""), "{warned}");
}

#[test]
fn a_bot_without_roles_gets_its_identity_only() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    device.configure(&server, &secret, &format!("outputs:\n{}", output(&device, "out", "")));
    let (code, said) = device.try_join();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("any output is not allowed: bot gw has no role"), "{said}");
    device.configure(&server, &secret, "");
    device.join();
    verify(&server.dir.join("data/ca.pem"), &device.storage().join("identity.pem"), false);
}

#[test]
fn two_outputs_each_with_a_fresh_key_at_each_renewal() {
    let server = Server::start();
    let device = server.device("gw", 1);
    grant(&server, "gw");
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    let both = output(&device, "a", "    dns_names: [gw.fleet.example]\n")
        + &output(&device, "b", "").replace("}\n", ", mode: \"0640\"}\n");
    device.configure(&server, &secret, &format!("outputs:\n{both}"));
    let mut keys = Vec::new();
    for _ in 0..2 {
        device.join();
        for name in ["a", "b"] {
            let dir = device.dir.join(name);
            let private = public_key(&["pkey", "-pubout"], &dir.join("tls.key"));
            assert_eq!(public_key(&["x509", "-noout", "-pubkey"], &dir.join("tls.crt")), private, "key and certificate fit");
            verify(&dir.join("ca.crt"), &dir.join("tls.crt"), true);
            keys.push(private);
        }
    }
    keys.push(public_key(&["pkey", "-pubout"], &device.storage().join("identity.pem")));
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 5, "no key serves twice");
    let mode = |name: &str| device.dir.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("a/tls.key"), mode("b/tls.key"), mode("a/tls.crt"), mode("b/ca.crt")], [0o600, 0o640, 0o644, 0o644]);
    verify(&server.dir.join("data/ca.pem"), &device.storage().join("identity.pem"), false);
}

#[test]
fn a_join_too_long_for_the_buffers_of_the_connection() {
    let server = Server::start();
    let device = server.device("gw", 1);
    grant(&server, "gw");
    let uris: Vec<_> = (0..8).map(|n| format!("\"urn:fleet:gw/{n}{}\"", "x".repeat(200))).collect();
    let fields = format!("    uris: [{}]\n", uris.join(", "));
    let outputs: String = (0..16).map(|n| output(&device, &format!("out-{n}"), &fields)).collect();
    let proxy = Proxy::to(&server.addr);
    let secret = format!("  bound_keypair: {{registration_secret: {}}}", secret_of(&server, "gw"));
    device.configure_with(&proxy.addr, &server.ca_pin, &secret, &format!("outputs:\n{outputs}"));
    device.join();
    for way in [Way::Up, Way::Down] {
        assert!(proxy.passed(way) > 32 * 1024, "only {} bytes", proxy.passed(way));
    }
    let last = device.dir.join("out-15/tls.crt");
    assert_eq!(
        openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in", last.to_str().expect("UTF-8")]).matches("urn:").count(),
        8
    );
}

#[test]
fn the_token_document_of_a_static_key_can_be_applied_too() {
    let server = Server::start();
    let mut command = agent();
    let printed = String::from_utf8(success(command.args(["keypair", "create", "--static"])).stdout).unwrap();
    let applied = run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), &printed);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert_eq!(server.get("token/my-device")["spec"]["bound_keypair"]["recovery"]["mode"], "insecure");
}

/// Before the last recovery is spent the audit log tells, once for each recovery, in an event of its own that a script can wait for.
#[test]
fn the_audit_log_tells_when_recoveries_run_low() {
    let server = Server::start();
    let device = server.device("gw", 3);
    let low = |server: &Server| -> Vec<Value> { server.audit().into_iter().filter(|e| e["event"] == "recoveries.low").collect() };
    for (left, told) in [(2, 0), (1, 1), (0, 2)] {
        device.join();
        let joined = server.audit().into_iter().rfind(|e| e["event"] == "join.first" || e["event"] == "join.recovery");
        assert_eq!(joined.expect("a join")["recoveries_left"], left);
        let events = low(&server);
        assert_eq!(events.len(), told);
        if let Some(event) = events.last() {
            let instance = device.status()["instance_id"].clone();
            assert_eq!((&event["recoveries_left"], &event["limit"], &event["token"]), (&json!(left), &json!(3), &json!("gw")));
            assert_eq!((&event["instance_id"], &event["success"]), (&instance, &json!(true)));
        }
        device.join();
        assert_eq!(low(&server).len(), told, "a renewal spends nothing");
        device.lose_certificate();
    }

    let relaxed = server.device("relaxed", 1);
    server.token("relaxed", "    recovery: {mode: relaxed}");
    relaxed.join();
    assert!(low(&server).iter().all(|event| event["token"] == "gw"), "without a limit none runs low");
}
