//! `boundkey status`: what this device is, for a person or a script. Reads only, also while the daemon runs.

use std::fmt::Write as _;

use boundkey_hal::{Algorithm, KeyId};
use serde::Serialize;

use super::clock::DeviceClock;
use super::config::{Config, ConfigError};
use super::error::AgentError;
use super::report::{LastError, Reporter};
use boundkey_join::device::{KnownKey, Memory};
use boundkey_join::message::{Recoveries, RecoveryMode};
use boundkey_join::{Id, RecoveryCode, Thumbprint};
use boundkey_keystore as keystore;
use boundkey_platform::text;
use boundkey_platform::time::{Clock, Timestamp};
use boundkey_state::{DirStorage, StateFile};

/// What `boundkey status` prints, with a line feed at its end.
pub fn show(config: &Config, system: std::sync::Arc<dyn Clock>, as_json: bool) -> Result<String, AgentError> {
    if config.onboarding.static_key.is_some() {
        let advice = "see the log of `boundkey start`, or `boundkeyctl get bot_instances` on the server";
        return Err(ConfigError::new("a host with a static key keeps nothing that could be shown", advice).into());
    }
    let state = StateFile::open(DirStorage::open(&config.storage)).map_err(|e| AgentError::State(config.storage.clone(), e))?;
    let memory = state.memory();
    let mut status = Status::new(config, memory, &Reporter::open(&config.storage));
    status.state_file = state.damaged().map(|why| format!("one slot is {why}; the other one holds"));
    if as_json {
        let json = serde_json::to_string(&status).map_err(|e| AgentError::Other(format!("the status as JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(status.text(DeviceClock::new(system, memory.last_known_time).now()))
}

/// The members of the JSON output: docs/scripting.md.
#[derive(Debug, Serialize)]
struct Status {
    token: Option<String>,
    cluster: Option<String>,
    instance_id: Option<Id>,
    generation: Option<u32>,
    recovery: Option<RecoveryStatus>,
    certificate: Option<CertificateStatus>,
    next_renewal: Option<Timestamp>,
    last_error: Option<LastError>,
    warnings: Vec<String>,
    attempt_in_flight: bool,
    recovery_code: Option<RecoveryCode>,
    keystore: KeystoreStatus,
    /// What is wrong with the state file, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_file: Option<String>,
}

#[derive(Debug, Serialize)]
struct RecoveryStatus {
    count: u32,
    limit: u32,
    mode: RecoveryMode,
    /// Recoveries left; `None` where the mode sets no limit.
    remaining: Option<u32>,
}

#[derive(Debug, Serialize)]
struct CertificateStatus {
    not_before: Timestamp,
    not_after: Timestamp,
    serial: String,
}

#[derive(Debug, Serialize)]
struct KeystoreStatus {
    r#type: &'static str,
    #[serde(flatten)]
    access: KeystoreAccess,
    #[serde(flatten)]
    key: KeyStatus,
    /// The file of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// The PKCS#11 module.
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
}

/// Whether the key store can be reached.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum KeystoreAccess {
    Failed { error: String },
    Open { place: String, hardware: bool },
}

/// The device's key; every member is `None` before there is one.
#[derive(Debug, Default, Serialize)]
struct KeyStatus {
    #[serde(rename = "key")]
    name: Option<String>,
    algorithm: Option<String>,
    thumbprint: Option<Thumbprint>,
}

impl Status {
    fn new(config: &Config, memory: &Memory, reporter: &Reporter) -> Self {
        let report = reporter.report();
        let or_none = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            token: or_none(&memory.token),
            cluster: or_none(&memory.cluster),
            instance_id: memory.step.map(|step| step.instance),
            generation: memory.step.map(|step| step.generation),
            recovery: memory.recoveries.map(RecoveryStatus::from),
            certificate: memory.certificate.as_ref().map(|certificate| CertificateStatus {
                not_before: certificate.not_before,
                not_after: certificate.not_after,
                serial: certificate.serial.clone(),
            }),
            next_renewal: report.next_renewal,
            last_error: report.last_error.clone(),
            warnings: report.warnings.clone(),
            attempt_in_flight: memory.attempt.is_some(),
            recovery_code: memory.recovery_code(),
            keystore: KeystoreStatus::new(config, memory),
            state_file: None,
        }
    }

    /// The same for a person: one fact a line. `now`: device time.
    fn text(&self, now: Timestamp) -> String {
        let mut lines = Lines::default();
        if self.instance_id.is_none() {
            lines.add("joined", "never");
        }
        lines.add("token", or_none(self.token.as_ref()));
        lines.add("cluster", or_none(self.cluster.as_ref()));
        lines.add("instance", or_none(self.instance_id.as_ref()));
        lines.add("generation", or_none(self.generation.as_ref()));
        if let Some(RecoveryStatus { count, limit, mode, remaining }) = &self.recovery {
            let left = remaining.map_or_else(String::new, |left| format!(" of {limit}, {left} left"));
            lines.add("recoveries", format!("{count} used{left} ({mode})"));
        }
        if let Some(CertificateStatus { not_after, serial, .. }) = &self.certificate {
            let expired = if *not_after < now { " (expired)" } else { "" };
            lines.add("certificate", format!("until {not_after}{expired}"));
            lines.add("serial", serial);
        }
        lines.add("next renewal", or_none(self.next_renewal.as_ref()));
        self.keystore.add_to(&mut lines);
        if let Some(code) = &self.recovery_code {
            lines.add("recovery code", format!("{code}, not used yet"));
        }
        if let Some(damage) = &self.state_file {
            lines.add("state file", damage);
        }
        for warning in &self.warnings {
            lines.add("warning", warning);
        }
        if let Some(LastError { message, advice, at, .. }) = &self.last_error {
            lines.add("last error", format!("{message} ({at})"));
            lines.add("", advice);
        }
        lines.0
    }
}

impl From<Recoveries> for RecoveryStatus {
    fn from(recoveries: Recoveries) -> Self {
        let Recoveries { count, limit, mode } = recoveries;
        Self { count, limit, mode, remaining: recoveries.remaining() }
    }
}

impl KeystoreStatus {
    fn new(config: &Config, memory: &Memory) -> Self {
        let access = keystore::open(&config.keystore, &config.storage, memory.keystore_pin.as_deref())
            .and_then(|store| store.capabilities())
            .map_or_else(
                |e| KeystoreAccess::Failed { error: e.to_string() },
                |found| KeystoreAccess::Open { place: found.place.as_str().to_owned(), hardware: found.hardware },
            );
        let key = memory.current_key();
        let id: Option<KeyId> = key.and_then(|key| key.id.parse().ok());
        let mut places = keystore::places(&config.keystore, &config.storage, id.as_ref());
        let mut place = |name| places.iter().position(|(known, _)| *known == name).map(|at| places.swap_remove(at).1);
        let (file, module) = (place("file"), place("module"));
        Self { r#type: config.keystore.kind(), access, key: key.map(KeyStatus::from).unwrap_or_default(), file, module }
    }

    fn add_to(&self, lines: &mut Lines) {
        let (KeystoreAccess::Open { place, .. } | KeystoreAccess::Failed { error: place }) = &self.access;
        lines.add("key store", format!("{}, {place}", self.r#type));
        if let KeyStatus { name: Some(name), algorithm: Some(algorithm), thumbprint: Some(thumbprint) } = &self.key {
            lines.add("key", format!("{name}, {algorithm} {thumbprint}"));
        }
        for (name, value) in [("key file", &self.file), ("module", &self.module)] {
            if let Some(value) = value {
                lines.add(name, value);
            }
        }
    }
}

impl From<&KnownKey> for KeyStatus {
    fn from(key: &KnownKey) -> Self {
        Self {
            name: Some(key.id.clone()),
            algorithm: Some(Algorithm::from(key.algorithm).to_string()),
            thumbprint: Some(key.thumbprint),
        }
    }
}

/// Lines of a name and a value each.
#[derive(Default)]
struct Lines(String);

impl Lines {
    /// One more line. Of the value, what is not graphic is escaped.
    fn add(&mut self, name: &str, value: impl AsRef<str>) {
        let _ = writeln!(self.0, "{name:<14}{}", text::line(value.as_ref())); // writing to a String cannot fail
    }
}

fn or_none(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}
