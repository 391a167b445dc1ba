//! `lock`: a stop for every join of a token, bot or instance.

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::time::Timestamp;

/// A lock, version v2; its name is its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Name (the id) and labels.
    pub metadata: Metadata,
    /// Whom it stops, and why.
    pub spec: LockSpec,
}

/// `spec` of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSpec {
    /// Whom it stops.
    pub target: LockTarget,
    /// What a device is told.
    #[serde(default)]
    pub message: String,
    /// When it ends; without, an operator ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whether the server made it itself, on finding two holders of one key.
    #[serde(default)]
    pub automatic: bool,
}

/// Whom a lock stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockTarget {
    /// Every instance of a bot.
    Bot(String),
    /// One bot instance, by its id.
    BotInstance(String),
    /// Everyone who joins with a token.
    Token(String),
}

impl LockTarget {
    /// The name of what it stops.
    pub fn name(&self) -> &str {
        match self {
            Self::Bot(name) | Self::BotInstance(name) | Self::Token(name) => name,
        }
    }
}

impl Lock {
    /// Whether it stops anyone at `now`.
    pub fn in_force(&self, now: Timestamp) -> bool {
        self.spec.expires.is_none_or(|end| end > now) && !self.metadata.expired(now)
    }
}
