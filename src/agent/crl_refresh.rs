//! The revocation lists of outputs, which are fetched with each join and again between joins.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::jittered;
use super::clock::since_boot;
use super::crl::RevocationLists;
use super::error::AgentError;
use super::failure_log::FailureLog;
use super::outputs::{self, Fresh, Reloads};
use super::report::Reporter;
use super::transport::Https;
use boundkey_join::TrustBundle;
use boundkey_platform::time::Random;

/// Longest wait before the next fetch after one that failed.
const RETRY: Duration = Duration::from_secs(60);

/// Keeps the revocation lists of outputs fresh.
pub struct CrlRefresh {
    lists: RevocationLists,
    /// Time between fetches that succeed.
    interval: Duration,
    random: Arc<dyn Random>,
    failures: FailureLog,
    state: State,
}

/// What the outputs of the last join have of the revocation lists that are held here.
enum State {
    /// There was no join yet, or none of its outputs has a revocation list.
    Unused,
    /// Every output has the lists that are held.
    Installed(Schedule),
    /// Writing an output failed, so it may lack the lists that are held. The next refresh writes them, changed or not.
    NotInstalled(Schedule),
}

/// The next refresh, and what it is for.
struct Schedule {
    /// When it is due, in time since boot.
    due: Duration,
    /// The outputs that have a revocation list.
    outputs: Vec<Fresh>,
    /// The trust bundle of the last join; there is a list for each CA in it.
    bundle: TrustBundle,
    /// The [`AgentError::kind`] of a fetch that failed with the last join: `boundkey status` shows it until a refresh succeeds.
    reported: Option<&'static str>,
}

impl CrlRefresh {
    /// Nothing is due before a join. `interval`: time between fetches that succeed.
    pub fn new(interval: Duration, random: Arc<dyn Random>) -> Self {
        let (lists, failures) = (RevocationLists::default(), FailureLog::default());
        Self { lists, interval, random, failures, state: State::Unused }
    }

    /// Installs the outputs of a join, with fresh revocation lists where one of them has any. Closes the connection.
    ///
    /// # Errors
    /// The first output that was not written, or else what the fetch failed with. Both are tried.
    pub fn install(
        &mut self,
        https: &mut Https,
        mut outputs: Vec<Fresh>,
        bundle: TrustBundle,
        reloads: &mut Reloads,
    ) -> Result<(), AgentError> {
        let is_used = outputs.iter().any(|fresh| fresh.output.crl);
        let (fetched, due) = if is_used { self.fetch(https, &bundle) } else { (Ok(false), Duration::MAX) };
        https.close();
        let installed = self.write(&outputs, &bundle, reloads);
        let reported = fetched.as_ref().err().map(AgentError::kind);
        outputs.retain(|fresh| fresh.output.crl);
        let schedule = Schedule { due, outputs, bundle, reported };
        self.state = match &installed {
            _ if !is_used => State::Unused,
            Ok(()) => State::Installed(schedule),
            Err(_) => State::NotInstalled(schedule),
        };
        installed.and(fetched.map(drop))
    }

    /// A join failed, so `boundkey status` shows that failure in place of a fetch's.
    pub fn join_failed(&mut self) {
        if let State::Installed(schedule) | State::NotInstalled(schedule) = &mut self.state {
            schedule.reported = None;
        }
    }

    /// Fetches and installs the lists if that is due. Returns when the next refresh is due, in time since boot.
    pub fn run_due(&mut self, https: &mut Https, reloads: &mut Reloads, reporter: &mut Reporter) -> Duration {
        let (mut schedule, must_write) = match std::mem::replace(&mut self.state, State::Unused) {
            State::Unused => return Duration::MAX,
            State::Installed(schedule) => (schedule, false),
            State::NotInstalled(schedule) => (schedule, true),
        };
        if schedule.due > since_boot() {
            let due = schedule.due;
            self.state = if must_write { State::NotInstalled(schedule) } else { State::Installed(schedule) };
            return due;
        }
        let (fetched, due) = self.fetch(https, &schedule.bundle);
        https.close();
        schedule.due = due;
        // Whether the outputs lack what is held now, and what went wrong.
        let (lacks, outcome) = match fetched {
            Err(e) => (must_write, Err(e)),
            Ok(changed) if changed || must_write => {
                let written = self.write(&schedule.outputs, &schedule.bundle, reloads);
                (written.is_err(), written)
            }
            Ok(_) => (false, Ok(())),
        };
        match outcome {
            Ok(()) => {
                self.failures.succeeded();
                if let Some(kind) = schedule.reported.take() {
                    reporter.mended(kind);
                }
            }
            Err(e) => {
                self.failures.failed(&e, since_boot());
            }
        }
        self.state = if lacks { State::NotInstalled(schedule) } else { State::Installed(schedule) };
        due
    }

    /// Fetches the list of each CA in `bundle`. Returns whether what is held changed, and when the next fetch is due, in time since
    /// boot.
    fn fetch(&mut self, https: &mut Https, bundle: &TrustBundle) -> (Result<bool, AgentError>, Duration) {
        let cas: Vec<_> = bundle.roots().iter().filter_map(|root| root.chain.first().cloned()).collect();
        let fetched = self.lists.fetch(https, &cas, since_boot()).map_err(AgentError::from);
        match fetched.and_then(|changed| Ok((changed, jittered(self.interval, &*self.random)?))) {
            Ok((changed, wait)) => (Ok(changed), since_boot() + wait),
            Err(e) => (Err(e), since_boot() + self.interval.min(RETRY)),
        }
    }

    fn write(&self, outputs: &[Fresh], bundle: &TrustBundle, reloads: &mut Reloads) -> Result<(), AgentError> {
        outputs::install(outputs, &bundle.certificates(), &self.lists.ders(), reloads)
    }
}
