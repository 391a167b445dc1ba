//! Key files and the identity file.
//!
//! First byte: even for the text as it stands, odd for DER that is put into PEM here.

use boundkey::agent::identity::{IDENTITY_FILE, StoredIdentity};
use boundkey_hal::file::PrivateKey;
use boundkey_hal::verify::verify;

use super::state::Files;
use super::{Told, choice, refused};

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    let wrapped = (way % 2 == 1).then(|| boundkey::platform::pem::private_key(data));
    let bytes = wrapped.as_ref().map_or(data, |text| text.as_bytes());
    let identity = identity(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return identity };
    let key = match PrivateKey::from_pem(text) {
        Ok(key) => key,
        Err(e) => return format!("{} {identity}", refused(&e)),
    };
    let public = key.public_key().expect("a key that was read has a public half");
    let signature = key.sign(b"m").expect("and signs");
    verify(&public, b"m", signature.as_bytes()).expect("with the private half of it");
    let written = key.to_pem().expect("written");
    let again = PrivateKey::from_pem(&written).expect("and read").public_key();
    assert_eq!(again.as_ref().ok(), Some(&public));
    format!("ok: {} {identity}", public.algorithm())
}

fn identity(bytes: &[u8]) -> Told {
    let load = |files: &Files| StoredIdentity::load(files).expect("the medium is well");
    let Some(identity) = load(&Files::with(IDENTITY_FILE, bytes.to_vec())) else { return "no identity".into() };
    identity.sign(b"m").expect("the identity's key signs");
    "identity".into()
}
