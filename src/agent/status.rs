//! `boundkey status`: what this device is, for a person or a script. Reads only, also while the daemon runs.

use std::fmt::Write as _;

use boundkey_hal::Algorithm;
use serde_json::{Value, json};

use super::clock::DeviceClock;
use super::config::{Config, ConfigError};
use super::error::AgentError;
use super::report::Reporter;
use crate::join::device::Memory;
use crate::keystore;
use crate::state::{DirStorage, StateFile};
use crate::text;
use crate::time::{Clock, Timestamp};

/// What `boundkey status` prints, with a line feed at its end.
pub fn show(config: &Config, system: std::sync::Arc<dyn Clock>, as_json: bool) -> Result<String, AgentError> {
    if config.onboarding.static_key.is_some() {
        let advice = "see the log of `boundkey start`, or `boundkeyctl get bot_instances` on the server";
        return Err(ConfigError::new("a host with a static key keeps nothing that could be shown", advice).into());
    }
    let state = StateFile::open(DirStorage::open(&config.storage)).map_err(|e| AgentError::State(config.storage.clone(), e))?;
    let memory = state.memory();
    let now = DeviceClock::new(system, memory.last_known_time).now();
    let mut status = describe(config, memory, &Reporter::open(&config.storage));
    if let Some(why) = state.damaged() {
        status["state_file"] = format!("one slot is {why}; the other one holds").into();
    }
    Ok(if as_json { format!("{status}\n") } else { text(&status, now) })
}

fn describe(config: &Config, memory: &Memory, reporter: &Reporter) -> Value {
    let key = memory.current_key();
    let place = keystore::open(&config.keystore, &config.storage, memory.keystore_pin.as_deref())
        .and_then(|mut store| store.capabilities())
        .map_or_else(
            |e| json!({ "error": e.to_string() }),
            |found| json!({ "place": found.place.as_str(), "hardware": found.hardware }),
        );
    let mut keystore = json!({
        "type": config.keystore.kind(),
        "key": key.map(|key| &key.id),
        "algorithm": key.map(|key| Algorithm::from(key.algorithm).to_string()),
        "thumbprint": key.map(|key| key.thumbprint.to_string()),
    });
    if let (Value::Object(keystore), Value::Object(place)) = (&mut keystore, place) {
        keystore.extend(place);
        let id = key.and_then(|key| key.id.parse().ok());
        let places = keystore::places(&config.keystore, &config.storage, id.as_ref());
        keystore.extend(places.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
    }
    let report = reporter.report();
    let or_none = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "token": or_none(&memory.token),
        "cluster": or_none(&memory.cluster),
        "instance_id": memory.step.map(|step| step.instance),
        "generation": memory.step.map(|step| step.generation),
        "recovery": memory.recoveries.map(|r| json!({
            "count": r.count, "limit": r.limit, "mode": r.mode, "remaining": r.remaining(),
        })),
        "certificate": memory.certificate.as_ref().map(|c| json!({
            "not_before": c.not_before, "not_after": c.not_after, "serial": c.serial,
        })),
        "next_renewal": report.next_renewal,
        "last_error": report.last_error,
        "warnings": report.warnings,
        "attempt_in_flight": memory.attempt.is_some(),
        "recovery_code": memory.recovery_code(),
        "keystore": keystore,
    })
}

/// The same for a person: one fact a line.
fn text(status: &Value, now: Timestamp) -> String {
    let plain = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<14}{}", text::line(value)); // writing to a String cannot fail
    };
    if status["instance_id"].is_null() {
        line("joined", "never");
    }
    for (name, field) in [("token", "token"), ("cluster", "cluster"), ("instance", "instance_id"), ("generation", "generation")] {
        line(name, &plain(&status[field]));
    }
    let recovery = &status["recovery"];
    if recovery.is_object() {
        let left =
            recovery["remaining"].as_u64().map_or_else(String::new, |left| format!(" of {}, {left} left", recovery["limit"]));
        line("recoveries", &format!("{} used{left} ({})", recovery["count"], plain(&recovery["mode"])));
    }
    let certificate = &status["certificate"];
    if let Some(end) = certificate["not_after"].as_str() {
        let expired = end.parse::<Timestamp>().is_ok_and(|end| end < now);
        line("certificate", &format!("until {end}{}", if expired { " (expired)" } else { "" }));
        line("serial", &plain(&certificate["serial"]));
    }
    line("next renewal", &plain(&status["next_renewal"]));
    let keystore = &status["keystore"];
    line("key store", &format!("{}, {}", plain(&keystore["type"]), plain(keystore.get("place").unwrap_or(&keystore["error"]))));
    if keystore["key"].is_string() {
        line(
            "key",
            &format!("{}, {} {}", plain(&keystore["key"]), plain(&keystore["algorithm"]), plain(&keystore["thumbprint"])),
        );
    }
    for (name, field) in [("key file", "file"), ("module", "module")] {
        if let Some(value) = keystore[field].as_str() {
            line(name, value);
        }
    }
    if let Some(code) = status["recovery_code"].as_str() {
        line("recovery code", &format!("{code}, not used yet"));
    }
    if let Some(damage) = status["state_file"].as_str() {
        line("state file", damage);
    }
    for warning in status["warnings"].as_array().into_iter().flatten() {
        line("warning", &plain(warning));
    }
    let error = &status["last_error"];
    if error.is_object() {
        line("last error", &format!("{} ({})", plain(&error["message"]), plain(&error["at"])));
        line("", &plain(&error["advice"]));
    }
    out
}
