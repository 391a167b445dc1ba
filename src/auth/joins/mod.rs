//! A join from the server's side: what `join::server` decides is signed here, committed, and then answered.
//!
//! Nothing is answered before it is durable: token, instance and audit events are one transaction, which holds only if neither
//! token, bot, role nor lock of it changed since they were read. Certificates made for a commit that does not hold are never sent.

mod certify;
mod commit;
mod outstanding;
mod registration;
mod server_name;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;

use super::ca::{Authority, Ca, CurrentAuthority};
use super::pace::{Paces, Payer};
use super::revocation::RevocationList;
use super::sealing::Sealing;
use super::store::{Commit, JoinView, Store, StoreError};
use super::throttle::Throttle;
use boundkey_join::message::{ChallengeAnswer, ChallengeRequest, JoinAnswer, JoinRequest};
use boundkey_join::server::answer::{Issued, Notices, Signed};
use boundkey_join::server::challenge::Challenge;
use boundkey_join::server::decision::{self, Fresh, Grant, Refusal, pace};
use boundkey_join::server::effects::LockChange;
use boundkey_join::server::request::{self, Cluster, Opened, Verified};
use boundkey_join::server::view::TokenView;
use boundkey_join::trust::PIN;
use boundkey_join::{Id, Jws, Problem, ProblemType};
use boundkey_platform::time::{Clock, Random, Timestamp};
use certify::Certified;
use commit::JoinContext;
use outstanding::Outstanding;
use view::ViewParts;

/// Times that one request is judged: each time another join of the token came between, of which the pace lets no more through.
const MOST_TRIES: u64 = pace::BURST + 2;

/// Everything a join needs, shared by all connections.
pub struct Joins {
    /// The cluster's name.
    pub cluster: String,
    /// Names and addresses of this server.
    pub server_names: Vec<String>,
    /// The authority.
    pub authority: CurrentAuthority,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Seals challenges.
    pub sealing: Sealing,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// What is revoked.
    pub revocation: RevocationList,
    /// The same of SSH host certificates.
    pub ssh_revocation: RevocationList,
    /// Bounds what strangers can make the audit log grow by.
    pub throttle: Throttle,
    /// The paces of replays, and of hosts that share a key.
    pub paces: Paces,
}

impl Joins {
    /// Answers a request for a challenge. Writes nothing.
    pub fn challenge(&self, request: &ChallengeRequest) -> Result<ChallengeAnswer, Problem> {
        let now = self.clock.now();
        let view = self.view(&request.token, request.instance, now)?;
        let parts = ViewParts::new(&view, now);
        let token = parts.token(&view);
        let challenge = Challenge::new(&token, request.instance, now);
        let sealed = self.sealing.now().seal(token.name, token.epoch, challenge, &*self.random).map_err(|e| failed(&e))?;
        challenge.answer(&token, sealed, now)
    }

