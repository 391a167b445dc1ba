//! Host keys and certificates for sshd. P-256, in PKCS#8: sshd reads no Ed25519 in that form before OpenSSH 9.6.

use boundkey_hal::{Algorithm, PublicKey};

use boundkey_credential::ssh;
use boundkey_join::SshKey;
use boundkey_join::message::SshHostRequest;

/// The name of the private key's file; those beside it begin with it.
pub(super) const KEY: &str = "ssh_host_ecdsa_key";

/// The keys that clients of the host trust.
pub(super) const AUTHORITIES: &str = "ssh_host_ca.pub";

/// The public key in a SubjectPublicKeyInfo of P-256, which ends with its point.
fn key(public_key: &[u8]) -> Option<PublicKey> {
    let start = public_key.len().checked_sub(Algorithm::EcdsaP256.public_key_len())?;
    PublicKey::new(Algorithm::EcdsaP256, &public_key[start..]).ok()
}

/// What to ask the server for.
pub(super) fn request(public_key: &[u8], principals: &[String]) -> Option<SshHostRequest> {
    Some(SshHostRequest { key: SshKey(key(public_key)?), principals: principals.to_vec() })
}

/// What stands beside the private key, if the certificate `blob` is one for it: names of files, and their text.
pub(super) fn public(public_key: &[u8], blob: &[u8]) -> Option<Vec<(&'static str, String)>> {
    let key = key(public_key)?;
    let authority = ssh::authority_of(blob, &key)?;
    Some(vec![
        (AUTHORITIES, ssh::line(authority)?),
        ("ssh_host_ecdsa_key-cert.pub", ssh::line(blob)?),
        ("ssh_host_ecdsa_key.pub", format!("{}\n", SshKey(key))),
    ])
}
