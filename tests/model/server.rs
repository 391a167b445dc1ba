//! The server: the real verification and the real decision on one token.

use std::collections::BTreeMap;
use std::time::Duration;

use boundkey::join::message::{ChallengeAnswer, IssuedCertificate, JoinAnswer};
use boundkey::join::server::challenge::Challenge;
use boundkey::join::server::decision::{Fresh, Grant, Refusal, decide};
use boundkey::join::server::record::{Exemption, LastStep, Recovery, Spec, Status, rotation_due};
use boundkey::join::server::request::{Cluster, Holder, Opened, ShownCertificate, Verified};
use boundkey::join::server::view::{InstanceView, LockInForce, TokenView};
use boundkey::join::{Id, JoinKind, ProblemType, RecoveryMode, Step, Thumbprint, base64url};
use boundkey::time::Timestamp;

use super::holder::{IDENTITY_KEY, Request, named};
use super::medium::{public_key, sign};

pub const TOKEN: &str = "t";
pub const SECRET: &str = "s";
const CLUSTER: &str = "c";
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const TTL: Duration = Duration::from_secs(3600);
/// The pool's key that signs join states.
const SIGNER: u8 = 1;

/// Broken decisions, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    Real,
    /// Knows no attempt again: a lost answer looks like a second holder.
    ForgetsAttempts,
    /// Follows any newer join state, whenever it was issued.
    FollowsAnyNewer,
    /// Takes the counters of a join state for all there is to compare.
    ComparesCountersOnly,
    /// Does not look at the limit.
    IgnoresLimit,
    /// Does not look at locks.
    IgnoresLocks,
}

/// All that a join is decided on.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    pub now: Timestamp,
    pub spec: Spec,
    pub status: Status,
    pub locks: Vec<String>,
    /// Restores so far: what a restored server names, it names anew.
    pub restores: u8,
    /// Last steps of instances, as mode `insecure` keeps them.
    pub instances: BTreeMap<Id, LastStep>,
}

/// What the verification of a request depends on, beside the request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifiesBy {
    bound: Option<Thumbprint>,
    has_secret: bool,
}

/// What became of a request.
pub struct Verdict {
    pub server: Server,
    pub outcome: Result<Granted, ProblemType>,
}

/// A grant, with the answer that tells of it.
pub struct Granted {
    pub kind: JoinKind,
    pub exempt: bool,
    pub followed: bool,
    pub answer: JoinAnswer,
}

impl Server {
    pub fn new(limit: u32, mode: RecoveryMode) -> Self {
        let spec = Spec { recovery: Recovery { limit, mode }, ..Spec::default() };
        let status = Status { incarnation: Some(Id([9; 16])), registration_secret: Some(SECRET.into()), ..Status::default() };
        Self { now: NOW, spec, status, locks: vec![], restores: 0, instances: BTreeMap::new() }
    }

    /// What tells this server from others.
    pub fn content(&self) -> Vec<u8> {
        let instances: Vec<_> = self.instances.iter().collect();
        serde_json::to_vec(&(self.now, &self.spec, &self.status, &self.locks, self.restores, instances)).expect("plain data")
    }

    /// The challenge, but for seal and times: both are the caller's matter, which knows what is stale.
    pub fn challenge(&self) -> ChallengeAnswer {
        ChallengeAnswer {
            challenge: "nonce".into(),
            key: self.status.bound_public_key.as_ref().map(|key| Thumbprint::of(&key.0)),
            incarnation: self.status.incarnation.expect("set"),
            rotate: rotation_due(&self.spec, &self.status, self.now),
            algorithms: vec!["ES256".into()],
            expires: NOW,
            time: NOW,
        }
    }

    /// What of the server its verification of a request looks at.
    pub fn verifies_by(&self) -> VerifiesBy {
        let status = &self.status;
        VerifiesBy {
            bound: status.bound_public_key.as_ref().map(|key| Thumbprint::of(&key.0)),
            has_secret: status.registration_secret.is_some(),
        }
    }

    /// Decides, and commits.
    pub fn take(&self, verified: Result<Verified, Refusal>, decision: Decision) -> Verdict {
        match verified.and_then(|verified| Ok((self.decided(&verified, decision)?, verified))) {
            Ok((grant, verified)) => {
                let answer = self.answer(&grant);
                let granted = Granted {
                    kind: grant.kind,
                    exempt: grant.exemption.is_some_and(|used| used.paid),
                    followed: grant.rolled_forward.is_some(),
                    answer,
                };
                let mut server = self.clone();
                server.granted(grant, &verified);
                Verdict { server, outcome: Ok(granted) }
            }
            Err(refusal) => {
                let mut server = self.clone();
                server.refused(&refusal);
                Verdict { server, outcome: Err(refusal.problem.kind) }
            }
        }
    }

    /// As `auth/joins/commit.rs` leaves token and instance.
    fn granted(&mut self, grant: Grant, verified: &Verified) {
        self.instances.remove(&grant.step.instance);
        if self.spec.recovery.mode == RecoveryMode::Insecure {
            self.instances.insert(grant.step.instance, grant.instance_step(verified));
        }
        self.status = grant.status;
    }

    fn refused(&mut self, refusal: &Refusal) {
        self.locks.extend(refusal.lock.as_ref().map(|_| "two holders".to_owned()));
    }

