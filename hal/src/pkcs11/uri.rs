//! PKCS#11 URIs (RFC 7512), as far as they name a token, a module and where its PIN is.
//!
//! Strict on purpose: what would be ignored (an unknown attribute, an object, a slot number) is refused, so that a URI
//! never selects something else than its author meant.

use core::fmt;
use core::str::FromStr;
use std::format;
use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

use super::PinSource;

/// Which token: all that is given must match, and exactly one token must.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMatch {
    /// Its label.
    pub label: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its manufacturer.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
}

impl TokenMatch {
    /// The token with this label.
    pub fn label(label: impl Into<String>) -> Self {
        Self { label: Some(label.into()), ..Self::default() }
    }

    /// The token with this serial number.
    pub fn serial(serial: impl Into<String>) -> Self {
        Self { serial: Some(serial.into()), ..Self::default() }
    }

    fn attributes(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all =
            [("token", &self.label), ("serial", &self.serial), ("manufacturer", &self.manufacturer), ("model", &self.model)];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// As the path of a PKCS#11 URI: `token=edge;serial=0123`.
impl fmt::Display for TokenMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.attributes().enumerate() {
            write!(f, "{}{name}={}", if i == 0 { "" } else { ";" }, Encoded(value.as_bytes(), is_unreserved))?;
        }
        Ok(())
    }
}

/// What a URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The token.
    pub token: TokenMatch,
    /// The module, from `module-path`.
    pub module: Option<PathBuf>,
    /// Where the PIN is, from `pin-source`.
    pub pin: Option<PinSource>,
}

/// Why a text is not a URI that we take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidUri(String);

impl fmt::Display for InvalidUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the PKCS#11 URI {}", self.0)
    }
}

impl core::error::Error for InvalidUri {}

impl FromStr for Uri {
    type Err = InvalidUri;

    fn from_str(uri: &str) -> Result<Self, InvalidUri> {
        let rest = match uri.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("pkcs11") => rest,
            _ => return invalid("does not begin with pkcs11:"),
        };
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let mut parsed = Self { token: TokenMatch::default(), module: None, pin: None };
        for attribute in path.split(';') {
            parsed.path_attribute(attribute)?;
        }
        for attribute in query.into_iter().flat_map(|q| q.split('&')) {
            parsed.query_attribute(attribute)?;
        }
        if parsed.token.label.is_none() && parsed.token.serial.is_none() {
            return invalid("names no token: add token=LABEL or serial=NUMBER");
        }
        Ok(parsed)
    }
}

impl Uri {
    fn path_attribute(&mut self, attribute: &str) -> Result<(), InvalidUri> {
        let (name, value) = split(attribute)?;
        // Widths of the fields in CK_TOKEN_INFO: what is longer can match no token.
        let (field, width) = match name {
            "token" => (&mut self.token.label, 32),
            "manufacturer" => (&mut self.token.manufacturer, 32),
            "model" => (&mut self.token.model, 16),
            "serial" => (&mut self.token.serial, 16),
            "object" | "id" | "type" => return invalid(format!("names an object ({name}): boundkey names its keys itself")),
            "slot-id" | "slot-description" | "slot-manufacturer" => {
                return invalid(format!("names a slot ({name}), and slots move: name the token by token= or serial="));
            }
            _ => return unknown(name),
        };
        let value = decode(name, value, is_path_char)?;
        if value.len() > width {
            return invalid(format!("has more than {width} bytes in {name}"));
        }
        set_once(field, name, value)
    }

    fn query_attribute(&mut self, attribute: &str) -> Result<(), InvalidUri> {
        let (name, value) = split(attribute)?;
        match name {
            "module-path" => {
                let path = decode(name, value, is_query_char)?;
                set_once(&mut self.module, name, absolute(name, &path)?)
            }
            "pin-source" => {
                let source = decode(name, value, is_query_char)?;
                // Both forms of RFC 8089: file:/path and file:///path.
                let path = source.strip_prefix("file:").map(|p| p.strip_prefix("//").unwrap_or(p));
                let Some(path) = path else {
                    return invalid("has a pin-source that is not file:/PATH");
                };
                set_once(&mut self.pin, name, PinSource::File(absolute(name, path)?))
            }
            "pin-value" => invalid("holds a PIN (pin-value), where others can read it: use pin-source=file:/PATH"),
            "module-name" => invalid("names a module without its path (module-name): use module-path=/PATH"),
            _ => unknown(name),
        }
    }
}

fn split(attribute: &str) -> Result<(&str, &str), InvalidUri> {
    match attribute.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name, value)),
        _ => invalid("has an attribute that is not NAME=VALUE"),
    }
}

fn set_once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), InvalidUri> {
    if field.replace(value).is_some() { invalid(format!("has {name} twice")) } else { Ok(()) }
}

fn absolute(name: &str, path: &str) -> Result<PathBuf, InvalidUri> {
    if path.starts_with('/') { Ok(PathBuf::from(path)) } else { invalid(format!("has a {name} that is not an absolute path")) }
}

/// Undoes percent-encoding (RFC 3986 section 2.1); every other byte must be one that `plain` allows.
fn decode(name: &str, value: &str, plain: fn(u8) -> bool) -> Result<String, InvalidUri> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b == b'%' {
            let Some((&[high, low], tail)) = rest.split_first_chunk() else {
                return invalid(format!("has a % without two hexadecimal digits in {name}"));
            };
            match (hex(high), hex(low)) {
                (Some(high), Some(low)) => bytes.push(high << 4 | low),
                _ => return invalid(format!("has a % without two hexadecimal digits in {name}")),
            }
            rest = tail;
        } else if plain(b) {
            bytes.push(b);
        } else {
            return invalid(format!("has a character in {name} that must be percent-encoded"));
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => invalid(format!("has an empty {name}")),
        Ok(text) if text.contains(char::is_control) => invalid(format!("has a control character in {name}")),
        Ok(text) => Ok(text),
        Err(_) => invalid(format!("has a {name} that is not UTF-8")),
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// `pk11-pchar` of RFC 7512 section 2.3.
fn is_path_char(b: u8) -> bool {
    is_reserved_available(b) || b == b'&'
}

/// `pk11-qchar` of RFC 7512 section 2.3.
fn is_query_char(b: u8) -> bool {
    is_reserved_available(b) || matches!(b, b'/' | b'?' | b'|')
}

fn is_reserved_available(b: u8) -> bool {
    is_unreserved(b) || b":[]@!$'()*+,=".contains(&b)
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~".contains(&b)
}

fn unknown<T>(name: &str) -> Result<T, InvalidUri> {
    // The name is shown, and a name can be anything: bounded, and without control characters.
    invalid(format!("has an attribute we do not know: {}", name.escape_debug().take(32).collect::<String>()))
}

fn invalid<T>(why: impl Into<String>) -> Result<T, InvalidUri> {
    Err(InvalidUri(why.into()))
}

/// The URI of an object on a token (RFC 7512 section 2.3), whose id is percent-encoded throughout as that asks.
pub(super) fn object_uri(token: &TokenMatch, label: &str, id: &[u8], kind: &str) -> String {
    format!("pkcs11:{token};object={};id={};type={kind}", Encoded(label.as_bytes(), is_unreserved), Encoded(id, |_| false))
}

/// Bytes percent-encoded, but for those that may stay.
struct Encoded<'a>(&'a [u8], fn(u8) -> bool);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&b| if self.1(b) { write!(f, "{}", char::from(b)) } else { write!(f, "%{b:02X}") })
    }
}
