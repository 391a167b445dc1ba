//! The server: the real challenge, verification, decision and effects on one token, with a store in memory. What operators do is as in
//! `auth/operator/`.

use std::collections::BTreeMap;
use std::time::Duration;

use boundkey::join::identity::{IdentitySubject, InstanceKind};
use boundkey::join::message::{ChallengeAnswer, IssuedCertificate, JoinAnswer};
use boundkey::join::server::answer::{Issued, Notices, Signed};
use boundkey::join::server::challenge::{Challenge, SealingKey};
use boundkey::join::server::decision::{Fresh, Grant, Refusal, decide, pace};
use boundkey::join::server::effects::{Effects, InstanceRecord, LockChange};
use boundkey::join::server::record::{Exemption, Recovery, Spec, Status};
use boundkey::join::server::request::{Cluster, Opened, ShownCertificate, Verified};
use boundkey::join::server::view::{InstanceView, LockInForce, TokenView};
use boundkey::join::{Id, JoinKind, ProblemType, RecoveryCode, RecoveryMode, Step, Thumbprint, base64url};
use boundkey::platform::time::{NoRandomness, Random, Timestamp};

use super::faults::Fault;
use super::holder::{IDENTITY_KEY, Request, named};
use super::medium::{public_key, sign};

pub const TOKEN: &str = "t";
const CLUSTER: &str = "c";
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// How far the clock goes at once.
pub const WHILE: Duration = Duration::from_secs(40 * 60);
/// A certificate lasts a little longer than that, so that it may run out while its request is under way.
const TTL: Duration = Duration::from_secs(40 * 60 + 3);
/// An exemption lasts for less than twice that.
const EXEMPTION: Duration = Duration::from_secs(3600);
/// The pool's key that signs join states.
const SIGNER: u8 = 1;
/// Steps that are left of the pace at first, where it is explored.
pub const ALLOWED: u8 = 2;

/// An operator's own lock.
pub const OPERATOR: &str = "an operator's";
/// The lock that stands while a recovery code is pending.
pub const FOR_CODE: &str = "until the code comes";
/// The lock for two holders of one key.
pub const TWO_HOLDERS: &str = "two holders";

/// All that a join is decided on.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    pub now: Timestamp,
    pub spec: Spec,
    pub status: Status,
    pub locks: Vec<&'static str>,
    /// Writes of the token so far.
    pub revision: u64,
    /// Restores so far: the epoch of the database, and what tells names given since from those given before.
    pub restores: u8,
    /// Resets so far: the life of the token.
    pub resets: u8,
    /// Last steps of instances, as mode `insecure` keeps them.
    pub instances: BTreeMap<Id, InstanceView>,
    /// Whether the pace is looked at.
    pub paced: bool,
    /// Of the recovery code pending: which key of the pool it names. The rules look at this, the server does not.
    pub code: u8,
}

/// What the verification of a request depends on, beside the request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifiesBy {
    bound: Option<Thumbprint>,
    has_secret: bool,
    resets: u8,
    is_insecure: bool,
    is_revision: bool,
    is_anchor: bool,
    is_free: bool,
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
    pub by_code: bool,
    pub followed: bool,
    pub answer: JoinAnswer,
}

/// The views of a server that are not its own fields.
pub struct Parts {
    locks: Vec<LockInForce>,
    instances: Vec<InstanceView>,
}

impl Server {
    pub fn new(limit: u32, mode: RecoveryMode, paced: bool) -> Self {
        let spec = Spec { recovery: Recovery { limit, mode }, ..Spec::default() };
        let spent = NOW.millis() + (pace::BURST - u64::from(ALLOWED)) * pace::INTERVAL_MS;
        let status = Status { pace_ms: paced.then_some(spent), ..Self::life(0) };
        Self {
            now: NOW,
            spec,
            status,
            locks: vec![],
            revision: 1,
            restores: 0,
            resets: 0,
            instances: BTreeMap::new(),
            paced,
            code: 0,
        }
    }

