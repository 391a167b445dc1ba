//! The server program as an operator runs it: made once, started once, ended cleanly or not, and unmoved by what strangers send.
#![cfg(feature = "auth")]

#[cfg(feature = "agent")]
#[path = "server/flood.rs"]
mod flood;
#[path = "server/strangers.rs"]
mod strangers;
mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use support::strace::{count_calls, killed_at, was_killed};
use support::wall_clock::WallClock;
use support::{Server, TempDir, copy_program, is_root, run, success, tool, wait_for};

fn auth(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
    command.args(args).arg("--data-dir").arg(dir);
    command
}

fn init(dir: &Path) -> Command {
    auth(&["init", "--cluster-name", "test.example", "--format", "json"], dir)
}

/// A command that must fail with `code`: what failed and what to do next, on two lines.
fn fails(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("  "), "{said}");
    said
}

/// Every file below `dir`, with what is in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.is_file() {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

/// A TLS connection to the server, its certificate checked.
fn connect(server: &Server) -> StreamOwned<ClientConnection, TcpStream> {
    let stream = TcpStream::connect(&server.addr).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    tls_over(stream, server)
}

fn tls_over(stream: TcpStream, server: &Server) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.dir.join("data/ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    StreamOwned::new(connection, stream)
}

/// An answer: status, head and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn problem(&self) -> Value {
        assert!(self.head.to_ascii_lowercase().contains("content-type: application/problem+json\r\n"), "{}", self.head);
        let problem: Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!(problem["status"], self.status, "{problem}");
        problem
    }
}

/// Reads what is left of a connection.
fn answer(mut stream: impl std::io::Read) -> Answer {
    let mut bytes = Vec::new();
    // A server that refuses a body closes while the rest of it is on its way: what came before counts.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an HTTP answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: format!("{head}\r\n"), body: body.into() }
}

/// One request on a connection of its own.
fn ask(server: &Server, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = connect(server);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(body.as_bytes()); // what is too long need not be taken
    answer(stream)
}

/// By a clock in 1970 the cluster would have ended before it began.
#[test]
fn init_wants_a_clock_that_was_set() {
    let dir = TempDir::new("init");
    let data = dir.join("data");
    let said = fails(&run(init(&data).envs(WallClock::showing(60).env())), 1);
    assert!(said.contains("the system clock says 1970-01-01T") && said.contains("set the clock"), "{said}");
    assert!(!data.exists());
    success(&mut init(&data));
}

#[test]
fn init_is_done_once() {
    let dir = TempDir::new("init");
    let data = dir.join("data");
    let made = success(&mut init(&data));
    let json: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert!(json["ca_pin"].as_str().unwrap().starts_with("sha256:"), "{json}");
    for path in [&data, &data.join("keys")] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700, "{}", path.display());
    }
    let before = files(&data);
    for path in before.keys() {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "{}", path.display());
    }
    let said = fails(&run(&mut init(&data)), 1);
    assert!(said.contains("holds a cluster already"), "{said}");
    assert_eq!(files(&data), before, "nothing was touched");
    let pin = success(
        Command::new("sh")
            .arg("-c")
            .arg("openssl x509 -in $0 -noout -pubkey | openssl pkey -pubin -outform der | sha256sum")
            .arg(data.join("ca.pem")),
    );
    assert!(json["ca_pin"] == format!("sha256:{}", &String::from_utf8_lossy(&pin.stdout)[..64]), "the pin is the SPKI's SHA-256");
}

#[test]
fn what_init_cannot_use_is_named() {
    let dir = TempDir::new("init");
    let data = dir.join("data");
    for name in ["", "https://auth.example.com", "auth.example.com:3025"] {
        let said = fails(&run(init(&data).args(["--name", name])), 2);
        assert!(said.contains("is not a DNS name\n  write names such as auth.example.com"), "{said}");
    }
    success(&mut init(&data));
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let said = fails(&run(&mut init(&file)), 1);
    assert!(said.contains("give --data-dir a directory"), "{said}");
}

