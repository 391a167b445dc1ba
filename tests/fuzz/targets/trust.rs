//! Trust bundles and the certificates in them, as a server sends them and as the device keeps them.
//!
//! First byte, modulo 3: 0 the device's file; 1 the certificate of a CA; 2 the payload of a bundle that the CA signs here.

use boundkey::agent::trust::parse;
use boundkey::join::trust::{CaCertificate, MAX_BUNDLE, MAX_CHAIN, MAX_ROOTS};
use boundkey::join::{Thumbprint, TrustBundle, Trusted, base64url};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::{authority, is_whole};
use super::keys::CA;
use super::{Told, choice, refused};

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    match way % 3 {
        0 => parse(data).map_or_else(|| "no trust".into(), |trusted| told(&trusted.bundle)),
        1 => certificate(data),
        _ => bundle(data),
    }
}

/// A CA to us is one to another implementation. Names are compared as they stand, and not looked into.
fn certificate(der: &[u8]) -> Told {
    let Some(read) = CaCertificate::read(der) else { return "no CA certificate".into() };
    assert!(is_whole(der), "a certificate with something behind it");
    if let Ok((_, theirs)) = X509Certificate::from_der(der) {
        let is_ca = theirs.basic_constraints().is_ok_and(|found| found.is_some_and(|found| found.value.ca));
        let may_sign = theirs.key_usage().is_ok_and(|found| found.is_none_or(|found| found.value.key_cert_sign()));
        // Ours may be the stricter one: DER alone, and no twice named extension.
        assert!(!read.is_ca || (is_ca && may_sign) || theirs.extensions_map().is_err(), "a CA that is none");
    }
    format!("ok: {} {}", read.is_ca, read.key().is_some())
}

fn bundle(payload: &[u8]) -> Told {
    let header = format!(r#"{{"alg":"ES256","typ":"trust-bundle+jwt","kid":"{}"}}"#, Thumbprint::of(&CA.public));
    let signed = format!("{}.{}", base64url::encode(header), base64url::encode(payload));
    let signature = CA.sign(signed.as_bytes()).expect("the CA signs");
    let text = format!("{signed}.{}", base64url::encode(signature.as_bytes()));
    let pin = CaCertificate::read(authority().certificate()).expect("our own").pin();
    let begun = Trusted::begin(&[pin], std::slice::from_ref(&text));
    match TrustBundle::open(&text) {
        Ok(bundle) => {
            assert!(text.len() <= MAX_BUNDLE && bundle.signer().key == CA.public);
            assert!((1..=MAX_ROOTS).contains(&bundle.roots().len()));
            assert!(bundle.roots().iter().all(|root| (1..=MAX_CHAIN).contains(&root.chain.len())));
            if let Ok(begun) = begun {
                assert_eq!(begun.bundle, bundle);
                assert!(begun.follow(&[text]).is_err(), "the same once more");
            }
            told(&bundle)
        }
        Err(e) => {
            assert!(begun.is_err());
            refused(&e)
        }
    }
}

fn told(bundle: &TrustBundle) -> Told {
    format!("ok: {} roots, {} certificates", bundle.roots().len(), bundle.certificates().len())
}
