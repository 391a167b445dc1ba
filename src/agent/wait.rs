//! Waiting: for a moment on the clock that goes on during sleep (timerfd_create(2), `CLOCK_BOOTTIME`), or for a signal
//! (signalfd(2)). Both are file descriptors, so that no signal is lost between looking and waiting.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Enough for a thread that writes two lines.
const STACK: usize = 128 * 1024;

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

/// Lets one thread alone report that the daemon stops: the daemon itself, or the thread that ends it after its grace period.
#[derive(Clone)]
pub struct ShutdownGuard {
    /// Reports to log and service manager.
    on_stop: fn(),
    /// Whether that was done.
    stopped: Arc<Mutex<bool>>,
}

impl ShutdownGuard {
    /// Reports that the daemon stops by itself. Does not return if the grace period has ended: the process exits then.
    pub fn finish(&self) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        (self.on_stop)();
        *stopped = true;
    }

    fn exit_now(&self) -> ! {
        // The lock is held until the process exits, so `finish` cannot report a second time.
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*stopped {
            log::warn!("ended in the middle of a try; the next start goes on from there");
            (self.on_stop)();
        }
        std::process::exit(0)
    }
}

/// Ends this process `grace` after SIGTERM or SIGINT, if it has not ended by itself by then: a request, a name server, a key store or
/// a reload may hang for longer than anyone waits. A power cut at any instant does no harm, so neither does this.
///
/// Call after [`Waiter::new`], which keeps the signals from ending the process at once.
pub fn exit_after(grace: Duration, on_stop: fn()) -> io::Result<ShutdownGuard> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    // Only looked at: the signal itself is left to `until`.
    let stop = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    let guard = ShutdownGuard { on_stop, stopped: Arc::default() };
    let watched = guard.clone();
    let watch = move || {
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(e) => return log::warn!("told to end, the daemon may be slow to do so: {e}"),
                Ok(_) => break,
            }
        }
        std::thread::sleep(grace);
        watched.exit_now();
    };
    std::thread::Builder::new().name("stop".into()).stack_size(STACK).spawn(watch)?;
    Ok(guard)
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
