//! The daemon from its start to its end: when it renews, how it waits, what it tells, and that it never gives up.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "daemon/log_readers.rs"]
mod log_readers;
#[path = "daemon/recovery_codes.rs"]
mod recovery_codes;
mod support;
#[path = "daemon/theft.rs"]
mod theft;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::wall_clock::WallClock;
use support::{Device, Running, Server, run, success, wait_for};

/// `onboarding` of a device with the secret of its token.
fn secret_of(server: &Server, token: &str) -> String {
    let secret = server.status(token)["registration_secret"].as_str().expect("a registration secret").to_owned();
    format!("  bound_keypair: {{registration_secret: {secret}}}")
}

/// A device with further configuration, which has not joined.
fn device(server: &Server, name: &str, limit: u32, more: &str) -> Device {
    let device = server.device(name, limit);
    device.configure(server, &secret_of(server, name), more);
    device
}

fn count(server: &Server, token: &str, event: &str) -> usize {
    server.events(token).iter().filter(|name| *name == event).count()
}

/// Ends the daemon by `signal`, which must be a success.
fn end(daemon: Running, signal: Signal, device: &Device) {
    daemon.signal(signal);
    let status = daemon.wait();
    assert!(status.success(), "{status}: {}", device.log());
    assert!(device.log().ends_with("INFO stopped\n"), "{}", device.log());
}

fn error_type(device: &Device) -> Value {
    device.status()["last_error"]["type"].clone()
}

#[test]
fn it_renews_at_its_interval_and_status_tells_when() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "renewal_interval: 1s");
    let daemon = device.daemon();
    wait_for("three renewals", || count(&server, "gw", "join.renewal") >= 3);
    let status = device.status();
    assert_eq!((&status["last_error"], &status["token"]), (&Value::Null, &json!("gw")));
    assert!(status["next_renewal"].is_string(), "{status}");
    end(daemon, Signal::SIGTERM, &device);
    let generation = server.status("gw")["last_step"]["generation"].as_u64().unwrap();
    assert!(generation >= 4, "{generation}");
    // Jitter takes a tenth of the interval at most.
    let start = time_of(&server, "join.first");
    let spent = time_of(&server, "join.renewal").saturating_sub(start);
    let renewals = u32::try_from(count(&server, "gw", "join.renewal")).unwrap();
    assert!(spent >= Duration::from_millis(890) * renewals, "{renewals} renewals in {spent:?}");
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// When the last event of this name was.
fn time_of(server: &Server, name: &str) -> Duration {
    let event = server.audit().into_iter().rfind(|e| e["event"] == name).expect("an event");
    let time: boundkey::platform::time::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
    Duration::from_millis(time.millis())
}

#[test]
fn signals_renew_at_once_and_end_it() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    for (life, stop) in [Signal::SIGTERM, Signal::SIGINT].into_iter().enumerate() {
        let before = count(&server, "gw", "join.renewal");
        let daemon = device.daemon();
        // It renews at its start, not after its interval.
        wait_for("a join", || server.events("gw").len() > before + life && server.was_heard(&device));
        for (n, signal) in [Signal::SIGUSR1, Signal::SIGHUP].into_iter().enumerate() {
            daemon.signal(signal);
            let renewals = before + life + n + 1;
            wait_for("a renewal", || count(&server, "gw", "join.renewal") == renewals && server.was_heard(&device));
        }
        end(daemon, stop, &device);
    }
    assert_eq!(device.log().matches("INFO told to renew").count(), 4, "{}", device.log());
}

#[test]
fn it_waits_for_a_server_that_is_not_there_yet() {
    let mut server = Server::start();
    let device = device(&server, "gw", 1, "");
    server.kill();
    let daemon = device.daemon();
    wait_for("an error", || device.storage().join("status.json").exists() && error_type(&device) == "unreachable");
    wait_for("its word", || device.log().contains("INFO trying again in "));
    let log = device.log();
    assert!(log.contains("ERROR no connection: ") && log.contains("the daemon keeps trying"), "{log}");
    server.run();
    wait_for("the first join", || server.events("gw") == ["join.first"]);
    wait_for("the error to go", || device.status()["last_error"].is_null());
    end(daemon, Signal::SIGTERM, &device);
}

