//! Who makes a call, what the call does, and to what: the three things that authorization is decided on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::resource::{Kind, ResourceId};

/// Who makes a call. Written as one word with a prefix for its sort, such as `local:0`.
///
/// The listener that a call came through says who it is; what a call says of itself is never looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Actor {
    /// A user of the machine that the server runs on, by the user id that the kernel reports of the connection.
    Local(u32),
}

/// The prefix of a user of the server's machine.
const LOCAL: &str = "local:";

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(uid) => write!(f, "{LOCAL}{uid}"),
        }
    }
}

impl FromStr for Actor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uid = text.strip_prefix(LOCAL).and_then(|uid| uid.parse().ok());
        uid.map(Self::Local).ok_or_else(|| format!("{text:?} is not an actor that this version knows, such as local:0"))
    }
}

impl TryFrom<String> for Actor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Actor> for String {
    fn from(actor: Actor) -> Self {
        actor.to_string()
    }
}

/// What a call does. The calls of [`super::call`] say which of these each of them needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Removes a resource.
    Delete,
    /// Grants or withdraws an exemption of a token.
    Exempt,
    /// Stops the joins of a resource.
    Lock,
    /// Shows resources without their secrets, the audit log, or the CAs.
    Read,
    /// Shows registration secrets too.
    ReadSecrets,
    /// Undoes the binding of a token.
    Reset,
    /// Replaces keys: those of tokens, or the CA's.
    Rotate,
    /// Creates or changes a resource.
    Write,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Delete, Self::Exempt, Self::Lock, Self::Read, Self::ReadSecrets, Self::Reset, Self::Rotate, Self::Write];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delete => "delete",
            Self::Exempt => "exempt",
            Self::Lock => "lock",
            Self::Read => "read",
            Self::ReadSecrets => "read the secrets of",
            Self::Reset => "reset",
            Self::Rotate => "rotate",
            Self::Write => "write",
        })
    }
}

/// What an action is done to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// The audit log.
    AuditLog,
    /// The cluster's CAs.
    Ca,
    /// All resources of a kind, or those of them that a selector picks.
    Kind(Kind),
    /// One resource.
    Resource(ResourceId),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AuditLog => f.write_str("the audit log"),
            Self::Ca => f.write_str("the CA"),
            Self::Kind(kind) => write!(f, "each {kind}"),
            Self::Resource(id) => id.fmt(f),
        }
    }
}

/// A right that a call needs: to do this to that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What is done.
    pub action: Action,
    /// To what.
    pub object: Object,
}

impl Access {
    /// The right to do `action` to `object`.
    pub fn new(action: Action, object: Object) -> Self {
        Self { action, object }
    }

    /// The right to do `action` to the token `name`.
    pub fn to_token(action: Action, name: &str) -> Self {
        Self::new(action, Object::Resource(ResourceId::new(Kind::Token, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_read_as_it_is_written_and_no_other_text_is_one() {
        for actor in [Actor::Local(0), Actor::Local(u32::MAX)] {
            assert_eq!(actor.to_string().parse(), Ok(actor));
        }
        for wrong in ["", "0", "local:", "local:-1", "local:4294967296", "LOCAL:0", "uid 0", "operator:a"] {
            assert!(wrong.parse::<Actor>().is_err(), "{wrong}");
        }
    }
}