    fn life(resets: u8) -> Status {
        Status { incarnation: Some(Id([9 + resets; 16])), registration_secret: Some(secret(resets)), ..Status::default() }
    }

    /// What tells this server from others.
    pub fn content(&self) -> Vec<u8> {
        let instances: Vec<_> = self.instances.values().map(|known| (known.id, known.revision, &known.last_step)).collect();
        let counters = (self.now.millis(), self.revision, self.restores, self.resets, self.code);
        serde_json::to_vec(&(&self.spec, &self.status, &self.locks, counters, instances)).expect("plain data")
    }

    pub fn is_insecure(&self) -> bool {
        self.spec.recovery.mode == RecoveryMode::Insecure
    }

    /// The bound key.
    pub fn bound(&self) -> Option<Thumbprint> {
        self.status.bound_public_key.as_ref().map(|key| Thumbprint::of(&key.0))
    }

    /// Whether a recovery code is pending.
    pub fn awaits_code(&self) -> bool {
        self.view(&self.parts()).pending_code(self.now).is_some()
    }

    /// The answer to a device that names `instance`, but for times that it does not need.
    pub fn challenge(&self, instance: Option<Id>, fault: Option<Fault>) -> ChallengeAnswer {
        let parts = self.parts();
        let view = self.view(&parts);
        let challenge = Challenge::new(&view, instance, self.now);
        let sealed = sealing().seal(TOKEN, self.epoch(fault), challenge, &NoSalt).expect("no randomness is asked for");
        let answer = challenge.answer(&view, sealed, NOW).expect("it has an incarnation");
        ChallengeAnswer { algorithms: vec!["ES256".into()], expires: NOW, ..answer }
    }

    /// What `request` was promised, if its challenge holds here and now.
    pub fn opened(&self, request: &Request, fault: Option<Fault>) -> Result<Challenge, ProblemType> {
        let opened = sealing().open(TOKEN, self.epoch(fault), &request.challenge.challenge, self.now);
        opened.map_err(|problem| problem.kind)
    }

    /// What of the server its verification of a request looks at.
    pub fn verifies_by(&self, request: &Request, challenge: Challenge) -> VerifiesBy {
        let parts = self.parts();
        let anchor = self.view(&parts).anchor(request.instance).revision;
        VerifiesBy {
            bound: self.bound(),
            has_secret: self.status.registration_secret.is_some(),
            resets: self.resets,
            is_insecure: self.is_insecure(),
            is_revision: self.revision == challenge.anchor.revision,
            is_anchor: anchor == challenge.anchor.revision,
            is_free: anchor == 0,
        }
    }

    pub fn verified(&self, request: &Request, challenge: Challenge) -> Result<Verified, Refusal> {
        let certificate = |der: &[u8]| {
            let (step, not_after, incarnation, key): (Step, Timestamp, Id, u8) =
                serde_json::from_slice(der).map_err(|e| e.to_string())?;
            let kind = InstanceKind::Bot;
            let subject = IdentitySubject { cluster: CLUSTER.into(), token: TOKEN.into(), incarnation, kind, step };
            Ok(ShownCertificate { subject, not_after, key: public_key(key) })
        };
        let cluster = Cluster {
            name: CLUSTER,
            join_state_keys: &[public_key(SIGNER)],
            server_names: &["localhost".to_owned()],
            certificate: &certificate,
        };
        let parts = self.parts();
        Ok(Opened::new(&request.jws, &cluster, self.view(&parts), challenge).verify()?.1)
    }

