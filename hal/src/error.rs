//! The one error of every backend: a kind to branch on, a text to show.

use core::fmt::{self, Write as _};

/// What a caller can tell apart and act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device is there but cannot serve now; try again with backoff.
    Busy,
    /// Something is there and is not what it should be: truncated, of another device, altered on the way.
    Corrupt,
    /// Not permitted: file mode, device group, wrong PIN. Never retried by itself.
    Denied,
    /// A key of this name is there already; it was left alone.
    Exists,
    /// The device refuses for a while: dictionary-attack lockout, PIN locked.
    Locked,
    /// The file system that holds a key's file is full, read-only or failing.
    Medium,
    /// No such key. The only answer that means absent.
    NotFound,
    /// None of the others.
    Other,
    /// The device, library or directory cannot be reached.
    Unreachable,
    /// This store cannot do that.
    Unsupported,
}

/// Longest text of an [`Error`], in bytes; longer ones are cut at a character.
pub const MAX_DETAIL: usize = 240;

/// A key store's failure: what went wrong, and with what.
///
/// `Display` is one lower-case line without a full stop, fit to follow "key store: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    detail: heapless::String<MAX_DETAIL>,
}

impl Error {
    /// An error of `kind`, told by `detail`.
    pub fn new(kind: ErrorKind, detail: impl fmt::Display) -> Self {
        let mut text = Bounded::default();
        // `Bounded` takes all it is given, so this cannot fail; what does not fit is cut.
        let _ = write!(text, "{detail}");
        Self { kind, detail: text.0 }
    }

    /// What a caller branches on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl core::error::Error for Error {}

/// A text that keeps its first [`MAX_DETAIL`] bytes.
#[derive(Default)]
struct Bounded(heapless::String<MAX_DETAIL>);

impl fmt::Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if self.0.push(c).is_err() {
                break;
            }
        }
        Ok(())
    }
}
