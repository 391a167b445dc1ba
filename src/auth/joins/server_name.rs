//! Names and addresses of the auth endpoint, which no certificate of a device may carry.
//!
//! A device's certificate for such a name would let its holder pose as the auth endpoint to programs that look at names alone. Roles do
//! not decide that: a pattern such as `*.fleet.example` is written for the fleet, and covers the server all the same.

use std::net::IpAddr;

use boundkey_api::names;
use boundkey_join::message::OutputRequest;

/// The first name in `wanted` that is one of `server_names`. Each has passed [`names::check`]: it is written in one way only, but for the
/// case of its letters and the forms of an IPv6 address.
pub(super) fn first_in(wanted: &OutputRequest, server_names: &[String]) -> Option<String> {
    let principals = wanted.ssh_host.iter().flat_map(|ssh| &ssh.principals);
    let by_name = wanted.dns_names.iter().chain(principals).find(|name| is_of_server(name, server_names));
    let by_uri = || wanted.uris.iter().find(|uri| names::uri_host(uri).is_some_and(|host| is_of_server(&host, server_names)));
    let by_address = || wanted.ip_addresses.iter().map(ToString::to_string).find(|ip| is_of_server(ip, server_names));
    by_name.or_else(by_uri).cloned().or_else(by_address)
}

/// Whether `name`, a host name or an address, is one of `server_names`.
pub(super) fn is_of_server(name: &str, server_names: &[String]) -> bool {
    let name = Host::of(name);
    server_names.iter().any(|server| name == Host::of(server))
}

/// What a device is told.
pub(super) fn refusal(name: &str) -> String {
    format!("{name} is a name of the auth endpoint itself, which is never issued to a device, whatever a role allows")
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// An address; one of IPv4 that is mapped into IPv6 (RFC 4291 section 2.5.5.2) is that of IPv4.
    Address(IpAddr),
    /// A DNS name in lower case, without the dot of the root.
    Name(String),
}

impl Host {
    fn of(text: &str) -> Self {
        match text.parse::<IpAddr>() {
            Ok(ip) => Self::Address(ip.to_canonical()),
            Err(_) => Self::Name(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_join::message::SshHostRequest;

    fn server() -> Vec<String> {
        ["auth.fleet.test", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.9", "Fleet.test."].map(str::to_owned).into()
    }

    /// Whether the server's names keep `wanted` from being issued; what is not well formed never is.
    fn is_refused(wanted: &OutputRequest) -> bool {
        names::check(wanted).is_err() || first_in(wanted, &server()).is_some()
    }

    #[test]
    fn a_name_of_the_server_is_not_issued_however_it_is_written() {
        for name in [
            "auth.fleet.test",
            "AUTH.Fleet.Test",
            "auth.fleet.test.",
            "fleet.test",
            "*.fleet.test",
            "*.test",
            "10.0.0.1",
            "10.1",
            "012.0.0.1",
            "0xa.0.0x0.1",
            "0x0A000001",
            "167772161",
            "::ffff:10.0.0.1",
            "2001:DB8:0:0::1",
            "10.0.0.9",
        ] {
            let dns = OutputRequest { dns_names: vec![name.into()], ..OutputRequest::default() };
            assert!(is_refused(&dns), "{name}");
            let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti".parse().unwrap();
            let ssh_host = Some(SshHostRequest { key, principals: vec!["gw".into(), name.into()] });
            assert!(is_refused(&OutputRequest { ssh_host, ..OutputRequest::default() }), "{name}");
            if let Ok(ip) = name.parse() {
                assert!(is_refused(&OutputRequest { ip_addresses: vec![ip], ..OutputRequest::default() }), "{name}");
            }
        }
        for uri in [
            "https://auth.fleet.test/x",
            "HTTPS://user:pass@AUTH.fleet.test.:443?x",
            "https://AUTH.fleet.test:443?x",
            "https://%61uth.fleet.test#x",
            "https:\\\\auth.fleet.test\\x",
            "https://[2001:db8::1]:3025/",
            "https://[::ffff:10.0.0.1]/",
            "https://10.0.0.1/",
            "sip:gw@Auth.fleet.test;transport=tls",
            "sips:10.0.0.1:5061",
            "sip:[2001:db8::1]",
        ] {
            assert!(is_refused(&OutputRequest { uris: vec![uri.into()], ..OutputRequest::default() }), "{uri}");
        }
    }

    #[test]
    fn names_that_only_look_like_the_servers_are_no_concern() {
        for name in ["gw.fleet.test", "auth.fleet.test.example", "x.auth.fleet.test", "auth", "fleet.testing"] {
            assert!(!is_refused(&OutputRequest { dns_names: vec![name.into()], ..OutputRequest::default() }), "{name}");
        }
        for ip in ["10.0.0.2", "2001:db8::2", "::1"] {
            let ip_addresses = vec![ip.parse().unwrap()];
            assert!(!is_refused(&OutputRequest { ip_addresses, ..OutputRequest::default() }), "{ip}");
        }
        for uri in [
            "https://gw.fleet.test/auth.fleet.test",
            "https://gw.fleet.test?auth.fleet.test",
            "spiffe://fleet.test/gw",
            "urn:auth.fleet.test",
            "sip:auth.fleet.test@gw.fleet.test",
        ] {
            assert!(!is_refused(&OutputRequest { uris: vec![uri.into()], ..OutputRequest::default() }), "{uri}");
        }
    }
}