#[test]
fn an_init_that_was_interrupted_goes_on() {
    let dir = TempDir::new("init");
    let whole = dir.join("whole");
    let calls = ["fsync", "fdatasync", "renameat", "mkdirat"];
    let counts = count_calls(&init(&whole), &calls);
    assert!(counts["fsync"] >= 10, "{counts:?}");
    let mut deaths = 0;
    for (call, count) in counts {
        for nth in 1..=count {
            let data = dir.join(&format!("{call}-{nth}"));
            deaths += usize::from(was_killed(&run(&mut killed_at(&init(&data), &call, nth))));
            if !data.join("cluster.json").exists() {
                let said = fails(&run(&mut auth(&["start", "--listen", "127.0.0.1:0"], &data)), 1);
                assert!(said.contains("boundkey-auth init"), "half a cluster is not started: {said}");
                success(&mut init(&data));
            }
            // What there is now opens, and presents the pin that it told.
            let ca = std::fs::read(data.join("ca.pem")).unwrap();
            assert!(!ca.is_empty());
            let mut server = Server::over(&data);
            assert_eq!(ask(&server, "GET", "/v1/ca", "").body.as_bytes(), ca);
            assert!(server.stop().success());
        }
    }
    assert!(deaths > 20, "{deaths} deaths");
}

/// A cluster whose `cluster.json` is lost is not made anew: every device would be a stranger to it.
#[test]
fn an_init_over_what_is_left_of_a_cluster_is_refused() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    server.kill();
    let data = server.dir.join("data");
    let lost = server.dir.join("cluster.json");
    std::fs::rename(data.join("cluster.json"), &lost).unwrap();
    for command in [&mut server.command(), &mut init(&data)] {
        let said = fails(&run(command), 1);
        assert!(said.contains("holds the database of a cluster, and no cluster.json\n  bring cluster.json back"), "{said}");
    }
    std::fs::rename(lost, data.join("cluster.json")).unwrap();
    server.run();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

