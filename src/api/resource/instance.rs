//! `bot_instance` and `host`: one life of a bot, or of a service that is not a bot, between two recoveries. Written by joins, read
//! by operators.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, Metadata};
use boundkey_join::message::Heartbeat;
use boundkey_join::server::record::LastStep;
use boundkey_join::{Id, JoinKind};
use boundkey_platform::text::{cut, is_graphic};
use boundkey_platform::time::Timestamp;

/// Authentications, and heartbeats, kept per instance.
pub const MAX_KEPT: usize = 10;
/// Longest text kept of a heartbeat, in bytes: the record is read and written with each join.
const MAX_TEXT: usize = 128;

/// A bot instance or a host, version v1; its name is its id. It ends [`INSTANCE_GRACE`] after its newest certificate
/// (`metadata.expires`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Name (the id) and end.
    pub metadata: Metadata,
    /// What it is an instance of.
    pub spec: InstanceSpec,
    /// What it did.
    #[serde(default)]
    pub status: InstanceStatus,
}

/// `spec` of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    /// The bot; none: it is a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot_name: Option<String>,
    /// The token it joined with.
    pub token: String,
    /// The instance it took over from at a recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_instance: Option<Id>,
}

/// `status` of an instance; the newest of each list last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceStatus {
    /// Its generation counter.
    #[serde(default)]
    pub generation: u32,
    /// Its last step, in mode `insecure`: there each instance of a token goes on from its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<LastStep>,
    /// Its last joins.
    #[serde(default)]
    pub authentications: VecDeque<Authentication>,
    /// What it last told of itself.
    #[serde(default)]
    pub heartbeats: VecDeque<SeenHeartbeat>,
}

/// One join of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// When.
    pub time: Timestamp,
    /// What it was.
    pub kind: JoinKind,
    /// Generation it led to.
    pub generation: u32,
    /// From where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_addr: Option<String>,
}

/// A heartbeat and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenHeartbeat {
    /// When.
    pub time: Timestamp,
    /// What was told.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
}

/// How long the record of an instance outlives its newest certificate.
pub const INSTANCE_GRACE: Duration = Duration::from_secs(300);

impl Instance {
    /// The end of the certificate of it that ends last, in whole seconds as certificates have it (RFC 5280 section 4.1.2.5).
    pub fn certificate_ends(&self) -> Option<Timestamp> {
        self.metadata.expires.map(|end| Timestamp::from_secs(end.minus(INSTANCE_GRACE).secs()))
    }

    /// What it is called: `bot_instance` or `host`.
    pub fn kind(&self) -> Kind {
        if self.spec.bot_name.is_some() { Kind::BotInstance } else { Kind::Host }
    }
}

impl InstanceStatus {
    /// Notes a join, and forgets the oldest beyond [`MAX_KEPT`]. What the device tells of itself is cut to a bearable length, and
    /// what in it is not graphic is replaced by U+FFFD.
    pub fn note(&mut self, authentication: Authentication, mut heartbeat: Heartbeat) {
        let time = authentication.time;
        let Heartbeat { version, hostname, architecture, keystore } = &mut heartbeat;
        for text in [version, hostname, architecture, keystore] {
            let graphic = text.chars().take(MAX_TEXT).map(|c| if is_graphic(c) { c } else { char::REPLACEMENT_CHARACTER });
            *text = cut(graphic.collect(), MAX_TEXT);
        }
        self.generation = authentication.generation;
        self.authentications.push_back(authentication);
        self.heartbeats.push_back(SeenHeartbeat { time, heartbeat });
        while self.authentications.len() > MAX_KEPT {
            self.authentications.pop_front();
        }
        while self.heartbeats.len() > MAX_KEPT {
            self.heartbeats.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_cannot_make_its_record_grow() {
        let long = || "\u{e4}".repeat(60_000);
        let mut status = InstanceStatus::default();
        for generation in 0..100 {
            let heartbeat = Heartbeat { version: long(), hostname: long(), architecture: long(), keystore: "tpm".into() };
            let authentication =
                Authentication { time: Timestamp::default(), kind: JoinKind::Renewal, generation, remote_addr: None };
            status.note(authentication, heartbeat);
        }
        assert_eq!((status.authentications.len(), status.heartbeats.len()), (MAX_KEPT, MAX_KEPT));
        let kept = &status.heartbeats[0].heartbeat;
        assert_eq!((kept.hostname.len(), &*kept.keystore), (MAX_TEXT - 1, "tpm"));
        let steering = Heartbeat { hostname: "\u{9b}2J\u{202e}".repeat(9_000), ..Heartbeat::default() };
        let authentication =
            Authentication { time: Timestamp::default(), kind: JoinKind::Renewal, generation: 1, remote_addr: None };
        status.note(authentication, steering);
        let kept = &status.heartbeats.back().unwrap().heartbeat.hostname;
        assert!(kept.starts_with("\u{fffd}2J\u{fffd}") && kept.len() <= MAX_TEXT, "{kept}");
    }
}
