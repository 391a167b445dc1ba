//! The configuration file of the agent, `/etc/boundkey.yaml`: read once, checked whole, before anything else happens.
//!
//! What the types here hold has been checked; nothing downstream checks it again. An error names file, line and field and
//! says what to write instead. Files that the configuration points to are read when they are needed, not here.

mod error;
mod exposure;
mod onboarding;
mod output;
mod value;
mod warning;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

pub use boundkey_keystore::{Keystore, KeystoreKind, KeystoreOptions};
pub use error::{ConfigError, Refusal};
pub use onboarding::{Onboarding, SecretSource, TokenSource};
pub use output::{Account, Destination, Form, KeyPlace, Lifetime, Output, Reload};
pub use value::{AuthServer, CaPin, DEFAULT_PORT, Mode, Secret};
pub use warning::{ConfigWarning, SecretKind};

use boundkey_platform::logging::{Format, Level};
use boundkey_platform::{from_fields, from_text};
use output::{DestinationType, Outputs};
use value::{AbsolutePath, Span, Version};

/// Where the configuration is unless a command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/boundkey.yaml";
/// Where the device keeps its state unless configured.
pub const DEFAULT_STORAGE: &str = "/var/lib/boundkey";
/// Time between renewals unless configured; more for the long-lived certificates that a server may give.
pub const DEFAULT_RENEWAL_INTERVAL: Duration = Duration::from_secs(20 * 60);

/// Time between looks at the revocation list unless configured.
pub const DEFAULT_CRL_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Variable with the registration secret, for configurations that have none.
const SECRET_VARIABLE: &str = "BOUNDKEY_REGISTRATION_SECRET";
/// Variable with a static key.
const STATIC_KEY_VARIABLE: &str = "BOUNDKEY_STATIC_KEY";
/// Largest file read here, in bytes.
const MAX_FILE: u64 = 64 * 1024;

from_fields!(Fields => FileContent, LogFields => LogConfig, StorageFields => Storage);
from_text!(RollbackProtection);

/// A configuration that was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The auth endpoint.
    pub auth_server: AuthServer,
    /// How the auth endpoint proves that it is the right one.
    pub trust: Trust,
    /// With what to join.
    pub onboarding: Onboarding,
    /// Where the bound key lives.
    pub keystore: Keystore,
    /// Directory of the device's state.
    pub storage: PathBuf,
    /// Whether a counter in the TPM tells an old copy of it; only with keys in a TPM.
    pub rollback_protection: bool,
    /// How long certificates are to hold; else the server says.
    pub credential_ttl: Option<Duration>,
    /// Time between renewals; else by how long certificates hold.
    pub renewal_interval: Option<Duration>,
    /// Time between looks at the revocation list, where an output wants it.
    pub crl_interval: Duration,
    /// How to log.
    pub log: LogConfig,
    /// Certificates for programs on the device.
    pub outputs: Vec<Output>,
    /// What a person should know; to be logged. See [`Config::daemon_warnings`] too.
    pub warnings: Vec<ConfigWarning>,
}

/// How the auth endpoint proves that it is the right one. There is no third way: without it, anyone could be it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A file with CA certificates in PEM, read when needed.
    File(PathBuf),
    /// Its CA has one of these keys; at least one.
    Pins(Vec<CaPin>),
}

/// How to log; a command line and `BOUNDKEY_LOG` go before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON.
    pub format: Format,
    /// The least important records that are written.
    pub level: Option<Level>,
}

impl Config {
    /// Reads and checks the file at `path`. `env` looks up environment variables.
    pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let text = read_text("the configuration", path)?;
        let file: FileContent = yaml_serde::from_str(&text).map_err(|e| ConfigError::at(path, &e))?;
        let mut config = Self {
            path: path.to_path_buf(),
            auth_server: file.auth_server,
            trust: file.trust,
            onboarding: file.onboarding,
            keystore: file.keystore.with_environment(env),
            storage: file.storage,
            rollback_protection: file.rollback_protection,
            credential_ttl: file.credential_ttl,
            renewal_interval: file.renewal_interval,
            crl_interval: file.crl_interval,
            log: file.log,
            outputs: file.outputs,
            warnings: Vec::new(),
        };
        config.warn_of_exposure();
        config.take_secret_of_environment(env(SECRET_VARIABLE).map(Zeroizing::new));
        config.take_key_of_environment(env(STATIC_KEY_VARIABLE).map(Zeroizing::new));
        if config.onboarding.static_key.is_some() && config.keystore.kind() != "file" {
            let what = format!("a static key does not go with keys in a {} store", config.keystore.kind());
            return Err(ConfigError::new(what, "remove the static key, or `keystore`"));
        }
        Ok(config)
    }

    /// What a person should know of a daemon with this configuration; a single join has no interval to be too long.
    pub fn daemon_warnings(&self) -> Vec<ConfigWarning> {
        let renewal_interval = self.renewal_interval.unwrap_or(DEFAULT_RENEWAL_INTERVAL);
        let own = self.credential_ttl.map(|credential_ttl| ("the identity", Lifetime { credential_ttl, renewal_interval }));
        let all = own.into_iter().chain(self.outputs.iter().filter_map(|o| Some((&*o.name, o.lifetime?))));
        all.filter(|(_, l)| l.credential_ttl <= l.renewal_interval)
            .map(|(name, Lifetime { credential_ttl, renewal_interval })| ConfigWarning::LateRenewal {
                name: name.to_owned(),
                credential_ttl,
                renewal_interval,
            })
            .collect()
    }

    fn take_secret_of_environment(&mut self, value: Option<Zeroizing<String>>) {
        // An empty variable is how a unit file unsets one.
        let Some(secret) = value.and_then(|v| v.parse::<Secret>().ok()) else { return };
        if self.onboarding.registration_secret.is_some() {
            self.ignore_variable(SECRET_VARIABLE, SecretKind::RegistrationSecret);
        } else {
            self.onboarding.registration_secret = Some(SecretSource::Value(secret));
        }
    }

    fn take_key_of_environment(&mut self, value: Option<Zeroizing<String>>) {
        let Some(key) = value.and_then(|v| v.parse::<Secret>().ok()) else { return };
        if self.onboarding.static_key.is_some() {
            self.ignore_variable(STATIC_KEY_VARIABLE, SecretKind::PrivateKey);
        } else {
            self.onboarding.static_key = Some(SecretSource::Value(key));
        }
    }

    fn ignore_variable(&mut self, variable: &'static str, secret: SecretKind) {
        self.warnings.push(ConfigWarning::IgnoredVariable { variable, secret, configuration: self.path.clone() });
    }
}

