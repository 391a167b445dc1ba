//! The CAs of a cluster, old and new, as `ca.json` keeps them: public halves, phases, and the trust bundles that devices follow.

use boundkey_hal::{KeyId, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{CaError, SharedKeys, request};
use boundkey_api::ca::Phase;
use boundkey_api::event::Event;
use boundkey_join::trust::{Contents, Root, pin_text};
use boundkey_join::{Jwk, SshKey, TrustBundle, base64url};
use boundkey_platform::time::Timestamp;

/// The layout that this version writes.
const FORMAT: u32 = 1;

/// The content of `ca.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaSet {
    format: u32,
    /// The CAs, oldest first. One of them is active.
    pub cas: Vec<Ca>,
    /// Of each CA that ever signed a trust bundle the last one that it signed, compact JWSs by rising sequence number. That is enough for
    /// every device: the last bundle by a CA that a device trusts names the CA that came after it.
    pub bundles: Vec<String>,
    /// Audit events of steps, until the database has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "untold")]
    pub pending_events: Vec<Event>,
}

/// One CA: a key for X.509, one for SSH host certificates and one for join states, which are replaced together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ca {
    /// Its place in the line: the one that `init` made is 1.
    pub number: u32,
    /// Where it stands.
    pub phase: Phase,
    /// Since when it stands there.
    pub since: Timestamp,
    /// Sequence number of the trust bundle since which all of them name it; of a retired one, that of the last.
    pub known_since: u64,
    /// Whether it ever was active.
    #[serde(default)]
    pub has_signed: bool,
    /// The CA that was active when this one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u32>,
    /// Its certificate, then the one that issued it, and so on: DER.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub chain: Vec<Vec<u8>>,
    /// Cross certificates (RFC 4210 section 4.4), DER: first this CA's by the one that it follows; then, once a step was taken back, that
    /// one's by this. A device that trusts the issuer can verify what the other one signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "to_text", deserialize_with = "from_text")]
    pub cross: Vec<Vec<u8>>,
    /// Verifies the join states that it signed.
    pub join_state: Jwk,
    /// Verifies the SSH host certificates that it signed.
    pub ssh_host: SshKey,
    /// Whether its keys are in other hands, so that nothing they signed counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compromised: bool,
}

/// Names of the keys of one CA in the key store.
pub(super) struct KeyNames {
    pub(super) x509: KeyId,
    pub(super) join_state: KeyId,
    pub(super) ssh_host: KeyId,
}

impl KeyNames {
    pub(super) fn of(number: u32) -> Result<Self, CaError> {
        let id = |name| super::key_id(&super::numbered(name, number));
        Ok(Self { x509: id(super::X509)?, join_state: id(super::JOIN_STATE)?, ssh_host: id(super::SSH_HOST)? })
    }
}

impl CaSet {
    /// The set of a cluster with one CA, whose certificate and those above it are `chain`.
    pub(super) fn first(cluster: &str, keys: &SharedKeys, chain: Vec<Vec<u8>>, now: Timestamp) -> Result<Self, CaError> {
        let ca = Ca::open(1, Phase::Active, chain, keys, now)?;
        let mut set = Self { format: FORMAT, cas: vec![ca], bundles: Vec::new(), pending_events: Vec::new() };
        set.cas[0].known_since = set.sign_bundle(cluster, keys, now)?;
        Ok(set)
    }

    /// Reads `ca.json`.
    pub fn read(json: &[u8]) -> Result<Self, CaError> {
        let unusable = |why: String| CaError::Certificate(why);
        let set: Self = serde_json::from_slice(json).map_err(|e| unusable(e.to_string()))?;
        if set.format != FORMAT {
            return Err(unusable(format!("format {} is of another version; this one knows {FORMAT}", set.format)));
        }
        if set.cas.iter().filter(|ca| ca.phase == Phase::Active).count() != 1 {
            return Err(unusable("not one CA is active".into()));
        }
        set.newest_bundle()?;
        Ok(set)
    }

    /// The content of `ca.json`.
    pub fn to_json(&self) -> Result<Vec<u8>, CaError> {
        serde_json::to_vec_pretty(self).map_err(|e| CaError::Certificate(e.to_string()))
    }

    /// The CA that signs.
    pub fn active(&self) -> Result<&Ca, CaError> {
        let active = self.cas.iter().find(|ca| ca.phase == Phase::Active);
        active.ok_or_else(|| CaError::Certificate("no CA is active".into()))
    }

    /// The CAs that trust bundles name.
    pub fn trusted(&self) -> impl Iterator<Item = &Ca> {
        self.cas.iter().filter(|ca| ca.phase.is_trusted())
    }

    /// See [`super::Authority::tls_chain`].
    pub(super) fn tls_chain(&self) -> Result<Vec<Vec<u8>>, CaError> {
        let active = self.active()?;
        let mut chain = if active.chain.len() > 1 { active.chain.clone() } else { Vec::new() };
        // Down to the first: each is certified by the one that it follows, and the first is what the oldest pins name.
        let mut at = active;
        while let (Some(previous), Some(by_previous)) = (at.follows.and_then(|number| self.ca(number)), at.cross.first()) {
            chain.push(by_previous.clone());
            at = previous;
        }
        chain.extend(at.chain.iter().cloned());
        // A step was taken back: for devices that know only the one that was active meanwhile.
        let was_active = |ca: &&Ca| ca.has_signed && ca.phase.is_trusted() && ca.follows == Some(active.number);
        for ca in self.cas.iter().filter(was_active) {
            chain.extend(ca.cross.get(1).cloned());
            chain.extend(ca.chain.iter().cloned());
        }
        let mut seen = Vec::with_capacity(chain.len());
        chain.retain(|der| {
            let is_new = !seen.contains(der);
            seen.push(der.clone());
            is_new
        });
        Ok(chain)
    }

