//! A signal to the process that a PID file names, if the user who wrote the file could have sent it as well.
//!
//! | PID file of | may name |
//! | --- | --- |
//! | root, or the agent's user | any process |
//! | another user | a process that this user may send signals to (kill(2)) |
//! | anyone, with write permission for group or others, or with a second name (hard link) | none |
//!
//! A PID file that was left by an earlier run may name a process that has nothing to do with it. One that was written before the process
//! began is refused, where that is certain: files have the time of the system's clock, processes the time since boot, and the clock may
//! have been set in between. It is certain of a process that began after the agent, while the clock went on without a step.
//!
//! The process is held by a descriptor (pidfd_open(2)) from before it is looked at until the signal is sent, so its number cannot come
//! to be another's in between. Kernels before 5.3 have no such descriptors; there the signal goes to the number.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use boundkey_hal::dir::{self, Exposed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use rustix::io::Errno;
use rustix::process::{Pid as RawPid, PidfdFlags, Signal as RawSignal, pidfd_open, pidfd_send_signal};

use super::reload::ReloadFault;
use crate::clock::since_boot;
use boundkey_platform::time::{Clock as _, System};

/// More than a process id and its line feed.
const MAX_PID_FILE: u64 = 64;
/// Times of files are as coarse as the kernel's timer, those of processes are told in hundredths of a second.
const TOLERANCE: Duration = Duration::from_secs(2);
/// When a process began is told in hundredths of a second, rounded down.
const A_TICK: Duration = Duration::from_millis(10);
/// A step of the clock that is none: rounding, between two readings.
const STEADY: Duration = Duration::from_millis(500);

/// What the system's clock showed at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Since 1970, by the system's clock.
    shown: Duration,
    since_boot: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { shown: Duration::from_millis(System.now().millis()), since_boot: since_boot() }
    }

    /// What the clock showed when the system had run for `since_boot`, if it went on without a step from this moment on to `now`.
    fn shown_at(&self, since_boot: Duration, now: &Self) -> Option<Duration> {
        let went_on = self.shown + now.since_boot.checked_sub(self.since_boot)?;
        let is_steady = went_on.abs_diff(now.shown) < STEADY && since_boot + A_TICK >= self.since_boot;
        (self.shown + since_boot).checked_sub(self.since_boot).filter(|_| is_steady)
    }
}

/// What the kernel tells of a process.
#[derive(Debug)]
struct Process {
    /// Real and saved user id: whose signals it takes, beside root's.
    users: [u32; 2],
    /// When it began, in time since boot.
    began: Duration,
}

/// Sends `signal` to the process that `pid_file` names. `agent_began` is a moment after which steps of the clock are noticed.
pub(super) fn send(pid_file: &Path, signal: Signal, agent_began: &Moment) -> Result<(), ReloadFault> {
    let unreadable = |e| ReloadFault::Unreadable(pid_file.to_path_buf(), e);
    let found = dir::read(pid_file, MAX_PID_FILE).map_err(unreadable)?;
    let metadata = found.file.metadata().map_err(unreadable)?;
    if metadata.nlink() > 1 {
        return Err(unreadable(io::Error::other("it has a second name (hard link), and may be another program's")));
    }
    let exposed = found.exposed(pid_file).map_err(unreadable)?;
    if let Some(writable) = exposed.as_ref().and_then(Exposed::by_mode) {
        return Err(unreadable(writable.into()));
    }
    // Zero, negative numbers and 1 are groups of processes and the init process: kill(2) would hit far more than meant.
    let text = String::from_utf8_lossy(&found.content);
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw);
    let pid = pid.filter(|pid| *pid != Pid::this()).ok_or_else(|| ReloadFault::NoPid(pid_file.to_path_buf()))?;

    let held = Held::new(pid).map_err(|e| ReloadFault::NotSent(pid, e))?;
    let process = match examine(pid) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ReloadFault::NotSent(pid, nix::Error::ESRCH)),
        examined => examined.map_err(|e| ReloadFault::Hidden(pid, e))?,
    };
    if let Some(Exposed { owner, .. }) = exposed.filter(|exposed| !process.users.contains(&exposed.owner)) {
        return Err(ReloadFault::Foreign { pid_file: pid_file.to_path_buf(), owner, pid, user: process.users[0] });
    }
    let written = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let began = agent_began.shown_at(process.began, &Moment::now());
    if began.is_some_and(|began| written + TOLERANCE < began) {
        return Err(ReloadFault::Stale { pid_file: pid_file.to_path_buf(), pid });
    }
    held.send(signal).map_err(|e| ReloadFault::NotSent(pid, e))
}

/// A process that signals can be sent to.
enum Held {
    ByDescriptor(std::os::fd::OwnedFd),
    ByNumber(Pid),
}

impl Held {
    fn new(pid: Pid) -> Result<Self, nix::Error> {
        let raw = RawPid::from_raw(pid.as_raw()).ok_or(nix::Error::ESRCH)?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self::ByDescriptor(descriptor)),
            Err(Errno::NOSYS) => {
                log::debug!("this kernel has no pidfd_open(2): the signal goes to the number of the process");
                Ok(Self::ByNumber(pid))
            }
            Err(e) => Err(nix::Error::from_raw(e.raw_os_error())),
        }
    }

    fn send(&self, signal: Signal) -> Result<(), nix::Error> {
        match self {
            Self::ByDescriptor(descriptor) => {
                let signal = RawSignal::from_named_raw(signal as i32).ok_or(nix::Error::EINVAL)?;
                pidfd_send_signal(descriptor, signal).map_err(|e| nix::Error::from_raw(e.raw_os_error()))
            }
            Self::ByNumber(pid) => kill(*pid, signal),
        }
    }
}

/// Looks at a process (proc_pid_status(5), proc_pid_stat(5)).
fn examine(pid: Pid) -> io::Result<Process> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's word on it is not understood");
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).ok_or_else(malformed)?;
    let users: Vec<u32> = users.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    let [real, _effective, saved, _file_system] = users[..] else { return Err(malformed()) };
    // The name in brackets may hold anything; field 22 is the 20th after it.
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let (ticks, a_second) = ticks.zip(a_second).ok_or_else(malformed)?;
    let began = Duration::from_secs(ticks / a_second)
        + Duration::from_secs(1) * u32::try_from(ticks % a_second).unwrap_or_default()
            / u32::try_from(a_second).unwrap_or(u32::MAX);
    Ok(Process { users: [real, saved], began })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn moment(shown: u64, since_boot: u64) -> Moment {
        Moment { shown: Duration::from_secs(shown), since_boot: Duration::from_secs(since_boot) }
    }

    #[test]
    fn when_a_process_began_is_told_by_a_clock_without_steps_alone() {
        let agent = moment(1_000_000, 100);
        let at = |since_boot, now| agent.shown_at(Duration::from_secs(since_boot), &now).map(|shown| shown.as_secs());
        assert_eq!(at(150, moment(1_000_100, 200)), Some(1_000_050));
        assert_eq!(at(50, moment(1_000_100, 200)), None, "it began before the agent");
        assert_eq!(at(150, moment(2_000_000, 200)), None, "the clock was set");
        assert_eq!(at(150, moment(900_000, 200)), None, "the clock was set back");
    }

    #[test]
    fn this_process_is_as_the_kernel_says() {
        let process = examine(Pid::this()).expect("this process");
        assert_eq!(process.users[0], nix::unistd::getuid().as_raw());
        assert!(process.began > Duration::ZERO && process.began <= since_boot() + TOLERANCE);
    }
}