/// The text of a small file, wiped when dropped: it may hold a secret.
fn read_text(what: &str, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(e) => Err(ConfigError::unreadable(what, path, &e)),
        Ok(n) if n as u64 > MAX_FILE => {
            Err(ConfigError::new(format!("{what} {} is larger than 64 KiB", path.display()), "see that it is the right file"))
        }
        Ok(_) => Ok(text),
    }
}

/// The fields of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "version")]
    _version: Version,
    auth_server: AuthServer,
    ca_pins: Option<Vec<CaPin>>,
    ca_file: Option<AbsolutePath>,
    onboarding: Onboarding,
    keystore: Option<Keystore>,
    storage: Option<Storage>,
    credential_ttl: Option<Span>,
    renewal_interval: Option<Span>,
    crl_interval: Option<Span>,
    log: Option<LogConfig>,
    outputs: Option<Outputs>,
}

/// The same, checked.
struct FileContent {
    auth_server: AuthServer,
    trust: Trust,
    onboarding: Onboarding,
    keystore: Keystore,
    storage: PathBuf,
    rollback_protection: bool,
    credential_ttl: Option<Duration>,
    renewal_interval: Option<Duration>,
    crl_interval: Duration,
    log: LogConfig,
    outputs: Vec<Output>,
}

impl TryFrom<Fields> for FileContent {
    type Error = Refusal;

    fn try_from(fields: Fields) -> Result<Self, Refusal> {
        let how_to_trust = "write the pin that `boundkey-auth init` printed: ca_pins: [\"sha256:...\"]";
        let trust = match (fields.ca_pins, fields.ca_file) {
            (Some(_), Some(_)) => return Err(Refusal::new("`ca_pins` and `ca_file` are both set", "keep one of them")),
            (Some(pins), None) if pins.is_empty() => return Err(Refusal::new("`ca_pins` is empty", how_to_trust)),
            (Some(pins), None) => Trust::Pins(pins),
            (None, Some(file)) => Trust::File(file.0),
            (None, None) => return Err(Refusal::new("neither `ca_pins` nor `ca_file` is set", how_to_trust)),
        };
        let keystore = fields.keystore.unwrap_or_default();
        let default = || Storage { path: PathBuf::from(DEFAULT_STORAGE), rollback_protection: false };
        let Storage { path: storage, rollback_protection } = fields.storage.unwrap_or_else(default);
        if rollback_protection && keystore.kind() != "tpm" {
            let what = "`storage.rollback_protection: tpm` goes with keys in a TPM";
            return Err(Refusal::new(what, "write keystore: {type: tpm}, or remove rollback_protection"));
        }
        let outputs = fields.outputs.map_or_else(Vec::new, |o| o.0);
        if let Some(output) = outputs.iter().find(|o| o.destination.path.starts_with(&storage)) {
            let what = format!("the output {} would write into the storage directory", output.name);
            return Err(Refusal::new(what, "give it a directory elsewhere, such as under /run/boundkey"));
        }
        if let Some(output) = outputs.iter().find(|o| o.key == KeyPlace::Keystore && keystore.kind() == "file") {
            let what = format!("the output {} has `key: keystore`, and the key store is files", output.name);
            return Err(Refusal::new(what, "write keystore: {type: tpm} or {type: pkcs11}, or leave `key` out"));
        }
        Ok(Self {
            auth_server: fields.auth_server,
            trust,
            onboarding: fields.onboarding,
            keystore,
            storage,
            rollback_protection,
            credential_ttl: fields.credential_ttl.map(|s| s.0),
            renewal_interval: fields.renewal_interval.map(|s| s.0),
            crl_interval: fields.crl_interval.map_or(DEFAULT_CRL_INTERVAL, |s| s.0),
            log: fields.log.unwrap_or_default(),
            outputs,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFields {
    format: Option<Format>,
    level: Option<Level>,
}

impl TryFrom<LogFields> for LogConfig {
    type Error = Refusal;

    fn try_from(fields: LogFields) -> Result<Self, Refusal> {
        Ok(Self { format: fields.format.unwrap_or_default(), level: fields.level })
    }
}

struct Storage {
    path: PathBuf,
    rollback_protection: bool,
}

/// What tells an old copy: there is one way.
struct RollbackProtection;

impl std::str::FromStr for RollbackProtection {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "tpm" => Ok(Self),
            _ => Err(Refusal::new(
                format!("{text:?} is no protection from rollback"),
                "write rollback_protection: tpm, or remove it",
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageFields {
    #[serde(rename = "type")]
    _type: DestinationType,
    path: AbsolutePath,
    rollback_protection: Option<RollbackProtection>,
}

impl TryFrom<StorageFields> for Storage {
    type Error = Refusal;

    fn try_from(fields: StorageFields) -> Result<Self, Refusal> {
        Ok(Self { path: fields.path.0, rollback_protection: fields.rollback_protection.is_some() })
    }
}
