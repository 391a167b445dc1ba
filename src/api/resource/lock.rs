//! `lock`: a stop for every join of a token, bot, bot instance or host.

use serde::{Deserialize, Serialize};

use super::{Kind, Metadata, ResourceId, check_name};
use boundkey_platform::time::Timestamp;

/// A lock, version v2; its name is its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Name (the id) and labels.
    pub metadata: Metadata,
    /// What it stops, and why.
    pub spec: LockSpec,
}

/// Longest message of a lock, in bytes: devices are told it, and keep it.
pub const MAX_MESSAGE: usize = boundkey_join::MAX_DETAIL;

/// `spec` of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSpec {
    /// What it stops.
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

/// What a lock stops. Written as a map of one field, `token: gateway-0042`, in YAML too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TargetFields", into = "TargetFields")]
pub enum LockTarget {
    /// Every instance of a bot.
    Bot(String),
    /// One bot instance, by its id.
    BotInstance(String),
    /// One host, by its id.
    Host(String),
    /// Everyone who joins with a token.
    Token(String),
}

/// The wire form of a target: exactly one of them.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bot_instance: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl TryFrom<TargetFields> for LockTarget {
    type Error = &'static str;

    fn try_from(fields: TargetFields) -> Result<Self, Self::Error> {
        let TargetFields { bot, bot_instance, host, token } = fields;
        let named = [bot.map(Self::Bot), bot_instance.map(Self::BotInstance), host.map(Self::Host), token.map(Self::Token)];
        let mut named = named.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(target), None) => Ok(target),
            _ => Err("target: exactly one of bot, bot_instance, host, token"),
        }
    }
}

impl From<LockTarget> for TargetFields {
    fn from(target: LockTarget) -> Self {
        match target {
            LockTarget::Bot(name) => Self { bot: Some(name), ..Self::default() },
            LockTarget::BotInstance(name) => Self { bot_instance: Some(name), ..Self::default() },
            LockTarget::Host(name) => Self { host: Some(name), ..Self::default() },
            LockTarget::Token(name) => Self { token: Some(name), ..Self::default() },
        }
    }
}

impl LockTarget {
    /// The name of what it stops.
    pub fn name(&self) -> &str {
        match self {
            Self::Bot(name) | Self::BotInstance(name) | Self::Host(name) | Self::Token(name) => name,
        }
    }

    /// The target that is this resource; nothing else can be locked.
    pub fn of(id: &ResourceId) -> Option<Self> {
        let name = id.name.clone();
        match id.kind {
            Kind::Bot => Some(Self::Bot(name)),
            Kind::BotInstance => Some(Self::BotInstance(name)),
            Kind::Host => Some(Self::Host(name)),
            Kind::Token => Some(Self::Token(name)),
            Kind::Lock | Kind::Role => None,
        }
    }

    /// The resource that it stops.
    pub fn id(&self) -> ResourceId {
        let kind = match self {
            Self::Bot(_) => Kind::Bot,
            Self::BotInstance(_) => Kind::BotInstance,
            Self::Host(_) => Kind::Host,
            Self::Token(_) => Kind::Token,
        };
        ResourceId::new(kind, self.name())
    }
}

impl Lock {
    pub(super) fn validate(&self) -> Result<(), String> {
        check_name(self.spec.target.name())?;
        if self.spec.message.len() > MAX_MESSAGE {
            return Err(format!("spec.message is longer than {MAX_MESSAGE} bytes"));
        }
        Ok(())
    }

    /// Whether the server made it itself, on the token of this name.
    pub fn is_own_of(&self, token: &str) -> bool {
        self.spec.automatic && matches!(&self.spec.target, LockTarget::Token(name) if name == token)
    }

    /// When it ends by itself.
    pub fn ends(&self) -> Option<Timestamp> {
        [self.spec.expires, self.metadata.expires].into_iter().flatten().min()
    }

    /// Whether it stops anyone at `now`.
    pub fn in_force(&self, now: Timestamp) -> bool {
        self.ends().is_none_or(|end| end > now)
    }
}
