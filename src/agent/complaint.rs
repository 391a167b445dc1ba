//! What the daemon says of a failure that stays. An outage of days is some thousand tries: said each time, it would fill the log of a
//! device that has little flash, and bury what came before it.

use std::time::Duration;

use super::error::AgentError;

/// A failure that stays is said again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// The failure of a thing that is tried again and again.
#[derive(Debug, Default)]
pub struct Complaint {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    what: String,
    /// When it was said, in time since boot.
    said: Duration,
    repeated: bool,
}

impl Complaint {
    /// Logs `e`, seen at `now` in time since boot: in full where it is news, else for who looks closely. Returns whether it was news.
    pub fn failed(&mut self, e: &AgentError, now: Duration) -> bool {
        let what = e.to_string();
        if let Some(last) = self.last.as_mut().filter(|last| last.what == what && now < last.said + AGAIN_AFTER) {
            if !last.repeated {
                log::info!("the same again: from here on it is said once an hour");
                last.repeated = true;
            }
            log::debug!("{what}");
            false
        } else {
            log::error!("{what}\n{}", e.advice());
            let repeated = self.last.take().is_some_and(|last| last.what == what);
            self.last = Some(Last { what, said: now, repeated });
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
        let mut complaint = Complaint::default();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let said = (0..72 * 60).filter(|minute| complaint.failed(&refused, minutes(*minute))).count();
        assert_eq!(said, 72, "three days, and a try a minute");
        let now = minutes(72 * 60);
        assert!(complaint.failed(&silent, now) && complaint.failed(&refused, now), "another one is news");
        assert!(!complaint.failed(&refused, now));
        complaint.succeeded();
        assert!(complaint.failed(&refused, now), "a new outage is news");
    }
}
