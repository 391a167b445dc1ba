//! C062, C096, C106, C107, C162 to C166: services that are not bots. One path for both: what differs is what the instance is called.

use std::process::Command;

use boundkey::join::identity::InstanceKind;
use boundkey::join::{Id, JoinKind, ProblemType, RecoveryMode};
use boundkey::platform::time::Timestamp;
use serde_json::Value;

use super::support::{Device, Server, run, success, tool};
use super::world::{self, World};
use super::{EXPIRY, harmless, kind, locking};

/// A host that has joined a token that allows `limit` recoveries.
fn joined(limit: u32) -> (World, world::Device) {
    let (mut world, mut host) = (World::new(limit), world::Device::new(0));
    world.kind = InstanceKind::Host;
    assert_eq!(kind(host.join(&mut world)), JoinKind::First);
    (world, host)
}

/// A token for a Node, and the host that has its secret.
fn node(server: &Server, limit: u32) -> Device {
    server.host_token("node", "[Node]", "", &format!("    recovery: {{limit: {limit}}}"));
    let secret = server.status("node")["registration_secret"].clone();
    Device::new(server, "node", secret.as_str().expect("a registration secret"))
}

/// How long the certificate of `host` holds, from before its issue on, in seconds.
fn lifetime(host: &Device) -> u64 {
    let certificate = host.status()["certificate"].clone();
    let time =
        |field: &str| certificate[field].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{certificate}"));
    let (start, end): (Timestamp, Timestamp) = (time("not_before"), time("not_after"));
    end.since(start).as_secs()
}

/// How many certificates are on the revocation list.
fn revoked(server: &Server) -> usize {
    let list = server.dir.join("crl.der");
    std::fs::write(&list, server.http_get("/v1/crl").1).expect("a file");
    let text =
        success(Command::new(tool("openssl", "openssl")).args(["crl", "-inform", "DER", "-noout", "-text", "-in"]).arg(list));
    String::from_utf8_lossy(&text.stdout).matches("Serial Number:").count()
}

fn host_id(server: &Server) -> String {
    server.status("node")["bound_host_id"].as_str().expect("a host id").to_owned()
}

