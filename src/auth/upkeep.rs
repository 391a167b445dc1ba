//! What the server does for itself while it runs: renews its certificate, ends exemptions, tells of tokens that were named and do not
//! exist, forgets what has ended.
//!
//! What is forgotten is gone, so it takes more than a clock that says so: one that is years ahead for a minute must not cost the audit
//! log, nor the list of certificates that a lock takes away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::joins::Joins;
use super::operator::Operator;
use super::rotation::{Rotation, RotationError};
use super::store::{Commit, StoreError};
use boundkey_platform::time::Timestamp;

/// How often.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// How long audit events are kept.
const KEEP_EVENTS: Duration = Duration::from_secs(400 * 86_400);
/// How far the clock may be from where it should be by the one that nobody sets.
const STEP: Duration = Duration::from_secs(3600);
/// How long a clock has to go steadily before it is relied on.
const PROBATION: Duration = Duration::from_secs(86_400);
/// As the server starts, its clock is relied on at once if it is no further than that from the last event. Events of the last
/// [`PROBATION`] do not count: they may be of the same wrong clock, before a restart.
const PAUSE: Duration = Duration::from_secs(30 * 86_400);

/// Looks after a running server.
#[derive(Clone)]
pub struct Upkeep {
    /// The server's core.
    pub joins: Arc<Joins>,
    /// Its certificate, and its CAs.
    pub rotation: Arc<Rotation>,
    /// The operators' side.
    pub operator: Arc<Operator>,
    clock_stability: Arc<Mutex<ClockStability>>,
    started: Instant,
}

/// Why upkeep was not done.
#[derive(Debug)]
pub enum UpkeepError {
    /// The database.
    Store(StoreError),
    /// The TLS server's certificate, or what follows from a step of the CAs.
    Rotation(RotationError),
    /// The thread that did it has died.
    Died(tokio::task::JoinError),
}

impl std::fmt::Display for UpkeepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(e) => e.fmt(f),
            Self::Rotation(e) => e.fmt(f),
            Self::Died(e) => e.fmt(f),
        }
    }
}

impl From<StoreError> for UpkeepError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Upkeep {
    /// Upkeep of a server that starts now.
    pub fn new(joins: Arc<Joins>, rotation: Arc<Rotation>, operator: Arc<Operator>) -> Self {
        Self { joins, rotation, operator, clock_stability: Arc::default(), started: Instant::now() }
    }

    /// Does it once, on a thread that may block: a TPM can take its time.
    pub async fn run(&self) -> Result<(), UpkeepError> {
        let upkeep = self.clone();
        tokio::task::spawn_blocking(move || upkeep.work()).await.unwrap_or_else(|e| Err(UpkeepError::Died(e)))
    }

    fn work(&self) -> Result<(), UpkeepError> {
        let now = self.joins.clock.now();
        // A certificate that cannot be had is no reason to keep exemptions open.
        let renewed = self.rotation.complete(now).map_err(UpkeepError::Rotation);
        let swept = self.sweep(now);
        renewed.and(swept)
    }

    /// What a server that ends would forget.
    pub async fn finish(&self) -> Result<(), UpkeepError> {
        let upkeep = self.clone();
        let work = move || upkeep.tell_of_unknown_tokens(upkeep.joins.clock.now());
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(UpkeepError::Died(e)))
    }

    fn tell_of_unknown_tokens(&self, now: Timestamp) -> Result<(), UpkeepError> {
        if let Some(event) = self.joins.throttle.unknown_tokens(now) {
            self.joins.store.commit(Commit { events: vec![event], ..Commit::default() })?;
        }
        Ok(())
    }

    fn sweep(&self, now: Timestamp) -> Result<(), UpkeepError> {
        self.operator.end_exemptions(now)?;
        self.tell_of_unknown_tokens(now)?;
        let last_event = self.joins.store.last_event_until(now.minus(PROBATION))?;
        let mut clock_stability = self.clock_stability.lock().unwrap_or_else(PoisonError::into_inner);
        if clock_stability.observe(self.started.elapsed(), now, last_event) {
            self.joins.store.sweep(now, KEEP_EVENTS)?;
        }
        Ok(())
    }
}

/// Whether the clock can be relied on to delete by.
#[derive(Debug, Default)]
struct ClockStability {
    /// What the clock showed, by time since the start.
    last: Option<(Duration, Timestamp)>,
    /// Since when the clock goes steadily; `None` once it is relied on.
    probation: Option<Duration>,
}

impl ClockStability {
    /// Takes note of the clock, which shows `now` when the program has run for `uptime`; returns true if it can be relied on. `last_event` is the last one that is [`PROBATION`] old by it.
    fn observe(&mut self, uptime: Duration, now: Timestamp, last_event: Option<Timestamp>) -> bool {
        let expected = self.last.map(|(then, shown)| shown.plus(uptime.saturating_sub(then)));
        self.last = Some((uptime, now));
        let far_from = |time: Timestamp| time.since(now).max(now.since(time));
        match expected {
            None if last_event.is_none_or(|event| far_from(event) > PAUSE) => self.probation = Some(uptime),
            Some(expected) if far_from(expected) > STEP => {
                log::error!(
                    "the system clock went from {expected} to {now} at once: nothing is forgotten before it has gone steadily for a day"
                );
                self.probation = Some(uptime);
            }
            _ => {}
        }
        if self.probation.is_some_and(|since| uptime.saturating_sub(since) >= PROBATION) {
            self.probation = None;
        }
        self.probation.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn a_clock_that_goes_on_is_relied_on_at_once() {
        let mut clock_stability = ClockStability::default();
        for hours in 0..48 {
            // What NTP corrects is no jump.
            let shown = NOW.plus(HOUR * hours).plus(Duration::from_secs(u64::from(hours % 2) * 1800));
            assert!(clock_stability.observe(HOUR * hours, shown, Some(NOW.minus(HOUR * 700))));
        }
    }

    #[test]
    fn a_clock_that_starts_far_from_the_log_has_to_prove_itself_for_a_day() {
        for log in [None, Some(NOW.minus(YEAR)), Some(NOW.plus(YEAR))] {
            let mut clock_stability = ClockStability::default();
            for hours in 0..30 {
                assert_eq!(clock_stability.observe(HOUR * hours, NOW.plus(HOUR * hours), log), hours >= 24, "{hours} {log:?}");
            }
        }
    }

    #[test]
    fn a_jump_either_way_begins_another_day() {
        let mut clock_stability = ClockStability::default();
        let shown = |hours: u32| if (10..12).contains(&hours) { NOW.plus(YEAR * 5) } else { NOW }.plus(HOUR * hours);
        for hours in 0..40 {
            assert_eq!(clock_stability.observe(HOUR * hours, shown(hours), Some(NOW)), !(10..36).contains(&hours), "{hours}");
        }
    }
}
