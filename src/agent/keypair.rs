//! `boundkey keypair create`: the device's key, and the token document to register it with.

use std::path::PathBuf;

use base64::Engine as _;
use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, PublicKey, dir, durable};
use zeroize::Zeroizing;

use super::config::Keystore;
use super::device::{Device, Pinning};
use super::error::AgentError;
use boundkey_join::SshKey;

/// Larger than any static key; more is not read.
const MAX_STATIC_KEY: u64 = 64 * 1024;
/// What a key that is there has to sign before it is shown.
const PROBE: &[u8] = b"boundkey keypair create";

/// What to create.
pub struct Request {
    /// Where the key goes.
    pub place: Place,
    /// Whether to make a new key where there is one.
    pub overwrite: bool,
    /// The algorithm; the store's preferred one where none is given.
    pub algorithm: Option<Algorithm>,
    /// Name of the token in the document, where it is known.
    pub token: Option<String>,
    /// JSON instead of text.
    pub json: bool,
}

/// Where a key goes.
pub enum Place {
    /// Into the device's own key store.
    Device {
        /// The storage directory.
        storage: PathBuf,
        /// The key store.
        keystore: Keystore,
    },
    /// Into a file, or nowhere but the output: a key for hosts without storage.
    Static(Option<PathBuf>),
}

/// Creates a key, or finds the one that is there; returns what to print.
pub fn create(request: &Request) -> Result<String, AgentError> {
    let (public, private) = match &request.place {
        Place::Device { storage, keystore } => {
            let pinning = if request.overwrite { Pinning::Renew } else { Pinning::Keep };
            (in_device(request, Device::open(storage, keystore, pinning)?)?, None)
        }
        Place::Static(path) => {
            let pem = static_key(request, path.as_ref())?;
            let key = PrivateKey::from_pem(&pem).map_err(|why| AgentError::Other(why.into()))?;
            (key.public_key()?, Some(Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pem.as_bytes()))))
        }
    };
    let public = SshKey(public).to_string();
    if request.json {
        let mut json = serde_json::json!({ "public_key": public });
        if let Some(private) = private {
            json["private_key"] = private.as_str().into();
        }
        return Ok(json.to_string());
    }
    // What is for a person stands in comments, so that the whole can be applied as it is.
    let mut text = format!("# public key: {public}\n");
    if let Some(private) = private.filter(|_| matches!(request.place, Place::Static(None))) {
        text.push_str("#\n# private key, for the environment variable BOUNDKEY_STATIC_KEY; it is not stored anywhere:\n# ");
        text.push_str(&private);
        text.push('\n');
    }
    text.push_str("#\n# to register it, save this as token.yaml and run `boundkeyctl create -f token.yaml`\n");
    text.push_str(&document(request, &public));
    Ok(text)
}

fn in_device(request: &Request, mut device: Device) -> Result<PublicKey, AgentError> {
    let mut memory = device.state.memory().clone();
    if let Some(key) = memory.current_key() {
        if !request.overwrite {
            log::warn!("key {} exists and is kept; --overwrite makes a new one", key.id);
            let id = key.id.parse().map_err(|e| AgentError::Other(format!("key name {:?}: {e}", key.id)))?;
            let public = device.keys.public_key(&id)?;
            // One that does not sign, as after a TPM was cleared, is not to be registered.
            device.keys.sign(&id, PROBE)?;
            return Ok(public);
        }
        log::warn!("making a new key in place of {}; a token bound to the old key does not know it", key.id);
    }
    let preferred = device.keys.capabilities()?.algorithms.first().copied();
    let algorithm = request.algorithm.or(preferred).ok_or_else(|| AgentError::Other("a key store without algorithms".into()))?;
    let public = device.make_key(&mut memory, algorithm)?;
    device.remember(&memory)?;
    Ok(public)
}

fn static_key(request: &Request, path: Option<&PathBuf>) -> Result<Zeroizing<String>, AgentError> {
    let make = || PrivateKey::generate(request.algorithm.unwrap_or(Algorithm::Ed25519))?.to_pem();
    let Some(path) = path else {
        return Ok(make()?);
    };
    let failed = |e| AgentError::Storage(path.display().to_string(), e);
    if path.exists() && !request.overwrite {
        log::warn!("{} exists and is kept; --overwrite makes a new key", path.display());
        let content = dir::read(path, MAX_STATIC_KEY).map_err(failed)?.content;
        let text = str::from_utf8(&content).map_err(|e| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, e)))?;
        return Ok(Zeroizing::new(text.into()));
    }
    if path.exists() {
        log::warn!("overwriting the key in {}", path.display());
    }
    let pem = make()?;
    // A name alone is a file where we are.
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        durable::create_dir(dir).map_err(failed)?;
    }
    durable::replace(path, pem.as_bytes(), durable::PRIVATE_FILE).map_err(failed)?;
    Ok(pem)
}

/// A token document ready to apply, but for the name of its bot.
fn document(request: &Request, public: &str) -> String {
    let name = request.token.as_deref().unwrap_or("my-device");
    let mode = if matches!(request.place, Place::Static(_)) { "insecure" } else { "standard" };
    format!(
        "kind: bot\nversion: v1\nmetadata:\n  name: {name}\nspec:\n  roles: []\n---\n\
         kind: token\nversion: v2\nmetadata:\n  name: {name}\nspec:\n  roles: [Bot]\n  bot_name: {name}\n  \
         join_method: bound_keypair\n  bound_keypair:\n    onboarding:\n      initial_public_key: {public}\n    \
         recovery:\n      limit: 1\n      mode: {mode}\n"
    )
}
