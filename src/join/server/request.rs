//! From bytes of a peer to facts: every signature of a join request is verified here, and nothing is decided.

use std::net::IpAddr;

use boundkey_hal::PublicKey;

use super::challenge::{Challenge, SealingKey};
use super::view::TokenView;
use crate::identity::IdentitySubject;
use crate::jws::Header;
use crate::message::{JOIN_PATH, JoinRequest, RenewalProof, RotationProof};
use crate::{Claims, Id, Jwk, Jws, Problem, ProblemType, RecoveryMode, Thumbprint, base64url};
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

/// What a join request proves.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The key that signed it.
    pub key: PublicKey,
    /// Names the attempt, the same until the device has an answer.
    pub attempt: Id,
    /// The join state it came with.
    pub presented: Option<Presented>,
    /// The identity certificate whose key signed too.
    pub certificate: Option<ShownCertificate>,
    /// Why a renewal proof it came with was not taken for one.
    pub certificate_ignored: Option<String>,
    /// Whether it proved knowledge of the registration secret for this very key.
    pub secret_proven: bool,
    /// The new key, proven as well.
    pub new_key: Option<PublicKey>,
    /// Sequence number of the trust bundle that the device has, as it says. Of greater numbers than a store has, the greatest.
    pub trust_bundle: Option<u64>,
    /// The challenge that it answers.
    pub challenge: Challenge,
    /// Whether the token, or the instance that goes on by itself, has changed since the challenge was made. Nothing is granted then.
    pub stale: bool,
}

/// A join state as presented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// SHA-256 of its text, base64url.
    pub digest: String,
    /// What it claims, or why it is not believed.
    pub claims: Result<Claims, String>,
}

/// An identity certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownCertificate {
    /// Its subject.
    pub subject: IdentitySubject,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// The key that it certifies.
    pub key: PublicKey,
}

/// What every request is held against, whatever its token.
pub struct Cluster<'a> {
    /// The cluster's name.
    pub name: &'a str,
    /// Keys that sign join states.
    pub join_state_keys: &'a [PublicKey],
    /// Names and addresses under which devices reach the server.
    pub server_names: &'a [String],
    /// Checks a certificate (DER) to be an identity certificate of this cluster, whatever its time.
    pub certificate: &'a dyn Fn(&[u8]) -> Result<ShownCertificate, String>,
}

/// A request whose challenge is known to be ours, and that is not yet verified.
#[derive(Clone, Copy)]
pub struct Opened<'a> {
    jws: &'a Jws,
    cluster: &'a Cluster<'a>,
    token: TokenView<'a>,
    challenge: Challenge,
}

/// The request inside `jws`, not yet verified: to learn which token it is about.
pub fn peek(jws: &Jws) -> Result<JoinRequest, Problem> {
    let payload = base64url::decode(&jws.payload).map_err(|_| malformed("a payload that is not base64url"))?;
    serde_json::from_slice(&payload).map_err(|e| malformed(&format!("a join request that cannot be read: {e}")))
}

/// The certificate (DER) that a request shows, not yet verified: to look up what it names.
pub fn shown_certificate(request: &JoinRequest) -> Option<Vec<u8>> {
    certificate_in(&request.renewal.as_ref()?.header().ok()?).ok()
}

/// The challenge that `jws` names, not yet opened.
pub fn challenge_of(jws: &Jws) -> Result<String, Problem> {
    header(jws)?.nonce.ok_or_else(|| malformed("a JWS without a nonce"))
}

impl<'a> Opened<'a> {
    /// Opens the challenge that `jws` answers. One that is not ours, of another epoch or out of its time ends here, and nothing else
    /// of the request is looked at.
    pub fn open(
        jws: &'a Jws,
        sealing: &SealingKey,
        cluster: &'a Cluster<'a>,
        token: TokenView<'a>,
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let challenge = sealing.open(token.name, token.epoch, &challenge_of(jws)?, now)?;
        Ok(Self::new(jws, cluster, token, challenge))
    }

    /// A request that answers `challenge`.
    pub fn new(jws: &'a Jws, cluster: &'a Cluster<'a>, token: TokenView<'a>, challenge: Challenge) -> Self {
        Self { jws, cluster, token, challenge }
    }

