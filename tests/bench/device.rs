//! Devices of the load programs: each with its own token and key, joining by the real protocol.

use std::path::PathBuf;
use std::sync::Arc;

use boundkey::agent::clock::DeviceClock;
use boundkey::agent::outputs::FreshKey;
use boundkey::agent::tls::{Roots, Trust};
use boundkey::agent::transport::Transport;
use boundkey::join::device::request::{Identity, Parts};
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::message::{CHALLENGE_PATH, Heartbeat, JOIN_PATH};
use boundkey::join::{Id, Thumbprint, TrustBundle, base64url};
use boundkey::platform::time::{System, Timestamp};
use boundkey_hal::file::{FileStore, PrivateKey};
use boundkey_hal::{Algorithm, KeyStore as _};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A device. Its key file goes with it.
pub struct Device {
    token: String,
    secret: String,
    dir: PathBuf,
    keys: FileStore,
    memory: Memory,
    identity: Option<(Vec<u8>, PrivateKey)>,
    bundle: Option<u64>,
}

impl Device {
    /// A device that has not joined.
    pub fn new(token: &str, secret: &str) -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("boundkey-load-{}-{token}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let keys = FileStore::new(&dir);
        let public = keys.generate(&"bound-1".parse()?, Algorithm::Ed25519)?;
        let mut memory = Memory::default().for_token(token);
        let thumbprint = Thumbprint::of(&public);
        memory.add_key(KnownKey { id: "bound-1".into(), thumbprint, algorithm: Algorithm::Ed25519.into(), bound: false })?;
        Ok(Self { token: token.into(), secret: secret.into(), dir, keys, memory, identity: None, bundle: None })
    }

    /// One join over `transport`, whose server is at `authority`: the first, or a renewal.
    pub fn join(&mut self, transport: &mut dyn Transport, authority: &str) -> Result<(), Failure> {
        let request = serde_json::to_vec(&Start::new(&self.memory, &self.token).request())?;
        let challenge = serde_json::from_slice(&transport.post(CHALLENGE_PATH, &request)?)?;
        self.memory.attempt = Some(Id::random(&System)?);
        let key = FreshKey::generate()?;
        let held = self.memory.clone();
        let challenged = Start::new(&held, &self.token).challenged(challenge).map_err(|e| format!("{e:?}"))?;
        let identity = &self.identity;
        let sign = |message: &[u8]| match identity {
            Some((_, key)) => key.sign(message),
            None => Err(boundkey_hal::Error::new(boundkey_hal::ErrorKind::NotFound, "no identity")),
        };
        let parts = Parts {
            url: &format!("https://{authority}{JOIN_PATH}"),
            attempt: held.attempt.ok_or("no attempt")?,
            csr: base64url::encode(&key.csr),
            ttl: None,
            outputs: vec![],
            bundle: self.bundle,
            heartbeat: Heartbeat::default(),
            secret: Some(&self.secret),
            identity: identity.as_ref().map(|(certificate, _)| Identity { certificate, sign: &sign }),
        };
        let prepared = challenged.prepare(&self.keys, parts)?;
        let answer = transport.post(JOIN_PATH, &serde_json::to_vec(prepared.request())?)?;
        let issued = prepared.answered(serde_json::from_slice(&answer)?)?;
        if let Some(text) = issued.answer.bundle.as_ref().and_then(|bundles| bundles.last()) {
            self.bundle = Some(TrustBundle::open(text)?.sequence());
        }
        self.memory = issued.memory;
        self.identity = Some((issued.certificate, PrivateKey::from_pem(&boundkey::platform::pem::private_key(&key.pkcs8))?));
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What is left behind in the system's directory for such things is small.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Trust in the CA with this pin.
pub fn trust(pin: &str) -> Result<Arc<Trust>, Failure> {
    let clock = Arc::new(DeviceClock::new(Arc::new(System), Timestamp::default()));
    Ok(Trust::new(Roots::Pins(vec![hex(pin.trim_start_matches("sha256:"))?]), clock))
}

fn hex(text: &str) -> Result<[u8; 32], Failure> {
    let bytes = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or("a CA pin is sha256: and 64 hexadecimal digits")?;
    bytes.try_into().map_err(|_| "a CA pin is sha256: and 64 hexadecimal digits".into())
}
