//! The clock: a wrong one stops no join, but it makes logs lie, and programs that use the certificates refuse them.

use std::time::Duration;

use super::Report;
use crate::clock::DeviceClock;
use boundkey_platform::time::Timestamp;

/// A difference that a slow answer cannot explain.
const TOLERANCE: Duration = Duration::from_secs(60);
const ADVICE: &str = "set up time synchronisation (NTP); until then boundkey goes by the server's time";

/// Against what is known to have passed.
pub fn check(report: &mut Report, clock: &DeviceClock, system: Timestamp) {
    if clock.is_behind() {
        report.warn("clock", format!("the system clock says {system}, and it was {} already", clock.floor()), ADVICE);
    } else {
        report.ok("clock", format!("{system}, not behind the last time known"));
    }
}

/// Against the server's.
pub fn compare(report: &mut Report, system: Timestamp, server: Timestamp) {
    let apart = system.since(server).max(server.since(system));
    if apart > TOLERANCE {
        let way = if system > server { "ahead of" } else { "behind" };
        let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
        report.warn("clock", format!("the system clock is {apart} {way} the server's"), ADVICE);
    }
}
