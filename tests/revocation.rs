//! What a lock takes away that was issued already: the revocation list, as OpenSSL reads it and as outputs keep it.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use boundkey::platform::time::{Clock as _, System};
use support::proxy::Proxy;
use support::wall_clock::WallClock;
use support::{Device, Server, success, tool, wait_for};

fn openssl(args: &[&str]) -> Command {
    let mut command = Command::new(tool("openssl", "openssl"));
    command.args(args);
    command
}

/// The list as a PEM file in the server's directory, once OpenSSL has found it to be the CA's.
fn list(server: &Server) -> PathBuf {
    let (head, body) = server.http_get("/v1/crl");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let (der, pem) = (server.dir.join("crl.der"), server.dir.join("crl.pem"));
    std::fs::write(&der, body).unwrap();
    success(openssl(&["crl", "-inform", "DER", "-in"]).arg(&der).arg("-out").arg(&pem));
    let verified = success(openssl(&["crl", "-noout", "-verify", "-in"]).arg(&pem).arg("-CAfile").arg(ca(server)));
    assert!(String::from_utf8_lossy(&verified.stderr).contains("verify OK"));
    pem
}

fn ca(server: &Server) -> PathBuf {
    server.dir.join("data/ca.pem")
}

/// What OpenSSL says of a list.
fn text(list: &Path) -> String {
    let out = success(openssl(&["crl", "-noout", "-text", "-in"]).arg(list)).stdout;
    String::from_utf8_lossy(&out).into_owned()
}

/// What `openssl crl` prints for an option such as `-crlnumber`.
fn field(list: &Path, option: &str) -> String {
    let out = success(openssl(&["crl", "-noout", option, "-in"]).arg(list)).stdout;
    String::from_utf8_lossy(&out).trim().rsplit('=').next().unwrap_or_default().to_owned()
}

/// Whether OpenSSL, going by `list`, takes `certificate`; if not it must be because it is revoked.
fn accepted(server: &Server, list: &Path, certificate: &Path) -> bool {
    let mut command = openssl(&["verify", "-crl_check", "-CRLfile"]);
    let output = support::run(command.arg(list).arg("-CAfile").arg(ca(server)).arg(certificate));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("certificate revoked"), "{said}");
    output.status.success()
}

/// The device's identity certificate, as a file of its own.
fn certificate(device: &Device) -> PathBuf {
    let path = device.dir.join(&format!("certificate-{}.pem", device.status()["generation"]));
    success(openssl(&["x509", "-in"]).arg(device.storage().join("identity.pem")).arg("-out").arg(&path));
    path
}

fn only_lock(server: &Server) -> String {
    let locks: serde_json::Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    assert_eq!(locks.as_array().map(Vec::len), Some(1), "{locks}");
    format!("lock/{}", locks[0]["metadata"]["name"].as_str().expect("a name"))
}

#[test]
fn a_lock_takes_away_every_certificate_and_gives_it_back() {
    let server = Server::start();
    let (device, other) = (server.device("gw", 5), server.device("other", 5));
    let mut certificates = Vec::new();
    for _ in 0..2 {
        device.join();
        certificates.push(certificate(&device));
    }
    other.join();
    let others = certificate(&other);
    let instance = device.status()["instance_id"].as_str().expect("joined").to_owned();
    let good = |wanted: bool| {
        let list = list(&server);
        assert!(certificates.iter().all(|certificate| accepted(&server, &list, certificate) == wanted));
        assert!(accepted(&server, &list, &others), "nobody locked the other one");
    };
    good(true);
    for (option, name) in [("--token", "gw"), ("--bot", "gw"), ("--instance", &*instance)] {
        server.ctl(&["lock", option, name, "--message", "reported stolen"]);
        good(false);
        server.ctl(&["rm", &only_lock(&server)]);
        good(true);
    }
}

