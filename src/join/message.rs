//! The messages of a join, as JSON. Both sides ignore members they do not know, so that either can be the newer one.
//!
//! Sizes: a request body is at most [`MAX_REQUEST`] bytes, an answer at most [`MAX_ANSWER`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Id, Jws, SshKey, Step, Thumbprint};
use boundkey_platform::time::Timestamp;

/// Path of the challenge call.
pub const CHALLENGE_PATH: &str = "/v1/join/challenge";
/// Path of the join call, and the end of the `url` that its JWS names.
pub const JOIN_PATH: &str = "/v1/join";
/// Path of the server's name, version and time.
pub const PING_PATH: &str = "/v1/ping";
/// Path of the trust bundle.
pub const CA_PATH: &str = "/v1/ca";
/// Path of the key that signs SSH host certificates: a line as in `authorized_keys`.
pub const SSH_HOST_CA_PATH: &str = "/v1/ca/ssh-host";
/// Path of the certificate revocation list (RFC 5280 section 5), DER.
pub const CRL_PATH: &str = "/v1/crl";
/// Path of the revocation list of SSH host certificates, in OpenSSH's format (its PROTOCOL.krl).
pub const SSH_HOST_CRL_PATH: &str = "/v1/crl/ssh-host";
/// Media type of a revocation list (RFC 2585 section 4.2).
pub const CRL_TYPE: &str = "application/pkix-crl";
/// Longest request body that a server reads, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Longest answer that a device reads, in bytes.
pub const MAX_ANSWER: usize = 128 * 1024;
/// Longest revocation list, in bytes.
pub const MAX_CRL: usize = 2 * 1024 * 1024;
/// How long a revocation list holds.
pub const CRL_LIFETIME: Duration = Duration::from_secs(3600);
/// Most outputs in one join.
pub const MAX_OUTPUTS: usize = 16;

/// Answer to `GET /v1/ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The cluster's name.
    pub cluster: String,
    /// Version of the server program.
    pub version: String,
    /// Algorithms for bound keys (JWS names), the preferred one first.
    pub algorithms: Vec<String>,
    /// The server's clock.
    pub time: Timestamp,
}

/// Body of `POST /v1/join/challenge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeRequest {
    /// Name of the token to join with.
    pub token: String,
    /// The instance that the device is. In mode `insecure`, where hosts share a token, its challenge is about this instance alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Id>,
}

/// Answer to `POST /v1/join/challenge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeAnswer {
    /// What to sign over, as the JWS `nonce`; sealed by the server, good once and until `expires`.
    pub challenge: String,
    /// The key to prove; absent: make one.
    pub key: Option<Thumbprint>,
    /// The life of the token that this is; `reset` begins another, for which old join states mean nothing.
    pub incarnation: Id,
    /// Whether the join has to bring a new key.
    #[serde(default)]
    pub rotate: bool,
    /// Algorithms for a new key (JWS names), the preferred one first.
    pub algorithms: Vec<String>,
    /// When the challenge ends.
    pub expires: Timestamp,
    /// The server's clock.
    pub time: Timestamp,
}

/// Payload of the JWS that `POST /v1/join` carries, signed by the bound key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Name of the token to join with.
    pub token: String,
    /// What the device wrote down before it asked; the same until an answer arrives.
    pub attempt: Id,
    /// The join state of the last join, as the server gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_state: Option<String>,
    /// PKCS#10 request (RFC 2986) for the identity certificate, base64url of DER. Its names are not looked at.
    pub csr: String,
    /// Wanted lifetime of certificates, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Certificates wanted beside the identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputRequest>,
    /// Sequence number of the trust bundle that the device has; the answer brings those that followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<u64>,
    /// What the device tells of itself.
    pub heartbeat: Heartbeat,
    /// First join by secret: an HMAC over the new public key (RFC 8555 section 7.3.4), payload [`super::Jwk`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account_binding: Option<Jws>,
    /// Renewal: the current identity certificate in `x5c`, signed by its key over the same nonce, payload [`RenewalProof`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Jws>,
    /// Rotation: signed by the new key, which its header carries (RFC 8555 section 7.3.5), payload [`RotationProof`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Jws>,
}

