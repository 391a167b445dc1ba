//! A join from the server's side: view, verify, decide, issue, commit.
//!
//! Nothing is answered before it is durable: token, instance and audit events are one transaction, which holds only if neither
//! token nor policy changed since they were read. Certificates made for a commit that does not hold are never sent.

mod certify;
mod commit;
mod outstanding;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;

use super::ca::{Authority, CurrentAuthority};
use super::resource::{Key, Kind, Lock, LockTarget, Resource};
use super::revocation::RevocationList;
use super::store::{Change, Commit, JoinView, Store, StoreError};
use super::throttle::Throttle;
use crate::join::message::{ChallengeAnswer, ChallengeRequest, JoinAnswer, JoinRequest};
use crate::join::server::challenge::{self, Challenge, SealingKey};
use crate::join::server::decision::{self, Fresh, Grant, Refusal};
use crate::join::server::record::{LastStep, rotation_due};
use crate::join::server::request::{self, Context, Verified};
use crate::join::{Claims, Id, Jws, Problem, ProblemType, RecoveryMode, Thumbprint};
use crate::time::{Clock, NoRandomness, Random, Timestamp};
use certify::Certified;
use commit::Occasion;
use outstanding::Outstanding;

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
    pub sealing: SealingKey,
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
}

impl Joins {
    /// Answers a request for a challenge. Writes nothing.
    pub fn challenge(&self, request: &ChallengeRequest) -> Result<ChallengeAnswer, Problem> {
        let now = self.clock.now();
        let view = self.view(&request.token, None, now)?;
        let (spec, status) = (&view.token.resource.spec.bound_keypair, &view.token.resource.status.bound_keypair);
        let rotate = rotation_due(spec, status, now);
        let expires = now.plus(challenge::LIFETIME);
        let sealed = Challenge { revision: view.token.revision, rotate, expires };
        let key = status.bound_public_key.as_ref().or(spec.onboarding.initial_public_key.as_ref());
        Ok(ChallengeAnswer {
            challenge: self.sealing.seal(&request.token, sealed, &*self.random)?,
            key: key.map(|key| Thumbprint::of(&key.0)),
            incarnation: incarnation(&view)?,
            rotate,
            algorithms: algorithms(),
            expires,
            time: now,
        })
    }

    /// Answers a join.
    pub fn join(&self, jws: &Jws, from: SocketAddr) -> Result<JoinAnswer, Problem> {
        let request = request::peek(jws)?;
        let now = self.clock.now();
        let named = request::shown_certificate(&request).and_then(|der| Authority::named_instance(&der));
        let view = self.view(&request.token, named, now)?;
        let occasion = Occasion { view: &view, now, from };
        match self.decide(jws, &view, now) {
            Ok(accepted) => self.accept(accepted, occasion),
            Err(refused) => Err(self.refuse(refused, occasion)),
        }
    }

    /// The certificates of the CAs that count, PEM.
    pub fn ca_certificates(&self) -> Result<String, Problem> {
        self.authority.now().certificates().map_err(|e| failed(&e))
    }

    /// The revocation list, DER.
    pub fn revocation_list(&self) -> Result<Bytes, Problem> {
        self.revocation.at(self.clock.now(), &*self.store, &self.authority.now()).map_err(|e| failed(&e))
    }

    /// The revocation list of SSH host certificates, in OpenSSH's format.
    pub fn ssh_revocation_list(&self) -> Result<Bytes, Problem> {
        self.ssh_revocation.at(self.clock.now(), &*self.store, &self.authority.now()).map_err(|e| failed(&e))
    }

    fn view(&self, token: &str, instance: Option<Id>, now: Timestamp) -> Result<JoinView, Problem> {
        let view = self.store.join_view(token, instance)?.filter(|view| !view.token.resource.metadata.expired(now));
        view.ok_or_else(|| Problem::new(ProblemType::NotFound, "no such token, or it has expired"))
    }

    fn decide(&self, jws: &Jws, view: &JoinView, now: Timestamp) -> Result<Accepted, Refused> {
        let token = &view.token.resource;
        let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
        let name = &token.metadata.name;
        let challenge = self.sealing.open(name, &request::challenge_of(jws)?, now)?;
        if challenge.revision != view.token.revision {
            return Err(Problem::from(ProblemType::ChallengeStale).into());
        }
        let authority = self.authority.now();
        let context = Context {
            cluster: &self.cluster,
            token: name,
            for_bot: token.is_for_bot(),
            spec,
            status,
            challenge,
            join_state_keys: authority.join_state_keys(),
            server_names: &self.server_names,
            certificate: &|der| authority.identity(der),
        };
        let (request, verified) = request::verify(jws, &context)?;
        let instance = instance_shown(&verified, view);
        let locks = locks_in_force(view, instance.map(|(id, _)| id), now);
        let (not_after, ttl_warning) = self.allowed_end(request.ttl, view, now)?;
        let outstanding = Outstanding::new(self.store.outstanding(name, now)?, spec.recovery.mode);
        let not_after = outstanding.identity_end(now, not_after);
        let fresh = Fresh { instance: Id::random(&*self.random)?, now, not_after };
        let about = decision::Token { for_bot: token.is_for_bot(), spec, status, instance };
        let grant = decision::decide(about, &locks, &verified, fresh)
            .map_err(|refusal| Refused { refusal, verified: Some(verified.clone()) })?;
        let certified = self.certify(&request, &grant, view, outstanding, now);
        match certified {
            Ok(certified) => Ok(Accepted { request, verified, grant, certified, outstanding, ttl_warning }),
            Err(problem) => Err(Refused { refusal: problem.into(), verified: Some(verified) }),
        }
    }

