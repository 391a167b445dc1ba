//! JSON Web Signatures (RFC 7515) as ACME uses them (RFC 8555 section 6.2): flattened JSON with everything in the protected header.
//! Join states and trust bundles are compact.

use boundkey_hal::verify::{BadSignature, verify};
use boundkey_hal::{Algorithm, Error as KeyError, PublicKey, Signature};
use ring::hmac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::Jwk;
use super::{Thumbprint, base64url};

/// A flattened JWS (RFC 7515 section 7.2.2), without an unprotected header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jws {
    /// Base64url of the protected header's JSON.
    pub protected: String,
    /// Base64url of the payload.
    pub payload: String,
    /// Base64url of the signature.
    pub signature: String,
}

/// The protected header (RFC 7515 section 4, RFC 8555 section 6.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `ES256`, `EdDSA` or, for an external account binding, `HS256`.
    pub alg: String,
    /// `JWT` on a join state, `trust-bundle+jwt` on a trust bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typ: Option<String>,
    /// Thumbprint of the key, or the token's name on an external account binding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The key itself, where the server does not know it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwk: Option<Jwk>,
    /// The challenge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Where the request goes (RFC 8555 section 6.4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Certificate of the key, base64 (not base64url) of DER (RFC 7515 section 4.1.6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
}

impl Header {
    /// A header with `alg` alone.
    pub fn new(alg: &str) -> Self {
        Self { alg: alg.into(), typ: None, kid: None, jwk: None, nonce: None, url: None, x5c: None }
    }

    /// A header for a signature by `key`, named by its thumbprint.
    pub fn by_thumbprint(key: &PublicKey) -> Self {
        Self { kid: Some(Thumbprint::of(key).to_string()), ..Self::new(key.algorithm().jws_name()) }
    }

    /// A header for a signature by `key`, given whole.
    pub fn by_key(key: &PublicKey) -> Self {
        Self { jwk: Some(key.into()), ..Self::new(key.algorithm().jws_name()) }
    }

    /// The same header with the challenge and the place it goes to.
    #[must_use]
    pub fn to(self, url: &str, nonce: &str) -> Self {
        Self { nonce: Some(nonce.into()), url: Some(url.into()), ..self }
    }
}

/// What is wrong with a JWS that a peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwsError {
    /// `alg` is not that of the key.
    Algorithm,
    /// Not base64url, or not the JSON expected.
    Form,
    /// The signature does not fit.
    Signature,
}

impl std::fmt::Display for JwsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Algorithm => "a JWS whose algorithm is not that of its key",
            Self::Form => "a JWS that is malformed",
            Self::Signature => "a JWS whose signature does not verify",
        })
    }
}

impl std::error::Error for JwsError {}

impl From<BadSignature> for JwsError {
    fn from(_: BadSignature) -> Self {
        Self::Signature
    }
}

impl Jws {
    /// Signs `payload` under `header`; `sign` is handed the signing input (RFC 7515 section 5.1).
    pub fn sign(
        header: &Header,
        payload: &impl Serialize,
        sign: impl FnOnce(&[u8]) -> Result<Signature, KeyError>,
    ) -> Result<Self, KeyError> {
        let (protected, payload) = (encode_json(header), encode_json(payload));
        let signature = sign(signing_input(&protected, &payload).as_bytes())?;
        Ok(Self { protected, payload, signature: base64url::encode(signature.as_bytes()) })
    }

