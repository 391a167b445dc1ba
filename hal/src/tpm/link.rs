//! Conversations with the TPM: each opens the way to it, says one thing, and closes it again.
//!
//! A context of libtss2 that has seen one I/O or HMAC error is of no use any more, and one that is kept open keeps slots
//! of the TPM; so none outlives its conversation.

use std::collections::BTreeMap;
use std::string::{String, ToString as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use super::config::Config;
use super::device::Tpm;
use super::esys::Esys;
use super::fault::{self, Fault};
use super::watchdog;
use crate::Error;

/// Waits before a TPM that asks for patience, or is full, is asked again: 2.5 s in all. (libtss2 asks five times in a row, without any.)
const WAITS: [u64; 8] = [10, 20, 40, 80, 160, 320, 640, 1280];

/// Holds the conversation `talk`, which is named by `what`, in a thread of its own and within the time limit.
///
/// `talk` may be called several times: when a TPM says it is busy, it has not done what it was told.
pub(super) fn converse<T: Send + 'static>(
    config: &Config,
    what: &'static str,
    talk: impl FnMut(&mut dyn Tpm) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Error> {
    let shared = turns_of(config);
    // A panic elsewhere leaves nothing that the next conversation would not put right.
    let _turn = shared.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
    let config = config.clone();
    watchdog::run(&config.tcti.to_string(), what, config.time_limit, move || patiently(&config, talk))
}

/// One conversation at a time where no resource manager keeps those of several threads apart: they would take each other's slots, and
/// what one flushes after a fault would be another's. Who waits waits for no longer than the time limits of those before.
fn turns_of(config: &Config) -> Option<Arc<Mutex<()>>> {
    static TURNS: Mutex<BTreeMap<String, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    if config.tcti.has_resource_manager() {
        return None;
    }
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    Some(turns.entry(config.tcti.to_string()).or_default().clone())
}

fn patiently<T>(config: &Config, mut talk: impl FnMut(&mut dyn Tpm) -> Result<T, Fault>) -> Result<T, Error> {
    let mut stale = Stale::default();
    for wait in WAITS {
        match once(config, &mut talk) {
            Err(fault) if fault.is_try_again() => {}
            Err(fault) if fault.is_out_of_slots() => stale.look(config),
            result => return result.map_err(|fault| fault.explain(&config.tcti)),
        }
        thread::sleep(Duration::from_millis(wait));
    }
    stale.flush(config);
    once(config, &mut talk).map_err(|fault| fault.explain(&config.tcti))
}

fn once<T>(config: &Config, talk: &mut impl FnMut(&mut dyn Tpm) -> Result<T, Fault>) -> Result<T, Fault> {
    let mut tpm = Esys::open(config)?;
    // Without a resource manager nobody cleans up after a conversation that broke off, so remember what was there before.
    let before = if config.tcti.has_resource_manager() { None } else { Some(tpm.loaded()?) };
    let result = talk(&mut tpm);
    if let Err(fault) = &result {
        if fault.is_lockout() {
            return Err(fault::locked(tpm.lockout_interval()).into());
        }
        if let Some(before) = before
            && fault.is_broken_line()
        {
            drop(tpm);
            flush_newer(config, &before);
        }
    }
    result
}

/// Flushes what a broken conversation could not. Where the TPM is not reachable now, it is not full then either: it was restarted.
fn flush_newer(config: &Config, before: &[u32]) {
    if let Ok(mut tpm) = Esys::open(config) {
        let newer: Vec<u32> = tpm.loaded().unwrap_or_default().into_iter().filter(|h| !before.contains(h)).collect();
        tpm.flush(&newer);
    }
}

/// Objects and sessions that fill a TPM without a resource manager, and stay for as long as we wait: left by a program that
/// crashed. (The kernel opens `/dev/tpm0` for one program at a time, so there nobody else can be using them.)
#[derive(Default)]
struct Stale(Option<Vec<u32>>);

impl Stale {
    fn look(&mut self, config: &Config) {
        if config.tcti.has_resource_manager() {
            return;
        }
        let now = Esys::open(config).and_then(|mut tpm| tpm.loaded()).unwrap_or_default();
        match &mut self.0 {
            None => self.0 = Some(now),
            Some(stayed) => stayed.retain(|h| now.contains(h)),
        }
    }

    fn flush(self, config: &Config) {
        if let (Some(stayed), Ok(mut tpm)) = (self.0, Esys::open(config)) {
            tpm.flush(&stayed);
        }
    }
}
