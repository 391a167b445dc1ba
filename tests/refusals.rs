//! What the agent says when it cannot join: each cause has its own sentence, advice, type and exit code.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use boundkey::pem;
use boundkey::time::{Clock as _, System, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use support::imposter::Imposter;
use support::proxy::{Proxy, Way};
use support::said::{Said, expect_unwritten, said};
use support::{Device, Running, Server, agent, not_tried, run, tool, wait_for, wrapped};

/// One join of `device` that is refused, with the type of the error that `boundkey status` shows.
fn refused(device: &Device) -> (Said, String) {
    let said = said(&run(&mut device.command(&["start", "--oneshot"])));
    let shown = device.status()["last_error"].clone();
    assert_eq!((&shown["message"], &shown["advice"]), (&json!(said.error), &json!(said.advice)), "status tells the same");
    (said, shown["type"].as_str().expect("a type").to_owned())
}

/// Checks a refusal: exit code, type, a part of the sentence and of the advice.
fn expect(device: &Device, code: i32, kind: &str, error: &str, advice: &str) {
    let (said, shown) = refused(device);
    assert_eq!((said.code, &*shown), (code, kind), "{said:?}");
    assert!(said.error.contains(error) && said.advice.contains(advice), "{said:?}");
}

/// A device whose token exists, and that looks for its server at `addr`.
fn device_at(server: &Server, addr: &str, pin: &str) -> Device {
    let device = server.device("gw", 1);
    let secret = server.status("gw")["registration_secret"].as_str().unwrap().to_owned();
    device.configure_with(addr, pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
    device
}

/// Key and certificates of the server, as it presents them.
fn server_pem(server: &Server) -> String {
    ["tls.pem", "ca.pem"].map(|name| std::fs::read_to_string(server.dir.join("data").join(name)).unwrap()).concat()
}

fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        .into_bytes()
}

#[test]
fn nothing_listens() {
    let server = Server::start();
    let device = device_at(&server, "127.0.0.1:1", &server.ca_pin);
    expect(&device, 3, "unreachable", "no connection: ", "check the network, auth_server and that boundkey-auth runs");
}

#[test]
fn another_ca_than_the_pinned_one() {
    let server = Server::start();
    let pin = format!("sha256:{}", "00".repeat(32));
    let device = device_at(&server, &server.addr, &pin);
    expect(
        &device,
        3,
        "not-trusted",
        "the server is not trusted: the server has another CA than the pinned one",
        "compare ca_pins",
    );
    // A CA file of somebody else.
    let other = Server::start();
    let yaml = std::fs::read_to_string(device.config()).unwrap();
    let ca_file = format!("ca_file: {}", other.dir.join("data/ca.pem").display());
    std::fs::write(device.config(), yaml.replace(&format!("ca_pins: [\"{pin}\"]"), &ca_file)).unwrap();
    expect(&device, 3, "not-trusted", "its certificate is not signed by the trusted CA", "ca_file");
    assert_eq!(server.audit().iter().filter(|e| e["event"] != "resource.created").count(), 0, "it told the server nothing");
}

/// Key and certificates of a server at 127.0.0.1 whose certificate ended at `end` (seconds since 1970), and the pin of its CA.
fn certificate_until(end: i64) -> (String, String) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let mut server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    server.not_before = rcgen::date_time_ymd(2020, 1, 1);
    server.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let certificate = server.signed_by(&key, &Issuer::new(ca, &ca_key)).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &ca_key.subject_public_key_info());
    let pin = digest.as_ref().iter().fold("sha256:".to_owned(), |pin, byte| format!("{pin}{byte:02x}"));
    let pem = [certificate.der(), ca_certificate.der()].map(|der| pem::certificate(der)).concat();
    (pem::private_key(&key.serialize_der()) + &pem, pin)
}

/// Another implementation of TLS than ours, presenting what is in `file`; also where it listens.
fn openssl_server(file: &Path, version: &str) -> (Running, String) {
    let mut server = Command::new(tool("openssl", "openssl"));
    server.args(["s_server", "-accept", "127.0.0.1:0", "-www", version, "-cert"]).arg(file).arg("-cert_chain").arg(file);
    let mut server = Running(server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut stdout = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ACCEPT ") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut stdout, &mut line).unwrap(), 0, "openssl s_server listens");
    }
    (server, line["ACCEPT ".len()..].trim().to_owned())
}

