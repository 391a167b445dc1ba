//! PKCS#11 URIs.

use boundkey_hal::pkcs11::Uri;

use super::{Told, refused};

pub fn run(data: &[u8]) -> Told {
    let Ok(text) = std::str::from_utf8(data) else { return "refused: no text".into() };
    match text.parse::<Uri>() {
        Ok(uri) => {
            let again: Uri = format!("pkcs11:{}", uri.token).parse().expect("what is written can be read");
            assert_eq!(again.token, uri.token);
            assert!(uri.module.as_ref().is_none_or(|path| path.is_absolute()));
            format!("ok: {} {} {}", uri.module.is_some(), uri.pin.is_some(), uri.token.label.is_some())
        }
        Err(e) => {
            assert!(e.to_string().len() < 600, "a refusal is short whatever is refused");
            assert!(!e.to_string().contains(char::is_control), "and acts on no terminal");
            refused(&e)
        }
    }
}
