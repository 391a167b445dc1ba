//! Bad days on a device: what the first part of `docs/failures.md` tells of each, shown with the real programs.
//!
//! Some need a mount, a loop device or a network of their own. Where root runs the tests these must be there; where another user's
//! rights do not suffice, the test says `NOT TRIED`, and why.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "bad_days/clock.rs"]
mod clock;
#[path = "bad_days/fat.rs"]
mod fat;
#[path = "bad_days/flash.rs"]
mod flash;
#[path = "bad_days/names.rs"]
mod names;
#[path = "bad_days/offline.rs"]
mod offline;
#[path = "bad_days/others.rs"]
mod others;
#[path = "bad_days/path_mtu.rs"]
mod path_mtu;
#[path = "bad_days/proxy.rs"]
mod proxy;
#[path = "bad_days/storage.rs"]
mod storage;
mod support;

use boundkey::platform::pem;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};

/// Key and certificates, PEM, of a server of this name that somebody else's CA made; and the pin of that CA.
fn foreign_server(name: &str) -> (String, String) {
    let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let server = CertificateParams::new([name.to_owned()]).expect("a name");
    let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
    let certificate = server.signed_by(&key, &Issuer::new(ca, &ca_key)).expect("a certificate");
    let digest = ring::digest::digest(&ring::digest::SHA256, &ca_key.subject_public_key_info());
    let pin = digest.as_ref().iter().fold("sha256:".to_owned(), |pin, byte| format!("{pin}{byte:02x}"));
    let pem = [certificate.der(), ca_certificate.der()].map(|der| pem::certificate(der)).concat();
    (pem::private_key(&key.serialize_der()) + &pem, pin)
}
