//! Replacing the cluster's CA while the server runs: what `boundkeyctl ca` asks for.
//!
//! A step is made by one write, of `ca.json`. What follows from it (the TLS server's certificate, the audit event) is done at once, and else
//! at the next start. Keys and challenge key come before, and do no harm where the step does not follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ca::Ca;
use super::data_dir::{DataDir, DataDirError};
use super::joins::Joins;
use super::store::{Commit, StoreError};
use super::tls::CurrentCertificate;
use boundkey_api::actor::Actor;
use boundkey_api::ca::{Share, Step, Target};
use boundkey_api::call::{CaReport, CaRotated, CaState};
use boundkey_api::event::{Event, EventKind};
use boundkey_join::trust::pin_text;
use boundkey_platform::time::Timestamp;

/// Replaces the cluster's CAs, one step at a time.
pub struct Rotation {
    dir: DataDir,
    joins: Arc<Joins>,
    certificate: Arc<CurrentCertificate>,
    /// Held for a step, and while the TLS server's certificate is replaced.
    step: Mutex<()>,
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug)]
pub struct RotationRequest {
    /// Where to go.
    pub target: Option<Target>,
    /// To withdraw the announced CA.
    pub cancel: bool,
    /// To go on whatever devices know.
    pub yes: bool,
    /// The CA to be retired is in other hands.
    pub compromised: bool,
}

/// Why nothing was done, unless it says otherwise.
#[derive(Debug)]
pub enum RotationError {
    /// Keys, certificates or files.
    DataDir(DataDirError),
    /// There is no such step, or devices are not ready for it.
    Refused(String),
    /// The TLS server's new certificate cannot be used. The step was made.
    Tls(rustls::Error),
}

impl std::fmt::Display for RotationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DataDir(e) => e.fmt(f),
            Self::Refused(why) => f.write_str(why),
            Self::Tls(e) => write!(f, "TLS: {e}"),
        }
    }
}

impl std::error::Error for RotationError {}

impl<E: Into<DataDirError>> From<E> for RotationError {
    fn from(e: E) -> Self {
        Self::DataDir(e.into())
    }
}

impl Rotation {
    /// For a server that presents `certificate`.
    pub fn new(dir: DataDir, joins: Arc<Joins>, certificate: Arc<CurrentCertificate>) -> Self {
        Self { dir, joins, certificate, step: Mutex::default() }
    }

    /// How the CAs stand, and what devices know of them.
    pub fn report(&self, now: Timestamp) -> Result<CaReport, RotationError> {
        let authority = self.joins.authority.now();
        let sequence = authority.newest_bundle().map_or(0, boundkey_join::TrustBundle::sequence);
        let mut cas = Vec::new();
        for ca in &authority.set().cas {
            cas.push(self.state_of(ca, now)?);
        }
        Ok(CaReport { cluster: self.joins.cluster.clone(), sequence, newest: self.share(sequence, now)?, cas })
    }

    fn state_of(&self, ca: &Ca, now: Timestamp) -> Result<CaState, RotationError> {
        let pins = ca.root()?.pins();
        Ok(CaState {
            number: ca.number,
            phase: ca.phase,
            since: ca.since,
            not_after: ca.ends()?,
            pin: pins.first().map(pin_text).unwrap_or_default(),
            root_pin: pins.last().filter(|_| pins.len() > 1).map(pin_text),
            known: if ca.phase.is_trusted() { Some(self.share(ca.known_since, now)?) } else { None },
            compromised: ca.compromised,
        })
    }

    fn share(&self, sequence: u64, now: Timestamp) -> Result<Share, StoreError> {
        self.joins.store.bundle_share(sequence, now)
    }