    /// Authenticates `payload` under `header` with HMAC-SHA256 (`HS256`, RFC 7518 section 3.2).
    pub fn authenticate(header: &Header, payload: &impl Serialize, secret: &[u8]) -> Self {
        let (protected, payload) = (encode_json(header), encode_json(payload));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&key, signing_input(&protected, &payload).as_bytes());
        Self { protected, payload, signature: base64url::encode(tag.as_ref()) }
    }

    /// The protected header, not yet verified.
    pub fn header(&self) -> Result<Header, JwsError> {
        decode_json(&self.protected)
    }

    /// The payload, which anyone may have written: for what says how it is to be verified.
    pub fn unverified_payload<T: DeserializeOwned>(&self) -> Result<T, JwsError> {
        decode_json(&self.payload)
    }

    /// The payload, once the signature by `key` is verified.
    pub fn verify<T: DeserializeOwned>(&self, key: &PublicKey) -> Result<T, JwsError> {
        if Algorithm::from_jws_name(&self.header()?.alg) != Some(key.algorithm()) {
            return Err(JwsError::Algorithm);
        }
        let signature = base64url::decode(&self.signature).map_err(|_| JwsError::Form)?;
        verify(key, signing_input(&self.protected, &self.payload).as_bytes(), &signature)?;
        decode_json(&self.payload)
    }

    /// The payload, once its HMAC under `secret` is verified, in constant time.
    pub fn verify_hmac<T: DeserializeOwned>(&self, secret: &[u8]) -> Result<T, JwsError> {
        if self.header()?.alg != "HS256" {
            return Err(JwsError::Algorithm);
        }
        let tag = base64url::decode(&self.signature).map_err(|_| JwsError::Form)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        hmac::verify(&key, signing_input(&self.protected, &self.payload).as_bytes(), &tag).map_err(|_| JwsError::Signature)?;
        decode_json(&self.payload)
    }

    /// The compact serialization (RFC 7515 section 7.1).
    pub fn to_compact(&self) -> String {
        format!("{}.{}.{}", self.protected, self.payload, self.signature)
    }

    /// Takes a compact serialization apart; nothing is verified.
    pub fn from_compact(text: &str) -> Result<Self, JwsError> {
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(protected), Some(payload), Some(signature), None) => {
                Ok(Self { protected: protected.into(), payload: payload.into(), signature: signature.into() })
            }
            _ => Err(JwsError::Form),
        }
    }
}

fn signing_input(protected: &str, payload: &str) -> String {
    format!("{protected}.{payload}")
}

fn encode_json(value: &impl Serialize) -> String {
    // Our own message types have string keys and no failing serializer: nothing here depends on a peer.
    base64url::encode(serde_json::to_vec(value).expect("protocol types serialize"))
}

fn decode_json<T: DeserializeOwned>(text: &str) -> Result<T, JwsError> {
    let bytes = base64url::decode(text).map_err(|_| JwsError::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| JwsError::Form)
}

#[cfg(test)]
mod tests {
    use boundkey_hal::file::PrivateKey;

    use super::*;

    /// RFC 7515 appendix A.3: ES256.
    #[test]
    fn verifies_rfc_7515_es256() {
        let jwk = Jwk::EC {
            crv: "P-256".into(),
            x: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU".into(),
            y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0".into(),
        };
        let key = PublicKey::try_from(&jwk).unwrap();
        let text = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let payload: serde_json::Value = Jws::from_compact(text).unwrap().verify(&key).unwrap();
        assert_eq!(payload["iss"], "joe");
    }

    #[test]
    fn every_altered_part_is_refused() {
        for algorithm in [Algorithm::Ed25519, Algorithm::EcdsaP256] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let public = key.public_key().unwrap();
            let jws = Jws::sign(&Header::by_key(&public).to("https://x/v1/join", "n"), &"payload", |m| key.sign(m)).unwrap();
            assert_eq!(jws.verify::<String>(&public).unwrap(), "payload");
            assert_eq!(Jws::from_compact(&jws.to_compact()).unwrap(), jws);
            let other = PrivateKey::generate(algorithm).unwrap().public_key().unwrap();
            assert_eq!(jws.verify::<String>(&other), Err(JwsError::Signature));
            let none = Jws { protected: encode_json(&Header::new("none")), ..jws.clone() };
            assert_eq!(none.verify::<String>(&public), Err(JwsError::Algorithm));
            let payload = Jws { payload: encode_json(&"another"), ..jws.clone() };
            assert_eq!(payload.verify::<String>(&public), Err(JwsError::Signature));
            let short = Jws { signature: jws.signature[..40].into(), ..jws.clone() };
            assert_eq!(short.verify::<String>(&public), Err(JwsError::Signature));
        }
    }

    #[test]
    fn hmac_needs_the_secret() {
        let jws = Jws::authenticate(&Header::new("HS256"), &1, b"secret");
        assert_eq!(jws.verify_hmac::<i32>(b"secret").unwrap(), 1);
        assert_eq!(jws.verify_hmac::<i32>(b"guess"), Err(JwsError::Signature));
    }
}
