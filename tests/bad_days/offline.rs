//! No network for days, and a server that is back.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::{Running, Server, wait_for};

/// The certificate runs out meanwhile. That costs the one recovery that it must, and the log is not filled with what is known.
#[test]
fn an_outage_that_outlasts_the_certificate_costs_one_recovery() {
    const TRIES: usize = 30;
    let mut server = Server::start();
    let device = server.device("gw", 3);
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    let short = "credential_ttl: 3s\nrenewal_interval: 1s";
    device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), short);
    let log = std::fs::File::create(device.dir.join("log")).expect("log");
    let command = &mut device.command(&["start", "--log-level", "debug"]);
    let daemon = Running(command.stderr(log).spawn().expect("boundkey starts"));
    wait_for("a renewal", || server.events("gw").len() >= 2);
    server.kill();
    let count = |what: &str| device.log().matches(what).count();
    let tries = || count("no connection: ");
    // A signal stands for the end of each wait: how long those are, the tests of `src/agent/backoff.rs` show.
    for _ in 0..TRIES {
        let before = tries();
        daemon.signal(Signal::SIGUSR1);
        wait_for("a try", || tries() > before);
    }
    let ended = || {
        let end = device.status()["certificate"]["not_after"].as_str().expect("a certificate").parse();
        end.is_ok_and(|end: boundkey::time::Timestamp| end < boundkey::time::Clock::now(&boundkey::time::System))
    };
    wait_for("the end of the certificate", ended);
    let report = std::fs::read(device.storage().join("status.json")).expect("a report");
    daemon.signal(Signal::SIGUSR1);
    wait_for("another try", || tries() > TRIES);
    assert_eq!(std::fs::read(device.storage().join("status.json")).expect("a report"), report, "flash is not written anew");
    assert_eq!(device.status()["last_error"]["type"], "unreachable");
    // Refused, and perhaps at first reset: each is news once.
    for said in ["ERROR no connection: ", "INFO the same again: "] {
        assert!((1..=2).contains(&count(said)), "{said:?}: {}", device.log());
    }

    server.run();
    daemon.signal(Signal::SIGUSR1);
    wait_for("a recovery", || server.events("gw").contains(&"join.recovery".to_owned()));
    let before = server.events("gw").len();
    wait_for("renewals", || server.events("gw").len() >= before + 3);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let events = server.events("gw");
    assert_eq!(events.iter().filter(|event| *event == "join.recovery").count(), 1, "{events:?}");
    assert_eq!(server.status("gw")["recovery_count"], 2);
    assert_eq!(device.status()["last_error"], Value::Null);
}
