//! Rows about the programs: what is written down, and who is told.

use serde_json::Value;

use super::support::Server;

/// Events of one name.
fn events(server: &Server, name: &str) -> Vec<Value> {
    server.audit().into_iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn c033_a_token_that_is_gone_is_joined_no_more() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    server.ctl(&["rm", "token/gw"]);
    let (code, said) = device.try_join();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no such token"), "{said}");
}

/// One theft, from the lock to what is left of it in the log.
#[test]
fn c104_c203_c205_two_holders_leave_one_lock_and_one_refusal_with_the_reason() {
    let server = Server::start();
    let device = server.device("gw", 5);
    device.join();
    let thief = device.copy();
    device.join();
    assert_eq!(thief.try_join().0, 4);
    assert_eq!(thief.try_join().0, 4);
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    assert_eq!(locks.as_array().map(Vec::len), Some(1));
    let spec = &locks[0]["spec"];
    assert_eq!((&spec["target"]["token"], &spec["expires"]), (&"gw".into(), &Value::Null));
    let message = spec["message"].as_str().expect("a message");
    assert!(message.contains("token gw of bot gw") && message.contains("may be stolen"), "{message}");
    let refused = events(&server, "join.refused");
    assert_eq!(refused[0]["problem"], "join-state-mismatch");
    assert!(refused[0]["reason"].as_str().is_some_and(|why| why.contains("generation 1, expected 2")), "{}", refused[0]);
    assert_eq!(events(&server, "lock.created").len(), 1);
}

#[test]
fn c046_c201_c202_c204_joins_are_told_with_what_they_did() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    let first = server.status("gw")["bound_bot_instance_id"].clone();
    device.lose_certificate();
    device.join();
    let second = server.status("gw")["bound_bot_instance_id"].clone();
    let instance = server.get(&format!("bot_instance/{}", second.as_str().expect("an id")));
    assert_eq!(instance["spec"]["previous_instance"], first, "C046");
    device.join();
    server.ctl(&["rotate", "token/gw"]);
    device.join();
    for (name, count) in [("join.first", 1), ("join.recovery", 2), ("join.renewal", 2)] {
        let event = &events(&server, name)[0];
        assert_eq!((&event["success"], &event["token"], &event["bot"]), (&true.into(), &"gw".into(), &"gw".into()));
        assert_eq!((&event["recovery_count"], &event["recovery_mode"]), (&count.into(), &"standard".into()));
        assert!(event["public_key"].as_str().is_some_and(|key| key.starts_with("ssh-")), "{event}");
        assert!(event["remote_addr"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{event}");
    }
    let left = |name| events(&server, name)[0]["recoveries_left"].clone();
    assert_eq!((left("join.first"), left("join.recovery")), (1.into(), 0.into()), "told before it hurts");
    let rotated = &events(&server, "key.rotated")[0];
    assert_ne!(rotated["previous_key"], rotated["new_key"]);
}

/// The reference tells nothing of these; ours tells every refusal.
#[test]
fn c206_every_refusal_is_told() {
    let server = Server::start();
    let late = "    onboarding: {registration_secret: a secret of its own, must_register_before: 2020-01-01T00:00:00Z}";
    server.token("late", late);
    super::support::Device::new(&server, "late", "s").try_join();
    let device = server.device("gw", 1);
    device.join();
    device.lose_certificate();
    device.try_join();
    let told: Vec<_> = events(&server, "join.refused").into_iter().map(|event| event["problem"].clone()).collect();
    assert_eq!(told, ["registration-refused", "no-recoveries-left"]);
}

/// Unlike the reference, where a recovery slips out of such a lock: ours holds the bound instance, and with it every join.
#[test]
fn c110_a_lock_of_an_instance_stops_its_recovery_too() {
    let server = Server::start();
    let device = server.device("gw", 5);
    device.join();
    let instance = server.status("gw")["bound_bot_instance_id"].as_str().expect("an id").to_owned();
    server.ctl(&["lock", "--instance", &instance]);
    device.lose_certificate();
    assert_eq!(device.try_join().0, 4);
    assert_eq!(server.status("gw")["bound_bot_instance_id"], *instance);
}
