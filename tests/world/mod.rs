//! Both sides of the protocol without sockets, disks and X.509: the real messages, signatures, client steps and decision.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use boundkey::join::device::answer::{self, AnswerError};
use boundkey::join::device::request::{Identity, Parts};
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::identity::InstanceKind;
use boundkey::join::message::{ChallengeAnswer, Heartbeat, IssuedCertificate, JoinAnswer};
use boundkey::join::server::answer::{Issued, Notices, Signed};
use boundkey::join::server::challenge::{Challenge, SealingKey};
use boundkey::join::server::decision::{Fresh, Grant, decide};
use boundkey::join::server::effects::{Effects, LockChange};
use boundkey::join::server::record::{Exemption, Spec, Status};
use boundkey::join::server::request::{Cluster, Opened, ShownCertificate};
use boundkey::join::server::view::{InstanceView, LockInForce, TokenView};
use boundkey::join::{Id, Jws, Problem, RecoveryCode, RecoveryMode, Thumbprint, base64url};
use boundkey::platform::time::{System, Timestamp};
use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Capabilities, Error, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const TTL: Duration = Duration::from_secs(3600);
pub const URL: &str = "https://localhost:3025/v1/join";
const CLUSTER: &str = "test.example";
const TOKEN: &str = "gateway";

/// Keys in memory, cheap to copy: a thief's copy is a clone.
#[derive(Default)]
pub struct Keys(Mutex<BTreeMap<KeyId, String>>);

impl Clone for Keys {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.all().clone()))
    }
}

impl Keys {
    fn all(&self) -> MutexGuard<'_, BTreeMap<KeyId, String>> {
        self.0.lock().expect("no thread panicked with it")
    }

    fn open(&self, id: &KeyId) -> Result<PrivateKey, Error> {
        let all = self.all();
        let pem = all.get(id).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))?;
        PrivateKey::from_pem(pem).map_err(|why| Error::new(ErrorKind::Corrupt, why))
    }
}

impl KeyStore for Keys {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        let algorithms = [Algorithm::Ed25519].into_iter().collect();
        Ok(Capabilities { algorithms, hardware: false, place: heapless::String::new() })
    }

    fn generate(&self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        if self.all().contains_key(id) {
            return Err(Error::new(ErrorKind::Exists, "taken"));
        }
        let key = PrivateKey::generate(algorithm)?;
        self.all().insert(id.clone(), key.to_pem()?.to_string());
        key.public_key()
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        self.open(id)?.public_key()
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.open(id)?.sign(message)
    }

    fn list(&self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        self.all().keys().for_each(each);
        Ok(())
    }

    fn delete(&self, id: &KeyId) -> Result<(), Error> {
        self.all().remove(id).map(drop).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))
    }
}

/// The server: one token, and what it was decided on.
#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    /// What the token's instances are.
    pub kind: InstanceKind,
    pub spec: Spec,
    pub status: Status,
    pub locks: Vec<LockInForce>,
    pub revision: u64,
    /// The epoch of the database: another after a restore.
    epoch: u8,
    /// What was decided, oldest first.
    pub grants: Vec<Grant>,
    /// Instances with steps of their own, as mode `insecure` wants them.
    instances: Vec<InstanceView>,
    certificates: Vec<ShownCertificate>,
    signer: String,
    ids: u8,
}

impl World {
    /// A token with the secret `s` that allows `limit` recoveries.
    pub fn new(limit: u32) -> Self {
        let mut spec = Spec::default();
        spec.recovery.limit = limit;
        let status = Status { incarnation: Some(Id([9; 16])), registration_secret: Some("s".into()), ..Status::default() };
        let signer = PrivateKey::generate(Algorithm::Ed25519).and_then(|key| Ok(key.to_pem()?.to_string())).expect("a key");
        Self {
            now: NOW,
            kind: InstanceKind::Bot,
            spec,
            status,
            locks: vec![],
            revision: 1,
            epoch: 1,
            grants: vec![],
            instances: vec![],
            certificates: vec![],
            signer,
            ids: 0,
        }
    }

