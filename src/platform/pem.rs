//! PEM (RFC 7468) around DER.

use pem_rfc7468::LineEnding;

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
    // It fails for a label with control characters, and for a text whose length is more than a usize: DER that is in memory is far shorter.
    pem_rfc7468::encode_string(label, LineEnding::LF, der).expect("a label of ours, and a text that fits in memory")
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
