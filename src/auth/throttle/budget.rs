//! Budgets, of bytes or of tries: token buckets by name, of which a bounded number is remembered.

use std::collections::HashMap;

use boundkey_platform::time::Timestamp;

/// Most budgets remembered. One that is full again is as good as none and makes room.
const MOST: usize = 4096;
const MINUTE_MS: u64 = 60_000;

/// How much may be spent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// So much at once.
    pub(super) burst: u64,
    /// So much a minute after that.
    pub(super) per_minute: u64,
}

/// Budgets of one rate.
#[derive(Debug)]
pub(super) struct Budgets {
    rate: Rate,
    by_name: HashMap<String, Budget>,
    /// Of all names for which there is no room.
    others: Budget,
}

/// What is left of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes left at [`Self::at`].
    left: u64,
    at: Timestamp,
}

impl Budgets {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, by_name: HashMap::new(), others: Budget::full(rate, Timestamp::default()) }
    }

    /// Whether `bytes` are left of the budget of `name`, which are then spent.
    pub(super) fn spend(&mut self, name: &str, bytes: u64, now: Timestamp) -> bool {
        let rate = self.rate;
        if let Some(budget) = self.by_name.get_mut(name) {
            return budget.spend(rate, bytes, now);
        }
        if self.by_name.len() >= MOST {
            self.by_name.retain(|_, budget| !budget.is_full(rate, now));
        }
        if self.by_name.len() >= MOST {
            return self.others.spend(rate, bytes, now);
        }
        self.by_name.entry(name.to_owned()).or_insert(Budget::full(rate, now)).spend(rate, bytes, now)
    }
}

impl Budget {
    pub(super) fn full(rate: Rate, now: Timestamp) -> Self {
        Self { left: rate.burst, at: now }
    }

    fn is_full(&self, rate: Rate, now: Timestamp) -> bool {
        self.left + self.gained(rate, now).1 >= rate.burst
    }

    pub(super) fn spend(&mut self, rate: Rate, bytes: u64, now: Timestamp) -> bool {
        let (at, gained) = self.gained(rate, now);
        *self = Self { left: (self.left + gained).min(rate.burst), at };
        if self.left < bytes {
            return false;
        }
        self.left -= bytes;
        true
    }

    /// Takes back what was spent.
    pub(super) fn give_back(&mut self, rate: Rate, much: u64) {
        self.left = (self.left + much).min(rate.burst);
    }

    /// What has come since [`Self::at`], in whole bytes, and up to when. A clock that was set back brings nothing.
    fn gained(&self, rate: Rate, now: Timestamp) -> (Timestamp, u64) {
        let elapsed = now.millis().saturating_sub(self.at.millis());
        let gained = elapsed.saturating_mul(rate.per_minute) / MINUTE_MS;
        if elapsed == 0 {
            // Also where the clock was set back: what comes is counted from its new time on.
            return (now, 0);
        }
        if gained >= rate.burst {
            return (now, rate.burst);
        }
        (Timestamp::from_millis(self.at.millis() + (gained * MINUTE_MS).div_ceil(rate.per_minute)), gained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 1000, per_minute: 600 };
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn after(ms: u64) -> Timestamp {
        Timestamp::from_millis(NOW.millis() + ms)
    }

    #[test]
    fn a_budget_fills_again_at_its_rate_however_often_it_is_looked_at() {
        for step in [1, 7, 100, 999, 60_000] {
            let mut budgets = Budgets::new(RATE);
            assert!(budgets.spend("a", 1000, NOW) && !budgets.spend("a", 1, NOW));
            let spent: u64 = (1..=600_000 / step).filter(|n| budgets.spend("a", 10, after(n * step))).count() as u64 * 10;
            let most = 600_000 * RATE.per_minute / MINUTE_MS;
            let looks = 600_000 / step * 10;
            assert!(spent <= most && spent + 10 >= most.min(looks), "every {step} ms: {spent}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_brings_nothing_and_stops_nothing() {
        let mut budgets = Budgets::new(RATE);
        assert!(budgets.spend("a", 1000, after(3_600_000)));
        assert!(!budgets.spend("a", 1, NOW));
        assert!(!budgets.spend("a", 700, after(60_000)));
        assert!(budgets.spend("a", 600, after(60_000)), "a minute later by the clock as it goes now");
    }

    #[test]
    fn names_are_remembered_in_bounded_number() {
        let mut budgets = Budgets::new(RATE);
        let admitted = (0..MOST + 500).filter(|n| budgets.spend(&n.to_string(), 1000, NOW)).count();
        assert_eq!(admitted, MOST + 1, "the rest shares one budget");
        assert_eq!(budgets.by_name.len(), MOST);
        assert!(budgets.spend("late", 1000, after(3_600_000)), "those that are full again make room");
        assert_eq!(budgets.by_name.len(), 1);
    }
}
