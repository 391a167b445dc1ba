//! The technician's way back: device and copy both exist, the lock stands, and a recovery code lets in the device alone.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::count;
use super::recovery_codes::recovery_code;
use super::support::proxy::{Proxy, Way};
use super::support::{Device, Server, wait_for};

fn locks(server: &Server) -> Vec<Value> {
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    locks.as_array().expect("a list").clone()
}

/// Whether the daemon that was just started has joined, or was refused.
fn tried(device: &Device) -> bool {
    let log = device.log();
    log.contains("ERROR") || log.contains("next renewal") || log.contains("INFO re")
}

/// Whether the last join of the device, which goes on by itself, was let in.
fn is_back(device: &Device, key: &Value) -> bool {
    let status = device.status();
    status["last_error"].is_null() && status["keystore"]["thumbprint"] == *key
}

/// From the moment when device and copy hold the same, or nearly: a code lets in the device, which does nothing but go on, and the copy is a
/// stranger for ever, which no later exemption lets in.
fn the_device_alone_comes_back(server: &Server, device: &Device, copy: &Device) {
    let daemon = device.daemon();
    wait_for("a try", || tried(device));
    let is_refused = !device.status()["last_error"].is_null();
    let recoveries = server.status("gw")["recovery_count"].clone();
    let code = recovery_code(device);
    let said = server.ctl(&["exempt", "token/gw", "--reason", "in our hands", "--key", code["code"].as_str().expect("a code")]);
    assert!(
        said.ends_with(&format!("only the device with key {} can come back\n", code["code"].as_str().expect("a code"))),
        "{said}"
    );
    let (refused, said) = copy.try_join();
    assert!([4, 6].contains(&refused), "{refused}: {said}");
    if !is_refused {
        // It would ask within half a minute.
        daemon.signal(Signal::SIGUSR1);
    }
    wait_for("the device", || is_back(device, &code["thumbprint"]));
    assert_eq!(device.status()["recovery_code"], Value::Null);
    assert_eq!(locks(server), [Value::Null; 0], "the lock is lifted");
    assert_eq!(server.status("gw")["exemption"], Value::Null, "and the exemption has ended");
    let spent = server.status("gw")["recovery_count"].as_u64().expect("a number") - recoveries.as_u64().expect("a number");
    assert!(spent <= 1, "{spent} recoveries");
    drop(daemon);

    for exempt in [false, true, true] {
        if exempt {
            server.ctl(&["exempt", "token/gw"]);
        }
        let (refused, said) = copy.try_join();
        assert_eq!(refused, 6, "{said}");
        device.join();
        assert_eq!(locks(server), [Value::Null; 0], "a stranger locks nobody out");
    }
    let last = server.audit().into_iter().rfind(|event| event["event"] == "join.refused").expect("a refusal");
    assert_eq!(last["problem"], "key-not-proven");
}

/// A device that was copied, and whose copy has joined since or not.
fn copied(server: &Server) -> (Device, Device) {
    let device = server.device("gw", 1);
    device.join();
    let copy = device.copy();
    (device, copy)
}

#[test]
fn by_a_code_where_the_copy_is_in_step() {
    let server = Server::start();
    let (device, copy) = copied(&server);
    copy.join();
    assert_eq!(device.try_join().0, 4, "two holders");
    assert_eq!(locks(&server).len(), 1);
    the_device_alone_comes_back(&server, &device, &copy);
}

#[test]
fn by_a_code_where_the_device_is_in_step_and_it_costs_no_recovery() {
    let server = Server::start();
    let (device, copy) = copied(&server);
    device.join();
    assert_eq!(copy.try_join().0, 4, "two holders");
    the_device_alone_comes_back(&server, &device, &copy);
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// Nobody noticed yet: the code itself locks the copy out.
#[test]
fn by_a_code_before_the_copy_was_noticed() {
    let server = Server::start();
    let (device, copy) = copied(&server);
    the_device_alone_comes_back(&server, &device, &copy);
}

/// The copy has rotated the key: the device's own is retired.
#[test]
fn by_a_code_where_the_copy_rotated_the_key() {
    let server = Server::start();
    let (device, copy) = copied(&server);
    server.ctl(&["rotate", "token/gw"]);
    copy.join();
    assert_eq!(count(&server, "gw", "key.rotated"), 1);
    assert_eq!(device.try_join().0, 4, "two holders");
    the_device_alone_comes_back(&server, &device, &copy);
}

/// A rotation was in flight when the storage was copied: the copy has the new key too, and the attempt.
#[test]
fn by_a_code_where_a_rotation_was_in_flight_at_the_copy() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let link = Proxy::to(&server.addr);
    device.configure_with(&link.addr, &server.ca_pin, "", "");
    server.ctl(&["rotate", "token/gw"]);
    link.cut_after(Way::Down, 3500);
    assert_eq!(device.try_join().0, 3);
    assert_eq!(device.status()["attempt_in_flight"], json!(true));
    let copy = device.copy();
    link.mend();
    // Either may take the answer that was lost; the other one is found out at the next step.
    copy.join();
    copy.join();
    let (code, said) = device.try_join();
    assert_eq!(code, 4, "{said}");
    the_device_alone_comes_back(&server, &device, &copy);
}

/// The copy asks all the time, before the code, beside it and after it.
#[test]
fn by_a_code_beside_a_copy_that_never_rests() {
    let server = Server::start();
    let (device, copy) = copied(&server);
    let hurried = |device: &Device| {
        let yaml = std::fs::read_to_string(device.config()).expect("configuration");
        std::fs::write(device.config(), yaml + "renewal_interval: 1s\n").expect("configuration");
    };
    hurried(&copy);
    let thief = copy.daemon();
    wait_for("the copy's renewals", || count(&server, "gw", "join.renewal") >= 2);
    assert_eq!(device.try_join().0, 4, "two holders");
    let daemon = device.daemon();
    let code = recovery_code(&device);
    server.ctl(&["exempt", "token/gw", "--key", code["code"].as_str().expect("a code")]);
    wait_for("the device", || is_back(&device, &code["thumbprint"]));
    wait_for("the copy's refusal", || copy.status()["last_error"]["type"] == "key-not-proven");
    assert_eq!(locks(&server), [Value::Null; 0]);
    drop((thief, daemon));
    device.join();
}
