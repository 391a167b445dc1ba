//! From a device that knows its key to the request, signed by every key that it takes.

use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

use super::challenge::Challenged;
use super::{KnownKey, Memory};
use crate::jws::Header;
use crate::message::{Heartbeat, JoinRequest, OutputRequest, RenewalProof, RotationProof};
use crate::{Id, Jwk, Jws, Thumbprint};

/// What the caller adds to a request.
pub struct Parts<'a> {
    /// The whole URL of the join call.
    pub url: &'a str,
    /// The attempt, as it stands on flash.
    pub attempt: Id,
    /// PKCS#10 request for the identity, base64url of DER.
    pub csr: String,
    /// Wanted lifetime in seconds.
    pub ttl: Option<u64>,
    /// Certificates wanted beside the identity.
    pub outputs: Vec<OutputRequest>,
    /// Sequence number of the trust bundle at hand.
    pub bundle: Option<u64>,
    /// What the device tells of itself.
    pub heartbeat: Heartbeat,
    /// The registration secret, where one is configured; sent only as an HMAC, and only for a registration.
    pub secret: Option<&'a str>,
    /// The identity that may renew.
    pub identity: Option<Identity<'a>>,
}

/// The identity certificate at hand, and its key.
pub struct Identity<'a> {
    /// The certificate, DER.
    pub certificate: &'a [u8],
    /// Signs with its P-256 key.
    pub sign: &'a dyn Fn(&[u8]) -> Result<Signature, KeyError>,
}

/// A device whose request is ready to be sent.
#[derive(Debug)]
pub struct Prepared<'a> {
    pub(super) memory: &'a Memory,
    pub(super) outputs: usize,
    /// The key that signs it.
    pub(super) signer: Thumbprint,
    /// The key that is to replace it.
    pub(super) successor: Option<Thumbprint>,
    request: Jws,
}

impl<'a> Challenged<'a> {
    /// Makes the request, signing with keys of `store`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the store has another key under the name remembered; the store's own errors.
    pub fn prepare(self, store: &dyn KeyStore, parts: Parts<'_>) -> Result<Prepared<'a>, KeyError> {
        let no_key = || KeyError::new(ErrorKind::NotFound, "no key to join with: `Challenged::new_key` was not heeded");
        let signer = self.signer.or(self.memory.unbound_key()).ok_or_else(no_key)?;
        let (id, public) = open(store, signer)?;
        let nonce = &self.answer.challenge;
        let header =
            if self.answer.key == Some(signer.thumbprint) { Header::by_thumbprint(&public) } else { Header::by_key(&public) };
        let secret = parts.secret.filter(|_| self.is_registration());
        let successor = if self.answer.rotate { self.successor() } else { None };
        let (signer_print, successor_print) = (signer.thumbprint, successor.map(|key| key.thumbprint));
        let rotation = successor.map(|key| rotation(store, key, signer, &self.memory.token, parts.url)).transpose()?;
        let identity = parts.identity.filter(|_| self.same_life);
        let renewal = identity.map(|identity| renewal(&identity, parts.attempt, parts.url, nonce)).transpose()?;
        let outputs = parts.outputs.len();
        let request = JoinRequest {
            token: self.memory.token.clone(),
            attempt: parts.attempt,
            join_state: self.memory.join_state.clone().filter(|_| self.same_life),
            csr: parts.csr,
            ttl: parts.ttl,
            outputs: parts.outputs,
            bundle: parts.bundle,
            heartbeat: parts.heartbeat,
            external_account_binding: secret.map(|secret| binding(secret, &self.memory.token, &public, parts.url)),
            renewal,
            rotation,
        };
        let request = Jws::sign(&header.to(parts.url, nonce), &request, |message| store.sign(&id, message))?;
        Ok(Prepared { memory: self.memory, outputs, signer: signer_print, successor: successor_print, request })
    }
}

impl Prepared<'_> {
    /// What to send to [`crate::message::JOIN_PATH`].
    pub fn request(&self) -> &Jws {
        &self.request
    }
}

/// The key as the store has it, if it still is the one remembered.
fn open(store: &dyn KeyStore, key: &KnownKey) -> Result<(KeyId, PublicKey), KeyError> {
    let corrupt = |why: std::fmt::Arguments<'_>| KeyError::new(ErrorKind::Corrupt, why);
    let id: KeyId = key.id.parse().map_err(|e| corrupt(format_args!("remembered key name {:?}: {e}", key.id)))?;
    let public = store.public_key(&id)?;
    let found = Thumbprint::of(&public);
    if found != key.thumbprint {
        let expected = key.thumbprint;
        return Err(corrupt(format_args!(
            "key {id} in the store is {found}, not {expected} as remembered: replaced or of another device"
        )));
    }
    Ok((id, public))
}

/// RFC 8555 section 7.3.4: the secret vouches for the key, and stays here.
fn binding(secret: &str, token: &str, key: &PublicKey, url: &str) -> Jws {
    let header = Header { kid: Some(token.into()), url: Some(url.into()), ..Header::new("HS256") };
    Jws::authenticate(&header, &Jwk::from(key), secret.as_bytes())
}

/// RFC 8555 section 7.3.5: the new key agrees to replace the old one.
fn rotation(store: &dyn KeyStore, new: &KnownKey, old: &KnownKey, token: &str, url: &str) -> Result<Jws, KeyError> {
    let (id, public) = open(store, new)?;
    let header = Header { url: Some(url.into()), ..Header::by_key(&public) };
    let proof = RotationProof { token: token.into(), old_key: old.thumbprint };
    Jws::sign(&header, &proof, |message| store.sign(&id, message))
}

fn renewal(identity: &Identity<'_>, attempt: Id, url: &str, nonce: &str) -> Result<Jws, KeyError> {
    use base64::Engine as _;
    let certificate = base64::engine::general_purpose::STANDARD.encode(identity.certificate);
    let header = Header { x5c: Some(vec![certificate]), ..Header::new(Algorithm::EcdsaP256.jws_name()) };
    Jws::sign(&header.to(url, nonce), &RenewalProof { attempt }, identity.sign)
}
