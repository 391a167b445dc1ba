//! `role`: which names its bots and hosts may have in certificates, and for how long.
//!
//! Patterns: `{{bot.name}}`, `{{token.name}}` and `{{instance.id}}` stand for the one who asks; a host has no bot, and its id is the
//! instance's. In DNS names and SSH principals `*` stands for any characters but a dot, in URIs for any but a slash. IP addresses
//! are given as such or as a network, `10.1.0.0/16`.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::join::message::OutputRequest;

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
    /// Longest lifetime of a certificate, such as `12h`; where none is given 24 h for bots, and 30 days for hosts.
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

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The bot's name; a host has none.
    pub bot: Option<&'a str>,
    /// The token's name.
    pub token: &'a str,
    /// The instance's id.
    pub instance: &'a str,
}

/// The first name in `request` that none of `roles` allows to `subject`.
pub fn first_forbidden(roles: &[Role], request: &OutputRequest, subject: Subject<'_>) -> Option<String> {
    let named = |patterns: fn(&Allow) -> &[String], name: &str, stop| {
        let mut patterns = roles.iter().flat_map(|role| patterns(&role.spec.allow));
        patterns.any(|pattern| fill_in(pattern, subject).is_some_and(|pattern| matches(&pattern, name, stop)))
    };
    let inside = |ip| roles.iter().flat_map(|role| &role.spec.allow.ip_addresses).any(|net| contains(net, ip));
    let dns = request.dns_names.iter().find(|name| !named(|allow| &allow.dns_names, name, b'.'));
    let uri = || request.uris.iter().find(|uri| !named(|allow| &allow.uris, uri, b'/'));
    let ip = || request.ip_addresses.iter().find(|ip| !inside(**ip));
    let ssh = || {
        let mut principals = request.ssh_host.iter().flat_map(|ssh| &ssh.principals);
        principals.find(|name| !named(|allow| &allow.ssh_principals, name, b'.'))
    };
    dns.or_else(uri).or_else(ssh).cloned().or_else(|| ip().map(ToString::to_string))
}

impl Role {
    pub(super) fn validate(&self) -> Result<(), String> {
        let allow = &self.spec.allow;
        let known = Subject { bot: Some(""), token: "", instance: "" };
        for pattern in allow.dns_names.iter().chain(&allow.uris).chain(&allow.ssh_principals) {
            if fill_in(pattern, known).is_none_or(|filled| filled.contains("{{") || filled.contains("}}")) {
                let known = "{{bot.name}}, {{token.name}}, {{instance.id}}";
                return Err(format!("spec.allow: {pattern:?} has a placeholder other than {known}"));
            }
        }
        match allow.ip_addresses.iter().find(|net| network(net).is_none()) {
            Some(bad) => Err(format!("spec.allow.ip_addresses: {bad:?} is neither an address nor a network such as 10.1.0.0/16")),
            None => Ok(()),
        }
    }
}

/// The pattern for `subject`; a host has nothing in place of a bot's name, and so nothing is as such a pattern says.
fn fill_in(pattern: &str, subject: Subject<'_>) -> Option<String> {
    const BOT: &str = "{{bot.name}}";
    let pattern = match subject.bot {
        Some(bot) => pattern.replace(BOT, bot),
        None if pattern.contains(BOT) => return None,
        None => pattern.to_owned(),
    };
    Some(pattern.replace("{{token.name}}", subject.token).replace("{{instance.id}}", subject.instance))
}

/// Whether `name` is as `pattern` says, where `*` stands for any run of characters without `stop`.
///
/// In time that grows with the length of both, however many stars there are: the name is whatever a device asks for.
fn matches(pattern: &str, name: &str, stop: u8) -> bool {
    // By length, the beginnings of the name that are as the pattern says up to here.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for wanted in pattern.bytes() {
        if wanted == b'*' {
            for (at, byte) in name.bytes().enumerate() {
                fits[at + 1] |= fits[at] && byte != stop;
            }
        } else {
            for (at, byte) in name.bytes().enumerate().rev() {
                fits[at + 1] = fits[at] && byte.eq_ignore_ascii_case(&wanted);
            }
            fits[0] = false;
        }
    }
    fits[name.len()]
}

fn contains(net: &str, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    network(net).is_some_and(|(base, prefix)| {
        let ((base, width), (ip, other)) = (bits(base), bits(ip));
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        width == other && base & mask == ip & mask
    })
}

