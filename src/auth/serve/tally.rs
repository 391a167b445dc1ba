//! Things that a flood makes happen a thousand times a second, in one line of the log a minute.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// Counts, and says when to tell.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    untold: u64,
    told_at: Option<Instant>,
}

impl Tally {
    /// Counts one more. `Some` if it is to be told now: how many there were since the last time, this one included.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        // A thread that panicked left a whole count.
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.untold += 1;
        if counted.told_at.is_some_and(|told| now.saturating_duration_since(told) < PAUSE) {
            return None;
        }
        counted.told_at = Some(now);
        Some(std::mem::take(&mut counted.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_once_a_minute() {
        let (tally, start) = (Tally::default(), Instant::now());
        let told: Vec<_> = (0..180).filter_map(|second| tally.count_at(start + Duration::from_secs(second))).collect();
        assert_eq!(told, [1, 60, 60]);
    }
}
