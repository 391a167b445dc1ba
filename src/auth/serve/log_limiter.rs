//! Things that a flood makes happen a thousand times a second, in one line of the log a minute.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// Counts occurrences, and says when to log how many there were.
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl LogLimiter {
    /// Counts one more. `Some` if a line is to be logged now: how many there were since the last line, this one included.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        // A thread that panicked left a whole count.
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.unlogged += 1;
        if counted.logged_at.is_some_and(|logged| now.saturating_duration_since(logged) < PAUSE) {
            return None;
        }
        counted.logged_at = Some(now);
        Some(std::mem::take(&mut counted.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_once_a_minute() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        let logged: Vec<_> = (0..180).filter_map(|second| limiter.count_at(start + Duration::from_secs(second))).collect();
        assert_eq!(logged, [1, 60, 60]);
    }
}