    /// Decides, and commits.
    pub fn take(&self, verified: &Result<Verified, Refusal>, fault: Option<Fault>) -> Verdict {
        let parts = self.parts();
        let view = self.view(&parts);
        let decided = match verified {
            Ok(verified) => self.decided(verified, fault),
            Err(refusal) => Err(refusal.clone()),
        };
        let (effects, outcome) = match (decided, verified) {
            (Ok(grant), Ok(verified)) => {
                let (kind, by_code, followed) = (grant.kind, grant.by_code, grant.rolled_forward.is_some());
                let exempt = grant.exemption.is_some_and(|used| used.paid);
                let issued = issue(grant, &view);
                let effects = issued.effects(&view, verified);
                (effects, Ok(Granted { kind, exempt, by_code, followed, answer: issued.answer(Notices::default(), NOW) }))
            }
            (Err(refusal), verified) => (refusal.effects(&view, verified.as_ref().ok()), Err(refusal.problem.kind)),
            (Ok(_), Err(_)) => unreachable!("what is not verified is not decided"),
        };
        let mut server = self.clone();
        server.commit(effects);
        Verdict { server, outcome }
    }

    /// The store: what stands in `effects` is so from now on, and nothing else changes.
    fn commit(&mut self, effects: Effects) {
        if let Some(record) = effects.token {
            self.status = record.status;
            // Where the pace is not explored all steps fit in its burst, and it would make a state of every moment.
            self.status.pace_ms = self.status.pace_ms.filter(|until| self.paced && *until > self.now.millis());
            self.revision += 1;
        }
        if let Some(InstanceRecord { id, last_step, .. }) = effects.instance {
            let before = self.instances.remove(&id).map_or(INSTANCES, |known| known.revision);
            self.instances.extend(last_step.map(|last_step| (id, InstanceView { id, revision: before + 1, last_step })));
        }
        match effects.locks {
            LockChange::Add(_) => self.locks.push(TWO_HOLDERS),
            LockChange::LiftOwn => self.locks.retain(|lock| !is_own(lock)),
            LockChange::None => {}
        }
    }

    fn decided(&self, verified: &Verified, fault: Option<Fault>) -> Result<Grant, Refusal> {
        let (mut server, mut verified) = (self.clone(), verified.clone());
        if let Some(fault) = fault {
            fault.before(&mut server, &mut verified)?;
        }
        let instance = named(&[&verified.attempt.0[..], &self.status.recovery_count.to_be_bytes(), &[self.restores]].concat());
        let fresh = Fresh { instance, now: self.now, not_after: self.now.plus(TTL) };
        let parts = server.parts();
        let mut grant = decide(&server.view(&parts), &verified, fresh)?;
        if let Some(fault) = fault {
            fault.after(self, &mut grant)?;
        }
        Ok(grant)
    }

    fn epoch(&self, fault: Option<Fault>) -> Id {
        Id([if fault == Some(Fault::NoEpoch) { 0 } else { self.restores }; 16])
    }

    fn parts(&self) -> Parts {
        let lock =
            |message: &&str| LockInForce { instance: None, opened_by_code: is_own(message), message: (*message).to_owned() };
        Parts { locks: self.locks.iter().map(lock).collect(), instances: self.instances.values().cloned().collect() }
    }

    fn view<'a>(&'a self, parts: &'a Parts) -> TokenView<'a> {
        TokenView {
            name: TOKEN,
            kind: InstanceKind::Bot,
            spec: &self.spec,
            status: &self.status,
            trust_bundle: None,
            revision: self.revision,
            epoch: self.epoch(None),
            locks: &parts.locks,
            instances: &parts.instances,
        }
    }
}

/// What operators do.
impl Server {
    pub fn rotate(&self) -> Self {
        let mut server = self.written();
        server.spec.rotate_after = Some(server.now);
        server
    }

    pub fn with_recovery(&self, recovery: Recovery) -> Self {
        Self { spec: Spec { recovery, ..self.spec.clone() }, revision: self.revision + 1, ..self.clone() }
    }

