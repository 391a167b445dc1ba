//! The storage directory, and what the device remembers in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use boundkey_hal::dir::{Dir, Exposed};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Report;
use crate::clock::DeviceClock;
use crate::config::Config;
use crate::device::holder;
use crate::error::AgentError;
use crate::identity::StoredIdentity;
use crate::recovery_code::command;
use crate::report::Reporter;
use boundkey_join::device::Memory;
use boundkey_platform::time::Clock;
use boundkey_state::{DirStorage, StateFile};

const CHECK: &str = "storage";
/// What one renewal may need at worst: two slots, the identity with its bundle, a key, each beside its old version.
const NEEDED: u64 = 32 * 1024;
/// So little that it deserves a word.
const COMFORTABLE: u64 = 256 * 1024;

/// What the device remembers; `None` where that cannot be read.
pub fn check(report: &mut Report, config: &Config, system: &Arc<dyn Clock>) -> Option<Memory> {
    let dir = &config.storage;
    directory(report, dir);
    space(report, dir);
    if let Some(pid) = holder(dir) {
        report.ok(CHECK, format!("an agent runs on it, process {pid}: what follows is as of its last write"));
    }
    let state = match StateFile::open(DirStorage::open(dir)) {
        Ok(state) => state,
        Err(e) => {
            let e = AgentError::State(dir.clone(), e);
            report.fail("state", e.to_string(), e.advice());
            return None;
        }
    };
    let memory = state.memory().clone();
    match (state.exists(), state.damaged()) {
        (false, _) => report.ok("state", "none: this device never joined"),
        (true, None) => report.ok("state", "whole"),
        (true, Some(why)) => {
            let advice = "nothing was lost, and the next join writes it anew; if it comes again, look at the medium (dmesg)";
            report.warn("state", format!("one slot is {why}; the other one holds"), advice);
        }
    }
    let now = DeviceClock::new(system.clone(), memory.last_known_time).now();
    if memory.step.is_some() {
        identity(report, dir, &memory, now);
        recoveries(report, &memory);
        if let Some(code) = memory.recovery_code() {
            report.ok("recovery code", format!("{code} waits for `{}`", command(&memory.token, &code)));
        }
    }
    if let Some(last) = &Reporter::open(dir).report().last_error {
        report.warn("last join", format!("failed at {}: {}", last.at, last.message), last.advice.clone());
    }
    Some(memory)
}

fn directory(report: &mut Report, dir: &Path) {
    let place = dir.display();
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return report.fail(CHECK, format!("{place} is not a directory"), "remove it, or correct storage.path"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return report.warn(
                CHECK,
                format!("{place} is not there yet"),
                "nothing to do: the first start makes it, private to its user",
            );
        }
        Err(e) => {
            let e = AgentError::Storage(place.to_string(), e);
            return report.fail(CHECK, e.to_string(), e.advice());
        }
    };
    if let Err(e) = access(dir, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
        let e = AgentError::Storage(place.to_string(), e.into());
        return report.fail(CHECK, e.to_string(), e.advice());
    }
    if let Err(e) = Dir::check(dir)
        && let Some(exposed) = Exposed::of(&e)
    {
        return report.fail(CHECK, exposed.to_string(), exposed.advice());
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        report.warn(CHECK, format!("{place} has mode {mode:04o}: others can look in"), format!("run chmod 700 {place}"));
    } else {
        report.ok(CHECK, format!("{place} is private and can be written"));
    }
}

#[allow(clippy::useless_conversion, reason = "the counts are 32 bits wide on some targets")]
fn space(report: &mut Report, dir: &Path) {
    let Some(existing) = dir.ancestors().find(|path| path.exists()) else { return };
    let Ok(found) = statvfs(existing) else { return };
    let free = u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size()));
    // Some file systems do not count inodes, and say that they have none at all.
    let no_inodes = found.files() > 0 && found.files_available() == 0;
    let advice = "make room on the file system of storage.path";
    if free < NEEDED || no_inodes {
        let what = if no_inodes { "no file can be made any more".into() } else { format!("{} KiB are free", free / 1024) };
        report.fail(CHECK, format!("{what}, and a renewal may need {} KiB", NEEDED / 1024), advice);
    } else if free < COMFORTABLE {
        report.warn(CHECK, format!("only {} KiB are free", free / 1024), advice);
    }
}

fn identity(report: &mut Report, dir: &Path, memory: &Memory, now: boundkey_platform::time::Timestamp) {
    const CHECK: &str = "identity";
    let rejoin = "nothing to do while recoveries are left: the next join is one";
    let known = match StoredIdentity::load(&DirStorage::open(dir)) {
        Err(e) => return report.fail(CHECK, e.to_string(), e.advice()),
        Ok(None) => return report.warn(CHECK, "the identity certificate is missing or damaged", rejoin),
        Ok(Some(identity)) => identity.belongs_to(memory),
    };
    match &memory.certificate {
        Some(certificate) if certificate.not_after <= now => {
            report.warn(CHECK, format!("the certificate expired at {}", certificate.not_after), rejoin);
        }
        Some(_) if !known => {
            let advice = "nothing to do: a power cut left it so, and the next join repeats the last one";
            report.warn(CHECK, "the certificate is newer than the state", advice);
        }
        Some(certificate) => report.ok(CHECK, format!("certificate until {}", certificate.not_after)),
        None => report.warn(CHECK, "there is no certificate", rejoin),
    }
}

fn recoveries(report: &mut Report, memory: &Memory) {
    const CHECK: &str = "recoveries";
    match memory.recoveries.map(|recoveries| (recoveries, recoveries.remaining())) {
        None | Some((_, None)) => report.ok(CHECK, "not limited"),
        Some((recoveries, Some(0))) => report.warn(
            CHECK,
            format!("none is left of {}: without a valid certificate the device stays out", recoveries.limit),
            format!(
                "raise spec.bound_keypair.recovery.limit of token {}, or when it is out, run `boundkeyctl exempt`",
                memory.token
            ),
        ),
        Some((recoveries, Some(left))) => report.ok(CHECK, format!("{left} left of {}", recoveries.limit)),
    }
}
