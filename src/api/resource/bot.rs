//! `bot`: a machine user; what it may ask for is in its roles.

use serde::{Deserialize, Serialize};

use super::Metadata;

/// A bot, version v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bot {
    /// Name and labels.
    pub metadata: Metadata,
    /// What the operator wants.
    #[serde(default)]
    pub spec: BotSpec,
}

/// `spec` of a bot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BotSpec {
    /// Names of its roles; without any, its instances get their identity certificate only.
    #[serde(default)]
    pub roles: Vec<String>,
}
