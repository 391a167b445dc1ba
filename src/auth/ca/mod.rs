//! The certificate authority: the cluster's keys, behind the same `KeyStore` trait as the device's, and what they sign.

mod chain;
mod crl;
mod issue;
mod krl;
mod place;
mod request;
mod set;
mod ssh;
mod steps;

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};

use boundkey_hal::{Algorithm, Error as KeyError, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

pub use issue::{Issued, Profile, ServerIdentity};
pub use place::{Place, advice};
pub use request::subject_key;
pub use set::{Ca, CaSet};

use boundkey_api::event::Event;
use boundkey_join::identity::IdentitySubject;
use boundkey_join::server::request::ShownCertificate;
use boundkey_join::trust::pin_text;
use boundkey_join::{Claims, Id, TrustBundle};
use boundkey_platform::pem;
use boundkey_platform::time::{Random, Timestamp};
use set::KeyNames;

/// Names of the cluster's keys in the key store.
const X509: &str = "ca-x509";
const SSH_USER: &str = "ca-ssh-user";
const SSH_HOST: &str = "ca-ssh-host";
const JOIN_STATE: &str = "join-state";
const ALL: [&str; 4] = [X509, SSH_USER, SSH_HOST, JOIN_STATE];
/// What each key signs before anybody relies on it.
const PROBE: &[u8] = b"boundkey-auth: does this key sign?";

/// The cluster's authority: its CAs as they stand at one moment, and the keys that sign for them.
pub struct Authority {
    cluster: String,
    keys: SharedKeys,
    set: CaSet,
    active: Signing,
    join_state_keys: Vec<PublicKey>,
    /// Those of the set, oldest first; there is at least one.
    bundles: Vec<TrustBundle>,
}

/// The authority as it is now: another one from the moment on in which a CA changes its phase.
pub struct CurrentAuthority(RwLock<Arc<Authority>>);

/// The keys of the CA that signs.
#[derive(Clone)]
struct Signing {
    certificate: Vec<u8>,
    x509: (KeyId, PublicKey),
    join_state: (KeyId, PublicKey),
    ssh_host: (KeyId, PublicKey),
}

/// The key store, which one authority leaves to the next. Threads use it side by side: what must take turns, the store orders.
#[derive(Clone)]
struct SharedKeys(Arc<dyn KeyStore>);

/// Why the authority did not sign.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaError {
    /// The stored CA certificates cannot be used.
    Certificate(String),
    /// A chain of certificates that cannot be taken.
    Chain(String),
    /// The key store failed.
    Key(KeyError),
    /// A certificate could not be put together from the names asked for.
    Names(String),
}

