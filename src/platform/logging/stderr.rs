//! Standard error, written in a way that never stops the program.
//!
//! A pipe that nobody empties, a terminal that is paused and a socket that is full take nothing, and a plain write(2) to them waits
//! for ever. Here a line that is not taken in time is dropped and counted, and the count is written as soon as something is taken.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::SendFlags;

/// How long a line waits for a reader that took the line before it. A reader that did not take that is not waited for.
const LOG_WAIT: Duration = Duration::from_millis(100);
/// How long the last words of a program wait.
const FINAL_WAIT: Duration = Duration::from_secs(1);
/// A pipe that poll(2) calls writable takes this much at once (pipe(7), `PIPE_BUF`).
const PIPE_BUF: usize = 4096;

/// What stderr is, which decides how a write that would wait is avoided.
enum Kind {
    /// A file or a device: a write ends by itself, but on a network file system whose server is gone.
    File,
    /// A pipe or terminal, opened a second time: the flag `O_NONBLOCK` is not seen by other programs that write to it.
    Reopened(OwnedFd),
    /// A pipe or terminal that this process may not open again: written in pieces, each after a look whether there is room.
    /// A terminal that somebody has stopped still holds up the program: nothing tells how much it takes.
    Shared,
    /// A socket, such as the journal's: each call says that it does not wait.
    Socket,
}

/// Standard error, which takes lines whole or not at all.
pub(super) struct Stderr {
    kind: Kind,
    /// Lines that were dropped and not told of.
    dropped: u64,
    /// The line that tells of so many.
    notice: Box<dyn Fn(u64) -> String + Send>,
    /// Whether the last line was cut short: the next one does not go on in it.
    is_torn: bool,
    /// How long a line waits; nothing after one that was not taken.
    patience: Duration,
    wait: Duration,
}

impl Stderr {
    /// For a log: `notice` makes the line that tells how many lines were dropped.
    pub(super) fn for_log(notice: Box<dyn Fn(u64) -> String + Send>) -> Self {
        Self::with(LOG_WAIT, notice)
    }

    fn with(wait: Duration, notice: Box<dyn Fn(u64) -> String + Send>) -> Self {
        let kind = Kind::of_stderr();
        Self { kind, dropped: 0, notice, is_torn: false, patience: wait, wait }
    }

    /// Writes the lines of a record in one piece, or drops and counts them.
    pub(super) fn write_lines(&mut self, lines: &str) {
        if self.dropped > 0 && self.put((self.notice)(self.dropped).as_bytes()) {
            self.dropped = 0;
        }
        // While the count is not told nothing else is: the reader learns where lines are missing.
        if self.dropped > 0 || !self.put(lines.as_bytes()) {
            self.dropped = self.dropped.saturating_add(lines.lines().count().try_into().unwrap_or(u64::MAX));
        }
    }

    /// Writes `text`; returns whether all of it was taken.
    fn put(&mut self, text: &[u8]) -> bool {
        let mut text = text.to_vec();
        if self.is_torn {
            text.insert(0, b'\n');
        }
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            match self.write_some(rest) {
                Ok(0) => break,
                Ok(written) => rest = &rest[written..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let is_whole = rest.is_empty();
        self.is_torn = !is_whole && (self.is_torn || rest.len() < text.len());
        self.patience = if is_whole { self.wait } else { Duration::ZERO };
        is_whole
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let std = io::stderr();
        let fd = if let Kind::Reopened(own) = &self.kind { own.as_fd() } else { std.as_fd() };
        // A line waits once: what is left of it after that is taken at once or not at all.
        if !has_room(fd, Duration::ZERO)? && !has_room(fd, std::mem::take(&mut self.patience))? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(match self.kind {
            Kind::File | Kind::Reopened(_) => rustix::io::write(fd, bytes)?,
            Kind::Shared => rustix::io::write(fd, &bytes[..bytes.len().min(PIPE_BUF)])?,
            Kind::Socket => rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?,
        })
    }
}

impl Kind {
    fn of_stderr() -> Self {
        let std = io::stderr();
        let file_type = std.as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata()).map(|m| m.file_type());
        match file_type {
            Ok(kind) if kind.is_socket() => Self::Socket,
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::openat(CWD, "/proc/self/fd/2", flags, Mode::empty()).map_or(Self::Shared, Self::Reopened)
            }
            Ok(_) => Self::File,
            Err(_) => Self::Shared,
        }
    }
}

/// Whether a write would be taken, or fail, at once or within `wait`.
fn has_room(fd: BorrowedFd<'_>, wait: Duration) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
    Ok(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&timeout))? > 0)
}

/// Writes lines beside the log, such as the error that ends a program. Where nobody takes them, the program goes on to its end, for
/// its exit code says the same.
pub fn print(text: &str) {
    let mut stderr = Stderr::with(FINAL_WAIT, Box::new(|_| String::new()));
    stderr.put(format!("{text}\n").as_bytes());
}
