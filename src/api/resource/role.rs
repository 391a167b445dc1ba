//! `role`: which names its bots and hosts may have in certificates, and for how long.
//!
//! What patterns of names mean is in [`names`](crate::names).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::names;

/// Least `max_ttl`: what is shorter ends before a device has come back for more.
pub const LEAST_MAX_TTL: Duration = Duration::from_secs(60);
/// Greatest `max_ttl`, ten years: half the lifetime of the cluster's CA. What is longer is a mistake, and adding it to a time overflows.
pub const GREATEST_MAX_TTL: Duration = Duration::from_secs(3650 * 86_400);

/// A role, version v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Name and labels.
    pub metadata: Metadata,
    /// What it allows.
    pub spec: RoleSpec,
}

/// `spec` of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// Names that certificates may carry.
    #[serde(default)]
    pub allow: Allow,
    /// Longest lifetime of a certificate, such as `12h`, between [`LEAST_MAX_TTL`] and [`GREATEST_MAX_TTL`]; where none is given 24 h
    /// for bots, and 30 days for hosts.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "duration_text")]
    pub max_ttl: Option<Duration>,
}

/// Patterns of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// DNS names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// URIs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// Addresses and networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Names of hosts in SSH certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_principals: Vec<String>,
}

impl Role {
    pub(super) fn validate(&self) -> Result<(), String> {
        match self.spec.max_ttl {
            Some(ttl) if ttl < LEAST_MAX_TTL => Err("spec.max_ttl: it is less than a minute, and no device could keep up".into()),
            Some(ttl) if ttl > GREATEST_MAX_TTL => {
                Err("spec.max_ttl: it is more than ten years (3650d); a certificate ends with the cluster's CA at the latest"
                    .into())
            }
            _ => names::check_patterns(&self.spec.allow),
        }
    }
}

/// Durations as people write them: `90s`, `12h`.
mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "the shape that serde asks for")]
    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.collect_str(&humantime::format_duration(*duration)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let parse =
            |text: String| humantime::parse_duration(&text).map_err(|e| format!("{text:?} is not a duration such as 12h: {e}"));
        text.map(parse).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_of_nothing_and_one_of_ages_are_refused() {
        let role = |ttl: Duration| Role {
            metadata: Metadata::named("r"),
            spec: RoleSpec { allow: Allow::default(), max_ttl: Some(ttl) },
        };
        let second = Duration::from_secs(1);
        for wrong in [Duration::ZERO, LEAST_MAX_TTL.saturating_sub(second), GREATEST_MAX_TTL + second, Duration::MAX] {
            let why = role(wrong).validate().unwrap_err();
            assert!(why.starts_with("spec.max_ttl: "), "{why}");
        }
        for right in [LEAST_MAX_TTL, GREATEST_MAX_TTL] {
            assert_eq!(role(right).validate(), Ok(()));
        }
    }
}