#[test]
fn the_server_speaks_an_older_tls() {
    let server = Server::start();
    let file = server.dir.join("server.pem");
    std::fs::write(&file, server_pem(&server)).unwrap();
    let (_process, addr) = openssl_server(&file, "-tls1_2");
    let device = device_at(&server, &addr, &server.ca_pin);
    expect(&device, 3, "not-boundkey", "it does not speak TLS 1.3", "check auth_server");
}

#[test]
fn the_server_certificate_has_expired() {
    let server = Server::start();
    let (pem, pin) = certificate_until(1_609_459_200);
    let file = server.dir.join("expired.pem");
    std::fs::write(&file, &pem).unwrap();
    let (_process, addr) = openssl_server(&file, "-tls1_3");
    let device = device_at(&server, &addr, &pin);
    expect(&device, 3, "server-expired", "the server's certificate expired at 2021-01-01T00:00:00Z", "this device's clock");
}

/// Expired since this program was built: perhaps only this device's clock is ahead. The server's own clock decides.
#[test]
fn the_server_certificate_has_expired_by_the_clock_of_the_server() {
    let server = Server::start();
    let end = Timestamp::from_secs(System.now().secs() - 1);
    let (pem, pin) = certificate_until(i64::try_from(end.secs()).unwrap());
    let challenge = json!({
        "challenge": "x", "key": null, "incarnation": "00112233-4455-6677-8899-aabbccddeeff", "rotate": false, "algorithms": ["EdDSA"],
        "expires": end.plus(Duration::from_secs(60)), "time": end.plus(Duration::from_secs(1)),
    });
    let imposter = Imposter::with_tls(&pem, move |_| http("200 OK", "application/json", &challenge.to_string()));
    let device = device_at(&server, &imposter.addr, &pin);
    expect(
        &device,
        3,
        "server-expired",
        &format!("expired at {end}, and the server's own clock is past it"),
        "look at the server",
    );
    assert!(!device.storage().join("state").exists(), "it made no key for such a server");
}

#[test]
fn a_server_that_takes_connections_and_says_nothing() {
    let server = Server::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let device = device_at(&server, &silent.local_addr().unwrap().to_string(), &server.ca_pin);
    expect(
        &device,
        3,
        "timed-out",
        "the server did not answer in time",
        "check the network, auth_server and that boundkey-auth runs",
    );
}

#[test]
fn the_server_certificate_is_for_another_name() {
    let server = Server::with_names(&["auth.example.com"]);
    let device = device_at(&server, &server.addr, &server.ca_pin);
    expect(&device, 3, "wrong-name", "the server's certificate is not for 127.0.0.1", "`boundkey-auth init --name`");
}

#[test]
fn what_answers_does_not_speak_our_tls() {
    let server = Server::start();
    let plain = Imposter::plain(|_| http("400 Bad Request", "text/html", "<html>"));
    let device = device_at(&server, &plain.addr, &server.ca_pin);
    let not_ours = "what answers is not an auth endpoint of this version: ";
    expect(&device, 3, "not-boundkey", &format!("{not_ours}it does not speak TLS"), "check auth_server");
    let silent = Imposter::plain(|_| Vec::new());
    device.configure_with(&silent.addr, &server.ca_pin, "  bound_keypair: {registration_secret: x}", "");
    expect(&device, 3, "cut-short", "the connection ended in the middle of the answer", "nothing was lost");
}

