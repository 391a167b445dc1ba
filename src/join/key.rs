//! Public keys as the protocol writes them: JWK (RFC 7517, RFC 8037), their thumbprints (RFC 7638), and the line of an
//! SSH `authorized_keys` file in which people pass them on.

use std::fmt;
use std::str::FromStr;

use boundkey_hal::{Algorithm, InvalidKey, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData};

use super::base64url;

/// A public key as a JSON Web Key: `EC` with `P-256`, or `OKP` with `Ed25519`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum Jwk {
    /// RFC 7518 section 6.2.
    EC {
        /// `P-256`.
        crv: String,
        /// Base64url of the 32-byte coordinate.
        x: String,
        /// Base64url of the 32-byte coordinate.
        y: String,
    },
    /// RFC 8037 section 2.
    OKP {
        /// `Ed25519`.
        crv: String,
        /// Base64url of the 32-byte key.
        x: String,
    },
}

impl From<&PublicKey> for Jwk {
    fn from(key: &PublicKey) -> Self {
        let bytes = key.as_bytes();
        match key.algorithm() {
            Algorithm::EcdsaP256 => {
                Self::EC { crv: "P-256".into(), x: base64url::encode(&bytes[1..33]), y: base64url::encode(&bytes[33..]) }
            }
            Algorithm::Ed25519 => Self::OKP { crv: "Ed25519".into(), x: base64url::encode(bytes) },
        }
    }
}

impl TryFrom<&Jwk> for PublicKey {
    type Error = InvalidKey;

    fn try_from(jwk: &Jwk) -> Result<Self, InvalidKey> {
        let bytes = |text: &str| base64url::decode(text).map_err(|_| InvalidKey("a JWK coordinate that is not base64url"));
        match jwk {
            Jwk::EC { crv, x, y } if crv == "P-256" => {
                let (x, y) = (bytes(x)?, bytes(y)?);
                if x.len() != 32 || y.len() != 32 {
                    return Err(InvalidKey("a P-256 coordinate that is not 32 bytes long"));
                }
                PublicKey::new(Algorithm::EcdsaP256, &[&[4], &x[..], &y[..]].concat())
            }
            Jwk::OKP { crv, x } if crv == "Ed25519" => PublicKey::new(Algorithm::Ed25519, &bytes(x)?),
            _ => Err(InvalidKey("a JWK of a curve other than P-256 and Ed25519")),
        }
    }
}

/// The SHA-256 thumbprint of a public key (RFC 7638), written in base64url: the name of a key in the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// The thumbprint of `key`.
    pub fn of(key: &PublicKey) -> Self {
        // RFC 7638 section 3.2 and RFC 8037 section 2: required members only, in lexicographic order, no white space.
        let canonical = match Jwk::from(key) {
            Jwk::EC { crv, x, y } => format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#),
            Jwk::OKP { crv, x } => format!(r#"{{"crv":"{crv}","kty":"OKP","x":"{x}"}}"#),
        };
        let mut print = [0; 32];
        print.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()).as_ref());
        Self(print)
    }

    /// The digest.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url::encode(self.0))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Thumbprint {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = base64url::decode(text).ok().and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or(InvalidKey("not a key thumbprint: 43 characters of base64url"))
    }
}

impl Serialize for Thumbprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Thumbprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A public key that reads and writes as a line of `authorized_keys` (sshd(8), RFC 4253 section 6.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey(pub PublicKey);

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_bytes();
        let data = match self.0.algorithm() {
            Algorithm::EcdsaP256 => EcdsaPublicKey::from_sec1_bytes(bytes).map(KeyData::Ecdsa).map_err(|_| fmt::Error)?,
            Algorithm::Ed25519 => KeyData::Ed25519(Ed25519PublicKey(bytes.try_into().map_err(|_| fmt::Error)?)),
        };
        f.write_str(&ssh_key::PublicKey::from(data).to_openssh().map_err(|_| fmt::Error)?)
    }
}

impl FromStr for SshKey {
    type Err = InvalidKey;

    fn from_str(line: &str) -> Result<Self, InvalidKey> {
        let key = ssh_key::PublicKey::from_openssh(line.trim()).map_err(|_| {
            InvalidKey("not a public key as in authorized_keys: \"ssh-ed25519 AAAA...\" or \"ecdsa-sha2-nistp256 AAAA...\"")
        })?;
        match key.key_data() {
            KeyData::Ed25519(key) => PublicKey::new(Algorithm::Ed25519, key.as_ref()),
            KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) => PublicKey::new(Algorithm::EcdsaP256, point.as_bytes()),
            _ => Err(InvalidKey("an SSH key that is neither Ed25519 nor NIST P-256")),
        }
        .map(Self)
    }
}

impl Serialize for SshKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SshKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037 appendix A.3 gives this key and thumbprint.
    #[test]
    fn thumbprint_of_rfc_8037() {
        let jwk = Jwk::OKP { crv: "Ed25519".into(), x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into() };
        let key = PublicKey::try_from(&jwk).unwrap();
        assert_eq!(Thumbprint::of(&key).to_string(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn ssh_line_there_and_back() {
        let p256 = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
        let ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
        for line in [p256, ed25519] {
            assert_eq!(line.parse::<SshKey>().unwrap().to_string(), line);
            assert_eq!(format!("{line} a comment\n").parse::<SshKey>().unwrap().to_string(), line);
        }
        for bad in ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ=="] {
            assert!(bad.parse::<SshKey>().is_err(), "{bad:?}");
        }
    }
}
