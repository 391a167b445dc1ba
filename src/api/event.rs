//! Audit events: what happened, told after it became true, in the transaction that made it true.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::actor::Actor;
use super::resource::LockTarget;
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

/// What an event tells of. The wire names are those that scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// A first join.
    #[serde(rename = "join.first")]
    JoinFirst,
    /// A renewal.
    #[serde(rename = "join.renewal")]
    JoinRenewal,
    /// A recovery.
    #[serde(rename = "join.recovery")]
    JoinRecovery,
    /// A lost answer, given again.
    #[serde(rename = "join.replay")]
    JoinReplay,
    /// A restored server followed the device.
    #[serde(rename = "join.rolled_forward")]
    JoinRolledForward,
    /// A refused join.
    #[serde(rename = "join.refused")]
    JoinRefused,
    /// One recovery is left of a token, or none.
    #[serde(rename = "recoveries.low")]
    RecoveriesLow,
    /// A key was replaced.
    #[serde(rename = "key.rotated")]
    KeyRotated,
    /// A lock was put on.
    #[serde(rename = "lock.created")]
    LockCreated,
    /// A lock was taken away.
    #[serde(rename = "lock.removed")]
    LockRemoved,
    /// An exemption was granted.
    #[serde(rename = "exemption.granted")]
    ExemptionGranted,
    /// An exemption was used.
    #[serde(rename = "exemption.used")]
    ExemptionUsed,
    /// An exemption ended unused.
    #[serde(rename = "exemption.expired")]
    ExemptionExpired,
    /// Tokens were named that do not exist.
    #[serde(rename = "token.unknown")]
    TokenUnknown,
    /// An exemption was withdrawn.
    #[serde(rename = "exemption.cancelled")]
    ExemptionCancelled,
    /// The next CA was made, and devices learn of it.
    #[serde(rename = "ca.announced")]
    CaAnnounced,
    /// The announced CA signs.
    #[serde(rename = "ca.activated")]
    CaActivated,
    /// The old CA does not count any more.
    #[serde(rename = "ca.retired")]
    CaRetired,
    /// The old CA signs again.
    #[serde(rename = "ca.returned")]
    CaReturned,
    /// A CA that was retired counts again.
    #[serde(rename = "ca.restored")]
    CaRestored,
    /// The announced CA is not to come.
    #[serde(rename = "ca.withdrawn")]
    CaWithdrawn,
    /// A resource was made.
    #[serde(rename = "resource.created")]
    ResourceCreated,
    /// A resource was changed.
    #[serde(rename = "resource.updated")]
    ResourceUpdated,
    /// A resource was removed.
    #[serde(rename = "resource.deleted")]
    ResourceDeleted,
}

impl EventKind {
    /// The wire name.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::String(name)) => name,
            _ => unreachable!("a unit variant serializes to its name"),
        }
    }
}

/// Longest text in an event that is kept, in bytes.
pub const MAX_TEXT: usize = 1024;

/// One audit event. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What.
    pub event: EventKind,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot: Option<String>,
    /// The bot instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The host, where it is not a bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Whether what was tried was done.
    pub success: bool,
    /// Why, or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The operator whose call it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Address and port of the device that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_addr: Option<String>,
    /// What this kind of event tells beside.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Event {
    /// An event of something that was done.
    pub fn new(time: Timestamp, event: EventKind) -> Self {
        Self {
            time,
            event,
            token: None,
            bot: None,
            instance_id: None,
            host_id: None,
            success: true,
            reason: None,
            actor: None,
            remote_addr: None,
            more: Map::new(),
        }
    }

    /// The same event, about this instance or host; about none where it is of another kind.
    #[must_use]
    pub fn about(mut self, instance: LockTarget) -> Self {
        match instance {
            LockTarget::BotInstance(id) => self.instance_id = Some(id),
            LockTarget::Host(id) => self.host_id = Some(id),
            LockTarget::Bot(_) | LockTarget::Token(_) => {}
        }
        self
    }

    /// The event as it is kept: JSON, each text cut to [`MAX_TEXT`]. What peers wrote is in it.
    pub fn document(&self) -> serde_json::Result<String> {
        let mut event = self.clone();
        let Self { token, bot, instance_id, host_id, reason, remote_addr, more, actor: _, time: _, event: _, success: _ } =
            &mut event;
        for text in [token, bot, instance_id, host_id, reason, remote_addr].into_iter().flatten() {
            *text = text::cut(std::mem::take(text), MAX_TEXT);
        }
        for value in more.values_mut() {
            if let Value::String(text) = value {
                *text = text::cut(std::mem::take(text), MAX_TEXT);
            }
        }
        serde_json::to_string(&event)
    }

    /// The same event, telling `value` as `name` too.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.into(), value.into());
        self
    }
}

/// A place in the log, between two events. Its text is the store's own: a client hands it back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(pub String);

/// One page of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// The events, in the order in which they were written.
    pub events: Vec<Event>,
    /// Where the next page begins. It moves on even when no event on the way was asked for.
    pub cursor: Cursor,
    /// Whether there was more to look through when the page was read. A page with no events may have more after it.
    pub more: bool,
}

/// Which events to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFilter {
    /// Those after this place in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
    /// Those not earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Those of one token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// At most so many, the oldest ones, and at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// At most so many bytes of them, as they are stored, and at least one event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<usize>,
}