fn events(server: &Server, name: &str) -> Vec<Value> {
    server.audit().into_iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn c162_a_node_joins_by_secret_and_its_host_id_is_bound() {
    let server = Server::start();
    let host = node(&server, 2);
    host.join();
    let (id, status) = (host_id(&server), server.status("node"));
    assert_eq!((&status["bound_bot_instance_id"], &status["recovery_count"]), (&Value::Null, &1.into()));
    assert_eq!(host.status()["instance_id"], *id);
    let (token, shown) = (server.ctl(&["get", "token/node"]), format!("{id}, generation 1"));
    assert!(token.lines().any(|line| line.strip_prefix("host ").is_some_and(|rest| rest.trim_start() == shown)), "{token}");
    host.join();
    assert_eq!(host_id(&server), id, "kept over a renewal");

    host.lose_certificate();
    host.join();
    let second = host_id(&server);
    assert_ne!(second, id, "new at a recovery");
    let record = server.get(&format!("host/{second}"));
    assert_eq!((&record["kind"], &record["spec"]["token"]), (&"host".into(), &"node".into()));
    assert_eq!((&record["spec"]["bot_name"], &record["spec"]["previous_instance"]), (&Value::Null, &id.into()));
    let hosts = server.ctl(&["get", "hosts"]);
    assert!(hosts.starts_with("ID ") && hosts.contains(&second), "{hosts}");
    assert_eq!(server.ctl(&["get", "bot_instances"]).lines().count(), 1, "it is no bot's");
    for name in ["join.first", "join.renewal", "join.recovery"] {
        let event = &events(&server, name)[0];
        assert!(event["host_id"].is_string(), "{event}");
        assert_eq!((&event["instance_id"], &event["bot"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn c163_a_recovery_in_insecure_mode_makes_a_new_host_id() {
    let (mut world, mut host) = joined(1);
    let first = world.status.bound_host_id;
    world.spec.recovery.mode = RecoveryMode::Insecure;
    world.later(EXPIRY);
    host.memory.join_state = None;
    assert_eq!(kind(host.join(&mut world)), JoinKind::Recovery);
    assert_eq!((world.status.recovery_count, world.status.bound_bot_instance_id), (2, None));
    assert_ne!(world.status.bound_host_id, first);
}

#[test]
fn c164_the_limit_holds_for_hosts() {
    let (mut world, mut host) = joined(2);
    world.later(EXPIRY);
    assert_eq!(kind(host.join(&mut world)), JoinKind::Recovery);
    world.later(EXPIRY);
    assert_eq!(harmless(&mut host, &mut world), ProblemType::NoRecoveriesLeft);
}

/// The token became a bot's, in a way that no command allows: the states of a host mean nothing then. And the reverse.
#[test]
fn c166_c096_a_join_state_of_the_other_kind_is_not_believed() {
    for (given, expected) in [(InstanceKind::Host, InstanceKind::Bot), (InstanceKind::Bot, InstanceKind::Host)] {
        let (mut world, device) = match given {
            InstanceKind::Bot => super::joined(5),
            InstanceKind::Host => joined(5),
        };
        world.kind = expected;
        let mut other = device.copy();
        other.identity = None;
        for mut device in [device, other] {
            let mut world = world.clone();
            assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
            assert!(
                world.locks[0].message.contains(&format!("is of a {given}, expected one of a {expected}")),
                "{}",
                world.locks[0].message
            );
        }
        // Nor does a restored server follow a newer one.
        let (mut world, mut device) = joined(5);
        let backup = world.clone();
        device.join(&mut world).expect("renewed");
        let mut world = world.restored(&backup);
        world.kind = InstanceKind::Bot;
        assert_eq!(locking(&mut device, &mut world), ProblemType::JoinStateMismatch);
    }
}

#[test]
fn c096_another_host_id_is_told_with_the_rest() {
    let (mut world, mut host) = joined(5);
    world.later(EXPIRY);
    world.status.bound_host_id = Some(Id([77; 16]));
    if let Some(last) = &mut world.status.last_step {
        last.generation = 4;
    }
    assert_eq!(locking(&mut host, &mut world), ProblemType::JoinStateMismatch);
    let lock = &world.locks[0].message;
    assert!(lock.contains("expected 4d4d4d4d-") && lock.contains("generation 1, expected 4"), "{lock}");
}

#[test]
fn a_host_that_lost_an_answer_or_whose_server_was_restored_goes_on() {
    let (mut world, mut host) = joined(1);
    host.lose_answer(&mut world);
    assert_eq!(kind(host.join(&mut world)), JoinKind::Replay);
    let backup = world.clone();
    host.join(&mut world).expect("renewed");
    let mut world = world.restored(&backup);
    let answer = host.join(&mut world).expect("followed");
    assert_eq!((answer.kind, world.status.bound_host_id), (JoinKind::Renewal, Some(answer.step.instance)));
    assert!(world.grants.last().is_some_and(|grant| grant.rolled_forward.is_some()));
}

#[test]
fn c107_c106_two_hosts_of_one_key_leave_one_lock_that_takes_all_away() {
    let server = Server::start();
    let host = node(&server, 5);
    host.join();
    let thief = host.copy();
    host.join();
    assert_eq!(thief.try_join().0, 4);
    assert_eq!(thief.try_join().0, 4);
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    assert_eq!(locks.as_array().map(Vec::len), Some(1));
    let spec = &locks[0]["spec"];
    assert_eq!((&spec["target"]["token"], &spec["expires"]), (&"node".into(), &Value::Null));
    let message = spec["message"].as_str().expect("a message");
    assert!(message.contains(&format!("token node of host {} is locked", host_id(&server))), "{message}");
    assert_eq!(revoked(&server), 2, "C106");
    assert_eq!(host.try_join().0, 4);

    server.ctl(&["exempt", "token/node"]);
    host.join();
    assert_eq!(revoked(&server), 0);
}

#[test]
fn a_lock_on_a_host_stops_it_and_its_recovery() {
    let server = Server::start();
    let host = node(&server, 5);
    host.join();
    let id = host_id(&server);
    server.ctl(&["lock", "--host", &id, "--message", "in repair"]);
    assert_eq!(revoked(&server), 1);
    let created = &events(&server, "lock.created")[0];
    assert_eq!((&created["host_id"], &created["instance_id"]), (&id.clone().into(), &Value::Null));
    assert!(server.ctl(&["get", "token/node"]).contains("in repair"));
    host.lose_certificate();
    assert_eq!(host.try_join().0, 4);
    assert_eq!(host_id(&server), id);
}

/// Hosts of one static key, each with an id and steps of its own.
#[test]
fn hosts_share_a_static_key() {
    let server = Server::start();
    let mut hosts = [(); 2].map(|()| Device::new(&server, "node", "unused"));
    let made = hosts[0].command(&["keypair", "create", "--static", "--format", "json"]).output().expect("keypair create");
    let key: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let public = key["public_key"].as_str().expect("a key");
    let spec = format!("    onboarding: {{initial_public_key: {public}}}\n    recovery: {{mode: insecure}}");
    server.host_token("node", "[Node, App]", "", &spec);
    for host in &mut hosts {
        host.configure(&server, "", "");
        host.env.push(("BOUNDKEY_STATIC_KEY", key["private_key"].as_str().expect("a key").into()));
        host.join();
    }
    let found: Value = serde_json::from_str(&server.ctl(&["get", "hosts", "--format", "json"])).expect("JSON");
    assert_eq!(found.as_array().map(Vec::len), Some(2));
    assert!(hosts.iter().all(|host| !host.storage().exists()));
}

#[test]
fn a_host_gets_long_certificates_and_a_role_says_how_long() {
    let server = Server::start();
    let host = node(&server, 1);
    host.join();
    assert_eq!(lifetime(&host), 30 * 24 * 3600 + 60);
    server.create("kind: role\nversion: v1\nmetadata: {name: short}\nspec: {max_ttl: 2h}\n");
    server.host_token("node", "[Node]", "[short]", "    recovery: {limit: 1}");
    host.join();
    assert_eq!(lifetime(&host), 2 * 3600 + 60);
}

#[test]
fn c062_a_bound_bot_does_not_become_a_host() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let editor = "sed -i -e 's/bot_name: gw/host: {}/' -e 's/- Bot/- Node/'";
    let refused = run(&mut server.edit_command("token/gw", editor));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("bound to a bot"), "{said}");
    server.ctl(&["reset", "token/gw"]);
    server.host_token("gw", "[Node]", "", "    recovery: {limit: 2}");
    assert_eq!(server.get("token/gw")["spec"]["roles"], serde_json::json!(["Node"]));
}
