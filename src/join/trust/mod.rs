//! The trust bundle: which CAs of a cluster a device trusts, as a statement that one of them signed.
//!
//! ```text
//!  pins ──▶ bundle signed by R1: {R1} ──▶ by R1: {R1, R2} ──▶ by R2: {R2} ──▶ ...
//! ```
//! A device takes a bundle only if a root that it trusts already signed it, and if its sequence number is greater than that of the bundle
//! it has. The first one must be signed by a root whose key, or that of a CA above it, is pinned. So trust goes from root to root and
//! comes from nowhere else, and a device that was off meanwhile follows the same way later.

mod certificate;

use boundkey_hal::{Error as KeyError, PublicKey, Signature};
use serde::{Deserialize, Serialize};

use super::jws::Header;
use super::{Jws, SshKey, Thumbprint, base64url};
pub use certificate::CaCertificate;

/// Most roots in one bundle.
pub const MAX_ROOTS: usize = 4;
/// Most certificates of one root: its own, and those above it.
pub const MAX_CHAIN: usize = 4;
/// Longest bundle, in bytes of its compact JWS.
pub const MAX_BUNDLE: usize = 12 * 1024;
/// Most bundles in one answer.
pub const MAX_BUNDLES: usize = 8;
/// `typ` of the protected header (RFC 7515 section 4.1.9): no other JWS passes for a bundle, nor a bundle for another.
const TYPE: &str = "trust-bundle+jwt";

/// SHA-256 of a SubjectPublicKeyInfo, as `ca_pins` gives it.
pub type Pin = [u8; 32];

/// What the text of a pin begins with.
pub const PIN: &str = "sha256:";

/// A pin as text: [`PIN`] and 64 hexadecimal digits.
pub fn pin_text(pin: &Pin) -> String {
    use std::fmt::Write as _;
    pin.iter().fold(PIN.to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A trust bundle whose signature was verified with the key of one of its own roots. Whether that root is to be trusted is for
/// [`Trusted`] to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    cluster: String,
    sequence: u64,
    roots: Vec<Root>,
    ssh_host: Vec<SshKey>,
    /// The root that signed, as an index.
    signer: usize,
    text: String,
}

/// A CA that a bundle names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its certificate, DER; then the one that issued it, and so on, where it stands under another's root.
    pub chain: Vec<Vec<u8>>,
    /// Its key.
    pub key: PublicKey,
}

/// Payload of the JWS.
#[derive(Serialize, Deserialize)]
struct Statement {
    cluster: String,
    sequence: u64,
    roots: Vec<Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ssh_host: Vec<SshKey>,
}

/// What a bundle says.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Its sequence number.
    pub sequence: u64,
    /// Chains of its roots, DER each.
    pub roots: &'a [Vec<Vec<u8>>],
    /// The keys that sign SSH host certificates.
    pub ssh_host: &'a [SshKey],
}

/// Why a trust bundle is not taken. Nothing of it may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustError {
    /// It is of another cluster.
    Cluster(String),
    /// The server's own certificate does not hold under it.
    Connection,
    /// It is malformed, or beyond a limit.
    Form(&'static str),
    /// There is none, and this device has none.
    Missing,
    /// Its sequence number is not greater than the one held.
    Sequence {
        /// The number held.
        held: u64,
        /// The one that came.
        came: u64,
    },
    /// No root that is trusted signed it.
    Untrusted,
}

impl std::fmt::Display for TrustError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "the trust bundle is of another cluster, {name}"),
            Self::Connection => f.write_str("the server's own certificate does not hold under the trust bundle that it sent"),
            Self::Form(why) => write!(f, "the trust bundle cannot be used: {why}"),
            Self::Missing => f.write_str("the answer holds no trust bundle, and this device has none"),
            Self::Sequence { held, came } => write!(f, "the trust bundle is of sequence {came}, and the one held is of {held}"),
            Self::Untrusted => f.write_str("no CA that this device trusts signed the trust bundle"),
        }
    }
}

impl std::error::Error for TrustError {}

impl TrustBundle {
    /// Signs a bundle; `key` is that of one of its roots, and `sign` signs with it. Returns the compact JWS.
    pub fn sign(
        contents: Contents<'_>,
        key: &PublicKey,
        sign: impl FnOnce(&[u8]) -> Result<Signature, KeyError>,
    ) -> Result<String, KeyError> {
        let chain = |chain: &Vec<Vec<u8>>| chain.iter().map(base64url::encode).collect();
        let statement = Statement {
            cluster: contents.cluster.into(),
            sequence: contents.sequence,
            roots: contents.roots.iter().map(chain).collect(),
            ssh_host: contents.ssh_host.to_vec(),
        };
        let header = Header { typ: Some(TYPE.into()), ..Header::by_thumbprint(key) };
        Ok(Jws::sign(&header, &statement, sign)?.to_compact())
    }

