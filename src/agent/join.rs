//! One join from end to end: the states of [`boundkey_join::device`] with what must be durable between them.
//!
//! ```text
//!  challenge ─▶ new key, attempt ──▶ request ─▶ trust ──▶ identity ──▶ memory ──▶ outputs
//!               durable before it leaves        durable, in this order
//! ```
//! A power cut before the request leaves nothing to undo; one after it, or a lost answer, is made good by the next join, which
//! repeats the attempt.

use std::sync::Arc;

use boundkey_hal::{Algorithm, ErrorKind};

use super::clock::DeviceClock;
use super::config::{Config, KeyPlace, Secret, SecretSource};
use super::device::Device;
use super::error::AgentError;
use super::identity::StoredIdentity;
use super::issuer;
use super::outputs::{self, FreshKey, OutputError, Prepared};
use super::static_key;
use super::tls::{Presented, Roots};
use super::transport::{Transport, TransportError};
use super::trust::DeviceTrust;
use boundkey_join::device::Start;
use boundkey_join::device::answer::Issued;
use boundkey_join::device::request::{Identity, Parts};
use boundkey_join::message::{CHALLENGE_PATH, ChallengeAnswer, Heartbeat, JOIN_PATH, JoinAnswer};
use boundkey_join::{Id, MAX_DETAIL, TrustBundle, TrustError, Trusted, base64url};
use boundkey_platform::text;
use boundkey_platform::time::Random;

/// What a join needs beside the device.
pub struct Joiner<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The way to the server.
    pub transport: &'a mut dyn Transport,
    /// The CAs that the device trusts.
    pub trust: &'a mut DeviceTrust,
    /// Device time.
    pub clock: &'a Arc<DeviceClock>,
    /// Randomness.
    pub random: &'a dyn Random,
    /// The whole URL of the join call.
    pub url: String,
}

/// What a join brought.
pub struct Joined {
    /// The server's answer.
    pub answer: JoinAnswer,
    /// The outputs that were asked for, to be paired with the answer.
    pub requested: Vec<outputs::Requested>,
    /// The first output that was not asked for.
    pub left_out: Result<(), OutputError>,
    /// The CAs that the device trusts.
    pub bundle: TrustBundle,
}