#[test]
fn answers_of_others_and_of_other_versions() {
    let server = Server::start();
    let device = device_at(&server, &server.addr, &server.ca_pin);
    let problem =
        json!({"type": "urn:boundkey:problem:unsupported-version", "title": "no such path in the API versions of this server"});
    let future = json!({"type": "urn:boundkey:problem:from-the-future", "title": "x", "detail": "something new"});
    let long = "x".repeat(1 << 20);
    let head = |length: usize| {
        format!("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nX-Long: {}\r\n\r\n", &long[..length]).into_bytes()
    };
    let cases: [(Vec<u8>, i32, &str, &str, &str); 12] = [
        (
            http("404 Not Found", "text/plain", "404"),
            3,
            "not-boundkey",
            "of this version: status 404 with text/plain",
            "another version",
        ),
        (http("302 Found", "text/html", ""), 3, "not-boundkey", "of this version: status 302 with text/html", "a proxy"),
        (http("502 Bad Gateway", "text/html", "<html>"), 3, "not-boundkey", "status 502 with text/html", "a proxy"),
        (
            http("404 Not Found", "application/problem+json", &problem.to_string()),
            1,
            "unsupported-version",
            "no such path",
            "same API version",
        ),
        (
            http("403 Forbidden", "application/problem+json", &future.to_string()),
            1,
            "unknown",
            "the server refused: something new",
            "upgrade the agent",
        ),
        (http("200 OK", "application/json", "{}"), 3, "not-boundkey", "an answer that cannot be read: ", "another version"),
        (
            http("200 OK", "application/json", &long),
            3,
            "not-boundkey",
            "the answer is longer than 131072 bytes",
            "check auth_server",
        ),
        (head(8000), 3, "not-boundkey", "of this version: status 404 with an answer without a type", "another version"),
        (head(9000), 3, "not-boundkey", "of this version: response header is too big", "check auth_server"),
        (head(long.len()), 3, "not-boundkey", "of this version: response header is too big", "check auth_server"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{\"challenge\":".to_vec(),
            3,
            "cut-short",
            "the connection ended in the middle of the answer",
            "nothing was lost",
        ),
        (b"220 mail.example ESMTP\r\n".to_vec(), 3, "not-boundkey", "what answers is not an auth endpoint", "check auth_server"),
    ];
    for (answer, code, kind, error, advice) in cases {
        let imposter = Imposter::with_tls(&server_pem(&server), move |_| answer.clone());
        device.configure_with(&imposter.addr, &server.ca_pin, "  bound_keypair: {registration_secret: x}", "");
        expect(&device, code, kind, error, advice);
    }
}

/// A connection that breaks in the middle of the join's answer: said as such, and nothing is lost.
#[test]
fn an_answer_cut_short() {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let device = device_at(&server, &proxy.addr, &server.ca_pin);
    device.join();
    proxy.mend();
    device.join();
    let whole = proxy.passed(Way::Down);
    proxy.mend();
    proxy.cut_after(Way::Down, whole - 100);
    expect(&device, 3, "cut-short", "the connection ended in the middle of the answer", "the next try gets the same answer");
    proxy.mend();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.replay"]);
    assert_eq!(device.status()["last_error"], Value::Null);
}

#[test]
fn locked_by_an_operator_or_as_a_copy() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let lock = server.ctl(&["lock", "--token", "gw", "--message", "in repair"]);
    expect(&device, 4, "locked", "the server refused, locked: in repair", "boundkeyctl exempt token/NAME");
    let name = lock.split_whitespace().find_map(|word| word.strip_prefix("lock/")).unwrap_or_else(|| panic!("{lock}")).to_owned();
    server.ctl(&["rm", &format!("lock/{name}")]);
    device.join();
    let thief = device.copy();
    thief.join();
    expect(
        &device,
        4,
        "join-state-mismatch",
        "two holders of one key: the token is now locked: ",
        "find out whether the key was copied",
    );
    expect(
        &thief,
        4,
        "locked",
        "token gw of bot gw is locked: two holders of one key, it may be stolen",
        "boundkeyctl exempt token/NAME",
    );
}

#[test]
fn no_recoveries_left() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    device.lose_certificate();
    expect(&device, 5, "no-recoveries-left", "no recoveries left: 1 used of 1 allowed", "raise recovery.limit of the token");
}

/// Wrong secret, no secret, deadline: one answer, so that a guesser learns nothing.
#[test]
fn a_registration_that_is_refused_does_not_tell_why() {
    let server = Server::start();
    let (wrong, late, none) = (server.device("wrong", 1), server.device("late", 1), server.device("none", 1));
    wrong.configure(&server, "  bound_keypair: {registration_secret: guess}", "");
    none.configure(&server, "", "");
    let deadline = |when: &str| server.token("late", &format!("    onboarding: {{must_register_before: {when}}}"));
    deadline("2026-01-01T00:00:00Z");
    let sentences = [&wrong, &late, &none].map(|device| {
        let (said, kind) = refused(device);
        assert_eq!((said.code, &*kind), (6, "registration-refused"), "{said:?}");
        assert!(said.advice.contains("must_register_before"), "{said:?}");
        assert_ne!(server.status(&device.token)["registration_secret"], Value::Null, "the secret is still good");
        said.error
    });
    assert!(sentences.iter().all(|sentence| *sentence == sentences[0]), "{sentences:?}");
    deadline("2096-01-01T00:00:00Z");
    late.join();
}

