//! Both sides of the protocol without sockets, disks and X.509: the real messages, signatures, client steps and decision.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::time::Duration;

use boundkey::join::device::answer::{AnswerError, Issued};
use boundkey::join::device::request::{Identity, Parts};
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::message::{ChallengeAnswer, Heartbeat, IssuedCertificate, JoinAnswer};
use boundkey::join::server::challenge::{Challenge, LIFETIME, SealingKey};
use boundkey::join::server::decision::{Fresh, Grant, Refusal, Token, decide};
use boundkey::join::server::record::{LastStep, Spec, Status, rotation_due};
use boundkey::join::server::request::{Context, Holder, ShownCertificate, challenge_of, verify};
use boundkey::join::{Claims, Id, Jws, Problem, ProblemType, Thumbprint, base64url};
use boundkey::time::{System, Timestamp};
use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Capabilities, Error, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const TTL: Duration = Duration::from_secs(3600);
pub const URL: &str = "https://localhost:3025/v1/join";
const CLUSTER: &str = "test.example";
const TOKEN: &str = "gateway";

/// Keys in memory, cheap to copy: a thief's copy is a clone.
#[derive(Clone, Default)]
pub struct Keys(BTreeMap<KeyId, String>);

impl Keys {
    fn open(&self, id: &KeyId) -> Result<PrivateKey, Error> {
        let pem = self.0.get(id).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))?;
        PrivateKey::from_pem(pem).map_err(|why| Error::new(ErrorKind::Corrupt, why))
    }
}

impl KeyStore for Keys {
    fn capabilities(&mut self) -> Result<Capabilities, Error> {
        let algorithms = [Algorithm::Ed25519].into_iter().collect();
        Ok(Capabilities { algorithms, hardware: false, place: heapless::String::new() })
    }

    fn generate(&mut self, id: &KeyId, algorithm: Algorithm) -> Result<PublicKey, Error> {
        if self.0.contains_key(id) {
            return Err(Error::new(ErrorKind::Exists, "taken"));
        }
        let key = PrivateKey::generate(algorithm)?;
        self.0.insert(id.clone(), key.to_pem()?.to_string());
        key.public_key()
    }

    fn public_key(&mut self, id: &KeyId) -> Result<PublicKey, Error> {
        self.open(id)?.public_key()
    }

    fn sign(&mut self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.open(id)?.sign(message)
    }

    fn list(&mut self, each: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        self.0.keys().for_each(each);
        Ok(())
    }

    fn delete(&mut self, id: &KeyId) -> Result<(), Error> {
        self.0.remove(id).map(drop).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))
    }
}

