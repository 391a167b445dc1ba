//! Single values of a configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::error::Refusal;
use boundkey_platform::from_text;
pub(super) use boundkey_platform::refusal::AbsolutePath;

/// Port of an auth endpoint whose address names none.
pub const DEFAULT_PORT: u16 = 3025;

from_text!(AuthServer, CaPin, DnsName, Mode, Secret, Span, UriName, Version);

/// The auth endpoint: host name or address, and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthServer {
    /// DNS name, IPv4 address, or IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for AuthServer {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refuse =
            || Refusal::new(format!("{text:?} is not HOST:PORT"), "write it like auth.example.com:3025 or \"[fd00::1]:3025\"");
        let (host, port, plain) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or_else(refuse)?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(refuse)?) };
            (host, port, host.parse::<std::net::Ipv6Addr>().is_ok())
        } else {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            (host, port, is_host_name(host))
        };
        let port = port.map_or(Some(DEFAULT_PORT), |p| p.parse().ok()).filter(|p| *p != 0);
        match port {
            Some(port) if plain => Ok(Self { host: host.to_owned(), port }),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// SHA-256 of a CA's SubjectPublicKeyInfo, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaPin(pub [u8; 32]);

impl FromStr for CaPin {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refuse = || {
            Refusal::new(
                format!("{text:?} is not a CA pin"),
                "copy the pin that `boundkey-auth init` printed: sha256: and 64 digits",
            )
        };
        let digits = text.strip_prefix("sha256:").filter(|d| d.len() == 64).ok_or_else(refuse)?;
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(refuse);
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(pin))
    }
}

/// A secret: wiped when dropped, and not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Refusal;

    /// Takes the text without the white space around it.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text.trim() {
            "" => Err(Refusal::new("the secret is empty", "copy it from `boundkeyctl get token/NAME --with-secrets`")),
            secret => Ok(Self(Zeroizing::new(secret.to_owned()))),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Permission bits of files, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let bits = u32::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with('+'));
        // Of the bits for files that are read: no set-id, no sticky, no execute, and at least the owner reads.
        bits.filter(|b| b & !0o666 == 0 && b & 0o400 != 0).map(Self).ok_or_else(|| {
            Refusal::new(format!("{text:?} is not a mode for files"), "write it in octal, such as \"0600\" or \"0640\"")
        })
    }
}

/// The version of the file's format.
pub(super) struct Version;

impl FromStr for Version {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if text == "v1" {
            return Ok(Self);
        }
        Err(Refusal::new(
            format!("{text:?} is not a version known here"),
            "write version: v1, or install the boundkey that this file is for",
        ))
    }
}

/// Longest length of time. Times are added up from these.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A length of time, at least a second and at most [`LONGEST`].
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let advice = "write a number and a unit, at least a second: 90s, 20m, 1h, 7d";
        match humantime::parse_duration(text) {
            Ok(span) if span > LONGEST => Err(Refusal::new(format!("{text:?} is too long"), "write 100y at most")),
            Ok(span) if span >= Duration::from_secs(1) => Ok(Self(span)),
            Ok(_) => Err(Refusal::new(format!("{text:?} is too short"), advice)),
            Err(_) => Err(Refusal::new(format!("{text:?} is not a length of time"), advice)),
        }
    }
}

/// A DNS name in a certificate; the server decides whether it may be.
pub(super) struct DnsName(pub(super) String);

impl FromStr for DnsName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if is_host_name(text.strip_prefix("*.").unwrap_or(text)) {
            return Ok(Self(text.to_owned()));
        }
        Err(Refusal::new(format!("{text:?} is not a DNS name"), "write it like gateway-0042.fleet.example.com"))
    }
}

/// A URI in a certificate; the server decides whether it may be.
pub(super) struct UriName(pub(super) String);

impl FromStr for UriName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let plain = text.bytes().all(|b| b.is_ascii_graphic());
        if plain && text.split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()) {
            return Ok(Self(text.to_owned()));
        }
        Err(Refusal::new(format!("{text:?} is not a URI"), "write it like spiffe://fleet.example.com/gateway-0042"))
    }
}

fn is_host_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    text.len() <= 253
        && text
            .strip_suffix('.')
            .unwrap_or(text)
            .split('.')
            .all(|label| !label.is_empty() && label.len() <= 63 && label.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_the_same() {
        for text in ["auth.example.com:3025", "10.0.0.1:443", "[fd00::1]:3025"] {
            assert_eq!(text.parse::<AuthServer>().expect(text).to_string(), text);
        }
        assert_eq!("auth".parse::<AuthServer>().expect("host").to_string(), "auth:3025");
        assert_eq!("[::1]".parse::<AuthServer>().expect("host").to_string(), "[::1]:3025");
        for text in
            ["", ":1", "https://auth:1", "auth:0", "auth:65536", "auth:", "auth:1/v1", "fd00::1", "[fd00::1", "[a]:1", "a..b"]
        {
            assert!(text.parse::<AuthServer>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_trimmed_and_not_shown() {
        let secret: Secret = " s3cret\r\n".parse().expect("secret");
        assert_eq!(secret.expose(), "s3cret");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(" \n".parse::<Secret>().is_err());
    }

    #[test]
    fn modes_are_octal() {
        for (text, bits) in [("0640", 0o640), ("640", 0o640), ("0o600", 0o600), ("0400", 0o400)] {
            assert_eq!(text.parse::<Mode>().expect(text), Mode(bits));
        }
        for text in ["", "0", "0680", "0755", "4600", "0040", "rw-r-----", "-600", "+600"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }
}
