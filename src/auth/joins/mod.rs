//! A join from the server's side: view, verify, decide, issue, commit.
//!
//! Nothing is answered before it is durable: token, instance and audit events are one transaction, which holds only if neither
//! token nor policy changed since they were read. Certificates made for a commit that does not hold are never sent.

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
use super::store::{Change, Commit, JoinView, Store, StoreError};
use super::throttle::Throttle;
use crate::api::resource::{Kind, Resource, ResourceId};
use crate::join::message::{ChallengeAnswer, ChallengeRequest, JoinAnswer, JoinRequest};
use crate::join::server::challenge::Challenge;
use crate::join::server::decision::{self, Fresh, Grant, Refusal, pace};
use crate::join::server::request::{self, Cluster, Opened, Verified};
use crate::join::trust::PIN;
use crate::join::{Claims, Id, Jws, Problem, ProblemType, Thumbprint};
use crate::time::{Clock, NoRandomness, Random, Timestamp};
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
        let key = token.status.bound_public_key.as_ref().or(token.spec.onboarding.initial_public_key.as_ref());
        Ok(ChallengeAnswer {
            challenge: self.sealing.now().seal(token.name, token.epoch, challenge, &*self.random)?,
            key: key.map(|key| Thumbprint::of(&key.0)),
            incarnation: incarnation(&view)?,
            rotate: challenge.rotate,
            algorithms: algorithms(),
            expires: challenge.expires,
            time: now,
        })
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
            let done = match self.decide(jws, &context, &mut paid) {
                Ok(accepted) => self.accept(accepted, context),
                Err(refused) => self.refuse(refused, context).map_or_else(Err, |problem| Err(Failure::Problem(problem))),
            };
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

    /// `paid`: whose pace this join has spent already.
    fn decide(&self, jws: &Jws, context: &JoinContext<'_>, paid: &mut Vec<Payer>) -> Result<Accepted, Refused> {
        let JoinContext { view, now, .. } = *context;
        let parts = ViewParts::new(view, now);
        let token = parts.token(view);
        let authority = self.authority.now();
        let cluster = Cluster {
            name: &self.cluster,
            join_state_keys: authority.join_state_keys(),
            server_names: &self.server_names,
            certificate: &|der| authority.identity(der),
        };
        let (request, verified) = Opened::open(jws, &self.sealing.now(), &cluster, token, now)?.verify()?;
        let (not_after, ttl_warning) = self.allowed_end(request.ttl, view, now)?;
        let outstanding =
            Outstanding::new(self.store.outstanding(token.name, now).map_err(|e| failed(&e))?, token.spec.recovery.mode);
        let not_after = outstanding.identity_end(now, not_after);
        let fresh = Fresh { instance: Id::random(&*self.random)?, now, not_after };
        let decided = decision::decide(&token, &verified, fresh).and_then(|grant| {
            let issued = self.issue_for(&request, grant, context, outstanding, paid);
            issued.map_err(|problem| Refusal { key_proven: true, ..problem.into() })
        });
        match decided {
            Ok((grant, certified, claims)) => {
                Ok(Accepted { request, verified, grant, certified, outstanding, claims, ttl_warning })
            }
            Err(refusal) => Err(Refused { refusal, verified: Some(verified) }),
        }
    }

    /// What a grant brings: certificates and join state, where the pace allows it.
    fn issue_for(
        &self,
        request: &JoinRequest,
        grant: Grant,
        context: &JoinContext<'_>,
        outstanding: Outstanding,
        paid: &mut Vec<Payer>,
    ) -> Result<(Grant, Certified, Claims), Problem> {
        let JoinContext { view, now, from } = *context;
        let token = &view.token.resource;
        self.spend(Payer::of(token, &grant, from), paid, now)?;
        let claims = grant.claims(&self.cluster, &token.metadata.name, token.instance_kind(), incarnation(view)?);
        let certified = self.certify(request, &grant, &claims, view, outstanding, now)?;
        Ok((grant, certified, claims))
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

    fn accept(&self, accepted: Accepted, context: JoinContext<'_>) -> Result<JoinAnswer, Failure> {
        let (view, now, grant) = (context.view, context.now, &accepted.grant);
        let name = &view.token.resource.metadata.name;
        let join_state = self.authority.now().sign_join_state(&accepted.claims).map_err(|e| no_key(&e))?;
        let recoveries = grant.status.recoveries(&view.token.resource.spec.bound_keypair);
        let mut warnings: Vec<_> = accepted.ttl_warning.iter().chain(&accepted.certified.warnings).cloned().collect();
        warnings.extend(accepted.outstanding.warning());
        if let Some(left @ 0..=1) = recoveries.remaining() {
            warnings.push(format!(
                "{} left: raise spec.bound_keypair.recovery.limit of token {name} before this device loses its certificate",
                if left == 1 { "one recovery is" } else { "no recovery is" }
            ));
        }
        self.store.commit(context.accepted(&accepted))?;
        let Accepted { request, grant, certified, claims, .. } = accepted;
        let lacking = self.authority.now().bundles_after(request.bundle);
        Ok(JoinAnswer {
            kind: grant.kind,
            cluster: self.cluster.clone(),
            incarnation: claims.inc,
            step: grant.step,
            key: claims.jkt,
            join_state,
            recoveries,
            identity: certified.identity.into(),
            outputs: certified.outputs.into_iter().map(Into::into).collect(),
            bundle: Some(lacking).filter(|lacking| !lacking.is_empty()),
            warnings,
            time: now,
        })
    }

    /// Writes down a refusal, and the lock that it calls for; returns what the device is told.
    fn refuse(&self, refused: Refused, context: JoinContext<'_>) -> Result<Problem, Failure> {
        let Refusal { problem, lock, key_proven } = &refused.refusal;
        // A failure of our own tells nothing about the device, which tries again.
        if problem.kind == ProblemType::ServerError {
            return Ok(refused.refusal.problem);
        }
        let mut event = context.refused(&refused);
        let mut commit = Commit::default();
        if let Some(why) = lock {
            let (change, locked) = context.lock(why, Id::random(&*self.random)?);
            // The token is written too, so that a join that runs beside this one does not hold.
            let token = context.view.token.clone();
            let id = ResourceId::new(Kind::Token, &token.resource.metadata.name);
            let token = Change { id, expected: Some(token.revision), to: Some(Resource::Token(token.resource)) };
            commit.policy = Some(context.view.policy);
            commit.changes = vec![token, change];
            commit.events = vec![locked];
        } else {
            let token = &context.view.token.resource.metadata.name;
            match self.throttle.admit(key_proven.then_some(token.as_str()), &event, context.now) {
                None => return Ok(refused.refusal.problem),
                Some(0) => {}
                Some(unwritten) => event = event.with("refusals_not_written", unwritten),
            }
        }
        commit.events.insert(0, event);
        self.store.commit(commit)?;
        Ok(refused.refusal.problem)
    }
}