#[test]
fn it_keeps_trying_when_it_is_refused() {
    let server = Server::start();
    let device = Device::new(&server, "gw", "geheim-geheim-geheim");
    let daemon = device.daemon();
    wait_for("a refusal", || device.storage().join("status.json").exists() && error_type(&device) == "not-found");
    server.token("gw", "    onboarding: {registration_secret: geheim-geheim-geheim}\n    recovery: {limit: 1}");
    wait_for("the first join", || server.events("gw") == ["join.first"]);
    wait_for("the error to go", || device.status()["last_error"].is_null());

    server.ctl(&["lock", "--token", "gw", "--message", "in repair"]);
    daemon.signal(Signal::SIGUSR1);
    wait_for("a refusal", || error_type(&device) == "locked");
    let shown = String::from_utf8(success(&mut device.command(&["status"])).stdout).unwrap();
    assert!(shown.contains("last error    the server refused, locked: in repair ("), "{shown}");
    assert!(device.status()["certificate"].is_object(), "what it has it keeps");
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).unwrap();
    server.ctl(&["rm", &format!("lock/{}", locks[0]["metadata"]["name"].as_str().unwrap())]);
    wait_for("a renewal", || count(&server, "gw", "join.renewal") == 1);
    wait_for("the error to go", || device.status()["last_error"].is_null());
    end(daemon, Signal::SIGTERM, &device);
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// A token that is joined with too often: to be told to wait is no failure, neither for one join nor for the daemon.
#[test]
fn it_waits_as_long_as_the_pace_of_its_token_asks() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    let start = std::time::Instant::now();
    for _ in 0..11 {
        device.join();
    }
    assert!(start.elapsed() >= Duration::from_secs(5), "ten at once, then one in five seconds: {:?}", start.elapsed());
    let daemon = device.daemon();
    wait_for("its turn", || count(&server, "gw", "join.renewal") == 11 && server.was_heard(&device));
    assert_eq!(error_type(&device), Value::Null);
    assert!(device.log().contains("waiting for a turn") && !device.log().contains("ERROR"), "{}", device.log());
    end(daemon, Signal::SIGTERM, &device);
}

#[test]
fn it_recovers_by_itself_once_the_limit_is_raised() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    device.join();
    device.lose_certificate();
    let daemon = device.daemon();
    wait_for("a refusal", || error_type(&device) == "no-recoveries-left");
    server.token("gw", "    recovery: {limit: 2}");
    wait_for("a recovery", || count(&server, "gw", "join.recovery") == 1);
    end(daemon, Signal::SIGTERM, &device);
}

/// PIN, auth value and registration secret are for the agent alone.
#[test]
fn a_reload_command_is_not_given_the_secrets_of_the_environment() {
    let server = Server::start();
    server.create("kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n");
    let mut device = server.device("gw", 1);
    server.create("kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n");
    let said = device.dir.join("environment");
    let outputs = format!(
        "outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n    reload: {{command: [sh, -c, 'env > \"$0\"', {}]}}\n",
        device.dir.join("out").display(),
        said.display()
    );
    device.configure(&server, "", &outputs);
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    device.env.push(("BOUNDKEY_REGISTRATION_SECRET", secret.clone().into()));
    device.env.extend(["BOUNDKEY_PIN", "BOUNDKEY_SO_PIN", "BOUNDKEY_TPM_AUTH"].map(|name| (name, "open sesame".into())));
    device.env.push(("BOUNDKEY_TEST", "is passed on".into()));
    device.join();
    let said = std::fs::read_to_string(said).expect("what the command was given");
    assert!(said.contains("BOUNDKEY_TEST=is passed on"), "{said}");
    assert!(!said.contains("open sesame") && !said.contains(&secret), "{said}");
}

