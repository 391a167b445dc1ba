//! Power cuts: links, agents and servers are cut off at every point of a join that matters. Whatever happens, the device joins
//! again with no operator, and no recovery is spent on anything but a certificate that is truly gone.
//!
//! A killed process loses no write that the kernel has; what a cut does to writes that were not synced, `tests/state.rs` shows.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::proxy::{Proxy, Way};
use support::strace::{count_calls, killed_aside_at, killed_at, was_killed};
use support::walk::{Kind, Tried, Walk, make_tokens};
use support::{Device, Server, run, success, wait_for};

/// The system calls by which the agent changes the world, or learns that it has changed: the power fails before each of them.
const CALLS: [&str; 10] =
    ["fsync", "fdatasync", "mkdirat", "pwrite64", "recvfrom", "renameat", "sendto", "symlinkat", "unlinkat", "write"];

/// Where to cut a stream of TLS records: in each record, a byte before its end, and at its end.
fn cuts(stream: &[u8]) -> Vec<u64> {
    let (mut cuts, mut at) = (vec![0], 0);
    while let Some(head) = stream.get(at..at + 5) {
        let length = 5 + usize::from(u16::from_be_bytes([head[3], head[4]]));
        cuts.extend([at + length / 2, at + length - 1, at + length]);
        at += length;
    }
    cuts.dedup();
    cuts.into_iter().map(|at| at as u64).collect()
}

/// Cuts the link at every point of a join, either way.
fn cut_the_link(kind: Kind) {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let mut walk = Walk::new(&server, &proxy.addr, kind);
    walk.ready();
    proxy.mend();
    walk.goes_on("nothing");
    let streams = [Way::Up, Way::Down].map(|way| (way, cuts(&proxy.seen(way))));
    for (way, cuts) in streams {
        for cut in cuts {
            proxy.mend();
            walk.ready();
            proxy.mend(); // counts from here
            proxy.cut_after(way, cut);
            let (code, said) = walk.tried.as_ref().expect("a device").device.try_join();
            assert!([0, 3].contains(&code), "{way:?} {cut}: {code}, {said}");
            proxy.mend();
            walk.goes_on(&format!("a cut after {cut} bytes {way:?}"));
        }
    }
    walk.end(20);
}

/// Kills the agent before each of its system calls that matter.
fn kill_the_agent(kind: Kind) {
    let server = Server::start();
    let mut walk = Walk::new(&server, &server.addr, kind);
    let start = |walk: &Walk<'_>| walk.tried.as_ref().expect("a device").device.command(&["start", "--oneshot"]);
    walk.ready();
    let counts = count_calls(&start(&walk), &CALLS);
    walk.goes_on("nothing");
    for must in ["fsync", "renameat", "sendto", "recvfrom"] {
        assert!(counts.contains_key(must), "{counts:?}");
    }
    for (call, count) in counts {
        for nth in 1..=count {
            walk.ready();
            let output = run(&mut killed_at(&start(&walk), &call, nth));
            // A signature that is shorter by a byte, or an answer that comes in one piece, may save the last call.
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(was_killed(&output) || output.status.success(), "{call} {nth}: {}: {text}", output.status);
            walk.goes_on(&format!("death before {call} {nth} of {count}"));
        }
    }
    walk.end(20);
}

#[test]
fn a_first_join_survives_any_cut_of_the_link() {
    cut_the_link(Kind::First);
}

#[test]
fn a_renewal_survives_any_cut_of_the_link() {
    cut_the_link(Kind::Renewal);
}

#[test]
fn a_recovery_survives_any_cut_of_the_link() {
    cut_the_link(Kind::Recovery);
}

#[test]
fn a_rotation_survives_any_cut_of_the_link() {
    cut_the_link(Kind::Rotation);
}

#[test]
fn a_first_join_survives_the_death_of_the_agent() {
    kill_the_agent(Kind::First);
}

#[test]
fn a_renewal_survives_the_death_of_the_agent() {
    kill_the_agent(Kind::Renewal);
}

#[test]
fn a_recovery_survives_the_death_of_the_agent() {
    kill_the_agent(Kind::Recovery);
}

#[test]
fn a_rotation_survives_the_death_of_the_agent() {
    kill_the_agent(Kind::Rotation);
}

/// Kills what `command` makes of a device before each of its calls of this kind. The device joins on, and its next recovery code is that
/// of the key that it rotates to.
fn kill_the_maker_of_a_code(calls: &[&str], prepare: impl Fn(&Device), command: &[&str]) {
    let server = Server::start();
    // One for each death: a device alone would be kept waiting by the pace of its token.
    let ready = |name: &str| {
        let device = server.device(name, 1);
        device.join();
        prepare(&device);
        device
    };
    let counts = count_calls(&ready("counted").command(command), calls);
    for must in ["fsync", "renameat"] {
        assert!(counts.contains_key(must), "{counts:?}");
    }
    for (call, count) in counts {
        for nth in 1..=count {
            let device = ready(&format!("{call}-{nth}"));
            let output = run(&mut killed_at(&device.command(command), &call, nth));
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(was_killed(&output) || output.status.success(), "{call} {nth}: {}: {text}", output.status);
            device.join();
            let printed = success(&mut device.command(&["recovery-code", "--format", "json"])).stdout;
            let told: serde_json::Value = serde_json::from_slice(&printed).expect("JSON");
            assert_eq!(device.status()["recovery_code"], told["code"], "{call} {nth}");
            server.ctl(&["rotate", &format!("token/{}", device.token)]);
            device.join();
            assert_eq!(device.status()["keystore"]["thumbprint"], told["thumbprint"], "{call} {nth}");
            assert_eq!(server.status(&device.token)["recovery_count"], 1);
        }
    }
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]");
}

