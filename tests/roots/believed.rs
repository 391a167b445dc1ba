//! What counts of what a CA's keys signed, and of what devices tell.

use boundkey::join::device::Memory;
use boundkey::join::{Claims, Jws};
use boundkey::state::{DirStorage, StateFile};
use boundkey_hal::file::PrivateKey;
use serde_json::{Value, json};

use super::support::Server;
use super::support::proxy::{Proxy, Way};
use super::{ca, ca_refused, read_ca};

/// The CA that took over is in other hands, and the step is taken back: `--cancel` leaves nothing of it that counts.
#[test]
fn a_compromised_ca_that_is_withdrawn_is_believed_in_nothing() {
    let server = Server::start();
    let (device, off) = (server.device("gw", 2), server.device("off", 2));
    device.join();
    off.join();
    let refused = ca_refused(&server, &["rotate", "--compromised"]);
    assert!(refused.contains("--compromised goes with --to retired and with --cancel"), "{refused}");
    ca(&server, &["rotate"]);
    device.join();
    off.join();
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    // The last that it had was signed by the second CA.
    off.join();
    ca(&server, &["rotate", "--to", "announced", "--yes"]);
    device.join();
    ca(&server, &["rotate", "--cancel", "--compromised", "--yes"]);
    let report = ca(&server, &["status"]);
    assert_eq!((&report["cas"][1]["phase"], &report["cas"][1]["compromised"]), (&json!("retired"), &json!(true)));
    let withdrawn = server.audit().into_iter().rfind(|event| event["event"] == "ca.withdrawn").expect("an event");
    assert_eq!((&withdrawn["ca"], &withdrawn["compromised"]), (&json!(2), &json!(true)));
    device.join();
    assert!(server.events("gw").iter().skip(1).all(|event| event == "join.renewal"), "{:?}", server.events("gw"));
    // A join state by its keys may be anybody's.
    let (code, said) = off.try_join();
    assert_eq!(code, 4, "{said}");
    assert!(ca_refused(&server, &["rotate", "--to", "active"]).contains("no CA is announced"), "it does not come back");
}

/// With the certificate of the old CA by the next one and the old CA's keys, an attacker is believed by all that trust the next one alone,
/// also after the old one was retired.
#[test]
fn the_next_ca_certifies_the_old_one_only_when_its_step_is_taken_back() {
    let server = Server::start();
    let cross = |number: usize| {
        let set = read_ca(&server);
        let cross = set["cas"][number - 1]["cross"].as_array().cloned().unwrap_or_default();
        cross.iter().map(|der| der.as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    ca(&server, &["rotate"]);
    let by_first = cross(2);
    assert_eq!((cross(1).len(), by_first.len()), (0, 1), "the next one by the first alone");
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    assert_eq!((cross(1).len(), cross(2)), (0, by_first.clone()));
    for _ in 0..2 {
        ca(&server, &["rotate", "--to", "announced", "--yes"]);
        assert_eq!((cross(1).len(), cross(2).len(), &cross(2)[0]), (0, 2, &by_first[0]), "and now the first by it");
        ca(&server, &["rotate", "--to", "active", "--yes"]);
    }
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    // The usual way, never back.
    ca(&server, &["rotate"]);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    assert_eq!(cross(3).len(), 1);
}

/// The announced CA signs nothing yet, and its keys lie there for as long as the operator likes. What they sign meanwhile is a forgery.
#[test]
fn a_ca_that_never_signed_is_not_believed() {
    let server = Server::start();
    let device = server.device("gw", 2);
    device.join();
    ca(&server, &["rotate"]);
    device.join();
    let pem = std::fs::read_to_string(server.dir.join("data/keys/key-join-state-2.pem")).expect("the next CA's key");
    let forger = PrivateKey::from_pem(&pem).expect("a key");
    let public = forger.public_key().expect("a key");
    let mut state = StateFile::open(DirStorage::open(&device.storage())).expect("a state");
    let own = state.memory().clone();
    let claims = own.join_state.as_deref().and_then(|text| Jws::from_compact(text).ok()).expect("a join state");
    let claims: Claims = claims.unverified_payload().expect("claims");
    let forged = claims.sign(&public, |message| forger.sign(message)).expect("signed");
    state.store(&Memory { join_state: Some(forged), ..own.clone() }).expect("stored");
    let (code, said) = device.try_join();
    assert_eq!(code, 4, "{said}");
    // The same is good once that CA signs.
    for lock in locks(&server) {
        server.ctl(&["rm", &lock]);
    }
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    device.join();
    assert_eq!(server.events("gw").last().map(String::as_str), Some("join.renewal"));
}

fn locks(server: &Server) -> Vec<String> {
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    let name = |lock: &Value| format!("lock/{}", lock["metadata"]["name"].as_str().expect("a name"));
    locks.as_array().expect("locks").iter().map(name).collect()
}

/// How many devices are ready for a step is what devices told when they made theirs. An answer that is given again makes no step,
/// whatever device asks for it.
#[test]
fn an_answer_that_is_given_again_says_nothing_of_the_trust_bundle() {
    let server = Server::start();
    let proxy = Proxy::to(&server.addr);
    let (device, other) = (server.device("gw", 1), server.device("other", 1));
    device.join();
    device.configure_with(&proxy.addr, &server.ca_pin, "", "");
    device.join();
    let whole = proxy.passed(Way::Down);
    ca(&server, &["rotate"]);
    other.join();
    other.join();
    let ready = || ca(&server, &["status"])["cas"][1]["known"]["have"].clone();
    assert_eq!(ready(), 1, "the other one");
    proxy.mend();
    proxy.cut_after(Way::Down, whole - 100);
    assert_eq!(device.try_join().0, 3);
    proxy.mend();
    std::fs::copy(other.storage().join("trust"), device.storage().join("trust")).expect("the newest trust bundle");
    device.join();
    assert_eq!(server.events("gw").last().map(String::as_str), Some("join.replay"));
    assert_eq!(ready(), 1, "it is told by the next step");
    device.join();
    assert_eq!((server.events("gw").last().map(String::as_str), ready()), (Some("join.renewal"), json!(2)));
}
