//! DNS names: RFC 1123 section 2.1, with the underscore that many networks have in theirs.

use super::pattern::{self, is_of_label};

/// Longest name, in bytes (RFC 1035 section 2.3.4, without the lengths on the wire).
const MAX_NAME: usize = 253;
/// Longest label, in bytes (the same).
const MAX_LABEL: usize = 63;

/// Says why `name` is not a DNS name that a certificate may have. No wildcard is: it would speak for other devices.
pub fn check(name: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("{name:?} is not a DNS name{why}"));
    if name.contains('*') {
        return bad(": no certificate with a wildcard is issued");
    }
    if name.ends_with('.') {
        return bad(" as certificates have it: leave out the full stop at its end");
    }
    if !name.is_ascii() {
        return bad(": write it in its ASCII form, xn--");
    }
    if !is_host_name(name) {
        return bad("");
    }
    // RFC 1123 section 2.1. Programs that read it as an IPv4 address, of one part or in hexadecimal too, would take it for one.
    if name.rsplit('.').next().is_some_and(is_number) {
        return bad(": its last label is a number, as in an IP address");
    }
    Ok(())
}

/// Whether all labels are well formed.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(is_of_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// Whether `name` fits `pattern`; the case of letters makes no difference (RFC 4343), and `*` stands for a part of one label.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    check(name).is_ok() && pattern::fits(&pattern.to_ascii_lowercase(), &name.to_ascii_lowercase(), is_of_label)
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    hexadecimal.map_or_else(|| label.bytes().all(|b| b.is_ascii_digit()), |rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