/// The address and prefix length that `net` names.
fn network(net: &str) -> Option<(IpAddr, u32)> {
    let (ip, prefix) = net.split_once('/').map_or((net, None), |(ip, prefix)| (ip, Some(prefix)));
    let ip: IpAddr = ip.parse().ok()?;
    let width = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(width), |p| p.parse().ok()).filter(|p| *p <= width)?;
    Some((ip, prefix))
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
    use crate::join::message::SshHostRequest;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const SUBJECT: Subject<'_> = Subject { bot: Some("gw"), token: "gw-1", instance: "i" };

    fn role(dns: &[&str], uris: &[&str], ips: &[&str]) -> Role {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let allow = Allow { dns_names: own(dns), uris: own(uris), ip_addresses: own(ips), ssh_principals: vec![] };
        Role { metadata: Metadata::named("r"), spec: RoleSpec { allow, max_ttl: None } }
    }

    #[test]
    fn patterns_allow_what_they_say_and_no_more() {
        let role = [role(&["{{token.name}}.fleet.example", "*.lab.example"], &["urn:x:{{bot.name}}/*"], &["10.1.0.0/16", "::1"])];
        let asks = |dns: &str, uri: &str, ip: &str| OutputRequest {
            dns_names: vec![dns.into()],
            uris: vec![uri.into()],
            ip_addresses: vec![ip.parse().unwrap()],
            ..OutputRequest::default()
        };
        assert_eq!(first_forbidden(&role, &asks("GW-1.fleet.example", "urn:x:gw/a", "10.1.2.3"), SUBJECT), None);
        assert_eq!(first_forbidden(&role, &asks("a.lab.example", "urn:x:gw/", "::1"), SUBJECT), None);
        for (dns, uri, ip, first) in [
            ("gw-2.fleet.example", "urn:x:gw/a", "::1", "gw-2.fleet.example"),
            ("a.b.lab.example", "urn:x:gw/a", "::1", "a.b.lab.example"),
            ("a.lab.example.org", "urn:x:gw/a", "::1", "a.lab.example.org"),
            ("a.lab.example", "urn:x:gw/a/b", "::1", "urn:x:gw/a/b"),
            ("a.lab.example", "urn:x:gw/a", "10.2.0.1", "10.2.0.1"),
        ] {
            assert_eq!(first_forbidden(&role, &asks(dns, uri, ip), SUBJECT).as_deref(), Some(first));
        }
    }

    #[test]
    fn principals_of_ssh_have_patterns_of_their_own() {
        let mut role = role(&["*.fleet.example"], &[], &[]);
        role.spec.allow.ssh_principals = vec!["{{token.name}}.fleet.example".into(), "{{bot.name}}".into(), "*.lab".into()];
        let asks = |principal: &str| OutputRequest {
            ssh_host: Some(SshHostRequest { key: KEY.parse().unwrap(), principals: vec![principal.into()] }),
            ..OutputRequest::default()
        };
        let host = Subject { bot: None, ..SUBJECT };
        for principal in ["gw-1.fleet.example", "a.lab"] {
            assert_eq!(first_forbidden(std::slice::from_ref(&role), &asks(principal), host), None);
        }
        for principal in ["gw-2.fleet.example", "gw", "", "a.b.lab"] {
            assert_eq!(first_forbidden(std::slice::from_ref(&role), &asks(principal), host).as_deref(), Some(principal));
        }
        assert_eq!(first_forbidden(std::slice::from_ref(&role), &asks("gw"), SUBJECT), None);
    }

    #[test]
    fn stars_stand_for_any_run_and_for_nothing() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "*", true),
            ("a*", "A", true),
            ("*a*b*", "xAxxBx", true),
            ("*a*b*", "xbxxax", false),
            ("*ab", "aab", true),
            ("*.*", "a.b", true),
            ("*.*", "a.b.c", false),
            ("ä*", "äöü", true),
            ("*", "a.b", false),
        ] {
            assert_eq!(matches(pattern, name, b'.'), expected, "{pattern:?} {name:?}");
        }
        // Each way to share the name out among the stars, tried one after another, would take years.
        assert!(!matches("*-*-*-*-*-*-*-*-end", &"-".repeat(60_000), b'.'));
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert!(role(&["{{device}}.x"], &[], &[]).validate().is_err());
        assert!(role(&[], &[], &["10.0.0.0/33"]).validate().is_err());
        assert!(role(&["{{bot.name}}.x"], &[], &["10.0.0.0/8"]).validate().is_ok());
    }
}
