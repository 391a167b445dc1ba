//! A holder of the device's medium, honest or not: the real client steps and the real state file, up to the request and from
//! the answer on. What is durable when is as in `agent/join.rs`.

use boundkey::join::device::challenge::GiveUp;
use boundkey::join::device::request::{Identity, Parts, Prepared};
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::jws::Header;
use boundkey::join::message::{ChallengeAnswer, Heartbeat, JoinAnswer};
use boundkey::join::{Claims, Id, Jws, Thumbprint, base64url};
use boundkey::state::{StateFile, Storage as _};
use boundkey_hal::{Algorithm, ErrorKind, KeyStore as _, PublicKey};
use ring::digest::{SHA256, digest};

use super::medium::{Disk, Keys, Medium, public_key, sign};
use super::server::{TOKEN, secret};

pub const URL: &str = "https://localhost/v1/join";
/// The pool's key behind every identity certificate: what tells holders apart is the certificate, which only its receiver has.
pub const IDENTITY_KEY: u8 = 0;
const IDENTITY_FILE: &str = "identity.pem";

/// How a holder goes about a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Manner {
    /// As the device does.
    Honest,
    /// With an attempt of its own, whatever is on the medium.
    NewAttempt,
    /// Without the identity certificate: a recovery.
    NoCertificate,
    /// Without the join state.
    NoJoinState,
}

/// Broken clients, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Real,
    /// Sends without having written the attempt down.
    ForgetsAttempt,
    /// Its medium syncs nothing when a process starts or finds the state as it wants it.
    LyingMedium,
    /// Tells the code of a key that it made before, where no answer has named that one yet.
    OldKeyForCode,
}

/// Which holder, and its ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// [`super::state::DEVICE`], or one of [`super::state::COPIES`].
    pub holder: u8,
    pub manner: Manner,
    pub client: Client,
    /// The newest registration secret that it knows, by the number of resets.
    pub secret: u8,
}

/// A request as it leaves, and the challenge that it answers.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    pub jws: Jws,
    pub challenge: ChallengeAnswer,
    pub attempt: Id,
    /// The key that signed it.
    pub key: String,
    /// The instance whose certificate it shows.
    pub instance: Option<Id>,
    /// The attempt that made the step of its join state.
    pub made_by: Option<Id>,
    /// When that step was made, in milliseconds since 1970.
    pub issued_ms: Option<u64>,
    pub has_state: bool,
    pub has_certificate: bool,
}

/// What came of a holder's work.
pub struct Done<T> {
    pub medium: Medium,
    /// Calls that the medium answered, each a moment to die at.
    pub calls: usize,
    /// The outcome; `None` where the process died.
    pub outcome: Option<Result<T, String>>,
}

