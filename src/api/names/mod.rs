//! Names in certificates: which of them are well formed, and which a pattern of a role allows.
//!
//! A device asks for names of its own choice, so each is parsed before it is compared, and what does not parse is allowed by nothing.
//! `docs/configuration.md` states the rules for operators.

mod dns;
mod ip;
mod pattern;
mod principal;
mod uri;

pub use dns::check as check_dns_name;
pub use ip::Network;
pub use pattern::Subject;
pub use principal::check as check_principal;
pub use uri::{check as check_uri, host as uri_host};

use crate::resource::{Allow, Role};
use boundkey_join::message::OutputRequest;

/// Most names of one certificate: each is compared with every pattern.
const MAX_NAMES: usize = 100;

/// Says why a name in `request` may stand in no certificate, whatever roles allow: the first name that is not well formed.
pub fn check(request: &OutputRequest) -> Result<(), String> {
    let principals = request.ssh_host.as_ref().map_or(0, |ssh| ssh.principals.len());
    if request.dns_names.len() + request.uris.len() + request.ip_addresses.len() + principals > MAX_NAMES {
        return Err(format!("more than {MAX_NAMES} names for one certificate"));
    }
    request.dns_names.iter().try_for_each(|name| dns::check(name))?;
    request.uris.iter().try_for_each(|name| uri::check(name))?;
    request.ip_addresses.iter().try_for_each(|ip| ip::check(*ip))?;
    request.ssh_host.iter().flat_map(|ssh| &ssh.principals).try_for_each(|name| principal::check(name))?;
    // X.509-SVID section 2: validators have to refuse a certificate with a second URI.
    match request.uris.iter().find(|name| uri::is_spiffe(name)) {
        Some(id) if request.uris.len() > 1 => Err(format!("{id} is a SPIFFE ID, beside which a certificate has no other URI")),
        _ => Ok(()),
    }
}

/// The first name in `request` that none of `roles` allows to `subject`.
pub fn first_forbidden(roles: &[Role], request: &OutputRequest, subject: Subject<'_>) -> Option<String> {
    let allowed = |patterns: fn(&Allow) -> &[String], fits: fn(&str, &str) -> bool, name: &str| {
        let mut patterns = roles.iter().flat_map(|role| patterns(&role.spec.allow));
        patterns.any(|pattern| pattern::fill_in(pattern, subject).is_some_and(|pattern| fits(&pattern, name)))
    };
    let networks = || roles.iter().flat_map(|role| &role.spec.allow.ip_addresses).filter_map(|text| text.parse::<Network>().ok());
    let dns = request.dns_names.iter().find(|name| !allowed(|allow| &allow.dns_names, dns::fits, name));
    let uri = || request.uris.iter().find(|name| !allowed(|allow| &allow.uris, uri::fits, name));
    let principal = || {
        let mut principals = request.ssh_host.iter().flat_map(|ssh| &ssh.principals);
        principals.find(|name| !allowed(|allow| &allow.ssh_principals, principal::fits, name))
    };
    let ip = || request.ip_addresses.iter().find(|ip| !networks().any(|network| network.contains(**ip)));
    dns.or_else(uri).or_else(principal).cloned().or_else(|| ip().map(ToString::to_string))
}

/// Says what is wrong with the patterns of a role. One that can allow nothing is refused too: it is a mistake.
pub fn check_patterns(allow: &Allow) -> Result<(), String> {
    let each = |field: &str, patterns: &[String], check: fn(&str) -> Result<(), String>| {
        let checked = patterns.iter().try_for_each(|pattern| {
            pattern::check(pattern).and_then(|sample| check(&sample)).map_err(|why| format!("pattern {pattern:?}: {why}"))
        });
        checked.map_err(|why| format!("spec.allow.{field}: {why}"))
    };
    each("dns_names", &allow.dns_names, dns::check)?;
    each("uris", &allow.uris, uri::check)?;
    each("ssh_principals", &allow.ssh_principals, principal::check)?;
    allow.uris.iter().try_for_each(|pattern| uri::check_pattern(pattern)).map_err(|why| format!("spec.allow.uris: {why}"))?;
    let networks = allow.ip_addresses.iter().try_for_each(|text| text.parse::<Network>().map(|_| ()));
    networks.map_err(|why| format!("spec.allow.ip_addresses: {why}"))
}

#[cfg(test)]
mod tests;
