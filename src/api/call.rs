//! The operators' calls: each is a `POST` of JSON to a path of its own, answered by JSON or a problem document.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::actor::{Access, Action, Object};
use super::ca::{Phase, Share, Step, Target};
use super::event::{EventFilter, EventPage};
use super::resource::{Kind, LockTarget, Resource, ResourceId};
use super::view::View;
use boundkey_join::RecoveryCode;
use boundkey_join::server::record::Exemption;
use boundkey_platform::time::Timestamp;

/// A call: what is asked, where, what it needs, and what is answered.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// Path of the call.
    const PATH: &'static str;
    /// The answer.
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// What the actor has to be allowed, all of it, for the call to be made.
    fn needs(&self) -> Vec<Access>;
}

macro_rules! calls {
    ($($call:ident at $path:literal gives $answer:ty, needs $needs:expr;)*) => {
        $(impl Call for $call {
            const PATH: &'static str = $path;
            type Answer = $answer;

            fn needs(&self) -> Vec<Access> {
                let needs: fn(&Self) -> Vec<Access> = $needs;
                needs(self)
            }
        })*
    };
}

calls! {
    Apply at "/v1/apply" gives Vec<Applied>, needs |call| call.resources.iter().map(write_to).collect();
    Audit at "/v1/audit" gives EventPage, needs |_| vec![Access::new(Action::Read, Object::AuditLog)];
    CaRotate at "/v1/ca/rotate" gives CaRotated, needs |_| vec![Access::new(Action::Rotate, Object::Ca)];
    CaStatus at "/v1/ca/status" gives CaReport, needs |_| vec![Access::new(Action::Read, Object::Ca)];
    CancelExemption at "/v1/exempt/cancel" gives Exemption, needs |call| vec![Access::to_token(Action::Exempt, &call.token)];
    Delete at "/v1/delete" gives Deleted, needs |call| vec![Access::new(Action::Delete, Object::Resource(call.id.clone()))];
    Exempt at "/v1/exempt" gives Exempted, needs |call| vec![Access::to_token(Action::Exempt, &call.token)];
    Get at "/v1/get" gives Entry, needs |call| read(&Object::Resource(call.id.clone()), call.with_secrets);
    List at "/v1/list" gives Listing, needs |call| read(&Object::Kind(call.kind), call.with_secrets);
    PutLock at "/v1/lock" gives ResourceId, needs |call| vec![Access::new(Action::Lock, Object::Resource(call.target.id()))];
    Replace at "/v1/replace" gives Applied, needs |call| vec![write_to(&call.resource)];
    Reset at "/v1/reset" gives Unbound, needs |call| vec![Access::to_token(Action::Reset, &call.token)];
    Rotate at "/v1/rotate" gives Vec<ResourceId>, needs |call| match call {
        Rotate::All | Rotate::Selector(_) => vec![Access::new(Action::Rotate, Object::Kind(Kind::Token))],
        Rotate::Token(name) => vec![Access::to_token(Action::Rotate, name)],
    };
}

fn write_to(resource: &Resource) -> Access {
    Access::new(Action::Write, Object::Resource(resource.id()))
}

/// Creates or updates resources: all or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Apply {
    /// The resources, in any order.
    pub resources: Vec<Resource>,
}

/// How the CAs stand.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CaStatus {}

/// What [`CaStatus`] tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaReport {
    /// The cluster's name.
    pub cluster: String,
    /// Sequence number of the newest trust bundle.
    pub sequence: u64,
    /// Tokens whose devices have it.
    pub newest: Share,
    /// The CAs, oldest first.
    pub cas: Vec<CaState>,
}

/// How one CA stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaState {
    /// Its number.
    pub number: u32,
    /// Its phase.
    pub phase: Phase,
    /// Since when it is in it.
    pub since: Timestamp,
    /// The end of its certificate.
    pub not_after: Timestamp,
    /// Its pin.
    pub pin: String,
    /// The pin of the root that it stands under, where that is another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_pin: Option<String>,
    /// Tokens whose devices know it, unless it is retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Share>,
    /// Whether nothing that it signed counts.
    #[serde(default)]
    pub compromised: bool,
}

