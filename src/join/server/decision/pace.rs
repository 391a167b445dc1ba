//! The pace of a token: a burst of steps, then one in a while.
//!
//! The pace is looked at after the join state, so that it hides no copy, and it is wide enough for every device alone. The generic
//! cell rate algorithm (ITU-T I.371, annex A) keeps it in one number: the time until when the steps made so far use it up.

use std::time::Duration;

use super::Proven;
use super::transition::Transition;
use crate::server::challenge::LEEWAY;
use crate::{Problem, ProblemType, RecoveryMode};
use boundkey_platform::time::Timestamp;

/// Steps of a token that may come at once.
pub const BURST: u64 = 10;
/// Time after which one more may come, in milliseconds.
pub const INTERVAL_MS: u64 = 5000;

/// Spends one of `burst` at `now`, where those so far use up the pace until `spent_until_ms`. Returns until when they do then, or how
/// long to wait in milliseconds: at most [`LEEWAY`] and one interval.
///
/// A time that no server of the cluster can have written is of a clock that has been set back since, and counts for nothing: a device
/// must not wait until the clock is there again.
pub fn spend(burst: u64, spent_until_ms: Option<u64>, now: Timestamp) -> Result<u64, u64> {
    let latest = now.plus(Duration::from_millis((burst - 1) * INTERVAL_MS)).millis();
    let written_by_any = now.plus(Duration::from_millis(burst * INTERVAL_MS)).plus(LEEWAY).millis();
    let spent_until = spent_until_ms.filter(|until| *until <= written_by_any).unwrap_or(0).max(now.millis());
    if spent_until > latest { Err(spent_until - latest) } else { Ok(spent_until.saturating_add(INTERVAL_MS)) }
}

/// The refusal of a join that has to wait.
pub fn exceeded(wait_ms: u64) -> Problem {
    let seconds = wait_ms.div_ceil(1000);
    let why = format!("the token is joined with too often: the next step may come in {seconds} s");
    Problem { retry_after: Some(seconds), ..Problem::new(ProblemType::PaceExceeded, why) }
}

/// The pace of the token after this join. A replay is no step. In mode `insecure` hosts share the token, and each has a pace of its own,
/// which the caller keeps.
pub(super) fn of_token(proven: &Proven<'_>, transition: &Transition) -> Result<Option<u64>, Problem> {
    let Proven { token, fresh, .. } = *proven;
    let spent = token.status.pace_ms;
    let is_replay = matches!(transition, Transition::Replay { .. });
    let is_insecure = token.spec.recovery.mode == RecoveryMode::Insecure;
    if is_replay || is_insecure {
        return Ok(spent);
    }
    spend(BURST, spent, fresh.now).map(Some).map_err(exceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_in_five_seconds() {
        let mut now = Timestamp::from_secs(1_800_000_000);
        let mut spent = None;
        for _ in 0..BURST {
            spent = Some(spend(BURST, spent, now).unwrap());
        }
        assert_eq!(spend(BURST, spent, now), Err(INTERVAL_MS));
        now = Timestamp::from_millis(now.millis() + INTERVAL_MS - 1);
        assert_eq!(spend(BURST, spent, now), Err(1));
        now = Timestamp::from_millis(now.millis() + 1);
        spent = Some(spend(BURST, spent, now).unwrap());
        assert_eq!(spend(BURST, spent, now), Err(INTERVAL_MS));
        // Another server's clock is behind by less than the leeway: its device waits no longer than that.
        let behind = now.minus(LEEWAY);
        assert_eq!(spend(BURST, spent, behind), Err(60_000 + INTERVAL_MS));
        // A clock set back by a day.
        let before = Timestamp::from_secs(1_799_913_600);
        assert_eq!(spend(BURST, spent, before), Ok(before.millis() + INTERVAL_MS));
    }
}