#[test]
fn a_token_that_is_not_there_or_not_ours() {
    let server = Server::start();
    let device = Device::new(&server, "nobody", "x");
    expect(&device, 1, "not-found", "no such token", "`boundkeyctl create`");
    // A token that knows another key.
    let (one, mut two) = (server.device("one", 1), server.device("two", 1));
    one.join();
    two.token = "one".into();
    two.configure(&server, "", "");
    expect(&two, 6, "unknown-key", "the server asks for proof of key ", "onboarding.token is this device's own token");
}

/// What the device knows of its own token outlives a try with another one: also the attempt whose answer was lost.
#[test]
fn a_token_that_was_a_mistake_costs_nothing() {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let mut device = device_at(&server, &proxy.addr, &server.ca_pin);
    let configure = |device: &mut Device, token: &str, secret: &str| {
        device.token = token.into();
        device.configure_with(&proxy.addr, &server.ca_pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
    };
    device.join();
    proxy.mend();
    device.join();
    let whole = proxy.passed(Way::Down);
    let lose_an_answer = |device: &Device| {
        proxy.mend();
        proxy.cut_after(Way::Down, whole - 100);
        assert_eq!(device.try_join().0, 3);
        proxy.mend();
    };
    lose_an_answer(&device);
    server.token("neighbour", "    recovery: {limit: 1}");
    configure(&mut device, "neighbour", "guess");
    for _ in 0..2 {
        expect(&device, 6, "registration-refused", "the registration was refused", "check the registration secret");
    }
    assert_eq!(device.status()["token"], "gw");
    configure(&mut device, "gw", "used");
    device.join();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.replay", "join.renewal"]);
    // No mistake this time.
    let secret = server.status("neighbour")["registration_secret"].as_str().expect("a secret").to_owned();
    configure(&mut device, "neighbour", &secret);
    lose_an_answer(&device);
    device.join();
    assert_eq!(device.status()["token"], "neighbour");
    let joins: Vec<_> = server.events("neighbour").into_iter().filter(|event| event != "join.refused").collect();
    assert_eq!(joins, ["join.first", "join.replay"]);
}

#[test]
fn a_device_that_lost_its_join_state() {
    let server = Server::start();
    let device = server.device("gw", 3);
    device.join();
    std::fs::remove_file(device.storage().join("state")).unwrap();
    expect(&device, 1, "join-state-required", "a join state is required", "`boundkeyctl exempt token/NAME`");
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]");
}

#[test]
fn a_configuration_that_is_wrong_is_named_by_file_line_and_field() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let good = std::fs::read_to_string(device.config()).unwrap();
    let file = device.config().display().to_string();
    for (find, replace, place, names) in [
        ("token: gw", "tokn: gw", 6, "unknown field `tokn`"),
        ("auth_server: 127.0.0.1", "auth_server: https://127.0.0.1", 2, "auth_server"),
        ("join_method: bound_keypair", "join_method: iam", 5, "join_method"),
        ("version: v1", "version: v2", 1, "version"),
        ("  join_method", " \tjoin_method", 5, ""),
    ] {
        std::fs::write(device.config(), good.replace(find, replace)).unwrap();
        let said = said(&run(&mut device.command(&["start", "--oneshot"])));
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.error.starts_with(&format!("{file}:{place}: ")) && said.error.contains(names), "{said:?}");
    }
    std::fs::remove_file(device.config()).unwrap();
    expect_unwritten(
        &run(&mut device.command(&["start", "--oneshot"])),
        2,
        "No such file or directory",
        "create it, or correct the path",
    );
    assert!(!device.storage().exists(), "nothing was made");
    let usage = run(agent().args(["start", "--sometimes"]));
    assert_eq!(usage.status.code(), Some(2));
}

/// `command` without root's power over file modes.
fn without_override(command: &Command) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return wrapped(Command::new(tool("env", "coreutils")), command);
    }
    let mut wrapper = Command::new(tool("setpriv", "util-linux"));
    wrapper.arg("--bounding-set=-dac_override,-dac_read_search");
    wrapped(wrapper, command)
}

