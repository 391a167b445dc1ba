//! Clocks that are wrong, of the device and of the server: nobody is kept out, and no recovery is spent on them.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::process::Command;

use boundkey::platform::time::{Clock as _, System};
use boundkey::state::{DirStorage, StateFile};
use support::wall_clock::{WallClock, YEAR};
use support::{Device, Running, Server, run, success, tool, wait_for};

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;

/// After a boot without a battery for the clock.
fn in_1970() -> WallClock {
    WallClock::showing(5)
}

/// The day after seconds since 1970 no longer fit into 31 bits.
fn in_2038() -> WallClock {
    WallClock::showing(0x8000_0000 + DAY)
}

/// Further ahead than the CA of a new cluster lasts.
fn far_ahead() -> WallClock {
    WallClock::off_by(34 * YEAR)
}

/// One join of a device with this clock, which must succeed; what it said.
#[track_caller]
fn join_at(clock: &WallClock, device: &Device) -> String {
    let output = run(device.command(&["start", "--oneshot"]).envs(clock.env()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The server, stopped before, with this clock, on its address of before.
fn serve_at(clock: &WallClock, server: &Server) -> Running {
    let ready = server.dir.join("addr");
    std::fs::remove_file(&ready).expect("the address of before");
    let mut start = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
    start.args(["start", "--listen", &server.addr, "--data-dir"]).arg(server.dir.join("data")).arg("--addr-file").arg(&ready);
    let log = std::fs::File::create(server.dir.join("log-of-the-wrong-clock")).expect("log");
    let running = Running(start.envs(clock.env()).stderr(log).spawn().expect("the server starts"));
    wait_for("the server with the wrong clock", || ready.exists());
    running
}

fn end(server: Running) {
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().success());
}

/// Without a clock of its own a new device knows no more than when its program was built; the server's certificate is younger.
#[test]
fn a_new_device_joins_and_renews_whatever_its_clock_says() {
    let server = Server::start();
    for (name, clock, told) in [
        ("seventies", in_1970(), "INFO this device's clock is behind: going by the last time known"),
        ("later", in_2038(), "generation"),
        ("ahead", far_ahead(), "WARN this device's clock is ahead: the server says that it is "),
    ] {
        let device = server.device(name, 1);
        for generation in 1..=3 {
            let said = join_at(&clock, &device);
            assert!(said.contains(told), "{name}: {said}");
            assert_eq!(device.status()["generation"], generation, "{name}");
        }
        let begin = device.status()["certificate"]["not_before"].clone();
        assert!(begin.as_str().is_some_and(|time| time.starts_with("20") && time < "2038"), "{name}: {begin}");
        device.join();
        assert_eq!(server.events(name), ["join.first", "join.renewal", "join.renewal", "join.renewal"], "{name}");
    }
}

/// What the server says of the time no longer fits into 31 bits of seconds then: a library for times may not read it on 32-bit devices.
#[test]
fn device_and_server_go_on_after_2038() {
    let (mut server, clock) = (Server::start(), in_2038());
    server.kill();
    server.env.extend(clock.env().map(|(name, value)| (name, value.into())));
    server.run();
    let mut device = server.device("gw", 1);
    device.env.clone_from(&server.env);
    device.join();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    let end = device.status()["certificate"]["not_after"].as_str().expect("a certificate").to_owned();
    assert!(end.starts_with("2038-01-20T04:"), "{end}");
}

/// A clock that was ahead leaves nothing behind: the time remembered is the server's.
#[test]
fn the_devices_own_clock_is_never_taken_for_the_time_known() {
    let server = Server::start();
    let device = server.device("gw", 1);
    join_at(&far_ahead(), &device);
    for minutes in [0, -10, 10] {
        join_at(&WallClock::off_by(minutes * MINUTE), &device);
    }
    join_at(&in_1970(), &device);
    let state = StateFile::open(DirStorage::open(&device.storage())).expect("a state file");
    let (known, now) = (state.memory().last_known_time, System.now());
    assert!(known <= now && now.since(known) < support::PATIENCE, "{known}, and it is {now}");
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// To a server whose clock was set back, the device's certificate seems not yet valid: that costs no recovery.
#[test]
fn a_server_ten_minutes_off_either_way_breaks_no_renewal() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    for (round, minutes) in [-10, 10, -10].into_iter().enumerate() {
        server.stop();
        let clock = WallClock::off_by(minutes * MINUTE);
        let wrong = serve_at(&clock, &server);
        for _ in 0..2 {
            device.join();
        }
        end(wrong);
        server.run();
        device.join();
        assert_eq!(device.status()["generation"], 1 + 3 * (round + 1), "{minutes}");
    }
    assert_eq!(server.status("gw")["recovery_count"], 1);
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]");
}

/// A device was off for half a year, the server has another certificate by then, and the device's clock is years ahead.
#[test]
fn a_device_that_missed_the_servers_renewal_comes_back_with_its_clock_ahead() {
    let mut server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    server.stop();
    let later = WallClock::off_by(180 * DAY);
    let half_a_year_later = serve_at(&later, &server);
    let said = join_at(&far_ahead(), &device);
    assert!(said.contains("this device's clock is ahead"), "{said}");
    assert_eq!(device.status()["recovery"]["count"], 2, "its certificate had expired, by the server's clock");
    end(half_a_year_later);
}

/// Whatever the device's own clock says.
#[track_caller]
fn joins_whatever_its_clock_says(device: &Device) {
    for clock in [WallClock::new(), in_1970(), far_ahead(), WallClock::new()] {
        join_at(&clock, device);
    }
}

/// A minute passes before a server whose clock was set ahead has another certificate. The device that joins meanwhile is told a time at
/// which the certificate that it sees has long expired, and sees that certificate again when the clock is right.
#[test]
fn a_server_that_was_years_ahead_for_a_moment_keeps_nobody_out() {
    let clock = WallClock::new();
    let mut server = Server::start();
    let device = server.device("gw", 2);
    server.stop();
    let mut bent = server.command();
    bent.envs(clock.env());
    assert!(server.run_as(bent), "{}", server.log());
    device.join();
    clock.jump_to(5 * YEAR);
    let said = join_at(&WallClock::new(), &device);
    assert!(said.contains("its clock is not believed"), "{said}");
    assert_eq!(device.status()["recovery"]["count"], 2, "its certificate had expired, by the server's clock");
    clock.jump_to(0);
    joins_whatever_its_clock_says(&device);
    assert_eq!(device.status()["generation"], 5);
    assert_eq!(server.status("gw")["recovery_count"], 2, "nothing was consumed any more");
}

/// Years ahead for so long that the server has made itself a certificate there. When its clock is right, it has one that holds for programs
/// with a right clock too, and for devices that believed it.
#[test]
fn a_server_that_renewed_its_certificate_years_ahead_keeps_nobody_out() {
    tool("openssl", "openssl");
    let ahead = WallClock::off_by(5 * YEAR);
    let mut server = Server::start();
    let device = server.device("gw", 3);
    device.join();
    for recoveries in 2..=3 {
        server.stop();
        let wrong = serve_at(&ahead, &server);
        device.join();
        end(wrong);
        server.run();
        let look = "openssl s_client -verify_return_error -connect \"$0\" -CAfile \"$1\" </dev/null";
        success(Command::new("sh").args(["-c", look, &server.addr]).arg(server.dir.join("data/ca.pem")));
        joins_whatever_its_clock_says(&device);
        assert_eq!(server.status("gw")["recovery_count"], recoveries);
    }
    assert_eq!(server.events("gw")[0], "join.first", "five years later the log would have been forgotten");
    // A certificate made after that, for another reason.
    server.stop();
    let file = server.dir.join("data/cluster.json");
    let cluster = std::fs::read_to_string(&file).expect("cluster.json");
    std::fs::write(&file, cluster.replace("\"::1\"", "\"auth.example.com\"")).expect("write");
    server.run();
    joins_whatever_its_clock_says(&device);
    assert_eq!(server.status("gw")["recovery_count"], 3);
}

/// What the server writes by the wrong clock does not vouch for that clock: neither the end of an exemption, which it tells as it starts,
/// nor a join before it is started again.
#[test]
fn a_server_that_starts_years_ahead_again_and_again_forgets_nothing() {
    let ahead = WallClock::off_by(5 * YEAR);
    let mut server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    server.ctl(&["exempt", "token/gw"]);
    server.stop();
    for _ in 0..2 {
        let wrong = serve_at(&ahead, &server);
        device.join();
        end(wrong);
    }
    server.run();
    let expected = ["join.first", "exemption.granted", "exemption.expired", "join.recovery", "key.rotated", "join.renewal"];
    assert_eq!(server.events("gw"), expected);
}
