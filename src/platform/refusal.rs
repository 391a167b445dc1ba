//! Values that a person writes, and what is said where they cannot be: shared by configuration files and command lines.

use std::fmt::{self, Display};
use std::path::{Component, PathBuf};
use std::str::FromStr;

crate::from_text!(AbsolutePath);

/// A value or a set of fields that is refused. `Display` has what to write instead on a second line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub advice: &'static str,
}

impl Refusal {
    /// What is wrong, and what to write instead.
    pub fn new(what: impl Into<String>, advice: &'static str) -> Self {
        Self { what: what.into(), advice }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.what, self.advice)
    }
}

/// A path from the root: the working directory of a service is nobody's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(
    /// The path, without `..`.
    pub PathBuf,
);

impl FromStr for AbsolutePath {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let path = PathBuf::from(text);
        let climbs = path.components().any(|c| c == Component::ParentDir);
        if !path.is_absolute() || climbs || text.contains(char::is_control) {
            return Err(Refusal::new(format!("{text:?} is not an absolute path"), "write it from the root and without .."));
        }
        // Rebuilt from its parts: without doubled or trailing slashes, so that equal paths are equal.
        Ok(Self(path.components().collect()))
    }
}