/// A certificate that holds for less than the interval is renewed before it ends, and a person is warned. The clocks of device and
/// server stand still, so that the certificate does not run out because the machine is slow; waits go by another clock.
#[test]
fn a_short_certificate_is_renewed_in_time() {
    let (mut server, clock) = (Server::init(&[]), WallClock::stopped());
    server.env.extend(clock.env().map(|(name, value)| (name, value.into())));
    server.run();
    let mut device = device(&server, "gw", 1, "credential_ttl: 3s\nrenewal_interval: 1h");
    device.env.clone_from(&server.env);
    let daemon = device.daemon();
    wait_for("two renewals", || count(&server, "gw", "join.renewal") >= 2);
    let status = device.status();
    let time = |text: &Value| text.as_str().expect("a time").parse::<boundkey::platform::time::Timestamp>().expect("a time");
    let (next, ends) = (time(&status["next_renewal"]), time(&status["certificate"]["not_after"]));
    assert!(next.plus(Duration::from_secs(1)) <= ends, "a third of its life is left: {status}");
    end(daemon, Signal::SIGTERM, &device);
    assert_eq!(server.status("gw")["recovery_count"], 1, "{}", device.log());
    assert!(
        device.log().contains("WARN the identity: credential_ttl (3s) is not longer than renewal_interval (1h)"),
        "{}",
        device.log()
    );
}

#[test]
fn the_service_manager_is_told() {
    let mut server = Server::start();
    let device = device(&server, "gw", 1, "");
    let path = device.dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // Taken at once, as a service manager does: the queue of a socket is short, and what finds it full is not said again.
    let (taken, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read) = socket.recv(&mut buffer) {
            if taken.send(String::from_utf8_lossy(&buffer[..read]).into_owned()).is_err() {
                return;
            }
        }
    });
    let receive = || said.recv_timeout(support::PATIENCE).expect("a datagram");
    let until = |start: &str| {
        let began = std::time::Instant::now();
        loop {
            let said = receive();
            if said.starts_with(start) {
                return said;
            }
            assert!(said == "WATCHDOG=1" || said.starts_with("STATUS="), "{said:?} before {start:?}");
            assert!(began.elapsed() < support::PATIENCE, "waited too long for {start:?}");
        }
    };
    let log = std::fs::File::create(device.dir.join("log")).unwrap();
    let mut command = device.command(&["start"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "500000").stderr(log);
    let daemon = Running(command.spawn().unwrap());
    assert_eq!(receive(), "READY=1\nSTATUS=starting");
    let status = until("STATUS=certificate until ");
    assert!(status.contains("; next renewal "), "{status}");
    for _ in 0..3 {
        assert_eq!(until("WATCHDOG=1"), "WATCHDOG=1", "while it waits");
    }
    server.kill();
    daemon.signal(Signal::SIGUSR1);
    until("STATUS=no connection: ");
    server.run();
    until("STATUS=certificate until ");
    daemon.signal(Signal::SIGTERM);
    until("STOPPING=1");
    assert!(daemon.wait().success());
    // Wakes the thread that receives, which then ends, if it has not yet.
    drop(said);
    let _ = UnixDatagram::unbound().unwrap().send_to(b"end", &path);
}

