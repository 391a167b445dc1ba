//! Telling programs that their files changed: by running a command, or by a signal to the process of a PID file.
//!
//! A reload that fails is reported and tried again with growing pauses, until it succeeds or the files change anew. It never
//! stops renewals. Nothing of it is stored: the agent renews at its start, and that change is told again.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, PipeReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use boundkey_hal::dir::Exposed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::command;
use super::pid_file::{self, Moment};
use crate::config::{Output, Reload};
use crate::error::AgentError;

/// How long a command may take before it is killed.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Pause after the first failure; doubled after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often a command is looked at that closed its output and runs on.
const TURN: Duration = Duration::from_millis(100);
/// Of a command's output, this many last bytes and lines are reported.
const KEPT_BYTES: usize = 2048;
const KEPT_LINES: usize = 5;
/// Of its output, this many pieces of 4 KiB are read before it is looked at again.
const MAX_CHUNKS: usize = 16;
/// Variables that are for the agent alone.
const PRIVATE_VARIABLES: [&str; 9] = [
    "BOUNDKEY_PIN",
    "BOUNDKEY_REGISTRATION_SECRET",
    "BOUNDKEY_SO_PIN",
    "BOUNDKEY_STATIC_KEY",
    "BOUNDKEY_TPM_AUTH",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Reloads that are to be done. Times are since boot, sleep included.
#[derive(Debug)]
pub struct Reloads {
    pending: Vec<Pending>,
    time_limit: Duration,
    /// When this was made, before the programs that it is to tell began or not.
    made: Moment,
    /// The last failure that nobody took yet.
    failure: Option<ReloadError>,
}

#[derive(Debug)]
struct Pending {
    /// Names of the outputs that changed.
    outputs: Vec<String>,
    reload: Reload,
    due: Duration,
    failures: u32,
}

impl Default for Reloads {
    fn default() -> Self {
        Self::with_time_limit(TIME_LIMIT)
    }
}

impl Reloads {
    /// None to do yet; commands may take up to `time_limit`.
    pub fn with_time_limit(time_limit: Duration) -> Self {
        Self { pending: Vec::new(), time_limit, made: Moment::now(), failure: None }
    }

    /// Takes note that the files of `output` changed. Outputs that share a reload share one run of it.
    pub fn add(&mut self, output: &Output, now: Duration) {
        let Some(reload) = &output.reload else { return };
        let known = self.pending.iter().position(|p| p.reload == *reload);
        let mut outputs = known.map_or_else(Vec::new, |at| self.pending.remove(at).outputs);
        if !outputs.contains(&output.name) {
            outputs.push(output.name.clone());
        }
        self.pending.push(Pending { outputs, reload: reload.clone(), due: now, failures: 0 });
    }

    /// Does one reload that is due, and returns when to come back: at that time since boot, or with nothing to do not at all.
    ///
    /// One at a time, so that the loop around it can tend to signals and the watchdog; it takes up to the time limit. A failure is
    /// logged here, and kept for [`Reloads::take_failure`].
    pub fn run_due(&mut self, now: Duration) -> Option<Duration> {
        if let Some(at) = self.pending.iter().position(|p| p.due <= now) {
            let pending = self.pending.remove(at);
            if let Err(e) = self.run(pending, now) {
                log::error!("{e}\n{}", e.advice());
                self.failure = Some(e);
            }
        }
        self.pending.iter().map(|p| p.due).min()
    }

    /// The last failure, once.
    pub fn take_failure(&mut self) -> Option<ReloadError> {
        self.failure.take()
    }

    /// Whether a reload that failed is still to be done.
    pub fn is_failing(&self) -> bool {
        self.pending.iter().any(|pending| pending.failures > 0)
    }

    /// Does all reloads once, due or not, and none again. All are tried; the first error is returned, the others are logged.
    pub fn run_all(&mut self) -> Result<(), AgentError> {
        let mut first = Ok(());
        for pending in std::mem::take(&mut self.pending) {
            match self.run(pending, Duration::ZERO).map_err(|e| ReloadError { again_in: None, ..e }) {
                Ok(()) => {}
                Err(e) if first.is_ok() => first = Err(e.into()),
                Err(e) => log::error!("{e}\n{}", e.advice()),
            }
        }
        self.pending.clear();
        first
    }

    fn run(&mut self, mut pending: Pending, now: Duration) -> Result<(), ReloadError> {
        let outputs = pending.outputs.join(", ");
        let Err(fault) = run(&pending.reload, self.time_limit, &self.made) else {
            log::info!("output {outputs}: reloaded by {}", Shown(&pending.reload));
            return Ok(());
        };
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE.saturating_mul(1 << pending.failures.min(16)));
        let error = ReloadError { outputs, by: Shown(&pending.reload).to_string(), fault, again_in: Some(pause) };
        pending.failures += 1;
        pending.due = now + pause;
        self.pending.push(pending);
        Err(error)
    }
}

