//! `token`: the right to join, and the binding to a key.

use serde::{Deserialize, Serialize};

use super::{Metadata, check_name};
use crate::join::server::record;

/// The role of a token that bots join with.
pub const BOT_ROLE: &str = "Bot";

/// What stands in place of a secret that is not shown.
pub const HIDDEN_SECRET: &str = "********";

/// A token, version v2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Name, end and labels.
    pub metadata: Metadata,
    /// What the operator wants.
    pub spec: TokenSpec,
    /// What joins made of it.
    #[serde(default)]
    pub status: TokenStatus,
}

/// `spec` of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    /// What joins with it: `Bot`.
    pub roles: Vec<String>,
    /// The bot that its instances belong to; with role `Bot`, and only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot_name: Option<String>,
    /// How it is joined with.
    pub join_method: JoinMethod,
    /// The particulars of that method.
    pub bound_keypair: record::Spec,
}

/// How a token is joined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinMethod {
    /// By proof of a long-lived keypair, bound at the first join.
    BoundKeypair,
}

/// `status` of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenStatus {
    /// What joins made of the binding.
    #[serde(default)]
    pub bound_keypair: record::Status,
}

impl Token {
    /// Whether its instances are bots.
    pub fn is_for_bot(&self) -> bool {
        self.spec.roles.iter().any(|role| role == BOT_ROLE)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.spec.roles != [BOT_ROLE] {
            return Err(format!("spec.roles must be [{BOT_ROLE}]"));
        }
        let bot = self.spec.bot_name.as_deref().ok_or("spec.bot_name is required with role Bot")?;
        check_name(bot).map_err(|why| format!("spec.bot_name: {why}"))?;
        match self.spec.bound_keypair.onboarding.registration_secret.as_deref() {
            Some("") => Err("spec.bound_keypair.onboarding.registration_secret is empty; leave it out to have one made".into()),
            _ => Ok(()),
        }
    }

    pub(super) fn hide_secrets(&mut self) {
        let hidden = |secret: &mut Option<String>| {
            if let Some(secret) = secret {
                *secret = HIDDEN_SECRET.into();
            }
        };
        hidden(&mut self.spec.bound_keypair.onboarding.registration_secret);
        hidden(&mut self.status.bound_keypair.registration_secret);
    }
}
