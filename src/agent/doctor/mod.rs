//! `boundkey doctor`: looks at all that a join needs, and says of each part whether it is well and how to mend it.
//!
//! Made to run beside the daemon: it takes no lock, and changes nothing but for a throw-away key, made and deleted again.

mod clock;
pub mod hardware;
mod keystore;
mod outputs;
mod report;
mod server;
mod storage;
mod token;

use std::sync::Arc;

use boundkey_hal::Algorithm;

use super::clock::DeviceClock;
use super::config::{Config, ConfigError, SecretSource};
use boundkey_join::SshKey;
use boundkey_platform::time::{Clock, Timestamp};

pub use report::Report;

/// Everything, with a configuration.
pub fn examine(config: &Config, system: &Arc<dyn Clock>) -> Report {
    let mut report = Report::default();
    configuration(&mut report, config);
    let memory = if config.onboarding.static_key.is_some() { None } else { storage::check(&mut report, config, system) };
    hardware::check(&mut report);
    let offered = match &config.onboarding.static_key {
        Some(source) => static_key(&mut report, source),
        None => keystore::check(&mut report, config, memory.as_ref()),
    };
    let known = memory.as_ref().map_or(Timestamp::default(), |memory| memory.last_known_time);
    let device_clock = Arc::new(DeviceClock::new(system.clone(), known));
    clock::check(&mut report, &device_clock, system.now());
    if let Some((answer, mut https)) = server::check(&mut report, config, &device_clock, memory.as_ref(), &offered) {
        clock::compare(&mut report, system.now(), answer.time);
        token::check(&mut report, config, memory.as_ref(), &mut https);
    }
    outputs::check(&mut report, config);
    report
}

/// What can be said without one.
pub fn without_configuration(e: &ConfigError) -> Report {
    let mut report = Report::default();
    report.fail("config", e.to_string(), e.advice());
    hardware::check(&mut report);
    report
}

/// A host without storage has its key, and nothing else to look at.
fn static_key(report: &mut Report, source: &SecretSource) -> Vec<Algorithm> {
    let key = source.read_static_key().map_err(|e| (e.to_string(), e.advice().to_owned()));
    let public = key.and_then(|key| key.public_key().map_err(|e| (e.to_string(), "make another one".to_owned())));
    match public {
        Ok(public) => {
            report.ok("key store", format!("a static key, {}", SshKey(public.clone())));
            vec![public.algorithm()]
        }
        Err((what, advice)) => {
            report.fail("key store", what, advice);
            vec![]
        }
    }
}

fn configuration(report: &mut Report, config: &Config) {
    let before = report.len();
    for warning in config.warnings.iter().chain(&config.daemon_warnings()) {
        report.warn("config", warning.to_string(), warning.advice());
    }
    for problem in [config.check_writers(), config.onboarding.token.read().map(drop)] {
        if let Err(e) = problem {
            report.fail("config", e.to_string(), e.advice());
        }
    }
    if report.len() == before {
        report.ok("config", config.path.display().to_string());
    }
}
