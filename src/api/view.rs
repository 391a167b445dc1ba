//! What operators see of a resource beside its document: what follows from it, from other resources and from the time.
//!
//! The server computes it once for each answer, so that tables, JSON and whatever else shows it agree.

use serde::{Deserialize, Serialize};

use super::resource::ResourceId;
use boundkey_join::RecoveryMode;
use boundkey_join::server::record::Exemption;
use boundkey_platform::time::Timestamp;

/// The view of a resource. A role has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum View {
    /// Of a bot.
    Bot(BotView),
    /// Of a bot instance or a host.
    Instance(InstanceView),
    /// Of a lock.
    Lock(LockView),
    /// Of a token.
    Token(Box<TokenView>),
}

/// What is seen of a bot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BotView {
    /// Whether a lock stops all its joins.
    pub locked: bool,
    /// The locks on it that are in force.
    pub locks: Vec<LockInForce>,
}

/// What is seen of a bot instance or a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Whether a lock stops its joins.
    pub locked: bool,
    /// The locks in force on it, on its bot and on its token.
    pub locks: Vec<LockInForce>,
    /// What it last told of itself.
    #[serde(flatten)]
    pub device: DeviceView,
}

/// What is seen of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Whether it stops joins now.
    pub in_force: bool,
    /// When it ends, or ended, by itself.
    pub ends: Option<Timestamp>,
}

/// What is seen of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Whether a device holds it, or can.
    pub bound: Bound,
    /// Whether a lock stops its joins.
    pub locked: bool,
    /// The locks in force on it, on its bot, and on the instance that it is bound to.
    pub locks: Vec<LockInForce>,
    /// Whether its own end (`metadata.expires`) has passed.
    pub expired: bool,
    /// Recoveries used and allowed.
    pub recoveries: RecoveriesView,
    /// Whether the device is asked for a new key at its next join.
    pub rotation_due: bool,
    /// The exemption that is in force.
    pub exemption: Option<Exemption>,
    /// The bot instance or host that it is bound to.
    pub instance: Option<ResourceId>,
    /// The generation of that instance.
    pub generation: Option<u32>,
    /// What the device last told of itself.
    #[serde(flatten)]
    pub device: DeviceView,
}

/// Whether a device holds a token, or can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No device holds it, and none can: there is neither a secret in time nor a key.
    No,
    /// A device can join with it.
    Waiting,
    /// It is bound to a device's key.
    Yes,
}

/// Recoveries of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveriesView {
    /// Those that there were, the first join counted.
    pub used: u32,
    /// Those allowed in all; `None`: the mode sets no limit.
    pub limit: Option<u32>,
    /// Those left; `None`: the mode sets no limit.
    pub remaining: Option<u32>,
    /// Whether the device is bound and none or one is left.
    pub low: bool,
    /// How they are judged.
    pub mode: RecoveryMode,
}

/// What is known of the device behind a token or an instance. All of it is `None` where no record of an instance is kept: before the
/// first join, and from the end of its last certificate on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// The time of its last join.
    pub last_join: Option<Timestamp>,
    /// The end of the certificate that it got last, or of the one of an output that ends later.
    pub certificate_ends: Option<Timestamp>,
    /// The version of its agent.
    pub agent_version: Option<String>,
    /// Its host name.
    pub hostname: Option<String>,
}

/// A lock that stops what it is shown with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInForce {
    /// The lock.
    pub lock: ResourceId,
    /// What it is on.
    pub target: ResourceId,
    /// What a device is told.
    pub message: String,
}
