//! Which key store, and what has to be said of each kind: in a configuration, on a command line, in a data directory.

use std::str::FromStr;

use boundkey_platform::refusal::{AbsolutePath, Refusal};

boundkey_platform::from_fields!(KeystoreOptions => Keystore);
boundkey_platform::from_text!(KeystoreKind);

/// Where keys live. Kinds that this build has no backend for are refused, never replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keystore {
    /// Files in the storage directory, or the server's data directory.
    #[default]
    File,
    /// A token behind a PKCS#11 module.
    #[cfg(feature = "pkcs11")]
    Pkcs11(boundkey_hal::pkcs11::Config),
    /// A TPM 2.0; its wrapped keys are files in the same place.
    #[cfg(feature = "tpm")]
    Tpm {
        /// The way to the TPM; `None`: what the environment or the kernel offers ([`boundkey_hal::tpm::Tcti::configured`]).
        tcti: Option<boundkey_hal::tpm::Tcti>,
        /// Where the keys' auth value is.
        auth: Option<boundkey_hal::tpm::AuthSource>,
    },
}

impl Keystore {
    /// The kind, as in the configuration: `file`, `pkcs11`, `tpm`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File => "file",
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(_) => "pkcs11",
            #[cfg(feature = "tpm")]
            Self::Tpm { .. } => "tpm",
        }
    }
}

/// Variable with the PIN of a PKCS#11 token, for configurations that do not say where it is.
#[cfg(feature = "pkcs11")]
pub const PIN_VARIABLE: &str = "BOUNDKEY_PIN";
/// Variable with the auth value of keys in a TPM, for configurations that do not say where it is.
#[cfg(feature = "tpm")]
pub const AUTH_VARIABLE: &str = "BOUNDKEY_TPM_AUTH";

impl Keystore {
    /// Takes PIN or auth value from the environment where nothing else says where it is. `env` looks up variables.
    #[must_use]
    #[cfg_attr(not(any(feature = "pkcs11", feature = "tpm")), expect(unused_variables, reason = "files have neither"))]
    pub fn with_environment(self, env: &dyn Fn(&str) -> Option<String>) -> Self {
        // An empty variable is how a unit file unsets one.
        #[cfg(any(feature = "pkcs11", feature = "tpm"))]
        let is_set = |name: &str| env(name).map(zeroize::Zeroizing::new).is_some_and(|value| !value.is_empty());
        match self {
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(mut config) => {
                if config.pin.is_none() && is_set(PIN_VARIABLE) {
                    config.pin = Some(boundkey_hal::pkcs11::PinSource::Environment(PIN_VARIABLE.into()));
                }
                Self::Pkcs11(config)
            }
            #[cfg(feature = "tpm")]
            Self::Tpm { tcti, auth: None } if is_set(AUTH_VARIABLE) => {
                Self::Tpm { tcti, auth: Some(boundkey_hal::tpm::AuthSource::Environment(AUTH_VARIABLE.into())) }
            }
            other => other,
        }
    }
}

/// A kind of key store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeystoreKind {
    /// `file`
    File,
    /// `pkcs11`
    Pkcs11,
    /// `tpm`
    Tpm,
}

impl FromStr for KeystoreKind {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "file" => Ok(Self::File),
            "pkcs11" => Ok(Self::Pkcs11),
            "tpm" => Ok(Self::Tpm),
            _ => Err(Refusal::new(format!("{text:?} is not a type of key store"), "write type: file, tpm or pkcs11")),
        }
    }
}

/// The options of a command line beside the kind, with their help. The agent's configuration has `_` in place of `-`.
pub const OPTIONS: [(&str, &str); 9] = [
    ("tcti", "tpm: the way to it, such as device:/dev/tpmrm0"),
    ("auth-path", "tpm: file with the keys' auth value"),
    ("auth-credential", "tpm: systemd credential with the keys' auth value"),
    ("uri", "pkcs11: URI of the token, with module-path"),
    ("module", "pkcs11, without --uri: the module"),
    ("token", "pkcs11, without --uri: label of the token"),
    ("serial", "pkcs11, without --uri: serial number of the token"),
    ("pin-path", "pkcs11: file with the PIN"),
    ("pin-credential", "pkcs11: systemd credential with the PIN"),
];

/// The fields of `keystore`, or a command line's options of the same names; [`Keystore::try_from`] checks them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoreOptions {
    /// Kind of key store.
    #[serde(rename = "type")]
    pub kind: Option<KeystoreKind>,
    /// tpm: the way to it, such as `device:/dev/tpmrm0`.
    pub tcti: Option<String>,
    /// tpm: file with the keys' auth value.
    pub auth_path: Option<AbsolutePath>,
    /// tpm: systemd credential with the keys' auth value.
    pub auth_credential: Option<String>,
    /// pkcs11: URI (RFC 7512) of the token, with `module-path`.
    pub uri: Option<String>,
    /// pkcs11, without `uri`: the module.
    pub module: Option<AbsolutePath>,
    /// pkcs11, without `uri`: label of the token.
    pub token: Option<String>,
    /// pkcs11, without `uri`: serial number of the token.
    pub serial: Option<String>,
    /// pkcs11: file with the PIN.
    pub pin_path: Option<AbsolutePath>,
    /// pkcs11: systemd credential with the PIN.
    pub pin_credential: Option<String>,
}

