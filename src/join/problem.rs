//! Refusals: problem documents (RFC 9457) with a stable `type`.

use std::fmt;

use serde::{Deserialize, Serialize};

use boundkey_platform::text;

/// Media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Longest [`Problem::detail`], in bytes: it is kept by both sides.
pub const MAX_DETAIL: usize = 1024;
const PREFIX: &str = "urn:boundkey:problem:";

/// Why a request was refused. The wire form is `urn:boundkey:problem:NAME`, with the names of [`ProblemType::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// The request is malformed.
    BadRequest,
    /// The server has more to do than it can: [`Problem::retry_after`] says when to come again.
    Busy,
    /// The challenge is too old, or not one of this server's.
    ChallengeExpired,
    /// The token changed since the challenge was made: ask for another challenge and try again soon.
    ChallengeStale,
    /// A resource of that name changed or exists already (operator's API).
    Conflict,
    /// A first join came with a join state or certificate.
    FirstJoinWithCredentials,
    /// The join state or certificate is not of the step that the token is at: two holders of one key. The token is now locked.
    JoinStateMismatch,
    /// The token is bound, and no join state was presented.
    JoinStateRequired,
    /// The signature is not by the key that the token trusts.
    KeyNotProven,
    /// The new key of a rotation was in use before.
    KeyReused,
    /// A lock on token, bot or instance.
    Locked,
    /// A name or lifetime that no role of the bot allows.
    NameNotAllowed,
    /// The recoveries that the token allows are used up.
    NoRecoveriesLeft,
    /// No such token, or no such resource (operator's API).
    NotFound,
    /// The token's joins come too fast: [`Problem::retry_after`] says when the next one may come.
    PaceExceeded,
    /// First joins by secret failed too often: [`Problem::retry_after`] says when the next one may come.
    RegistrationPaused,
    /// Secret, key or deadline of a first join: which of them is not told.
    RegistrationRefused,
    /// A rotation is due and the request brought no new key.
    RotationRequired,
    /// The server failed; the request may be tried again.
    ServerError,
    /// The token cannot be joined with until an operator mends it.
    TokenUnusable,
    /// A type that this version does not know.
    Unknown,
    /// The path is of no API version that this server speaks.
    UnsupportedVersion,
}

impl ProblemType {
    const ALL: [(Self, &str, u16, &str); 21] = [
        (Self::BadRequest, "bad-request", 400, "the request is malformed"),
        (Self::Busy, "busy", 503, "the server is busy"),
        (Self::ChallengeExpired, "challenge-expired", 403, "the challenge has expired"),
        (Self::ChallengeStale, "challenge-stale", 409, "the token changed since the challenge was made"),
        (Self::Conflict, "conflict", 409, "the resource exists already or has changed"),
        (Self::FirstJoinWithCredentials, "first-join-with-credentials", 400, "a first join may not use existing credentials"),
        (Self::JoinStateMismatch, "join-state-mismatch", 403, "two holders of one key: the token is now locked"),
        (Self::JoinStateRequired, "join-state-required", 403, "a join state is required"),
        (Self::KeyNotProven, "key-not-proven", 403, "could not complete the challenge"),
        (Self::KeyReused, "key-reused", 403, "the new key was in use before"),
        (Self::Locked, "locked", 403, "locked"),
        (Self::NameNotAllowed, "name-not-allowed", 403, "no role allows what was asked for"),
        (Self::NoRecoveriesLeft, "no-recoveries-left", 403, "no recoveries left"),
        (Self::NotFound, "not-found", 404, "not found"),
        (Self::PaceExceeded, "pace-exceeded", 429, "the token is joined with too often"),
        (Self::RegistrationPaused, "registration-paused", 429, "registrations of this token failed too often"),
        (Self::RegistrationRefused, "registration-refused", 403, "the registration was refused"),
        (Self::RotationRequired, "rotation-required", 403, "a new key is required"),
        (Self::ServerError, "server-error", 500, "the server failed"),
        (Self::TokenUnusable, "token-unusable", 400, "the token cannot be joined with"),
        (Self::UnsupportedVersion, "unsupported-version", 404, "no such path in the API versions of this server"),
    ];

    fn row(self) -> Option<&'static (Self, &'static str, u16, &'static str)> {
        Self::ALL.iter().find(|row| row.0 == self)
    }

    /// The last part of the URN.
    pub fn name(self) -> &'static str {
        self.row().map_or("unknown", |row| row.1)
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        self.row().map_or(500, |row| row.2)
    }

    /// One phrase for a person.
    pub fn title(self) -> &'static str {
        self.row().map_or("refused", |row| row.3)
    }

    fn from_urn(urn: &str) -> Self {
        let name = urn.strip_prefix(PREFIX);
        Self::ALL.iter().find(|row| Some(row.1) == name).map_or(Self::Unknown, |row| row.0)
    }
}

/// A refusal: what kind, and what exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What a program branches on.
    pub kind: ProblemType,
    /// What happened here, for a person: [`MAX_DETAIL`] bytes at most. Holds no secret.
    pub detail: String,
    /// How long to wait before the next try, in seconds: the header `Retry-After` (RFC 9110 section 10.2.3). It is not in the document.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem of `kind`, told by `detail`, which is cut to [`MAX_DETAIL`].
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: text::cut(detail.into(), MAX_DETAIL), retry_after: None }
    }
}

impl From<ProblemType> for Problem {
    fn from(kind: ProblemType) -> Self {
        Self::new(kind, kind.title())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

/// The members of RFC 9457 section 3.1 that are sent.
#[derive(Serialize, Deserialize)]
struct Document {
    r#type: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    detail: String,
}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Document {
            r#type: format!("{PREFIX}{}", self.kind.name()),
            title: self.kind.title().into(),
            status: self.kind.status(),
            detail: self.detail.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Problem {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let document = Document::deserialize(deserializer)?;
        let detail = if document.detail.is_empty() { document.title } else { document.detail };
        Ok(Self::new(ProblemType::from_urn(&document.r#type), detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_wire() {
        for (kind, ..) in ProblemType::ALL {
            let json = serde_json::to_string(&Problem::from(kind)).unwrap();
            assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), Problem::from(kind));
        }
        let foreign: Problem = serde_json::from_str(r#"{"type":"about:blank","title":"Bad Gateway"}"#).unwrap();
        assert_eq!(foreign, Problem::new(ProblemType::Unknown, "Bad Gateway"));
    }

    #[test]
    fn a_detail_is_cut_where_it_is_made_and_where_it_is_read() {
        let long = "\u{1}".repeat(60_000);
        assert_eq!(Problem::new(ProblemType::Locked, &*long).detail.len(), MAX_DETAIL);
        let read: Problem = serde_json::from_value(serde_json::json!({ "type": "x", "detail": long })).unwrap();
        assert_eq!(read.detail.len(), MAX_DETAIL);
    }
}