    /// Verifies every signature of the request.
    ///
    /// Where the token has changed since the challenge was made, the key may have been rotated away meanwhile: a failure then says
    /// [`ProblemType::ChallengeStale`], and the device's next try tells.
    pub fn verify(&self) -> Result<(JoinRequest, Verified), Problem> {
        self.verified().map_err(|problem| {
            let shared = self.token.spec.recovery.mode == RecoveryMode::Insecure;
            let stale = !shared && self.challenge.anchor.revision != self.token.revision;
            if stale { ProblemType::ChallengeStale.into() } else { problem }
        })
    }

    fn verified(&self) -> Result<(JoinRequest, Verified), Problem> {
        let header = header(self.jws)?;
        let url = header.url.as_deref().unwrap_or_default();
        check_url(url, self.cluster.server_names)?;
        let key = self.signing_key(&header)?;
        let request: JoinRequest = self.jws.verify(&key).map_err(|_| Problem::from(ProblemType::KeyNotProven))?;
        let (certificate, certificate_ignored) = match request.renewal.as_ref().map(|r| self.renewal(r, &header, &request)) {
            None => (None, None),
            Some(Ok(shown)) => (Some(shown), None),
            Some(Err(why)) => (None, Some(why)),
        };
        let verified = Verified {
            attempt: request.attempt,
            presented: request.join_state.as_deref().map(|state| self.presented(state)),
            stale: self.is_stale(certificate.as_ref()),
            certificate,
            certificate_ignored,
            secret_proven: self.secret_proven(&request, &key, url),
            new_key: request.rotation.as_ref().map(|r| self.rotation(r, &key, url)).transpose()?,
            trust_bundle: request.bundle.map(|sequence| sequence.min(i64::MAX.unsigned_abs())),
            challenge: self.challenge,
            key,
        };
        Ok((request, verified))
    }

    fn is_stale(&self, certificate: Option<&ShownCertificate>) -> bool {
        let current = self.token.anchor(certificate.map(|shown| shown.subject.step.instance));
        let free = self.token.spec.recovery.mode == RecoveryMode::Insecure && current.revision == 0;
        !free && current.revision != self.challenge.anchor.revision
    }

    /// The key given whole, or the one of the token's keys that the thumbprint names.
    fn signing_key(&self, header: &Header) -> Result<PublicKey, Problem> {
        if let Some(jwk) = &header.jwk {
            return PublicKey::try_from(jwk).map_err(|e| malformed(e.0));
        }
        let known = [&self.token.status.bound_public_key, &self.token.spec.onboarding.initial_public_key];
        let named = |key: &&PublicKey| Some(Thumbprint::of(key).to_string()) == header.kid;
        known.into_iter().flatten().map(|key| &key.0).find(named).cloned().ok_or_else(|| ProblemType::KeyNotProven.into())
    }

    fn presented(&self, state: &str) -> Presented {
        let claims = Claims::verify(state, self.cluster.join_state_keys).map_err(|e| e.to_string()).and_then(|claims| {
            let mut wrong = Vec::new();
            if claims.iss != self.cluster.name {
                wrong.push(format!("cluster {}, expected {}", claims.iss, self.cluster.name));
            }
            if claims.sub != self.token.name {
                wrong.push(format!("token {}, expected {}", claims.sub, self.token.name));
            }
            if wrong.is_empty() { Ok(claims) } else { Err(wrong.join("; ")) }
        });
        Presented { digest: digest(state), claims }
    }

    /// RFC 8555 section 7.3.4: an HMAC by the secret over the very key that signs the request.
    fn secret_proven(&self, request: &JoinRequest, key: &PublicKey, url: &str) -> bool {
        let (Some(binding), Some(secret)) = (&request.external_account_binding, &self.token.status.registration_secret) else {
            return false;
        };
        let for_us = binding.header().is_ok_and(|h| h.kid.as_deref() == Some(self.token.name) && h.url.as_deref() == Some(url));
        let same_key = |jwk: Jwk| PublicKey::try_from(&jwk).is_ok_and(|bound| bound == *key);
        for_us && !secret.is_empty() && binding.verify_hmac::<Jwk>(secret.as_bytes()).is_ok_and(same_key)
    }