/// A join that only has to be committed.
struct Accepted {
    request: JoinRequest,
    verified: Verified,
    grant: Grant,
    certified: Certified,
    outstanding: Outstanding,
    claims: Claims,
    ttl_warning: Option<String>,
}

/// A refusal, with what the request proved before it was refused.
struct Refused {
    refusal: Refusal,
    verified: Option<Verified>,
}

impl<T: Into<Problem>> From<T> for Refused {
    fn from(problem: T) -> Self {
        Self { refusal: problem.into().into(), verified: None }
    }
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
            StoreError::Failed(_) => Self::Problem(failed(&e)),
        }
    }
}

impl<T: Into<Problem>> From<T> for Failure {
    fn from(problem: T) -> Self {
        Self::Problem(problem.into())
    }
}

impl From<NoRandomness> for Problem {
    fn from(e: NoRandomness) -> Self {
        failed(&e)
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

fn incarnation(view: &JoinView) -> Result<Id, Problem> {
    let known = view.token.resource.status.bound_keypair.incarnation;
    known.ok_or_else(|| Problem::new(ProblemType::TokenUnusable, "the token has no incarnation: reset it"))
}

/// Algorithms for bound keys, the preferred one first.
pub fn algorithms() -> Vec<String> {
    use boundkey_hal::Algorithm::{EcdsaP256, Ed25519};
    [Ed25519, EcdsaP256].map(|algorithm| algorithm.jws_name().to_owned()).into()
}