    /// The server restored from this copy of it; its clock goes on, and so do the certificates that others hold.
    pub fn restored(&self, from: &Self) -> Self {
        let certificates = self.certificates.clone();
        Self { now: self.now, certificates, ids: self.ids, epoch: self.epoch + 1, ..from.clone() }
    }

    pub fn later(&mut self, by: Duration) {
        self.now = self.now.plus(by);
    }

    pub fn key(&self) -> PublicKey {
        self.status.bound_public_key.clone().expect("a bound key").0
    }

    fn signer(&self) -> PrivateKey {
        PrivateKey::from_pem(&self.signer).expect("our own")
    }

    fn sealing() -> SealingKey {
        SealingKey::new(&[3; 32])
    }

    fn view(&self) -> TokenView<'_> {
        TokenView {
            name: TOKEN,
            kind: self.kind,
            spec: &self.spec,
            status: &self.status,
            trust_bundle: None,
            revision: self.revision,
            epoch: Id([self.epoch; 16]),
            locks: &self.locks,
            instances: &self.instances,
        }
    }

    /// A challenge as a device gets it that names no instance.
    pub fn challenge(&self) -> ChallengeAnswer {
        self.challenge_for(None)
    }

    pub fn challenge_for(&self, instance: Option<Id>) -> ChallengeAnswer {
        let view = self.view();
        let challenge = Challenge::new(&view, instance, self.now);
        let sealed = Self::sealing().seal(TOKEN, view.epoch, challenge, &System).expect("randomness");
        challenge.answer(&view, sealed, self.now).expect("it has an incarnation")
    }

    /// Takes a request as it comes off the wire, and commits what follows from it.
    pub fn join(&mut self, jws: &Jws) -> Result<JoinAnswer, Problem> {
        self.ids += 1;
        let fresh = Fresh { instance: Id([self.ids; 16]), now: self.now, not_after: self.now.plus(TTL) };
        let keys = [self.signer().public_key().expect("a key")];
        let certificate = |der: &[u8]| {
            let index = usize::from_be_bytes(der.try_into().map_err(|_| "not one of ours")?);
            self.certificates.get(index).cloned().ok_or_else(|| "not one of ours".to_owned())
        };
        let cluster =
            Cluster { name: CLUSTER, join_state_keys: &keys, server_names: &["localhost".to_owned()], certificate: &certificate };
        let (request, verified) = Opened::open(jws, &Self::sealing(), &cluster, self.view(), self.now)?.verify()?;
        let grant = match decide(&self.view(), &verified, fresh) {
            Ok(grant) => grant,
            Err(refusal) => {
                let effects = refusal.effects(&self.view(), Some(&verified));
                self.commit(effects);
                return Err(refusal.problem);
            }
        };
        self.grants.push(grant.clone());
        let issued = self.sign(grant, &request.csr);
        let effects = issued.effects(&self.view(), &verified);
        self.commit(effects);
        Ok(issued.answer(Notices::default(), self.now))
    }

    /// The world's certificate request is the key itself, and its certificate the place of what it says in a list.
    fn sign(&mut self, grant: Grant, csr: &str) -> Issued {
        let claims = grant.claims(CLUSTER, &self.view()).expect("it has an incarnation");
        let key = base64url::decode(csr).expect("our own");
        let key = PublicKey::new(Algorithm::EcdsaP256, &key).expect("our own");
        let identity = IssuedCertificate {
            certificate: base64url::encode(self.certificates.len().to_be_bytes()),
            serial: "1".into(),
            not_before: self.now,
            not_after: grant.not_after,
        };
        self.certificates.push(ShownCertificate { subject: claims.subject(), not_after: grant.not_after, key });
        let signer = self.signer();
        let public = signer.public_key().expect("a key");
        let join_state = claims.sign(&public, |message| signer.sign(message)).expect("signed");
        Issued::new(grant, claims, Signed { join_state, identity, outputs: vec![] }, &self.view())
    }

    /// The store: what stands in `effects` is so from now on, and nothing else changes.
    fn commit(&mut self, effects: Effects) {
        if let Some(record) = effects.token {
            self.status = record.status;
            self.revision += 1;
        }
        if let Some(record) = effects.instance {
            let before = self.instances.iter().position(|known| known.id == record.id).map(|at| self.instances.remove(at));
            let revision = before.map_or(1, |known| known.revision + 1);
            self.instances.extend(record.last_step.map(|last_step| InstanceView { id: record.id, revision, last_step }));
        }
        match effects.locks {
            LockChange::Add(message) => self.locks.push(LockInForce { instance: None, opened_by_code: true, message }),
            LockChange::LiftOwn => self.locks.retain(|lock| !lock.opened_by_code),
            LockChange::None => {}
        }
    }

    /// Puts on a lock, as an operator does.
    pub fn lock(&mut self, message: &str) {
        self.locks.push(LockInForce { instance: None, opened_by_code: false, message: message.into() });
    }

    /// Puts on a lock on one instance.
    pub fn lock_instance(&mut self, instance: Id, message: &str) {
        self.locks.push(LockInForce { instance: Some(instance), opened_by_code: false, message: message.into() });
    }

    /// As `boundkeyctl exempt` leaves the token, for `recoveries` and with `code`.
    pub fn exempt(&mut self, recoveries: u32, code: Option<RecoveryCode>) {
        let own = |lock: &LockInForce| lock.opened_by_code;
        if code.is_none() {
            self.locks.retain(|lock| !own(lock));
        } else if !self.locks.iter().any(own) {
            self.locks.push(LockInForce { instance: None, opened_by_code: true, message: "until the code comes".into() });
        }
        let expires = self.now.plus(TTL);
        self.status.exemption = Some(Exemption { recoveries, waive_join_state: true, expires, key: code, reason: None });
        if self.spec.recovery.mode != RecoveryMode::Insecure {
            self.spec.rotate_after = Some(self.now);
        }
        self.revision += 1;
    }

    /// Takes the locks away, as an operator does.
    pub fn unlock(&mut self) {
        self.locks.clear();
        self.revision += 1;
    }

    /// Whether the token is locked.
    pub fn locked(&self) -> bool {
        !self.locks.is_empty()
    }
}