impl KeystoreOptions {
    /// The options that `value` knows under the names of [`OPTIONS`]; the kind goes by the name given.
    pub fn named(kind: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<Self, Refusal> {
        let path = |name| value(name).map(|path| path.parse()).transpose();
        Ok(Self {
            kind: Some(kind.parse()?),
            tcti: value("tcti"),
            auth_path: path("auth-path")?,
            auth_credential: value("auth-credential"),
            uri: value("uri"),
            module: path("module")?,
            token: value("token"),
            serial: value("serial"),
            pin_path: path("pin-path")?,
            pin_credential: value("pin-credential"),
        })
    }
}

impl TryFrom<KeystoreOptions> for Keystore {
    type Error = Refusal;

    fn try_from(options: KeystoreOptions) -> Result<Self, Refusal> {
        let kind = options.kind.ok_or_else(|| Refusal::new("missing field `type`", "write type: file, tpm or pkcs11"))?;
        for (field, given, owner) in options.owners() {
            if given && owner != kind {
                let what = format!("`{field}` does not go with this type of key store");
                return Err(Refusal::new(what, "remove the field, or correct `type`"));
            }
        }
        match kind {
            KeystoreKind::File => Ok(Self::File),
            KeystoreKind::Pkcs11 => options.pkcs11(),
            KeystoreKind::Tpm => options.tpm(),
        }
    }
}

impl KeystoreOptions {
    /// Each optional field, whether it is given, and the kind it belongs to.
    fn owners(&self) -> [(&'static str, bool, KeystoreKind); 9] {
        use KeystoreKind::{Pkcs11, Tpm};
        [
            ("tcti", self.tcti.is_some(), Tpm),
            ("auth_path", self.auth_path.is_some(), Tpm),
            ("auth_credential", self.auth_credential.is_some(), Tpm),
            ("uri", self.uri.is_some(), Pkcs11),
            ("module", self.module.is_some(), Pkcs11),
            ("token", self.token.is_some(), Pkcs11),
            ("serial", self.serial.is_some(), Pkcs11),
            ("pin_path", self.pin_path.is_some(), Pkcs11),
            ("pin_credential", self.pin_credential.is_some(), Pkcs11),
        ]
    }

    #[cfg(feature = "tpm")]
    fn tpm(self) -> Result<Keystore, Refusal> {
        use boundkey_hal::tpm::{AuthSource, Tcti};
        let invalid = |e: boundkey_hal::Error| Refusal::new(e.to_string(), "write tcti: \"device:/dev/tpmrm0\"");
        let tcti = self.tcti.as_deref().map(Tcti::parse).transpose().map_err(invalid)?;
        let auth = match (self.auth_path, self.auth_credential) {
            (Some(_), Some(_)) => return Err(both("auth_path", "auth_credential")),
            (Some(path), None) => Some(AuthSource::File(path.0)),
            (None, credential) => credential.map(AuthSource::Credential),
        };
        Ok(Keystore::Tpm { tcti, auth })
    }

    #[cfg(not(feature = "tpm"))]
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    fn tpm(self) -> Result<Keystore, Refusal> {
        Err(Refusal::new("this boundkey is built without TPM support", "install a boundkey built with the cargo feature `tpm`"))
    }

    #[cfg(feature = "pkcs11")]
    fn pkcs11(self) -> Result<Keystore, Refusal> {
        use boundkey_hal::pkcs11::{Config, PinSource, Pkcs11Store, TokenMatch};
        let advice = "write uri: \"pkcs11:token=LABEL?module-path=/PATH\", or module and token";
        let invalid = |e: boundkey_hal::Error| Refusal::new(e.to_string(), advice);
        let mut config = match (self.uri, self.module) {
            (Some(_), Some(_)) => return Err(both("uri", "module")),
            (Some(_), None) if self.token.is_some() => return Err(both("uri", "token")),
            (Some(_), None) if self.serial.is_some() => return Err(both("uri", "serial")),
            (Some(uri), None) => Config::from_uri(&uri).map_err(invalid)?,
            (None, Some(module)) => {
                Config::new(module.0, TokenMatch { label: self.token, serial: self.serial, ..TokenMatch::default() })
            }
            (None, None) => return Err(Refusal::new("no PKCS#11 module is named", advice)),
        };
        let pin = match (self.pin_path, self.pin_credential) {
            (Some(_), Some(_)) => return Err(both("pin_path", "pin_credential")),
            (Some(path), None) => Some(PinSource::File(path.0)),
            (None, credential) => credential.map(PinSource::Credential),
        };
        match (pin, &config.pin) {
            (Some(_), Some(_)) => return Err(both("pin-source in the URI", "a PIN beside it")),
            (Some(pin), None) => config.pin = Some(pin),
            (None, _) => {}
        }
        Pkcs11Store::new(config.clone()).map_err(invalid)?;
        Ok(Keystore::Pkcs11(config))
    }

    #[cfg(not(feature = "pkcs11"))]
    #[allow(clippy::unused_self, reason = "as the one with the feature")]
    fn pkcs11(self) -> Result<Keystore, Refusal> {
        Err(Refusal::new(
            "this boundkey is built without PKCS#11 support",
            "install a boundkey built with the cargo feature `pkcs11`",
        ))
    }
}

#[cfg(any(feature = "pkcs11", feature = "tpm"))]
fn both(one: &str, other: &str) -> Refusal {
    Refusal::new(format!("`{one}` and `{other}` say the same twice"), "keep one of them")
}