#[test]
fn a_lock_that_ends_by_itself_and_a_token_that_is_gone() {
    let clock = WallClock::new();
    let mut server = Server::init(&[]);
    server.env.extend(clock.env().map(|(name, value)| (name, value.into())));
    server.run();
    let device = server.device("gw", 5);
    device.join();
    let certificate = certificate(&device);
    server.ctl(&["lock", "--token", "gw", "--expires", "10m"]);
    assert!(!accepted(&server, &list(&server), &certificate));
    // To OpenSSL, whose clock stays where it is, a list of then is not valid yet: what is on it counts.
    clock.jump_to(601);
    let empty = || text(&list(&server)).contains("No Revoked Certificates");
    assert!(empty(), "the end of the lock shows");
    server.ctl(&["rm", "token/gw"]);
    wait_for("the deleted token to show", || !empty());
    // Its name may be given to another device.
    server.device("gw", 5).join();
    clock.jump_to(1202);
    assert_eq!(text(&list(&server)).matches("Serial Number:").count(), 1, "the certificate stays on the list");
}

#[test]
fn a_stolen_copy_loses_what_it_got() {
    let server = Server::start();
    let device = server.device("gw", 5);
    device.join();
    let thief = device.copy();
    thief.join();
    let stolen = certificate(&thief);
    assert!(accepted(&server, &list(&server), &stolen));
    assert_eq!(device.try_join().0, 4, "two holders of one key");
    assert!(!accepted(&server, &list(&server), &stolen), "the automatic lock shows at once");
}