    /// The CAs whose signatures count: those that signed at any time and are in no other hands. One that was never active signed nothing.
    pub(super) fn believed(&self) -> impl Iterator<Item = &Ca> {
        self.cas.iter().filter(|ca| !ca.compromised && (ca.has_signed || ca.phase == Phase::Active))
    }

    fn ca(&self, number: u32) -> Option<&Ca> {
        self.cas.iter().find(|ca| ca.number == number)
    }

    /// The newest trust bundle.
    pub fn newest_bundle(&self) -> Result<TrustBundle, CaError> {
        let newest = self.bundles.last().ok_or_else(|| CaError::Certificate("there is no trust bundle".into()))?;
        TrustBundle::open(newest).map_err(|e| CaError::Certificate(e.to_string()))
    }

    /// Signs a bundle of what is trusted now, by the CA that is active now.
    ///
    /// Its sequence number, which is returned, is the time in seconds where that is greater than the one before it: so it rises also after a
    /// restore of an older `ca.json`.
    pub(super) fn sign_bundle(&mut self, cluster: &str, keys: &SharedKeys, now: Timestamp) -> Result<u64, CaError> {
        let before = if self.bundles.is_empty() { 0 } else { self.newest_bundle()?.sequence() };
        let sequence = now.secs().max(before + 1);
        let roots: Vec<_> = self.trusted().map(|ca| ca.chain.clone()).collect();
        let ssh_host: Vec<_> = self.trusted().map(|ca| ca.ssh_host.clone()).collect();
        let active = self.active()?.clone();
        let (id, key) = (KeyNames::of(active.number)?.x509, active.key()?);
        let contents = Contents { cluster, sequence, roots: &roots, ssh_host: &ssh_host };
        let text = TrustBundle::sign(contents, &key, |message| keys.sign(&id, message))?;
        // The last one by each CA is kept.
        self.forget_bundles_of(&active);
        self.bundles.push(text);
        Ok(sequence)
    }

    pub(super) fn forget_bundles_of(&mut self, ca: &Ca) {
        let by_it = |text: &String| {
            TrustBundle::open(text).is_ok_and(|bundle| bundle.signer().chain.first().map(Vec::as_slice) == Some(ca.certificate()))
        };
        self.bundles.retain(|text| !by_it(text));
    }
}

impl Ca {
    /// The CA of this number, with its keys as they are in the key store.
    pub(super) fn open(
        number: u32,
        phase: Phase,
        chain: Vec<Vec<u8>>,
        keys: &SharedKeys,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let names = KeyNames::of(number)?;
        let ca = Self {
            number,
            phase,
            since: now,
            known_since: 0,
            has_signed: phase == Phase::Active,
            follows: None,
            chain,
            cross: Vec::new(),
            join_state: (&keys.public_key(&names.join_state)?).into(),
            ssh_host: SshKey(keys.public_key(&names.ssh_host)?),
            compromised: false,
        };
        ca.check(keys)?;
        Ok(ca)
    }

    /// That the key store has the keys that this is of.
    pub(super) fn check(&self, keys: &SharedKeys) -> Result<(), CaError> {
        let names = KeyNames::of(self.number)?;
        let expected =
            [(&names.x509, self.key()?), (&names.join_state, self.join_state_key()?), (&names.ssh_host, self.ssh_host.0.clone())];
        for (id, expected) in expected {
            if keys.public_key(id)? != expected {
                let why = format!("{id} in the key store is another key than the one of CA {}", self.number);
                return Err(CaError::Certificate(why));
            }
        }
        Ok(())
    }

    /// Its key for X.509.
    pub fn key(&self) -> Result<PublicKey, CaError> {
        Ok(self.root()?.key)
    }

    /// What a trust bundle says of it.
    pub fn root(&self) -> Result<Root, CaError> {
        Root::of(self.chain.clone()).map_err(|e| CaError::Certificate(format!("CA {}: {e}", self.number)))
    }

    /// The pin of its own certificate, as text.
    pub fn pin(&self) -> Result<String, CaError> {
        let pins = self.root()?.pins();
        pins.first().map(pin_text).ok_or_else(|| CaError::Certificate("a CA without a certificate".into()))
    }

    /// The last moment of its certificate.
    pub fn ends(&self) -> Result<Timestamp, CaError> {
        request::validity(self.certificate()).map(|(_, end)| end).map_err(CaError::Certificate)
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        self.chain.first().map_or(&[], Vec::as_slice)
    }

    pub(super) fn join_state_key(&self) -> Result<PublicKey, CaError> {
        PublicKey::try_from(&self.join_state).map_err(|e| CaError::Certificate(format!("CA {}: {e}", self.number)))
    }
}

fn to_text<S: Serializer>(certificates: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(certificates.iter().map(base64url::encode))
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| base64url::decode(text).map_err(serde::de::Error::custom)).collect()
}
