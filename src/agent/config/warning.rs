//! What is unwise in a configuration that can be used.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::time::Duration;

use boundkey_hal::dir::Exposed;

/// Something that a person should know. `Display` is what is wrong, [`ConfigWarning::advice`] what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigWarning {
    /// Other users may replace a file that the configuration names, or write to it.
    ExposedFile(Exposed),
    /// The mode of this output gives its private key to every user of the device.
    ExposedOutput(String),
    /// Other users can read a file with a secret in it.
    ExposedSecret {
        /// The file.
        path: PathBuf,
        /// What is in it.
        secret: SecretKind,
        /// Whether the file is the configuration, which need not hold the secret itself.
        is_configuration: bool,
    },
    /// A variable of the environment is not used, for the configuration has a value too.
    IgnoredVariable {
        /// The variable.
        variable: &'static str,
        /// What it would have held.
        secret: SecretKind,
        /// The configuration.
        configuration: PathBuf,
    },
    /// Certificates end before the daemon renews them.
    LateRenewal {
        /// The identity or the output.
        name: String,
        /// How long its certificate holds.
        credential_ttl: Duration,
        /// Time between its renewals.
        renewal_interval: Duration,
    },
}

/// A kind of secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A private key.
    PrivateKey,
    /// A registration secret.
    RegistrationSecret,
}

impl ConfigWarning {
    /// What to do about it.
    pub fn advice(&self) -> String {
        match self {
            Self::ExposedFile(exposed) => exposed.advice(),
            Self::ExposedOutput(_) => "use 0640 and a group".into(),
            Self::ExposedSecret { path, is_configuration: false, .. } => format!("run chmod 600 {}", path.display()),
            Self::ExposedSecret { path, is_configuration: true, .. } => {
                format!("run chmod 600 {}, or use registration_secret_path", path.display())
            }
            Self::IgnoredVariable { .. } => "keep one of the two".into(),
            Self::LateRenewal { .. } => "make it three times as long".into(),
        }
    }
}

impl Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExposedFile(exposed) => exposed.fmt(f),
            Self::ExposedOutput(name) => write!(f, "{name}: its mode gives the private key to every user of the device"),
            Self::ExposedSecret { path, secret, .. } => {
                write!(f, "{} has a {secret} in it and others can read it", path.display())
            }
            Self::IgnoredVariable { variable, secret, configuration } => {
                let names = match secret {
                    SecretKind::PrivateKey => "a file with a static key",
                    SecretKind::RegistrationSecret => "a registration secret",
                };
                write!(f, "{variable} is not used: {} names {names}", configuration.display())
            }
            Self::LateRenewal { name, credential_ttl, renewal_interval } => write!(
                f,
                "{name}: credential_ttl ({}) is not longer than renewal_interval ({}), so no time is left to renew in",
                humantime::format_duration(*credential_ttl),
                humantime::format_duration(*renewal_interval)
            ),
        }
    }
}

impl Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrivateKey => "private key",
            Self::RegistrationSecret => "registration secret",
        })
    }
}
