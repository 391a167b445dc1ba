//! What is wrong with a configuration, where, and what to do about it.

use std::fmt::{self, Display};
use std::path::Path;

pub use boundkey_platform::refusal::Refusal;

/// A configuration that cannot be used: shown as one line, with [`ConfigError::advice`] as the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    what: String,
    advice: String,
}

impl ConfigError {
    /// What failed, and what to do next.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into() }
    }

    /// What to do next.
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// A file that a configuration names, or is, cannot be read.
    pub(super) fn unreadable(what: &str, path: &Path, e: &std::io::Error) -> Self {
        let advice = match e.kind() {
            std::io::ErrorKind::NotFound => "create it, or correct the path",
            std::io::ErrorKind::PermissionDenied => "run it as the user that boundkey runs as; let that user read it",
            _ => "see that the path names a readable text file",
        };
        Self::new(format!("{what} {}: {e}", path.display()), advice)
    }

    /// An error of the YAML reader, with file, line and field.
    pub(super) fn at(path: &Path, e: &yaml_serde::Error) -> Self {
        let mut message = e.to_string();
        let mut place = path.display().to_string();
        if let Some(at) = e.location() {
            let suffix = format!(" at line {} column {}", at.line(), at.column());
            if let Some(shorter) = message.strip_suffix(&suffix) {
                message.truncate(shorter.len());
            }
            place = format!("{place}:{}", at.line());
        }
        // Ours carry their advice after a line feed; in the reader's own, what was expected is the advice.
        let (what, advice) = match (message.split_once('\n'), message.split_once(", expected ")) {
            (Some((what, advice)), _) => (what, advice.to_owned()),
            (None, Some((what, expected))) => (what, format!("correct the line: expected {expected}")),
            (None, None) => (&*message, "correct the file, then try again".to_owned()),
        };
        Self::new(format!("{place}: {what}"), advice)
    }
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ConfigError {}

impl From<Refusal> for ConfigError {
    /// The refusal of a value that came from the command line, not from a file.
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.what, refusal.advice)
    }
}
