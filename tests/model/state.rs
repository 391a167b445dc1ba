//! A state of the whole system: numbers of interned parts, and how much of each kind of trouble is still to come.

use boundkey::join::RecoveryMode;

use super::holder::{Client, Manner};
use super::server::Decision;

/// No such part.
pub const NONE: u32 = u32::MAX;
/// The device, in [`State::last`].
pub const DEVICE: u8 = 1;
/// The thief.
pub const THIEF: u8 = 2;

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
    /// Requests under way, which may arrive late, in any order, or never. A stale one has no effect, and is not kept.
    pub network: [u32; 2],
    /// The answer under way to `waiting`.
    pub answer: u32,
    /// The thief's medium.
    pub thief: u32,
    /// The thief's medium as it was copied.
    pub copy: u32,
    /// What the server answered to the attempt that the device has in flight: request and answer.
    pub lost: [u32; 2],
    /// Who made the token's last step, or was given its answer.
    pub last: u8,
    /// Whether a request of the thief ever changed anything.
    pub thief_acted: bool,
    pub left: Left,
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Steps of the token.
    pub steps: u8,
    /// Passings of 40 minutes: a certificate lasts 60.
    pub time: u8,
    /// Deaths of the device's process at a write.
    pub deaths: u8,
    /// Power cuts.
    pub cuts: u8,
    /// Orders to rotate.
    pub rotations: u8,
    /// Backups of the server that are restored later.
    pub restores: u8,
    /// Exemptions.
    pub exemptions: u8,
    /// Locks by an operator.
    pub locks: u8,
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
    pub decision: Decision,
    pub client: Client,
    /// States after which exploration ends.
    pub states: usize,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The device asks for a challenge and sends its request.
    Send,
    /// The same, but its process dies at this call of its medium.
    DieSending(u8),
    /// A request arrives.
    Arrive(u8),
    /// The answer is lost.
    LoseAnswer,
    /// The device takes the answer.
    Receive,
    /// The same, but its process dies at this call of its medium.
    DieReceiving(u8),
    /// The device loses power; of what was not durable, this is left.
    PowerCut(u8),
    /// The device's medium is copied.
    Copy,
    /// The thief joins, from the medium as it was copied or as it is now; takes the answer or not.
    Steal {
        manner: Manner,
        from_copy: bool,
        takes: bool,
    },
    Time,
    Rotate,
    Backup,
    Restore,
    Exempt,
    Lock,
    Unlock,
    /// The limit becomes this.
    Limit(u32),
    Mode(RecoveryMode),
}
