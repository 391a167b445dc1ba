//! Which revocation lists an agent passes on, and which not.
#![cfg(feature = "agent")]

use std::time::Duration;

use boundkey::agent::crl::RevocationLists;
use boundkey::agent::tls::{Presented, Roots};
use boundkey::agent::transport::{Transport, TransportError};
use boundkey::join::message::CRL_LIFETIME;
use boundkey::join::trust::{CaCertificate, pin_text};
use boundkey::platform::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod, KeyPair,
    RevocationReason, RevokedCertParams, SerialNumber,
};

const NOW: Duration = Duration::from_secs(1000);

/// A server that answers with a list for the end of a path, the CA's.
struct Lists<F>(F);

impl<F: Fn(&str) -> Result<Vec<u8>, TransportError>> Transport for Lists<F> {
    fn post(&mut self, path: &str, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        panic!("nothing is posted to {path}")
    }
    fn get(&mut self, path: &str, kind: &str, _: usize) -> Result<Vec<u8>, TransportError> {
        assert_eq!(kind, "application/pkix-crl");
        self.0(path.strip_prefix("/v1/crl/").expect("the path of a list"))
    }
    fn presented(&self) -> Option<Presented> {
        None
    }
    fn holds_under(&self, _: &Roots) -> bool {
        false
    }
    fn note_server_time(&mut self, time: Timestamp) -> Result<Timestamp, Timestamp> {
        Ok(time)
    }
}

/// A server that gives this list, whatever CA is asked for.
fn gives(list: &[u8]) -> impl Transport {
    Lists(move |_: &str| Ok(list.to_vec()))
}

/// A server that has lists of these CAs alone.
fn gives_each(lists: &[(String, Vec<u8>)]) -> impl Transport {
    Lists(move |asked: &str| {
        let found = lists.iter().find(|(pin, _)| asked == pin);
        found.map(|(_, list)| list.clone()).ok_or(TransportError::TimedOut)
    })
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn list(ca: &Ca, number: u64, length: u64) -> Vec<u8> {
    let time = Timestamp::from_secs(1_800_000_000).to_system();
    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: time.into(),
        reason_code: Some(RevocationReason::CertificateHold),
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: time.into(),
        next_update: (time + CRL_LIFETIME).into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: (1..=length).map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(ca).expect("a list").der().to_vec()
}

fn fetch(held: &mut RevocationLists, der: &[u8], bundle: &[Vec<u8>]) -> Result<bool, TransportError> {
    held.fetch(&mut gives(der), bundle, NOW)
}

#[test]
fn a_list_of_a_trusted_ca_is_taken_whatever_its_length() {
    let trusted = ca("trusted");
    let bundle = [trusted.der().to_vec()];
    let mut held = RevocationLists::default();
    assert!(held.ders().is_empty());
    // Lengths of one, two and three bytes.
    for (number, length) in [(1, 0), (2, 1), (200, 10), (70_000, 2000), (u64::MAX, 3)] {
        let der = list(&trusted, number, length);
        assert!(fetch(&mut held, &der, &bundle).expect("taken"), "number {number}");
        assert_eq!(held.ders(), [&*der]);
        assert!(!fetch(&mut held, &der, &bundle).expect("the same"), "nothing changed");
    }
}

#[test]
fn a_list_of_anyone_else_is_not_taken() {
    let trusted = ca("trusted");
    let bundle = [trusted.der().to_vec()];
    let mut held = RevocationLists::default();
    let good = list(&trusted, 7, 1);
    fetch(&mut held, &good, &bundle).expect("taken");
    // The second has the name of the trusted one.
    for foreign in [ca("other"), ca("trusted")] {
        let refused = fetch(&mut held, &list(&foreign, 8, 0), &bundle).expect_err("refused");
        assert_eq!(refused.to_string(), "revocation list: the trusted CA did not sign it");
    }
    assert_eq!(held.ders(), [&*good]);
    assert!(fetch(&mut held, &list(&trusted, 8, 0), &[]).expect("a change"), "a CA that is trusted no more takes its list along");
    assert!(held.ders().is_empty());
}

#[test]
fn a_number_that_went_back_is_not_taken_while_the_list_at_hand_holds() {
    let trusted = ca("trusted");
    let bundle = [trusted.der().to_vec()];
    let mut held = RevocationLists::default();
    let (newer, older) = (list(&trusted, 300, 1), list(&trusted, 299, 0));
    fetch(&mut held, &newer, &bundle).expect("taken");
    assert!(!fetch(&mut held, &older, &bundle).expect("no fault of the server's"));
    assert_eq!(held.ders(), [&*newer]);
    // By then programs refuse the one at hand; a server whose clock was set back has to get through.
    assert!(held.fetch(&mut gives(&older), &bundle, NOW + CRL_LIFETIME).expect("taken"));
    assert_eq!(held.ders(), [&*older]);
}

#[test]
fn no_damaged_list_is_taken() {
    let trusted = ca("trusted");
    let bundle = [trusted.der().to_vec()];
    let good = list(&trusted, 7, 2);
    let mut held = RevocationLists::default();
    let mut refused = |der: &[u8]| assert!(fetch(&mut held, der, &bundle).is_err());
    for end in 0..good.len() {
        refused(&good[..end]);
    }
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            refused(&bad);
        }
    }
    refused(&[&good[..], &[0]].concat());
    refused(trusted.der());
}

#[test]
fn each_ca_has_a_list_and_one_that_fails_does_not_hide_that_another_changed() {
    let (one, two) = (ca("one"), ca("two"));
    let pin = |ca: &Ca| pin_text(&CaCertificate::read(ca.der()).expect("a CA").pin()).replace("sha256:", "");
    let bundle = [one.der().to_vec(), two.der().to_vec()];
    let (first, second) = (list(&one, 1, 1), list(&two, 1, 1));
    let mut held = RevocationLists::default();
    // The second list is of another CA than the one that it is asked of.
    let mixed = [(pin(&one), first.clone()), (pin(&two), first.clone())];
    assert!(held.fetch(&mut gives_each(&mixed), &bundle, NOW).is_err());
    assert_eq!(held.ders(), [&*first]);
    assert!(held.fetch(&mut gives_each(&[(pin(&one), first.clone())]), &bundle, NOW).is_err());
    let whole = [(pin(&one), first.clone()), (pin(&two), second.clone())];
    assert!(held.fetch(&mut gives_each(&whole), &bundle, NOW).expect("taken"));
    assert_eq!(held.ders(), [&*first, &*second]);
    assert!(!held.fetch(&mut gives_each(&whole), &bundle, NOW).expect("the same"));
    assert!(held.fetch(&mut gives_each(&whole), &bundle[1..], NOW).expect("one went"));
    assert_eq!(held.ders(), [&*second]);
}