/// A certificate wanted beside the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRequest {
    /// PKCS#10 request, base64url of DER. Its names are not looked at. Left out of a request for an SSH certificate.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub csr: String,
    /// An SSH host certificate is wanted, instead of one of X.509.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host: Option<SshHostRequest>,
    /// DNS names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// URIs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// IP addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<std::net::IpAddr>,
    /// Wanted lifetime in seconds, where it is not that of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
}

/// What an SSH host certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshHostRequest {
    /// The public key.
    pub key: SshKey,
    /// Names and addresses under which clients reach the host; at least one.
    pub principals: Vec<String>,
}

/// What the device tells of itself, for operators; nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Version of the agent.
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// Processor architecture, such as `arm`.
    pub architecture: String,
    /// Kind of key store: `file`, `tpm`, `pkcs11`.
    pub keystore: String,
}

/// Payload of the renewal JWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalProof {
    /// The attempt of the request around it.
    pub attempt: Id,
}

/// Payload of the rotation JWS (RFC 8555 section 7.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationProof {
    /// Name of the token.
    pub token: String,
    /// Thumbprint of the key that the new one replaces.
    pub old_key: Thumbprint,
}

/// What a join was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    /// Nothing was bound before; counts as a recovery.
    First,
    /// Without a certificate that still held: recovery count + 1, new instance.
    Recovery,
    /// With a certificate that still held: generation + 1.
    Renewal,
    /// The answer to the last join again; no counter moved.
    Replay,
}

/// How the server judges recoveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryMode {
    /// Up to a limit, with the join state. Stored empty means the same.
    #[default]
    #[serde(alias = "")]
    Standard,
    /// Without a limit, with the join state.
    Relaxed,
    /// Without limit and join state: for keys that many hosts share.
    Insecure,
}

impl std::fmt::Display for RecoveryMode {
    /// As it is written in JSON and in resources.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Standard => "standard",
            Self::Relaxed => "relaxed",
            Self::Insecure => "insecure",
        })
    }
}

/// How many recoveries there were and may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recoveries {
    /// Recoveries so far, the first join counted.
    pub count: u32,
    /// Recoveries allowed in all.
    pub limit: u32,
    /// How they are judged.
    pub mode: RecoveryMode,
}

impl Recoveries {
    /// Recoveries left; `None` where the mode sets no limit.
    pub fn remaining(&self) -> Option<u32> {
        (self.mode == RecoveryMode::Standard).then(|| self.limit.saturating_sub(self.count))
    }
}

/// Answer to `POST /v1/join`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// What this join was.
    pub kind: JoinKind,
    /// The cluster's name.
    pub cluster: String,
    /// The life of the token.
    pub incarnation: Id,
    /// The step that the token is at now.
    pub step: Step,
    /// The key that is bound now.
    pub key: Thumbprint,
    /// To be presented at the next join.
    pub join_state: String,
    /// Recoveries used and allowed.
    pub recoveries: Recoveries,
    /// The identity certificate.
    pub identity: IssuedCertificate,
    /// The other certificates, in the order asked for.
    #[serde(default)]
    pub outputs: Vec<IssuedCertificate>,
    /// Trust bundles ([`super::TrustBundle`]) that the device lacks, compact JWSs, oldest first; absent where it has the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Vec<String>>,
    /// What a person should know, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The server's clock.
    pub time: Timestamp,
}

/// A certificate as issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Base64url of the DER, or of the blob (RFC 4253 section 6.6) of an SSH certificate.
    pub certificate: String,
    /// Serial number in hexadecimal: 32 digits, or 16 of an SSH certificate.
    pub serial: String,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}
