//! What strangers, and holders of one key, can make the server keep: budgets of bytes, in memory that is bounded as well.

mod budget;
mod registrations;
mod unknown;

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use boundkey_api::event::Event;
use boundkey_platform::time::Timestamp;
use budget::{Budgets, Rate};
use registrations::Registrations;
use unknown::UnknownTokens;

/// What all strangers together may add to the audit log, in bytes: some 60 refusals at once, then four a minute. In 400 days that is 1.2 GB.
const STRANGERS: Rate = Rate { burst: 32 * 1024, per_minute: 2 * 1024 };
/// What refusals of one token may add whose key was proven: its holder may be a thief.
const TOKEN: Rate = Rate { burst: 32 * 1024, per_minute: 1024 };
/// What a row of an event takes in the database beside its document: number, time, token, and its places in two indexes.
const ROW: u64 = 200;

/// Bounds what is written of refusals, and how often a registration secret can be tried.
#[derive(Debug, Default)]
pub struct Throttle {
    refusals: Mutex<Refusals>,
    registrations: Mutex<Registrations>,
}

#[derive(Debug)]
struct Refusals {
    strangers: Budgets,
    tokens: Budgets,
    unwritten: u64,
    unknown: UnknownTokens,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { strangers: Budgets::new(STRANGERS), tokens: Budgets::new(TOKEN), unwritten: 0, unknown: UnknownTokens::default() }
    }
}

impl Throttle {
    /// Whether the refusal `event` may be written at `now`, and how many were not since the last that was. `proven`: the token whose key
    /// was proven.
    pub fn admit(&self, proven: Option<&str>, event: &Event, now: Timestamp) -> Option<u64> {
        let bytes = size(event);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_within = match proven {
            Some(token) => refusals.tokens.spend(token, bytes, now),
            None => refusals.strangers.spend("", bytes, now),
        };
        if !is_within {
            refusals.unwritten += 1;
            return None;
        }
        Some(std::mem::take(&mut refusals.unwritten))
    }

    /// Counts a first join of `token` by secret from `address`, or says how long it has to wait for those that failed.
    pub fn admit_registration(&self, token: &str, address: IpAddr, now: Timestamp) -> Result<(), Duration> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner).admit(token, address, now)
    }

    /// Takes back a first join of `token` by secret from `address` that was no guess.
    pub fn give_back_registration(&self, token: &str, address: IpAddr, now: Timestamp) {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner).give_back(token, address, now);
    }

    /// Notes that a first join of `token` by secret succeeded.
    pub fn registered(&self, token: &str) {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner).succeeded(token);
    }

    /// Notes that somebody at `address` named `token`, of which there is none.
    pub fn note_unknown(&self, token: &str, address: &str) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).unknown.note(token, address);
    }

    /// The event that tells of the tokens that were named since the last one and do not exist, to be asked for once a minute. `None` where
    /// there were none, or the budget of strangers is used up: then the next event counts them too.
    pub fn unknown_tokens(&self, now: Timestamp) -> Option<Event> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let event = refusals.unknown.event(now)?;
        if !refusals.strangers.spend("", size(&event), now) {
            return None;
        }
        refusals.unknown = UnknownTokens::default();
        Some(event)
    }
}

/// What an event takes in the database, roughly. One that cannot be written costs nothing: the store says why.
fn size(event: &Event) -> u64 {
    event.document().map_or(0, |document| document.len() as u64 + ROW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_api::event::EventKind;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn refusal(reason: usize) -> Event {
        Event { reason: Some("\u{1}".repeat(reason)), ..Event::new(NOW, EventKind::JoinRefused) }
    }

    /// Bytes that are written of refusals, one a second for `minutes`.
    fn written(throttle: &Throttle, proven: Option<&str>, event: &Event, minutes: u64) -> u64 {
        let admitted = |second| throttle.admit(proven, event, Timestamp::from_secs(NOW.secs() + second)).is_some();
        (0..minutes * 60).filter(|second| admitted(*second)).count() as u64 * size(event)
    }

    /// 60 requests with a URL of 34,000 control characters added 14.3 MB.
    #[test]
    fn strangers_have_a_budget_of_bytes_whatever_they_send() {
        for reason in [0, 100, 34_000] {
            let event = refusal(reason);
            let bytes = written(&Throttle::default(), None, &event, 1440);
            let allowed = STRANGERS.burst + 1440 * STRANGERS.per_minute;
            assert!(bytes <= allowed && bytes > allowed / 100 * 99, "{bytes} of {allowed}");
        }
    }

    #[test]
    fn what_is_left_out_is_counted_and_nobody_silences_another() {
        let throttle = Throttle::default();
        let event = refusal(0);
        let admitted = |who: Option<&str>| (0..1000).filter(|_| throttle.admit(who, &event, NOW).is_some()).count() as u64;
        let fits = STRANGERS.burst / size(&event);
        assert_eq!(admitted(None), fits);
        assert_eq!(throttle.admit(Some("a"), &event, NOW), Some(1000 - fits));
        assert_eq!(admitted(Some("a")), fits - 1);
        assert_eq!(throttle.admit(Some("b"), &event, NOW), Some(1001 - fits));
    }

    #[test]
    fn names_of_no_token_are_told_once_within_the_budget() {
        let throttle = Throttle::default();
        assert_eq!(throttle.unknown_tokens(NOW), None);
        for number in 0..100_000 {
            throttle.note_unknown(&format!("guess-{number}"), "192.0.2.1:4711");
        }
        let event = throttle.unknown_tokens(NOW).unwrap();
        assert_eq!((event.more["count"].as_u64(), event.success), (Some(100_000), false));
        assert_eq!(throttle.unknown_tokens(NOW), None);
        written(&throttle, None, &refusal(0), 5);
        throttle.note_unknown("late", "192.0.2.1:4711");
        let last = Timestamp::from_secs(NOW.secs() + 299);
        assert_eq!(throttle.unknown_tokens(last), None, "the budget is used up");
        let later = throttle.unknown_tokens(Timestamp::from_secs(NOW.secs() + 3600)).unwrap();
        assert_eq!(later.more["count"], 1, "and counted later");
    }
}
