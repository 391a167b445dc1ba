//! Time on a device that may have no battery-backed clock (DESIGN of the project: "No battery-backed clock").
//!
//! Device time is the latest of system clock, last time an authenticated server told, and build time. It judges validity;
//! how long to wait is measured with the clock that goes on while the device sleeps, and is never set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use boundkey_platform::time::{Clock, Timestamp, build_time};

/// Device time.
pub struct DeviceClock {
    system: Arc<dyn Clock>,
    /// What is known for sure to have passed, in milliseconds since 1970.
    floor: AtomicU64,
}

impl DeviceClock {
    /// Device time from the system's clock and the time remembered.
    pub fn new(system: Arc<dyn Clock>, remembered: Timestamp) -> Self {
        Self { system, floor: AtomicU64::new(remembered.max(build_time()).millis()) }
    }

    /// What is known for sure to have passed: build time, or what an authenticated server told.
    pub fn floor(&self) -> Timestamp {
        Timestamp::from_millis(self.floor.load(Ordering::Relaxed))
    }

    /// Takes note of the time that an authenticated server told; never goes back.
    pub fn raise(&self, time: Timestamp) {
        self.floor.fetch_max(time.millis(), Ordering::Relaxed);
    }

    /// Whether the system's clock is plainly wrong: behind what is known to have passed.
    pub fn is_behind(&self) -> bool {
        self.system.now() < self.floor()
    }
}

impl Clock for DeviceClock {
    fn now(&self) -> Timestamp {
        self.system.now().max(self.floor())
    }
}

/// Time since boot, sleep included (`CLOCK_BOOTTIME`, clock_gettime(2)). Never set, never goes back.
pub fn since_boot() -> Duration {
    // The call fails only for a clock that the kernel does not have; this one came with Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
