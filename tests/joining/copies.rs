//! Copies of a device's storage that are used beside it, with the real programs.

use std::fs;

use super::support::proxy::{Proxy, Way};
use super::support::{Device, Server};

/// The device, whose way to the server has a hook: the copy makes a step before every message of the device. That is as fast as a copy can
/// be.
fn raced(server: &Server, token: &str) -> (Device, Proxy) {
    let device = server.device(token, 5);
    device.join();
    let copy = device.copy();
    let proxy = Proxy::to(&server.addr);
    proxy.before_each(Way::Up, move || drop(copy.try_join()));
    device.configure_with(&proxy.addr, &server.ca_pin, "", "");
    (device, proxy)
}

/// In six of six runs such a device was told `challenge-stale` for ever, without a lock and without a line in the audit log.
#[test]
fn a_copy_that_is_always_faster_is_caught() {
    let server = Server::start();
    let (device, _proxy) = raced(&server, "raced");
    let (code, said) = device.try_join();
    let events = server.events("raced");
    assert!(events.iter().filter(|event| *event == "join.renewal").count() > 1, "the copy made steps: {events:?}");
    assert_eq!(events.iter().filter(|event| *event == "lock.created").count(), 1, "{code} {said}");
    assert_eq!(code, 4, "{said}");
}

/// Hosts share the key on purpose: none of them starves another, however fast it joins.
#[test]
fn a_host_that_is_always_faster_starves_nobody() {
    let server = Server::start();
    server.token("shared", "    recovery: {mode: insecure}");
    let secret = server.status("shared")["registration_secret"].as_str().expect("a secret").to_owned();
    let first = Device::new(&server, "shared", &secret);
    first.join();
    let copy = first.copy();
    copy.lose_certificate();
    copy.join();
    let proxy = Proxy::to(&server.addr);
    proxy.before_each(Way::Up, move || drop(copy.try_join()));
    first.configure_with(&proxy.addr, &server.ca_pin, "", "");
    let (code, said) = first.try_join();
    assert_eq!(code, 0, "{said}");
    assert!(!server.events("shared").contains(&"lock.created".to_owned()));
}

/// The older slot of the state held what the last request was made of: attempt, and join state from before. A copy of an idle device could
/// have the last answer given once more from it, for keys of its own, and nothing told the two apart.
#[test]
fn a_copy_of_an_idle_device_holds_no_answer_that_could_be_given_again() {
    let server = Server::start();
    for damaged in [0, 1] {
        let device = server.device(&format!("idle{damaged}"), 5);
        device.join();
        device.join();
        let copy = device.copy();
        let path = copy.storage().join("state");
        let mut state = fs::read(&path).expect("a state file");
        let half = state.len() / 2;
        state[damaged * half..(damaged + 1) * half].fill(0);
        fs::write(&path, state).expect("one slot is left");
        copy.join();
        assert_eq!(server.events(&copy.token).last().map(String::as_str), Some("join.renewal"), "a step, which tells them apart");
        assert_eq!(device.try_join().0, 4);
    }
}