    pub fn verified(&self, request: &Request) -> Result<Verified, Refusal> {
        let certificate = |der: &[u8]| {
            let (step, not_after, key): (Step, Timestamp, u8) = serde_json::from_slice(der).map_err(|e| e.to_string())?;
            let incarnation = self.status.incarnation.expect("set");
            let holder = Holder { cluster: CLUSTER.into(), token: TOKEN.into(), incarnation, host: false, step };
            Ok(ShownCertificate { holder, not_after, key: public_key(key) })
        };
        let cluster = Cluster {
            name: CLUSTER,
            join_state_keys: &[public_key(SIGNER)],
            server_names: &["localhost".to_owned()],
            certificate: &certificate,
        };
        let view = self.view(&self.spec, &self.status, &[], &[]);
        let challenge = Challenge { rotate: request.challenge.rotate, expires: NOW, anchor: view.anchor(None) };
        let mut verified = Opened::new(&request.jws, &cluster, view, challenge).verify()?.1;
        verified.stale = false;
        Ok(verified)
    }

    fn view<'a>(
        &self,
        spec: &'a Spec,
        status: &'a Status,
        locks: &'a [LockInForce],
        instances: &'a [InstanceView],
    ) -> TokenView<'a> {
        let epoch = Id([self.restores; 16]);
        TokenView { name: TOKEN, for_bot: true, spec, status, revision: 1, epoch, locks, instances }
    }

    fn decided(&self, verified: &Verified, decision: Decision) -> Result<Grant, Refusal> {
        let (mut status, mut verified, mut locks) = (self.status.clone(), verified.clone(), self.locks.clone());
        let mut spec = self.spec.clone();
        let claims = verified.presented.as_ref().and_then(|presented| presented.claims.clone().ok());
        match (decision, &claims, &mut status.last_step) {
            (Decision::ForgetsAttempts, ..) => verified.attempt = named(&[&verified.attempt.0[..], &self.content()].concat()),
            (Decision::IgnoresLimit, ..) => spec.recovery.limit = u32::MAX,
            (Decision::IgnoresLocks, ..) => locks.clear(),
            (Decision::FollowsAnyNewer, Some(claims), Some(last)) => {
                let current = self.status.step().expect("there is a last step");
                if claims.step.is_after(&current) {
                    last.issued_at_ms = claims.iat_ms - 1;
                }
            }
            (Decision::ComparesCountersOnly, Some(claims), Some(last)) if Some(claims.step) == self.status.step() => {
                (last.attempt, last.issued_at_ms) = (claims.jti, claims.iat_ms);
            }
            _ => {}
        }
        let instance = named(&[&verified.attempt.0[..], &self.status.recovery_count.to_be_bytes(), &[self.restores]].concat());
        let fresh = Fresh { instance, now: self.now, not_after: self.now.plus(TTL) };
        let in_force = |message| LockInForce { instance: None, opened_by_code: false, message };
        let locks: Vec<_> = locks.into_iter().map(in_force).collect();
        let own = |(id, last): (&Id, &LastStep)| InstanceView { id: *id, revision: 1, last_step: last.clone() };
        let instances: Vec<_> = self.instances.iter().map(own).collect();
        let mut grant = decide(&self.view(&spec, &status, &locks, &instances), &verified, fresh)?;
        // The pace is wide enough for all that is explored, and would make a state of every moment.
        grant.status.pace_ms = None;
        Ok(grant)
    }

    fn answer(&self, grant: &Grant) -> JoinAnswer {
        let inc = self.status.incarnation.expect("set");
        let claims = grant.claims(CLUSTER, TOKEN, true, inc);
        let der = serde_json::to_vec(&(grant.step, grant.not_after, IDENTITY_KEY)).expect("plain data");
        JoinAnswer {
            kind: grant.kind,
            cluster: CLUSTER.into(),
            incarnation: inc,
            step: grant.step,
            key: claims.jkt,
            join_state: claims.sign(&public_key(SIGNER), |message| Ok(sign(SIGNER, message))).expect("signed"),
            recoveries: grant.status.recoveries(&self.spec),
            identity: IssuedCertificate {
                certificate: base64url::encode(der),
                serial: "1".into(),
                not_before: NOW,
                not_after: grant.not_after,
            },
            outputs: vec![],
            bundle: None,
            warnings: vec![],
            time: NOW,
        }
    }

    pub fn rotate(&self) -> Self {
        // A moment later: an order to rotate counts once.
        let now = self.now.plus(Duration::from_secs(1));
        let mut spec = self.spec.clone();
        spec.rotate_after = Some(now);
        Self { now, spec, ..self.clone() }
    }

    pub fn with_recovery(&self, recovery: Recovery) -> Self {
        Self { spec: Spec { recovery, ..self.spec.clone() }, ..self.clone() }
    }

    /// As `boundkeyctl exempt` leaves the token.
    pub fn exempt(&self) -> Self {
        let expires = self.now.plus(Duration::from_secs(24 * 3600));
        let exemption = Some(Exemption { recoveries: 1, waive_join_state: true, expires, key: None, reason: None });
        Self { locks: vec![], status: Status { exemption, ..self.status.clone() }, ..self.clone() }
    }

    /// This server restored from `backup`; `clock` tells what time it then is.
    pub fn restored(&self, backup: &Self, clock: impl FnOnce(Timestamp) -> Timestamp) -> Self {
        Self { now: clock(self.now), restores: self.restores + 1, ..backup.clone() }
    }
}
