//! What the agent says when it cannot join: each cause has its own sentence, advice, type and exit code.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "refusals/impostor.rs"]
mod impostor;
#[path = "refusals/peer.rs"]
mod peer;
#[path = "refusals/storage.rs"]
mod storage;
mod support;

use serde_json::{Value, json};
use support::proxy::{Proxy, Way};
use support::said::{Said, expect_unwritten, said};
use support::{Device, Server, agent, run};

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
