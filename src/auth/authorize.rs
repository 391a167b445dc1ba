//! Which operator may do what: one function decides, by one table.

use std::fmt;

use boundkey_api::actor::{Access, Action, Actor, Object};

/// What an actor is to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Runs the server: could change its files as well.
    Administrator,
}

/// What each role may do, to whatever object. What does not stand here is refused.
const TABLE: [(Role, &[Action]); 1] = [(Role::Administrator, &Action::ALL)];

/// Decides whether `actor` may do `action` to `object`.
pub fn authorize(actor: &Actor, action: Action, object: &Object) -> Result<(), Denied> {
    let role = role_of(actor)?;
    if TABLE.iter().any(|(of, actions)| *of == role && actions.contains(&action)) {
        return Ok(());
    }
    Err(Denied::NotAllowed(actor.clone(), Access::new(action, object.clone())))
}

/// Refuses an actor that may do nothing at all, before anything of a call is read.
pub fn authorize_connection(actor: &Actor) -> Result<(), Denied> {
    role_of(actor).map(|_| ())
}

/// Root, and the user that the server runs as, could read and write all that the server can.
fn role_of(actor: &Actor) -> Result<Role, Denied> {
    match actor {
        Actor::Local(uid) if *uid == 0 || *uid == nix::unistd::geteuid().as_raw() => Ok(Role::Administrator),
        Actor::Local(_) => Err(Denied::NoOperator(actor.clone())),
    }
}

/// A call that its actor may not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The actor may do other things, and not this.
    NotAllowed(Actor, Access),
    /// The actor may do nothing.
    NoOperator(Actor),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed(actor, Access { action, object }) => write!(f, "{actor} may not {action} {object}"),
            Self::NoOperator(Actor::Local(uid)) => {
                write!(f, "uid {uid} is neither root nor the user that boundkey-auth runs as")
            }
        }
    }
}

impl std::error::Error for Denied {}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_api::resource::{Kind, ResourceId};

    #[test]
    fn root_and_the_servers_own_user_may_do_all_and_any_other_nothing() {
        let own = nix::unistd::geteuid().as_raw();
        let other = [1, 65_534].into_iter().find(|uid| *uid != own).unwrap();
        let token = ResourceId::new(Kind::Token, "gw-1");
        let objects = [Object::AuditLog, Object::Ca, Object::Kind(Kind::Token), Object::Resource(token)];
        for action in Action::ALL {
            for object in &objects {
                for administrator in [0, own] {
                    assert_eq!(authorize(&Actor::Local(administrator), action, object), Ok(()), "{action:?} {object:?}");
                }
                let denied = authorize(&Actor::Local(other), action, object).unwrap_err();
                assert!(denied.to_string().contains("neither root nor"), "{denied}");
            }
        }
        assert!(authorize_connection(&Actor::Local(own)).is_ok() && authorize_connection(&Actor::Local(other)).is_err());
    }
}
