//! What answers is not the server, or not one of ours.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use boundkey::join::endpoint::AUTH_ENDPOINT;
use boundkey::platform::pem;
use boundkey::platform::time::{Clock as _, System, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

use super::support::imposter::Imposter;
use super::support::proxy::Proxy;
use super::support::{Running, Server, tool};
use super::{device_at, expect};

/// Key and certificates of the server, as it presents them.
pub fn server_pem(server: &Server) -> String {
    ["tls.pem", "ca.pem"].map(|name| std::fs::read_to_string(server.dir.join("data").join(name)).unwrap()).concat()
}

pub fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
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

/// The extended key usages of an auth endpoint, as the protocol writes them down.
pub fn auth_endpoint_usages() -> CustomExtension {
    let usages = [&b"\x30\x2f\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x23"[..], AUTH_ENDPOINT].concat();
    CustomExtension::from_oid_content(&[2, 5, 29, 37], usages)
}

/// Key and certificates of a server at 127.0.0.1 whose certificate ended at `end` (seconds since 1970), and the pin of its CA.
fn certificate_until(end: i64) -> (String, String) {
    let ([pem], pin) = certificates_until([end]);
    (pem, pin)
}

/// The same for each of these moments, by one CA.
fn certificates_until<const N: usize>(ends: [i64; N]) -> ([String; N], String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, &ca_key);
    let pems = ends.map(|end| {
        let key = KeyPair::generate().unwrap();
        let mut server = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        server.custom_extensions = vec![auth_endpoint_usages()];
        server.not_before = rcgen::date_time_ymd(2020, 1, 1);
        server.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
        let certificate = server.signed_by(&key, &issuer).unwrap();
        let pem = [certificate.der(), ca_certificate.der()].map(|der| pem::certificate(der)).concat();
        pem::private_key(&key.serialize_der()) + &pem
    });
    let digest = ring::digest::digest(&ring::digest::SHA256, &ca_key.subject_public_key_info());
    let pin = digest.as_ref().iter().fold("sha256:".to_owned(), |pin, byte| format!("{pin}{byte:02x}"));
    (pems, pin)
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

/// Each connection is judged: the server's word on the time over one of them says nothing of another certificate on the next.
#[test]
fn an_expired_certificate_on_the_joins_connection_is_not_vouched_for_by_another_one() {
    let server = Server::start();
    let now = i64::try_from(System.now().secs()).unwrap();
    let ([first, second], pin) = certificates_until([now - 1, now - 2]);
    let told = Timestamp::from_secs(System.now().secs() - 3);
    let challenge = json!({
        "challenge": "x", "key": null, "incarnation": "00112233-4455-6677-8899-aabbccddeeff", "rotate": false, "algorithms": ["EdDSA"],
        "expires": told.plus(Duration::from_secs(60)), "time": told,
    });
    for (identities, heard) in [([&*first, &*second], 1), ([&*first, &*first], 2)] {
        let requests = Arc::new(AtomicUsize::new(0));
        let (counter, challenge) = (requests.clone(), challenge.clone());
        let imposter = Imposter::with_identities(&identities, move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            if request.starts_with("POST /v1/join/challenge ") {
                return http("200 OK", "application/json", &challenge.to_string());
            }
            http("502 Bad Gateway", "text/html", "<html>")
        });
        let device = device_at(&server, &imposter.addr, &pin);
        let kind = if heard == 1 { "server-expired" } else { "not-boundkey" };
        expect(&device, 3, kind, "", "server");
        assert_eq!(requests.load(Ordering::Relaxed), heard);
    }
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
    expect(&device, 3, "unreachable", "closed before TLS was established; the server may be busy", "the daemon keeps trying");
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
            "the connection ended before the whole answer had come",
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

/// A server with more to do than it can is no failure: the agent comes again when it was told to.
#[test]
fn a_busy_server_is_waited_for() {
    let server = Server::start();
    let told = AtomicUsize::new(0);
    let problem = |name: &str| json!({"type": format!("urn:boundkey:problem:{name}"), "title": name}).to_string();
    let (busy, gone) = (problem("busy"), problem("not-found"));
    let imposter = Imposter::with_tls(&server_pem(&server), move |_| match told.fetch_add(1, Ordering::Relaxed) {
        0..3 => http("503 Service Unavailable", "application/problem+json", &busy),
        _ => http("404 Not Found", "application/problem+json", &gone),
    });
    let device = device_at(&server, &imposter.addr, &server.ca_pin);
    expect(&device, 1, "not-found", "the server refused: not-found", "check onboarding.token");
}

/// A connection that breaks in the middle of the join's answer: said as such, and nothing is lost.
#[test]
fn an_answer_cut_short() {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let device = device_at(&server, &proxy.addr, &server.ca_pin);
    device.join();
    proxy.cut_answers_of(|| device.join(), 100);
    expect(&device, 3, "cut-short", "the connection ended before the whole answer had come", "the next try gets the same answer");
    proxy.mend();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.replay"]);
    assert_eq!(device.status()["last_error"], Value::Null);
}
