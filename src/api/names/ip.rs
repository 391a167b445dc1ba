//! IP addresses and networks.

use std::net::IpAddr;
use std::str::FromStr;

/// An address, or all addresses with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u32,
}

/// Says why a certificate may not have `ip`. Go's verifier, for one, takes an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) for
/// the IPv4 address, which a role for IPv6 does not allow.
pub(super) fn check(ip: IpAddr) -> Result<(), String> {
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{ip} is an IPv4 address in the form of IPv6: write {}", ip.to_canonical()))
        }
        _ => Ok(()),
    }
}

impl Network {
    /// Whether `ip` is in this network. An address of one family is in no network of the other.
    pub fn contains(self, ip: IpAddr) -> bool {
        let ((base, width), (ip_bits, other)) = (bits(self.base), bits(ip));
        width == other && check(ip).is_ok() && base & mask(self.prefix) == ip_bits & mask(self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let neither = || format!("{text:?} is neither an address nor a network such as 10.1.0.0/16");
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
        let base: IpAddr = ip.parse().map_err(|_| neither())?;
        check(base)?;
        let (base_bits, width) = bits(base);
        let prefix = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| neither())?,
            Some(_) => return Err(neither()),
        };
        if prefix > width {
            return Err(neither());
        }
        if base_bits & !mask(prefix) != 0 {
            return Err(format!(
                "{text:?} has bits beyond its prefix: write the network's own address, or the one address alone"
            ));
        }
        Ok(Self { base, prefix })
    }
}

/// The bits of an address from the highest on, and how many there are.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    }
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}