    fn accept(&self, accepted: Accepted, occasion: Occasion<'_>) -> Result<JoinAnswer, Problem> {
        let (view, now, grant) = (occasion.view, occasion.now, &accepted.grant);
        let name = &view.token.resource.metadata.name;
        let inc = incarnation(view)?;
        let claims = Claims {
            iss: self.cluster.clone(),
            sub: name.clone(),
            inc,
            step: grant.step,
            host: !view.token.resource.is_for_bot(),
            jkt: Thumbprint::of(&grant.key),
            jti: grant.attempt,
            iat_ms: grant.issued_at_ms,
        };
        let join_state = self.authority.now().sign_join_state(&claims).map_err(|e| no_key(&e))?;
        let recoveries = grant.status.recoveries(&view.token.resource.spec.bound_keypair);
        let mut warnings: Vec<_> = accepted.ttl_warning.iter().chain(&accepted.certified.warnings).cloned().collect();
        warnings.extend(accepted.outstanding.warning());
        if let Some(left @ 0..=1) = recoveries.remaining() {
            warnings.push(format!(
                "{} left: raise spec.bound_keypair.recovery.limit of token {name} before this device loses its certificate",
                if left == 1 { "one recovery is" } else { "no recovery is" }
            ));
        }
        self.store.commit(occasion.accepted(&accepted))?;
        let Accepted { request, grant, certified, .. } = accepted;
        let lacking = self.authority.now().set().bundles_after(request.bundle);
        Ok(JoinAnswer {
            kind: grant.kind,
            cluster: self.cluster.clone(),
            incarnation: inc,
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
    fn refuse(&self, refused: Refused, occasion: Occasion<'_>) -> Problem {
        let Refusal { problem, lock, caught } = &refused.refusal;
        // Stale challenges and failures of our own tell nothing about the device; it tries again.
        if matches!(problem.kind, ProblemType::ChallengeStale | ProblemType::ServerError) {
            return refused.refusal.problem;
        }
        let mut event = occasion.refused(&refused);
        let mut commit = Commit::default();
        if let Some(why) = lock {
            let id = match Id::random(&*self.random) {
                Ok(id) => id,
                Err(e) => return failed(&e),
            };
            let (change, locked) = occasion.lock(why, id);
            // The token is written too, so that a join that runs beside this one does not hold.
            let mut token = occasion.view.token.clone();
            if let Some(key) = caught {
                token.resource.status.bound_keypair.catch(*key);
            }
            let key = Key::new(Kind::Token, &token.resource.metadata.name);
            let token = Change { key, expected: Some(token.revision), to: Some(Resource::Token(token.resource)) };
            commit.policy = Some(occasion.view.policy);
            commit.changes = vec![token, change];
            commit.events = vec![locked];
        } else {
            let token = &occasion.view.token.resource.metadata.name;
            let proven = (refused.verified.is_some() && !is_of_stranger(problem.kind)).then_some(token.as_str());
            match self.throttle.admit(proven, &event, occasion.now) {
                None => return refused.refusal.problem,
                Some(0) => {}
                Some(unwritten) => event = event.with("refusals_not_written", unwritten),
            }
        }
        commit.events.insert(0, event);
        match self.store.commit(commit) {
            Ok(()) => refused.refusal.problem,
            Err(e) => e.into(),
        }
    }
}

/// A join that only has to be committed.
struct Accepted {
    request: JoinRequest,
    verified: Verified,
    grant: Grant,
    certified: Certified,
    outstanding: Outstanding,
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

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Conflict(_) => ProblemType::ChallengeStale.into(),
            StoreError::Failed(_) => failed(&e),
        }
    }
}

impl From<NoRandomness> for Problem {
    fn from(e: NoRandomness) -> Self {
        failed(&e)
    }
}

/// Whether a refusal came before any key of the token was proven.
fn is_of_stranger(kind: ProblemType) -> bool {
    matches!(kind, ProblemType::KeyNotProven | ProblemType::RegistrationRefused | ProblemType::TokenUnusable)
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

/// The instance whose certificate was shown, and its last step: kept in mode `insecure` alone.
fn instance_shown<'a>(verified: &Verified, view: &'a JoinView) -> Option<(Id, &'a LastStep)> {
    let id = verified.certificate.as_ref()?.holder.step.instance;
    let stored = view.instances.iter().find(|stored| stored.resource.metadata.name == id.to_string())?;
    let insecure = view.token.resource.spec.bound_keypair.recovery.mode == RecoveryMode::Insecure;
    Some((id, stored.resource.status.last_step.as_ref().filter(|_| insecure)?))
}

/// Messages of the locks on token, bot and instance: the one that goes on by itself, else the one of the last recovery.
fn locks_in_force(view: &JoinView, instance: Option<Id>, now: Timestamp) -> Vec<String> {
    let bound = view.token.resource.status.bound_keypair.step().map(|step| step.instance);
    let instance = instance.or(bound).map(|id| view.token.resource.instance(id));
    let meant = |lock: &&Lock| match &lock.spec.target {
        target @ (LockTarget::BotInstance(_) | LockTarget::Host(_)) => Some(target) == instance.as_ref(),
        LockTarget::Bot(_) | LockTarget::Token(_) => true,
    };
    view.locks.iter().filter(|lock| lock.in_force(now)).filter(meant).map(|lock| lock.spec.message.clone()).collect()
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