/// A reload that failed.
#[derive(Debug)]
pub struct ReloadError {
    /// Names of the outputs whose program was not told.
    pub outputs: String,
    /// What was tried, in words.
    pub by: String,
    /// What went wrong.
    pub fault: ReloadFault,
    /// When it is tried again; `None`: not by this process.
    pub again_in: Option<Duration>,
}

/// What went wrong with a reload.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReloadFault {
    /// The command ended so, and these were its last lines.
    Ended(ExitStatus, String),
    /// Others than root and this process's user may write the program or a directory on the way to it, so it was not run.
    Exposed(Exposed),
    /// The PID file is of a user who could not send a signal to the process that it names.
    Foreign {
        /// The PID file.
        pid_file: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The process that it names.
        pid: Pid,
        /// The user id that this process runs as.
        user: u32,
    },
    /// The kernel does not tell whose the process is.
    Hidden(Pid, io::Error),
    /// The PID file has no process id that one may send signals to.
    NoPid(PathBuf),
    /// The signal was not sent to that process.
    NotSent(Pid, nix::Error),
    /// The command did not start, or could not be watched.
    NotStarted(io::Error),
    /// The PID file is older than the process that it names.
    Stale {
        /// The PID file.
        pid_file: PathBuf,
        /// The process.
        pid: Pid,
    },
    /// The command ran for so long that it was killed, and these were its last lines.
    TimedOut(Duration, String),
    /// The PID file cannot be read.
    Unreadable(PathBuf, io::Error),
}

impl ReloadError {
    /// What to do next.
    pub fn advice(&self) -> String {
        let next: &str = match &self.fault {
            ReloadFault::Unreadable(_, e) if Exposed::of(e).is_some() => {
                "let the program write it as its own user with mode 0644 (its umask), or use `command`"
            }
            ReloadFault::Exposed(exposed) => &command::advice(exposed),
            ReloadFault::Foreign { .. } => {
                "find out who wrote it; if that is the program, let it write the file as root or as the user that it runs as, or use \
                 `command`"
            }
            ReloadFault::Hidden(..) => {
                "let boundkey see processes of others: ProtectProc=default in its unit, no hidepid for /proc"
            }
            ReloadFault::Ended(..) | ReloadFault::TimedOut(..) => "run it by hand, as boundkey's user, to see why",
            ReloadFault::NoPid(_) | ReloadFault::Unreadable(..) => "check `pid_file`, and that the program runs and writes it",
            ReloadFault::NotSent(_, nix::Error::EPERM) => "let boundkey send it signals: CAP_KILL, or the same user",
            ReloadFault::NotSent(..) | ReloadFault::Stale { .. } => "start the program; its PID file is from an earlier run",
            ReloadFault::NotStarted(_) => "check `command`: the program's path, and that boundkey's user may run it",
        };
        match self.again_in {
            Some(pause) => format!("{next}; it is tried again in {}", humantime::format_duration(pause)),
            None => next.into(),
        }
    }
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "output {}: reload by {} failed", self.outputs, self.by)?;
        match &self.fault {
            ReloadFault::Ended(status, output) => write!(f, ": {status}{}", Said(output)),
            ReloadFault::Exposed(exposed) => write!(f, ": it is not run: {exposed}"),
            ReloadFault::Foreign { pid_file, owner, pid, user } => write!(
                f,
                ": {} belongs to user {owner}, and names process {pid} of user {user}, which that user may not signal",
                pid_file.display()
            ),
            ReloadFault::Hidden(pid, e) => write!(f, ": whose process {pid} is cannot be seen: {e}"),
            ReloadFault::NoPid(path) => write!(f, ": {} has no process id of another program", path.display()),
            ReloadFault::NotSent(pid, e) => write!(f, ": process {pid}: {}", e.desc()),
            ReloadFault::NotStarted(e) => write!(f, ": {e}"),
            ReloadFault::Stale { pid_file, pid } => {
                write!(f, ": {} was written before process {pid} began, so it means another", pid_file.display())
            }
            ReloadFault::TimedOut(limit, output) => {
                write!(f, ": killed after {}{}", humantime::format_duration(*limit), Said(output))
            }
            ReloadFault::Unreadable(path, e) => write!(f, ": {}: {e}", path.display()),
        }
    }
}