    /// Reads a compact JWS and verifies it with the root that its header names, which must be one of its own.
    pub fn open(text: &str) -> Result<Self, TrustError> {
        if text.len() > MAX_BUNDLE {
            return Err(TrustError::Form("it is too long"));
        }
        let malformed = |_| TrustError::Form("it is malformed");
        let jws = Jws::from_compact(text).map_err(malformed)?;
        let header = jws.header().map_err(malformed)?;
        if header.typ.as_deref() != Some(TYPE) {
            return Err(TrustError::Form("it is a JWS of another type"));
        }
        let signer: Thumbprint =
            header.kid.as_deref().and_then(|kid| kid.parse().ok()).ok_or(TrustError::Form("its header names no key"))?;
        // Read before it is verified, for the key that verifies it stands in it.
        let Statement { cluster, sequence, roots, ssh_host } = jws.unverified_payload().map_err(malformed)?;
        if roots.is_empty() || roots.len() > MAX_ROOTS || ssh_host.len() > MAX_ROOTS {
            return Err(TrustError::Form("it has no root, or too many"));
        }
        let roots = roots.iter().map(|chain| Root::open(chain)).collect::<Result<Vec<_>, _>>()?;
        let place = roots.iter().position(|root| Thumbprint::of(&root.key) == signer);
        let place = place.ok_or(TrustError::Form("none of its own roots signed it"))?;
        jws.verify::<Statement>(&roots[place].key).map_err(|_| TrustError::Form("its signature does not verify"))?;
        Ok(Self { cluster, sequence, roots, ssh_host, signer: place, text: text.into() })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The sequence number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The roots.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The keys that sign SSH host certificates.
    pub fn ssh_host(&self) -> &[SshKey] {
        &self.ssh_host
    }

    /// The compact JWS.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The root that signed.
    pub fn signer(&self) -> &Root {
        &self.roots[self.signer]
    }

    /// Every certificate in it, DER.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for der in self.roots.iter().flat_map(|root| &root.chain) {
            if !all.contains(der) {
                all.push(der.clone());
            }
        }
        all
    }
}

impl Root {
    fn open(chain: &[String]) -> Result<Self, TrustError> {
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(TrustError::Form("a root has no certificate, or too many"));
        }
        let decode = |text: &String| base64url::decode(text).map_err(|_| TrustError::Form("a certificate is not base64url"));
        let chain = chain.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        Self::of(chain)
    }

    /// A root with its chain of certificates, each of which the next one must have issued.
    pub fn of(chain: Vec<Vec<u8>>) -> Result<Self, TrustError> {
        let unreadable = TrustError::Form("a certificate cannot be read");
        let read = chain.iter().map(|der| CaCertificate::read(der)).collect::<Option<Vec<_>>>().ok_or(unreadable)?;
        if !read.iter().all(|certificate| certificate.is_ca) {
            return Err(TrustError::Form("a certificate is not that of a CA"));
        }
        if !read.windows(2).all(|pair| pair[0].is_issued_by(&pair[1])) {
            return Err(TrustError::Form("a certificate was not issued by the next one"));
        }
        let key = read.first().and_then(CaCertificate::key).ok_or(TrustError::Form("a root's key is not one of P-256"))?;
        Ok(Self { chain, key })
    }

    /// The pins of its certificates, its own first.
    pub fn pins(&self) -> Vec<Pin> {
        self.chain.iter().filter_map(|der| Some(CaCertificate::read(der)?.pin())).collect()
    }
}

/// A bundle that a device trusts, and the pin from which that trust comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// The pin of the configuration that vouched for the first bundle.
    pub anchor: Pin,
    /// The newest bundle.
    pub bundle: TrustBundle,
}

impl Trusted {
    /// Begins with the first of `texts` that `pins` vouch for, and follows the others.
    pub fn begin(pins: &[Pin], texts: &[String]) -> Result<Self, TrustError> {
        let bundles = open_all(texts)?;
        let vouched = |bundle: &TrustBundle| bundle.signer().pins().into_iter().find(|pin| pins.contains(pin));
        for (at, first) in bundles.iter().enumerate() {
            if let Some(anchor) = vouched(first) {
                return Self { anchor, bundle: first.clone() }.follow_opened(&bundles[at + 1..]);
            }
        }
        Err(if bundles.is_empty() { TrustError::Missing } else { TrustError::Untrusted })
    }

    /// Follows `texts`, oldest first, from the bundle that is trusted now. Those that no root trusted by then signed are passed over, but
    /// the last must be taken.
    pub fn follow(&self, texts: &[String]) -> Result<Self, TrustError> {
        self.clone().follow_opened(&open_all(texts)?)
    }

    fn follow_opened(mut self, bundles: &[TrustBundle]) -> Result<Self, TrustError> {
        for bundle in bundles {
            let (held, came) = (self.bundle.sequence, bundle.sequence);
            if came <= held {
                return Err(TrustError::Sequence { held, came });
            }
            if bundle.cluster != self.bundle.cluster {
                return Err(TrustError::Cluster(bundle.cluster.clone()));
            }
            if self.bundle.roots.iter().any(|root| root.key == bundle.signer().key) {
                self.bundle = bundle.clone();
            }
        }
        match bundles.last() {
            Some(last) if *last != self.bundle => Err(TrustError::Untrusted),
            _ => Ok(self),
        }
    }
}

/// Reads all, whose sequence numbers must rise.
fn open_all(texts: &[String]) -> Result<Vec<TrustBundle>, TrustError> {
    if texts.len() > MAX_BUNDLES {
        return Err(TrustError::Form("there are too many"));
    }
    let bundles = texts.iter().map(|text| TrustBundle::open(text)).collect::<Result<Vec<_>, _>>()?;
    match bundles.windows(2).find(|pair| pair[1].sequence <= pair[0].sequence) {
        Some(pair) => Err(TrustError::Sequence { held: pair[0].sequence, came: pair[1].sequence }),
        None => Ok(bundles),
    }
}

#[cfg(test)]
mod tests;