/// `command` with a file system of its own on `dir`, which goes with it. `None` where the system does not let tests mount.
fn with_mount(command: &Command, dir: &Path, options: &str) -> Option<Command> {
    let root = nix::unistd::geteuid().is_root();
    let namespace = |script: &str| {
        let mut unshare = Command::new(tool("unshare", "util-linux"));
        unshare.args([if root { "-m" } else { "-rm" }, "sh", "-c", script]).arg(options).arg(dir);
        unshare
    };
    std::fs::create_dir_all(dir).unwrap();
    if !run(&mut namespace("mount -t tmpfs -o \"$0\" boundkey-test \"$1\"")).status.success() {
        return None;
    }
    Some(wrapped(namespace("mount -t tmpfs -o \"$0\" boundkey-test \"$1\" && shift && exec \"$@\""), command))
}

#[test]
fn storage_that_may_not_be_used() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = || device.command(&["start", "--oneshot"]);
    let denied = "run it as the user that boundkey runs as; let that user read and write storage.path";
    let mode = |mode| std::fs::set_permissions(device.storage(), std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::create_dir(device.storage()).unwrap();
    for forbidden in [0o000, 0o500] {
        mode(forbidden);
        expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    }
    mode(0o700);
    device.join();
    mode(0o000);
    expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    expect_unwritten(&run(&mut without_override(&device.command(&["status"]))), 8, "Permission denied", denied);
    mode(0o700);
    std::fs::set_permissions(device.storage().join("state"), std::fs::Permissions::from_mode(0o000)).unwrap();
    expect_unwritten(&run(&mut without_override(&join())), 8, "Permission denied", denied);
    assert_eq!(server.events("gw"), ["join.first"], "unreadable is never taken for absent");
}

#[test]
fn storage_that_is_read_only() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    if let Some(mut join) = with_mount(&join, &device.storage(), "ro") {
        expect_unwritten(&run(&mut join), 8, "Read-only file system", "mount the file system of storage.path writable");
    } else {
        // Where nothing can be mounted there is still a file system that cannot be written to.
        let yaml = std::fs::read_to_string(device.config()).unwrap();
        std::fs::write(device.config(), yaml.replace(&device.storage().display().to_string(), "/proc/boundkey")).unwrap();
        let said = said(&run(&mut device.command(&["start", "--oneshot"])));
        assert_eq!(said.code, 8, "{said:?}");
    }
    assert_eq!(server.events("gw"), [""; 0], "it did not begin what it could not finish");
}

#[test]
fn a_limit_on_the_size_of_files() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    // The key is what it writes first; where there is one, the state.
    for advice in ["make room", "lift the limit on the size of files"] {
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
        expect_unwritten(&run(&mut wrapped(limited, &join)), 8, "File too large", advice);
        assert!(run(&mut device.command(&["keypair", "create"])).status.success());
    }
    assert_eq!(server.events("gw"), [""; 0]);
    device.join();
}

/// A file system with room for less and less of what a join writes: whatever does not fit, it is said, and the device goes on later.
#[test]
fn storage_that_is_full() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    let mut refusals = 0;
    for pages in 1.. {
        let options = format!("size={}k", 4 * pages);
        let Some(mut small) = with_mount(&join, &device.storage(), &options) else {
            eprintln!("NOT TRIED: nothing can be mounted here");
            return;
        };
        let output = run(&mut small);
        if output.status.success() {
            break;
        }
        expect_unwritten(&output, 8, "No space left on device", "make room on the file system of storage.path; nothing was lost");
        refusals += 1;
        // The storage went with its namespace, and with it the key: another token for the next.
        server.ctl(&["reset", "token/gw"]);
        let secret = server.status("gw")["registration_secret"].as_str().unwrap().to_owned();
        device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
    }
    assert!(refusals >= 3, "key, state and identity each had to fit");
}

/// The same for the number of files: it is a key that does not fit then, and still the storage's fault.
#[test]
fn storage_without_room_for_a_key() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let join = device.command(&["start", "--oneshot"]);
    // The directory and its lock file. Where nothing can be mounted, `storage_that_is_full` has to do.
    if let Some(mut small) = with_mount(&join, &device.storage(), "nr_inodes=2") {
        expect_unwritten(&run(&mut small), 8, "No space left on device", "make room on the file system of storage.path");
    } else {
        not_tried("storage without inodes: this user may not mount");
    }
    device.join();
}

