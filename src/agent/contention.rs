//! Joins that others get in the way of: hosts that share a static key, or a copy of this device, join with the same token at the same
//! time, or the whole fleet does. The server then asks for another challenge, or for patience. Neither is an operator's refusal, nor a failure until it lasts.

use std::time::Duration;

use super::backoff::Backoff;
use super::error::AgentError;
use super::transport::TransportError;
use boundkey_join::{Problem, ProblemType};
use boundkey_platform::time::{NoRandomness, Random};

/// Longest time for which a contention is no failure. A server that lets one token join every 5 seconds has then let in 60 hosts, beside its first burst.
const LONGEST_CONTENTION: Duration = Duration::from_secs(300);
/// Longest pause after the first try. A join takes the server some milliseconds.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause of our own choice.
const CAP: Duration = Duration::from_secs(5);
/// Longest pause that a server can ask for.
const LONGEST_REQUESTED: Duration = Duration::from_secs(60);

/// A join that is tried again since others were quicker.
#[derive(Debug)]
pub struct Contention {
    backoff: Backoff,
    /// When it began, in time since boot.
    began: Option<Duration>,
}

impl Default for Contention {
    fn default() -> Self {
        Self { backoff: Backoff::starting_at(FIRST), began: None }
    }
}

impl Contention {
    /// How long to wait before the next try, where `e`, seen at `now` in time since boot, means that others were quicker. `None` where it
    /// means anything else, or where this has gone on for so long that it is a failure.
    pub fn pause(&mut self, e: &AgentError, now: Duration, random: &dyn Random) -> Result<Option<Duration>, NoRandomness> {
        let Some(requested) = requested_wait(e) else {
            self.end();
            return Ok(None);
        };
        if self.began.is_none() {
            log::info!("{e}; waiting for a turn");
        }
        if now.saturating_sub(*self.began.get_or_insert(now)) >= LONGEST_CONTENTION {
            self.end();
            return Ok(None);
        }
        // The server asks every waiting device for the same pause; the random part sets them apart.
        let pause = requested + self.backoff.next(CAP, random)?;
        log::debug!("{e}; trying again in {} ms", pause.as_millis());
        Ok(Some(pause))
    }

    /// A join, or another failure: the next contention is a new one.
    pub fn end(&mut self) {
        *self = Self::default();
    }
}

/// The least pause that the server asks for, where others were quicker.
pub fn requested_wait(e: &AgentError) -> Option<Duration> {
    let AgentError::Transport(TransportError::Refused(Problem { kind, retry_after, .. })) = e else { return None };
    // A challenge expires when the server starts anew between it and the join, for that is another epoch.
    let passes = matches!(
        kind,
        ProblemType::Busy
            | ProblemType::ChallengeExpired
            | ProblemType::ChallengeStale
            | ProblemType::PaceExceeded
            | ProblemType::RegistrationPaused
    );
    passes.then(|| Duration::from_secs(retry_after.unwrap_or(0)).min(LONGEST_REQUESTED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_platform::time::System;

    fn refused(kind: ProblemType, retry_after: Option<u64>) -> AgentError {
        TransportError::Refused(Problem { retry_after, ..Problem::from(kind) }).into()
    }

    /// Tries again until it is a failure; returns the pauses.
    fn pauses(e: &AgentError) -> Vec<Duration> {
        let (mut contention, mut now) = (Contention::default(), Duration::from_secs(7));
        let next = || {
            let pause = contention.pause(e, now, &System).unwrap()?;
            now += pause;
            Some(pause)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_stale_challenge_is_tried_again_with_growing_pauses_for_a_bounded_time() {
        let stale = pauses(&refused(ProblemType::ChallengeStale, None));
        assert!(!pauses(&refused(ProblemType::ChallengeExpired, None)).is_empty());
        assert!(stale[0] <= FIRST && stale.iter().all(|pause| *pause <= CAP), "{stale:?}");
        let total: Duration = stale.iter().sum();
        assert!(total >= LONGEST_CONTENTION && total <= LONGEST_CONTENTION + CAP, "{total:?}");
        assert!((80..200).contains(&stale.len()), "{} tries", stale.len());
    }

    #[test]
    fn the_pause_that_a_server_asks_for_is_kept_and_bounded() {
        let paced = pauses(&refused(ProblemType::PaceExceeded, Some(5)));
        assert!(paced.iter().all(|pause| *pause > Duration::from_secs(5) && *pause <= Duration::from_secs(5) + CAP), "{paced:?}");
        assert!(pauses(&refused(ProblemType::Busy, Some(5))).len() > 20);
        let paced = pauses(&refused(ProblemType::PaceExceeded, Some(u64::MAX)));
        assert!(paced.iter().all(|pause| *pause >= LONGEST_REQUESTED && *pause <= LONGEST_REQUESTED + CAP), "{paced:?}");
        assert!(paced.len() <= 5);
    }

    #[test]
    fn other_refusals_are_none_of_it() {
        for kind in [ProblemType::Locked, ProblemType::ServerError, ProblemType::JoinStateMismatch] {
            assert!(pauses(&refused(kind, Some(5))).is_empty());
        }
    }
}
