//! Points in time, and the providers of time and randomness: the one file that asks the system what time it is.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::SecureRandom as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Shown and read as RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// When this program was built: no right clock is behind it.
pub fn build_time() -> Timestamp {
    Timestamp::from_secs(env!("BOUNDKEY_BUILD_EPOCH").parse().unwrap_or(0))
}

/// The last moment that RFC 3339 can write.
const MAX_MILLIS: u64 = 253_402_300_799_999;

impl Timestamp {
    /// A point in time from milliseconds since 1970; later than year 9999 is year 9999.
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > MAX_MILLIS { MAX_MILLIS } else { millis })
    }

    /// A point in time from seconds since 1970.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970.
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// Later by `by`.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(millis(by)))
    }

    /// Earlier by `by`, at the earliest 1970.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The same point in the standard library's form.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        // Before 1970 is a clock that was never set: 1970 says that as well.
        Self::from_millis(time.duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.to_system();
        if self.0.is_multiple_of(1000) {
            humantime::format_rfc3339_seconds(time).fmt(f)
        } else {
            humantime::format_rfc3339_millis(time).fmt(f)
        }
    }
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = rfc3339(text).map(Self);
        time.ok_or_else(|| format!("{text:?} is not a time in RFC 3339 form and UTC, such as 2026-01-31T12:00:00Z"))
    }
}

/// Milliseconds since 1970 of a time in the form of RFC 3339, section 5.6, in UTC and not before 1970. A leap second is the second before it.
///
/// Not by humantime, which on 32-bit targets reads nothing after January 2038.
fn rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00"))?;
    let (date, time) = text.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-', 4)?, numbers(time, ':', 2)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_real = (1..=12).contains(&month) && (1..=days_of_month).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if year < 1970 || !is_real || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let millis = fraction.bytes().chain([b'0'; 3]).take(3).fold(0, |millis, digit| millis * 10 + u64::from(digit - b'0'));
    // Years and months from March on, so that a leap day is the last day of its year; day 719,468 of those is 1970-01-01.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second.min(59)) * 1000 + millis)
}

/// Three numbers, the first of so many digits, the others of two.
fn numbers(text: &str, between: char, first: usize) -> Option<[u64; 3]> {
    let mut parts = text.split(between);
    let mut number = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        part.parse().ok()
    };
    let numbers = [number(first)?, number(2)?, number(2)?];
    parts.next().is_none().then_some(numbers)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self::from_millis)
        }
    }
}

/// Tells what time it is. Programs hand in [`System`]; tests and simulations their own.
pub trait Clock: Send + Sync {
    /// Wall-clock time as this machine has it; may be wrong, and may jump.
    fn now(&self) -> Timestamp;
}

/// Gives randomness fit for keys. Programs hand in [`System`].
pub trait Random: Send + Sync {
    /// Fills `bytes`, or says that the system gave none.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The system's source of randomness failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRandomness;

impl fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system gave no randomness")
    }
}

impl std::error::Error for NoRandomness {}

/// The operating system's clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    #[allow(clippy::disallowed_methods, reason = "the one place")]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

impl Random for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        ring::rand::SystemRandom::new().fill(bytes).map_err(|_| NoRandomness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_is_written() {
        const DAY: u64 = 24 * 3600 * 1000;
        // A whole cycle of the calendar, at a time of day that moves on; where 31 bits of seconds end; the last moment there is.
        let days = (0..400 * 366).map(|day| day * (DAY + 1_237));
        for millis in days.chain([0x7fff_ffff * 1000, 0x8000_0000 * 1000, MAX_MILLIS]) {
            let time = Timestamp::from_millis(millis);
            assert_eq!(time.to_string().parse(), Ok(time), "{time}");
        }
    }

    #[test]
    fn forms_of_a_time() {
        let read = |text: &str| text.parse::<Timestamp>().ok().map(Timestamp::millis);
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("2038-01-19T03:14:08+00:00"), Some(0x8000_0000 * 1000));
        assert_eq!(read("2000-02-29T00:00:00.1239Z"), Some(951_782_400_123));
        assert_eq!(read("2016-12-31T23:59:60Z"), read("2016-12-31T23:59:59Z"), "a leap second");
        for wrong in [
            "",
            "Z",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00+02:00",
            "2026-01-31 12:00:00Z",
            "2026-1-31T12:00:00Z",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.5.5Z",
            "2026-01-31T12:00:00.-5Z",
            "+026-01-31T12:00:00Z",
            "2026-01-+1T12:00:00Z",
            "\u{664}026-01-31T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-00-31T12:00:00Z",
            "2026-13-31T12:00:00Z",
            "2026-01-00T12:00:00Z",
            "2026-04-31T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "2100-02-29T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:61Z",
            "10000-01-01T00:00:00Z",
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
