//! SSH host certificates: a real sshd serves them, and a real ssh that knows nothing but the authority believes them.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Device, Running, Server, run, success, tool, wait_for};

/// A server that lets hosts have their token's name and `localhost`, and a Node that asks for both.
fn node() -> (Server, Device) {
    // The names of the server are for no device: `localhost` must not be one of them.
    let server = Server::with_names(&["127.0.0.1"]);
    server.create(
        "kind: role\nversion: v1\nmetadata: {name: ssh}\n\
         spec: {max_ttl: 2h, allow: {ssh_principals: [\"{{token.name}}.fleet.example\", localhost]}}\n",
    );
    server.host_token("node", "[Node]", "[ssh]", "    recovery: {limit: 3}");
    let secret = server.status("node")["registration_secret"].as_str().expect("a secret").to_owned();
    let device = Device::new(&server, "node", &secret);
    configure(&server, &device, "[Node.fleet.example, localhost]", "");
    (server, device)
}

/// Has `device` ask for an SSH host certificate.
fn configure(server: &Server, device: &Device, principals: &str, more: &str) {
    let secret = server.status(&device.token)["registration_secret"].as_str().unwrap_or("used").to_owned();
    let output = format!(
        "outputs:\n  - type: ssh_host\n    destination: {{type: directory, path: {}}}\n    principals: {principals}\n{more}",
        ssh_dir(device).display()
    );
    device.configure(server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &output);
}

fn ssh_dir(device: &Device) -> PathBuf {
    device.dir.join("ssh")
}

/// A `known_hosts` with the authority of `server` for all hosts, and nothing else.
fn known_hosts(server: &Server) -> PathBuf {
    let (head, key) = server.http_get("/v1/ca/ssh-host");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/plain"), "{head}");
    let path = server.dir.join("known_hosts");
    std::fs::write(&path, format!("@cert-authority * {}", String::from_utf8(key).expect("text"))).expect("known_hosts");
    path
}

/// sshd with the key and certificate of `device`, on a port of its own.
struct Sshd {
    port: u16,
    log: PathBuf,
    _process: Running,
}

impl Sshd {
    fn start(device: &Device) -> Self {
        // What sshd wants where it runs as root.
        if nix::unistd::geteuid().is_root() {
            std::fs::create_dir_all("/run/sshd").expect("/run/sshd");
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        let (dir, keys) = (device.dir.path().display(), ssh_dir(device));
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nPidFile {dir}/sshd.pid\nUsePAM no\nAuthorizedKeysFile none\n\
             HostKey {keys}/ssh_host_ecdsa_key\nHostCertificate {keys}/ssh_host_ecdsa_key-cert.pub\n",
            keys = keys.display()
        );
        let file = device.dir.join("sshd_config");
        std::fs::write(&file, config).expect("sshd_config");
        let log = device.dir.join("sshd.log");
        let mut command = Command::new(tool("sshd", "openssh-server"));
        command.args(["-D", "-E"]).arg(&log).arg("-f").arg(file);
        let sshd = Self { port, log, _process: Running(command.spawn().expect("sshd starts")) };
        sshd.wait_for_start(1);
        sshd
    }

    /// Waits until it listens for the `nth` time.
    fn wait_for_start(&self, nth: usize) {
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        wait_for("sshd", || log().matches("Server listening").count() == nth);
        assert!(!log().contains("error"), "{}", log());
    }

    /// What ssh says of the host `name`; nobody can log in, so what counts is whether it came so far as to try.
    fn visit(&self, name: &str, known_hosts: &Path) -> String {
        self.visit_with(name, known_hosts, "none")
    }

    fn visit_with(&self, name: &str, known_hosts: &Path, revoked: &str) -> String {
        let mut ssh = Command::new(tool("ssh", "openssh-client"));
        ssh.args(["-v", "-4", "-F", "none", "-p", &self.port.to_string(), "-o", "StrictHostKeyChecking=yes"]);
        ssh.args(["-o", "GlobalKnownHostsFile=none", "-o", "BatchMode=yes", "-o", "PreferredAuthentications=none"]);
        ssh.args(["-o", &format!("RevokedHostKeys={revoked}")]);
        let output = run(ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display())).args([name, "true"]));
        assert_eq!(output.status.code(), Some(255));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn is_trusted(said: &str) -> bool {
    // Authentication begins once the host is believed.
    let trusted = said.contains("Permission denied");
    assert_ne!(trusted, said.contains("Host key verification failed"), "{said}");
    assert!(!trusted || said.contains("is known and matches the ECDSA-CERT host certificate"), "{said}");
    trusted
}

