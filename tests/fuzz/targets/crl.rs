//! Revocation lists, as the agent takes them.
//!
//! First byte: even for a list as it stands, odd for a `TBSCertList` that the CA signs here.

use std::time::Duration;

use boundkey::agent::crl::RevocationLists;
use boundkey::agent::tls::{Presented, Roots};
use boundkey::agent::transport::{Transport, TransportError};
use boundkey::platform::time::Timestamp;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::certificate::{self, signed};
use super::{Told, choice, refused};

/// A server that has this list.
struct Serves(Vec<u8>);

impl Transport for Serves {
    fn post(&mut self, _: &str, _: &[u8]) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::TimedOut)
    }
    fn get(&mut self, _: &str, _: &str, _: usize) -> Result<Vec<u8>, TransportError> {
        Ok(self.0.clone())
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

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    let der = if way % 2 == 0 { data.to_vec() } else { signed(data) };
    let bundle = [certificate::authority().certificate().to_vec()];
    let mut list = RevocationLists::default();
    match list.fetch(&mut Serves(der.clone()), &bundle, Duration::ZERO) {
        Ok(new) => {
            assert!(certificate::is_whole(&der), "a list with something behind it");
            assert!(new && list.ders() == [&der[..]]);
            assert_eq!(list.fetch(&mut Serves(der.clone()), &bundle, Duration::ZERO).ok(), Some(false), "the same once more");
            let theirs = CertificateRevocationList::from_der(&der);
            let read = theirs.as_ref().is_ok_and(|(rest, crl)| rest.is_empty() && crl.crl_number().is_some());
            format!("ok: {read}")
        }
        Err(e) => {
            assert!(list.ders().is_empty());
            refused(&e)
        }
    }
}
