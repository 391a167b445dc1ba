//! How a cluster's CAs stand, and the steps by which one replaces another.

use serde::{Deserialize, Serialize};

/// Where a CA stands. It goes from one to the next, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Devices learn of it; it signs nothing yet.
    Announced,
    /// It signs.
    Active,
    /// Another one signs; what this one signed counts.
    Superseded,
    /// Devices do not trust it any more.
    Retired,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Retired => "retired",
        })
    }
}

impl Phase {
    /// Whether trust bundles name a CA in this phase.
    pub fn is_trusted(self) -> bool {
        self != Self::Retired
    }
}

/// Where a rotation is to go: the phase of the CA that comes next, or for the last step that of the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The old CA signs, the next one is known to devices.
    Announced,
    /// The next CA signs, the old one counts.
    Active,
    /// The old CA does not count any more.
    Retired,
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The announced CA takes over.
    Activate,
    /// The next CA is made, and devices learn of it.
    Announce,
    /// The CA that was retired last counts again.
    Restore,
    /// The CA that was superseded does not count any more.
    Retire,
    /// The CA that was superseded signs again.
    Return,
    /// The announced CA is not to come.
    Withdraw,
}

/// A share of the bound tokens that have not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// All of them.
    pub tokens: u64,
    /// Those meant.
    pub have: u64,
}
