//! A CA is replaced by another in phases; every step can be taken back.

use serde_json::{Value, json};

use super::support::{Device, Server, wait_for};
use super::{bundle, ca, ca_refused, device_with_output, is, phases, trusts, verifies};

#[test]
fn a_ca_is_replaced_in_phases_with_the_fleet_running() {
    let server = Server::start();
    let (one, two) = (device_with_output(&server, "one"), device_with_output(&server, "two"));
    one.join();
    two.join();
    assert_eq!(phases(&server), is(&[(1, "active")]));

    ca(&server, &["rotate"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "announced")]));
    assert!(ca_refused(&server, &["rotate"]).contains("CA 2 is announced"));
    // Nobody knows it yet.
    let refused = ca_refused(&server, &["rotate", "--to", "active"]);
    assert!(refused.contains("2 of 2 bound tokens have not told yet") && refused.contains("--yes"), "{refused}");
    one.join();
    assert_eq!((trusts(&one), trusts(&two)), (2, 1));
    one.join();
    let known = &ca(&server, &["status"])["cas"][1]["known"];
    assert_eq!(*known, json!({"tokens": 2, "have": 1}));
    assert!(ca_refused(&server, &["rotate", "--to", "active"]).contains("1 of 2 bound tokens"));
    two.join();
    two.join();
    ca(&server, &["rotate", "--to", "active"]);
    assert_eq!(phases(&server), is(&[(1, "superseded"), (2, "active")]));

    // While both count, programs verify what either issued.
    one.join();
    assert!(verifies(&one, &two) && verifies(&two, &one) && verifies(&one, &one));
    let refused = ca_refused(&server, &["rotate", "--to", "retired"]);
    assert!(refused.contains("2 of 2 bound tokens"), "{refused}");
    one.join();
    two.join();
    two.join();
    ca(&server, &["rotate", "--to", "retired"]);
    assert_eq!(phases(&server), is(&[(1, "retired"), (2, "active")]));
    one.join();
    two.join();
    assert_eq!((trusts(&one), trusts(&two)), (1, 1));
    assert!(verifies(&one, &two) && verifies(&two, &one));
    assert_eq!(std::fs::read_to_string(one.dir.join("out/ca.crt")).expect("ca.crt").matches("BEGIN").count(), 1);
    // All of it were renewals, of which the log tells, and of each step.
    assert!(server.events("one").iter().skip(1).all(|event| event == "join.renewal"), "{:?}", server.events("one"));
    let steps: Vec<_> =
        server.audit().into_iter().filter(|e| e["event"].as_str().is_some_and(|e| e.starts_with("ca."))).collect();
    assert_eq!(steps.iter().map(|e| e["event"].clone()).collect::<Vec<_>>(), ["ca.announced", "ca.activated", "ca.retired"]);
    assert_eq!((&steps[1]["ca"], &steps[1]["tokens_ready"], &steps[1]["forced"]), (&json!(2), &json!(2), &json!(false)));
}

