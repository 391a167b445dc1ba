//! No network for days, and a server that is back.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::wall_clock::WallClock;
use super::support::{Running, Server, success, wait_for};

/// The certificate runs out meanwhile. That costs the one recovery that it must, and the log is not filled with what is known.
///
/// The days pass on the clocks of device and server, so nothing runs out because the machine is slow.
#[test]
fn an_outage_that_outlasts_the_certificate_costs_one_recovery() {
    const TRIES: usize = 30;
    const THREE_DAYS: i64 = 3 * 24 * 3600;
    let (mut server, clock) = (Server::start(), WallClock::new());
    let mut device = server.device("gw", 3);
    device.env = clock.env().map(|(name, value)| (name, value.into())).to_vec();
    let log = std::fs::File::create(device.dir.join("log")).expect("log");
    let command = &mut device.command(&["start", "--log-level", "debug"]);
    let daemon = Running(command.stderr(log).spawn().expect("boundkey starts"));
    wait_for("the first join", || server.events("gw") == ["join.first"]);
    // A signal stands for the end of each wait: how long those are, the tests of `src/agent/backoff.rs` show.
    let renews = |server: &Server| {
        let before = server.events("gw").len();
        daemon.signal(Signal::SIGUSR1);
        wait_for("a renewal", || server.events("gw").len() > before);
        let generation = server.status("gw")["last_step"]["generation"].clone();
        wait_for("its answer", || device.status()["generation"] == generation);
    };
    renews(&server);
    server.kill();
    let count = |what: &str| device.log().matches(what).count();
    let tries = || count("no connection: ");
    let tries_again = || {
        let before = tries();
        daemon.signal(Signal::SIGUSR1);
        wait_for("a try", || tries() > before);
    };
    (0..TRIES).for_each(|_| tries_again());
    clock.jump_to(THREE_DAYS);
    let shown = String::from_utf8(success(&mut device.command(&["status"])).stdout).expect("UTF-8");
    assert!(shown.contains(" (expired)\n"), "{shown}");
    let report = std::fs::read(device.storage().join("status.json")).expect("a report");
    tries_again();
    assert_eq!(std::fs::read(device.storage().join("status.json")).expect("a report"), report, "flash is not written anew");
    assert_eq!(device.status()["last_error"]["type"], "unreachable");
    // Refused, and perhaps at first reset: each is news once.
    for said in ["ERROR no connection: ", "INFO the same again: "] {
        assert!((1..=2).contains(&count(said)), "{said:?}: {}", device.log());
    }

    server.env.extend(device.env.iter().cloned());
    server.run();
    daemon.signal(Signal::SIGUSR1);
    wait_for("a recovery", || device.status()["recovery"]["count"] == 2);
    (0..3).for_each(|_| renews(&server));
    assert_eq!(device.status()["last_error"], Value::Null);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let events = server.events("gw");
    assert_eq!(events.iter().filter(|event| *event == "join.recovery").count(), 1, "{events:?}");
    assert_eq!(server.status("gw")["recovery_count"], 2);
}
