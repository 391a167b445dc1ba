//! Clocks that are wrong, of the device and of the server: nobody is kept out, and no recovery is spent on them.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::process::Command;

use boundkey::state::{DirStorage, StateFile};
use boundkey::time::{Clock as _, System};
use support::{Device, Running, Server, run, success, tool, wait_for};

/// The variables of a process whose clock is at a time, or off by an offset such as `+10m`. The wrapper `faketime` is asked for its library
/// alone: as the parent of a process it would take the signals meant for it.
fn clock_at(clock: &str) -> [(&'static str, String); 2] {
    let mut ask = Command::new(tool("faketime", "faketime"));
    let asked = success(ask.args(["-f", "+0", "sh", "-c", "printf %s \"$LD_PRELOAD\""]));
    let clock = if clock.starts_with(['+', '-']) { clock.to_owned() } else { format!("@{clock}") };
    [("LD_PRELOAD", String::from_utf8(asked.stdout).expect("a path")), ("FAKETIME", clock)]
}

/// One join of a device with this clock, which must succeed; what it said.
fn join_at(clock: &str, device: &Device) -> String {
    let output = run(device.command(&["start", "--oneshot"]).envs(clock_at(clock)));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{clock}: {said}");
    said
}

/// The server, stopped before, with this clock, on its address of before.
fn serve_at(clock: &str, server: &Server) -> Running {
    let ready = server.dir.join("addr");
    std::fs::remove_file(&ready).expect("the address of before");
    let mut start = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
    start.args(["start", "--listen", &server.addr, "--data-dir"]).arg(server.dir.join("data")).arg("--addr-file").arg(&ready);
    let log = std::fs::File::create(server.dir.join("log-of-the-wrong-clock")).expect("log");
    let running = Running(start.envs(clock_at(clock)).stderr(log).spawn().expect("the server starts"));
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
    for (name, clock) in
        [("seventies", "1970-01-01 00:00:05"), ("later", "2038-01-20 00:00:00"), ("ahead", "2060-01-01 00:00:00")]
    {
        let device = server.device(name, 1);
        for generation in 1..=3 {
            join_at(clock, &device);
            assert_eq!(device.status()["generation"], generation, "{clock}");
        }
        device.join();
        assert_eq!(server.events(name), ["join.first", "join.renewal", "join.renewal", "join.renewal"], "{clock}");
    }
}

/// A clock that was ahead leaves nothing behind: the time remembered is the server's.
#[test]
fn the_devices_own_clock_is_never_taken_for_the_time_known() {
    let server = Server::start();
    let device = server.device("gw", 1);
    join_at("2060-01-01 00:00:00", &device);
    for clock in ["+0m", "-10m", "+10m", "1970-01-01 00:00:05"] {
        join_at(clock, &device);
    }
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
    for (round, clock) in ["-10m", "+10m", "-10m"].into_iter().enumerate() {
        server.stop();
        let wrong = serve_at(clock, &server);
        for _ in 0..2 {
            device.join();
        }
        end(wrong);
        server.run();
        device.join();
        assert_eq!(device.status()["generation"], 1 + 3 * (round + 1), "{clock}");
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
    let half_a_year_later = serve_at("+180d", &server);
    let said = join_at("2060-01-01 00:00:00", &device);
    assert!(said.contains("this device's clock is ahead"), "{said}");
    assert_eq!(device.status()["recovery"]["count"], 2, "its certificate had expired, by the server's clock");
    end(half_a_year_later);
}
