//! Waiting: for a moment on the clock that goes on during sleep (timerfd_create(2), `CLOCK_BOOTTIME`), or for a signal
//! (signalfd(2)). Both are file descriptors, so that no signal is lost between looking and waiting.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// SIGUSR1 or SIGHUP: renew at once.
    Renew,
    /// SIGTERM or SIGINT: end.
    Stop,
    /// The moment came.
    Time,
}

/// Waits for moments and signals.
pub struct Waiter {
    signals: SignalFd,
    timer: TimerFd,
}

impl Waiter {
    /// Takes the signals over. Call before any thread is started: threads inherit that they are left alone.
    pub fn new() -> Result<Self, Errno> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        Ok(Self { signals, timer })
    }

    /// Waits until `since_boot`, or for a signal. Several signals of one kind are one.
    pub fn until(&mut self, since_boot: Duration) -> Result<Wake, Errno> {
        // A timer set to zero is off; any moment that has passed fires at once.
        let at = TimeSpec::from_duration(since_boot.max(Duration::from_nanos(1)));
        self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        loop {
            if let Some(wake) = self.pending_signal()? {
                return Ok(wake);
            }
            let mut fds =
                [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.timer.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            if fds[1].any() == Some(true) && fds[0].any() != Some(true) {
                return Ok(Wake::Time);
            }
        }
    }

    /// The most pressing of the signals that have come: to stop goes before to renew.
    fn pending_signal(&mut self) -> Result<Option<Wake>, Errno> {
        let mut wake = None;
        while let Some(info) = self.signals.read_signal()? {
            let is = |signal: Signal| i32::try_from(info.ssi_signo) == Ok(signal as i32);
            if is(Signal::SIGTERM) || is(Signal::SIGINT) {
                wake = Some(Wake::Stop);
            } else {
                wake = wake.or(Some(Wake::Renew));
            }
        }
        Ok(wake)
    }
}