#[test]
fn a_device_that_was_off_throughout_comes_back_by_itself() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let fresh = server.device("new", 1);
    device.join();
    let pins: Vec<_> = (1..=5)
        .map(|number| {
            if number > 1 {
                ca(&server, &["rotate"]);
                ca(&server, &["rotate", "--to", "active", "--yes"]);
                ca(&server, &["rotate", "--to", "retired", "--yes"]);
            }
            next_pin(&server, number)
        })
        .collect();
    // What it had was issued by the first CA, and so were its join state and its pin: still a renewal, and no recovery.
    server.stop();
    server.run();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    assert_eq!((trusts(&device), bundle(&device).roots()[0].pins()), (1, vec![pin_of(&pins[4])]));
    device.join();
    // New devices join by any pin there ever was.
    fresh.join();
    for (number, pin) in pins.iter().enumerate() {
        let name = format!("pinned-{number}");
        server.token(&name, "    recovery: {limit: 1}");
        let secret = server.status(&name)["registration_secret"].as_str().expect("a secret").to_owned();
        let device = Device::new(&server, &name, &secret);
        device.configure_with(&server.addr, pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
        device.join();
        assert_eq!(bundle(&device).sequence(), bundle(&fresh).sequence());
    }
    // But not a device that was told that the first CA is retired, and meets a server that has nothing but that one's keys.
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

fn next_pin(server: &Server, number: usize) -> String {
    ca(server, &["status"])["cas"][number - 1]["pin"].as_str().expect("a pin").to_owned()
}

fn pin_of(text: &str) -> [u8; 32] {
    let hex = text.strip_prefix("sha256:").expect("a pin");
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal"))
}

#[test]
fn every_step_can_be_taken_back() {
    let server = Server::start();
    let (device, sleeper) = (device_with_output(&server, "gw"), device_with_output(&server, "off"));
    let follow = || device.join();
    follow();
    sleeper.join();
    assert!(ca_refused(&server, &["rotate", "--cancel"]).contains("no CA is announced"));
    assert!(ca_refused(&server, &["rotate", "--to", "active"]).contains("no CA is announced"));
    assert!(ca_refused(&server, &["rotate", "--to", "retired"]).contains("none to retire"));
    // Announced, and withdrawn.
    ca(&server, &["rotate"]);
    follow();
    ca(&server, &["rotate", "--cancel"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired")]));
    follow();
    assert_eq!(trusts(&device), 1);
    // Active, and back; then active again.
    ca(&server, &["rotate"]);
    follow();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    follow();
    let meanwhile = trust_file(&device);
    ca(&server, &["rotate", "--to", "announced", "--yes"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired"), (3, "announced")]));
    follow();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    follow();
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    follow();
    assert_eq!((phases(&server), trusts(&device)), (is(&[(1, "retired"), (2, "retired"), (3, "active")]), 1));
    // Retired, and back to where it began; for the device that was off all the time, and for one that was off since it was told that
    // the first CA does not count.
    let told = trust_file(&device);
    ca(&server, &["rotate", "--to", "active"]);
    assert_eq!(phases(&server), is(&[(1, "superseded"), (2, "retired"), (3, "active")]));
    ca(&server, &["rotate", "--to", "announced", "--yes"]);
    for trust in [&told, &meanwhile] {
        std::fs::write(device.storage().join("trust"), trust).expect("write");
        device.join();
        assert_eq!(trusts(&device), 2);
    }
    ca(&server, &["rotate", "--cancel", "--yes"]);
    assert_eq!(phases(&server), is(&[(1, "active"), (2, "retired"), (3, "retired")]));
    follow();
    sleeper.join();
    assert!(verifies(&sleeper, &device) && verifies(&device, &sleeper));
    // Joins that were too many at a time were told to wait.
    let fault = |event: &Value| event["event"] == "join.refused" && event["problem"] != "pace-exceeded";
    assert!(!server.audit().iter().any(|event| fault(event) || event["event"] == "join.recovery"));
}

fn trust_file(device: &Device) -> Vec<u8> {
    std::fs::read(device.storage().join("trust")).expect("trust")
}

#[test]
fn a_compromised_ca_is_believed_in_nothing() {
    let mut server = Server::start();
    let (device, off) = (server.device("gw", 2), server.device("off", 2));
    device.join();
    off.join();
    assert!(ca_refused(&server, &["rotate", "--to", "retired", "--compromised"]).contains("none to retire"));
    ca(&server, &["rotate"]);
    device.join();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    device.join();
    ca(&server, &["rotate", "--to", "retired", "--compromised", "--yes"]);
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal", "join.renewal"]);
    // A join state by the old keys may be anybody's: the device that was off is told from a forger by an operator.
    let (code, said) = off.try_join();
    assert_eq!(code, 4, "{said}");
    server.ctl(&["exempt", "token/off"]);
    off.join();
    assert!(
        ca_refused(&server, &["rotate", "--to", "active"]).contains("no CA is announced"),
        "a compromised CA does not come back"
    );
    // Its keys are not needed any more.
    server.stop();
    for name in ["ca-x509", "join-state", "ca-ssh-host", "ca-ssh-user"] {
        std::fs::remove_file(server.dir.join("data/keys").join(format!("key-{name}.pem"))).expect("a key");
    }
    server.run();
    device.join();
}

/// The daemon follows each step without a restart.
#[test]
fn a_running_daemon_follows_each_step() {
    let server = Server::start();
    let device = device_with_output(&server, "gw");
    let daemon = device.daemon();
    let generation = |device: &Device| device.status()["generation"].as_u64();
    wait_for("the first join", || device.storage().join("identity.pem").exists() && generation(&device).is_some());
    let renews = |roots: usize| {
        let before = generation(&device);
        daemon.signal(nix::sys::signal::Signal::SIGUSR1);
        wait_for("a renewal", || generation(&device) > before && trusts(&device) == roots);
    };
    ca(&server, &["rotate"]);
    renews(2);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    renews(2);
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    renews(1);
    renews(1);
    wait_for("the output", || {
        std::fs::read_to_string(device.dir.join("out/ca.crl")).is_ok_and(|lists| lists.matches("BEGIN").count() == 1)
    });
    assert!(verifies(&device, &device));
    assert!(!device.log().contains("error:"), "{}", device.log());
}