    /// Makes one step.
    pub fn rotate(&self, request: RotationRequest, actor: &Actor) -> Result<CaRotated, RotationError> {
        let _step = self.hold();
        let now = self.joins.clock.now();
        let authority = self.joins.authority.now();
        let set = authority.set();
        let step = if request.cancel { set.step_back() } else { set.step_to(request.target) }.map_err(RotationError::Refused)?;
        if request.compromised && !matches!(step, Step::Retire | Step::Withdraw) {
            let why = "--compromised goes with --to retired and with --cancel: `boundkeyctl ca status` shows where the CAs stand";
            return Err(RotationError::Refused(why.into()));
        }
        let number = set.subject(step).unwrap_or_default();
        let newest = authority.newest_bundle().map_or(0, boundkey_join::TrustBundle::sequence);
        let share = set.needed_for(step, newest).map(|needed| self.share(needed, now)).transpose()?;
        if let Some(Share { tokens, have }) = share.filter(|share| share.have < share.tokens && !request.yes) {
            return Err(RotationError::Refused(format!(
                "{} of {tokens} bound tokens have not told yet that their device has the trust bundle that this step builds on; {}. \
                 --yes goes on all the same",
                tokens - have,
                consequence(step)
            )));
        }
        let random = &*self.joins.random;
        // Challenges of a step that does not follow are void: devices try again.
        let renews_challenges = matches!(step, Step::Activate | Step::Return);
        if renews_challenges {
            self.dir.make_challenge_key(random)?;
        }
        let next = authority.after(step, request.compromised, random, now)?;
        let sequence = next.newest_bundle().map_or(0, boundkey_join::TrustBundle::sequence);
        let next = next.with_pending_event(event(now, step, number, sequence, share, request, actor));
        self.dir.write_authority(&next)?;
        self.joins.authority.replace(next);
        if renews_challenges {
            self.joins.sealing.replace(&*self.dir.challenge_key()?, now);
        }
        // The step is made. What follows from it is tried again each minute, and at the next start.
        for done in [self.renew(now), self.record_events()] {
            if let Err(e) = done {
                log::error!("CA {number}: the step was made, but not all that follows: {e}");
            }
        }
        log::info!("CA {number}: {step:?}; trust bundle {sequence}");
        Ok(CaRotated { step, number, report: self.report(now)? })
    }

    /// Replaces the TLS server's certificate where it is outdated, and tells the audit log of steps that it lacks.
    pub fn complete(&self, now: Timestamp) -> Result<(), RotationError> {
        let _step = self.hold();
        self.renew(now).and(self.record_events())
    }

    fn hold(&self) -> MutexGuard<'_, ()> {
        // A thread that panicked left a step that was made, or was not.
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, now: Timestamp) -> Result<(), RotationError> {
        let (present, joins) = (self.dir.server()?, &self.joins);
        let authority = joins.authority.now();
        let chain = authority.tls_chain()?;
        if !present.is_outdated(&joins.server_names, &authority, now) {
            return self.certificate.replace(&present, &chain).map_err(RotationError::Tls);
        }
        let server = authority.issue_server(&joins.server_names, Some(&present), now, &*joins.random)?;
        self.dir.write_server(&server)?;
        self.certificate.replace(&server, &chain).map_err(RotationError::Tls)?;
        log::info!("renewed the TLS server's certificate");
        Ok(())
    }

    fn record_events(&self) -> Result<(), RotationError> {
        let authority = self.joins.authority.now();
        let events = authority.set().pending_events.clone();
        if events.is_empty() {
            return Ok(());
        }
        self.joins.store.commit(Commit { events, ..Commit::default() })?;
        let recorded = authority.without_pending_events();
        self.dir.write_authority(&recorded)?;
        self.joins.authority.replace(recorded);
        Ok(())
    }
}

/// What happens to those that are not ready.
fn consequence(step: Step) -> &'static str {
    match step {
        Step::Activate | Step::Return => {
            "a program beside such a device does not verify what the other CA issues from then on; the device itself follows when it joins"
        }
        _ => "what such a device still has from the other CA is not verified any more by programs of those that follow",
    }
}

fn event(
    now: Timestamp,
    step: Step,
    number: u32,
    sequence: u64,
    share: Option<Share>,
    RotationRequest { yes, compromised, .. }: RotationRequest,
    actor: &Actor,
) -> Event {
    let kind = match step {
        Step::Activate => EventKind::CaActivated,
        Step::Announce => EventKind::CaAnnounced,
        Step::Restore => EventKind::CaRestored,
        Step::Retire => EventKind::CaRetired,
        Step::Return => EventKind::CaReturned,
        Step::Withdraw => EventKind::CaWithdrawn,
    };
    let event = Event { actor: Some(actor.clone()), ..Event::new(now, kind) };
    let mut event = event.with("ca", number).with("sequence", sequence);
    if let Some(Share { tokens, have }) = share {
        event = event.with("tokens", tokens).with("tokens_ready", have).with("forced", yes && have < tokens);
    }
    if compromised { event.with("compromised", true) } else { event }
}