    /// As `boundkeyctl exempt` leaves the token, with the code of the pool's key `code` or without one.
    pub fn exempt(&self, code: Option<u8>, fault: Option<Fault>) -> Self {
        let mut server = self.written();
        if code.is_none() {
            server.locks.retain(|lock| !is_own(lock));
        } else if !server.locks.iter().any(|lock| is_own(lock)) {
            server.locks.push(FOR_CODE);
        }
        if !self.is_insecure() && fault != Some(Fault::NoRotationOrdered) {
            server.spec.rotate_after = Some(server.now);
        }
        let key = code.map(|code| RecoveryCode::of(&Thumbprint::of(&public_key(code))));
        let expires = server.now.plus(EXEMPTION);
        server.status.exemption = Some(Exemption { recoveries: 1, waive_join_state: true, expires, key, reason: None });
        server.code = code.unwrap_or_default();
        server
    }

    /// Whether `exempt --key` takes the code of the pool's key `code`: the token is bound, shared by no hosts, and was never bound to
    /// that key.
    pub fn takes_code(&self, code: u8) -> bool {
        let key = Thumbprint::of(&public_key(code));
        let was_bound = self.bound() == Some(key) || self.status.retired_keys.contains(&key);
        self.bound().is_some() && !self.is_insecure() && !was_bound
    }

    /// As `exempt --cancel` does; `None`: there is none.
    pub fn without_exemption(&self) -> Option<Self> {
        let mut server = self.written();
        server.status.exemption.take()?;
        server.code = 0;
        Some(server)
    }

    /// As `reset` leaves the token.
    pub fn reset(&self) -> Self {
        let resets = self.resets + 1;
        Self { resets, status: Self::life(resets), code: 0, ..self.written() }
    }

    pub fn locked(&self, with: &'static str) -> Self {
        let mut server = self.clone();
        server.locks.push(with);
        server
    }

    pub fn unlocked(&self, of: &str) -> Self {
        let mut server = self.clone();
        server.locks.retain(|lock| *lock != of);
        server
    }

    /// A command that writes the token, a second after what was before: what comes at the same moment is the caller's matter.
    fn written(&self) -> Self {
        Self { now: self.now.plus(Duration::from_secs(1)), revision: self.revision + 1, ..self.clone() }
    }

    pub fn later(&self, by: Duration) -> Self {
        let mut server = self.clone();
        server.now = server.now.plus(by);
        server.status.pace_ms = server.status.pace_ms.filter(|until| *until > server.now.millis());
        server
    }

    /// This server restored from `backup`; `clock` tells what time it then is.
    pub fn restored(&self, backup: &Self, clock: impl FnOnce(Timestamp) -> Timestamp) -> Self {
        Self { now: clock(self.now), restores: self.restores + 1, ..backup.clone() }
    }
}

/// Signs for `grant`. A certificate is the JSON of what it says.
fn issue(grant: Grant, view: &TokenView<'_>) -> Issued {
    let claims = grant.claims(CLUSTER, view).expect("it has an incarnation");
    let der = serde_json::to_vec(&(grant.step, grant.not_after, claims.inc, IDENTITY_KEY)).expect("plain data");
    let identity = IssuedCertificate {
        certificate: base64url::encode(der),
        serial: "1".into(),
        not_before: NOW,
        not_after: grant.not_after,
    };
    let join_state = claims.sign(&public_key(SIGNER), |message| Ok(sign(SIGNER, message))).expect("signed");
    Issued::new(grant, claims, Signed { join_state, identity, outputs: vec![] }, view)
}

/// Revisions of instances are counted from here: in life all resources share one counter, and no number comes twice.
const INSTANCES: u64 = 1 << 32;

/// The registration secret after so many resets.
pub fn secret(resets: u8) -> String {
    format!("s{resets}")
}

/// Whether the server made the lock.
fn is_own(lock: &str) -> bool {
    lock != OPERATOR
}

fn sealing() -> SealingKey {
    SealingKey::new(&[3; 32])
}

/// The same challenge is the same text, so that the same situation is the same state.
struct NoSalt;

impl Random for NoSalt {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        bytes.fill(0);
        Ok(())
    }
}