/// Runs one process on a medium, until it is done or dies at a call.
fn run<T>(medium: &Medium, who: Who, dies_at: Option<usize>, work: impl FnOnce(&Disk) -> Result<T, String>) -> Done<T> {
    let disk = Disk::new(medium.clone(), dies_at, who.client != Client::LyingMedium);
    let outcome = disk.sync_names().map_err(|e| e.to_string()).and_then(|()| work(&disk));
    let (medium, calls) = disk.end();
    let died = dies_at.is_some_and(|at| at <= calls) && outcome.as_ref().is_err_and(|e| e.contains("dead"));
    Done { medium, calls, outcome: (!died).then_some(outcome) }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn gave_up(e: &GiveUp) -> String {
    format!("gave up: {e:?}")
}

/// From the challenge to the request.
pub fn prepare(medium: &Medium, who: Who, challenge: &ChallengeAnswer, dies_at: Option<usize>) -> Done<Request> {
    run(medium, who, dies_at, |disk| {
        let mut state = StateFile::open(disk.clone()).map_err(text)?;
        let mut memory = state.memory().for_token(TOKEN);
        let keys = Keys { disk: disk.clone(), maker: who.holder };
        let needed = Start::new(&memory, TOKEN).challenged(challenge.clone()).map_err(|e| gave_up(&e))?;
        if let Some(algorithm) = needed.new_key(&[Algorithm::EcdsaP256]).map_err(|e| gave_up(&e))? {
            make_key(&keys, &mut memory, algorithm)?;
        }
        let own = || attempt(who, &memory, challenge);
        let attempt = if who.manner == Manner::NewAttempt { own() } else { memory.attempt.unwrap_or_else(own) };
        if who.client != Client::ForgetsAttempt {
            memory.attempt = Some(attempt);
        }
        state.store(&memory).map_err(text)?;
        memory.attempt = Some(attempt);
        if who.manner == Manner::NoJoinState {
            memory.join_state = None;
        }
        let same_life = memory.incarnation == Some(challenge.incarnation);
        let certificate = identity(disk, &memory)?.filter(|_| same_life && who.manner != Manner::NoCertificate);
        let prepared = prepared(&memory, challenge, &keys, certificate.as_deref(), who)?;
        let claims = memory.join_state.as_deref().and_then(claims);
        let request = Request {
            jws: prepared.request().clone(),
            challenge: challenge.clone(),
            attempt,
            key: signer(&prepared.request().header().map_err(text)?)?,
            instance: memory.step.filter(|_| certificate.is_some()).map(|step| step.instance),
            made_by: claims.as_ref().map(|claims| claims.jti),
            issued_ms: claims.as_ref().map(|claims| claims.iat_ms),
            has_certificate: certificate.is_some(),
            has_state: memory.join_state.is_some() && same_life,
        };
        Ok(request)
    })
}

/// From the answer to the memory.
pub fn receive(medium: &Medium, who: Who, request: &Request, answer: &JoinAnswer, dies_at: Option<usize>) -> Done<()> {
    run(medium, who, dies_at, |disk| {
        let mut state = StateFile::open(disk.clone()).map_err(text)?;
        // As it stood in the process's memory when the request left.
        let memory = Memory { attempt: Some(request.attempt), ..state.memory().for_token(TOKEN) };
        let keys = Keys { disk: disk.clone(), maker: who.holder };
        let issued = prepared(&memory, &request.challenge, &keys, None, who)?.answered(answer.clone()).map_err(text)?;
        state.storage().replace(IDENTITY_FILE, &issued.certificate).map_err(text)?;
        state.store(&issued.memory).map_err(text)?;
        state.overwrite_older().map_err(text)
    })
}

fn make_key(keys: &Keys, memory: &mut Memory, algorithm: Algorithm) -> Result<(), String> {
    let key = generate(keys, memory, algorithm)?;
    memory.add_key(key).map_err(text)
}

/// As `agent/device.rs` makes one: a key that was made and not written down is taken up.
fn generate(keys: &Keys, memory: &Memory, algorithm: Algorithm) -> Result<KnownKey, String> {
    let id = memory.next_key_id();
    let name = id.parse().map_err(text)?;
    let public = match keys.generate(&name, algorithm) {
        Err(e) if e.kind() == ErrorKind::Exists => keys.public_key(&name),
        made => made,
    };
    let thumbprint = Thumbprint::of(&public.map_err(text)?);
    Ok(KnownKey { id, thumbprint, algorithm: algorithm.into(), bound: false })
}

/// Makes a key at this moment, in front of the others, as `boundkey recovery-code` does; returns which of the pool it is.
pub fn recovery_code(medium: &Medium, who: Who) -> Done<u8> {
    run(medium, who, None, |disk| {
        let mut state = StateFile::open(disk.clone()).map_err(text)?;
        let mut memory = state.memory().for_token(TOKEN);
        let keys = Keys { disk: disk.clone(), maker: who.holder };
        if who.client != Client::OldKeyForCode || memory.unbound_key().is_none() {
            let key = generate(&keys, &memory, Algorithm::EcdsaP256)?;
            let request = named(key.id.as_bytes());
            memory.add_recovery_key(key, request).map_err(|_| "too many keys")?;
        }
        state.store(&memory).map_err(text)?;
        let made = memory.unbound_key().ok_or("no key was made")?.id.parse().map_err(text)?;
        keys.open(&made).map_err(text)
    })
}

fn signer(header: &Header) -> Result<String, String> {
    let whole = header.jwk.as_ref().map(|jwk| PublicKey::try_from(jwk).map(|key| Thumbprint::of(&key).to_string()));
    whole.transpose().map_err(|e| e.0.to_owned())?.or_else(|| header.kid.clone()).ok_or_else(|| "no key".to_owned())
}

/// A fresh attempt. Its name is made from what it starts from, so that the same situation is the same state.
fn attempt(who: Who, memory: &Memory, challenge: &ChallengeAnswer) -> Id {
    let own = who.holder * 8 + u8::from(who.manner == Manner::NewAttempt);
    let from = memory.join_state.as_deref().unwrap_or_default();
    // A device that does not keep its attempt has another at its next try: here, once the server has moved.
    let moved = if who.client == Client::ForgetsAttempt { challenge.challenge.clone() } else { String::new() };
    named(&[&[own], from.as_bytes(), moved.as_bytes()].concat())
}

fn claims(join_state: &str) -> Option<Claims> {
    let payload = base64url::decode(&Jws::from_compact(join_state).ok()?.payload).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// An id made from `content`.
pub fn named(content: &[u8]) -> Id {
    let hash = digest(&SHA256, content);
    Id(std::array::from_fn(|i| hash.as_ref()[i]))
}

fn identity(disk: &Disk, memory: &Memory) -> Result<Option<Vec<u8>>, String> {
    let found = disk.read(IDENTITY_FILE).map_err(text)?;
    let print = |der: &Vec<u8>| digest(&SHA256, der);
    Ok(found.filter(|der| memory.certificate.as_ref().is_some_and(|known| known.fingerprint == print(der).as_ref())))
}

fn prepared<'a>(
    memory: &'a Memory,
    challenge: &ChallengeAnswer,
    keys: &Keys,
    certificate: Option<&[u8]>,
    who: Who,
) -> Result<Prepared<'a>, String> {
    let challenged = Start::new(memory, TOKEN).challenged(challenge.clone()).map_err(|e| gave_up(&e))?;
    let sign = |message: &[u8]| Ok(sign(IDENTITY_KEY, message));
    let secret = secret(who.secret);
    let parts = Parts {
        url: URL,
        attempt: memory.attempt.ok_or("no attempt")?,
        csr: base64url::encode(public_key(IDENTITY_KEY).as_bytes()),
        ttl: None,
        outputs: vec![],
        bundle: None,
        heartbeat: Heartbeat::default(),
        secret: Some(&secret),
        identity: certificate.map(|certificate| Identity { certificate, sign: &sign }),
    };
    challenged.prepare(keys, parts).map_err(text)
}

/// What a medium remembers.
pub fn memory(medium: &Medium) -> Result<Memory, String> {
    StateFile::open(Disk::new(medium.clone(), None, true)).map(|state| state.memory().clone()).map_err(text)
}

/// The instance that a holder of this medium names when it asks for a challenge.
pub fn instance(medium: &Medium) -> Option<Id> {
    let memory = memory(medium).ok()?.for_token(TOKEN);
    Start::new(&memory, TOKEN).request().instance
}

/// Whether a holder of this medium knows of a join, without which there is no recovery code.
pub fn has_joined(medium: &Medium) -> bool {
    memory(medium).is_ok_and(|memory| memory.step.is_some())
}

/// Whether there is anything on a medium to copy.
pub fn has_key(medium: &Medium) -> bool {
    memory(medium).is_ok_and(|memory| !memory.keys.is_empty())
}