/// The server: one token, and what it was decided on.
#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    /// Whether the token is for a bot; else it is for a host.
    pub for_bot: bool,
    pub spec: Spec,
    pub status: Status,
    pub locks: Vec<String>,
    pub revision: u64,
    /// What was decided, oldest first.
    pub grants: Vec<Grant>,
    /// Last steps of instances, as mode `insecure` wants them.
    pub instances: BTreeMap<Id, LastStep>,
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
            for_bot: true,
            spec,
            status,
            locks: vec![],
            revision: 1,
            grants: vec![],
            instances: BTreeMap::new(),
            certificates: vec![],
            signer,
            ids: 0,
        }
    }

    /// The server restored from this copy of it; its clock goes on, and so do the certificates that others hold.
    pub fn restored(&self, from: &Self) -> Self {
        let certificates = self.certificates.clone();
        Self { now: self.now, certificates, ids: self.ids, revision: from.revision + 100, ..from.clone() }
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

    pub fn challenge(&self) -> ChallengeAnswer {
        let rotate = rotation_due(&self.spec, &self.status, self.now);
        let expires = self.now.plus(LIFETIME);
        let sealed = Challenge { revision: self.revision, rotate, expires };
        let key = self.status.bound_public_key.as_ref().or(self.spec.onboarding.initial_public_key.as_ref());
        ChallengeAnswer {
            challenge: Self::sealing().seal(TOKEN, sealed, &System).expect("randomness"),
            key: key.map(|key| Thumbprint::of(&key.0)),
            incarnation: self.status.incarnation.expect("set"),
            rotate,
            algorithms: vec!["EdDSA".into(), "ES256".into()],
            expires,
            time: self.now,
        }
    }

    /// Takes a request as it comes off the wire: verify, decide, commit.
    pub fn join(&mut self, jws: &Jws) -> Result<JoinAnswer, Problem> {
        let opened = Self::sealing().open(TOKEN, &challenge_of(jws)?, self.now)?;
        if opened.revision != self.revision {
            return Err(ProblemType::ChallengeStale.into());
        }
        let keys = [self.signer().public_key().expect("a key")];
        let certificates = &self.certificates;
        let certificate = |der: &[u8]| {
            let index = usize::from_be_bytes(der.try_into().map_err(|_| "not one of ours")?);
            certificates.get(index).cloned().ok_or_else(|| "not one of ours".to_owned())
        };
        let context = Context {
            cluster: CLUSTER,
            token: TOKEN,
            for_bot: self.for_bot,
            spec: &self.spec,
            status: &self.status,
            challenge: opened,
            join_state_keys: &keys,
            server_names: &["localhost".to_owned()],
            certificate: &certificate,
        };
        let (request, verified) = verify(jws, &context)?;
        let named = verified.certificate.as_ref().map(|shown| shown.holder.step.instance);
        let instance = named.and_then(|id| Some((id, self.instances.get(&id)?)));
        let about = Token { for_bot: self.for_bot, spec: &self.spec, status: &self.status, instance };
        self.ids += 1;
        let fresh = Fresh { instance: Id([self.ids; 16]), now: self.now, not_after: self.now.plus(TTL) };
        let grant = match decide(about, &self.locks, &verified, fresh) {
            Ok(grant) => grant,
            Err(Refusal { problem, lock, caught }) => {
                if let Some(key) = caught {
                    self.status.catch(key);
                }
                self.revision += u64::from(lock.is_some());
                self.locks.extend(lock);
                return Err(problem);
            }
        };
        self.status = grant.status.clone();
        self.revision += 1;
        self.grants.push(grant.clone());
        self.instances.insert(grant.step.instance, grant.instance_step());
        let holder = Holder {
            cluster: CLUSTER.into(),
            token: TOKEN.into(),
            incarnation: self.status.incarnation.expect("set"),
            host: !self.for_bot,
            step: grant.step,
        };
        // The world's certificate request is the key itself.
        let key = base64url::decode(&request.csr).expect("our own");
        let key = PublicKey::new(Algorithm::EcdsaP256, &key).expect("our own");
        let der = self.certificates.len().to_be_bytes();
        self.certificates.push(ShownCertificate { holder, not_after: grant.not_after, key });
        let claims = Claims {
            iss: CLUSTER.into(),
            sub: TOKEN.into(),
            inc: self.status.incarnation.expect("set"),
            step: grant.step,
            jkt: Thumbprint::of(&grant.key),
            host: !self.for_bot,
            jti: grant.attempt,
            iat_ms: grant.issued_at_ms,
        };
        let signer = self.signer();
        Ok(JoinAnswer {
            kind: grant.kind,
            cluster: CLUSTER.into(),
            incarnation: claims.inc,
            step: grant.step,
            key: claims.jkt,
            join_state: claims.sign(&keys[0], |message| signer.sign(message)).expect("signed"),
            recoveries: self.status.recoveries(&self.spec),
            identity: IssuedCertificate {
                certificate: base64url::encode(der),
                serial: "1".into(),
                not_before: self.now,
                not_after: grant.not_after,
            },
            outputs: vec![],
            bundle: None,
            warnings: vec![],
            time: self.now,
        })
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
            self.memory.add_key(KnownKey { id: name, thumbprint, algorithm: algorithm.into(), bound: false });
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
        let prepared = challenged.prepare(&mut self.keys, parts).map_err(|e| e.to_string())?;
        let identity_key = key.to_pem().expect("PEM").to_string();
        Ok(InFlight { jws: prepared.request().clone(), challenge: challenge.clone(), identity_key })
    }

    /// Takes an answer; what is durable afterwards is the identity and the memory.
    pub fn receive(&mut self, sent: &InFlight, answer: JoinAnswer) {
        let Issued { memory, certificate, .. } = self.judge(sent, answer).expect("a good answer");
        self.identity = Some((certificate, sent.identity_key.clone()));
        self.memory = memory;
    }

    /// What the real client makes of an answer. Its states are consumed by a join; here they are made anew to hand the answer over.
    pub fn judge(&mut self, sent: &InFlight, answer: JoinAnswer) -> Result<Issued, AnswerError> {
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
        challenged.prepare(&mut self.keys, parts).expect("as before").answered(answer)
    }

    /// A whole join, nothing lost.
    pub fn join(&mut self, world: &mut World) -> Result<JoinAnswer, Problem> {
        let sent = self.send(world);
        let answer = world.join(&sent.jws)?;
        self.receive(&sent, answer.clone());
        Ok(answer)
    }

    /// A request that leaves; whether it arrives is the caller's matter.
    pub fn send(&mut self, world: &World) -> InFlight {
        self.prepare(&world.challenge()).expect("the device does not give up")
    }

    /// A join whose answer is lost.
    pub fn lose_answer(&mut self, world: &mut World) {
        let sent = self.send(world);
        world.join(&sent.jws).expect("granted");
    }
}