#[test]
fn the_list_is_as_rfc_5280_has_it_and_made_no_oftener_than_needed() {
    let mut server = Server::start();
    let device = server.device("gw", 5);
    device.join();
    let (head, first) = server.http_get("/v1/crl");
    assert!(head.contains("content-type: application/pkix-crl\r\n"), "{head}");
    assert!(head.contains("cache-control: max-age="), "{head}");
    for _ in 0..3 {
        assert!(server.http_get("/v1/crl").1 == first, "a list that did not change is not signed anew");
    }
    let empty = list(&server);
    let said = text(&empty);
    for wanted in [
        "Version 2 (0x1)",
        "ecdsa-with-SHA256",
        "X509v3 Authority Key Identifier",
        "X509v3 CRL Number",
        "No Revoked Certificates",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let number = |list: &Path| {
        let hex = field(list, "-crlnumber");
        u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap_or_else(|e| panic!("{hex}: {e}"))
    };
    let before = number(&empty);
    server.ctl(&["lock", "--token", "gw"]);
    let locked = list(&server);
    assert!(number(&locked) > before);
    assert!(text(&locked).contains("Certificate Hold"), "{}", text(&locked));
    let hour = success(Command::new("date").args(["-d", &field(&locked, "-nextupdate"), "+%s"])).stdout;
    let start = success(Command::new("date").args(["-d", &field(&locked, "-lastupdate"), "+%s"])).stdout;
    let secs = |out: Vec<u8>| String::from_utf8(out).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!(secs(hour) - secs(start), 3600 + 60, "an hour, and a minute for clocks that are behind");
    let last = number(&locked);
    server.kill();
    server.run();
    let restarted = list(&server);
    assert!(number(&restarted) > last, "the number rises over a restart");
    assert!(text(&restarted).contains("Certificate Hold"));
}

/// A role for outputs, and a device with one that wants the list.
fn verifier(server: &Server, name: &str, wanted: &str) -> Device {
    server.create("kind: role\nversion: v1\nmetadata: {name: any}\nspec: {allow: {dns_names: [\"*.fleet.example\"]}}\n");
    let device = server.device(name, 5);
    server.create(&format!("kind: bot\nversion: v1\nmetadata: {{name: {name}}}\nspec: {{roles: [any]}}\n"));
    let secret = server.status(name)["registration_secret"].as_str().expect("a secret").to_owned();
    let out = device.dir.join("out");
    device.configure(
        server,
        &format!("  bound_keypair: {{registration_secret: {secret}}}"),
        &format!(
            "crl_interval: 1s\noutputs:\n  - type: x509\n    destination: {{type: directory, path: {out}}}\n    \
             dns_names: [{name}.fleet.example]\n{wanted}    reload: {{command: [sh, -c, \"echo reloaded >>{log}\"]}}\n",
            out = out.display(),
            log = device.dir.join("reloads").display()
        ),
    );
    device
}

#[test]
fn outputs_keep_the_list_fresh_between_renewals() {
    let mut server = Server::start();
    let device = server.device("gw", 5);
    device.join();
    let certificate = certificate(&device);
    let verifier = verifier(&server, "broker", "    crl: true\n");
    let file = |name: &str| verifier.dir.join("out").join(name);
    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_default();
    let reloads = || std::fs::read_to_string(verifier.dir.join("reloads")).unwrap_or_default().lines().count();
    let daemon = verifier.daemon();
    wait_for("the first list", || file("ca.crl").exists() && reloads() == 1);
    let (key, leaf, list) = (read("tls.key"), read("tls.crt"), read("ca.crl"));
    assert!(list.starts_with("-----BEGIN X509 CRL-----\n"), "{list}");
    assert!(accepted(&server, &file("ca.crl"), &certificate));

    server.ctl(&["lock", "--token", "gw"]);
    wait_for("the lock to arrive", || read("ca.crl") != list && reloads() == 2);
    assert!(!accepted(&server, &file("ca.crl"), &certificate));
    assert_eq!((read("tls.key"), read("tls.crt")), (key, leaf.clone()), "key and certificate are the same");

    // Without a server the list at hand stays, and is fetched again when there is one.
    let list = read("ca.crl");
    server.kill();
    wait_for("a look that failed", || verifier.log().contains("no connection"));
    assert_eq!(read("ca.crl"), list);
    server.run();
    server.ctl(&["rm", &only_lock(&server)]);
    // A server that has started signs another list, which may arrive before the lock is lifted.
    wait_for("the lifted lock to arrive", || accepted(&server, &file("ca.crl"), &certificate));
    assert_ne!(read("ca.crl"), list);

    let list = read("ca.crl");
    daemon.signal(nix::sys::signal::Signal::SIGUSR1);
    wait_for("a renewal", || read("tls.crt") != leaf);
    assert_eq!(read("ca.crl"), list, "a renewal does not take it away");
}

/// A renewal is none the less one: `boundkey status` shows when the next is due, and the error until the list has come.
#[test]
fn a_list_that_did_not_come_with_a_renewal_is_fetched_soon_after() {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let verifier = verifier(&server, "broker", "    crl: true\n");
    let config = std::fs::read_to_string(verifier.config()).expect("configuration");
    std::fs::write(verifier.config(), config.replace(&server.addr, &proxy.addr)).expect("configuration");
    verifier.join();
    proxy.cut_answers_of(|| verifier.join(), 200);
    let _daemon = verifier.daemon();
    wait_for("the error", || verifier.status()["last_error"]["type"] == "cut-short");
    assert_eq!(server.events("broker"), ["join.first", "join.renewal", "join.renewal"]);
    assert!(verifier.status()["next_renewal"].is_string(), "{}", verifier.status());
    proxy.mend();
    wait_for("the list", || verifier.status()["last_error"].is_null());
}

#[test]
fn a_single_join_brings_the_list_only_where_it_is_wanted() {
    let server = Server::start();
    for (name, wanted, there) in [("with", "    crl: true\n", true), ("without", "", false)] {
        let verifier = verifier(&server, name, wanted);
        verifier.join();
        assert_eq!(verifier.dir.join("out/ca.crl").exists(), there, "{name}");
        assert!(verifier.dir.join("out/tls.crt").exists());
    }
}

#[test]
fn requests_that_come_together_get_one_list() {
    let server = Server::start();
    let lists: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| server.http_get("/v1/crl").1)).collect();
        asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    assert!(lists.iter().all(|list| *list == lists[0]));
}

