//! Certificates and certificate requests, as the server takes them.
//!
//! First byte, modulo 4: 0 a certificate; 1 a `TBSCertificate` that the CA signs here; 2 a certificate request; 3 a
//! `CertificationRequestInfo` that the device's key signs here.

use std::sync::LazyLock;

use boundkey::auth::ca::{Authority, subject_key};
use boundkey::join::base64url;
use boundkey::platform::time::System;

use super::join::NOW;
use super::keys::{BOUND, CA, Key, SERVER, Store};
use super::{Told, choice, refused};

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let keys = Box::new(Store(vec![("ca-x509", &CA), ("join-state", &SERVER)]));
    Authority::certify_itself("c", keys, &System, NOW).expect("keys in memory sign")
});

/// The cluster's authority, with [`CA`] for its key.
pub fn authority() -> &'static Authority {
    &AUTHORITY
}

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    match way % 4 {
        0 => certificate(data),
        1 => certificate(&signed(data)),
        2 => request(data),
        _ => request(&signed_by(&BOUND, data)),
    }
}

fn certificate(der: &[u8]) -> Told {
    let named = Authority::named_instance(der);
    match AUTHORITY.identity(der) {
        Ok(shown) => {
            assert!(is_whole(der), "a certificate with something behind it");
            assert_eq!(named, Some(shown.subject.step.instance), "what is looked up is what is verified");
            format!("ok: {} {}", shown.key.algorithm(), shown.not_after < NOW)
        }
        Err(e) => format!("{} {}", refused(&e), named.is_some()),
    }
}

fn request(der: &[u8]) -> Told {
    match subject_key(&base64url::encode(der)) {
        Ok(key) => {
            assert!(is_whole(der), "a request with something behind it");
            format!("ok: {} {}", key.algorithm(), key == BOUND.public)
        }
        Err(e) => refused(&e),
    }
}

/// What the CA makes of a `TBSCertificate` or `TBSCertList` (RFC 5280 sections 4.1 and 5.1).
pub fn signed(to_be_signed: &[u8]) -> Vec<u8> {
    signed_by(&CA, to_be_signed)
}

fn signed_by(key: &Key, to_be_signed: &[u8]) -> Vec<u8> {
    const ECDSA_SHA256: &[u8] = &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let signature = key.sign(to_be_signed).expect("a key in memory signs");
    let (r, s) = signature.as_bytes().split_at(32);
    let body = [integer(r), integer(s)].concat();
    let bits = tlv(3, &[&[0][..], &tlv(0x30, &body)].concat());
    tlv(0x30, &[to_be_signed, ECDSA_SHA256, &bits].concat())
}

/// A positive INTEGER of at most 32 bytes.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len() - 1);
    let digits = &bytes[zeros..];
    let sign: &[u8] = if digits[0] >= 0x80 { &[0] } else { &[] };
    tlv(2, &[sign, digits].concat())
}

/// Whether this is one DER element to its last byte.
pub fn is_whole(der: &[u8]) -> bool {
    let behind = |head: usize, length: usize| der.len() == head + length;
    match *der {
        [_, 0x82, high, low, ..] => behind(4, usize::from(u16::from_be_bytes([high, low]))),
        [_, 0x81, length, ..] => behind(3, usize::from(length)),
        [_, short @ 0..=0x7f, ..] => behind(2, usize::from(short)),
        _ => false,
    }
}

/// A DER element (X.690 section 8.1) of at most 65535 bytes.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes() {
        [0, short @ 0..=0x7f] => vec![tag, short],
        [0, length] => vec![tag, 0x81, length],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [&length, content].concat()
}
