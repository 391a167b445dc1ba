//! A state of the whole system: numbers of interned parts, and how much of each kind of trouble is still to come.

use boundkey::join::RecoveryMode;

use super::faults::Fault;
use super::holder::{Client, Manner};

/// No such part.
pub const NONE: u32 = u32::MAX;
/// The device, in sets of holders such as [`State::in_step`].
pub const DEVICE: u8 = 1;
/// The copies, in the same.
pub const COPIES: [u8; 2] = [2, 4];

/// One state. Parts are named by what they are made of, so that the same situation is the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub server: u32,
    /// What a restore brings back.
    pub backup: u32,
    /// The device's medium.
    pub device: u32,
    /// The request that the device's process waits for an answer to.
    pub waiting: u32,
    /// Requests of the device under way, the newest first. Each may arrive at any time, more than once, or never.
    pub network: [InFlight; 2],
    /// The answer under way to `waiting`.
    pub answer: u32,
    pub copies: [Copied; 2],
    /// What the server answered to the attempt that the device has in flight: request and answer.
    pub lost: [u32; 2],
    /// Who is at the token's last step: its maker, and each that was given its answer.
    pub in_step: u8,
    /// Whether that is not known, for a restore or mode `insecure` let more than one holder go on.
    pub unsettled: bool,
    /// Copies that are strangers since a recovery code or a reset: nothing that they have counts any more.
    pub strangers: u8,
    /// The same of the backup.
    pub strangers_then: u8,
    /// The copies whose requests ever changed anything.
    pub acted: u8,
    /// The key that the device made for a recovery code last, by its number in the pool; 0: none.
    pub code: u8,
    /// Whether an exemption without a code was given, and nothing has been granted since.
    pub waiver: bool,
    /// Steps that the pace must let through by now, where it is part of what is explored.
    pub allowed: u8,
    pub left: Left,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InFlight {
    pub request: u32,
    /// Whether its sender was out of step already when it asked for the challenge, and none was let in beyond the join state since.
    pub behind: bool,
}

impl InFlight {
    pub const NOTHING: Self = Self { request: NONE, behind: false };
}

/// Another holder of all that was on the device's medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copied {
    /// Its medium.
    pub medium: u32,
    /// The medium as it was copied.
    pub original: u32,
    /// A request that it keeps back.
    pub late: InFlight,
    /// The newest recovery code whose key was copied too.
    pub code: u8,
    /// The newest registration secret that was copied too.
    pub secret: u8,
}

impl Copied {
    pub const NONE: Self = Self { medium: NONE, original: NONE, late: InFlight::NOTHING, code: 0, secret: 0 };

    pub fn is_there(&self) -> bool {
        self.medium != NONE
    }
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Steps of the token.
    pub steps: u8,
    /// Passings of 40 minutes: one leaves a certificate three seconds.
    pub time: u8,
    /// Passings of five seconds, the interval of the pace.
    pub ticks: u8,
    /// Deaths of the device's process at a write.
    pub deaths: u8,
    /// Power cuts.
    pub cuts: u8,
    /// Orders to rotate.
    pub rotations: u8,
    /// Backups of the server that are restored later.
    pub restores: u8,
    /// Exemptions without a code.
    pub exemptions: u8,
    /// Recovery codes made by the device.
    pub codes: u8,
    /// Exemptions with a code.
    pub keyed: u8,
    /// Exemptions taken back.
    pub cancels: u8,
    /// Locks by an operator, each taken away again at any time.
    pub locks: u8,
    /// Locks of the server's own that an operator takes away without an exemption.
    pub unlocks: u8,
    /// Resets.
    pub resets: u8,
    /// Changes of the recovery limit.
    pub limits: u8,
    /// Changes of the recovery mode.
    pub modes: u8,
    /// Copies of the device's medium.
    pub copies: u8,
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub left: Left,
    /// Recoveries that the token allows at first.
    pub limit: u32,
    /// The recovery mode at first.
    pub mode: RecoveryMode,
    /// Whether a restored server's clock is ten minutes behind, in place of a second ahead.
    pub clock_back: bool,
    /// Whether a request may arrive after one that was sent later.
    pub late: bool,
    /// Whether a copy may keep a request back.
    pub late_copy: bool,
    /// How a copy may go about a join.
    pub manners: &'static [Manner],
    /// Whether the pace may run out: two steps are left of it at first. Else all steps that are explored fit in its burst.
    pub pace: bool,
    pub fault: Option<Fault>,
    pub client: Client,
    /// States after which exploration ends.
    pub states: usize,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The device asks for a challenge and sends its request.
    Send,
    /// The same; of the requests under way the older one stays, which is now late by two.
    SendKeepingOlder,
    /// The same, but its process dies at this call of its medium.
    DieSending(u8),
    /// A request arrives: the newest, or the late one.
    Arrive(u8),
    /// The answer is lost.
    LoseAnswer,
    /// The device takes the answer.
    Receive,
    /// The same, but its process dies at this call of its medium.
    DieReceiving(u8),
    /// The device loses power; of what was not durable, this is left.
    PowerCut(u8),
    /// The device makes a key for a recovery code.
    RecoveryCode,
    /// The device's medium is copied.
    Copy,
    /// A copy joins, from the medium as it was copied or as it is now; takes the answer or not.
    CopyJoins {
        copy: u8,
        manner: Manner,
        from_original: bool,
        takes: bool,
    },
    /// A copy asks for a challenge, and keeps its request back.
    CopyPrepares {
        copy: u8,
        manner: Manner,
    },
    /// The request that a copy kept back arrives.
    CopySends {
        copy: u8,
        takes: bool,
    },
    Time,
    Tick,
    Rotate,
    Backup,
    Restore,
    Exempt,
    ExemptKey,
    CancelExemption,
    Lock,
    /// An operator takes away the lock with this message.
    Unlock(&'static str),
    Reset,
    /// The limit becomes this.
    Limit(u32),
    Mode(RecoveryMode),
}
