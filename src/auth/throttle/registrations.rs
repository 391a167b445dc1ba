//! First joins by secret that fail: after a few, the next ones have to wait, so that a secret that can be guessed takes long to guess.
//!
//! ```text
//! of one address, for one token   three at once, then a pause that doubles from 2 to 60 seconds
//! of all addresses, for one token   30 at once, then one in 10 seconds; addresses that failed before apart from those that did not
//! ```
//!
//! Addresses that try without end have no influence on the device at another one, as long as they are fewer than are remembered.
//! A registration that succeeds ends all of it for its token. All is in memory: a server that starts begins anew.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::budget::{Budget, Rate};
use boundkey_platform::time::Timestamp;

/// Tries of one address before it has to pause.
const AT_ONCE: u32 = 3;
/// The longest pause of one address.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// An address that was quiet for so long after its pause begins anew.
const FORGIVEN: Duration = Duration::from_secs(3600);
/// Tries of all addresses.
const ALL: Rate = Rate { burst: 30, per_minute: 6 };
/// Tokens remembered. Only tokens that exist, and wait for their first join by secret, come here.
const MOST_TOKENS: usize = 4096;
/// Addresses remembered of each: some 50 MB with all tokens.
const MOST_SOURCES: usize = 256;

/// Tries by token.
#[derive(Debug, Default)]
pub(super) struct Registrations(HashMap<String, Tries>);

#[derive(Debug)]
struct Tries {
    /// Of addresses whose tries are remembered.
    repeated: Budget,
    /// Of the others: a device that tries for the first time does not wait for those that fail again and again.
    fresh: Budget,
    by_source: HashMap<Source, Pause>,
    last: Timestamp,
}

/// Where tries come from: an IPv4 address, or the network of an IPv6 address (64 bits), of which one host has as many as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(IpAddr);

#[derive(Clone, Copy, Debug)]
struct Pause {
    tries: u32,
    until: Timestamp,
}

impl Registrations {
    /// Counts a try for `token` from `address` at `now`, or says how long it has to wait. It counts before its secret is looked at, so
    /// that tries that come together are counted each.
    pub(super) fn admit(&mut self, token: &str, address: IpAddr, now: Timestamp) -> Result<(), Duration> {
        if !self.0.contains_key(token) {
            self.make_room(now);
        }
        let tries = self.0.entry(token.to_owned()).or_insert_with(|| Tries::new(now));
        tries.last = now;
        tries.admit(Source::of(address), now)
    }

    /// Takes back a try that ended before its secret was looked at, or after it was found right.
    pub(super) fn give_back(&mut self, token: &str, address: IpAddr, now: Timestamp) {
        let Some(tries) = self.0.get_mut(token) else { return };
        let pause = tries.by_source.get_mut(&Source::of(address));
        let left = pause.map_or(0, |pause| {
            *pause = Pause { tries: pause.tries.saturating_sub(1), until: now };
            pause.tries
        });
        let budget = if left == 0 { &mut tries.fresh } else { &mut tries.repeated };
        budget.give_back(ALL, 1);
    }

    /// The device of `token` is registered.
    pub(super) fn succeeded(&mut self, token: &str) {
        self.0.remove(token);
    }

    /// Forgets tokens that nobody tries any more, or else the one that was tried longest ago.
    fn make_room(&mut self, now: Timestamp) {
        if self.0.len() < MOST_TOKENS {
            return;
        }
        self.0.retain(|_, tries| now.since(tries.last) < FORGIVEN);
        if self.0.len() >= MOST_TOKENS {
            let oldest = self.0.iter().min_by_key(|(_, tries)| tries.last).map(|(token, _)| token.clone());
            oldest.and_then(|token| self.0.remove(&token));
        }
    }
}

impl Tries {
    fn new(now: Timestamp) -> Self {
        Self { repeated: Budget::full(ALL, now), fresh: Budget::full(ALL, now), by_source: HashMap::new(), last: now }
    }

    fn admit(&mut self, source: Source, now: Timestamp) -> Result<(), Duration> {
        let known = self.by_source.get(&source).copied().filter(|pause| !pause.is_forgiven(now));
        let wait = known.map_or(Duration::ZERO, |pause| pause.left(now));
        if !wait.is_zero() {
            return Err(wait);
        }
        let budget = if known.is_some() { &mut self.repeated } else { &mut self.fresh };
        if !budget.spend(ALL, 1, now) {
            return Err(Duration::from_secs(60 / ALL.per_minute));
        }
        let tries = known.map_or(0, |pause| pause.tries) + 1;
        let length = match tries.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(beyond) => Duration::from_secs(2_u64.saturating_pow(beyond + 1)).min(LONGEST),
        };
        if known.is_none() && self.by_source.len() >= MOST_SOURCES {
            let quietest = self.by_source.iter().min_by_key(|(_, pause)| pause.until).map(|(source, _)| *source);
            quietest.and_then(|source| self.by_source.remove(&source));
        }
        self.by_source.insert(source, Pause { tries, until: now.plus(length) });
        Ok(())
    }
}

impl Pause {
    /// A pause that ends later than any can is that of a clock that was set back.
    fn left(self, now: Timestamp) -> Duration {
        let left = self.until.since(now);
        if left > LONGEST { Duration::ZERO } else { left }
    }

