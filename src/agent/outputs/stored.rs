//! Keys of outputs in the device's key store: one for each output, made before its first certificate and kept for all that follow,
//! for making a key takes hardware long and wears it. Programs use it where it is.
//!
//! | key store | file of the output | what is in it |
//! | --- | --- | --- |
//! | TPM | `tls.key` | TSS2 PRIVATE KEY, as `tpm2-openssl` reads it: of use with this TPM alone |
//! | PKCS#11 | `tls.key.uri` | the key's URI (RFC 7512), without PIN and module |
//!
//! A key that is gone is made anew; one that is there and cannot be used is left alone. No key is deleted because its output went
//! from the configuration: the program that uses it may still run. `boundkey doctor` names such keys.

use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyId, KeyStore, Reference};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::set::Visibility;
use super::{KeyFile, request};
use crate::config::{KeyPlace, Output};

/// What the names of these keys begin with.
const PREFIX: &str = "output-";
/// Longest part of an output's name in its key's name, in bytes.
const MAX_WORD: usize = 12;
/// So many bytes of the digest of an output's name tell its key from those of outputs with alike names.
const TELLING: usize = 6;

/// The key of `output`, made where there is none: a certificate request, its SubjectPublicKeyInfo, and the file for the program.
pub(super) fn key(keys: &dyn KeyStore, output: &Output) -> Result<(Vec<u8>, Vec<u8>, KeyFile), KeyError> {
    let id = id(&output.name)?;
    let public = match keys.public_key(&id) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let made = keys.generate(&id, Algorithm::EcdsaP256)?;
            log::info!("output {}: made key {id} in the key store", output.name);
            made
        }
        found => found?,
    };
    let (csr, public_key) = request(public, |message| keys.sign(&id, message))?;
    Ok((csr, public_key, key_file(&keys.reference(&id)?)?))
}

/// The keys of outputs in `store` that are of none of these.
pub fn left_over(store: &dyn KeyStore, outputs: &[Output]) -> Result<Vec<KeyId>, KeyError> {
    let known = outputs.iter().filter(|o| o.key == KeyPlace::Keystore).map(|o| id(&o.name)).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    store.list(&mut |id| {
        if id.as_str().starts_with(PREFIX) && !known.contains(id) {
            found.push(id.clone());
        }
    })?;
    Ok(found)
}

/// The name of the key of the output `name`: a word of it, for people, and a part of its digest.
fn id(name: &str) -> Result<KeyId, KeyError> {
    let last = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_ascii_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let word: String = last.chars().map(plain).take(MAX_WORD).collect();
    let digest = digest(&SHA256, name.as_bytes());
    let number = digest.as_ref()[..TELLING].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    format!("{PREFIX}{word}-{number:012x}").parse().map_err(|e| KeyError::new(ErrorKind::Other, e))
}

/// The file that tells the program how to use the key.
fn key_file(reference: &Reference) -> Result<KeyFile, KeyError> {
    match reference {
        Reference::Path(_) => Err(KeyError::new(ErrorKind::Unsupported, "a key in files is no key of an output")),
        // Without the module: libp11, OpenSSL's engine, refuses URIs that name it.
        Reference::Pkcs11Uri(uri) => {
            let content = format!("{uri}\n").into_bytes();
            Ok(KeyFile { name: "tls.key.uri", content: Zeroizing::new(content), visibility: Visibility::Public })
        }
        Reference::Tss2Pem(pem) => {
            let content = Zeroizing::new(pem.as_bytes().to_vec());
            Ok(KeyFile { name: "tls.key", content, visibility: Visibility::AsConfigured })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_names_are_readable_and_tell_outputs_apart() {
        let names = ["mqtt", "/run/boundkey/mqtt", "/run/other/mqtt", "MQTT", "/", "", "ein sehr langer Name", "é"];
        let ids: Vec<_> = names.iter().map(|name| id(name).expect("a name").to_string()).collect();
        assert!(ids.iter().all(|id| id.starts_with(PREFIX)), "{ids:?}");
        assert!(ids[..4].iter().all(|id| id.starts_with("output-mqtt-")), "{ids:?}");
        for (n, id) in ids.iter().enumerate() {
            assert!(!ids[..n].contains(id), "{ids:?}");
        }
        assert_eq!(id("mqtt"), id("mqtt"));
    }
}