/// A device: what it has on its medium.
#[derive(Clone, Default)]
pub struct Device {
    pub memory: Memory,
    pub keys: Keys,
    pub identity: Option<(Vec<u8>, String)>,
    pub secret: Option<String>,
    attempts: u8,
}

/// A request on its way, with what the device still needs when the answer comes.
#[derive(Clone)]
pub struct InFlight {
    pub jws: Jws,
    pub challenge: ChallengeAnswer,
    identity_key: String,
}

impl Device {
    /// A device that knows the registration secret; `seed` tells its attempts from those of others.
    pub fn new(seed: u8) -> Self {
        Self { memory: Memory::default().for_token(TOKEN), secret: Some("s".into()), attempts: seed, ..Self::default() }
    }

    /// A host that has the key and nothing else, as with a static key.
    pub fn host(&self, seed: u8) -> Self {
        let mut host = Self { keys: self.keys.clone(), attempts: seed, ..Self::new(seed) };
        host.memory.keys = self.memory.keys.iter().map(|key| KnownKey { bound: false, ..key.clone() }).collect();
        host
    }

    /// Another holder of everything the device has; only its future attempts are its own.
    pub fn copy(&self) -> Self {
        Self { attempts: self.attempts.wrapping_add(128), ..self.clone() }
    }

