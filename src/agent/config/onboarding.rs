//! `onboarding`: with which token to join, and the secret of a first join.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boundkey_hal::file::PrivateKey;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::{ConfigError, Refusal};
use super::value::{AbsolutePath, Secret};
use super::{STATIC_KEY_VARIABLE, read_text};
use boundkey_platform::{from_fields, from_text};

from_fields!(Fields => Onboarding, BoundKeypairFields => BoundKeypair);
from_text!(JoinMethod, TokenSource);

/// With what to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onboarding {
    /// Name of the token, or where it is.
    pub token: TokenSource,
    /// Registration secret of a first join, or where it is. A preregistered key needs none.
    pub registration_secret: Option<SecretSource>,
    /// The key itself, for a host without writable storage: a file in PEM, or base64 of the same.
    pub static_key: Option<SecretSource>,
}

/// Name of a token, or the file that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read each time the name is needed.
    File(PathBuf),
    /// The name itself.
    Name(String),
}

impl TokenSource {
    /// The token's name.
    pub fn read(&self) -> Result<String, ConfigError> {
        match self {
            Self::Name(name) => Ok(name.clone()),
            Self::File(path) => {
                let text = read_text("the token file", path)?;
                let name = text.trim();
                if name.is_empty() || name.contains(char::is_whitespace) {
                    return Err(one_value("the token file", path, "the token's name"));
                }
                Ok(name.to_owned())
            }
        }
    }
}

impl FromStr for TokenSource {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "" => Err(Refusal::new(
                "the token's name is empty",
                "write the name of a token, or the absolute path of a file with it",
            )),
            _ if text.starts_with('/') => text.parse::<AbsolutePath>().map(|path| Self::File(path.0)),
            _ => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// A registration secret, or the file that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read when a first join needs it, so that it may be removed afterwards.
    File(PathBuf),
    /// The secret itself.
    Value(Secret),
}

impl SecretSource {
    /// The secret, without white space around it.
    pub fn read(&self) -> Result<Secret, ConfigError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let what = "the file of the registration secret";
                read_text(what, path)?.parse().map_err(|_| one_value(what, path, "the registration secret"))
            }
        }
    }
}

impl SecretSource {
    /// The static key that this is.
    pub fn read_static_key(&self) -> Result<PrivateKey, ConfigError> {
        let (place, pem) = match self {
            Self::File(path) => (format!("the static key {}", path.display()), read_text("the static key", path).map(Some)?),
            Self::Value(secret) => {
                let pem = STANDARD.decode(secret.expose()).ok().and_then(|pem| String::from_utf8(pem).ok());
                (STATIC_KEY_VARIABLE.to_owned(), pem.map(Zeroizing::new))
            }
        };
        let key = pem.ok_or("not base64 of a PEM file").and_then(|pem| PrivateKey::from_pem(&pem));
        key.map_err(|why| {
            ConfigError::new(format!("{place} cannot be used: {why}"), "make one with `boundkey keypair create --static`")
        })
    }
}

fn one_value(what: &str, path: &Path, content: &str) -> ConfigError {
    ConfigError::new(
        format!("{what} {} does not hold one value", path.display()),
        format!("write {content} into it, and nothing else"),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "join_method")]
    _join_method: Option<JoinMethod>,
    token: TokenSource,
    bound_keypair: Option<BoundKeypair>,
}

impl TryFrom<Fields> for Onboarding {
    type Error = Refusal;

    fn try_from(fields: Fields) -> Result<Self, Refusal> {
        let (registration_secret, static_key) =
            fields.bound_keypair.map_or((None, None), |b| (b.registration_secret, b.static_key));
        Ok(Self { token: fields.token, registration_secret, static_key })
    }
}

struct JoinMethod;

impl FromStr for JoinMethod {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if text == "bound_keypair" {
            return Ok(Self);
        }
        Err(Refusal::new(format!("{text:?} is not a join method known here"), "write join_method: bound_keypair"))
    }
}

struct BoundKeypair {
    registration_secret: Option<SecretSource>,
    static_key: Option<SecretSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundKeypairFields {
    registration_secret: Option<Secret>,
    registration_secret_path: Option<AbsolutePath>,
    static_private_key_path: Option<AbsolutePath>,
}

impl TryFrom<BoundKeypairFields> for BoundKeypair {
    type Error = Refusal;

    fn try_from(fields: BoundKeypairFields) -> Result<Self, Refusal> {
        let registration_secret = match (fields.registration_secret, fields.registration_secret_path) {
            (Some(_), Some(_)) => {
                let what = "`registration_secret` and `registration_secret_path` are both set";
                return Err(Refusal::new(what, "keep one of them"));
            }
            (Some(secret), None) => Some(SecretSource::Value(secret)),
            (None, path) => path.map(|p| SecretSource::File(p.0)),
        };
        let static_key = fields.static_private_key_path.map(|path| SecretSource::File(path.0));
        Ok(Self { registration_secret, static_key })
    }
}