#[test]
fn start_needs_a_cluster_of_its_own() {
    let dir = TempDir::new("start");
    let said = fails(&run(&mut auth(&["start", "--listen", "127.0.0.1:0"], &dir.join("none"))), 1);
    assert!(said.contains("holds no cluster\n  make it with `boundkey-auth init"), "{said}");
    let server = Server::start();
    let data = server.dir.join("data");
    let said = fails(&run(&mut auth(&["start", "--listen", "127.0.0.1:0"], &data)), 1);
    assert!(said.contains("is in use by another boundkey-auth\n  stop the other server first"), "{said}");
    let other = Server::init(&[]);
    let said = fails(&run(&mut auth(&["start", "--listen", &server.addr], &other.dir.join("data"))), 1);
    assert!(said.contains(&server.addr), "an address that is taken: {said}");
    assert_eq!(ask(&server, "GET", "/v1/ping", "").status, 200, "the first server is unmoved");
    let usage = run(auth(&["start", "--listen", "somewhere"], &data).env_remove("BOUNDKEY_LOG"));
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn ping_and_ca_tell_who_it_is() {
    let server = Server::start();
    let ping = ask(&server, "GET", "/v1/ping", "");
    let json: Value = serde_json::from_str(&ping.body).unwrap();
    assert_eq!(
        (ping.status, &json["cluster"], &json["version"]),
        (200, &json!("test.example"), &json!(env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(json["algorithms"], json!(["EdDSA", "ES256"]));
    assert!(json["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{json}");
    let ca = ask(&server, "GET", "/v1/ca", "");
    assert!(ca.head.contains("application/pem-certificate-chain"), "{}", ca.head);
    assert_eq!(ca.body, std::fs::read_to_string(server.dir.join("data/ca.pem")).unwrap());
}

#[test]
fn what_strangers_send_is_answered_with_problems() {
    let server = Server::start();
    let long = "x".repeat(64 * 1024 + 1);
    for (method, path, body, status, kind) in [
        ("GET", "/v2/ping", "", 404, "unsupported-version"),
        ("GET", "/", "", 404, "unsupported-version"),
        ("PUT", "/v1/join", "{}", 400, "bad-request"),
        ("POST", "/v1/join", "{}", 400, "bad-request"),
        ("POST", "/v1/join", "no JSON", 400, "bad-request"),
        ("POST", "/v1/join/challenge", r#"{"token":"nobody"}"#, 404, "not-found"),
        ("POST", "/v1/join", &long, 400, "bad-request"),
    ] {
        let answer = ask(&server, method, path, body);
        let problem = answer.problem();
        assert_eq!(
            (answer.status, &problem["type"]),
            (status, &json!(format!("urn:boundkey:problem:{kind}"))),
            "{method} {path}: {problem}"
        );
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    }
    assert_eq!(server.audit(), [json!(null); 0], "strangers write nothing into the log of joins that have no token");
}

#[test]
fn slow_and_endless_clients_are_cut_off() {
    let server = Server::start();
    // A body that never ends is refused when it is too long, not when it is whole.
    let mut endless = connect(&server);
    endless.write_all(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let sent = (0..1000).take_while(|_| endless.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(sent < 1000 || answer(endless).status == 400);
    // A head that never ends: one byte now and then. Others are served meanwhile.
    let mut slow = connect(&server);
    slow.write_all(b"GET /v1/ping HTTP/1.1\r\nX-Slow: ").unwrap();
    let mut silent = TcpStream::connect(&server.addr).unwrap();
    silent.set_read_timeout(Some(support::PATIENCE)).unwrap();
    assert_eq!(ask(&server, "GET", "/v1/ping", "").status, 200);
    // No TLS handshake within its time: the connection ends, and it is not our own patience that does.
    let mut byte = [0];
    let ended = silent.read(&mut byte);
    assert!(!matches!(&ended, Ok(1..)) && !is_timeout(&ended), "the handshake has its limit: {ended:?}");
    slow.sock.set_nonblocking(true).unwrap();
    wait_for("the slow head to be cut off", || {
        let _ = slow.write_all(b"x");
        !is_timeout(&slow.read(&mut byte))
    });
}

/// Whether nothing came while we waited.
fn is_timeout(read: &std::io::Result<usize>) -> bool {
    read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn older_tls_and_plain_text_are_refused() {
    let server = Server::start();
    let ca = server.dir.join("data/ca.pem").display().to_string();
    let client = |version: &str| {
        run(Command::new(tool("openssl", "openssl")).args([
            "s_client",
            "-connect",
            &server.addr,
            "-verify_return_error",
            "-CAfile",
            &ca,
            version,
        ]))
    };
    let modern = client("-tls1_3");
    assert!(modern.status.success(), "{}", String::from_utf8_lossy(&modern.stderr));
    assert!(String::from_utf8_lossy(&modern.stdout).contains("Verify return code: 0 (ok)"));
    assert!(!client("-tls1_2").status.success());
    let mut plain = TcpStream::connect(&server.addr).unwrap();
    plain.write_all(b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said); // an end or a reset
    assert!(!said.starts_with(b"HTTP"));
}

#[test]
fn sigterm_drains_and_sigkill_loses_nothing() {
    let mut server = Server::start();
    server.token("gw", "    recovery: {limit: 1}");
    // A request under way: its head has arrived, its body not yet.
    let mut stream = connect(&server);
    let body = r#"{"token":"gw"}"#;
    stream
        .write_all(
            format!(
                "POST /v1/join/challenge HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        )
        .unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let addr = server.addr.clone();
    server.process().signal(nix::sys::signal::Signal::SIGTERM);
    wait_for("the port to close", || TcpStream::connect(&addr).is_err());
    stream.write_all(body.as_bytes()).unwrap();
    let answer = answer(stream);
    assert!(answer.status == 200 && answer.body.contains("\"challenge\""), "{}", answer.body);
    assert!(server.stop().success(), "{}", server.log());
    assert!(!server.dir.join("data/operator.sock").exists());

    server.run();
    let (token, events) = (server.get("token/gw"), server.audit());
    server.kill();
    server.run();
    assert_eq!((server.get("token/gw"), server.audit()), (token, events));
    assert_eq!(ask(&server, "GET", "/v1/ping", "").status, 200);
}

#[test]
fn the_address_is_told_and_the_socket_is_private() {
    let server = Server::start();
    let port: u16 = server.addr.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert_ne!(port, 0);
    assert_eq!(std::fs::read_to_string(server.dir.join("addr")).unwrap(), format!("{}\n", server.addr));
    let socket = server.dir.join("data/operator.sock").metadata().unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o777, 0o600);
}

/// Another user may not use the operator's API even where file modes would allow it: the kernel tells the server which user it
/// is.
#[test]
fn another_user_is_not_an_operator() {
    if !is_root("another user as the operator") {
        // Only root can become another user; root in turn may operate, by the same rule.
        let server = Server::start();
        assert_eq!(server.ctl(&["get", "token", "--format", "json"]).trim(), "[]");
        return;
    }
    let server = Server::start();
    for (path, mode) in [("", 0o755), ("data", 0o755), ("data/operator.sock", 0o666)] {
        std::fs::set_permissions(server.dir.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // A copy where anyone can run it: the build directory may be private.
    let program = server.dir.join("boundkeyctl");
    copy_program(env!("CARGO_BIN_EXE_boundkeyctl"), &program);
    let mut other = Command::new(tool("setpriv", "util-linux"));
    other
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("--socket")
        .arg(server.dir.join("data/operator.sock"));
    let output = run(other.args(["get", "token"]));
    let said = fails(&output, 1);
    assert!(said.contains("uid 65534 is neither root nor the user that boundkey-auth runs as"), "{said}");
    assert_eq!(server.ctl(&["get", "token", "--format", "json"]).trim(), "[]");
}