    /// Everything up to the moment when the request leaves. What it needs later is on the medium by then.
    pub fn prepare(&mut self, challenge: &ChallengeAnswer) -> Result<InFlight, String> {
        let needed = Start::new(&self.memory, TOKEN).challenged(challenge.clone()).map_err(|e| format!("{e:?}"))?;
        if let Some(algorithm) = needed.new_key(&[Algorithm::Ed25519]).map_err(|e| format!("{e:?}"))? {
            let name = self.memory.next_key_id();
            let public = self.keys.generate(&name.parse().expect("a name"), algorithm).map_err(|e| e.to_string())?;
            let thumbprint = Thumbprint::of(&public);
            self.memory.add_key(KnownKey { id: name, thumbprint, algorithm: algorithm.into(), bound: false }).expect("room");
        }
        if self.memory.attempt.is_none() {
            self.attempts += 1;
            self.memory.attempt = Some(Id([self.attempts; 16]));
        }
        let memory = self.memory.clone();
        let challenged = Start::new(&memory, TOKEN).challenged(challenge.clone()).map_err(|e| format!("{e:?}"))?;
        let key = PrivateKey::generate(Algorithm::EcdsaP256).expect("a key");
        let identity = self.identity.clone();
        let old = identity.as_ref().map(|(_, pem)| PrivateKey::from_pem(pem).expect("our own"));
        let sign = |message: &[u8]| old.as_ref().expect("an identity").sign(message);
        let parts = Parts {
            url: URL,
            attempt: memory.attempt.expect("set"),
            csr: base64url::encode(key.public_key().expect("a key").as_bytes()),
            ttl: None,
            outputs: vec![],
            bundle: None,
            heartbeat: Heartbeat::default(),
            secret: self.secret.as_deref(),
            identity: identity.as_ref().map(|(certificate, _)| Identity { certificate, sign: &sign }),
        };
        let prepared = challenged.prepare(&self.keys, parts).map_err(|e| e.to_string())?;
        let identity_key = key.to_pem().expect("PEM").to_string();
        Ok(InFlight { jws: prepared.request().clone(), challenge: challenge.clone(), identity_key })
    }

    /// Takes an answer; what is durable afterwards is the identity and the memory.
    pub fn receive(&mut self, sent: &InFlight, answer: JoinAnswer) {
        let answer::Issued { memory, certificate, .. } = self.judge(sent, answer).expect("a good answer");
        self.identity = Some((certificate, sent.identity_key.clone()));
        self.memory = memory;
    }

    /// What the real client makes of an answer. Its states are consumed by a join; here they are made anew to hand the answer over.
    pub fn judge(&mut self, sent: &InFlight, answer: JoinAnswer) -> Result<answer::Issued, AnswerError> {
        let challenged = Start::new(&self.memory, TOKEN).challenged(sent.challenge.clone()).expect("as before");
        let parts = Parts {
            url: URL,
            attempt: self.memory.attempt.expect("in flight"),
            csr: String::new(),
            ttl: None,
            outputs: vec![],
            bundle: None,
            heartbeat: Heartbeat::default(),
            secret: None,
            identity: None,
        };
        challenged.prepare(&self.keys, parts).expect("as before").answered(answer)
    }

    /// A whole join, nothing lost.
    pub fn join(&mut self, world: &mut World) -> Result<JoinAnswer, Problem> {
        let sent = self.send(world);
        let answer = world.join(&sent.jws)?;
        self.receive(&sent, answer.clone());
        Ok(answer)
    }

    /// Makes a key at this moment, in front of the others, as `boundkey recovery-code` does; returns its code.
    pub fn recovery_code(&mut self) -> RecoveryCode {
        let name = self.memory.next_key_id();
        let public = self.keys.generate(&name.parse().expect("a name"), Algorithm::Ed25519).expect("a key");
        let thumbprint = Thumbprint::of(&public);
        self.memory.add_key(KnownKey { id: name, thumbprint, algorithm: Algorithm::Ed25519.into(), bound: false }).expect("room");
        RecoveryCode::of(&thumbprint)
    }

    /// A request that leaves; whether it arrives is the caller's matter.
    pub fn send(&mut self, world: &World) -> InFlight {
        let instance = Start::new(&self.memory, TOKEN).request().instance;
        self.prepare(&world.challenge_for(instance)).expect("the device does not give up")
    }

    /// A join whose answer is lost.
    pub fn lose_answer(&mut self, world: &mut World) {
        let sent = self.send(world);
        world.join(&sent.jws).expect("granted");
    }
}
