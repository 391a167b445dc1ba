//! SSH host certificates (OpenSSH's PROTOCOL.certkeys), and the key that clients trust for them.

use boundkey_hal::{Algorithm, PublicKey, Signature};

use super::issue::BACKDATE;
use super::{Authority, CaError, Issued};
use boundkey_api::names::check_principal;
use boundkey_credential::ssh::{certificate_name, key_fields, name, put};
use boundkey_join::SshKey;
use boundkey_platform::time::{NoRandomness, Random, Timestamp};

/// Most names in one certificate.
const MAX_PRINCIPALS: usize = 64;
/// SSH2_CERT_TYPE_HOST
const HOST: u32 = 2;

impl Authority {
    /// The key that signs SSH host certificates.
    pub fn ssh_host_key(&self) -> SshKey {
        SshKey(self.active.ssh_host.1.clone())
    }

    /// The keys that clients trust for SSH host certificates: of every CA that counts.
    pub fn ssh_host_keys(&self) -> impl Iterator<Item = &SshKey> {
        self.set.trusted().map(|ca| &ca.ssh_host)
    }

    pub(super) fn ssh_host_blobs(&self) -> impl Iterator<Item = Vec<u8>> {
        self.ssh_host_keys().map(|key| key_blob(&key.0))
    }

    /// Issues a host certificate for `key`; `key_id` is what logs of SSH programs say of it.
    pub fn issue_ssh_host(
        &self,
        key: &PublicKey,
        key_id: &str,
        principals: &[String],
        (now, not_after): (Timestamp, Timestamp),
        random: &dyn Random,
    ) -> Result<Issued, CaError> {
        let mut fresh = [0; 40];
        random.fill(&mut fresh).map_err(|e: NoRandomness| CaError::Names(e.to_string()))?;
        let (serial, nonce) = fresh.split_at(8);
        let not_before = Timestamp::from_secs(now.minus(BACKDATE).secs());
        let not_after = Timestamp::from_secs(not_after.secs());

        let mut signed = Vec::new();
        put(&mut signed, certificate_name(key.algorithm()).as_bytes());
        put(&mut signed, nonce);
        signed.extend(key_fields(key));
        signed.extend(serial);
        signed.extend(HOST.to_be_bytes());
        put(&mut signed, key_id.as_bytes());
        put(&mut signed, &packed(principals)?);
        signed.extend(not_before.secs().to_be_bytes());
        signed.extend(not_after.secs().to_be_bytes());
        for _ in ["critical options", "extensions", "reserved"] {
            put(&mut signed, b"");
        }
        let (id, authority) = &self.active.ssh_host;
        put(&mut signed, &key_blob(authority));
        let signature = self.sign(id, &signed)?;
        put(&mut signed, &signature_blob(authority.algorithm(), &signature));
        Ok(Issued { bytes: signed, serial: super::hex(serial), not_before, not_after })
    }
}

/// The list of principals. Not an empty one: that is a certificate for every host. No wildcards, which OpenSSH takes for such.
/// In lower case, as clients compare them.
fn packed(principals: &[String]) -> Result<Vec<u8>, CaError> {
    if principals.is_empty() || principals.len() > MAX_PRINCIPALS {
        return Err(CaError::Names(format!("an SSH host certificate has 1 to {MAX_PRINCIPALS} principals")));
    }
    let mut list = Vec::new();
    for principal in principals {
        check_principal(principal).map_err(CaError::Names)?;
        put(&mut list, principal.to_ascii_lowercase().as_bytes());
    }
    Ok(list)
}

fn key_blob(key: &PublicKey) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, name(key.algorithm()).as_bytes());
    blob.extend(key_fields(key));
    blob
}

/// RFC 5656 section 3.1.2 and RFC 8709 section 6.
fn signature_blob(algorithm: Algorithm, signature: &Signature) -> Vec<u8> {
    let mut blob = Vec::new();
    put(&mut blob, name(algorithm).as_bytes());
    match algorithm {
        Algorithm::EcdsaP256 => {
            let mut halves = Vec::new();
            for half in signature.as_bytes().chunks(32) {
                put(&mut halves, &mpint(half));
            }
            put(&mut blob, &halves);
        }
        Algorithm::Ed25519 => put(&mut blob, signature.as_bytes()),
    }
    blob
}

