//! The log of a failure that stays. An outage of days is some thousand tries: logged each time, it would fill the log of a device that
//! has little flash, and bury what came before it.

use std::time::Duration;

use super::error::AgentError;

/// A failure that stays is logged again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// Logs the failures of one thing that is tried again and again.
#[derive(Debug, Default)]
pub struct FailureLog {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    what: String,
    /// When it was logged, in time since boot.
    logged: Duration,
    repeated: bool,
}

impl FailureLog {
    /// Logs `e`, seen at `now` in time since boot: as an error with advice if it is news, else at level debug. Returns whether it was news.
    pub fn failed(&mut self, e: &AgentError, now: Duration) -> bool {
        let what = e.to_string();
        if let Some(last) = self.last.as_mut().filter(|last| last.what == what && now < last.logged + AGAIN_AFTER) {
            if !last.repeated {
                log::info!("the same again: from here on it is said once an hour");
                last.repeated = true;
            }
            log::debug!("{what}");
            false
        } else {
            log::error!("{what}\n{}", e.advice());
            let repeated = self.last.take().is_some_and(|last| last.what == what);
            self.last = Some(Last { what, logged: now, repeated });
            true
        }
    }

    /// A success: the next failure is news.
    pub fn succeeded(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_stays_is_said_once_an_hour() {
        let [refused, silent] = ["refused", "silent"].map(|what| AgentError::Other(what.into()));
        let mut failures = FailureLog::default();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let said = (0..72 * 60).filter(|minute| failures.failed(&refused, minutes(*minute))).count();
        assert_eq!(said, 72, "three days, and a try a minute");
        let now = minutes(72 * 60);
        assert!(failures.failed(&silent, now) && failures.failed(&refused, now), "another one is news");
        assert!(!failures.failed(&refused, now));
        failures.succeeded();
        assert!(failures.failed(&refused, now), "a new outage is news");
    }
}
