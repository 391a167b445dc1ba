//! An issuing CA under another's root: the request for its certificate, and the chain that comes back.
//!
//! What is refused here would be refused by every device later, with less to say about it.

use boundkey_hal::PublicKey;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::*;

use super::issue::ca_params;
use super::{CaError, SharedKeys, set::KeyNames};
use boundkey_credential::certify::Signer;
use boundkey_join::trust::{CaCertificate, MAX_BUNDLE, MAX_CHAIN};
use boundkey_platform::time::Timestamp;

/// A PKCS#10 request (RFC 2986) for the certificate of the first CA of `cluster`, DER. Its key has to be there.
pub(super) fn request(cluster: &str, keys: &SharedKeys) -> Result<Vec<u8>, CaError> {
    let id = KeyNames::of(1)?.x509;
    let key = Signer::new(keys.public_key(&id)?, |message: &[u8]| keys.sign(&id, message));
    let request = ca_params(cluster, 1).serialize_request(&key);
    Ok(request.map_err(|e| super::issue::unsigned(&key, e))?.der().to_vec())
}

/// Takes a chain in PEM: the certificate of our `key` first, then its issuer's, and so on to the root.
///
/// # Errors
/// What is wrong with it, in words for the one who asked for it.
pub(super) fn check(pem: &[u8], key: &PublicKey, now: Timestamp) -> Result<Vec<Vec<u8>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| format!("it cannot be read: {e}"))?;
    let chain: Vec<_> = chain.into_iter().map(|der| der.to_vec()).collect();
    match chain.len() {
        0 => return Err("it holds no certificate in PEM".into()),
        1 => return Err("it holds one certificate: those of the issuer and of all above it, to the root, have to follow".into()),
        n if n > MAX_CHAIN => return Err(format!("it holds {n} certificates, and {MAX_CHAIN} are the most")),
        _ => {}
    }
    // Before all else: a file in the wrong order is told as what it is.
    if CaCertificate::read(&chain[0]).is_some_and(|first| first.key().as_ref() != Some(key)) {
        return Err("its first certificate is not for the key that the request was for".into());
    }
    for (at, der) in chain.iter().enumerate() {
        certificate(der, at, now).map_err(|why| format!("certificate {}: {why}", at + 1))?;
    }
    let read: Vec<_> = chain.iter().filter_map(|der| CaCertificate::read(der)).collect();
    if read.len() != chain.len() {
        return Err("one of its certificates is not of version 3".into());
    }
    for (at, pair) in read.windows(2).enumerate() {
        if pair[0].issuer != pair[1].subject {
            return Err(format!("certificate {} was issued by another CA than the one of certificate {}", at + 1, at + 2));
        }
        if !pair[0].is_issued_by(&pair[1]) {
            return Err(format!(
                "certificate {} is not signed by the key of certificate {} with ECDSA on P-256 and SHA-256, the one kind that devices \
                 verify",
                at + 1,
                at + 2
            ));
        }
    }
    let root = read[read.len() - 1];
    if root.issuer != root.subject {
        return Err("its last certificate is not that of a root: its issuer's has to follow".into());
    }
    // A bundle names two CAs while one is replaced, and each byte is written as 16/9 characters.
    if chain.iter().map(Vec::len).sum::<usize>() * 2 * 16 / 9 > MAX_BUNDLE - 1024 {
        return Err("its certificates are too long for what devices take".into());
    }
    Ok(chain)
}

/// That a device which knows the root alone, the last of `chain`, believes the server certificate `leaf`.
pub(super) fn holds(leaf: &[u8], chain: &[Vec<u8>], now: Timestamp) -> Result<(), String> {
    let refused = |e: webpki::Error| format!("a certificate that it issues for the server does not hold under its root: {e}");
    let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let (root, between) = chain.split_last().ok_or("it holds no certificate")?;
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(refused)?;
    let leaf = CertificateDer::from(leaf);
    let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(refused)?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.secs()));
    let (algorithms, usage) = (&[webpki::ring::ECDSA_P256_SHA256], webpki::KeyUsage::server_auth());
    leaf.verify_for_usage(algorithms, &[anchor], between, time, usage, None, None).map(drop).map_err(refused)
}

/// Judges one certificate with `below` CAs below it.
fn certificate(der: &[u8], below: usize, now: Timestamp) -> Result<(), String> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| format!("it cannot be read: {e}"))?;
    if !rest.is_empty() {
        return Err("something stands behind it".into());
    }
    let unreadable = |e: X509Error| format!("its extensions cannot be read: {e}");
    let constraints = certificate.basic_constraints().map_err(unreadable)?;
    if !constraints.as_ref().is_some_and(|constraints| constraints.value.ca) {
        return Err("it is not that of a CA: basic constraints with CA:TRUE are missing".into());
    }
    let most = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    if most.is_some_and(|most| (most as usize) < below) {
        return Err(format!("its path length allows {} CAs below it, and there are {below}", most.unwrap_or_default()));
    }
    let usage = certificate.key_usage().map_err(unreadable)?;
    if usage.as_ref().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage lacks keyCertSign".into());
    }
    if below == 0 {
        if usage.is_some_and(|usage| !usage.value.crl_sign()) {
            return Err("its key usage lacks cRLSign: it signs revocation lists".into());
        }
        if certificate.extended_key_usage().map_err(unreadable)?.is_some() {
            return Err(
                "it has an extended key usage, which would have to be that of all that it issues: ask for one without".into()
            );
        }
        super::request::subject_name(der)?;
        super::request::key_identifier(der)?;
    }
    let validity = certificate.validity();
    let seconds = i64::try_from(now.secs()).unwrap_or(i64::MAX);
    if validity.not_after.timestamp() <= seconds {
        return Err(format!("it has ended: {}", validity.not_after));
    }
    if validity.not_before.timestamp() > seconds {
        return Err(format!("it does not begin before {}", validity.not_before));
    }
    Ok(())
}
