//! Bounds how fast refusals fill the audit log: strangers are many, and the disk is not theirs.

use std::sync::Mutex;

use crate::time::Timestamp;

/// Refusals of strangers written per minute; what a proven device is refused is written always.
const PER_MINUTE: u32 = 60;

/// Counts refusals by the minute.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    minute: u64,
    written: u32,
    unwritten: u64,
}

impl Throttle {
    /// Whether a refusal may be written now, and how many were not since the last that was.
    pub fn admit(&self, proven: bool, now: Timestamp) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let minute = now.secs() / 60;
        if window.minute != minute {
            (window.minute, window.written) = (minute, 0);
        }
        if !proven {
            if window.written >= PER_MINUTE {
                window.unwritten += 1;
                return None;
            }
            window.written += 1;
        }
        Some(std::mem::take(&mut window.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_leaves_out_and_never_silences_a_proven_device() {
        let throttle = Throttle::default();
        let minute = Timestamp::from_secs(600);
        let admitted = (0..100).filter(|_| throttle.admit(false, minute).is_some()).count();
        assert_eq!(admitted, PER_MINUTE as usize);
        assert_eq!(throttle.admit(true, minute), Some(100 - u64::from(PER_MINUTE)));
        assert_eq!(throttle.admit(false, Timestamp::from_secs(660)), Some(0));
    }
}