#[test]
fn a_reload_that_fails_is_repeated_and_stops_nothing() {
    let server = Server::start();
    server.create("kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n");
    let device = server.device("gw", 1);
    server.create("kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n");
    let (out, ready, pid) = (device.dir.join("out"), device.dir.join("ready"), device.dir.join("pid"));
    // A program that notes each SIGHUP, once it has said that it listens. A shell cannot trap what it was started with ignored, as
    // under nohup.
    let noted = device.dir.join("noted");
    let script = "trap 'echo hup >> \"$1\"' HUP; echo $$ > \"$0.new\"; mv \"$0.new\" \"$0\"; while :; do sleep 0.05; done";
    let program = Running(
        Command::new("env")
            .args(["--default-signal=HUP", "sh", "-c", script])
            .args([&pid, &noted])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_for("the program", || pid.exists());
    let outputs = format!(
        "outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n    reload:\n      command: [sh, -c, 'echo not yet >&2; test -e {}']\n  \
         - type: x509\n    destination: {{type: directory, path: {}}}\n    reload: {{pid_file: {}, signal: HUP}}\n",
        out.display(),
        ready.display(),
        device.dir.join("signalled").display(),
        pid.display()
    );
    device.configure(&server, &secret_of(&server, "gw"), &outputs);

    // Once: the join holds, the exit code tells of the reload.
    let (code, said) = device.try_join();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("reload by command sh failed: exit status: 1, and said: not yet"), "{said}");
    assert!(said.contains("run it by hand, as boundkey's user, to see why"), "{said}");
    assert!(out.join("tls.crt").exists() && server.events("gw") == ["join.first"]);
    wait_for("the signal", || noted.exists());

    let daemon = device.daemon();
    wait_for("a failure", || device.log().contains("reload by command sh failed"));
    wait_for("the report of it", || error_type(&device) == "reload");
    let status = device.status();
    assert!(status["next_renewal"].is_string() && status["certificate"].is_object(), "{status}");
    daemon.signal(Signal::SIGUSR1);
    wait_for("a renewal all the same", || count(&server, "gw", "join.renewal") >= 2);
    std::fs::write(&ready, "").unwrap();
    wait_for("the reload", || device.log().contains("reloaded by command sh"));
    wait_for("the error to go", || device.status()["last_error"].is_null());
    let renewals = count(&server, "gw", "join.renewal");
    end(daemon, Signal::SIGTERM, &device);
    assert_eq!(count(&server, "gw", "join.renewal"), renewals, "the reload alone was repeated");
    drop(program);
}

/// A request that hangs does not keep the daemon from ending, nor does its sudden end cost anything.
#[test]
fn a_daemon_ends_soon_also_in_the_middle_of_a_request() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    device.join();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = std::fs::read_to_string(device.config()).unwrap();
    std::fs::write(device.config(), yaml.replace(&server.addr, &silent.local_addr().unwrap().to_string())).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let daemon = device.daemon();
        let (_connection, _) = silent.accept().expect("a request");
        let told = std::time::Instant::now();
        end(daemon, signal, &device);
        assert!(told.elapsed() < Duration::from_secs(40), "not only at the request's end, after 45 s: {:?}", told.elapsed());
        assert!(device.log().contains("WARN ended in the middle of a try"), "{}", device.log());
    }
    std::fs::write(device.config(), yaml).unwrap();
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
}

/// What no retry mends ends the daemon at once.
#[test]
fn a_wrong_configuration_ends_it() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    let yaml = std::fs::read_to_string(device.config()).unwrap();
    std::fs::write(device.config(), yaml.replace("ca_pins", "ca_pin")).unwrap();
    let output = run(&mut device.command(&["start"]));
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits are measured by the clock that goes on while the device sleeps, and that nobody sets: CLOCK_BOOTTIME, number 7.
#[test]
fn waits_count_the_time_asleep() {
    let server = Server::start();
    let device = device(&server, "gw", 1, "");
    let daemon = device.daemon();
    let clock_of = |fd: std::fs::DirEntry| std::fs::read_to_string(fd.path()).unwrap_or_default();
    wait_for("a timer on CLOCK_BOOTTIME", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fdinfo", daemon.0.id())).expect("the daemon runs");
        fds.flatten().map(clock_of).any(|info| info.lines().any(|line| line == "clockid: 7"))
    });
}
