//! PEM (RFC 7468) around DER.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A certificate (RFC 7468 section 5).
pub fn certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// A certificate revocation list (RFC 7468 section 6).
pub fn revocation_list(der: &[u8]) -> String {
    encode("X509 CRL", der)
}

/// A certificate request (RFC 7468 section 7).
pub fn certificate_request(der: &[u8]) -> String {
    encode("CERTIFICATE REQUEST", der)
}

/// A private key in PKCS#8 (RFC 7468 section 10). The caller wipes it.
pub fn private_key(pkcs8: &[u8]) -> String {
    encode("PRIVATE KEY", pkcs8)
}

fn encode(label: &str, der: &[u8]) -> String {
    let body = zeroize::Zeroizing::new(STANDARD.encode(der));
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    #[test]
    fn reads_back() {
        for length in [0, 1, 47, 48, 49, 500] {
            let der = vec![0xa5; length];
            let pem = super::certificate(&der);
            assert!(pem.lines().all(|line| line.len() <= 64));
            assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().as_ref(), der);
        }
    }
}
