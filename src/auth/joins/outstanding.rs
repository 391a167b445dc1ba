//! How long the next certificates of a token may live: the more of its certificates have not ended, the shorter.
//!
//! Each certificate that has not ended may have to stand on the revocation list, which every verifier fetches. So a token has a budget of
//! them. No join is refused for it: a device that joins too often by mistake is to come back in. Instead the lifetimes shrink: a token that
//! goes on at the same pace settles near its budget, with certificates that still outlive its next renewal (docs/decisions/0024).

use std::time::Duration;

use boundkey_join::RecoveryMode;
use boundkey_platform::time::Timestamp;

/// Certificates of one token that have not ended, before the shortest lifetimes are given. A device that renews every 20 minutes with 16
/// outputs of an hour has 51.
const BUDGET: u32 = 1024;
/// In mode `insecure`, where many hosts share a token, its budget is so many times larger.
const SHARED: u32 = 8;
/// So many times its budget of certificates of one token are known at most. The pace of joins keeps a token below it.
const KEPT: u32 = 4;
/// The shortest lifetime that an output is cut to.
const SHORTEST_OUTPUT: Duration = Duration::from_secs(5 * 60);
/// The same of an identity: long enough that a device that cannot reach the server for a while comes back without a recovery.
const SHORTEST_IDENTITY: Duration = Duration::from_secs(3600);
/// Lifetimes double so often between a full budget and a half one: from 5 minutes to 28 days.
const DOUBLINGS: u32 = 13;

/// The certificates of a token that have not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    count: u32,
    budget: u32,
}

impl Outstanding {
    /// Of a token that has `count` of them, and is joined with in `mode`.
    pub(super) fn new(count: u32, mode: RecoveryMode) -> Self {
        let budget = if mode == RecoveryMode::Insecure { BUDGET * SHARED } else { BUDGET };
        Self { count, budget }
    }

    /// The longest lifetime that the next output may have; `None`: as long as roles allow.
    fn longest_output(self) -> Option<Duration> {
        let half = self.budget / 2;
        if self.count < half {
            return None;
        }
        let left = self.budget.saturating_sub(self.count);
        Some(SHORTEST_OUTPUT * 2_u32.pow(left * DOUBLINGS / half))
    }

    /// The same of the next identity certificate.
    fn longest_identity(self) -> Option<Duration> {
        self.longest_output().map(|longest| longest.max(SHORTEST_IDENTITY))
    }

    /// The end of the next output, where roles allow it to hold until `not_after`.
    pub(super) fn output_end(self, now: Timestamp, not_after: Timestamp) -> Timestamp {
        self.longest_output().map_or(not_after, |longest| not_after.min(now.plus(longest)))
    }

    /// The end of the next identity certificate, likewise.
    pub(super) fn identity_end(self, now: Timestamp, not_after: Timestamp) -> Timestamp {
        self.longest_identity().map_or(not_after, |longest| not_after.min(now.plus(longest)))
    }

    /// What a person should know.
    pub(super) fn warning(self) -> Option<String> {
        let longest = humantime::format_duration(self.longest_output()?);
        Some(format!(
            "{} certificates of this token have not ended: outputs are given {longest} at most; join less often, or ask for shorter \
             lifetimes",
            self.count
        ))
    }

    /// How many certificates of the token stay known once `more` are issued, where that takes forgetting some: those that end soonest.
    pub(super) fn keep(self, more: usize) -> Option<u32> {
        let most = self.budget * KEPT;
        (self.count as usize + more > most as usize).then_some(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    /// Joins every `interval` seconds for `days`, each with `outputs` outputs that ask for `ttl` seconds; the most certificates that had
    /// not ended, and the shortest lifetime that an output got.
    fn course(interval: u64, outputs: usize, ttl: u64, days: u64) -> (usize, u64) {
        let (mut ends, mut most, mut shortest) = (Vec::<u64>::new(), 0, u64::MAX);
        for now in (0..days * DAY).step_by(usize::try_from(interval).unwrap()) {
            ends.retain(|end| *end >= now);
            let outstanding = Outstanding::new(u32::try_from(ends.len()).unwrap(), RecoveryMode::Standard);
            let cut = |longest: Option<Duration>| longest.map_or(ttl, |longest| longest.as_secs().min(ttl));
            shortest = shortest.min(cut(outstanding.longest_output()));
            ends.extend(std::iter::repeat_n(now + cut(outstanding.longest_output()), outputs));
            ends.push(now + cut(outstanding.longest_identity()));
            most = most.max(ends.len());
        }
        (most, shortest)
    }

    #[test]
    fn a_device_that_renews_as_configured_never_meets_the_budget() {
        assert_eq!(course(20 * 60, 16, 3600, 3), (51 + 17, 3600), "the defaults, with as many outputs as there may be");
        assert_eq!(course(20 * 60, 4, DAY, 3), (365, DAY), "outputs of a day");
    }

    #[test]
    fn certificates_of_a_device_that_asks_for_more_outlive_its_next_renewal() {
        for (interval, outputs, ttl) in [(20 * 60, 16, 30 * DAY), (60, 16, DAY), (60, 1, 30 * DAY), (300, 8, 30 * DAY)] {
            let (most, shortest) = course(interval, outputs, ttl, 40);
            assert!(most <= BUDGET as usize * 11 / 10, "every {interval} s: {most}");
            assert!(shortest >= 2 * interval, "renewed every {interval} s, cut to {shortest} s");
        }
    }

    #[test]
    fn a_device_at_the_fastest_pace_stays_below_what_is_kept() {
        let (most, shortest) = course(5, 16, 30 * DAY, 3);
        assert!(most < (BUDGET * KEPT) as usize, "{most}");
        assert_eq!(shortest, SHORTEST_OUTPUT.as_secs());
    }

    #[test]
    fn beyond_that_those_that_end_soonest_are_forgotten() {
        assert_eq!(Outstanding::new(4079, RecoveryMode::Standard).keep(17), None);
        assert_eq!(Outstanding::new(4080, RecoveryMode::Standard).keep(17), Some(4096));
        assert_eq!(Outstanding::new(4080, RecoveryMode::Insecure).keep(17), None);
        assert_eq!(Outstanding::new(u32::MAX, RecoveryMode::Relaxed).longest_output(), Some(SHORTEST_OUTPUT));
    }
}
