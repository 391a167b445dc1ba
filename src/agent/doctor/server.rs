//! The auth endpoint: reachable, the one trusted, of a version and with algorithms that fit.

use std::sync::Arc;

use boundkey_hal::Algorithm;

use super::Report;
use crate::clock::DeviceClock;
use crate::config::Config;
use crate::error::AgentError;
use crate::tls::{Presented, Trust};
use crate::transport::{Https, JSON, Transport as _, TransportError};
use crate::trust::DeviceTrust;
use boundkey_join::device::Memory;
use boundkey_join::message::{MAX_ANSWER, PING_PATH, Ping};
use boundkey_platform::time::Clock as _;
use boundkey_state::{DirStorage, Storage};

const CHECK: &str = "server";

/// What the server says of itself, if it says anything, and the connection to it.
pub fn check(
    report: &mut Report,
    config: &Config,
    clock: &Arc<DeviceClock>,
    memory: Option<&Memory>,
    offered: &[Algorithm],
) -> Option<(Ping, Https)> {
    let (ping, https) = match ask(config, clock) {
        Ok(answer) => answer,
        Err(e) => {
            report.fail(CHECK, format!("{}: {e}", config.auth_server), e.advice());
            return None;
        }
    };
    let Ping { cluster, version, algorithms, .. } = &ping;
    report.ok(CHECK, format!("{} is the one trusted: cluster {cluster}, version {version}", config.auth_server));
    if let Some(Presented { not_after: end, .. }) = https.presented().filter(|presented| presented.is_doubtful) {
        let advice =
            "set this device's clock; if it is right, look at the server: it renews its certificate by itself while it runs";
        report.warn(CHECK, format!("by this device's clock ({}) its certificate expired at {end}", clock.now()), advice);
    }
    if release(version) != release(env!("CARGO_PKG_VERSION")) {
        let what = format!("it has version {version}, this is {}", env!("CARGO_PKG_VERSION"));
        report.warn(CHECK, what, "they may well work together; if not, upgrade the older one");
    }
    if let Some(known) = memory.map(|memory| &memory.cluster).filter(|known| !known.is_empty() && *known != cluster) {
        let advice = "correct auth_server, or give this device another storage.path and register it there";
        report.fail(CHECK, format!("this device belongs to cluster {known}"), advice);
    }
    if !offered.is_empty() && !offered.iter().any(|algorithm| algorithms.iter().any(|name| name == algorithm.jws_name())) {
        let what = format!("it takes none of the key store's algorithms, but {}", algorithms.join(", "));
        report.fail(CHECK, what, "choose another keystore type, or upgrade the server");
    }
    Some((ping, https))
}

fn ask(config: &Config, clock: &Arc<DeviceClock>) -> Result<(Ping, Https), AgentError> {
    let storage = config.onboarding.static_key.is_none().then(|| DirStorage::open(&config.storage));
    let roots = DeviceTrust::load(config, storage.as_ref().map(|storage| storage as &dyn Storage))?.roots();
    let trust = Trust::new(roots, clock.clone());
    let mut https = Https::new(&config.auth_server.to_string(), trust)?;
    let answer = https.get(PING_PATH, JSON, MAX_ANSWER)?;
    let ping = serde_json::from_slice(&answer).map_err(|e| TransportError::NotBoundkey(e.to_string()))?;
    Ok((ping, https))
}

/// Major and minor version.
fn release(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    parts.next().zip(parts.next())
}