/// RFC 4251 section 5: without leading zeros, but for one where the number would else be negative.
fn mpint(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let negative = number.get(zeros).is_some_and(|byte| *byte >= 0x80);
    [if negative { &[0][..] } else { &[] }, &number[zeros..]].concat()
}

#[cfg(test)]
mod tests {
    use boundkey_hal::KeyStore as _;
    use boundkey_hal::file::FileStore;

    use super::*;
    use boundkey_credential::ssh;
    use boundkey_platform::time::System;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// An authority whose keys for SSH are of this algorithm.
    fn authority(dir: &std::path::Path, algorithm: Algorithm) -> Authority {
        let keys = FileStore::new(dir);
        keys.generate(&super::super::key_id(super::super::SSH_HOST).unwrap(), algorithm).unwrap();
        super::super::make_keys(&keys, 1).unwrap();
        Authority::certify_itself("test.example", Box::new(keys), &System, NOW).unwrap()
    }

    #[test]
    fn another_implementation_reads_what_we_write() {
        for (ca, subject) in [(Algorithm::EcdsaP256, Algorithm::Ed25519), (Algorithm::Ed25519, Algorithm::EcdsaP256)] {
            let dir = tempfile::tempdir().unwrap();
            let authority = authority(dir.path(), ca);
            let key = boundkey_hal::file::PrivateKey::generate(subject).unwrap().public_key().unwrap();
            let names = ["GW-1.fleet.example".to_owned(), "10.0.0.1".to_owned()];
            let times = (NOW, Timestamp::from_secs(1_800_003_600));
            let issued = authority.issue_ssh_host(&key, "token/gw host/1", &names, times, &System).unwrap();
            let read = ssh_key::Certificate::from_bytes(&issued.bytes).unwrap();
            assert!(read.cert_type().is_host());
            assert_eq!(read.key_id(), "token/gw host/1");
            assert_eq!(read.valid_principals(), ["gw-1.fleet.example", "10.0.0.1"]);
            assert_eq!((read.valid_after(), read.valid_before()), (1_799_999_940, 1_800_003_600));
            assert_eq!(format!("{:016x}", read.serial()), issued.serial);
            assert_eq!(
                ssh_key::PublicKey::from(read.public_key().clone()).to_openssh().unwrap(),
                SshKey(key.clone()).to_string()
            );
            let signer = ssh_key::PublicKey::from(read.signature_key().clone()).to_openssh().unwrap();
            assert_eq!(signer, authority.ssh_host_key().to_string());
            assert_eq!(ssh::authority_of(&issued.bytes, &key).and_then(ssh::line), Some(signer + "\n"));

            let other = boundkey_hal::file::PrivateKey::generate(subject).unwrap().public_key().unwrap();
            assert_eq!(ssh::authority_of(&issued.bytes, &other), None, "a certificate for another key");
            for length in 0..issued.bytes.len() {
                assert_eq!(ssh::authority_of(&issued.bytes[..length], &key), None, "cut at {length}");
            }
        }
    }

    #[test]
    fn names_that_would_be_more_than_a_host_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path(), Algorithm::Ed25519);
        let key = authority.ssh_host_key().0;
        for names in [&[][..], &["*"], &["gw-?"], &["a,b"], &[""], &["a b"], &["a", "*.lab"]] {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            assert!(authority.issue_ssh_host(&key, "", &names, (NOW, NOW), &System).is_err(), "{names:?}");
        }
    }

    #[test]
    fn numbers_are_minimal_and_positive() {
        assert_eq!(mpint(&[0, 0, 1]), [1]);
        assert_eq!(mpint(&[0, 0x80]), [0, 0x80]);
        assert!(mpint(&[0, 0]).is_empty());
    }
}
