//! Bounds how fast refusals fill the audit log: strangers are many, a proven device may be in a thief's hands, and the disk is not theirs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::time::Timestamp;

/// Refusals written per minute: of all strangers together, and of each token whose key was proven.
const PER_MINUTE: u32 = 60;

/// Counts refusals by the minute.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    minute: u64,
    of_strangers: u32,
    /// By token. There are no more than tokens whose keys are at work.
    proven: HashMap<String, u32>,
    unwritten: u64,
}

impl Throttle {
    /// Whether a refusal may be written now, and how many were not since the last that was. `proven`: the token whose key was proven.
    pub fn admit(&self, proven: Option<&str>, now: Timestamp) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = &mut *window;
        let minute = now.secs() / 60;
        if window.minute != minute {
            *window = Window { minute, unwritten: window.unwritten, ..Window::default() };
        }
        let written = match proven {
            Some(token) => window.proven.entry(token.to_owned()).or_default(),
            None => &mut window.of_strangers,
        };
        if *written >= PER_MINUTE {
            window.unwritten += 1;
            return None;
        }
        *written += 1;
        Some(std::mem::take(&mut window.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_leaves_out_and_nobody_silences_another() {
        let (throttle, minute) = (Throttle::default(), Timestamp::from_secs(600));
        let admitted = |who, time| (0..100).filter(|_| throttle.admit(who, time).is_some()).count();
        assert_eq!(admitted(None, minute), PER_MINUTE as usize);
        assert_eq!(throttle.admit(Some("a"), minute), Some(100 - u64::from(PER_MINUTE)));
        assert_eq!(admitted(Some("a"), minute), PER_MINUTE as usize - 1);
        assert_eq!(throttle.admit(Some("b"), minute), Some(101 - u64::from(PER_MINUTE)));
        assert_eq!(throttle.admit(Some("a"), Timestamp::from_secs(660)), Some(0));
    }
}
