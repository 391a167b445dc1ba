//! The SSH wire format (RFC 4251 section 5), as far as keys and certificates (OpenSSH's PROTOCOL.certkeys) take it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boundkey_hal::{Algorithm, PublicKey};

/// Writes a `string`.
pub fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing of ours is near 4 GB long; a reader refuses what is cut.
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// Reads a `string` off the front of `rest`.
pub fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let (string, after) = after.split_at_checked(u32::from_be_bytes(*length).try_into().ok()?)?;
    *rest = after;
    Some(string)
}

/// The name of keys of an algorithm (RFC 5656 section 3.1, RFC 8709 section 4).
pub fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::EcdsaP256 => "ecdsa-sha2-nistp256",
        Algorithm::Ed25519 => "ssh-ed25519",
    }
}

/// The name of certificates of such keys.
pub fn certificate_name(algorithm: Algorithm) -> String {
    format!("{}-cert-v01@openssh.com", name(algorithm))
}

/// What stands behind the name in the blob of a key, and behind the nonce in that of its certificate.
pub fn key_fields(key: &PublicKey) -> Vec<u8> {
    let mut fields = Vec::new();
    if key.algorithm() == Algorithm::EcdsaP256 {
        put(&mut fields, b"nistp256");
    }
    put(&mut fields, key.as_bytes());
    fields
}

/// A key or certificate as a file has it: the name that its blob begins with, and the blob in base64.
pub fn line(blob: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(take(&mut &*blob)?).ok()?;
    Some(format!("{name} {}\n", STANDARD.encode(blob)))
}

/// The key that signed the certificate `blob`, as a blob, if that is a host certificate for `key`. The signature is not verified.
pub fn authority_of<'a>(blob: &'a [u8], key: &PublicKey) -> Option<&'a [u8]> {
    const HOST: u32 = 2;
    let mut rest = blob;
    let named = take(&mut rest)? == certificate_name(key.algorithm()).as_bytes();
    take(&mut rest)?; // nonce
    let rest = rest.strip_prefix(&*key_fields(key))?;
    let (_serial, rest) = rest.split_first_chunk::<8>()?;
    let (kind, mut rest) = rest.split_first_chunk()?;
    take(&mut rest)?; // key id
    take(&mut rest)?; // principals
    let (_valid, mut rest) = rest.split_first_chunk::<16>()?;
    for _ in ["critical options", "extensions", "reserved"] {
        take(&mut rest)?;
    }
    let authority = take(&mut rest)?;
    let signed = take(&mut rest).is_some() && rest.is_empty();
    (named && signed && u32::from_be_bytes(*kind) == HOST).then_some(authority)
}
