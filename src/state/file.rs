//! The two slots together: which one holds, and which one is written next.

use std::fmt;
use std::io;

use super::slot::{self, SLOT_SIZE, SlotError};
use super::storage::Storage;
use boundkey_join::device::Memory;

/// Name of the file in its storage.
pub const STATE_FILE: &str = "state";

/// The device's memory on its medium.
#[derive(Debug)]
pub struct StateFile<S> {
    storage: S,
    memory: Memory,
    /// Sequence of the slot that holds; 0 before the first write.
    sequence: u64,
    /// Which slot that is.
    slot: usize,
    exists: bool,
    /// Whether what was found at opening is known to be durable.
    settled: bool,
    /// Why the other slot did not count when the file was opened, if it was ever written.
    damaged: Option<SlotError>,
}

/// Why the memory cannot be had. Nothing was written.
#[derive(Debug)]
pub enum LoadError {
    /// The medium failed.
    Io(io::Error),
    /// A slot was written by a newer version of this program, with this format. Going on from the other slot would undo its steps,
    /// and look to the server like a second holder of the key.
    Newer(u16),
    /// Neither slot holds.
    Unusable([SlotError; 2]),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{STATE_FILE}: {e}"),
            Self::Newer(format) => write!(f, "{STATE_FILE}: written by a newer version of this program (format {format})"),
            Self::Unusable([first, second]) => {
                write!(f, "{STATE_FILE}: neither slot holds; the first is {first}, the second {second}")
            }
        }
    }
}

impl std::error::Error for LoadError {}

impl<S: Storage> StateFile<S> {
    /// Reads the memory. A missing file is a device that never joined; an unusable one is an error, and is left alone.
    pub fn open(storage: S) -> Result<Self, LoadError> {
        let Some(bytes) = storage.read(STATE_FILE).map_err(LoadError::Io)? else {
            return Ok(Self {
                storage,
                memory: Memory::default(),
                sequence: 0,
                slot: 1,
                exists: false,
                settled: true,
                damaged: None,
            });
        };
        let halves = [bytes.get(..SLOT_SIZE), bytes.get(SLOT_SIZE..2 * SLOT_SIZE)];
        let slots = halves.map(|half| slot::decode(half.unwrap_or(&[])));
        if let Some(Err(SlotError::FutureVersion(format))) = slots.iter().find(|s| matches!(s, Err(SlotError::FutureVersion(_))))
        {
            return Err(LoadError::Newer(*format));
        }
        let (slot, sequence, memory, damaged) = match slots {
            [Err(first), Err(second)] => return Err(LoadError::Unusable([first, second])),
            [Ok(first), Ok(second)] if second.0 > first.0 => (1, second.0, second.1, None),
            [Ok(first), other] => (0, first.0, first.1, other.err()),
            [Err(first), Ok(second)] => (1, second.0, second.1, Some(first)),
        };
        let damaged = damaged.filter(|why| *why != SlotError::Empty);
        Ok(Self { storage, memory, sequence, slot, exists: true, settled: false, damaged })
    }

    /// What the device remembers.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether anything was ever written.
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// Why one slot did not count when the file was opened: the trace of a power cut, or of worn flash.
    pub fn damaged(&self) -> Option<SlotError> {
        self.damaged
    }

    /// Writes `memory` durably. Writes nothing if it is what the file holds already.
    ///
    /// On error the file still holds the memory from before, or the new one, whole.
    pub fn store(&mut self, memory: &Memory) -> io::Result<()> {
        // A process may have died between write and sync: what it wrote can be read, and still be lost to a power cut. Neither may a
        // request leave on the strength of it, nor may the other slot, then the only one on the medium, be written over.
        if !self.settled {
            self.storage.sync(STATE_FILE)?;
            self.settled = true;
        }
        if self.exists && *memory == self.memory {
            return Ok(());
        }
        let sequence = self.sequence.checked_add(1).ok_or_else(|| io::Error::other("its sequence has come to its end"))?;
        let bytes = slot::encode(sequence, memory).map_err(io::Error::other)?;
        let slot = 1 - self.slot;
        if self.exists {
            self.storage.write_at(STATE_FILE, (slot * SLOT_SIZE) as u64, &bytes)?;
            self.storage.sync(STATE_FILE)?;
        } else {
            let mut whole = bytes;
            whole.resize(2 * SLOT_SIZE, 0);
            self.storage.replace(STATE_FILE, &whole)?;
        }
        (self.memory, self.sequence, self.slot, self.exists) = (memory.clone(), sequence, slot, true);
        Ok(())
    }

    /// Writes the memory into the older slot too. That one holds what the last request was made of: with it and the key, somebody who copies
    /// the medium later could have the answer given once more. An error leaves the newer slot as it is.
    pub fn overwrite_older(&mut self) -> io::Result<()> {
        let sequence = self.sequence.checked_add(1).ok_or_else(|| io::Error::other("its sequence has come to its end"))?;
        let bytes = slot::encode(sequence, &self.memory).map_err(io::Error::other)?;
        let slot = 1 - self.slot;
        self.storage.write_at(STATE_FILE, (slot * SLOT_SIZE) as u64, &bytes)?;
        self.storage.sync(STATE_FILE)?;
        (self.sequence, self.slot) = (sequence, slot);
        Ok(())
    }

    /// The storage, to read files beside the state.
    pub fn stored(&self) -> &S {
        &self.storage
    }

    /// The storage, for files beside the state.
    pub fn storage(&mut self) -> &mut S {
        &mut self.storage
    }
}
