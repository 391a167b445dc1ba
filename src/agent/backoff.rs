//! When to try again: capped exponential backoff with full jitter, so that a fleet that lost its server does not come back as one.

use std::time::Duration;

use boundkey_platform::time::{NoRandomness, Random};

/// Counts failures in a row.
#[derive(Debug)]
pub struct Backoff {
    /// Longest wait after the first failure.
    first: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// For a server that cannot be reached, or refuses.
    fn default() -> Self {
        Self::starting_at(Duration::from_secs(1))
    }
}

impl Backoff {
    /// One that waits at most `first` after the first failure.
    pub const fn starting_at(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// A success: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure: anywhere up to 1, 2, 4 ... times the first wait, at most up to `cap`.
    pub fn next(&mut self, cap: Duration, random: &dyn Random) -> Result<Duration, NoRandomness> {
        let bound = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(cap);
        self.failures = (self.failures + 1).min(31);
        // Not sooner than a tenth: full jitter may come out as zero, and a server that refuses is not to be asked at once.
        Ok((bound / 10).max(fraction(random)?.mul(bound)))
    }
}

/// `interval` less up to a tenth.
pub fn jittered(interval: Duration, random: &dyn Random) -> Result<Duration, NoRandomness> {
    Ok(interval.saturating_sub(fraction(random)?.mul(interval / 10)))
}

/// A number in `0..1`, in 2^-16 steps.
struct Fraction(u16);

impl Fraction {
    fn mul(&self, duration: Duration) -> Duration {
        duration / (1 << 16) * u32::from(self.0)
    }
}

fn fraction(random: &dyn Random) -> Result<Fraction, NoRandomness> {
    let mut bytes = [0; 2];
    random.fill(&mut bytes)?;
    Ok(Fraction(u16::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_platform::time::System;

    #[test]
    fn grows_to_its_cap_and_never_beyond() {
        let mut backoff = Backoff::default();
        let cap = Duration::from_secs(60);
        for failure in 0..100_u32 {
            let bound = Duration::from_secs(1 << failure.min(6)).min(cap);
            let wait = backoff.next(cap, &System).unwrap();
            assert!(wait <= bound && wait >= bound / 10, "{wait:?} after {failure}");
        }
        backoff.reset();
        assert!(backoff.next(cap, &System).unwrap() <= Duration::from_secs(1));
    }

    /// Three days offline: so many tries, with a certificate that holds and without one. Full jitter halves the caps on average.
    #[test]
    fn days_without_a_network_are_so_many_tries() {
        const OUTAGE: Duration = Duration::from_secs(3 * 24 * 3600);
        for (cap, expected) in [(60, 8_000..9_200), (300, 1_550..1_900)] {
            let (mut backoff, mut spent, mut tries) = (Backoff::default(), Duration::ZERO, 0);
            while spent < OUTAGE {
                spent += backoff.next(Duration::from_secs(cap), &System).unwrap();
                tries += 1;
            }
            assert!(expected.contains(&tries), "cap {cap} s: {tries} tries");
        }
    }

    #[test]
    fn renewals_spread_over_a_tenth() {
        let interval = Duration::from_secs(1200);
        let all: Vec<_> = (0..200).map(|_| jittered(interval, &System).unwrap()).collect();
        assert!(all.iter().all(|d| *d <= interval && *d >= interval * 9 / 10));
        assert!(all.iter().max().unwrap().saturating_sub(*all.iter().min().unwrap()) > interval / 50);
    }
}