impl std::error::Error for ReloadError {}

impl From<ReloadError> for AgentError {
    fn from(e: ReloadError) -> Self {
        Self::Reload(e)
    }
}

/// A reload in a message. Arguments are left out: they may be long, or hold what is not for logs.
struct Shown<'a>(&'a Reload);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reload::Command { program, .. } => write!(f, "command {program}"),
            Reload::Signal { signal, .. } => f.write_str(signal.as_str()),
        }
    }
}

/// The last lines of a command in a message.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ", and said: {}", self.0) }
    }
}

fn run(reload: &Reload, time_limit: Duration, made: &Moment) -> Result<(), ReloadFault> {
    match reload {
        Reload::Command { program, args } => {
            let path = command::locate(program).map_err(not_located)?;
            let mut command = Command::new(path);
            command.arg0(program).args(args);
            run_command(command, time_limit)
        }
        Reload::Signal { pid_file, signal } => pid_file::send(pid_file, *signal, made),
    }
}

fn not_located(e: io::Error) -> ReloadFault {
    match Exposed::of(&e) {
        Some(exposed) => ReloadFault::Exposed(exposed.clone()),
        None => ReloadFault::NotStarted(e),
    }
}

fn run_command(mut command: Command, time_limit: Duration) -> Result<(), ReloadFault> {
    let started = Instant::now();
    let (mut child, pipe) = start(&mut command).map_err(ReloadFault::NotStarted)?;
    // Our copies of the pipe's writing end, so that its end is seen.
    drop(command);
    let mut output = Tail { pipe: Some(pipe), kept: VecDeque::new() };
    loop {
        output.wait(TURN.min(time_limit.saturating_sub(started.elapsed())));
        match child.try_wait() {
            Ok(Some(status)) => {
                // A daemon that it left behind may hold the pipe open: take what is there, and do not wait for more.
                output.wait(Duration::ZERO);
                let said = output.last_lines();
                return if status.success() { Ok(()) } else { Err(ReloadFault::Ended(status, said)) };
            }
            Ok(None) if started.elapsed() < time_limit => {}
            Ok(None) => {
                end(&mut child);
                return Err(ReloadFault::TimedOut(time_limit, output.last_lines()));
            }
            Err(e) => {
                end(&mut child);
                return Err(ReloadFault::NotStarted(e));
            }
        }
    }
}

/// Starts `command` in a process group of its own, without input, and with both outputs in one pipe.
fn start(command: &mut Command) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    for name in PRIVATE_VARIABLES {
        command.env_remove(name);
    }
    // Not where the agent happens to have been started: that directory may be anybody's.
    command.current_dir("/").stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    Ok((command.spawn()?, reader))
}

/// Kills the whole group, so that a shell's children do not stay.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// The end of what a command says.
struct Tail {
    /// `None` once it has ended.
    pipe: Option<PipeReader>,
    kept: VecDeque<u8>,
}

impl Tail {
    /// Waits until there is output or `time` is over, and takes what there is.
    fn wait(&mut self, time: Duration) {
        let mut chunk = [0; 4096];
        let mut time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let Some(pipe) = &mut self.pipe else {
            let _ = poll(&mut [], time);
            return;
        };
        let mut ended = false;
        // Bounded, for some commands never stop to talk.
        for _ in 0..MAX_CHUNKS {
            if ended || !poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], time).is_ok_and(|ready| ready > 0) {
                break;
            }
            match pipe.read(&mut chunk) {
                Ok(n) if n > 0 => self.kept.extend(&chunk[..n]),
                _ => ended = true,
            }
            self.kept.drain(..self.kept.len().saturating_sub(KEPT_BYTES));
            time = PollTimeout::ZERO;
        }
        if ended {
            self.pipe = None;
        }
    }

    fn last_lines(&self) -> String {
        let bytes: Vec<u8> = self.kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(KEPT_LINES)..].join("\n")
    }
}