    fn renewal(&self, proof: &Jws, outer: &Header, request: &JoinRequest) -> Result<ShownCertificate, String> {
        let header = proof.header().map_err(|e| e.to_string())?;
        if header.nonce != outer.nonce || header.url != outer.url {
            return Err("the renewal proof answers another challenge".into());
        }
        let shown = (self.cluster.certificate)(&certificate_in(&header)?)?;
        let signed: RenewalProof = proof.verify(&shown.key).map_err(|e| e.to_string())?;
        let (subject, token) = (&shown.subject, &self.token);
        let other_kind = format!("the certificate is of a {}, and the token is for a {}", subject.kind, token.kind);
        let wrong = [
            (signed.attempt != request.attempt, "it is of another attempt"),
            (subject.cluster != self.cluster.name, "the certificate is of another cluster"),
            (subject.token != token.name, "the certificate is of another token"),
            (Some(subject.incarnation) != token.status.incarnation, "the certificate is of an earlier life of the token"),
            (subject.kind != token.kind, &other_kind),
        ];
        match wrong.iter().find(|(is, _)| *is) {
            Some((_, why)) => Err((*why).into()),
            None => Ok(shown),
        }
    }

    /// RFC 8555 section 7.3.5: the new key agrees to replace the old one.
    fn rotation(&self, inner: &Jws, old: &PublicKey, url: &str) -> Result<PublicKey, Problem> {
        let header = header(inner)?;
        let jwk = header.jwk.as_ref().ok_or_else(|| malformed("a rotation without its new key"))?;
        let new = PublicKey::try_from(jwk).map_err(|e| malformed(e.0))?;
        let proof: RotationProof = inner.verify(&new).map_err(|e| malformed(&format!("the rotation's proof: {e}")))?;
        if proof.token != self.token.name || proof.old_key != Thumbprint::of(old) || header.url.as_deref() != Some(url) {
            return Err(malformed("a rotation made for another token, key or server"));
        }
        Ok(new)
    }
}

fn malformed(why: &str) -> Problem {
    Problem::new(ProblemType::BadRequest, why)
}

fn header(jws: &Jws) -> Result<Header, Problem> {
    jws.header().map_err(|e| malformed(&e.to_string()))
}

/// RFC 8555 section 6.4: a request meant for another place is not taken. The port is not compared: it may be mapped.
fn check_url(url: &str, names: &[String]) -> Result<(), Problem> {
    let authority = url.strip_prefix("https://").and_then(|rest| rest.strip_suffix(JOIN_PATH));
    let host = authority.map(|a| match a.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => a,
    });
    let host = host.map(|h| h.trim_start_matches('[').trim_end_matches(']'));
    if host.is_some_and(|host| names.iter().any(|name| is_same_host(name, host))) {
        return Ok(());
    }
    let url = text::excerpt(url);
    Err(malformed(&format!("a JWS for {url}, which is none of the names that this server was given at `boundkey-auth init`")))
}

/// As TLS has it: an address is one however it is written, and a name may end with a dot.
fn is_same_host(name: &str, host: &str) -> bool {
    match (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        (Ok(name), Ok(host)) => name == host,
        _ => name.eq_ignore_ascii_case(host.strip_suffix('.').unwrap_or(host)),
    }
}

/// SHA-256 of a join state, base64url.
fn digest(state: &str) -> String {
    base64url::encode(ring::digest::digest(&ring::digest::SHA256, state.as_bytes()))
}

/// RFC 7515 section 4.1.6: base64, not base64url.
fn certificate_in(header: &Header) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    let leaf = header.x5c.as_ref().and_then(|chain| chain.first()).ok_or("the renewal proof has no certificate")?;
    base64::engine::general_purpose::STANDARD.decode(leaf).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_us_by_our_names_alone() {
        let names = ["auth.example.com", "10.0.0.1", "fd00::1"].map(str::to_owned);
        let is_ours = |authority: &str| check_url(&format!("https://{authority}/v1/join"), &names).is_ok();
        for ours in ["auth.example.com:3025", "AUTH.example.com", "auth.example.com.:1", "10.0.0.1:443", "[fd00:0::0001]:3025"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["", ":3025", ".", "example.com", "auth.example.com..", "auth.example.com:x", "10.0.0.2", "[fd00::2]:3025"] {
            assert!(!is_ours(other), "{other:?}");
        }
        for url in ["http://auth.example.com/v1/join", "https://auth.example.com/v1/joins", "https://auth.example.com/x/v1/join"]
        {
            assert!(check_url(url, &names).is_err(), "{url}");
        }
    }
}