impl std::fmt::Display for CaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate(why) => write!(f, "CA certificate: {why}"),
            Self::Chain(why) => write!(f, "chain of certificates: {why}"),
            Self::Key(e) => write!(f, "CA key: {e}"),
            Self::Names(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CaError {}

impl From<KeyError> for CaError {
    fn from(e: KeyError) -> Self {
        Self::Key(e)
    }
}

/// Names of clusters' keys that the store has.
pub fn present(keys: &dyn KeyStore) -> Result<Vec<KeyId>, KeyError> {
    let of_cluster = |id: &str| ALL.iter().any(|name| id.strip_prefix(name).is_some_and(is_number));
    let mut found = Vec::new();
    keys.list(&mut |id| {
        if of_cluster(id.as_str()) {
            found.push(id.clone());
        }
    })?;
    Ok(found)
}

/// Makes the keys of CA `number` that are missing: what was interrupted goes on where it stopped.
pub fn make_keys(keys: &dyn KeyStore, number: u32) -> Result<(), KeyError> {
    let offered = keys.capabilities()?.algorithms;
    let preferred = *offered.first().ok_or_else(|| KeyError::new(ErrorKind::Unsupported, "a key store without algorithms"))?;
    // X.509 and join states are verified by many others: P-256 everywhere. SSH as the store prefers.
    let wanted = [(X509, Algorithm::EcdsaP256), (JOIN_STATE, Algorithm::EcdsaP256), (SSH_USER, preferred), (SSH_HOST, preferred)];
    for (name, algorithm) in wanted {
        let id = key_id(&numbered(name, number))?;
        match keys.public_key(&id) {
            Err(e) if e.kind() == ErrorKind::NotFound => keys.generate(&id, algorithm)?,
            found => found?,
        };
    }
    Ok(())
}

/// The name of a key of CA `number`. The first CA's have none behind theirs.
fn numbered(name: &str, number: u32) -> String {
    if number == 1 { name.into() } else { format!("{name}-{number}") }
}

/// What [`numbered`] puts behind a name.
fn is_number(suffix: &str) -> bool {
    suffix.is_empty() || suffix.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn key_id(name: &str) -> Result<KeyId, KeyError> {
    name.parse().map_err(|e| KeyError::new(ErrorKind::Other, e))
}

impl SharedKeys {
    fn new(keys: Box<dyn KeyStore>) -> Self {
        Self(keys.into())
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, KeyError> {
        self.0.public_key(id)
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, KeyError> {
        self.0.sign(id, message)
    }
}

impl CurrentAuthority {
    /// Begins with `authority`.
    pub fn new(authority: Authority) -> Self {
        Self(RwLock::new(Arc::new(authority)))
    }

    /// The authority now.
    pub fn now(&self) -> Arc<Authority> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another in its place.
    pub fn replace(&self, authority: Authority) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
    }
}

impl Authority {
    /// The authority of `cluster` with its keys and the CAs of `set`. The key store must have the keys of each CA that is not retired.
    pub fn new(cluster: &str, keys: Box<dyn KeyStore>, set: CaSet) -> Result<Self, CaError> {
        Self::of(cluster, SharedKeys::new(keys), set)
    }

    /// The authority of a new cluster whose one CA has the certificate that `chain` begins with; above it those that issued it.
    pub fn first(cluster: &str, keys: Box<dyn KeyStore>, chain: Vec<Vec<u8>>, now: Timestamp) -> Result<Self, CaError> {
        let keys = SharedKeys::new(keys);
        let set = CaSet::first(cluster, &keys, chain, now)?;
        Self::of(cluster, keys, set)
    }

    /// The authority of a new cluster, under another's root: `chain` is what came back for [`Self::request`], PEM.
    pub fn under_root(
        cluster: &str,
        keys: Box<dyn KeyStore>,
        server_names: &[String],
        chain: &[u8],
        random: &dyn Random,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let keys = SharedKeys::new(keys);
        let unusable = |why: String| CaError::Chain(why);
        let key = match keys.public_key(&KeyNames::of(1)?.x509) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(unusable("there is no key that it could be for: `init --ca-request FILE` makes it".into()));
            }
            key => key?,
        };
        let chain = chain::check(chain, &key, now).map_err(unusable)?;
        let authority = Self::of(cluster, keys.clone(), CaSet::first(cluster, &keys, chain, now)?)?;
        // What it issues has to hold under the root for those that know no more than that: constraints on names show here.
        let server = authority.issue_server(server_names, None, now, random)?;
        chain::holds(&server.certificate, &authority.tls_chain()?, now).map_err(unusable)?;
        Ok(authority)
    }

    /// The request (PKCS#10, PEM) for the certificate of a new cluster's CA, whose keys have to be there.
    pub fn request(cluster: &str, keys: Box<dyn KeyStore>) -> Result<String, CaError> {
        Ok(pem::certificate_request(&chain::request(cluster, &SharedKeys::new(keys))?))
    }

    fn of(cluster: &str, keys: SharedKeys, set: CaSet) -> Result<Self, CaError> {
        set.trusted().try_for_each(|ca| ca.check(&keys))?;
        let ca = set.active()?;
        let names = KeyNames::of(ca.number)?;
        let active = Signing {
            certificate: ca.certificate().to_vec(),
            x509: (names.x509, ca.key()?),
            join_state: (names.join_state, ca.join_state_key()?),
            ssh_host: (names.ssh_host, ca.ssh_host.0.clone()),
        };
        let join_state_keys = set.believed().map(Ca::join_state_key).collect::<Result<_, _>>()?;
        let bundles = set.bundles.iter().map(|text| TrustBundle::open(text)).collect::<Result<Vec<_>, _>>();
        let bundles = bundles.map_err(|e| CaError::Certificate(e.to_string()))?;
        if bundles.is_empty() {
            return Err(CaError::Certificate("there is no trust bundle".into()));
        }
        Ok(Self { cluster: cluster.into(), keys, set, active, join_state_keys, bundles })
    }

    /// That the keys sign, and are those of the certificate: a TPM that was cleared still has its key files.
    pub fn probe(&self) -> Result<(), KeyError> {
        let Signing { x509, join_state, ssh_host, .. } = &self.active;
        for (id, key) in [x509, join_state, ssh_host] {
            let signature = self.sign(id, PROBE)?;
            boundkey_hal::verify::checked(key, PROBE, signature)?;
        }
        Ok(())
    }

    /// The CAs.
    pub fn set(&self) -> &CaSet {
        &self.set
    }

    /// The certificate of the CA that signs, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.active.certificate
    }

    /// Last moment of the CA certificate: no certificate that it signed is valid after that.
    pub fn ends(&self) -> Result<Timestamp, CaError> {
        request::validity(self.certificate()).map(|(_, end)| end).map_err(CaError::Certificate)
    }

    /// The same authority, without the audit events that the database has by now.
    #[must_use]
    pub fn without_pending_events(&self) -> Self {
        let Self { cluster, keys, set, active, join_state_keys, bundles } = self;
        let (keys, active, join_state_keys) = (keys.clone(), active.clone(), join_state_keys.clone());
        let mut set = set.clone();
        set.pending_events.clear();
        Self { cluster: cluster.clone(), keys, set, active, join_state_keys, bundles: bundles.clone() }
    }

    /// The same authority, with an audit event that the database has yet to get.
    #[must_use]
    pub fn with_pending_event(mut self, event: Event) -> Self {
        self.set.pending_events.push(event);
        self
    }

    /// The newest trust bundle.
    pub fn newest_bundle(&self) -> Option<&TrustBundle> {
        self.bundles.last()
    }

    /// The trust bundles that a device lacks whose own has sequence number `held`; all of them for a device that has none.
    pub fn bundles_after(&self, held: Option<u64>) -> Vec<String> {
        let lacking = self.bundles.iter().filter(|bundle| held.is_none_or(|held| bundle.sequence() > held));
        lacking.map(|bundle| bundle.text().to_owned()).collect()
    }

    /// Certificates of every CA that counts, and those above them, PEM.
    pub fn certificates(&self) -> String {
        let all = self.newest_bundle().map(TrustBundle::certificates).unwrap_or_default();
        all.iter().map(|der| pem::certificate(der)).collect()
    }

    /// What the TLS server sends behind its own certificate: what devices need to get from a CA that they know to the one that signs.
    pub fn tls_chain(&self) -> Result<Vec<Vec<u8>>, CaError> {
        self.set.tls_chain()
    }

    /// For `ca_pins`: `sha256:` and the SHA-256 of the SubjectPublicKeyInfo, in hexadecimal, of the CA that signs; of the topmost one
    /// where that stands under another's root.
    pub fn pin(&self) -> Result<String, CaError> {
        let pins = self.set.active()?.root()?.pins();
        let pin = pins.last().ok_or_else(|| CaError::Certificate("a CA without a certificate".into()))?;
        Ok(pin_text(pin))
    }

    /// Keys whose join states are believed: of old CAs too, for a join state has no end, and a device may have been off for years.
    pub fn join_state_keys(&self) -> &[PublicKey] {
        &self.join_state_keys
    }

    /// Signs a join state.
    pub fn sign_join_state(&self, claims: &Claims) -> Result<String, KeyError> {
        let (id, key) = &self.active.join_state;
        claims.sign(key, |message| self.sign(id, message))
    }

    /// The step that an identity certificate of ours was issued for.
    pub fn identity(&self, der: &[u8]) -> Result<ShownCertificate, String> {
        let shown = request::open_identity(der, self.set.believed().map(Ca::certificate))?;
        let subject = IdentitySubject::from_uri(&shown.uri).ok_or("it is not an identity certificate")?;
        Ok(ShownCertificate { subject, not_after: shown.not_after, key: shown.key })
    }

    /// The instance that a certificate names. The signature is not checked, so the name serves to look the instance up and for
    /// nothing else.
    pub fn named_instance(der: &[u8]) -> Option<Id> {
        Some(IdentitySubject::from_uri(&request::uri(der)?)?.step.instance)
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, KeyError> {
        self.keys.sign(id, message)
    }
}