/// Writes `count` certificates of `token` that hold for another day into the server's database, as that many joins would have.
fn issue(server: &Server, token: &str, count: u32) {
    let database = database(server);
    let tomorrow = System.now().plus(Duration::from_secs(86_400)).millis();
    database
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2)
             INSERT INTO issued (token, serial, form, bot, instance, not_after)
             SELECT ?1, lower(hex(randomblob(16))), 'x509', ?1, 'i', ?3 FROM n",
            rusqlite::params![token, count, tomorrow],
        )
        .expect("rows");
}

fn database(server: &Server) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(server.dir.join("data/boundkey.db")).expect("the database");
    database.busy_timeout(support::PATIENCE).expect("a timeout");
    database
}

fn issued(server: &Server, token: &str) -> u32 {
    database(server).query_row("SELECT count(*) FROM issued WHERE token = ?", [token], |row| row.get(0)).expect("a count")
}

/// One device had itself issued 50,000 certificates, then locked itself. The list was cut at that number, and the certificate of a device
/// that an operator had locked was no longer on it.
#[test]
fn a_token_with_many_certificates_takes_no_other_off_the_list() {
    let server = Server::start();
    let victim = server.device("victim", 5);
    victim.join();
    let certificate = certificate(&victim);
    server.device("crowd", 5);
    issue(&server, "crowd", 60_000);
    server.ctl(&["lock", "--token", "victim"]);
    server.ctl(&["lock", "--token", "crowd"]);
    let list = list(&server);
    assert!(!accepted(&server, &list, &certificate));
    let size = std::fs::metadata(server.dir.join("crl.der")).expect("the list").len();
    assert!(
        size <= boundkey::join::message::MAX_CRL as u64,
        "a device reads no more than {} bytes: {size}",
        boundkey::join::message::MAX_CRL
    );
    assert!(server.log().contains("certificates are revoked: of the tokens that have most of them"));
    let verifier = verifier(&server, "broker", "    crl: true\n");
    verifier.join();
    assert!(!accepted(&server, &verifier.dir.join("out/ca.crl"), &certificate), "a device takes the longest list");
}

/// What a device that joins without pause is given: shorter certificates, and a warning. It is never refused.
#[test]
fn a_token_with_many_certificates_is_given_shorter_ones() {
    let server = Server::start();
    let device = verifier(&server, "broker", "    credential_ttl: 20h\n    renewal_interval: 20m\n");
    let minutes = |path: PathBuf| {
        let end = success(openssl(&["x509", "-noout", "-enddate", "-in"]).arg(path)).stdout;
        let end = String::from_utf8_lossy(&end).trim().trim_start_matches("notAfter=").to_owned();
        let secs = |time: &str| {
            let out = success(Command::new("date").args(["-d", time, "+%s"])).stdout;
            String::from_utf8_lossy(&out).trim().parse::<i64>().expect("seconds")
        };
        (secs(&end) - secs("now") + 59) / 60
    };
    let lifetimes = |device: &Device| [minutes(device.dir.join("out/tls.crt")), minutes(certificate(device))];
    device.join();
    assert_eq!(lifetimes(&device), [20 * 60, 60]);
    assert_eq!(device.status()["warnings"], serde_json::json!([]));
    issue(&server, "broker", 700);
    device.join();
    assert_eq!(lifetimes(&device), [20 * 60, 60], "21 hours are allowed");
    issue(&server, "other", 1);
    issue(&server, "broker", 4000);
    device.join();
    assert_eq!(lifetimes(&device), [5, 60]);
    let warned = device.status()["warnings"].to_string();
    assert!(warned.contains("certificates of this token have not ended: outputs are given 5m at most"), "{warned}");
    device.join();
    assert_eq!(issued(&server, "broker"), 4096, "of more than that those that end soonest are forgotten");
    assert_eq!(issued(&server, "other"), 1);
}
