//! URIs: parsed and compared component by component as RFC 3986 says, with the rules of RFC 5280 section 4.2.1.6 and, for scheme
//! `spiffe`, those of the SPIFFE-ID specification.

use std::net::IpAddr;

use fluent_uri::Uri;
use fluent_uri::component::Host as ParsedHost;

use super::pattern::{self, is_of_label, is_unreserved};
use super::{dns, ip};

/// Longest URI, in bytes: that of a SPIFFE ID.
const MAX_URI: usize = 2048;
const SPIFFE: &str = "spiffe";
/// The scheme that identity certificates carry.
const OURS: &str = "boundkey";

/// Says why `name` is not a URI that an output may have.
pub fn check(name: &str) -> Result<(), String> {
    Parts::of(name).map(|_| ()).map_err(|why| format!("{name:?} {why}"))
}

/// The host that `name` stands for, if it stands for one, without the brackets of an IPv6 address. A SPIFFE ID has a trust domain in that
/// place (SPIFFE-ID section 2.1). A SIP URI has its host in the path (RFC 3261 section 19.1.1).
pub fn host(name: &str) -> Option<String> {
    let parts = Parts::of(name).ok().filter(|parts| parts.scheme != SPIFFE)?;
    match parts.host {
        Some(Host::Ip(ip)) => Some(ip.to_string()),
        Some(Host::Name(name)) => Some(name),
        None if matches!(&*parts.scheme, "sip" | "sips") => {
            let host = parts.path.split(';').next()?.rsplit('@').next()?;
            let end_of_address = host.find(']').map_or(0, |at| at + 1);
            let port = host[end_of_address..].find(':').map_or(host.len(), |at| end_of_address + at);
            Some(host[..port].trim_matches(['[', ']']).to_owned())
        }
        None => None,
    }
}

/// Whether `name` begins like a SPIFFE ID.
pub(super) fn is_spiffe(name: &str) -> bool {
    name.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case(SPIFFE))
}

/// Says what is wrong with a pattern beyond [`pattern::check`] and [`check`] of a name that it allows.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("pattern {pattern:?}: {why}"));
    if pattern.split(':').next().is_some_and(|scheme| scheme.contains(['*', '{'])) {
        return bad("the scheme has to be written out");
    }
    if pattern.split_once(['?', '#']).is_some_and(|(_, rest)| rest.contains('*')) {
        return bad("no star may stand in query or fragment: both are allowed literally alone");
    }
    Ok(())
}

/// Whether `name` fits `pattern`, component by component. In the host `*` stands for a part of one label, in the path for unreserved
/// characters, so for no delimiter and nothing that is percent-encoded. All else is compared literally, in normal form.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let (Ok(pattern), Ok(name)) = (Parts::of_pattern(pattern), Parts::of(name)) else { return false };
    let host = match (&pattern.host, &name.host) {
        (None, None) => true,
        (Some(Host::Ip(pattern)), Some(Host::Ip(ip))) => pattern == ip,
        (Some(Host::Name(pattern)), Some(Host::Name(name))) => pattern::fits(pattern, name, is_of_label),
        _ => false,
    };
    host && pattern.scheme == name.scheme
        && pattern.port == name.port
        && pattern::fits(&pattern.path, &name.path, is_unreserved)
        && pattern.query == name.query
        && pattern.fragment == name.fragment
}

/// The components of a URI in normal form (RFC 3986 section 6.2.2): scheme and host in lower case, nothing unreserved percent-encoded,
/// no port that is empty or the scheme's own.
struct Parts {
    scheme: String,
    /// Of the authority; `None`: there is none.
    host: Option<Host>,
    port: Option<String>,
    path: String,
    query: Option<String>,
    fragment: Option<String>,
}

enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Parts {
    /// The components of a URI that an output may have, or why it may not.
    fn of(text: &str) -> Result<Self, String> {
        let parts = Self::of_pattern(text)?;
        if parts.scheme == OURS {
            return Err("has the scheme of identities, which no output may have".into());
        }
        if parts.scheme == SPIFFE {
            spiffe(text)?;
        } else if let Some(Host::Name(host)) = &parts.host {
            dns::check(host).map_err(|why| format!("has a host that no certificate may have: {why}"))?;
        }
        Ok(parts)
    }

    /// The same of a pattern whose placeholders are filled in: `*` may stand in host and path, where the grammar has it too.
    fn of_pattern(text: &str) -> Result<Self, String> {
        if text.len() > MAX_URI {
            return Err(format!("is longer than {MAX_URI} bytes"));
        }
        let uri = Uri::parse(text).map_err(|e| format!("is not a URI: {e}"))?;
        if uri.path().split('/').any(|segment| matches!(&*segment.decode().to_bytes(), b"." | b"..")) {
            return Err("has a path with a segment that is . or .., which readers take out".into());
        }
        // Readers differ on it: Go's refuses the whole certificate.
        if uri.authority().is_some_and(|authority| authority.host().contains('%')) {
            return Err("has a percent-encoded host".into());
        }
        let uri = uri.normalize();
        let (mut host, mut port) = (None, None);
        if let Some(authority) = uri.authority() {
            if authority.has_userinfo() {
                return Err("has user information before its host".into());
            }
            authority.port_to_u16().map_err(|_| "has a port above 65535")?;
            port = authority.port().map(|port| port.as_str().to_owned());
            host = Some(match authority.host_parsed() {
                ParsedHost::Ipv4(ip) => Host::Ip(ip.into()),
                ParsedHost::Ipv6(ip) => Host::Ip(ip.into()),
                ParsedHost::RegName(name) if !name.is_empty() => Host::Name(name.as_str().to_owned()),
                _ => return Err("has no host that is a name or an IP address".into()),
            });
        }
        if let Some(Host::Ip(ip)) = host {
            ip::check(ip)?;
        }
        Ok(Self {
            scheme: uri.scheme().as_str().to_owned(),
            host,
            port,
            path: uri.path().as_str().to_owned(),
            query: uri.query().map(|query| query.as_str().to_owned()),
            fragment: uri.fragment().map(|fragment| fragment.as_str().to_owned()),
        })
    }
}

/// SPIFFE-ID sections 2.1 and 2.2, and X.509-SVID section 4: the ID of a workload has a path. Judged as it is written, for its readers
/// compare it as it is written.
fn spiffe(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("spiffe://").ok_or("is not a SPIFFE ID: it begins with spiffe:// in lower case")?;
    let (domain, path) = rest.split_once('/').ok_or("is not the SPIFFE ID of a workload: it has no path")?;
    if !dns::is_host_name(domain) || domain.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("is not a SPIFFE ID: its trust domain is of a-z 0-9 . - _".into());
    }
    let plain = |segment: &str| !segment.is_empty() && segment.bytes().all(|b| is_of_label(b) || b == b'.');
    if !path.split('/').all(plain) {
        return Err("is not a SPIFFE ID: each segment of its path is of a-z A-Z 0-9 . - _, and none is empty".into());
    }
    Ok(())
}
