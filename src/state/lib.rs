//! What the device remembers, in a file that survives a power cut at any byte.
//!
//! `state` holds two slots; each write goes to the older one and is synced before it counts, so that the other one still holds
//! whatever a cut interrupts. `docs/state-format.md` has every byte.
#![forbid(unsafe_code)]

mod file;
mod slot;
mod storage;

pub use file::{LoadError, STATE_FILE, StateFile};
pub use slot::{SLOT_SIZE, SlotError};
pub use storage::{DirStorage, Storage};
