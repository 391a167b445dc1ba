//! Wrapped TPM keys, up to where a TPM would be asked.
//!
//! First byte, modulo 3: 0 for the file as it stands; 1 for DER that is put into PEM here; 2 for a public area that is put into DER too.

use std::path::PathBuf;

use boundkey_hal::tpm::{Config, Tcti, TpmStore};
use boundkey_hal::{Algorithm, ErrorKind, KeyId, KeyStore as _};

use super::{Told, choice, refused};

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    let file = match way % 3 {
        0 => data.to_vec(),
        1 => wrapped(data),
        _ => wrapped(&with_public_area(data)),
    };
    let dir = DIR.with(|dir| dir.path().to_path_buf());
    let id: KeyId = "k".parse().expect("a name");
    let store = TpmStore::new(Config::new(&dir, Tcti::kernel()));
    let path: PathBuf = store.path(&id);
    // Made anew: some file systems sync a file that is cut to nothing and written again.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, file).expect("written");
    match store.public_key(&id) {
        Ok(key) => {
            assert_eq!(key.algorithm(), Algorithm::EcdsaP256);
            format!("ok: {}", key.as_bytes()[0])
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            refused(&e.to_string().replace(&*path.to_string_lossy(), ""))
        }
    }
}

fn wrapped(der: &[u8]) -> Vec<u8> {
    let pem = pem_rfc7468::encode_string("TSS2 PRIVATE KEY", pem_rfc7468::LineEnding::LF, der);
    pem.map_or_else(|_| der.to_vec(), String::into_bytes)
}

/// A file as the TCG's ASN.1 has it, with this public area and any private one.
pub fn with_public_area(area: &[u8]) -> Vec<u8> {
    let tpm2b = |content: &[u8]| [&u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes()[..], content].concat();
    let fields = [
        tlv(6, &[0x67, 0x81, 0x05, 0x0a, 0x01, 0x03]),
        tlv(0xa0, &[1, 1, 0xff]),
        tlv(2, &[0x40, 0, 0, 1]),
        tlv(4, &tpm2b(area)),
        tlv(4, &tpm2b(&[8; 32])),
    ];
    tlv(0x30, &fields.concat())
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    super::certificate::tlv(tag, content)
}
