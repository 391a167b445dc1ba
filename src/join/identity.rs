//! Whose an identity certificate is: the one URI that it carries.

use serde::{Deserialize, Serialize};

use super::{Id, Step};

/// The scheme of these URIs, which outputs never carry.
pub const SCHEME: &str = "boundkey://";

/// What the instances of a token are. On the wire and in records it is the boolean `host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum InstanceKind {
    /// Instances of a bot.
    #[default]
    Bot,
    /// Hosts: instances of a service that is not a bot.
    Host,
}

impl InstanceKind {
    /// Whether it is a bot's.
    pub fn is_bot(&self) -> bool {
        *self == Self::Bot
    }

    /// The path segment before the instance's id in an identity URI.
    fn segment(self) -> &'static str {
        match self {
            Self::Bot => "instance",
            Self::Host => "host",
        }
    }
}

impl std::fmt::Display for InstanceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bot => "bot",
            Self::Host => "host",
        })
    }
}

impl From<bool> for InstanceKind {
    fn from(host: bool) -> Self {
        if host { Self::Host } else { Self::Bot }
    }
}

impl From<InstanceKind> for bool {
    fn from(kind: InstanceKind) -> Self {
        kind == InstanceKind::Host
    }
}

/// The subject of an identity certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySubject {
    /// Cluster.
    pub cluster: String,
    /// Token.
    pub token: String,
    /// Incarnation of the token.
    pub incarnation: Id,
    /// What the instance is.
    pub kind: InstanceKind,
    /// The step that the certificate was issued for.
    pub step: Step,
}

impl IdentitySubject {
    /// `boundkey://CLUSTER/token/NAME/INCARNATION/instance/ID/RECOVERY/GENERATION`; of a host, `host` stands in place of `instance`.
    pub fn uri(&self) -> String {
        let Self { cluster, token, incarnation, kind, step } = self;
        let Step { recovery, generation, instance } = step;
        format!("{SCHEME}{cluster}/token/{token}/{incarnation}/{}/{instance}/{recovery}/{generation}", kind.segment())
    }

    /// The subject that `uri` names; `None` if it is no identity URI.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let parts: Vec<_> = uri.strip_prefix(SCHEME)?.split('/').collect();
        let [cluster, "token", token, incarnation, segment, instance, recovery, generation] = parts[..] else {
            return None;
        };
        let kind = [InstanceKind::Bot, InstanceKind::Host].into_iter().find(|kind| kind.segment() == segment)?;
        let step =
            Step { recovery: recovery.parse().ok()?, generation: generation.parse().ok()?, instance: instance.parse().ok()? };
        Some(Self { cluster: cluster.into(), token: token.into(), incarnation: incarnation.parse().ok()?, kind, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_its_subject() {
        for kind in [InstanceKind::Bot, InstanceKind::Host] {
            let step = Step { recovery: 2, generation: 7, instance: Id([3; 16]) };
            let subject = IdentitySubject { cluster: "c".into(), token: "t".into(), incarnation: Id([9; 16]), kind, step };
            assert_eq!(IdentitySubject::from_uri(&subject.uri()), Some(subject.clone()));
            assert_eq!(IdentitySubject::from_uri(&format!("{}/", subject.uri())), None);
            assert_eq!(IdentitySubject::from_uri(&subject.uri().replace("token", "bot")), None);
        }
    }
}