#[test]
fn a_state_file_of_which_nothing_holds_is_left_alone() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let state = device.storage().join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    for slot in [0, 4096] {
        bytes[slot + 100] ^= 1;
    }
    std::fs::write(&state, &bytes).unwrap();
    for command in [&["start", "--oneshot"][..], &["status"], &["keypair", "create"]] {
        expect_unwritten(
            &run(&mut device.command(command)),
            8,
            "state: neither slot holds; the first is torn or damaged",
            "nothing was overwritten",
        );
        assert_eq!(std::fs::read(&state).unwrap(), bytes);
    }
    assert_eq!(server.events("gw"), ["join.first"]);
    // What the advice says works.
    std::fs::rename(&state, device.dir.join("state.bad")).unwrap();
    server.ctl(&["exempt", "token/gw", "--recoveries", "1"]);
    device.join();
    assert_eq!(server.status("gw")["recovery_count"], 2);
}

#[test]
fn one_damaged_slot_is_told_and_costs_nothing() {
    let server = Server::start();
    let device = server.device("gw", 1);
    for slot in [0, 4096] {
        device.join();
        device.join();
        let state = device.storage().join("state");
        let good = std::fs::read(&state).unwrap();
        let mut bytes = good.clone();
        bytes[slot + 100] ^= 1;
        std::fs::write(&state, &bytes).unwrap();
        let (code, stderr) = device.try_join();
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("WARN one of the two slots of the state file is torn or damaged"), "{stderr}");
    }
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

#[test]
fn a_second_agent_on_the_same_storage() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let daemon = device.daemon();
    wait_for("the first join", || server.events("gw") == ["join.first"]);
    for command in [&["start", "--oneshot"][..], &["start"], &["keypair", "create", "--overwrite"]] {
        expect_unwritten(&run(&mut device.command(command)), 8, "is in use by another boundkey", "stop the other agent");
    }
    drop(daemon);
    device.join();
}

/// FAT may keep the name of a file that is renamed in a power cut, and nothing of its content; some tokens one half of a key. What was
/// never whole was never used: it keeps nobody out, and is left alone.
#[test]
fn a_new_key_that_was_made_in_part_is_passed_over() {
    let server = Server::start();
    let device = server.device("gw", 1);
    std::fs::create_dir(device.storage()).unwrap();
    let part = |n: u32, content: &[u8]| {
        let file = device.storage().join(format!("key-bound-{n}.pem"));
        std::fs::write(&file, content).unwrap();
        file
    };
    let parts = [part(1, b""), part(3, b"-----BEGIN PRIV")];
    std::fs::rename(&parts[1], parts[1].with_extension("later")).unwrap();
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("key bound-1 was not made whole, and is passed over: "), "{code} {said}");
    std::fs::rename(parts[1].with_extension("later"), &parts[1]).unwrap();
    server.ctl(&["rotate", "token/gw"]);
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("key bound-3 was not made whole"), "{code} {said}");
    assert_eq!(device.status()["keystore"]["key"], "bound-4");
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "key.rotated"]);
    assert_eq!(parts.map(|file| std::fs::read(file).unwrap()), [&b""[..], b"-----BEGIN PRIV"]);
}

#[test]
fn a_key_that_cannot_be_used() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let key = std::fs::read_dir(device.storage()).unwrap().map(|entry| entry.unwrap().path());
    let key = key.into_iter().find(|path| path.to_string_lossy().contains("bound-1")).expect("a key file");
    let whole = std::fs::read(&key).unwrap();
    let kept = |device: &Device| std::fs::read_dir(device.storage()).unwrap().count();
    let files = kept(&device);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o000)).unwrap();
    let output = run(&mut without_override(&device.command(&["start", "--oneshot"])));
    expect_unwritten(&output, 7, "key store: ", "let the user that boundkey runs as use it: file mode");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::write(&key, &whole[..whole.len() / 2]).unwrap();
    expect(&device, 7, "keystore", "key store: ", "nothing was overwritten; restore the key");
    std::fs::remove_file(&key).unwrap();
    expect(&device, 7, "keystore", "key store: ", "restore the key, or run `boundkeyctl reset token/NAME`");
    assert!(kept(&device) <= files, "no new key was made in its place");

    std::fs::write(&key, &whole).unwrap();
    device.join();
    assert_eq!(server.status("gw")["recovery_count"], 1);
}
