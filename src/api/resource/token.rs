//! `token`: the right to join, and the binding to a key.

use serde::{Deserialize, Serialize};

use super::{LockTarget, Metadata, check_name};
use boundkey_join::Id;
use boundkey_join::identity::InstanceKind;
use boundkey_join::server::record;

/// The role of a token that bots join with.
const BOT_ROLE: &str = "Bot";

/// The role of a service that is reached by SSH.
pub const NODE_ROLE: &str = "Node";

/// Roles of services: who joins with one of them is a host. Those that operators of this join method give to tokens; roles that
/// its servers alone have are not among them.
const SERVICE_ROLES: [&str; 7] = ["App", "Db", "Discovery", "Kube", NODE_ROLE, "Proxy", "WindowsDesktop"];

/// What stands in place of a secret that is not shown.
pub const HIDDEN_SECRET: &str = "********";

/// Least length in bytes of a registration secret that an operator chooses. What a fast attacker tries is limited by
/// `auth::throttle`; this is for guesses that nobody counts, at an HMAC that came to a false server.
pub const MIN_SECRET: usize = 16;

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
    /// What joins with it: `Bot` alone, or roles of services.
    pub roles: Vec<String>,
    /// The bot that its instances belong to; with role `Bot`, and only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot_name: Option<String>,
    /// What its hosts may ask for; not with role `Bot`, whose bot says it.
    #[serde(default, skip_serializing_if = "HostSpec::is_default")]
    pub host: HostSpec,
    /// How it is joined with.
    pub join_method: JoinMethod,
    /// The particulars of that method.
    pub bound_keypair: record::Spec,
}

/// What the hosts of a token may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Names of `role` resources; without any, hosts get their identity certificate only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
}

impl HostSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Sequence number of the trust bundle that the device told of at its last join: for operators; nothing is decided by it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle: Option<u64>,
}

impl Token {
    /// Whether its instances are bots; else they are hosts.
    pub fn is_for_bot(&self) -> bool {
        self.has_role(BOT_ROLE)
    }

    /// What its instances are.
    pub fn instance_kind(&self) -> InstanceKind {
        if self.is_for_bot() { InstanceKind::Bot } else { InstanceKind::Host }
    }

    /// Whether `role` is one of its roles.
    pub fn has_role(&self, role: &str) -> bool {
        self.spec.roles.iter().any(|own| own == role)
    }

    /// Its instance of this id, as a lock names it.
    pub fn instance(&self, id: Id) -> LockTarget {
        let id = id.to_string();
        if self.is_for_bot() { LockTarget::BotInstance(id) } else { LockTarget::Host(id) }
    }

    /// The secret that its first join has to prove, if that is what it waits for.
    pub fn secret_awaited(&self) -> Option<&str> {
        let (spec, status) = (&self.spec.bound_keypair, &self.status.bound_keypair);
        let by_key = status.bound_public_key.is_some() || spec.onboarding.initial_public_key.is_some();
        status.registration_secret.as_deref().filter(|_| !by_key)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        self.check_roles()?;
        let status = &self.status.bound_keypair;
        let (other, other_role) = if self.is_for_bot() {
            let bot = self.spec.bot_name.as_deref().ok_or("spec.bot_name is required with role Bot")?;
            check_name(bot).map_err(|why| format!("spec.bot_name: {why}"))?;
            if !self.spec.host.is_default() {
                return Err("spec.host does not go with role Bot: the roles of a bot stand in its own document".into());
            }
            (status.bound_host_id, "a host")
        } else {
            if self.spec.bot_name.is_some() {
                return Err("spec.bot_name goes with role Bot only".into());
            }
            self.spec.host.roles.iter().try_for_each(|role| check_name(role)).map_err(|why| format!("spec.host.roles: {why}"))?;
            (status.bound_bot_instance_id, "a bot")
        };
        if other.is_some() {
            return Err(format!("spec.roles do not fit its status, which is bound to {other_role}"));
        }
        match self.spec.bound_keypair.onboarding.registration_secret.as_deref() {
            Some("") => Err("spec.bound_keypair.onboarding.registration_secret is empty; leave it out to have one made".into()),
            _ => Ok(()),
        }
    }

    /// One key is bound to one bot instance, or to one host: never to both.
    fn check_roles(&self) -> Result<(), String> {
        let roles = &self.spec.roles;
        let services = SERVICE_ROLES.join(", ");
        if roles.is_empty() {
            return Err(format!("spec.roles is empty; write [{BOT_ROLE}], or roles of services: {services}"));
        }
        if let Some(unknown) = roles.iter().find(|role| *role != BOT_ROLE && !SERVICE_ROLES.contains(&role.as_str())) {
            return Err(format!("spec.roles: {unknown:?} is not a role that can join; there are {BOT_ROLE}, and {services}"));
        }
        if let Some(twice) = roles.iter().enumerate().find_map(|(at, role)| roles[..at].contains(role).then_some(role)) {
            return Err(format!("spec.roles has {twice} twice"));
        }
        if roles.len() > 1 && self.is_for_bot() {
            return Err(format!("spec.roles: {BOT_ROLE} stands alone; give each service a token of its own"));
        }
        Ok(())
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