/// Makes one step of a rotation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CaRotate {
    /// Where to go; nothing given: the next CA is to be announced.
    #[serde(default)]
    pub to: Option<Target>,
    /// Withdraws the announced CA.
    #[serde(default)]
    pub cancel: bool,
    /// Goes on also where devices are not ready.
    #[serde(default)]
    pub yes: bool,
    /// The CA to be retired is in other hands.
    #[serde(default)]
    pub compromised: bool,
}

/// What [`CaRotate`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotated {
    /// The step.
    pub step: Step,
    /// The CA that it was about.
    pub number: u32,
    /// How the CAs stand now.
    pub report: CaReport,
}

/// What became of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The resource.
    pub id: ResourceId,
    /// What was done.
    pub outcome: Outcome,
    /// Of what is new: the locks that were there before it, and stop it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<ResourceId>,
}

/// What was done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is new.
    Created,
    /// It was as asked already.
    Unchanged,
    /// It was another.
    Updated,
}

/// Audit events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Audit {
    /// Which.
    pub filter: EventFilter,
    /// While there are none, wait for some: so many seconds, at most 20.
    #[serde(default)]
    pub wait: u64,
}

/// Removes a resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Which.
    pub id: ResourceId,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The resource.
    pub id: ResourceId,
    /// Locks on it. They stay, and stop another of that name.
    #[serde(default)]
    pub locks: Vec<ResourceId>,
    /// Resources that name it, and are not of use until there is another of that name.
    #[serde(default)]
    pub named_by: Vec<ResourceId>,
}

/// Lets a device come back: lifts the token's automatic locks, allows recoveries beyond the limit, and one join without a
/// matching join state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exempt {
    /// The token.
    pub token: String,
    /// Recoveries allowed by it.
    pub recoveries: u32,
    /// When it ends unused: seconds from now.
    pub seconds: u64,
    /// The code of the only key that may come back by it, as `boundkey recovery-code` prints it on the device.
    #[serde(default)]
    pub key: Option<RecoveryCode>,
    /// Why it is given.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What an exemption did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exempted {
    /// The exemption.
    pub exemption: Exemption,
    /// The locks that it lifted.
    pub lifted: Vec<ResourceId>,
    /// The locks that still stop the token: those that operators made.
    pub remaining: Vec<ResourceId>,
}

/// Withdraws an exemption.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelExemption {
    /// The token.
    pub token: String,
}

/// Reads one resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Which.
    pub id: ResourceId,
    /// Whether to show registration secrets.
    #[serde(default)]
    pub with_secrets: bool,
}

/// Reads a page of the resources of a kind, in the order of their names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List {
    /// Of which kind.
    pub kind: Kind,
    /// [`Listing::next`] of the page before; without, the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Whether to show registration secrets.
    #[serde(default)]
    pub with_secrets: bool,
}

/// A page of resources, all as they were at one moment. A resource that exists while all pages are read is on one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The resources.
    pub entries: Vec<Entry>,
    /// Where to read on, as [`List::after`]; without, this is the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The right to read what `object` is, and its secrets where they are to be shown.
fn read(object: &Object, with_secrets: bool) -> Vec<Access> {
    let mut needed = vec![Access::new(Action::Read, object.clone())];
    if with_secrets {
        needed.push(Access::new(Action::ReadSecrets, object.clone()));
    }
    needed
}

/// A resource, its revision, and what else is seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The resource.
    pub resource: Resource,
    /// Its revision.
    pub revision: u64,
    /// What follows from it, other resources and the time. A role has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
}

/// Puts on a lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutLock {
    /// What it stops.
    pub target: LockTarget,
    /// What a device is told.
    #[serde(default)]
    pub message: String,
    /// When it ends: seconds from now.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// Changes a resource that was read at a revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replace {
    /// What it becomes.
    pub resource: Resource,
    /// The revision it was read at.
    pub revision: u64,
}

/// Undoes the binding of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reset {
    /// The token.
    pub token: String,
}

/// What stands in the way of a token that was reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unbound {
    /// The locks that stop it.
    pub locks: Vec<ResourceId>,
}

/// Orders new keys, at the next join of each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotate {
    /// Of all bound tokens.
    All,
    /// Of bound tokens with these labels.
    Selector(BTreeMap<String, String>),
    /// Of one token.
    Token(String),
}