    /// Answers a join.
    ///
    /// Where what it was decided on changes before the commit, it is judged again on what is there then: neither a grant nor a lock is
    /// lost to somebody who writes faster.
    pub fn join(&self, jws: &Jws, from: SocketAddr) -> Result<JoinAnswer, Problem> {
        let request = request::peek(jws)?;
        let named = request::shown_certificate(&request).and_then(|der| Authority::named_instance(&der));
        let mut paid = vec![];
        for _ in 0..MOST_TRIES {
            let now = self.clock.now();
            let view = self.view(&request.token, named, now)?;
            let context = JoinContext { view: &view, now, from };
            let done = self.attempt(jws, context, &mut paid);
            match done {
                Err(Failure::Conflict) => {}
                Err(Failure::Problem(problem)) => return Err(problem),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(ProblemType::ChallengeStale.into())
    }

    /// The certificates of the CAs that count, PEM.
    pub fn ca_certificates(&self) -> String {
        self.authority.now().certificates()
    }

    /// The revocation list of the CA with this pin, or of the one that signs; DER.
    pub fn revocation_list(&self, pin: Option<&str>) -> Result<Bytes, Problem> {
        let authority = self.authority.now();
        let active = authority.set().active().and_then(Ca::pin).map_err(|e| failed(&e))?;
        let lists = self.revocation.at(self.clock.now(), &*self.store, &authority).map_err(|e| failed(&e))?;
        let wanted = |of: &str| pin.map_or(of == active, |pin| of.strip_prefix(PIN) == Some(pin));
        let found = lists.iter().find(|(of, _)| wanted(of)).map(|(_, list)| list.clone());
        found.ok_or_else(|| Problem::new(ProblemType::NotFound, "no CA of this pin counts"))
    }

    /// The revocation list of SSH host certificates, in OpenSSH's format.
    pub fn ssh_revocation_list(&self) -> Result<Bytes, Problem> {
        let lists = self.ssh_revocation.at(self.clock.now(), &*self.store, &self.authority.now()).map_err(|e| failed(&e))?;
        lists.first().map(|(_, list)| list.clone()).ok_or_else(|| failed(&"no revocation list was made"))
    }

    fn view(&self, token: &str, instance: Option<Id>, now: Timestamp) -> Result<JoinView, Problem> {
        let view = self.store.join_view(token, instance).map_err(|e| failed(&e))?;
        let view = view.filter(|view| !view.token.resource.metadata.expired(now));
        view.ok_or_else(|| Problem::new(ProblemType::NotFound, "no such token, or it has expired"))
    }

    /// Judges the join once, on one view: from the request to what is durable. `paid`: whose pace this join has spent already.
    fn attempt(&self, jws: &Jws, context: JoinContext<'_>, paid: &mut Vec<Payer>) -> Result<JoinAnswer, Failure> {
        let JoinContext { view, now, .. } = context;
        let parts = ViewParts::new(view, now);
        let token = parts.token(view);
        let authority = self.authority.now();
        let cluster = Cluster {
            name: &self.cluster,
            join_state_keys: authority.join_state_keys(),
            server_names: &self.server_names,
            certificate: &|der| authority.identity(der),
        };
        let opened = Opened::open(jws, &self.sealing.now(), &cluster, token, now);
        let (request, verified) = match opened.and_then(|opened| opened.verify()) {
            Ok(verified) => verified,
            Err(problem) => return Err(self.refuse(&problem.into(), &token, None, context)),
        };
        let lifetime = self.lifetime(&request, context)?;
        let fresh = Fresh { instance: Id::random(&*self.random).map_err(|e| failed(&e))?, now, not_after: lifetime.not_after };
        let issued = decision::decide(&token, &verified, fresh).and_then(|grant| {
            let issued = self.issue_for(&request, grant, &token, lifetime.outstanding, context, paid);
            issued.map_err(Refusal::of_key_holder)
        });
        match issued {
            Ok((issued, warnings)) => {
                let warnings = lifetime.warning.into_iter().chain(warnings).chain(lifetime.outstanding.warning()).collect();
                let keep_issued = lifetime.outstanding.keep(issued.certificates().count());
                let effects = issued.effects(&token, &verified);
                self.store.commit(context.granted(effects, request.heartbeat, keep_issued))?;
                let bundles = self.authority.now().bundles_after(request.bundle);
                Ok(issued.answer(Notices { bundles, warnings }, now))
            }
            Err(refusal) => Err(self.refuse(&refusal, &token, Some(&verified), context)),
        }
    }

    /// How long the identity certificate of a fresh step holds.
    fn lifetime(&self, request: &JoinRequest, context: JoinContext<'_>) -> Result<Lifetime, Problem> {
        let JoinContext { view, now, .. } = context;
        let token = &view.token.resource;
        let count = self.store.outstanding(&token.metadata.name, now).map_err(|e| failed(&e))?;
        let outstanding = Outstanding::new(count, token.spec.bound_keypair.recovery.mode);
        let (allowed_end, warning) = self.allowed_end(request.ttl, view, now)?;
        Ok(Lifetime { not_after: outstanding.identity_end(now, allowed_end), outstanding, warning })
    }

    /// Signs what a grant brings, certificates and join state, where the pace allows it. Returns that with its warnings.
    fn issue_for(
        &self,
        request: &JoinRequest,
        grant: Grant,
        token: &TokenView<'_>,
        outstanding: Outstanding,
        context: JoinContext<'_>,
        paid: &mut Vec<Payer>,
    ) -> Result<(Issued, Vec<String>), Problem> {
        let JoinContext { view, now, from } = context;
        self.spend(Payer::of(&view.token.resource, grant.kind, grant.step.instance, from), paid, now)?;
        let claims = grant.claims(&self.cluster, token)?;
        let Certified { identity, outputs, warnings } = self.certify(request, &grant, &claims, view, outstanding, now)?;
        let join_state = self.authority.now().sign_join_state(&claims).map_err(|e| no_key(&e))?;
        let outputs = outputs.into_iter().map(Into::into).collect();
        let signed = Signed { join_state, identity: identity.into(), outputs };
        Ok((Issued::new(grant, claims, signed, token), warnings))
    }

    /// Each pace once, however often the join is judged again.
    fn spend(&self, payers: Vec<Payer>, paid: &mut Vec<Payer>, now: Timestamp) -> Result<(), Problem> {
        for payer in payers {
            if !paid.contains(&payer) {
                self.paces.spend(payer.clone(), now)?;
                paid.push(payer);
            }
        }
        Ok(())
    }

    /// Makes durable what a refusal changes. Returns what the device is told, or that it is to be judged again.
    fn refuse(&self, refusal: &Refusal, token: &TokenView<'_>, verified: Option<&Verified>, context: JoinContext<'_>) -> Failure {
        match self.record(refusal, token, verified, context) {
            Ok(()) => Failure::Problem(refusal.problem.clone()),
            Err(failure) => failure,
        }
    }

    fn record(
        &self,
        refusal: &Refusal,
        token: &TokenView<'_>,
        verified: Option<&Verified>,
        context: JoinContext<'_>,
    ) -> Result<(), Failure> {
        let effects = refusal.effects(token, verified);
        if effects.is_empty() {
            return Ok(());
        }
        let is_locked = effects.locks != LockChange::None;
        let lock_id = Id::random(&*self.random).map_err(|e| failed(&e))?;
        let mut commit = context.refused(effects, lock_id);
        // A lock is always told of; other refusals as far as the log has room for them.
        if is_locked || self.has_room(refusal, token.name, &mut commit, context.now) {
            self.store.commit(commit)?;
        }
        Ok(())
    }

    /// Whether the log has room for the events of a refusal, which then tell of those before that it had none for.
    fn has_room(&self, refusal: &Refusal, token: &str, commit: &mut Commit, now: Timestamp) -> bool {
        let known = refusal.key_proven().then_some(token);
        let events = std::mem::take(&mut commit.events);
        for event in events {
            match self.throttle.admit(known, &event, now) {
                None => {}
                Some(0) => commit.events.push(event),
                Some(unwritten) => commit.events.push(event.with("refusals_not_written", unwritten)),
            }
        }
        !commit.events.is_empty()
    }
}

/// How long the identity certificate of a fresh step holds.
struct Lifetime {
    not_after: Timestamp,
    /// The certificates that have not ended, which shorten it.
    outstanding: Outstanding,
    /// What a person should know of it.
    warning: Option<String>,
}

/// Why a decided join did not come about.
enum Failure {
    /// What it was decided on has changed meanwhile: it is to be judged again.
    Conflict,
    /// What the device is told.
    Problem(Problem),
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict(_) => Self::Conflict,
            StoreError::Failed(_) | StoreError::UnknownCursor => Self::Problem(failed(&e)),
        }
    }
}

impl<T: Into<Problem>> From<T> for Failure {
    fn from(problem: T) -> Self {
        Self::Problem(problem.into())
    }
}

/// A failure of our own: the cause goes to the log, not to the peer.
fn failed(cause: &impl std::fmt::Display) -> Problem {
    log::error!("{cause}");
    ProblemType::ServerError.into()
}

/// The key store of the CA did not sign. Nothing is committed then, so the same request is good again.
fn no_key(e: &boundkey_hal::Error) -> Problem {
    log::error!("CA key: {e}\n{}", super::ca::advice(e.kind()));
    Problem::new(ProblemType::ServerError, "the key store of the server's CA does not sign now; nothing was consumed")
}
