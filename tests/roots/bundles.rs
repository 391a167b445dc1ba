//! Which trust bundles a device takes, and which it refuses.

use boundkey::join::trust::Contents;
use boundkey::join::{TrustBundle, base64url};
use boundkey_hal::file::PrivateKey;
use serde_json::json;

use super::support::{Device, Server};
use super::{bundle, ca_json, read_ca};

#[test]
fn a_device_takes_the_bundle_and_an_earlier_storage_comes_through() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = bundle(&device);
    assert_eq!((first.cluster(), first.roots().len()), ("test.example", 1));
    let written = std::fs::metadata(device.storage().join("trust")).expect("trust").modified().expect("time");
    device.join();
    assert_eq!(std::fs::metadata(device.storage().join("trust")).expect("trust").modified().expect("time"), written);
    // Versions before this one kept the CA's certificate behind the identity, and no trust file.
    std::fs::remove_file(device.storage().join("trust")).expect("remove");
    let identity = std::fs::read_to_string(device.storage().join("identity.pem")).expect("identity");
    let ca = std::fs::read_to_string(server.dir.join("data/ca.pem")).expect("ca.pem");
    std::fs::write(device.storage().join("identity.pem"), identity + &ca).expect("write");
    device.join();
    assert_eq!(bundle(&device), first);
    assert_eq!(server.events("gw"), ["join.first", "join.renewal", "join.renewal"]);
}

#[test]
fn a_cluster_made_before_there_were_trust_bundles_goes_on() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    server.stop();
    std::fs::remove_file(ca_json(&server)).expect("remove");
    std::fs::remove_file(device.storage().join("trust")).expect("remove");
    server.run();
    device.join();
    server.stop();
    let (text, newest) = (std::fs::read(ca_json(&server)).expect("made"), bundle(&device));
    server.run();
    device.join();
    assert_eq!((std::fs::read(ca_json(&server)).expect("kept"), bundle(&device)), (text, newest));
}

#[test]
fn a_bundle_that_is_not_to_be_taken_is_refused_and_nothing_is_stored() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let stranger = Server::init(&[]);
    device.join();
    let held = bundle(&device).sequence();
    let own = bundle(&device).roots()[0].chain.clone();
    let foreign = first_certificate(&stranger);
    let strangers_bundle = read_ca(&stranger)["bundles"][0].as_str().expect("a bundle").to_owned();
    // Of strangers, who may have made theirs later; and without the CA of the server that gives it.
    let without_ours = signed_by_first(&server, held + 2, &[own.clone(), vec![foreign.clone()]]);
    let orders = [
        (vec![renumbered(&stranger, held + 1)], "no CA that this device trusts"),
        (vec![without_ours.clone(), strangers_bundle.replace('.', "")], "it is malformed"),
        (vec![renumbered(&stranger, held + 1), renumbered(&stranger, held + 2)], "no CA that this device trusts"),
    ];
    for (bundles, why) in orders {
        // The server itself refuses what is no bundle at all.
        if TrustBundle::open(bundles.last().expect("one")).is_err() {
            with_bundles(&mut server, &bundles, |server| assert!(!server.run_as(server.command())));
        } else {
            expect_refusal(&mut server, &bundles, &device, why);
        }
    }
    device.join();
    assert_eq!(server.get("token/gw")["status"]["bound_keypair"]["recovery_count"], 1);
}

/// The stranger's own bundle with another sequence number.
fn renumbered(stranger: &Server, sequence: u64) -> String {
    signed_by_first(stranger, sequence, &[vec![first_certificate(stranger)]])
}

#[test]
fn a_bundle_without_the_ca_of_the_server_that_gives_it_is_refused() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    let other = Server::init(&[]);
    device.join();
    let held = bundle(&device).sequence();
    // Signed by the root that the device trusts, which has to be in it; the bundle after it, by the next root, leaves that one out.
    let own = bundle(&device).roots()[0].chain.clone();
    let next = first_certificate(&other);
    let bundles =
        [signed_by_first(&server, held + 1, &[own, vec![next.clone()]]), signed_by_first(&other, held + 2, &[vec![next]])];
    expect_refusal(&mut server, &bundles, &device, "does not hold under the trust bundle");
    device.join();
}

/// A bundle with these roots, signed by the first CA of the cluster.
fn signed_by_first(server: &Server, sequence: u64, roots: &[Vec<Vec<u8>>]) -> String {
    let pem = std::fs::read_to_string(server.dir.join("data/keys/key-ca-x509.pem")).expect("the key");
    let key = PrivateKey::from_pem(&pem).expect("a key");
    let contents = Contents { cluster: "test.example", sequence, roots, ssh_host: &[] };
    TrustBundle::sign(contents, &key.public_key().expect("its half"), |message| key.sign(message)).expect("signed")
}

/// The certificate of a cluster's first CA, DER.
fn first_certificate(server: &Server) -> Vec<u8> {
    let chain = &read_ca(server)["cas"][0]["chain"];
    chain[0].as_str().map(base64url::decode).expect("a chain").expect("DER")
}

/// Stops the server and replaces its trust bundles by `bundles` for `meanwhile`, which may leave it running or not. Then it runs with its
/// own bundles again.
fn with_bundles(server: &mut Server, bundles: &[String], meanwhile: impl FnOnce(&mut Server)) {
    server.stop();
    let own = read_ca(server);
    let mut ca = own.clone();
    ca["bundles"] = json!(bundles);
    std::fs::write(ca_json(server), ca.to_string()).expect("write");
    meanwhile(server);
    server.kill();
    std::fs::write(ca_json(server), own.to_string()).expect("write");
    server.run();
}

/// A device refuses the answer of a server with these bundles, says why, and stores nothing of it.
fn expect_refusal(server: &mut Server, bundles: &[String], device: &Device, why: &str) {
    let before = stored(device);
    with_bundles(server, bundles, |server| {
        server.run();
        let (code, said) = device.try_join();
        assert!(code == 3 && said.contains(why), "{code}: {said}");
        assert_eq!(stored(device), before);
        server.stop();
    });
}

/// Files that hold what a device knows, and their content.
fn stored(device: &Device) -> Vec<(String, Vec<u8>)> {
    ["identity.pem", "trust"].map(|name| (name.into(), std::fs::read(device.storage().join(name)).expect(name))).into()
}

#[test]
fn a_damaged_trust_file_and_a_pin_that_is_no_more_begin_anew() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let whole = std::fs::read(device.storage().join("trust")).expect("trust");
    std::fs::write(device.storage().join("trust"), &whole[..whole.len() / 2]).expect("write");
    let (code, said) = device.try_join();
    assert!(code == 0 && said.contains("trust is damaged and is not used"), "{code}: {said}");
    assert_eq!(std::fs::read(device.storage().join("trust")).expect("trust"), whole);
    // Of a pin that the configuration does not have: another cluster's, say.
    let text = String::from_utf8(whole.clone()).expect("text");
    let (pin, rest) = text.split_once('\n').expect("lines");
    let other = pin.chars().map(|c| if c == '0' { '1' } else { c }).collect::<String>();
    std::fs::write(device.storage().join("trust"), format!("{other}\n{rest}")).expect("write");
    if other != pin {
        let (code, said) = device.try_join();
        assert!(code == 0 && said.contains("came from a pin that the configuration does not have"), "{code}: {said}");
        assert_eq!(std::fs::read(device.storage().join("trust")).expect("trust"), whole);
    }
}
