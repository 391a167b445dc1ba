//! Names of hosts in SSH certificates: a host name, or an address as clients write it.

use std::net::IpAddr;

use super::pattern::{self, is_of_label};
use super::{dns, ip};

/// Says why `name` is not the name of one host. OpenSSH reads `*` and `?` in a certificate as wildcards.
pub fn check(name: &str) -> Result<(), String> {
    match name.parse() {
        Ok(address) => ip::check(address),
        Err(_) => dns::check(name).map_err(|_| format!("{name:?} is neither a host name nor an address")),
    }
}

/// Whether `name` fits `pattern`. No `*` stands for a part of an address.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    match name.parse::<IpAddr>() {
        Ok(address) => pattern.parse() == Ok(address),
        Err(_) => check(name).is_ok() && pattern::fits(&pattern.to_ascii_lowercase(), &name.to_ascii_lowercase(), is_of_label),
    }
}
