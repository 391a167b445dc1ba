//! The name in an identity certificate: the one URI that it carries.

use super::{Id, Step};

/// The scheme of these URIs, which outputs never carry.
pub const SCHEME: &str = "boundkey://";

/// `boundkey://CLUSTER/token/NAME/INCARNATION/instance/ID/RECOVERY/GENERATION`; of a host, `host` stands in place of `instance`.
pub fn identity_uri(cluster: &str, token: &str, incarnation: Id, host: bool, step: Step) -> String {
    let kind = if host { "host" } else { "instance" };
    let Step { recovery, generation, instance } = step;
    format!("{SCHEME}{cluster}/token/{token}/{incarnation}/{kind}/{instance}/{recovery}/{generation}")
}
