//! Where PINs come from: a file, an environment variable or a systemd credential.
//!
//! Never a URI or a command line argument: those end up in logs, shell histories and `ps`.

use std::format;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::string::String;

use cryptoki::types::AuthPin;
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use crate::{Error, ErrorKind};

/// Longest PIN in bytes, line feed included; tokens take at most 255.
const MAX_PIN: usize = 256;

/// Where to read a PIN, each time one is needed; it is wiped after use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// The systemd credential of this name, a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// The environment variable of this name. Other programs of the same user can read it: prefer the others.
    Environment(String),
    /// A file. A line ending after the PIN is not part of it.
    File(PathBuf),
}

/// A PIN as it was read.
pub(super) struct Pin {
    pub(super) secret: AuthPin,
    /// Tells it from other PINs.
    pub(super) print: [u8; 32],
}

impl PinSource {
    /// Reads the PIN.
    ///
    /// A PIN that is not there is [`ErrorKind::Denied`], and a file that cannot be reached [`ErrorKind::Unreachable`]
    /// (its directory may be mounted later), but never `NotFound`: that speaks of keys.
    pub(super) fn read(&self) -> Result<Pin, Error> {
        match self {
            Self::Credential(name) => {
                if name.is_empty() || name.starts_with('.') || name.contains('/') {
                    return Err(denied(format_args!("{name:?} is not the name of a credential")));
                }
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| denied(format_args!("no credential {name}: systemd passed none (LoadCredential=)")))?;
                read_file(&Path::new(&dir).join(name))
            }
            Self::Environment(name) => match std::env::var(name) {
                Ok(value) => Ok(pin(parse(Zeroizing::new(value).as_bytes(), &format!("the environment variable {name}"))?)),
                Err(std::env::VarError::NotPresent) => Err(denied(format_args!("the environment variable {name} is not set"))),
                Err(std::env::VarError::NotUnicode(value)) => {
                    drop(Zeroizing::new(value.into_encoded_bytes()));
                    Err(denied(format_args!("the environment variable {name} is not UTF-8")))
                }
            },
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> Result<Pin, Error> {
    let place = path.display();
    let mut buffer = Zeroizing::new([0; MAX_PIN + 1]);
    let mut filled = 0;
    let failed = |e: io::Error| {
        let kind = if e.kind() == io::ErrorKind::PermissionDenied { ErrorKind::Denied } else { ErrorKind::Unreachable };
        Error::new(kind, format_args!("the PIN file {place}: {e}"))
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    loop {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(pin(parse(&buffer[..filled], &format!("the PIN file {place}"))?))
}

fn pin(text: &str) -> Pin {
    let mut print = [0; 32];
    print.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    Pin { secret: AuthPin::new(text.into()), print }
}

/// The PIN in `text`, which came from `place`.
fn parse<'a>(text: &'a [u8], place: &str) -> Result<&'a str, Error> {
    if text.len() > MAX_PIN {
        return Err(denied(format_args!("{place} is too long for a PIN")));
    }
    let line = text.strip_suffix(b"\n").map_or(text, |t| t.strip_suffix(b"\r").unwrap_or(t));
    let pin = core::str::from_utf8(line).map_err(|_| denied(format_args!("{place} is not UTF-8")))?;
    if pin.is_empty() {
        return Err(denied(format_args!("{place} is empty")));
    }
    // A PIN of two lines is a wrong file, and to find out by trying would cost a try.
    if pin.contains(char::is_control) {
        return Err(denied(format_args!("{place} holds more than one line")));
    }
    Ok(pin)
}

fn denied(why: core::fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Denied, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_ending_is_not_part_of_a_pin() {
        for text in ["1234", "1234\n", "1234\r\n"] {
            assert_eq!(parse(text.as_bytes(), "here").expect("a PIN"), "1234", "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_pin_is_denied_without_being_shown() {
        for text in [&b""[..], b"\n", b"1234\n\n", b"12\n34", b"\xff\xfe", &[b'7'; MAX_PIN + 1]] {
            let error = parse(text, "here").expect_err("not a PIN");
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(!std::string::ToString::to_string(&error).contains("12"), "{error}");
        }
    }

    #[test]
    fn a_credential_cannot_leave_its_directory() {
        for name in ["", ".", "..", "../pin", "/etc/passwd", "a/b"] {
            let error = PinSource::Credential(name.into()).read().err().expect("not a credential");
            assert_eq!(error.kind(), ErrorKind::Denied);
        }
    }
}