    fn is_forgiven(self, now: Timestamp) -> bool {
        self.tries == 0 || now.since(self.until) >= FORGIVEN
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn at(second: u64) -> Timestamp {
        Timestamp::from_secs(NOW.secs() + second)
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    #[test]
    fn one_address_tries_once_a_minute_in_the_end() {
        let mut registrations = Registrations::default();
        let waits: Vec<_> = (0..3).map(|_| registrations.admit("t", address(1), NOW)).collect();
        assert_eq!(waits, [Ok(()); 3], "a person who mistypes");
        assert_eq!(registrations.admit("t", address(1), NOW), Err(Duration::from_secs(2)));
        assert_eq!(registrations.admit("u", address(1), NOW), Ok(()), "another token");
        let admitted = (1..=86_400).filter(|second| registrations.admit("t", address(1), at(*second)).is_ok()).count();
        assert!((1440..1450).contains(&admitted), "{admitted} a day");
    }

    #[test]
    fn a_device_elsewhere_does_not_wait_for_who_tries_without_end() {
        let mut registrations = Registrations::default();
        for second in 0..86_400 {
            let tried = registrations.admit("t", address(1), at(second));
            assert!(tried.is_ok() || tried.is_err_and(|wait| wait <= LONGEST));
        }
        assert_eq!(registrations.admit("t", address(2), at(86_400)), Ok(()));
        registrations.succeeded("t");
        assert_eq!(registrations.admit("t", address(1), at(86_400)), Ok(()));
    }

    #[test]
    fn many_addresses_share_one_try_in_ten_seconds() {
        let mut registrations = Registrations::default();
        let mut admitted = 0;
        for second in 0..86_400_u32 {
            for n in 0..4 {
                let tried = registrations.admit("t", address(second * 4 + n), at(second.into()));
                admitted += u32::from(tried.is_ok());
            }
        }
        assert!((8640..=8670 + 30).contains(&admitted), "{admitted} a day");
        assert_eq!(registrations.0["t"].by_source.len(), MOST_SOURCES);
    }

    /// Addresses that try again and again use up what all of them have. The device has what newcomers have.
    #[test]
    fn a_device_elsewhere_does_not_wait_for_many_who_try_again_and_again() {
        let mut registrations = Registrations::default();
        for second in 0..3600 {
            for n in 0..100 {
                let _ = registrations.admit("t", address(n), at(second));
            }
        }
        let repeated = (0..100).filter(|n| registrations.admit("t", address(*n), at(3600)).is_ok()).count();
        assert!(repeated <= 1, "theirs is used up: {repeated}");
        assert_eq!(registrations.admit("t", address(1000), at(3600)), Ok(()));
        // What is taken back goes to the budget that it came from.
        registrations.give_back("t", address(1000), at(3600));
        assert!((0..100).all(|n| registrations.admit("t", address(n), at(3600)).is_err()));
    }

    #[test]
    fn what_is_no_guess_does_not_undo_guesses() {
        let mut registrations = Registrations::default();
        let mut guesses = 0;
        for second in 0..86_400 {
            if registrations.admit("t", address(1), at(second)).is_ok() {
                registrations.give_back("t", address(1), at(second));
                guesses += u32::from(registrations.admit("t", address(1), at(second)).is_ok());
            }
        }
        assert!((1440..1450).contains(&guesses), "{guesses} a day");
    }

    /// A device with the right secret and a name that no role allows is refused, and is not somebody who guesses.
    #[test]
    fn what_is_no_guess_is_given_back() {
        let mut registrations = Registrations::default();
        for _ in 0..1000 {
            assert_eq!(registrations.admit("t", address(1), NOW), Ok(()));
            registrations.give_back("t", address(1), NOW);
        }
        for _ in 0..3 {
            assert_eq!(registrations.admit("t", address(1), NOW), Ok(()));
        }
        assert!(registrations.admit("t", address(1), NOW).is_err());
        registrations.give_back("u", address(1), NOW);
    }

    #[test]
    fn a_quiet_hour_is_forgiven_and_a_clock_that_goes_back_keeps_nobody_out() {
        let mut registrations = Registrations::default();
        for second in 0..600 {
            let _ = registrations.admit("t", address(1), at(second));
        }
        assert!(registrations.admit("t", address(1), at(601)).is_err());
        assert_eq!([1, 2, 3].map(|n| registrations.admit("t", address(1), at(4300 + n))), [Ok(()); 3]);
        for _ in 0..9 {
            let _ = registrations.admit("t", address(1), at(9000));
        }
        assert_eq!(registrations.admit("t", address(1), at(100)), Ok(()), "two hours earlier");
    }

    #[test]
    fn addresses_of_one_host_are_one_and_memory_is_bounded() {
        let mut registrations = Registrations::default();
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        for n in 0..MOST_TOKENS + 10 {
            let now = Timestamp::from_millis(NOW.millis() + n as u64);
            assert_eq!(registrations.admit(&n.to_string(), address(1), now), Ok(()));
        }
        assert_eq!(registrations.0.len(), MOST_TOKENS);
        assert!(!registrations.0.contains_key("0"), "the one that was tried longest ago makes room");
    }
}
