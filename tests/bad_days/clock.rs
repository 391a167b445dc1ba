//! The wall clock jumps by years while the daemon runs: somebody sets it, or a time server does.

use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::support::wall_clock::{WallClock, YEAR};
use super::support::{Device, Running, Server, wait_for};

/// The daemon, with this clock.
fn daemon(device: &Device, clock: &WallClock) -> Running {
    let log = std::fs::File::options().create(true).append(true).open(device.dir.join("log")).expect("log");
    Running(device.command(&["start"]).envs(clock.env()).stderr(log).spawn().expect("boundkey starts"))
}

#[test]
fn a_daemon_renews_on_while_its_wall_clock_jumps_by_years() {
    let (server, clock) = (Server::start(), WallClock::new());
    let mut device = server.device("gw", 1);
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    device.configure(&server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "renewal_interval: 2s");
    // As a person sees it on that device.
    device.env = clock.env().map(|(name, value)| (name, value.into())).to_vec();
    let daemon = daemon(&device, &clock);
    let renewals = || server.events("gw").iter().filter(|event| *event == "join.renewal").count();
    wait_for("a renewal", || renewals() > 0);
    for years in [30, -50, 0, 1] {
        let (since, before) = (Instant::now(), renewals());
        clock.jump_to(years * YEAR);
        wait_for("renewals", || renewals() >= before + 2);
        let (made, spent) = (renewals() - before, since.elapsed());
        // Jitter takes a tenth of the interval at most, and one may have been under way.
        let most = 2 + spent.as_millis() / 1800;
        assert!(made as u128 <= most, "{years} years: {made} renewals in {spent:?}");
        let status = device.status();
        assert_eq!(status["last_error"], Value::Null, "{years} years: {status}");
        assert!(status["generation"].as_u64() > Some(before as u64), "{years} years: {status}");
        assert!(status["next_renewal"].is_string() && status["certificate"].is_object(), "{years} years: {status}");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let events = server.events("gw");
    assert_eq!((&*events[0], server.status("gw")["recovery_count"].clone()), ("join.first", json!(1)));
    assert!(events[1..].iter().all(|event| event == "join.renewal"), "{events:?}");
}

/// To a device whose clock is decades ahead its certificate has expired: but the server judges that (decision 0010).
#[test]
fn a_jump_while_the_server_is_away_costs_nothing() {
    let (mut server, clock) = (Server::start(), WallClock::new());
    let device = server.device("gw", 1);
    let daemon = daemon(&device, &clock);
    wait_for("the first join", || server.events("gw") == ["join.first"] && server.was_heard(&device));
    for years in [30, -50] {
        let before = server.events("gw").len();
        server.kill();
        clock.jump_to(years * YEAR);
        daemon.signal(Signal::SIGUSR1);
        wait_for("a failure", || device.status()["last_error"]["type"] == "unreachable");
        server.run();
        wait_for("a renewal", || server.events("gw").len() > before);
        wait_for("the error to go", || device.status()["last_error"].is_null());
    }
    let log = device.log();
    assert!(log.contains("WARN this device's clock is ahead: the server says that it is "), "{log}");
    assert!(log.contains("INFO this device's clock is behind: going by the last time known"), "{log}");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal"]);
}