impl Joiner<'_> {
    /// Tries to join once: first, renewal or recovery, as the server sees it.
    pub fn join(&mut self, device: &mut Device) -> Result<Joined, AgentError> {
        let token = self.config.onboarding.token.read()?;
        let joined = self.try_join(device, &token);
        if device.is_static { joined.map_err(static_key::explain) } else { joined }
    }

    fn try_join(&mut self, device: &mut Device, token: &str) -> Result<Joined, AgentError> {
        device.verify()?;
        let mut memory = device.state.memory().for_token(token);
        let challenge = self.ask_challenge(&memory, token)?;
        let asked = Start::new(&memory, token).challenged(challenge.clone())?;
        // Hardware is asked what it can do only where that matters.
        let needed = if asked.lacks_key() { asked.new_key(&algorithms(self.config, device)?)? } else { None };
        if let Some(algorithm) = needed {
            device.make_key(&mut memory, algorithm)?;
        }
        let attempt = match memory.attempt {
            Some(attempt) => attempt,
            None => Id::random(self.random)?,
        };
        memory.attempt = Some(attempt);
        let kept = memory.to_keep(device.state.memory());
        device.remember(&kept)?;

        let identity = StoredIdentity::load(device.state.storage())?;
        let identity = identity.filter(|identity| identity.belongs_to(&memory));
        let secret = self.config.onboarding.registration_secret.as_ref();
        let challenged = Start::new(&memory, token).challenged(challenge)?;
        let secret = secret.filter(|_| challenged.is_registration()).map(SecretSource::read).transpose()?;
        let key = FreshKey::generate().map_err(|e| AgentError::Other(format!("key for the identity: {e}")))?;
        let Prepared { requested, left_out } = self.prepare_outputs(device)?;
        let sign = |message: &[u8]| match &identity {
            Some(identity) => identity.sign(message),
            None => Err(boundkey_hal::Error::new(ErrorKind::NotFound, "no identity")),
        };
        let parts = Parts {
            url: &self.url,
            attempt,
            csr: base64url::encode(&key.csr),
            ttl: self.config.credential_ttl.map(|ttl| ttl.as_secs()),
            outputs: requested.iter().map(|output| output.request.clone()).collect(),
            bundle: self.trust.sequence(),
            heartbeat: self.heartbeat(),
            secret: secret.as_ref().map(Secret::expose),
            identity: identity.as_ref().map(|identity| Identity { certificate: &identity.certificate, sign: &sign }),
        };
        let prepared = challenged.prepare(&*device.keys, parts)?;
        let body = serde_json::to_vec(prepared.request()).map_err(|e| AgentError::Other(e.to_string()))?;
        let answer = self.transport.post(JOIN_PATH, &body)?;
        let answer: JoinAnswer = parse(&answer)?;
        let Issued { mut memory, certificate, answer, superseded } = prepared.answered(answer)?;
        let trusted = self.judge(&answer)?;
        issuer::verify(&answer, token, &certificate, &trusted.bundle, &key.public_key)?;
        let believed = self.transport.note_server_time(answer.time).map_err(AgentError::ServerExpired)?;
        memory.last_known_time = memory.last_known_time.max(believed);

        // Before all else: it holds whatever becomes of this join.
        let bundle = trusted.bundle.clone();
        if self.trust.take(device.state.storage(), trusted)? {
            log::info!("took trust bundle {}", self.trust.sequence().unwrap_or_default());
        }
        StoredIdentity::store(device.state.storage(), &key.pkcs8, &certificate)?;
        device.delete_keys(&superseded);
        device.guard.mark(&mut memory);
        device.remember(&memory)?;
        device.guard.follow();
        // The join stands without it, and the next one writes over that slot as well.
        if let Err(e) = device.state.overwrite_older() {
            log::warn!("the older slot of the state could not be written over: {e}");
        }
        Ok(Joined { answer, requested, left_out, bundle })
    }

    /// The trust of the device from this answer on. An answer whose trust bundle is not to be taken is not taken either.
    fn judge(&self, answer: &JoinAnswer) -> Result<Trusted, AgentError> {
        let trusted = match (&answer.bundle, &self.trust.trusted) {
            (Some(texts), _) => self.trust.next(texts)?,
            (None, Some(trusted)) => return Ok(trusted.clone()),
            (None, None) => return Err(TrustError::Missing.into()),
        };
        if trusted.bundle.cluster() != answer.cluster {
            return Err(TrustError::Cluster(trusted.bundle.cluster().into()).into());
        }
        if !self.transport.holds_under(&Roots::of(&trusted.bundle)) {
            return Err(TrustError::Connection.into());
        }
        Ok(trusted)
    }

    fn prepare_outputs(&self, device: &Device) -> Result<Prepared, AgentError> {
        Ok(outputs::prepare(&self.config.outputs, &*device.keys)?)
    }

    fn ask_challenge(&mut self, memory: &boundkey_join::device::Memory, token: &str) -> Result<ChallengeAnswer, AgentError> {
        let request = Start::new(memory, token).request();
        let body = serde_json::to_vec(&request).map_err(|e| AgentError::Other(e.to_string()))?;
        let challenge: ChallengeAnswer = parse(&self.transport.post(CHALLENGE_PATH, &body)?)?;
        let time = challenge.time;
        let was_behind = self.clock.is_behind();
        self.transport.note_server_time(time).map_err(AgentError::ServerExpired)?;
        match self.transport.presented() {
            Some(Presented { is_doubtful: true, .. }) => {
                log::warn!("this device's clock is ahead: the server says that it is {time}");
            }
            Some(Presented { not_after, .. }) if time > not_after => {
                log::warn!(
                    "the server says that it is {time}, but its certificate ended at {not_after}: its clock is not believed"
                );
            }
            _ if was_behind => {
                log::info!("this device's clock is behind: going by the last time known, and the server's, {time}");
            }
            _ => {}
        }
        Ok(challenge)
    }

    fn heartbeat(&self) -> Heartbeat {
        let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Heartbeat {
            version: env!("CARGO_PKG_VERSION").into(),
            hostname: hostname.unwrap_or_default(),
            architecture: std::env::consts::ARCH.into(),
            keystore: self.config.keystore.kind().into(),
        }
    }
}

/// What the bound key can be made of.
pub(super) fn algorithms(config: &Config, device: &mut Device) -> Result<Vec<Algorithm>, AgentError> {
    let mut offered = device.keys.capabilities()?.algorithms.to_vec();
    // libp11 0.4.12, OpenSSL's engine, finds no key at all in a token that has an Ed25519 key, not even those of outputs.
    if config.outputs.iter().any(|output| output.key == KeyPlace::Keystore) {
        offered.retain(|algorithm| *algorithm == Algorithm::EcdsaP256);
    }
    Ok(offered)
}

/// What an answer of the server says.
pub(super) fn parse<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<T, AgentError> {
    serde_json::from_slice(answer).map_err(|e| {
        let why = text::brief(&e.to_string(), MAX_DETAIL);
        TransportError::NotBoundkey(format!("an answer that cannot be read: {why}")).into()
    })
}
