//! The token, as the server knows it: there, bound to a key of this device, or waiting for a secret that this device can read.
//!
//! Asks for a challenge, which writes nothing on either side. Locks, limits and a secret that is wrong show in a join alone.

use super::Report;
use crate::config::{Config, SecretSource};
use crate::error::AgentError;
use crate::join::parse;
use crate::transport::{Https, Transport as _};
use boundkey_join::device::{Memory, Start};
use boundkey_join::message::{CHALLENGE_PATH, ChallengeAnswer};

const CHECK: &str = "token";

/// Asks the server by `https`. `memory`: that of the device; `None` where it could not be read, or is not kept.
pub fn check(report: &mut Report, config: &Config, memory: Option<&Memory>, https: &mut Https) {
    // A name that cannot be read was told with the configuration.
    let Ok(name) = config.onboarding.token.read() else { return };
    let known = memory.map(|memory| memory.for_token(&name));
    let memory = known.clone().unwrap_or_default();
    let start = Start::new(&memory, &name);
    let answer = match ask(https, &start) {
        Ok(answer) => answer,
        Err(e) => return report.fail(CHECK, e.to_string(), e.advice()),
    };
    if known.is_none() {
        return report.ok(CHECK, format!("{name} is there"));
    }
    match start.challenged(answer) {
        Err(e) => {
            let e = AgentError::from(e);
            report.fail(CHECK, e.to_string(), e.advice());
        }
        Ok(asked) if asked.is_registration() => registration(report, &name, config.onboarding.registration_secret.as_ref()),
        Ok(_) => report.ok(CHECK, format!("{name} trusts a key of this device")),
    }
}

fn ask(https: &mut Https, start: &Start) -> Result<ChallengeAnswer, AgentError> {
    let body = serde_json::to_vec(&start.request()).map_err(|e| AgentError::Other(e.to_string()))?;
    parse(&https.post(CHALLENGE_PATH, &body)?)
}

/// A first join, for which the token has no key yet.
fn registration(report: &mut Report, name: &str, secret: Option<&SecretSource>) {
    match secret.map(SecretSource::read) {
        None => {
            let advice = "set registration_secret_path, or register the key that `boundkey keypair create` prints";
            report.fail(CHECK, format!("{name} waits for its first join, and no registration secret is configured"), advice);
        }
        Some(Err(e)) => report.fail(CHECK, format!("{name} waits for its first join: {e}"), e.advice()),
        Some(Ok(_)) => report.ok(CHECK, format!("{name} waits for its first join; there is a registration secret, not compared")),
    }
}
