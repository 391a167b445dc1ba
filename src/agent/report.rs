//! What the running agent leaves for `boundkey status`: next renewal and last error, in `status.json`.
//!
//! Nothing depends on it, so it is not synced; and it is written only when it changed, to spare flash.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::Dir;
use boundkey_hal::durable;
use serde::{Deserialize, Serialize};

use super::error::AgentError;
use boundkey_join::MAX_DETAIL;
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

const REPORT_FILE: &str = "status.json";
/// Longest message of an error that is kept, in bytes: what a server said is in it.
const MAX_MESSAGE: usize = 2 * MAX_DETAIL;
const STAGED_FILE: &str = "status.new";
/// Larger than any report of ours; more is not read.
const MAX_REPORT: u64 = 256 * 1024;

/// What is left for `boundkey status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When the daemon will renew next.
    #[serde(default)]
    pub next_renewal: Option<Timestamp>,
    /// The last error, if nothing succeeded since.
    #[serde(default)]
    pub last_error: Option<LastError>,
    /// What the server had to say at the last join, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An error as reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// [`AgentError::kind`].
    pub r#type: String,
    /// What failed.
    pub message: String,
    /// What to do next.
    pub advice: String,
    /// When it was seen first.
    pub at: Timestamp,
}

impl LastError {
    /// `e`, seen at `at`.
    pub fn new(e: &AgentError, at: Timestamp) -> Self {
        Self { r#type: e.kind().into(), message: text::cut(e.to_string(), MAX_MESSAGE), advice: e.advice(), at }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.r#type == other.r#type && self.message == other.message
    }
}

/// The file, if there is to be one, and what it holds.
#[derive(Default)]
pub struct Reporter {
    dir: Option<PathBuf>,
    report: Report,
}

impl Reporter {
    /// The report in storage directory `dir`. One that cannot be read is an empty one: it is only a report.
    pub fn open(dir: &Path) -> Self {
        let json = Dir::to_read(dir).and_then(|dir| dir.read(REPORT_FILE, MAX_REPORT)).ok().flatten();
        let report = json.and_then(|json| serde_json::from_slice(&json.content).ok()).unwrap_or_default();
        Self { dir: Some(dir.into()), report }
    }

    /// What it holds.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Notes a success.
    pub fn succeeded(&mut self, next_renewal: Option<Timestamp>, warnings: Vec<String>) {
        self.put(Report { next_renewal, last_error: None, warnings });
    }

    /// Notes that there was no join; the same error again keeps its first time.
    pub fn failed(&mut self, e: &AgentError, at: Timestamp) {
        self.note(e, at, None);
    }

    /// Notes an error of what comes after a join, which leaves the next one where it is.
    pub fn failed_after_join(&mut self, e: &AgentError, at: Timestamp) {
        self.note(e, at, self.report.next_renewal);
    }

    fn note(&mut self, e: &AgentError, at: Timestamp, next_renewal: Option<Timestamp>) {
        let error = LastError::new(e, at);
        if self.report.last_error.as_ref().is_some_and(|last| last.is_same(&error)) {
            return;
        }
        self.put(Report { last_error: Some(error), next_renewal, ..self.report.clone() });
    }

    /// Takes back an error of this [`AgentError::kind`], if that is the last one.
    pub fn mended(&mut self, kind: &str) {
        if self.report.last_error.as_ref().is_some_and(|e| e.r#type == kind) {
            self.put(Report { last_error: None, ..self.report.clone() });
        }
    }

    fn put(&mut self, report: Report) {
        if report == self.report {
            return;
        }
        self.report = report;
        let Some(dir) = &self.dir else { return };
        if let Err(e) = self.write(dir) {
            log::debug!("{}: {e}", dir.join(REPORT_FILE).display());
        }
    }

    fn write(&self, dir: &Path) -> std::io::Result<()> {
        let dir = Dir::open(dir)?;
        dir.remove_if_there(STAGED_FILE)?;
        let mut file = dir.make_file(STAGED_FILE, durable::PRIVATE_FILE)?;
        file.write_all(&serde_json::to_vec(&self.report)?)?;
        dir.rename(STAGED_FILE, REPORT_FILE)
    }
}
