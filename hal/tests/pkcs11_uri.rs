//! PKCS#11 URIs: what is read, and what is refused and why.
#![cfg(feature = "pkcs11")]

use boundkey_hal::pkcs11::{PinSource, Uri};

#[test]
fn a_whole_uri() {
    let uri: Uri =
        "pkcs11:token=my%20edge;serial=0a%3B1;model=a&b;manufacturer=x=y?module-path=/usr/lib/a+b.so&pin-source=file:/etc/pin%3f"
            .parse()
            .expect("a URI");
    assert_eq!(uri.token.label.as_deref(), Some("my edge"));
    assert_eq!(uri.token.serial.as_deref(), Some("0a;1"));
    assert_eq!(uri.token.model.as_deref(), Some("a&b"));
    assert_eq!(uri.token.manufacturer.as_deref(), Some("x=y"));
    assert_eq!(uri.module, Some("/usr/lib/a+b.so".into()));
    assert_eq!(uri.pin, Some(PinSource::File("/etc/pin?".into())));
    // What we write, we read.
    let again: Uri = format!("PKCS11:{}", uri.token).parse().expect("a URI");
    assert_eq!(again.token, uri.token);
}

#[test]
fn both_forms_of_a_file_uri() {
    for source in ["file:/etc/pin", "file:///etc/pin", "file:%2Fetc%2Fpin"] {
        let uri: Uri = format!("pkcs11:serial=1?pin-source={source}").parse().expect("a URI");
        assert_eq!(uri.pin, Some(PinSource::File("/etc/pin".into())), "{source}");
    }
}

#[test]
fn what_would_be_ignored_or_misread_is_refused() {
    for (uri, why) in [
        ("", "does not begin"),
        ("pkcs11", "does not begin"),
        ("pkcs12:token=a", "does not begin"),
        ("pkcs11:", "not NAME=VALUE"),
        ("pkcs11:token", "not NAME=VALUE"),
        ("pkcs11:=a", "not NAME=VALUE"),
        ("pkcs11:token=a;", "not NAME=VALUE"),
        ("pkcs11:token=a?", "not NAME=VALUE"),
        ("pkcs11:token=a;token=b", "token twice"),
        ("pkcs11:token=a?module-path=/a&module-path=/b", "module-path twice"),
        ("pkcs11:token=", "an empty token"),
        ("pkcs11:token=%", "two hexadecimal digits"),
        ("pkcs11:token=%4", "two hexadecimal digits"),
        ("pkcs11:token=%zz", "two hexadecimal digits"),
        ("pkcs11:token=%+1", "two hexadecimal digits"),
        ("pkcs11:token=%ff", "not UTF-8"),
        ("pkcs11:token=%00", "a control character"),
        ("pkcs11:token=a b", "percent-encoded"),
        ("pkcs11:token=a/b", "percent-encoded"),
        ("pkcs11:token=\u{e9}", "percent-encoded"),
        ("pkcs11:token=a#b", "percent-encoded"),
        ("pkcs11:token=123456789012345678901234567890123", "more than 32 bytes"),
        ("pkcs11:serial=12345678901234567", "more than 16 bytes"),
        ("pkcs11:model=a", "names no token"),
        ("pkcs11:token=a;object=b", "names an object"),
        ("pkcs11:token=a;id=%01", "names an object"),
        ("pkcs11:token=a;slot-id=0", "names a slot"),
        ("pkcs11:token=a;library-version=1", "do not know: library-version"),
        ("pkcs11:token=a;x-vendor=1", "do not know: x-vendor"),
        ("pkcs11:token=a?pin-value=1234", "holds a PIN"),
        ("pkcs11:token=a?pin-source=/etc/pin", "not file:/PATH"),
        ("pkcs11:token=a?pin-source=|/bin/pin", "not file:/PATH"),
        ("pkcs11:token=a?pin-source=file:pin", "not an absolute path"),
        ("pkcs11:token=a?pin-source=file://host/pin", "not an absolute path"),
        ("pkcs11:token=a?module-path=softhsm.so", "not an absolute path"),
        ("pkcs11:token=a?module-name=softhsm", "module-path=/PATH"),
        ("pkcs11:token=a?token=b", "do not know: token"),
    ] {
        let error = uri.parse::<Uri>().expect_err(uri).to_string();
        assert!(error.contains(why), "{uri}: {error}");
        assert!(!error.contains("1234"), "{error}");
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    // Every cut of a URI, and every byte in every place of it that leaves it text.
    let whole = "pkcs11:token=a%20b;serial=1?module-path=/m%2f&pin-source=file:/p";
    for i in 0..whole.len() {
        let _ = whole[..i].parse::<Uri>();
        for b in 0..=127 {
            let mut changed = whole.as_bytes().to_vec();
            changed[i] = b;
            let _ = std::str::from_utf8(&changed).map(str::parse::<Uri>);
        }
    }
}
