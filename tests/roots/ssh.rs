//! The SSH authorities that go with the cluster's CAs.

use super::ca;
use super::support::{Device, Server};

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