#[test]
fn a_recovery_code_survives_the_death_of_its_command() {
    kill_the_maker_of_a_code(&CALLS, |_| {}, &["recovery-code"]);
}

#[test]
fn a_recovery_code_survives_the_death_of_the_agent_that_makes_its_key() {
    let asked = |device: &Device| {
        std::fs::write(device.storage().join("recovery-code.request"), "00112233-4455-6677-8899-aabbccddeeff")
            .expect("a request");
    };
    kill_the_maker_of_a_code(&["fsync", "pwrite64", "renameat", "unlinkat"], asked, &["start", "--oneshot"]);
}

/// Kills the server before each of its system calls that make a join durable or tell of it.
#[test]
fn a_renewal_survives_the_death_of_the_server_at_any_of_its_steps() {
    // Two steps for each death, and one before: the burst that the pace of a token allows.
    const DEATHS_EACH: usize = 4;
    let mut server = Server::start();
    make_tokens(&server, 100);
    let mut devices: Vec<Device> = Vec::new();
    let mut deaths = 0;
    for call in ["pwrite64", "fdatasync", "writev"] {
        let mut survived = 0;
        for nth in 1.. {
            assert!(nth < 60, "{call}: no end");
            if devices.is_empty() || nth % DEATHS_EACH == 1 {
                devices.push(Tried::new(&server, devices.len(), &server.addr).device);
                devices[devices.len() - 1].join();
            }
            let device = &devices[devices.len() - 1];
            server.kill();
            // Calls are counted by thread: all connections are to be served by one.
            let mut command = server.command();
            command.env("TOKIO_WORKER_THREADS", "1");
            let command = killed_aside_at(&command, call, nth);
            if server.run_as(command) {
                let (code, said) = device.try_join();
                assert!([0, 3].contains(&code), "{call} {nth}: {code}, {said}");
                survived += usize::from(code == 0);
            } else {
                deaths += 1;
                server.kill();
                server.run();
                device.join();
                continue;
            }
            deaths += usize::from(!server.is_running());
            server.kill();
            server.run();
            device.join();
            if survived == 2 {
                break;
            }
        }
    }
    let replays: usize = devices.into_iter().map(|device| Tried::whole(&server, device).agrees()).sum();
    println!("{deaths} deaths, {replays} answers given again");
    assert!(deaths >= 5 && replays > 0, "{deaths} deaths, {replays} replays");
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]");
}

/// What was never given cannot be lost, nor what was lost before; and where an answer is outstanding, its replay brings another
/// certificate for nothing.
fn loss_would_cost(device: &Device) -> bool {
    if !device.storage().join("identity.pem").exists() {
        return false;
    }
    let status = device.status();
    status["certificate"].is_object() && status["attempt_in_flight"] == false
}

/// Joins without end, of devices that come and go, while the server dies again and again at moments that nobody chose.
#[test]
fn joins_survive_the_death_of_the_server() {
    const DEATHS: u64 = 10;
    const DEVICES: usize = 60;
    let mut server = Server::start();
    make_tokens(&server, DEVICES);
    let mut devices: Vec<_> = (0..DEVICES).map(|n| Tried::new(&server, n, &server.addr).device).collect();
    let (stop, joins) = (AtomicBool::new(false), AtomicU64::new(0));
    // Each device joins and loses its certificate now and then; returned with how often it lost one.
    let work = |devices: Vec<Device>| {
        let mut lost = vec![0; devices.len()];
        'all: for (device, lost) in devices.iter().zip(&mut lost) {
            for join in 0..6 {
                if stop.load(Ordering::Relaxed) {
                    break 'all;
                }
                if join == 3 && loss_would_cost(device) {
                    device.lose_certificate();
                    *lost += 1;
                }
                let (code, said) = device.try_join();
                assert!([0, 3].contains(&code), "{code}, {said}");
                joins.fetch_add(u64::from(code == 0), Ordering::Relaxed);
            }
        }
        devices.into_iter().zip(lost).collect::<Vec<_>>()
    };
    let second = devices.split_off(DEVICES / 2);
    let devices = std::thread::scope(|scope| {
        let threads = [devices, second].map(|devices| scope.spawn(|| work(devices)));
        for death in 0..DEATHS {
            let seen = joins.load(Ordering::Relaxed);
            let over = || threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
            wait_for("joins", || over() || joins.load(Ordering::Relaxed) > seen + death % 4);
            // The moment of death within a join: not the same twice.
            std::thread::sleep(Duration::from_millis(death * 7));
            server.kill();
            server.run();
        }
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().expect("the devices get on")).into_iter().flatten().collect::<Vec<_>>()
    });
    let mut replays = 0;
    let taken_part = |device: &Device| device.storage().exists();
    for (device, lost) in devices.into_iter().filter(|(device, _)| taken_part(device)) {
        let mut tried = Tried::whole(&server, device);
        tried.lost = lost;
        tried.comes_back("the last death");
        replays += tried.agrees();
    }
    assert_eq!(server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]");
    println!("{} joins, {DEATHS} deaths, {replays} answers given again", joins.load(Ordering::Relaxed));
}
