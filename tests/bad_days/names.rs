//! DNS that lies, knows nothing, or is silent.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::namespace::{Kind, Namespace};
use super::support::said::{Said, said};
use super::support::{Device, Running, Server, run, wait_for};

const NAME: &str = "auth.example.com";
/// A name server that does not answer.
const SILENT: &str = "192.0.2.53";

/// A system on which the test says what names mean.
struct Resolver {
    namespace: Namespace,
    device: Device,
    hosts: PathBuf,
    resolv: PathBuf,
    switch: PathBuf,
}

impl Resolver {
    /// A device that knows its server by name. `None` where that cannot be tried.
    fn new(server: &Server) -> Option<Self> {
        Some(Self::within(Namespace::new(&[Kind::Mounts])?, server))
    }

    /// The same in this namespace.
    fn within(namespace: Namespace, server: &Server) -> Self {
        let device = server.device("gw", 1);
        let yaml = std::fs::read_to_string(device.config()).expect("configuration");
        let port = server.addr.rsplit(':').next().expect("a port");
        std::fs::write(device.config(), yaml.replace(&server.addr, &format!("{NAME}:{port}"))).expect("configuration");
        let [hosts, resolv, switch] = ["hosts", "resolv.conf", "nsswitch.conf"].map(|name| device.dir.join(name));
        for (file, text) in [(&hosts, ""), (&resolv, ""), (&switch, "hosts: files dns\n")] {
            std::fs::write(file, text).expect("a file");
            let over = format!("/etc/{}", file.file_name().expect("a name").display());
            namespace.shell("test -e \"$2\" || touch \"$2\"; mount --bind \"$1\" \"$2\"", &[&file.display().to_string(), &over]);
        }
        Self { namespace, device, hosts, resolv, switch }
    }

    /// What the name means from here on.
    fn answers(&self, address: &str) {
        std::fs::write(&self.hosts, format!("{address} {NAME}\n")).expect("hosts");
    }

    fn command(&self, args: &[&str]) -> Command {
        self.namespace.enter(&self.device.command(args))
    }

    fn refused(&self) -> Said {
        said(&run(&mut self.command(&["start", "--oneshot"])))
    }

    fn error_type(&self) -> String {
        self.device.status()["last_error"]["type"].as_str().unwrap_or_default().to_owned()
    }
}

/// Another auth endpoint for this name, as an attacker would set one up, at another address with the same port.
fn another_server(server: &Server, address: &str) -> Server {
    let mut other = Server::init(&[NAME]);
    other.addr = server.addr.replace("127.0.0.1", address);
    other.run();
    other
}

#[test]
fn a_lie_leads_to_a_server_that_is_not_trusted_and_learns_nothing() {
    let mut server = Server::with_names(&[NAME]);
    let Some(resolver) = Resolver::new(&server) else { return };
    let other = another_server(&server, "127.0.0.66");
    // The other one would take the device's word: it has a token of the same name and secret.
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    other.token("gw", &format!("    onboarding: {{registration_secret: {secret}}}"));
    resolver.answers("127.0.0.66");
    let said = resolver.refused();
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.error.contains("the server is not trusted: the server has another CA than the pinned one"), "{said:?}");
    assert!(said.advice.contains("do not go on if they differ"), "{said:?}");
    assert_eq!(resolver.error_type(), "not-trusted");

    // The daemon asks for the name at each try: with the truth it joins, with the next lie it keeps what it has.
    let log = std::fs::File::create(resolver.device.dir.join("log")).expect("log");
    let daemon = Running(resolver.command(&["start"]).stderr(log).spawn().expect("boundkey starts"));
    resolver.answers("127.0.0.1");
    wait_for("the first join", || server.events("gw") == ["join.first"] && server.was_heard(&resolver.device));
    resolver.answers("127.0.0.66");
    // Nor is the connection from before there any more.
    server.kill();
    server.run();
    daemon.signal(Signal::SIGUSR1);
    wait_for("a failure", || resolver.error_type() == "not-trusted");
    assert!(resolver.device.status()["certificate"].is_object(), "what it has it keeps");
    resolver.answers("127.0.0.1");
    wait_for("a renewal", || server.events("gw") == ["join.first", "join.renewal"]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert_eq!(server.status("gw")["recovery_count"], 1);
    assert_eq!(other.events("gw"), [""; 0]);
    assert!(!other.log().contains("/v1/"), "not one request came so far: {}", other.log());
}

/// A name that is not there, a name server that says nothing, one that is not there, and none at all.
#[test]
fn a_name_that_is_not_resolved_is_told_and_costs_nothing() {
    let Some(namespace) = Namespace::new(&[Kind::Mounts, Kind::Network]) else { return };
    // Nobody takes what comes out of this cable.
    namespace.shell(
        "ip link set lo up; ip link add name cable type veth peer name end; ip link set cable up; ip link set end up
        ip address add 192.0.2.1/24 dev cable; ip neighbour add \"$1\" lladdr 02:00:00:00:00:35 dev cable nud permanent",
        &[SILENT],
    );
    let mut server = Server::init(&[NAME]);
    let command = namespace.enter(&server.command());
    assert!(server.run_as(command), "the server ended: {}", server.log());
    let resolver = Resolver::within(namespace, &server);
    let ask = |nameserver: &str| format!("nameserver {nameserver}\noptions timeout:1 attempts:1\n");
    for (databases, resolv, least) in [
        ("files", String::new(), Duration::ZERO),
        ("files dns", ask(SILENT), Duration::from_secs(1)),
        ("files dns", ask("127.0.0.78"), Duration::ZERO),
        ("files dns", String::new(), Duration::ZERO),
    ] {
        std::fs::write(&resolver.switch, format!("hosts: {databases}\n")).expect("nsswitch.conf");
        std::fs::write(&resolver.resolv, resolv).expect("resolv.conf");
        let start = Instant::now();
        let said = resolver.refused();
        assert!(start.elapsed() >= least, "nothing answered: {said:?}");
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.error.starts_with("no connection: ") && said.advice.starts_with("check the network"), "{said:?}");
        assert_eq!(resolver.error_type(), "unreachable");
    }
    resolver.answers("127.0.0.1");
    let output = run(&mut resolver.command(&["start", "--oneshot"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.events("gw"), ["join.first"]);
}

/// Several addresses: one that is dead is passed over. (One that lies ends the try: it is told, not passed over.)
#[test]
fn an_address_where_nobody_listens_is_passed_over() {
    let server = Server::with_names(&[NAME]);
    let Some(resolver) = Resolver::new(&server) else { return };
    std::fs::write(&resolver.hosts, format!("127.0.0.66 {NAME}\n127.0.0.1 {NAME}\n")).expect("hosts");
    let output = run(&mut resolver.command(&["start", "--oneshot"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.events("gw"), ["join.first"]);
}