/// The serial number of the certificate that ssh was shown.
fn serial(said: &str) -> u64 {
    let after = said
        .split("Server host certificate: ")
        .nth(1)
        .and_then(|rest| rest.split("serial ").nth(1))
        .unwrap_or_else(|| panic!("{said}"));
    after.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn a_real_ssh_trusts_a_real_sshd_by_the_authority_alone() {
    let (server, device) = node();
    device.join();
    let sshd = Sshd::start(&device);
    let known = known_hosts(&server);
    let said = sshd.visit("localhost", &known);
    assert!(is_trusted(&said), "{said}");
    let host = server.status("node")["bound_host_id"].as_str().expect("a host id").to_owned();
    assert!(said.contains(&format!("\"token/node host/{host}\"")), "{said}");

    // A name that is not in the certificate, and an authority that is not the one.
    let said = sshd.visit("127.0.0.1", &known);
    assert!(!is_trusted(&said) && said.contains("name is not a listed principal"), "{said}");
    let other = Server::start();
    assert!(!is_trusted(&sshd.visit("localhost", &known_hosts(&other))));
}

#[test]
fn a_renewed_certificate_is_served_after_the_reload() {
    let (server, device) = node();
    device.join();
    let sshd = Sshd::start(&device);
    let known = known_hosts(&server);
    let first = serial(&sshd.visit("localhost", &known));
    let reload = format!("    reload: {{pid_file: {}}}\n", device.dir.join("sshd.pid").display());
    configure(&server, &device, "[localhost]", &reload);
    device.join();
    sshd.wait_for_start(2);
    let said = sshd.visit("localhost", &known);
    assert!(is_trusted(&said), "{said}");
    assert_ne!(serial(&said), first);
}

#[test]
fn a_lock_takes_the_certificate_away_from_clients_that_look() {
    let (server, device) = node();
    device.join();
    let sshd = Sshd::start(&device);
    let known = known_hosts(&server);
    let list = server.dir.join("revoked");
    let look = || {
        let (head, body) = server.http_get("/v1/crl/ssh-host");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        std::fs::write(&list, body).expect("a file");
        sshd.visit_with("localhost", &known, &list.display().to_string())
    };
    assert!(is_trusted(&look()));
    let host = server.status("node")["bound_host_id"].as_str().expect("a host id").to_owned();
    for (option, name) in [("--host", &*host), ("--token", "node")] {
        server.ctl(&["lock", option, name]);
        let said = look();
        assert!(!is_trusted(&said) && said.contains("revoked by file"), "{said}");
        let locks: serde_json::Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
        server.ctl(&["rm", &format!("lock/{}", locks[0]["metadata"]["name"].as_str().expect("a name"))]);
        assert!(is_trusted(&look()));
    }
    // sshd still serves the certificate before the one that is made now.
    device.join();
    server.ctl(&["rm", "token/node"]);
    wait_for("the deletion to show", || !is_trusted(&look()));
}

#[test]
fn four_files_as_openssh_reads_them() {
    let (server, device) = node();
    device.join();
    let dir = ssh_dir(&device);
    let keygen = |args: &[&str]| {
        let mut command = Command::new(tool("ssh-keygen", "openssh-client"));
        String::from_utf8(success(command.args(args).current_dir(&dir)).stdout).expect("text")
    };
    let mode = std::fs::metadata(dir.join("ssh_host_ecdsa_key")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let public = std::fs::read_to_string(dir.join("ssh_host_ecdsa_key.pub")).expect("a public key");
    assert_eq!(keygen(&["-y", "-f", "ssh_host_ecdsa_key"]).trim(), public.trim(), "of the private key");
    let said = keygen(&["-L", "-f", "ssh_host_ecdsa_key-cert.pub"]);
    for line in ["Type: ecdsa-sha2-nistp256-cert-v01@openssh.com host certificate", "node.fleet.example\n", "localhost\n"] {
        assert!(said.contains(line), "{said}");
    }
    let authority = std::fs::read_to_string(dir.join("ssh_host_ca.pub")).expect("the authority");
    assert!(String::from_utf8(server.http_get("/v1/ca/ssh-host").1).expect("text").starts_with(authority.trim()));
    let print = keygen(&["-l", "-f", "ssh_host_ca.pub"]);
    assert!(said.contains(print.split(' ').nth(1).expect("a fingerprint")), "{said}");
}

#[test]
fn a_certificate_takes_a_node_and_a_role_that_allows_the_name() {
    let (server, device) = node();
    configure(&server, &device, "[localhost, other.fleet.example]", "");
    let (code, said) = device.try_join();
    assert!(code == 1 && said.contains("other.fleet.example is not allowed by role ssh of token node"), "{said}");
    configure(&server, &device, "[localhost]", "");
    for (roles, allowed_by, why) in [
        ("[App]", "[ssh]", "it is for tokens with role Node"),
        ("[Node]", "", "localhost is not allowed: token node has no role that says what it may have"),
    ] {
        server.host_token("node", roles, allowed_by, "    recovery: {limit: 3}");
        let (code, said) = device.try_join();
        assert!(code == 1 && said.contains(why), "{said}");
    }
    assert!(!ssh_dir(&device).exists());
    assert_eq!(server.status("node")["recovery_count"], 0, "refusals cost nothing");
    server.host_token("node", "[Kube, Node]", "[ssh]", "    recovery: {limit: 3}");
    device.join();
    assert!(ssh_dir(&device).join("ssh_host_ecdsa_key").exists());
}
