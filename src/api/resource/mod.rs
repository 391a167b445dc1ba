//! Resources: what operators write and read, as YAML or JSON documents of `kind`, `version`, `metadata`, `spec`, `status`.
//!
//! Parsed into types at the door; unknown fields are errors. Names are `a-z A-Z 0-9 . _ -`, 1 to 128 characters, and
//! neither `.` nor `..`.

mod bot;
mod instance;
mod lock;
mod role;
mod token;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use bot::{Bot, BotSpec};
pub use instance::{Authentication, INSTANCE_GRACE, Instance, InstanceSpec, InstanceStatus, MAX_KEPT, SeenHeartbeat};
pub use lock::{Lock, LockSpec, LockTarget};
pub use role::{Allow, GREATEST_MAX_TTL, LEAST_MAX_TTL, Role, RoleSpec};
pub use token::{HIDDEN_SECRET, HostSpec, JoinMethod, MIN_SECRET, NODE_ROLE, Token, TokenSpec, TokenStatus};

use boundkey_platform::time::Timestamp;

/// What a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A machine user.
    Bot,
    /// One life of a bot between two recoveries.
    BotInstance,
    /// One life of a service that is not a bot, between two recoveries.
    Host,
    /// A stop for a token, bot, bot instance or host.
    Lock,
    /// What a bot or host may ask for.
    Role,
    /// The right to join, and the binding to a key.
    Token,
}

impl Kind {
    /// All kinds, in the order in which documents that name each other are best applied.
    pub const ALL: [Self; 6] = [Self::Role, Self::Bot, Self::Token, Self::Lock, Self::BotInstance, Self::Host];

    /// The word in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bot => "bot",
            Self::BotInstance => "bot_instance",
            Self::Host => "host",
            Self::Lock => "lock",
            Self::Role => "role",
            Self::Token => "token",
        }
    }

    /// The one version of this kind, as `version:` says it.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Token | Self::Lock => "v2",
            Self::Bot | Self::BotInstance | Self::Host | Self::Role => "v1",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let singular = name.strip_suffix('s').unwrap_or(name);
        Self::ALL.into_iter().find(|kind| kind.name() == singular).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown kind {name:?}; one of {}", known.join(", "))
        })
    }
}

/// The name of one resource: `token/gateway-0042`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResourceId {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl ResourceId {
    /// The id of the resource `name` of `kind`.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl FromStr for ResourceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').ok_or_else(|| format!("{text:?} is not of the form KIND/NAME"))?;
        check_name(name)?;
        Ok(Self { kind: kind.parse()?, name: name.into() })
    }
}

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among resources of the kind.
    pub name: String,
    /// When the resource ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// For operators to select by.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Metadata {
    /// Metadata with a name alone.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Whether the resource has ended by `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// Any resource. Written and read with its `kind` and `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A bot.
    Bot(Bot),
    /// A bot instance or a host.
    Instance(Instance),
    /// A lock.
    Lock(Lock),
    /// A role.
    Role(Role),
    /// A token.
    Token(Token),
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Bot(_) => Kind::Bot,
            Self::Instance(instance) => instance.kind(),
            Self::Lock(_) => Kind::Lock,
            Self::Role(_) => Kind::Role,
            Self::Token(_) => Kind::Token,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Bot(r) => &r.metadata,
            Self::Instance(r) => &r.metadata,
            Self::Lock(r) => &r.metadata,
            Self::Role(r) => &r.metadata,
            Self::Token(r) => &r.metadata,
        }
    }

    /// Its id.
    pub fn id(&self) -> ResourceId {
        ResourceId::new(self.kind(), &self.metadata().name)
    }

    /// Other resources that it names, and cannot be used without.
    pub fn named(&self) -> Vec<ResourceId> {
        match self {
            Self::Bot(bot) => bot.spec.roles.iter().map(|role| ResourceId::new(Kind::Role, role)).collect(),
            Self::Token(token) => {
                let roles = token.spec.host.roles.iter().map(|role| ResourceId::new(Kind::Role, role));
                token.spec.bot_name.iter().map(|bot| ResourceId::new(Kind::Bot, bot)).chain(roles).collect()
            }
            Self::Instance(_) | Self::Lock(_) | Self::Role(_) => vec![],
        }
    }

    /// What the types alone cannot say, checked: names, and what belongs together.
    pub fn validate(&self) -> Result<(), String> {
        let valid = check_name(&self.metadata().name).and_then(|()| match self {
            Self::Token(token) => token.validate(),
            Self::Role(role) => role.validate(),
            Self::Bot(bot) => bot.spec.roles.iter().try_for_each(|role| check_name(role)),
            Self::Lock(lock) => lock.validate(),
            Self::Instance(_) => Ok(()),
        });
        valid.map_err(|why| format!("{}: {why}", self.id()))
    }

    /// The resource without what only a holder of the secret may see.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        if let Self::Token(token) = &mut self {
            token.hide_secrets();
        }
        self
    }
}

/// The outer shape, from which the kind is learnt before the rest is read.
#[derive(Serialize)]
struct Tagged<'a, T> {
    kind: Kind,
    version: &'static str,
    #[serde(flatten)]
    resource: &'a T,
}

impl Serialize for Resource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn tagged<T: Serialize, S: serde::Serializer>(kind: Kind, resource: &T, serializer: S) -> Result<S::Ok, S::Error> {
            Tagged { kind, version: kind.version(), resource }.serialize(serializer)
        }
        match self {
            Self::Bot(r) => tagged(self.kind(), r, serializer),
            Self::Instance(r) => tagged(self.kind(), r, serializer),
            Self::Lock(r) => tagged(self.kind(), r, serializer),
            Self::Role(r) => tagged(self.kind(), r, serializer),
            Self::Token(r) => tagged(self.kind(), r, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        // Straight from JSON of our own; documents of people go through `ctl::document`, which keeps line numbers.
        let mut value = serde_json::Map::deserialize(deserializer)?;
        let kind: Kind = take(&mut value, "kind")?;
        let version: String = take(&mut value, "version")?;
        if version != kind.version() {
            return Err(D::Error::custom(format!("version {version:?} of {kind}; this program knows {}", kind.version())));
        }
        let value = serde_json::Value::Object(value);
        match kind {
            Kind::Bot => serde_json::from_value(value).map(Self::Bot),
            Kind::BotInstance | Kind::Host => serde_json::from_value(value).map(Self::Instance),
            Kind::Lock => serde_json::from_value(value).map(Self::Lock),
            Kind::Role => serde_json::from_value(value).map(Self::Role),
            Kind::Token => serde_json::from_value(value).map(Self::Token),
        }
        .map_err(D::Error::custom)
    }
}

fn take<T: serde::de::DeserializeOwned, E: serde::de::Error>(
    value: &mut serde_json::Map<String, serde_json::Value>,
    field: &'static str,
) -> Result<T, E> {
    let found = value.remove(field).ok_or_else(|| E::missing_field(field))?;
    serde_json::from_value(found).map_err(E::custom)
}

/// Whether `name` may name a resource: it is put into URIs, file names and patterns as it stands. In a path `.` and `..` name others.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=128).contains(&name.len()) && name.bytes().all(plain) && !matches!(name, "." | "..") {
        Ok(())
    } else {
        Err(format!("{name:?} is not a name: neither . nor .., but 1 to 128 characters of a-z A-Z 0-9 . _ -"))
    }
}
